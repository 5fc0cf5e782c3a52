"""Plug-and-play ADMM where the denoiser is a proximal operator, so that its fixed point is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from gaussian import SD, GaussianPrior, gaussian_scan, posterior_mean
from scanprior.models.forward import SenseModel
from scanprior.models.methods import METHODS
from scanprior.models.pnp_admm import PnPADMMSettings, pnp_admm
from scanprior.models.scan import Reconstruction, Scan

PLAIN = {
    "samples": 0,
    "sigma": 0.1,
    "sigma_start": None,
    "penalty": 1.0,
    "max_ratio": 1e6,
    "cg_iterations": 10,
    "final_sigma": None,
}
"""One noise level, and as much say for the data as their noise gives them: what has a closed form."""


def run(scan: Scan, prior: GaussianPrior | None = None, **settings: object) -> Reconstruction:
    return pnp_admm(scan, prior or GaussianPrior(), PnPADMMSettings.model_validate(PLAIN | settings))  # type: ignore[arg-type]


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    "settings",
    [
        {"sigma": 0.05},
        {"sigma": 0.2, "start": "zero-filled"},
        {"sigma": 0.1, "penalty": 4.0},
        {"sigma": 0.1, "sigma_start": 2.0, "decrease": 15},
    ],
)
def test_it_comes_to_rest_at_the_posterior_mean(settings: dict[str, float]) -> None:
    scan, _ = gaussian_scan()
    result = run(scan, iterations=2000, tolerance=1e-6, cg_iterations=30, **settings)
    assert result.info["stopped"] == "tolerance"
    # the denoiser's prior is in units in which the image's bright pixels are 1
    variance = (SD * result.info["scale"]) ** 2 / settings.get("penalty", 1.0)
    wanted = posterior_mean(scan, variance).to(torch.complex64)
    assert error(result.image, wanted) < 1e-3
    assert error(result.image, posterior_mean(scan, 1.2 * variance).to(torch.complex64)) > 1e-2


def test_evaluations_are_counted_and_residuals_fall() -> None:
    scan, _ = gaussian_scan()
    prior = GaussianPrior()
    steps: list[tuple[int, int]] = []
    settings = PnPADMMSettings.model_validate(PLAIN | {"iterations": 25, "tolerance": 0, "sigma": 0.2})
    result = pnp_admm(scan, prior, settings, lambda *at: steps.append(at))  # type: ignore[arg-type]
    assert prior.calls == result.info["nfe"] == result.info["iterations"] == len(steps) == 25
    assert steps[-1] == (25, 25)
    assert result.info["stopped"] == "iterations"
    assert result.std is None
    primal, dual = zip(*result.info["residuals"], strict=True)
    assert primal[-1] < 0.01 * primal[0]
    assert dual[-1] < 0.01 * dual[0]


def test_slices_sets_and_gain() -> None:
    scan, _ = gaussian_scan()
    assert scan.maps is not None
    settings = {"iterations": 60, "tolerance": 0, "cg_iterations": 30, "sigma": 0.2}
    alone = run(scan, **settings).image
    stack = Scan(torch.stack([scan.kspace, 0 * scan.kspace, scan.kspace]), scan.mask, scan.maps, scan.sigma)
    together = run(stack, **settings)
    # one scale for the whole batch, and a third of it is empty: the same image only where that scale is the same
    variance = (SD * together.info["scale"]) ** 2
    assert error(together.image[0], posterior_mean(scan, variance).to(torch.complex64)) < 1e-2
    assert torch.equal(together.image[0], together.image[2])
    assert not together.image[1].any()
    left = (torch.arange(18) < 9).to(torch.complex64)
    sets = Scan(scan.kspace, scan.mask, torch.stack([scan.maps * left, scan.maps * (1 - left)]), scan.sigma)
    together = run(sets, **settings)
    variance = (SD * together.info["scale"]) ** 2
    assert error(together.image, posterior_mean(scan, variance).to(torch.complex64)) < 1e-2
    quiet = Scan(scan.kspace * 1e-6, scan.mask, scan.maps, scan.sigma * 1e-6)
    assert error(run(quiet, **settings).image * 1e6, alone) < 1e-3


def test_without_noise_the_data_decide() -> None:
    scan, image = gaussian_scan()
    assert scan.maps is not None
    mask = torch.ones_like(scan.mask)
    found = run(Scan(SenseModel(scan.maps, mask)(image), mask, scan.maps, 0.0), iterations=30).image
    assert error(found, image) < 1e-3


class _Mad(GaussianPrior):
    def denoise(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        return x * 1e30 if self.calls else super().denoise(x, sigma) * math.inf


def test_what_cannot_be_done_is_refused() -> None:
    scan, _ = gaussian_scan()
    with pytest.raises(ValueError, match="not finite after 1 iterations"):
        run(scan, _Mad())
    with pytest.raises(ValueError, match="no signal"):
        run(Scan(0 * scan.kspace, scan.mask, scan.maps, scan.sigma))
    prior = GaussianPrior()
    prior.sigma_max = 1.0
    with pytest.raises(ValueError, match=r"sigma_start 2 .* trained from 1 to"):
        run(scan, prior, sigma_start=2.0)
    with pytest.raises(ValueError, match="greater than 0"):
        PnPADMMSettings.model_validate({"penalty": 0})


def test_a_warm_up_is_short() -> None:
    settings = METHODS["pnp-admm"].settings.model_validate({"iterations": 500})
    assert settings.brief().iterations == 2  # type: ignore[attr-defined]


def test_an_image_that_is_driven_away_again_is_told() -> None:
    """As the prior `magnitude` does: near each other at first, then farther apart with each step."""

    class Unsteady(GaussianPrior):
        def denoise(self, x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
            clean = super().denoise(x, sigma)
            return clean if self.calls < 12 else 3 * x

    scan, _ = gaussian_scan()
    with pytest.raises(ValueError, match=r"having come as near as .* prior 'gaussian' and the data drive each other"):
        run(scan, Unsteady(), iterations=200, tolerance=0)


def test_samples_around_the_image_give_its_standard_deviation_and_leave_it_alone() -> None:
    scan, _ = gaussian_scan()
    assert scan.maps is not None
    outside = torch.ones(scan.maps.shape[-2:], dtype=torch.bool)
    outside[:, :5] = False
    maps = scan.maps * outside.logical_not().to(scan.maps.dtype)
    scan = Scan(scan.kspace, scan.mask, maps, scan.sigma)
    settings = {"iterations": 15, "tolerance": 0, "sample_steps": 4}
    alone = run(scan, **settings, samples=1)
    assert alone.std is None
    assert alone.info["evaluations"] == "15"
    prior = GaussianPrior()
    steps: list[tuple[int, int]] = []
    sure = PnPADMMSettings.model_validate(PLAIN | settings | {"samples": 6})
    found = pnp_admm(scan, prior, sure, lambda *at: steps.append(at))  # type: ignore[arg-type]
    assert torch.equal(found.image, alone.image)
    assert found.std is not None
    assert bool((found.std[:, :5] > 0).all())
    assert not found.std[outside].any()
    assert found.info["nfe"] == 15, "of the image"
    assert found.info["evaluations"] == "15 + 4 x 6"
    assert found.info["std_of"] == "samples of dds that began with the image, from sigma 0.2"
    assert steps == [(n, 19) for n in range(1, 20)]
    twice = run(scan, **settings, samples=6, std_factor=2.0).std
    assert twice is not None
    assert torch.allclose(twice, 2 * found.std)
    other = run(scan, **settings, samples=6, seed=1).std
    assert other is not None
    assert not torch.equal(other, found.std)


def test_the_spread_is_larger_where_less_was_measured() -> None:
    scan, image = gaussian_scan()
    assert scan.maps is not None
    full = torch.ones_like(scan.mask)
    dense = Scan(SenseModel(scan.maps, full)(image), full, scan.maps, scan.sigma)
    spreads = [run(one, iterations=15, tolerance=0, samples=32).std for one in (dense, scan)]
    assert spreads[0] is not None
    assert spreads[1] is not None
    assert float(spreads[1].square().mean() / spreads[0].square().mean()) > 1.5


def test_a_level_that_rises_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sigma_start \(0.5\) must not be below sigma \(0.6\)"):
        PnPADMMSettings.model_validate({"sigma": 0.6})


def test_a_last_denoising() -> None:
    scan, _ = gaussian_scan()
    prior = GaussianPrior()
    without = run(scan, iterations=12, tolerance=0)
    found = run(scan, prior, iterations=12, tolerance=0, final_sigma=0.1)
    assert prior.calls == found.info["nfe"] == 13
    assert found.info["iterations"] == 12
    scale = found.info["scale"]
    assert error(found.image, scale * prior.denoise(without.image / scale, 0.1)) < 1e-5
    with pytest.raises(ValueError, match=r"final_sigma 1e-05 asked for"):
        run(scan, final_sigma=1e-5)


def test_quiet_data_count_as_noisier_than_they_say() -> None:
    """The cap: noise of the data of no less than sigma^2 / (penalty max_ratio), in units of the bright pixels."""
    scan, _ = gaussian_scan()
    quiet = Scan(scan.kspace, scan.mask, scan.maps, 1e-4 * scan.sigma)
    result = run(quiet, iterations=2000, tolerance=1e-6, cg_iterations=30, penalty=2.0, max_ratio=20.0)
    scale = result.info["scale"]
    counts = Scan(scan.kspace, scan.mask, scan.maps, scale * (2 * 0.1**2 / (2.0 * 20)) ** 0.5)
    wanted = posterior_mean(counts, (SD * scale) ** 2 / 2.0).to(torch.complex64)
    assert error(result.image, wanted) < 1e-3
    assert error(result.image, posterior_mean(quiet, (SD * scale) ** 2 / 2.0).to(torch.complex64)) > 1e-2


@pytest.mark.parametrize("iterations", [1, 2, 5, 12, 19, 20])
def test_few_iterations_come_to_the_last_level_too(iterations: int) -> None:
    settings = PnPADMMSettings.model_validate({"iterations": iterations})
    levels = [settings.level(n) for n in range(iterations)]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] == 0.5
    assert iterations == 1 or levels[-1] == settings.sigma
    assert settings.level(iterations) == settings.sigma


def test_what_the_samples_cannot_do_is_refused_before_the_image_is_made() -> None:
    with pytest.raises(ValueError, match=r"sample_start \(0.01\) must be above 0.0125"):
        PnPADMMSettings.model_validate({"sample_start": 0.01})
    with pytest.raises(ValueError, match=r"final_sigma \(0.1\) must not be above sigma \(0.07\)"):
        PnPADMMSettings.model_validate({"final_sigma": 0.1})
    prior = GaussianPrior()
    prior.sigma_min = 0.05
    scan, _ = gaussian_scan()
    with pytest.raises(ValueError, match=r"sample_start 0.2 to the samples' end 0.0125 asked for"):
        run(scan, prior, samples=4)
    assert prior.calls == 0


def test_a_slice_of_air_does_not_keep_a_volume_from_coming_to_rest() -> None:
    scan, _ = gaussian_scan()
    assert scan.maps is not None
    noise = 1e-3 * scan.kspace.roll(3, -1)
    stack = Scan(torch.stack([scan.kspace, noise]), scan.mask, scan.maps, scan.sigma)
    assert run(stack, iterations=500, sigma=0.2).info["stopped"] == "tolerance"


def test_samples_of_a_volume_and_of_two_sets() -> None:
    scan, _ = gaussian_scan()
    assert scan.maps is not None
    settings = {"iterations": 15, "tolerance": 0, "sample_steps": 4, "samples": 4}
    stack = Scan(torch.stack([scan.kspace, 0.5 * scan.kspace]), scan.mask, scan.maps, scan.sigma)
    std = run(stack, **settings).std
    assert std is not None
    assert std.shape == (2, *scan.maps.shape[-2:])
    left = (torch.arange(18) < 9).to(torch.complex64)
    sets = Scan(scan.kspace, scan.mask, torch.stack([scan.maps * left, scan.maps * (1 - left)]), scan.sigma)
    std = run(sets, **settings).std
    assert std is not None
    assert std.shape == scan.maps.shape[-2:]
    assert bool((std > 0).all())


def test_evaluations_are_known_beforehand() -> None:
    settings = METHODS["pnp-admm"].settings
    assert settings.model_validate({"iterations": 19, "samples": 8}).network_evaluations == 100
    assert settings.model_validate({"iterations": 19, "samples": 1}).network_evaluations == 20
    assert (
        METHODS["dds"].settings.model_validate({"steps": 10, "samples": 8, "start": "pnp-admm"}).network_evaluations
        == 100
    )
    assert METHODS["tv"].settings.model_validate({}).network_evaluations is None
