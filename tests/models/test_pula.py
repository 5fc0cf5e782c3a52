"""pULA on a Gaussian prior: its target at every level is known, and so is the bias of a step."""

from __future__ import annotations

import itertools

import pytest
import torch
from gaussian import SD, GaussianPrior, gaussian_scan, problem_of
from posterior_checks import check_posterior, silent, whitened
from pydantic import ValidationError
from scanprior.models.pula import PULASettings, langevin_step, pula, sample_pula

EXACT = PULASettings(
    levels=50, level_steps=2, step=2.0, sigma_end=0.01, cg_iterations=16, max_ratio=1e6, final_denoise=False
)


@pytest.mark.parametrize(("line_mask", "real"), [(False, True), (True, False)])
def test_mean_and_variance_are_the_posteriors(line_mask: bool, real: bool) -> None:
    """Bias: what the data leave open settles as s falls, its variance to (0.01 / 0.3)^2 of sd^2 and a few per cent."""
    scan, _ = gaussian_scan(line_mask, real=real)
    samples = sample_pula(problem_of(scan, 48), GaussianPrior(), EXACT, silent)  # type: ignore[arg-type]
    check_posterior(samples, scan, bias=0.04)


@pytest.mark.parametrize("step", [0.5, 1.0, 2.0])
def test_a_step_keeps_its_target(step: float) -> None:
    """Samples of the level's target, a step on, are samples of it still: no bias in the variance at any step size.

    Plain Langevin noise would make what is well measured up to 1 / (1 - h / 4) as wide, h = 0.5: by a seventh.
    """
    scan, _ = gaussian_scan(False)
    level = 0.2
    blurred = (SD**2 + level**2) ** 0.5
    problem = problem_of(scan, 128)
    noise = problem.data_variance**0.5
    ridge = problem.data_variance / blurred**2
    rhs = problem.adjoint + noise * problem.model.H(problem.kspace_noise()) + ridge * blurred * problem.noise()
    x = problem.model.solve(rhs, ridge, iterations=100)
    settings = EXACT.model_copy(update={"step": step, "cg_iterations": 60})
    for _ in range(6):
        x = langevin_step(problem, GaussianPrior(), x, level, settings)  # type: ignore[arg-type]
    variances = x - x.mean(0)
    # whitened by the target's own covariance: A^H A / s_y^2 + 1 / (sd^2 + s^2)
    energy = (variances.conj() * (problem.model.normal(variances) / noise**2 + variances / blurred**2)).real
    found = float(energy.sum((-2, -1)).mean()) / (2 * 288) * 128 / 127
    assert found == pytest.approx(1.0, abs=4 * (2 / (128 * 576)) ** 0.5 + 0.003)
    mean = x.mean(0)
    gradient = problem.residual(mean) / noise**2 - mean / blurred**2
    error = problem.model.solve(gradient * noise**2, ridge, iterations=100)
    square = (error.conj() * gradient).real.sum() * 128 / (2 * 288)
    assert float(square) == pytest.approx(1.0, abs=4 * (2 / 576) ** 0.5)


def test_tight_spread_is_too_narrow_for_a_gaussian_by_no_more_than_it_says() -> None:
    """Here s ends far below all standard deviations of the posterior: every direction loses some, none over h / 4."""
    scan, _ = gaussian_scan(False)
    settings = EXACT.model_copy(update={"step": 1.0, "spread": "tight", "levels": 30})
    z = torch.view_as_real(
        whitened(sample_pula(problem_of(scan, 24), GaussianPrior(), settings, silent), scan)  # type: ignore[arg-type]
    )
    for half in (z[:, :144], z[:, 144:]):
        variance = float(half.var(0).mean())
        # 2 * 144 * 24 draws: an error of 2 %
        assert 1 - settings.step / 4 - 0.06 < variance < 0.92


def test_a_step_without_noise_lowers_the_energy() -> None:
    """Of a problem whose noise is drawn as zero: -log of the level's target falls, down to its minimum."""
    scan, _ = gaussian_scan()
    problem = problem_of(scan, 2)

    class Silent(type(problem)):  # type: ignore[misc]
        def _normal(self, shape: torch.Size) -> torch.Tensor:
            return torch.zeros(self.samples, *shape, dtype=torch.complex64)

    quiet = Silent(**vars(problem))
    level, prior = 0.3, GaussianPrior()
    x = problem.noise()

    def energy(x: torch.Tensor) -> torch.Tensor:
        misfit = (problem.model(x) - problem.kspace).abs().square().sum((-3, -2, -1)) / problem.data_variance
        return misfit + x.abs().square().sum((-2, -1)) / (SD**2 + level**2)

    energies = [energy(x)]
    for _ in range(4):
        x = langevin_step(quiet, prior, x, level, EXACT.model_copy(update={"step": 1.0}))  # type: ignore[arg-type]
        energies.append(energy(x))
    for before, after in itertools.pairwise(energies):
        assert (after < before).all()


def test_the_denoising_at_the_end_is_one_evaluation() -> None:
    scan, _ = gaussian_scan()
    settings = PULASettings(levels=5, level_steps=3, samples=2)
    assert pula(scan, GaussianPrior(), settings).info["nfe"] == 16  # type: ignore[arg-type]
    without = settings.model_copy(update={"final_denoise": False})
    assert pula(scan, GaussianPrior(), without).info["nfe"] == 15  # type: ignore[arg-type]


def test_wrong_settings() -> None:
    for wrong in ({"step": 2.5}, {"step": 0}, {"spread": "wide"}, {"levels": 1}, {"sigma_start": 0.001}, {"steps": 10}):
        with pytest.raises(ValidationError):
            PULASettings.model_validate(wrong)
