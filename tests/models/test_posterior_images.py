"""Posterior images of scans with different noise, and one round of expectation maximisation, on Gaussian priors."""

from __future__ import annotations

import pytest
import torch
from gaussian import SD, GaussianPrior, gaussian_scan, posterior
from scanprior.models.daps import DAPSSettings
from scanprior.models.measured_scans import MeasuredScans
from scanprior.models.posterior_images import draw_images, sense_images
from support import random_complex

EXACT = DAPSSettings(
    steps=6, ode_steps=1, sigma_start=3.0, sigma_end=0.05, cg_iterations=200, tolerance=1e-5, max_ratio=1e6,
    spread="gaussian",
)  # fmt: skip
COPIES = 400


def test_mean_and_variance_are_each_scans_posterior_where_noise_levels_differ() -> None:
    """Bias of the start, (sd / 3)^12, is nothing; so these are statistics of 400 draws, 4.5 standard errors."""
    both = [gaussian_scan(sigma=sigma)[0] for sigma in (0.1, 0.6)]
    scans = MeasuredScans(
        torch.cat([scan.kspace.expand(COPIES, -1, -1, -1) for scan in both]),
        torch.cat([scan.mask.expand(COPIES, -1, -1) for scan in both]),
        torch.cat([scan.maps.expand(COPIES, -1, -1, -1) for scan in both if scan.maps is not None]),
        torch.tensor([scan.sigma / 2**0.5 for scan in both]).repeat_interleave(COPIES),
    )
    images = draw_images(scans, GaussianPrior(), torch.Generator().manual_seed(0), EXACT)  # type: ignore[arg-type]
    for scan, drawn in zip(both, images.split(COPIES), strict=True):
        mean, deviation = posterior(scan, SD**2)
        z = torch.view_as_real(drawn.mean(0) - mean) / deviation[..., None] * COPIES**0.5
        assert float(z.abs().max()) < 5  # of 576, one in 1700 draws
        assert float(z.square().mean()) == pytest.approx(1, abs=0.25)
        spread = torch.view_as_real(drawn - mean).square().mean((0, -1)) / deviation**2
        assert float(spread.mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("width", [0.5, 1.5])
def test_a_round_moves_a_gaussian_prior_as_expectation_maximisation_does(width: float) -> None:
    """Single coil: in measured k-space q' = (q / (q + s^2))^2 (v + s^2) + q s^2 / (q + s^2), elsewhere q' = q."""
    count, sigma, share = 200, 0.2, 0.5
    image = SD * 2**0.5 * random_complex(count, 16, 18, seed=2)
    mask = torch.rand(count, 16, 1, generator=torch.Generator().manual_seed(3)) < share
    scans = MeasuredScans(
        torch.zeros(count, 1, 16, 18, dtype=torch.complex64), mask, torch.ones(count, 1, 16, 18) + 0j,
        torch.full((count,), sigma),
    )  # fmt: skip
    model = scans.model()
    noise = sigma * 2**0.5 * random_complex(count, 1, 16, 18, seed=4) * mask[:, None]
    scans = MeasuredScans(model(image) + noise, mask, scans.maps, scans.sigma)
    q = (width * SD) ** 2

    class Wider(GaussianPrior):
        sigma_data = width * SD

        def denoise(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
            return x * q / (q + sigma**2)

    drawn = draw_images(scans, Wider(), torch.Generator().manual_seed(1), EXACT)  # type: ignore[arg-type]
    found = float(torch.view_as_real(drawn).square().mean())
    gain = q / (q + sigma**2)
    after = gain**2 * (SD**2 + sigma**2) + q * sigma**2 / (q + sigma**2)
    measured = float(mask.float().mean())
    assert found == pytest.approx(measured * after + (1 - measured) * q, rel=0.02)
    assert abs(after - SD**2) < abs(q - SD**2)  # nearer to the truth


def test_full_scans_begin_with_their_own_image() -> None:
    image = random_complex(1, 16, 18, seed=5)
    scans = MeasuredScans(
        torch.zeros(1, 1, 16, 18) + 0j, torch.ones(1, 16, 1, dtype=torch.bool), torch.ones(1, 1, 16, 18) + 0j,
        torch.tensor([0.1]),
    )  # fmt: skip
    scans = MeasuredScans(scans.model()(image), scans.mask, scans.maps, scans.sigma)
    torch.testing.assert_close(sense_images(scans), image)


def test_what_cannot_be_drawn_is_refused() -> None:
    scan, _ = gaussian_scan()
    assert scan.maps is not None
    scans = MeasuredScans(scan.kspace[None], scan.mask[None], scan.maps[None], torch.zeros(1))
    with pytest.raises(ValueError, match="noise levels above 0"):
        draw_images(scans, GaussianPrior(), torch.Generator(), EXACT)  # type: ignore[arg-type]
