"""DDS on a Gaussian prior, where everything is known in closed form."""

from __future__ import annotations

import pytest
import scanprior.models.posterior as posterior_module
import torch
from gaussian import SD, GaussianPrior, gaussian_scan, posterior_mean
from scanprior.models.dds import DDSSettings, dds, noise_levels
from scanprior.models.forward import SenseModel
from scanprior.models.intensity import intensity_scale
from scanprior.models.scan import Scan


@pytest.mark.parametrize("line_mask", [True, False])
def test_mean_is_the_analytic_posterior_mean(line_mask: bool) -> None:
    scan, _ = gaussian_scan(line_mask)
    settings = DDSSettings(
        steps=40, samples=128, eta=1.0, sigma_start=3.0, sigma_end=0.003, cg_iterations=40, max_ratio=1e6
    )
    result = dds(scan, GaussianPrior(), settings)  # type: ignore[arg-type]
    # the sampler works in units in which the image's bright pixels are 1: the prior's variance is in those
    variance = (SD * result.info["scale"]) ** 2
    wanted = posterior_mean(scan, variance)
    error = (result.image - wanted).abs().square().mean().sqrt()
    assert result.std is not None
    # the mean of 128 samples has an error of std / 11 in each of two channels
    assert float(error) < 2.0 * float(result.std.square().mean().sqrt()) / 11 + 0.01 * float(wanted.abs().mean())


def test_more_data_less_spread() -> None:
    scan, image = gaussian_scan(sigma=0.02)
    settings = DDSSettings(steps=20, samples=32, max_ratio=1e4, cg_iterations=20)
    spread = []
    for lines in (3, 16):
        mask = torch.arange(16)[:, None] < lines
        assert scan.maps is not None
        measured = Scan(SenseModel(scan.maps, mask)(image), mask, scan.maps, scan.sigma)
        spread.append(dds(measured, GaussianPrior(), settings).std)  # type: ignore[arg-type]
    assert spread[0] is not None
    assert spread[1] is not None
    assert spread[1].mean() < 0.2 * spread[0].mean()


def test_a_volume_is_sampled_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each slice as if alone, on the volume's scale; deterministic start to end apart from the noise drawn."""
    scan, _ = gaussian_scan()
    assert scan.maps is not None
    volume = Scan(
        torch.stack([scan.kspace, 0.5 * scan.kspace, scan.kspace]), scan.mask, torch.stack([scan.maps] * 3), scan.sigma
    )
    settings = DDSSettings(steps=30, samples=64, sigma_end=0.003)
    whole = dds(volume, GaussianPrior(), settings)  # type: ignore[arg-type]
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(posterior_module, "MAX_PIXELS", 2 * 64 * 16 * 18)
    pieces = dds(volume, GaussianPrior(), settings, lambda *at: calls.append(at))  # type: ignore[arg-type]
    assert calls[-1] == (60, 60)
    assert pieces.info["scale"] == whole.info["scale"]
    assert pieces.image.shape == whole.image.shape
    assert whole.std is not None
    assert pieces.std is not None
    assert pieces.std.shape == whole.std.shape
    error = (pieces.image - whole.image).abs().square().mean().sqrt()
    assert float(error) < 4 * float(whole.std.square().mean().sqrt()) / 8  # two means of 64 samples each


def test_one_sample_has_no_std_and_no_signal_is_an_error() -> None:
    scan, _ = gaussian_scan()
    assert dds(scan, GaussianPrior(), DDSSettings(steps=2, samples=1)).std is None  # type: ignore[arg-type]
    empty = Scan(torch.zeros_like(scan.kspace), scan.mask, scan.maps, scan.sigma)
    with pytest.raises(ValueError, match="no signal"):
        dds(empty, GaussianPrior(), DDSSettings(steps=2))  # type: ignore[arg-type]


def test_levels_are_geometric_and_end_in_zero() -> None:
    levels = noise_levels(1.0, 0.01, 3)
    assert levels == pytest.approx([1.0, 0.1, 0.01, 0.0])


def test_intensity_scale_is_the_percentile() -> None:
    image = torch.arange(1, 1001, dtype=torch.float32).reshape(10, 100).to(torch.complex64)
    assert intensity_scale(image) == pytest.approx(995.0)


def test_levels_that_the_prior_has_not_seen_are_refused() -> None:
    scan, _ = gaussian_scan()
    prior = GaussianPrior()
    prior.sigma_min = 0.1
    with pytest.raises(ValueError, match=r"prior .gaussian. was trained from 80 to 0\.1"):
        dds(scan, prior, DDSSettings())  # type: ignore[arg-type]


def test_calibration_widens_the_standard_deviation_alone() -> None:
    scan, _ = gaussian_scan()
    settings = DDSSettings(steps=4, samples=3)
    plain = dds(scan, GaussianPrior(), settings)  # type: ignore[arg-type]
    wide = dds(scan, GaussianPrior(), settings.model_copy(update={"std_factor": 2.5}))  # type: ignore[arg-type]
    assert torch.equal(plain.image, wide.image)
    assert plain.std is not None
    assert wide.std is not None
    torch.testing.assert_close(wide.std, 2.5 * plain.std)
    assert wide.info["std_factor"] == 2.5
