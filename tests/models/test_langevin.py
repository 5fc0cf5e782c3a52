"""Annealed Langevin sampling of a Gaussian prior, whose posterior is known in closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gaussian import SD, GaussianPrior, gaussian_scan, posterior_covariance, problem_of
from scanprior.models.forward import SenseModel
from scanprior.models.langevin import LangevinSettings, drift, langevin, sample_langevin
from scanprior.models.posterior import Problem
from scanprior.models.recipe import RecipeError, recipe_from
from scanprior.models.scan import Scan
from support import random_complex


def sample(problem: Problem, prior: Any = None, **settings: Any) -> torch.Tensor:
    return sample_langevin(problem, prior or GaussianPrior(), LangevinSettings(**settings), lambda *_: None)


@pytest.mark.parametrize("line_mask", [True, False])
@pytest.mark.parametrize("real", [True, False])
def test_samples_are_of_the_posterior(line_mask: bool, real: bool) -> None:
    """Mean and variance in every direction of the image, seen in the eigenvectors of the posterior's covariance.

    The recursion of one direction, worked out by hand for these settings, leaves its mean up to 0.05 standard
    deviations short and its variance up to 4 % too large, since some s is left when the last steps become too short.
    """
    scan, _ = gaussian_scan(line_mask, real=real)
    drawn = sample(problem_of(scan, 32), sigma_start=1.0, sigma_end=0.01, levels=300, steps_per_level=3, step=0.8)
    mean, covariance = posterior_covariance(scan, SD**2)
    variances, directions = torch.linalg.eigh(covariance)
    white = (drawn.to(mean.dtype) - mean).reshape(32, -1) @ directions.conj() / variances.sqrt()
    channels = torch.view_as_real(white)  # standard normal numbers, if the samples are what they claim to be
    # 576 squares of numbers of variance 1 / 32, and of the 0.05
    assert float(channels.mean(0).square().mean()) * 32 == pytest.approx(1.05, abs=4 * (2 / 576) ** 0.5)
    # the best measured directions, those between, and those of the prior alone
    for third in channels.var(0).chunk(3):
        assert float(third.mean()) == pytest.approx(1.025, abs=0.02 + 4 * (2 / (32 * third.numel())) ** 0.5)
    assert variances[-1] / variances[0] > 4


def test_the_exact_drift_is_the_gradient_of_the_log_posterior() -> None:
    scan, _ = gaussian_scan()
    problem = problem_of(scan, 3)
    level = 0.2
    x = random_complex(3, 16, 18, seed=7).requires_grad_(True)
    misfit = (scan.kspace - problem.model(x)).abs().square().sum() / (scan.sigma**2 / 2 + level**2)
    energy = 0.5 * (misfit + x.abs().square().sum() / (SD**2 + level**2))
    (gradient,) = torch.autograd.grad(energy, x)
    found = drift(problem, GaussianPrior(), x.detach(), level, LangevinSettings())  # type: ignore[arg-type]
    torch.testing.assert_close(found, -gradient, rtol=1e-4, atol=1e-4)


def test_the_norm_matched_data_term_has_a_multiple_of_the_scores_norm_in_each_image() -> None:
    scan, _ = gaussian_scan()
    problem = problem_of(scan, 3)
    x = random_complex(3, 16, 18, seed=7) * torch.tensor([0.1, 1.0, 10.0])[:, None, None]
    settings = LangevinSettings(data_term="norm-matched", data_weight=2.0)
    score = -x / (SD**2 + 0.2**2)
    data = drift(problem, GaussianPrior(), x, 0.2, settings) - score  # type: ignore[arg-type]
    torch.testing.assert_close(data.flatten(1).norm(dim=1), 2 * score.flatten(1).norm(dim=1), rtol=1e-4, atol=0)
    residual = problem.residual(x)
    cosine = (data.conj() * residual).real.flatten(1).sum(1) / data.flatten(1).norm(dim=1)
    torch.testing.assert_close(cosine, residual.flatten(1).norm(dim=1), rtol=1e-4, atol=0)


def test_full_data_without_noise_give_the_image_from_a_far_start() -> None:
    """With the longest step that is let through, and s_y = 0: only gamma_t = s keeps it stable."""
    scan, image = gaussian_scan()
    assert scan.maps is not None
    everything = torch.ones(16, 1, dtype=torch.bool)
    full = Scan(SenseModel(scan.maps, everything)(image), everything, scan.maps, 0.0)
    drawn = sample(problem_of(full, 2), sigma_start=5.0, sigma_end=0.002, levels=100, step=0.99)
    assert float((drawn - image).abs().square().mean().sqrt()) < 0.01


class Recorder(GaussianPrior):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.Tensor, float]] = []

    def denoise(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        self.seen.append((x, sigma))
        return super().denoise(x, sigma)


def test_it_begins_as_asked_and_ends_with_the_denoised_image() -> None:
    scan, image = gaussian_scan()
    few: dict[str, Any] = {"levels": 4, "steps_per_level": 2, "sigma_start": 0.5, "sigma_end": 0.0625}
    prior = Recorder()
    drawn = sample(problem_of(scan, 40, image), prior, start="noise", **few)
    first = torch.view_as_real(prior.seen[0][0])
    assert 0 <= float(first.min()) < 0.001 < 0.999 < float(first.max()) <= 1
    assert float(first.mean()) == pytest.approx(0.5, abs=0.01)
    assert [level for _, level in prior.seen] == pytest.approx([0.5] * 2 + [0.25] * 2 + [0.125] * 2 + [0.0625] * 3)
    assert torch.equal(drawn, GaussianPrior().denoise(*prior.seen[-1]))
    prior = Recorder()
    sample(problem_of(scan, 40, image), prior, start="sense", **few)
    noise = torch.view_as_real(prior.seen[0][0] - image)
    assert float(noise.mean()) == pytest.approx(0, abs=0.015)
    assert float(noise.std()) == pytest.approx(0.5, abs=0.015)


def test_progress_is_told_by_level() -> None:
    scan, _ = gaussian_scan()
    settings = LangevinSettings(levels=6, steps_per_level=2, samples=2)
    calls: list[tuple[int, int]] = []
    first = langevin(scan, GaussianPrior(), settings, lambda *at: calls.append(at))  # type: ignore[arg-type]
    assert first.info["nfe"] == 13
    assert calls == [(number, 6) for number in range(1, 7)]


@pytest.mark.parametrize("data_term", ["exact", "norm-matched"])
def test_volumes_and_sets_of_maps(data_term: str) -> None:
    scan, _ = gaussian_scan()
    assert scan.maps is not None
    two = Scan(scan.kspace, scan.mask, torch.stack([scan.maps, scan.maps.flip(-1) * 0.1]), scan.sigma)
    several = Scan(scan.kspace.expand(3, -1, -1, -1), scan.mask, scan.maps.expand(3, -1, -1, -1), scan.sigma)
    settings = LangevinSettings(levels=5, samples=2, data_term=data_term)  # type: ignore[arg-type]
    assert langevin(two, GaussianPrior(), settings).image.shape == (16, 18)  # type: ignore[arg-type]
    assert langevin(several, GaussianPrior(), settings).image.shape == (3, 16, 18)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"levels": 1}, "settings.levels: Input should be greater than or equal to 2, found 1"),
        ({"step": 2}, "settings.step: Input should be less than 2, found 2"),
        ({"step": 1.15}, "step (1.15) must be below 1 with data_term 'exact'"),
        ({"data_term": "matched"}, "settings.data_term: Input should be 'exact' or 'norm-matched', found 'matched'"),
        ({"sigma_end": 2}, "sigma_end (2.0) must be below sigma_start (1.23)"),
        ({"epsilon": 1}, "unknown key 'settings.epsilon'; there are: "),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        recipe_from({"method": "langevin", "prior": "small", "settings": settings}, "mine")
    assert expected in str(refusal.value)


def test_the_papers_settings_are_let_through() -> None:
    settings = LangevinSettings(levels=1155, sigma_end=0.0066, step=1.15, data_term="norm-matched")
    assert settings.levels * settings.steps_per_level == 3465
