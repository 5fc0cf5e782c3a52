"""Tweedie denoising on a Gaussian prior, where image, error and residual are known in closed form."""

from __future__ import annotations

import pytest
import scanprior.models.tweedie as module
import torch
from gaussian import SD, GaussianPrior
from scanprior.gadgets.engine import Engine
from scanprior.models.forward import SenseModel
from scanprior.models.fourier import ifft2c
from scanprior.models.prior import load_prior
from scanprior.models.recipe import RecipeError, load_recipe, recipe_from
from scanprior.models.scan import Reconstruction, Scan
from scanprior.models.tweedie import TweedieSettings, tweedie
from scanprior.sim.phantoms import brain
from support import random_complex

SIZE = 64


def unit_maps(*shape: int) -> torch.Tensor:
    maps = random_complex(*shape, seed=1)
    return maps / maps.abs().square().sum(-3, keepdim=True).sqrt()


def full_scan(image: torch.Tensor, sigma: float, maps: torch.Tensor | None = None) -> Scan:
    """Fully sampled; `sigma` of each real channel."""
    maps = unit_maps(4, *image.shape[-2:]) if maps is None else maps
    mask = torch.ones(image.shape[-2], 1, dtype=torch.bool)
    kspace = SenseModel(maps, mask)(image)
    return Scan(kspace + sigma * 2**0.5 * random_complex(*kspace.shape, seed=4), mask, maps, sigma * 2**0.5)


def gaussian_image(*shape: int) -> torch.Tensor:
    """As `GaussianPrior` knows them, times 10: a scan's units are its own."""
    return 10 * SD * 2**0.5 * random_complex(*shape, seed=2)


def run(scan: Scan, sigma: float | None = None) -> Reconstruction:
    return tweedie(scan, GaussianPrior(), TweedieSettings(sigma=sigma))  # type: ignore[arg-type]


def test_image_is_the_wiener_filter_of_the_least_squares_image() -> None:
    scan = full_scan(gaussian_image(SIZE, SIZE), 2.0)
    result = run(scan)
    variance = (SD * result.info["scale"]) ** 2
    assert scan.maps is not None
    combined = (scan.maps.conj() * ifft2c(scan.kspace)).sum(0)
    torch.testing.assert_close(result.image, combined * variance / (variance + 4), rtol=1e-4, atol=1e-3)
    assert result.std is not None
    wanted = (variance * 4 / (variance + 4)) ** 0.5
    torch.testing.assert_close(result.std, torch.full((SIZE, SIZE), wanted), rtol=1e-4, atol=0)
    assert result.info["expected_rmse"] == pytest.approx(wanted, rel=1e-4)
    assert (result.info["sigma"], result.info["nfe"]) == (pytest.approx(2.0), 1)


@pytest.mark.parametrize("told", [0.5, 1.0, 2.0])
def test_residual_and_noise_found_are_those_of_the_mathematics(told: float) -> None:
    """For a filter w the residual is (1 - w)^2 of the power, the slope w: 8192 real entries give it to 1.6 %."""
    sigma = 3.0
    scan = full_scan(gaussian_image(SIZE, SIZE), sigma)
    info = run(scan, told * sigma).info
    variance = (SD * info["scale"]) ** 2
    filtered = variance / (variance + (told * sigma) ** 2)
    power = (1 - filtered) ** 2 * ((10 * SD) ** 2 + sigma**2) / (told * sigma) ** 2
    assert info["residual"] == pytest.approx(power**0.5, rel=0.03)
    assert info["noise_found"] == pytest.approx((power / (1 - filtered)) ** 0.5, rel=0.03)
    assert abs(info["residual_correlation"]) < 0.05


