"""The masks of Duff et al. (2023): radial spokes on the Cartesian grid, and rows by chance.

How much they measure is a number of spokes, or a probability; the undersampling factor follows.
"""

from __future__ import annotations

import math

import numpy as np
from scanprior.sim.masks import Sampling, acs_lines, acs_square

OWN_ACS = {"radial": 0, "horizontal": 16}
"""Fully sampled centre of each as published: none but what the spokes cover; 16 rows."""

_SUBSTEPS = 4
"""Points that a spoke is drawn with, for each pixel of its length: finer ones hit no other pixel."""


def radial(shape: tuple[int, int], spokes: float, acs: int, rng: np.random.Generator) -> Sampling:
    """Spokes through DC, evenly spread over 180 degrees, to the ellipse that the matrix holds.

    The first spoke runs along x: all scans of so many spokes are alike, `rng` is not asked. Where an ACS is asked for,
    its square is measured besides; else the ACS is the largest square around DC that the spokes happen to cover.

    Raises
    ------
    ValueError
        If `spokes` is not a whole number of at least 1.
    """
    if not math.isfinite(spokes) or spokes != int(spokes) or spokes < 1:
        raise ValueError(f"spokes: expected a whole number from 1, got {spokes:g}")
    rows, columns = shape
    angle = np.arange(int(spokes))[:, None] * np.pi / spokes
    along = np.linspace(-0.5, 0.5, _SUBSTEPS * max(shape) + 1)[None, :]
    y = np.rint(rows // 2 + along * rows * np.sin(angle)).astype(int)
    x = np.rint(columns // 2 + along * columns * np.cos(angle)).astype(int)
    inside = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
    mask = np.zeros(shape, bool)
    mask[y[inside], x[inside]] = True
    inner = acs_square(shape, acs) if acs else _covered_square(mask)
    mask |= inner
    return Sampling(mask, inner, float(mask.size / mask.sum()))


def horizontal(shape: tuple[int, int], probability: float, acs: int, rng: np.random.Generator) -> Sampling:
    """`acs` rows around DC, and each other row with this probability.

    Raises
    ------
    ValueError
        If the probability is not within 0 and 1, or nothing at all is measured.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability of a row: expected 0 to 1, got {probability:g}")
    inner = acs_lines(shape[0], acs)
    mask = inner | (rng.random(shape[0]) < probability)
    if not mask.any():
        raise ValueError(f"probability of a row {probability:g} and no ACS: nothing would be measured")
    return Sampling(mask, inner, float(mask.size / mask.sum()))


def _covered_square(mask: np.ndarray) -> np.ndarray:
    """The largest square around DC that `mask` (y, x) covers."""
    found = np.zeros_like(mask)
    for edge in range(1, min(mask.shape) + 1):
        square = acs_square((mask.shape[0], mask.shape[1]), edge)
        if not mask[square].all():
            break
        found = square
    return found
