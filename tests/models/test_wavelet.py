"""The wavelet transform, and L1-wavelet against sigpy's solver and BART."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import pywt
import sigpy
import sigpy.mri
import torch
from bart import bart
from brain import load_brain
from scanprior.models.forward import SenseModel
from scanprior.models.linear import SenseSettings, sense
from scanprior.models.scan import Scan
from scanprior.models.wavelet import L1WaveletSettings, inverse_wavelet, l1_wavelet, wavelet
from sparse import noisy_scan
from support import random_complex


@pytest.mark.parametrize("shape", [(32, 48), (33, 50), (45, 77), (15, 40)])
def test_any_size_is_orthogonal(shape: tuple[int, int]) -> None:
    image = random_complex(2, *shape, dtype=torch.complex128)
    bands = wavelet(image, 4)
    torch.testing.assert_close(inverse_wavelet(bands), image)
    assert sum(band[0].numel() for band in bands) == image[0].numel()
    energy = sum(band.abs().square().sum() for band in bands)
    torch.testing.assert_close(energy, image.abs().square().sum())


def test_pywavelets_has_the_same_coefficients() -> None:
    image = random_complex(64, 64, dtype=torch.complex128)
    # Its filters start at odd samples; beyond that the two differ by a circular shift of each band.
    ours = wavelet(torch.roll(image, (1, 1), (0, 1)), 1)
    low, details = pywt.dwt2(image.numpy(), "db4", mode="periodization")
    for one, other in zip(ours, [*details, low], strict=True):
        np.testing.assert_allclose(np.sort(one.abs().numpy(), None), np.sort(np.abs(other), None), atol=1e-12)


def test_polynomials_have_no_details() -> None:
    ramp = torch.linspace(-1, 1, 64, dtype=torch.float64)
    image = (1 + ramp + ramp**3).unsqueeze(1) * torch.ones(64, dtype=torch.float64)
    for band in wavelet(image, 1)[:3]:
        assert float(band[..., :28, :].abs().amax()) < 1e-10


class _DetailPenalty(sigpy.prox.Prox):
    """Prox of lam ||details||_1 for sigpy's solver, in our transform."""

    def __init__(self, shape: tuple[int, ...], lam: float, levels: int) -> None:
        self.lam, self.levels = lam, levels
        super().__init__(shape)

    def _prox(self, alpha: float, image: np.ndarray) -> np.ndarray:
        bands = wavelet(torch.from_numpy(image), self.levels)
        shrunk = [torch.from_numpy(sigpy.soft_thresh(self.lam * alpha, band.numpy())) for band in bands[:-1]]
        return inverse_wavelet([*shrunk, bands[-1]]).numpy()


def penalised(scan: Scan, image: torch.Tensor, lam: float, levels: int) -> float:
    residual = SenseModel.of(scan)(image) - scan.kspace
    details = sum(float(band.abs().sum()) for band in wavelet(image, levels)[:-1])
    return 0.5 * float(residual.abs().square().sum()) + lam * details


def test_objective_is_at_most_sigpys() -> None:
    scan, _ = noisy_scan()
    assert scan.maps is not None
    lam, levels = 2 * scan.sigma, 3
    settings = L1WaveletSettings(lam=2, iterations=150, tolerance=0, levels=levels, shifts=False)
    result = l1_wavelet(scan, None, settings)
    ours = penalised(scan, result.image, lam, levels)
    assert ours == pytest.approx(result.info["objective"][-1], rel=1e-4)
    operator = sigpy.mri.linop.Sense(scan.maps.numpy(), weights=scan.mask.float().expand(64, 60).numpy())
    oracle = sigpy.app.LinearLeastSquares(
        operator, scan.kspace.numpy(), proxg=_DetailPenalty((64, 60), lam, levels), max_iter=150, show_pbar=False
    ).run()
    theirs = penalised(scan, torch.from_numpy(oracle), lam, levels)
    assert ours <= theirs * (1 + 1e-5)
    assert ours > theirs * (1 - 1e-2)
    assert float((result.image - torch.from_numpy(oracle)).norm() / result.image.norm()) < 0.01


def test_each_slice_of_a_batch_and_its_gain() -> None:
    scan, _ = noisy_scan()
    settings = L1WaveletSettings(lam=1, iterations=20, tolerance=0)
    alone = l1_wavelet(scan, None, settings).image
    stack = Scan(torch.stack([0 * scan.kspace, scan.kspace]), scan.mask, scan.maps, scan.sigma)
    together = l1_wavelet(stack, None, settings).image
    assert torch.equal(together[0], torch.zeros_like(alone))
    torch.testing.assert_close(together[1], alone, rtol=1e-3, atol=1e-4)
    quiet = Scan(scan.kspace * 1e-6, scan.mask, scan.maps, scan.sigma * 1e-6)
    torch.testing.assert_close(l1_wavelet(quiet, None, settings).image * 1e6, alone, rtol=1e-3, atol=1e-4)


def test_it_stops_and_reports() -> None:
    scan, _ = noisy_scan()
    steps: list[tuple[int, int]] = []
    settings = L1WaveletSettings(lam=2, iterations=500, tolerance=1e-3, shifts=False)
    result = l1_wavelet(scan, None, settings, lambda step, total: steps.append((step, total)))
    assert result.info["iterations"] == len(steps) == len(result.info["objective"]) < 500
    assert result.info["objective"][-1] <= min(result.info["objective"]) * (1 + 1e-4)


def test_two_sets_and_noiseless_data() -> None:
    maps = random_complex(2, 5, 32, 32, seed=3)
    maps = maps / maps.abs().square().sum((0, 1)).sqrt()
    mask = torch.ones(32, 1, dtype=torch.bool)
    kspace = SenseModel(maps, mask, sets=True)(random_complex(2, 32, 32))
    result = l1_wavelet(Scan(kspace, mask, maps, 0.0), None, L1WaveletSettings(iterations=10))
    assert result.image.shape == (32, 32)
    assert torch.isfinite(torch.view_as_real(result.image)).all()


@pytest.mark.slow
def test_recorded_brain_beats_sense_sigpy_and_bart(tmp_path: Path) -> None:
    brain = load_brain()
    scan = Scan(brain.kspace, brain.mask, brain.maps, 1.0)
    ours = brain.psnr(l1_wavelet(scan, None, L1WaveletSettings()).image)
    assert ours > 33.0
    assert ours > brain.psnr(sense(scan, None, SenseSettings()).image) + 1
    oracle = bart(
        tmp_path, "pics -w1 -i100 -RW:3:0:0.3", brain.kspace.numpy()[:, None], brain.maps.numpy()[:, None]
    ).reshape(320, 320)
    assert ours > brain.psnr(torch.from_numpy(oracle)) - 0.3
    app = sigpy.mri.app.L1WaveletRecon(
        brain.kspace.numpy(), brain.maps.numpy(), 0.3, weights=brain.mask.float().expand(320, 320).numpy(),
        max_iter=60, show_pbar=False,
    )  # fmt: skip
    assert ours > brain.psnr(torch.from_numpy(app.run())) - 0.1
