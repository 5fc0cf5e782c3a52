"""Which lines a simulated scan measures: regular and random undersampling, calibration lines, partial Fourier."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sampling:
    """A sampling pattern over one phase-encode axis (y,) or over two (z, y). DC lies at index N // 2.

    Attributes
    ----------
    imaging
        bool, points that make the image.
    acs
        bool, points measured for calibration; may lie outside `imaging`.
    asked_r
        The undersampling factor that was asked for.
    """

    imaging: np.ndarray
    acs: np.ndarray
    asked_r: float

    @property
    def mask(self) -> np.ndarray:
        """Every measured point, bool."""
        return self.imaging | self.acs

    @property
    def effective_r(self) -> float:
        """Points of the matrix over points measured, calibration included."""
        return float(self.mask.size / self.mask.sum())


def from_dc(size: int) -> np.ndarray:
    """(size,) distance from DC (index N // 2) along an axis, as a fraction of the matrix, negative below it."""
    return (np.arange(size) - size // 2) / size


def distance_from_dc(shape: tuple[int, ...]) -> np.ndarray:
    """(y, z) distance of each point of a plane from DC, as a fraction of the matrix along each axis."""
    y, z = (from_dc(size) for size in shape)
    return np.hypot(y[:, None], z[None, :])


def acs_lines(lines: int, acs: int) -> np.ndarray:
    """(lines,) bool, the `acs` lines around DC (one more below it than above where `acs` is even)."""
    if not 0 <= acs <= lines:
        raise ValueError(f"ACS lines: expected 0 to {lines} (the matrix), got {acs}")
    mask = np.zeros(lines, bool)
    start = lines // 2 - acs // 2
    mask[start : start + acs] = True
    return mask


def acs_square(shape: tuple[int, int], acs: int) -> np.ndarray:
    """(y, x) bool, the `acs` by `acs` points around DC."""
    return acs_lines(shape[0], acs)[:, None] & acs_lines(shape[1], acs)[None, :]


def first_line(lines: int, partial_fourier: float) -> int:
    """First line that a partial Fourier scan measures; the lines before it are left out.

    `partial_fourier` is the fraction of the matrix that remains, above 0.5 and at most 1.
    """
    if not 0.5 < partial_fourier <= 1.0:
        raise ValueError(f"partial Fourier fraction: expected above 0.5 and at most 1, got {partial_fourier}")
    return lines - round(lines * partial_fourier)


def full(lines: int, partial_fourier: float = 1.0) -> Sampling:
    """Every line (from the first that partial Fourier leaves); no line counts as calibration."""
    imaging = np.arange(lines) >= first_line(lines, partial_fourier)
    return Sampling(imaging, np.zeros(lines, bool), 1.0)


def uniform(lines: int, r: float, acs: int, partial_fourier: float = 1.0) -> Sampling:
    """Every r-th line, DC among them, and `acs` calibration lines around DC, those between the imaging lines too."""
    if r != int(r) or not 1 <= r <= lines:
        raise ValueError(f"R of a uniform mask: expected a whole number from 1 to {lines}, got {r}")
    index = np.arange(lines)
    kept = index >= first_line(lines, partial_fourier)
    imaging = kept & (index % int(r) == (lines // 2) % int(r))
    return Sampling(imaging, acs_lines(lines, acs) & kept, r)


def choose_points(
    inner: np.ndarray, allowed: np.ndarray, density: np.ndarray, r: float, rng: np.random.Generator
) -> np.ndarray:
    """All of `inner` and as many random points of `allowed` as R leaves, likelier where `density` is high."""
    wanted = round(inner.size / r)
    missing = wanted - int(inner.sum())
    free = allowed & ~inner
    if r < 1 or missing < 0 or missing > free.sum():
        low, high = inner.size / max(int((inner | free).sum()), 1), inner.size / max(int(inner.sum()), 1)
        raise ValueError(f"R of a random mask: with these ACS lines expected {low:.2f} to {high:.2f}, got {r}")
    mask = inner.copy()
    places = np.flatnonzero(free)
    weights = density.ravel()[places]
    if missing:
        mask.ravel()[rng.choice(places, missing, replace=False, p=weights / weights.sum())] = True
    return mask


def random(
    lines: int, r: float, acs: int, rng: np.random.Generator, partial_fourier: float = 1.0, power: float = 2.0
) -> Sampling:
    """Random lines, denser towards DC; exactly round(lines / r) of them, the ACS lines included.

    The chance of a line falls as (1 - |distance from DC|) ** power, with a floor so that no line is excluded.
    """
    inner = acs_lines(lines, acs)
    allowed = np.arange(lines) >= first_line(lines, partial_fourier)
    density = np.maximum(1.0 - 2 * np.abs(from_dc(lines)), 0.0) ** power + 0.05
    mask = choose_points(inner & allowed, allowed, density, r, rng)
    return Sampling(mask, inner & allowed, r)


def random_2d(
    shape: tuple[int, int],
    r: float,
    acs: int,
    rng: np.random.Generator,
    partial_fourier: float = 1.0,
    power: float = 2.0,
) -> Sampling:
    """Random points of a (z, y) plane, denser towards DC, with a fully sampled centre; the count is exact.

    The centre is `acs` wide along y and as wide along z where the matrix has room; partial Fourier acts on y.
    """
    nz, ny = shape
    inner = acs_lines(nz, min(acs, nz))[:, None] & acs_lines(ny, acs)[None, :]
    allowed = np.broadcast_to(np.arange(ny) >= first_line(ny, partial_fourier), shape)
    density = np.maximum(1.0 - 2 * distance_from_dc(shape), 0.0) ** power + 0.02
    mask = choose_points(inner & allowed, allowed, density, r, rng)
    return Sampling(mask, inner & allowed, r)
