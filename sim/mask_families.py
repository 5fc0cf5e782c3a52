"""Mask families for offline evaluation: lines of ky (1-D) or points of the whole (ky, kx) plane (2-D).

R counts the ACS: a mask has exactly round(points / R) points, the fully sampled centre included; but for those of
`mask_shapes`, whose amount is a number of spokes, or a probability. One seed gives one mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scanprior.sim.caipi import caipi_mask
from scanprior.sim.mask_shapes import OWN_ACS, horizontal, radial
from scanprior.sim.masks import (
    Sampling,
    acs_lines,
    acs_square,
    choose_points,
    distance_from_dc,
    first_line,
    from_dc,
)

GAUSSIAN_WIDTH = 0.12
"""Standard deviation of the Gaussian densities, as a fraction of the matrix."""

POLYNOMIAL_POWER = 3.0
"""Power of the polynomial densities (1 - distance from DC)^power (Lustig et al., MRM 2007)."""

PARTIAL_FOURIER = 0.75
"""Fraction of the lines, those from DC upwards and the nearer ones below, to which partial Fourier keeps."""

POISSON_SLOPE = 2.0
"""How much the radius of a Poisson disc grows from the centre of k-space to the middle of its edges."""

_SEARCH_STEPS = 8
"""Bisections of the Poisson radius, in its logarithm: from a factor of 16 to about 1 %."""


@dataclass(frozen=True)
class MaskFamily:
    """One way to place samples.

    Attributes
    ----------
    dimensions
        1: whole lines along x; 2: single points, as in a plane of two phase encodings.
    make
        `make(shape, r, acs, rng) -> Sampling` of shape (y,) or (y, x).
    description
        For people.
    amount
        What `r` is: `R`, or what else says how much is measured (`spokes`, `probability`).
    """

    dimensions: int
    make: Callable[[tuple[int, int], float, int, np.random.Generator], Sampling]
    description: str
    amount: str = "R"


def uniform_1d(shape: tuple[int, int], r: float, acs: int, rng: np.random.Generator) -> Sampling:
    """Lines spread evenly over what the ACS leaves, so that R is true with the ACS counted.

    The spacing is a fraction as a rule: gaps between lines differ by one line at most. The place of the first one is
    random.
    """
    return _spread(np.ones(shape[0], bool), acs_lines(shape[0], acs), r, rng)


def partial_fourier_1d(shape: tuple[int, int], r: float, acs: int, rng: np.random.Generator) -> Sampling:
    """As `uniform_1d`, but none of the first lines: `PARTIAL_FOURIER` of the matrix remains."""
    kept = np.arange(shape[0]) >= first_line(shape[0], PARTIAL_FOURIER)
    return _spread(kept, acs_lines(shape[0], acs), r, rng)


def random_1d(shape: tuple[int, int], r: float, acs: int, rng: np.random.Generator) -> Sampling:
    """Random lines, each as likely as any other."""
    return _random(shape[:1], r, acs, np.ones(shape[0]), rng)


def polynomial_1d(shape: tuple[int, int], r: float, acs: int, rng: np.random.Generator) -> Sampling:
    """Random lines whose density is a power of the distance from the edge of k-space (`POLYNOMIAL_POWER`)."""
    # a little wider than the matrix, so that no line is impossible
    distance = np.abs(np.arange(shape[0]) - shape[0] // 2) / (shape[0] / 2 + 1)
    return _random(shape[:1], r, acs, (1 - distance) ** POLYNOMIAL_POWER, rng)


def random_2d(shape: tuple[int, int], r: float, acs: int, rng: np.random.Generator) -> Sampling:
    """Random points, each as likely as any other, and a square of ACS points."""
    return _random(shape, r, acs, np.ones(shape), rng)


def polynomial_2d(shape: tuple[int, int], r: float, acs: int, rng: np.random.Generator) -> Sampling:
    """Random points whose density is a power of the distance from the corners, and a square of ACS points."""
    y, x = ((np.arange(size) - size // 2) / (size / 2 + 1) for size in shape)
    distance = np.hypot(y[:, None], x[None, :]) / math.sqrt(2)
    return _random(shape, r, acs, (1 - distance) ** POLYNOMIAL_POWER, rng)


def gaussian_1d(shape: tuple[int, int], r: float, acs: int, rng: np.random.Generator) -> Sampling:
    """Random lines whose density is a Gaussian around DC (Gaussian-1D of Chung and Ye, Medical Image Analysis 2022)."""
    return _random(shape[:1], r, acs, _gaussian(shape[0]), rng)


def gaussian_2d(shape: tuple[int, int], r: float, acs: int, rng: np.random.Generator) -> Sampling:
    """Random points whose density is a Gaussian around DC, and a square of ACS points."""
    return _random(shape, r, acs, _gaussian(shape[0])[:, None] * _gaussian(shape[1])[None, :], rng)


def poisson_2d(shape: tuple[int, int], r: float, acs: int, rng: np.random.Generator) -> Sampling:
    """Poisson discs whose radius grows with the distance from DC, and a square of ACS points.

    Darts are thrown at all points in random order; one sticks where no earlier one lies within that one's radius,
    `base * poisson_growth`. The base is the largest (of a bisection) that leaves room for as many as R asks for.
    Outside the ACS any two points are at least the smaller of their two radii apart.
    """
    return _poisson(shape, np.ones(shape, bool), r, acs, rng)


def poisson_ellipse_2d(shape: tuple[int, int], r: float, acs: int, rng: np.random.Generator) -> Sampling:
    """As `poisson_2d`, but without the corners: within the ellipse that the matrix holds alone."""
    y, x = (from_dc(size) * 2 for size in shape)
    return _poisson(shape, y[:, None] ** 2 + x[None, :] ** 2 <= 1, r, acs, rng)


def partial_fourier_2d(shape: tuple[int, int], r: float, acs: int, rng: np.random.Generator) -> Sampling:
    """As `poisson_2d`, but none of the first rows: `PARTIAL_FOURIER` of them remains."""
    kept = np.arange(shape[0]) >= first_line(shape[0], PARTIAL_FOURIER)
    return _poisson(shape, np.broadcast_to(kept[:, None], shape), r, acs, rng)


def caipi_2d(shape: tuple[int, int], r: float, acs: int, rng: np.random.Generator) -> Sampling:
    """A sheared lattice (2-D CAIPIRINHA: Breuer et al., MRM 2006), and a square of ACS points; see `caipi_mask`."""
    inner = acs_square(shape, acs)
    missing = _missing(inner, r)
    return Sampling(caipi_mask(inner, missing, rng), inner, r)


def _poisson(shape: tuple[int, int], allowed: np.ndarray, r: float, acs: int, rng: np.random.Generator) -> Sampling:
    inner = acs_square(shape, acs)
    missing = _missing(inner, r, allowed)
    order = rng.permutation(np.flatnonzero(allowed & ~inner))
    if not missing:
        return Sampling(inner.copy(), inner, r)
    growth = poisson_growth(shape)
    # a jammed set of discs holds about 0.7 points per squared radius, so this brackets the base from both sides
    guess = math.sqrt(0.7 * order.size / missing * np.mean(growth**-2.0))
    # below the first no two points conflict, so there is always room; above the second a disc holds the whole matrix
    low, high = min(guess / 4, 1 / float(growth.max())), min(guess * 4, math.hypot(*shape))
    best = _throw_darts(shape, order, low * growth, missing)
    for _ in range(_SEARCH_STEPS):
        base = math.sqrt(low * high)
        darts = _throw_darts(shape, order, base * growth, missing)
        if len(darts) == missing:
            best, low = darts, base
        else:
            high = base
    mask = inner.copy()
    mask.ravel()[best] = True
    return Sampling(mask, inner, r)


def poisson_growth(shape: tuple[int, int]) -> np.ndarray:
    """(y, x): radius of a Poisson disc over that at DC."""
    return 1 + POISSON_SLOPE * 2 * distance_from_dc(shape)


FAMILIES: dict[str, MaskFamily] = {
    "uniform-1d": MaskFamily(1, uniform_1d, "evenly spread lines"),
    "random-1d": MaskFamily(1, random_1d, "random lines, all alike"),
    "gaussian-1d": MaskFamily(1, gaussian_1d, "random lines, Gaussian density"),
    "polynomial-1d": MaskFamily(1, polynomial_1d, "random lines, polynomial density"),
    "partial-fourier-1d": MaskFamily(1, partial_fourier_1d, "even lines, 3/4 of k-space"),
    "random-2d": MaskFamily(2, random_2d, "random points, all alike"),
    "gaussian-2d": MaskFamily(2, gaussian_2d, "random points, Gaussian density"),
    "polynomial-2d": MaskFamily(2, polynomial_2d, "random points, polynomial density"),
    "poisson-2d": MaskFamily(2, poisson_2d, "Poisson discs, denser in the centre"),
    "poisson-ellipse-2d": MaskFamily(2, poisson_ellipse_2d, "Poisson discs without corners"),
    "partial-fourier-2d": MaskFamily(2, partial_fourier_2d, "Poisson discs, 3/4 of k-space"),
    "caipi-2d": MaskFamily(2, caipi_2d, "a sheared lattice"),
    "radial": MaskFamily(2, radial, "spokes on the Cartesian grid", "spokes"),
    "horizontal": MaskFamily(1, horizontal, "16 rows in the centre, others by chance", "probability"),
}


def make_mask(family: str, shape: tuple[int, int], r: float, acs: int | None, seed: int | list[int]) -> Sampling:
    """A mask of a family by name.

    Parameters
    ----------
    shape
        Matrix (y, x).
    r
        Undersampling factor; number of spokes of `radial`, probability of a row of `horizontal`.
    acs
        Lines, or edge of the square, of the fully sampled centre; None takes `default_acs`.

    Returns
    -------
    Sampling of shape (y,) or (y, x); `imaging` includes the ACS.

    Raises
    ------
    ValueError
        If there is no such family, or R cannot be reached with this ACS.
    """
    if family not in FAMILIES:
        raise ValueError(f"mask {family!r} is not known; there are: {', '.join(FAMILIES)}")
    chosen = FAMILIES[family]
    acs = default_acs(family, shape, r) if acs is None else acs
    try:
        return chosen.make(shape, r, acs, np.random.default_rng(seed))
    except ValueError as error:
        raise ValueError(f"mask {family!r} on a {shape[0]} x {shape[1]} matrix: {error}") from None


def default_acs(family: str, shape: tuple[int, int], r: float) -> int:
    """ACS that costs about a third of the samples (fastMRI: 8 % of the lines at R = 4, 4 % at R = 8), from 12 to 24.

    Lines for a family of lines, the edge of a square for one of points. With 8 lines maps lost a tenth of a head and
    4 dB on T1 slices, until kernels were made to fit the lines (`espirit_maps`); 12 are enough for the usual kernel.
    But never more than three quarters of the lines, and at least 8, where the matrix is so small or R so high. Families
    that are not told R have the centre that their paper gives them.

    Raises
    ------
    ValueError
        If R is below 1 or not finite.
    """
    if FAMILIES[family].amount != "R":
        return OWN_ACS[family]
    if not 1 <= r < math.inf:
        raise ValueError(f"R: expected a finite number from 1, got {r:g}")
    if FAMILIES[family].dimensions == 1:
        wanted, most = 0.32 * shape[0] / r, max(8, int(0.75 * shape[0] / r))
    else:
        wanted, most = math.sqrt(0.32 * shape[0] * shape[1] / r), max(8, int(math.sqrt(0.75 * shape[0] * shape[1] / r)))
    return min(max(12, round(wanted)), 24, most, *shape)


def acs_size(sampling: Sampling) -> int:
    """ACS lines, or the edge of the square of ACS points."""
    acs = sampling.acs
    return int(acs.sum() if acs.ndim == 1 else acs.any(1).sum())


def _missing(inner: np.ndarray, r: float, allowed: np.ndarray | None = None) -> int:
    """How many points R asks for beyond the ACS; `allowed`: where they may lie."""
    fixed = int(inner.sum())
    most = inner.size if allowed is None else int((allowed | inner).sum())
    least = inner.size / most
    missing = max(0, round(inner.size / r) - fixed) if r > 0 else 0
    if not (1 <= r <= inner.size / max(fixed, 1) and fixed + missing <= most):
        raise ValueError(
            f"R: with {fixed} ACS {'lines' if inner.ndim == 1 else 'points'} of {inner.size} expected {least:.4g} to "
            f"{inner.size / max(fixed, 1):.2f}, got {r:g}"
        )
    return missing


def _spread(allowed: np.ndarray, inner: np.ndarray, r: float, rng: np.random.Generator) -> Sampling:
    """Lines spread evenly over those allowed that the ACS leaves."""
    missing = _missing(inner, r, allowed)
    places = np.flatnonzero(allowed & ~inner)
    mask = inner.copy()
    if missing:
        spacing = len(places) / missing
        mask[places[np.floor((np.arange(missing) + rng.random()) * spacing).astype(int)]] = True
    return Sampling(mask, inner, r)


def _random(shape: tuple[int, ...], r: float, acs: int, density: np.ndarray, rng: np.random.Generator) -> Sampling:
    """Random lines (shape (y,)) or points (y, x) of a density, and the ACS."""
    inner = acs_lines(shape[0], acs) if len(shape) == 1 else acs_square((shape[0], shape[1]), acs)
    _missing(inner, r)
    return Sampling(choose_points(inner, np.ones(shape, bool), density, r, rng), inner, r)


def _gaussian(size: int) -> np.ndarray:
    return np.exp(-0.5 * (from_dc(size) / GAUSSIAN_WIDTH) ** 2)


def _throw_darts(shape: tuple[int, int], order: np.ndarray, radius: np.ndarray, limit: int) -> list[int]:
    """Flat indices of the darts that stick, at most `limit`, of those thrown in `order`; `radius` (y, x) in pixels."""
    # Plain Python on a padded grid: a disc is a handful of slices of bytes, and each point is covered a few times only.
    pad = int(radius.max()) + 1
    width = shape[1] + 2 * pad
    free = bytearray(b"\1") * (width * (shape[0] + 2 * pad))
    rows, columns = np.divmod(order, shape[1])
    # which points a disc holds changes only where the squared radius passes a whole number
    squares = np.ceil(radius.ravel()[order] ** 2).astype(int)
    discs: dict[int, list[tuple[int, int, bytes]]] = {}
    found: list[int] = []
    for place, at, square in zip(
        order.tolist(), ((rows + pad) * width + columns + pad).tolist(), squares.tolist(), strict=True
    ):
        if not free[at]:
            continue
        if len(found) == limit:
            break
        found.append(place)
        if square not in discs:
            discs[square] = _disc(square, width)
        for offset, length, zeros in discs[square]:
            free[at + offset : at + offset + length] = zeros
    return found


def _disc(square: int, width: int) -> list[tuple[int, int, bytes]]:
    """Runs (offset of the first point, length, zeros) of the points nearer than sqrt(square)."""
    runs = []
    reach = math.isqrt(max(square - 1, 0))
    for down in range(-reach, reach + 1):
        half = math.isqrt(square - 1 - down * down)
        runs.append((down * width - half, 2 * half + 1, bytes(2 * half + 1)))
    return runs
