"""Noise of a simulated receiver: correlated between coils, and as strong as an SNR asks for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def noise_covariance(coils: int, correlation: float, rng: np.random.Generator) -> np.ndarray:
    """A covariance (coil, coil) complex128, gains unequal; a coil takes up `correlation` of its neighbour's noise."""
    if not 0.0 <= correlation < 1.0:
        raise ValueError(f"noise correlation: expected 0 up to below 1, got {correlation}")
    mixing = np.eye(coils, dtype=np.complex128)
    for coil in range(coils if coils > 1 else 0):
        mixing[coil, (coil + 1) % coils] += correlation * np.exp(2j * np.pi * rng.random())
    mixing = np.exp(0.3 * rng.standard_normal(coils))[:, None] * mixing
    return mixing @ mixing.conj().T


@dataclass(frozen=True, eq=False)
class ReceiverNoise:
    """Noise with a covariance.

    Attributes
    ----------
    covariance
        (coil, coil) complex128, E[n n^H] of a k-space sample.
    """

    covariance: np.ndarray

    @classmethod
    def of(
        cls, image: np.ndarray, maps: np.ndarray, head: np.ndarray, snr_db: float, correlation: float,
        rng: np.random.Generator,
    ) -> ReceiverNoise:  # fmt: skip
        """Such that the optimally combined, fully sampled image has this SNR.

        Parameters
        ----------
        image, head
            (slice, y, x); the SNR is that of the mean magnitude where `head` is true.
        maps
            (slice, coil, y, x).
        """
        covariance = noise_covariance(maps.shape[1], correlation, rng)
        weights = np.linalg.inv(covariance)
        combined = 1.0 / np.einsum("scyx,cd,sdyx->syx", maps.conj(), weights, maps, optimize=True).real
        wanted = np.abs(image)[head].mean() / 10 ** (snr_db / 20)
        return cls(covariance * wanted**2 / combined[head].mean())

    def draw(self, count: int, samples: int, rng: np.random.Generator, variance: float = 1.0) -> np.ndarray:
        """(count, coil, sample) complex64 with `variance` times the covariance."""
        root = np.linalg.cholesky(self.covariance).astype(np.complex64)
        white = rng.standard_normal((2, count, len(root), samples), np.float32)
        return np.float32(np.sqrt(variance / 2)) * (root @ (white[0] + 1j * white[1]))
