"""Image quality against a known truth: PSNR, SSIM and NMSE of the magnitude, without any rescaling."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from skimage.metrics import peak_signal_noise_ratio, structural_similarity


def _magnitudes(image: ArrayLike, truth: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 magnitudes, checked."""
    found, wanted = np.abs(np.asarray(image)).astype(np.float64), np.abs(np.asarray(truth)).astype(np.float64)
    if found.shape != wanted.shape:
        raise ValueError(f"image: expected the truth's shape {wanted.shape}, got {found.shape}")
    if wanted.ndim != 2:
        raise ValueError(f"image: expected one slice (y, x), got shape {wanted.shape}")
    if not np.isfinite(found).all() or not np.isfinite(wanted).all():
        raise ValueError("image: expected finite values, got NaN or infinity")
    if wanted.max() == 0.0:
        raise ValueError("truth: expected an image that is not all zero")
    return found, wanted


def psnr(image: ArrayLike, truth: ArrayLike) -> float:
    """Peak signal-to-noise ratio in dB of |image| (y, x); the peak is the maximum of |truth|."""
    found, wanted = _magnitudes(image, truth)
    return float(peak_signal_noise_ratio(wanted, found, data_range=wanted.max()))


def ssim(image: ArrayLike, truth: ArrayLike) -> float:
    """Structural similarity of |image| (y, x) as Wang et al., IEEE TIP 13:600 (2004), define it.

    Gaussian window of sigma 1.5, population covariance, data range the maximum of |truth|.
    """
    found, wanted = _magnitudes(image, truth)
    return float(
        structural_similarity(
            wanted, found, data_range=wanted.max(), gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
    )


def nmse(image: ArrayLike, truth: ArrayLike) -> float:
    """Squared error of |image| over the squared norm of |truth|."""
    found, wanted = _magnitudes(image, truth)
    return float(np.sum((found - wanted) ** 2) / np.sum(wanted**2))
