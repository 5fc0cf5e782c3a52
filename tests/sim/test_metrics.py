"""Metrics against values worked out by hand and against an own SSIM with the paper's formula."""

from __future__ import annotations

import numpy as np
import pytest
from scanprior.sim.metrics import nmse, psnr, ssim
from scipy.ndimage import gaussian_filter


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = gaussian_filter(rng.random((64, 48)), 2) * np.exp(1j * rng.random((64, 48)))
    return truth + 0.02 * rng.standard_normal((64, 48)), truth


def test_psnr_and_nmse_by_hand() -> None:
    truth = np.zeros((8, 8), complex)
    truth[2, 3] = 2j
    image = truth.copy()
    image[0, 0] = 0.4
    assert psnr(image, truth) == pytest.approx(10 * np.log10(4 / (0.16 / 64)))
    assert nmse(image, truth) == pytest.approx(0.04)


def test_phase_does_not_count_but_scale_does(pair: tuple[np.ndarray, np.ndarray]) -> None:
    image, truth = pair
    assert psnr(image * 1j, truth) == psnr(image, truth)
    assert nmse(2 * truth, truth) == pytest.approx(1.0)
    assert ssim(2 * truth, truth) < 0.95


def test_ssim_is_the_papers(pair: tuple[np.ndarray, np.ndarray]) -> None:
    image, truth = np.abs(pair[0]), np.abs(pair[1])

    def window(a: np.ndarray) -> np.ndarray:
        return gaussian_filter(a, 1.5, truncate=3.5)

    mean_i, mean_t = window(image), window(truth)
    var_i, var_t = window(image**2) - mean_i**2, window(truth**2) - mean_t**2
    shared = window(image * truth) - mean_i * mean_t
    c1, c2 = (0.01 * truth.max()) ** 2, (0.03 * truth.max()) ** 2
    field = (2 * mean_i * mean_t + c1) * (2 * shared + c2) / ((mean_i**2 + mean_t**2 + c1) * (var_i + var_t + c2))
    assert ssim(*pair) == pytest.approx(field[5:-5, 5:-5].mean(), abs=1e-9)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"expected the truth's shape \(8, 8\), got \(8, 9\)"):
        psnr(np.ones((8, 9)), np.ones((8, 8)))
    with pytest.raises(ValueError, match="one slice"):
        ssim(np.ones((2, 8, 8)), np.ones((2, 8, 8)))
    with pytest.raises(ValueError, match="NaN"):
        nmse(np.full((8, 8), np.nan), np.ones((8, 8)))
    with pytest.raises(ValueError, match="not all zero"):
        nmse(np.ones((8, 8)), np.zeros((8, 8)))
