"""Least squares with early stopping: where it stops, and what it is when nothing stops it."""

from __future__ import annotations

import pytest
import torch
from gaussian import gaussian_scan
from scanprior.models.forward import SenseModel
from scanprior.models.least_squares import LeastSquaresSettings, least_squares
from scanprior.models.scan import Reconstruction, Scan
from sparse import noisy_scan


def run(scan: Scan, **settings: object) -> Reconstruction:
    return least_squares(scan, None, LeastSquaresSettings.model_validate(settings))


def misfit(scan: Scan, image: torch.Tensor) -> float:
    """||A x - y||^2 over its expectation, the number of samples times sigma^2, counted from scratch."""
    samples = scan.kspace.abs().gt(0).sum()
    return float((SenseModel.of(scan)(image) - scan.kspace).abs().square().sum() / samples) / scan.sigma**2


@pytest.mark.parametrize("algorithm", ["cgls", "gradient"])
@pytest.mark.parametrize("tau", [1.0, 1.03])
def test_it_stops_at_the_noise(algorithm: str, tau: float) -> None:
    scan, truth = noisy_scan()
    result = run(scan, algorithm=algorithm, tau=tau, iterations=2000)
    assert result.info["stopped"] == "discrepancy"
    assert result.info["residuals"] == sorted(result.info["residuals"], reverse=True)
    assert misfit(scan, result.image) == pytest.approx(result.info["residuals"][-1] ** 2, rel=1e-3)
    assert misfit(scan, result.image) <= tau**2
    before = run(scan, algorithm=algorithm, tau=tau, iterations=result.info["iterations"] - 1)
    assert before.info["stopped"] == "iterations"
    assert misfit(scan, before.image) > tau**2
    # stopping is what keeps the noise out of the image
    on = run(scan, algorithm=algorithm, tau=0.01, iterations=300)
    assert float((result.image - truth).norm()) < float((on.image - truth).norm())


def test_without_noise_it_is_the_least_squares_solution() -> None:
    scan, _ = gaussian_scan(sigma=0.1)
    found = run(Scan(scan.kspace, scan.mask, scan.maps, 0.0), iterations=1000, tolerance=1e-6)
    assert found.info["stopped"] == "gradient"
    assert found.info["residuals"] == []
    model = SenseModel.of(scan)
    basis = torch.eye(16 * 18, dtype=torch.complex64).reshape(-1, 16, 18)
    wanted = torch.linalg.lstsq(
        torch.stack([model(b).flatten() for b in basis], 1).to(torch.complex128),
        scan.kspace.flatten()[:, None].to(torch.complex128),
    ).solution
    torch.testing.assert_close(found.image.flatten(), wanted[:, 0].to(torch.complex64), rtol=1e-3, atol=1e-3)


def test_each_slice_stops_by_itself() -> None:
    scan, _ = noisy_scan()
    faint = 0.02 * scan.kspace  # under the noise that the scan says it has: nothing to be fitted
    assert scan.maps is not None
    stack = Scan(torch.stack([scan.kspace, 0 * scan.kspace, faint]), scan.mask, scan.maps, scan.sigma)
    together, alone = run(stack), run(scan)
    torch.testing.assert_close(together.image[0], alone.image, rtol=1e-3, atol=1e-4)
    assert not together.image[1:].any()
    assert together.info["stopped"] == "discrepancy"
    assert not run(Scan(0 * scan.kspace, scan.mask, scan.maps, 0.0)).image.any()


def test_sets_of_maps_and_the_gain() -> None:
    scan, _ = noisy_scan()
    assert scan.maps is not None
    left = (torch.arange(60) < 30).to(torch.complex64)
    sets = Scan(scan.kspace, scan.mask, torch.stack([scan.maps * left, scan.maps * (1 - left)]), scan.sigma)
    quiet = Scan(scan.kspace * 1e-6, scan.mask, scan.maps, scan.sigma * 1e-6)
    wanted = run(scan).image
    # two sets of a half each are the same problem, written otherwise
    torch.testing.assert_close(run(sets).image, wanted, rtol=1e-2, atol=2e-3)
    torch.testing.assert_close(run(quiet).image * 1e6, wanted, rtol=1e-3, atol=1e-4)


def test_maps_are_asked_for() -> None:
    scan, _ = noisy_scan()
    with pytest.raises(ValueError, match="needs coil maps"):
        run(Scan(scan.kspace, scan.mask, None, scan.sigma))
