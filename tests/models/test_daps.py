"""DAPS on a Gaussian prior, for which it is exact at any number of levels."""

from __future__ import annotations

import pytest
import torch
from gaussian import SD, GaussianPrior, gaussian_scan, problem_of
from posterior_checks import check_posterior, silent
from pydantic import ValidationError
from scanprior.models.daps import DAPSSettings, clean_image, daps, draw, sample_daps
from scanprior.models.forward import SenseModel
from scanprior.models.posterior import conditional_variance, measured_variance
from scanprior.models.scan import Scan
from support import random_complex

EXACT = DAPSSettings(
    steps=6, ode_steps=1, sigma_start=3.0, sigma_end=0.05, cg_iterations=200, tolerance=1e-5, max_ratio=1e6
)


@pytest.mark.parametrize(("line_mask", "real", "spread"), [
    (False, False, "measured"), (True, False, "measured"), (False, True, "gaussian"), (True, True, "gaussian")
])  # fmt: skip
def test_mean_and_variance_are_the_posteriors(line_mask: bool, real: bool, spread: str) -> None:
    """Six levels are enough: nothing is discretised. Bias: sd / 3 of the start, to the power of two, six times over."""
    scan, _ = gaussian_scan(line_mask, real=real)
    settings = EXACT.model_copy(update={"spread": spread})
    check_posterior(sample_daps(problem_of(scan, 128), GaussianPrior(), settings, silent), scan, bias=0.01)


@pytest.mark.parametrize("level", [0.05, 0.3, 2.0])
def test_measured_spread_is_the_gaussian_s_for_a_gaussian(level: float) -> None:
    """Over 2 * 64 * 4096 draws; where the measured one is the larger it is cut, which costs 2 %."""
    prior = GaussianPrior()
    clean, noise = SD * 2**0.5 * random_complex(64, 64, 64, seed=1), 2**0.5 * random_complex(64, 64, 64, seed=2)
    change = prior.denoise(clean + level * noise, level) - clean
    expected = conditional_variance(prior, level)  # type: ignore[arg-type]
    found = measured_variance(prior, level, noise, change)  # type: ignore[arg-type]
    assert found.shape == (64, 64)
    assert float(found.mean()) == pytest.approx(expected, rel=0.05)
    partly = prior.denoise(clean + level * noise, level * 2) - clean
    # a denoiser twice as careful: its own Jacobian counts, not the prior's
    slope = SD**2 / (SD**2 + 4 * level**2)
    found = measured_variance(prior, level, noise, partly)  # type: ignore[arg-type]
    assert float(found.mean()) == pytest.approx(level**2 * slope, rel=0.05)


def test_one_level_is_already_exact_where_the_start_is() -> None:
    """The last level's noise is not left in the image, nor missing from it, however large it is."""
    scan, _ = gaussian_scan()
    settings = EXACT.model_copy(update={"steps": 3, "sigma_start": 30.0, "sigma_end": 1.0})
    check_posterior(sample_daps(problem_of(scan, 128), GaussianPrior(), settings, silent), scan, bias=0.01)


def test_mean_of_the_last_level_leaves_out_its_variance() -> None:
    scan, _ = gaussian_scan()
    drawn, mean = (
        sample_daps(problem_of(scan, 64), GaussianPrior(), EXACT.model_copy(update={"last": last}), silent)
        for last in ("draw", "mean")
    )
    lost = drawn.real.var(0).mean() - mean.real.var(0).mean()
    assert 0.0 < float(lost) < 0.05**2


def test_mean_of_the_draw_is_the_minimiser() -> None:
    """The gradient of ||A x - y||^2 / s_y^2 + ||x - centre||^2 / r^2 is zero there, and the energy fell."""
    scan, _ = gaussian_scan()
    problem = problem_of(scan, 3)
    centre = problem.noise()
    variance = conditional_variance(GaussianPrior(), 0.5) * torch.linspace(0.5, 1.5, 18)  # type: ignore[arg-type]
    found = draw(problem, centre, variance, EXACT, random=False)

    def energy(x: torch.Tensor) -> torch.Tensor:
        misfit = (problem.model(x) - problem.kspace).abs().square().sum((-3, -2, -1))
        return misfit / problem.data_variance + ((x - centre).abs().square() / variance).sum((-2, -1))

    gradient = -problem.residual(found) / problem.data_variance + (found - centre) / variance
    assert float(gradient.abs().max()) < 1e-3 * float(problem.adjoint.abs().max() / problem.data_variance)
    assert (energy(found) < energy(centre)).all()
    for seed in range(3):
        step = 0.01 * torch.randn(found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(seed))
        assert (energy(found + step) > energy(found)).all()


def test_more_ode_steps_end_where_the_flow_ends() -> None:
    """For the Gaussian the probability flow maps x to x sd / sqrt(sd^2 + s^2); one step gives the mean instead."""
    x = torch.ones(1, 4, 4, dtype=torch.complex64)
    prior = GaussianPrior()
    assert torch.allclose(clean_image(prior, x, 0.4, 1), prior.denoise(x, 0.4))  # type: ignore[arg-type]
    end = clean_image(prior, x, 0.4, 200)  # type: ignore[arg-type]
    assert float((end / x - SD / (SD**2 + 0.4**2) ** 0.5).abs().max()) < 0.01


def test_data_without_noise_are_followed_and_without_prior_knowledge_recovered() -> None:
    """Full sampling, sigma 0: the image itself, to what `max_ratio` leaves of the last level."""
    scan, image = gaussian_scan()
    assert scan.maps is not None
    mask = torch.ones(16, 1, dtype=torch.bool)
    clean = Scan(SenseModel(scan.maps, mask)(image), mask, scan.maps, 0.0)
    result = daps(clean, GaussianPrior(), DAPSSettings(steps=5, samples=2, sigma_end=0.01))  # type: ignore[arg-type]
    assert float((result.image - image).abs().max()) < 0.01


def test_wrong_settings() -> None:
    for wrong in ({"last": "median"}, {"ode_steps": 0}, {"tolerance": 1.0}, {"sigma_start": 0.01}, {"eta": 1}):
        with pytest.raises(ValidationError):
            DAPSSettings.model_validate(wrong)
    prior = GaussianPrior()
    prior.sigma_min = 0.02
    with pytest.raises(ValueError, match=r"to sigma_end 0\.005 asked for; prior 'gaussian' was trained"):
        daps(gaussian_scan()[0], prior, DAPSSettings(ode_steps=5, sigma_end=0.025))  # type: ignore[arg-type]
