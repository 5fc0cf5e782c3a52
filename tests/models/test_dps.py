"""DPS: its gradient, its step, and what is left of the data when nothing hides them."""

from __future__ import annotations

import pytest
import torch
from gaussian import SD, GaussianPrior, gaussian_scan, problem_of
from posterior_checks import silent
from pydantic import ValidationError
from scanprior.models.dps import DPSSettings, data_step, dps, karras_levels, sample_dps
from scanprior.models.forward import SenseModel
from scanprior.models.posterior import Problem
from scanprior.models.scan import Scan
from support import random_complex

PAPER = DPSSettings(start="noise", sigma_start=80.0, sigma_end=0.002, steps=100)
"""The levels of Ravula et al. 2023."""


class Bent(GaussianPrior):
    """A denoiser whose Jacobian is neither constant nor complex-linear."""

    def denoise(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        self.calls += 1
        return torch.complex(torch.tanh(x.real + 0.3 * x.imag), 0.5 * x.imag * x.real) / (1 + sigma)


def in_double(samples: int = 2) -> Problem:
    scan, _ = gaussian_scan(False)
    assert scan.maps is not None
    scan = Scan(scan.kspace.to(torch.complex128), scan.mask, scan.maps.to(torch.complex128), scan.sigma)
    return problem_of(scan, samples)


def test_step_is_the_gradient_of_the_misfit_by_finite_differences() -> None:
    """In float64: the step along a direction is weight / ||r|| times the change of ||A D(x) - y||^2 along it."""
    problem, prior = in_double(), Bent()
    x = random_complex(2, 16, 18, seed=5, dtype=torch.complex128)
    weight = 0.7 * 384 / (16 * 18) ** 0.5
    _, step = data_step(problem, prior, x, 0.5, weight)  # type: ignore[arg-type]

    def misfit(x: torch.Tensor) -> torch.Tensor:
        return (problem.model(prior.denoise(x, 0.5)) - problem.kspace).abs().square().sum((-3, -2, -1))

    length = 0.7 / misfit(x).sqrt()
    assert (length < 0.5).all()
    for seed in range(4):
        direction = random_complex(2, 16, 18, seed=seed, dtype=torch.complex128)
        small = 1e-5
        slope = (misfit(x + small * direction) - misfit(x - small * direction)) / (2 * small)
        along = (step.conj() * direction).real.sum((-2, -1))
        torch.testing.assert_close(along, length * slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("weight", [0.1, 10.0, 1000.0])
@pytest.mark.parametrize("level", [0.002, 0.1, 3.0])
def test_data_step_lowers_the_energy_whatever_its_weight(weight: float, level: float) -> None:
    """The longest step allowed does not overshoot where D changes nothing (level 0.002), nor where it shrinks."""
    scan, _ = gaussian_scan(False)
    problem, prior = problem_of(scan, 4), GaussianPrior()
    x = problem.noise()
    denoised, step = data_step(problem, prior, x, level, weight)  # type: ignore[arg-type]
    before = (problem.model(denoised) - problem.kspace).norm(dim=(-2, -1)).square().sum(-1)
    after = (problem.model(prior.denoise(x - step, level)) - problem.kspace).norm(dim=(-2, -1)).square().sum(-1)
    assert (after < before).all()


def test_step_moves_a_pixel_as_far_in_any_size() -> None:
    """Four copies of a coil's image, at a weight that the cap leaves alone: the same step in each."""
    steps = []
    for copies in (1, 2):
        image = random_complex(8, 8, seed=1).repeat(copies, copies) * 100
        maps = torch.ones(1, 8 * copies, 8 * copies, dtype=torch.complex64)
        mask = torch.ones(8 * copies, 1, dtype=torch.bool)
        scan = Scan(SenseModel(maps, mask)(image), mask, maps, 0.1)
        problem = problem_of(scan, 1)
        steps.append(data_step(problem, GaussianPrior(), torch.zeros_like(image)[None], 0.1, 10.0)[1])  # type: ignore[arg-type]
    torch.testing.assert_close(steps[1][:, :8, :8], steps[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("start", ["noise", "sense"])
def test_full_sampling_without_noise_gives_the_image(start: str) -> None:
    scan, image = gaussian_scan()
    assert scan.maps is not None
    mask = torch.ones(16, 1, dtype=torch.bool)
    clean = Scan(SenseModel(scan.maps, mask)(image), mask, scan.maps, 0.0)
    result = dps(clean, GaussianPrior(), PAPER.model_copy(update={"samples": 2, "start": start, "s_churn": 20.0}))  # type: ignore[arg-type]
    assert float((result.image - image).abs().square().mean().sqrt()) < 0.01 * SD


def test_levels_are_those_of_karras() -> None:
    """Table 1: sigma_i^(1/7) evenly spaced, then 0."""
    levels = karras_levels(80.0, 0.002, 4)
    assert levels[0] == pytest.approx(80.0)
    assert levels[3] == pytest.approx(0.002)
    assert levels[4] == 0.0
    roots = [level ** (1 / 7) for level in levels[:4]]
    assert roots[1] - roots[0] == pytest.approx(roots[3] - roots[2])


def test_noise_put_back_keeps_the_prior_s_variance() -> None:
    """Without data: samples of the prior, with and without churn (Karras et al. 2022, algorithm 2).

    Euler's steps lose variance, a twentieth of it at 400 steps; 8 * 576 draws have an error of 2 %.
    """
    scan, _ = gaussian_scan()
    problem = problem_of(scan, 8)
    empty = SenseModel(problem.model.maps, torch.zeros(16, 1))
    problem = Problem(empty, problem.kspace * 0, problem.adjoint * 0, 1.0, problem.start, 8, problem.generator)
    for churn in (0.0, 40.0):
        samples = sample_dps(
            problem, GaussianPrior(), PAPER.model_copy(update={"steps": 400, "s_churn": churn}), silent
        )  # type: ignore[arg-type]
        assert float(torch.view_as_real(samples).var(0).mean()) / SD**2 == pytest.approx(0.95, abs=0.08)


def test_noise_is_put_back_between_s_min_and_s_max_and_within_the_prior_s_levels() -> None:
    scan, _ = gaussian_scan()

    class Watching(GaussianPrior):
        """Remembers the levels it was asked for."""

        def __init__(self) -> None:
            super().__init__()
            self.levels: list[float] = []

        def denoise(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
            self.levels.append(sigma)
            return super().denoise(x, sigma)

    prior = Watching()
    churn = {"steps": 10, "samples": 1, "s_churn": 3.0, "s_min": 0.1, "s_max": 100.0}
    settings = PAPER.model_copy(update=churn)
    dps(scan, prior, settings)  # type: ignore[arg-type]
    for asked, level in zip(prior.levels, karras_levels(80.0, 0.002, 10), strict=False):
        assert asked == pytest.approx(min(80.0, 1.3 * level) if level >= 0.1 else level)


def test_wrong_settings() -> None:
    for wrong in ({"weight": 0}, {"s_churn": -1}, {"rho": 0.5}, {"sigma_start": 0.001}, {"eta": 1}):
        with pytest.raises(ValidationError):
            DPSSettings.model_validate(wrong)