class SmoothPrior(GaussianPrior):
    """Images that live in a twentieth of k-space, of any strength: D projects onto it."""

    def denoise(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        low = torch.zeros(SIZE, SIZE)
        low[:14, :14] = 1
        return torch.fft.ifft2(torch.fft.fft2(x) * low)


@pytest.mark.parametrize(
    ("told", "complaint"),
    [(0.5, r"(1\.9|2\.0)\d times .* too low"), (1.0, None), (2.0, r"0\.(4|5)\d times .* too high")],
)
def test_a_wrong_noise_level_is_noticed(told: float, complaint: str | None) -> None:
    image = 100 * SmoothPrior().denoise(random_complex(SIZE, SIZE, seed=3), 0.0)
    scan = full_scan(image, 2.0)
    result = tweedie(scan, SmoothPrior(), TweedieSettings(sigma=2.0 * told))  # type: ignore[arg-type]
    assert result.info["noise_found"] == pytest.approx(1 / told, rel=0.05)
    assert result.std is not None
    error = float((result.image - image).abs().square().mean() / 2) ** 0.5
    # J is the projection: 4.8 % of the noise stays, a probe measures it to 15 %
    assert error == pytest.approx(2.0 * 14 / SIZE, rel=0.1)
    assert result.info["expected_rmse"] == pytest.approx(told * error, rel=0.25)
    if complaint is None:
        assert "warning" not in result.info
    else:
        with pytest.raises(AssertionError, match=complaint):
            raise AssertionError(result.info["warning"])


class RealPrior(GaussianPrior):
    """Images that are real, and nothing else is known of them."""

    def denoise(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        return torch.complex(x.real, torch.zeros_like(x.real))


def test_standard_deviation_is_of_the_magnitude() -> None:
    """Noise along the image stays whole, noise across it goes: half of the real entries."""
    image = (1 + torch.rand(SIZE, SIZE, generator=torch.Generator().manual_seed(1))).to(torch.complex64)
    scan = full_scan(50 * image, 2.0)
    result = tweedie(scan, RealPrior(), TweedieSettings())  # type: ignore[arg-type]
    assert result.std is not None
    torch.testing.assert_close(result.std, torch.full((SIZE, SIZE), 2.0))
    assert result.info["expected_rmse"] == pytest.approx(2**0.5)
    assert float((result.image.abs() - 50 * image.abs()).square().mean()) == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("told", [0.5, 1.0, 2.0])
def test_the_released_prior_notices_it_too(told: float) -> None:
    image = torch.from_numpy(brain((96, 96), 1, seed=3).image[0].astype("complex64"))
    image = 30 * image / image.abs().max()
    prior = load_prior("small")
    scan = full_scan(image, 1.0)
    result = tweedie(scan, prior, TweedieSettings(sigma=told))
    assert ("warning" in result.info) == (told != 1)
    if told == 1:
        error = float((result.image - image).abs().square().mean() / 2) ** 0.5
        assert error < 0.5
        assert result.info["expected_rmse"] == pytest.approx(error, rel=0.25)


def test_slices_of_a_volume_are_those_of_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    images = gaussian_image(3, SIZE, SIZE)
    maps = unit_maps(3, 4, SIZE, SIZE)
    scan = full_scan(images, 1.0, maps)
    whole = run(scan)
    monkeypatch.setattr(module, "GRADIENT_PIXELS", SIZE * SIZE)
    pieces = run(scan)
    torch.testing.assert_close(whole.image, pieces.image)
    torch.testing.assert_close(whole.std, pieces.std)
    assert whole.image.shape == images.shape
    # one map for all slices, too
    assert run(full_scan(images, 1.0)).image.shape == images.shape


def test_sets_of_maps_and_pixels_without_maps() -> None:
    image = gaussian_image(SIZE, SIZE)
    left = (torch.arange(SIZE) < 20).to(torch.complex64)
    right = (torch.arange(SIZE) >= 30).to(torch.complex64)
    maps = unit_maps(4, SIZE, SIZE)
    sets = torch.stack([maps * left, maps * right])
    mask = torch.ones(SIZE, 1, dtype=torch.bool)
    kspace = SenseModel(sets, mask, sets=True)(torch.stack([image, image]))
    scan = Scan(kspace + 2**0.5 * random_complex(*kspace.shape, seed=4), mask, sets, 2**0.5)
    result = run(scan)
    variance = (SD * result.info["scale"]) ** 2
    assert scan.maps is not None
    combined = (maps.conj() * ifft2c(scan.kspace)).sum(0) * (left + right)
    torch.testing.assert_close(result.image, combined * variance / (variance + 1), rtol=1e-3, atol=1e-2)
    assert result.std is not None
    assert not result.std[:, 20:30].any()
    inside = torch.cat([result.std[:, :20], result.std[:, 30:]], 1)
    torch.testing.assert_close(inside, torch.full_like(inside, (variance / (variance + 1)) ** 0.5), rtol=1e-3, atol=0)


def test_scans_that_it_is_not_for() -> None:
    scan = full_scan(gaussian_image(SIZE, SIZE), 1.0)
    half = torch.arange(SIZE)[:, None] % 2 == 0
    with pytest.raises(ValueError, match=r"fully sampled scans, and this one has R = 2\.00"):
        run(Scan(scan.kspace * half, half, scan.maps, scan.sigma))
    edge = torch.arange(SIZE)[:, None] > 0
    nearly = run(Scan(scan.kspace * edge, edge, scan.maps, scan.sigma))
    assert nearly.info["noise_found"] == pytest.approx(run(scan).info["noise_found"], rel=0.03)
    with pytest.raises(ValueError, match=r"the noise is 9\.\d+e-05 in the scale of prior 'gaussian'.* 80 to 0\.002"):
        run(scan, 1e-3)
    with pytest.raises(ValueError, match="noise level"):
        run(Scan(scan.kspace, scan.mask, scan.maps, 0.0))
    with pytest.raises(ValueError, match="no signal"):
        run(Scan(torch.zeros_like(scan.kspace), scan.mask, scan.maps, scan.sigma))


def test_recipe() -> None:
    assert load_recipe("tweedie").method == "tweedie"
    with pytest.raises(RecipeError, match=r"settings\.sigma"):
        recipe_from({"method": "tweedie", "prior": "small", "settings": {"sigma": 0}}, "mine")


def test_a_warm_up_takes_its_own_noise() -> None:
    """A recipe's `sigma` may be of k-space of any gain, far from the scan that an engine warms up with."""
    recipe = load_recipe("tweedie").model_dump() | {"settings": {"sigma": 1e-7}, "device": "cpu"}
    engine = Engine(recipe_from(recipe, "faint"), threads=1)
    try:
        assert engine.warm_up() > 0
    finally:
        engine.close()
