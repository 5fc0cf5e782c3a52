"""Sheared lattices of points for two phase encodings (2-D CAIPIRINHA: Breuer et al., MRM 2006)."""

from __future__ import annotations

import math

import numpy as np
from scanprior.sim.masks import from_dc


def caipi_lattice(shape: tuple[int, int], r: int, offset: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Every `r`-th point (y, z): each Ry-th row, in it each Rz-th point, shifted by half of Rz from row to row.

    Ry Rz = r, with Ry the largest factor up to the square root of r: 4 is 2 x 2, 6 is 2 x 3, a prime 1 x r.
    """
    rows = max(n for n in range(1, math.isqrt(r) + 1) if r % n == 0)
    columns = r // rows
    shift = columns // 2
    y, z = np.arange(shape[0])[:, None] - offset[0], np.arange(shape[1])[None, :] - offset[1]
    return (y % rows == 0) & ((z - shift * (y // rows)) % columns == 0)


def caipi_mask(inner: np.ndarray, missing: int, rng: np.random.Generator) -> np.ndarray:
    """The ACS `inner` (y, z) and exactly `missing` points: the densest lattice they allow, at a random place.

    A lattice has no fractions: the points that it leaves are those nearest to DC that nothing measures yet.
    """
    if not missing:
        return inner.copy()
    shape = inner.shape[0], inner.shape[1]
    free = inner.size - int(inner.sum())
    offset = int(rng.integers(shape[0])), int(rng.integers(shape[1]))
    r = max(1, free // missing)
    # where it just does not fit, the next one does; a lattice of one point in all at the latest
    while int((caipi_lattice(shape, r, offset) & ~inner).sum()) > missing:
        r += 1
    mask = inner | caipi_lattice(shape, r, offset)
    rest = missing + int(inner.sum()) - int(mask.sum())
    y, z = (from_dc(size) for size in shape)
    far = np.where(mask, np.inf, y[:, None] ** 2 + z[None, :] ** 2)
    mask.ravel()[np.argsort(far, axis=None, kind="stable")[:rest]] = True
    return mask
