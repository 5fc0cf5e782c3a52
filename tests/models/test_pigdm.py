"""PiGDM on a Gaussian prior, where its guidance is exact."""

from __future__ import annotations

import pytest
import torch
from gaussian import SD, GaussianPrior, gaussian_scan, posterior_mean, problem_of
from posterior_checks import check_posterior, silent
from pydantic import ValidationError
from scanprior.models import pigdm as module
from scanprior.models import posterior as posterior_module
from scanprior.models.pigdm import PiGDMSettings, pigdm, sample_pigdm

EXACT = PiGDMSettings(steps=120, sigma_start=3.0, sigma_end=0.01, cg_iterations=16, max_ratio=1e6)


@pytest.mark.parametrize("level", [0.05, 0.5, 5.0])
@pytest.mark.parametrize("line_mask", [False, True])
def test_guided_denoiser_is_the_posterior_mean_given_the_noisy_image(line_mask: bool, level: float) -> None:
    """(A^H A / s_y^2 + 1 / sd^2 + 1 / s^2) E = A^H y / s_y^2 + x / s^2: no weight, no approximation."""
    scan, _ = gaussian_scan(line_mask)
    problem = problem_of(scan, 3)
    x = level * problem.noise()
    settings = EXACT.model_copy(update={"cg_iterations": 100})
    found = module.posterior_mean(problem, GaussianPrior(), x, level, settings)  # type: ignore[arg-type]
    left = problem.model.normal(found) / problem.data_variance + (1 / SD**2 + 1 / level**2) * found
    right = problem.adjoint / problem.data_variance + x / level**2
    torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-3 * float(right.abs().max()))


@pytest.mark.parametrize(("line_mask", "real"), [(False, True), (True, False)])
def test_mean_and_variance_are_the_posteriors(line_mask: bool, real: bool) -> None:
    """Bias: a step of first order drops a variance of about the levels' ratio less one, ln(300) / 119 = 5 %."""
    scan, _ = gaussian_scan(line_mask, real=real)
    check_posterior(sample_pigdm(problem_of(scan, 48), GaussianPrior(), EXACT, silent), scan, bias=0.06)


def test_the_bias_of_the_steps_goes_away_with_them() -> None:
    """A lone pixel without data: variance is lost in proportion to the logarithmic step."""
    scan, _ = gaussian_scan()
    problem = problem_of(scan, 64)
    empty = type(problem)(
        problem.model, problem.kspace * 0, problem.adjoint * 0, 1e6, problem.start, 64, problem.generator
    )
    lost = []
    for steps in (15, 60):
        settings = EXACT.model_copy(update={"steps": steps, "cg_iterations": 1})
        samples = sample_pigdm(empty, GaussianPrior(), settings, silent)  # type: ignore[arg-type]
        lost.append(1 - float(torch.view_as_real(samples).var(0).mean()) / SD**2)
    # 64 * 576 draws: an error of 0.7 %
    assert lost[0] > 0.2
    assert 0.02 < lost[1] < 0.4 * lost[0]


def test_deterministic_samples_keep_the_mean() -> None:
    """`eta` 0 forgets its start as sd / sigma_start only: 0.3 %."""
    scan, _ = gaussian_scan()
    settings = EXACT.model_copy(update={"eta": 0.0, "sigma_start": 80.0, "steps": 80})
    samples = sample_pigdm(problem_of(scan, 64), GaussianPrior(), settings, silent)  # type: ignore[arg-type]
    check_posterior(samples, scan, bias=0.08)
    wanted = posterior_mean(scan, SD**2)
    assert float((samples.mean(0) - wanted).abs().square().mean().sqrt()) < 0.05


def test_evaluations_and_image_are_the_same_however_few_samples_go_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scan, _ = gaussian_scan()
    prior = GaussianPrior()
    settings = PiGDMSettings(steps=7, samples=4)
    first = pigdm(scan, prior, settings)  # type: ignore[arg-type]
    assert prior.calls == first.info["nfe"] == 7
    monkeypatch.setattr(posterior_module, "GRADIENT_PIXELS", 16 * 18)
    again = pigdm(scan, prior, settings)  # type: ignore[arg-type]
    assert prior.calls == 7 + 4 * 7
    assert again.info["nfe"] == 7
    torch.testing.assert_close(first.image, again.image, rtol=1e-3, atol=1e-3 * float(first.image.abs().max()))


def test_wrong_settings() -> None:
    for wrong in ({"eta": 2}, {"steps": 1}, {"max_ratio": 0}, {"sigma_start": 0.01}, {"weight": 1}):
        with pytest.raises(ValidationError):
            PiGDMSettings.model_validate(wrong)
