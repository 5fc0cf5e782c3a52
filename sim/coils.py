"""Receive coil maps of a simulated head array: fields of current loops around the head."""

from __future__ import annotations

import numpy as np
from scanprior.sim.fields import pixel_centres
from scipy.ndimage import map_coordinates

_GRID = 48
"""Points along each axis at which the field is integrated; the loops lie outside, so it is smooth between them."""

_SEGMENTS = 40
"""Straight pieces that make a loop."""

_RING = 1.45
"""Distance of the loops' centres from the axis of the head, in units of half the field of view."""


def _loops(coils: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Loops in rings of about eight: centres (coil, 3) and two unit vectors of each loop's plane, axes z, y, x."""
    rings = max(1, round(coils / 8))
    centres = []
    for ring in range(rings):
        count = coils // rings + (ring < coils % rings)
        height = 0.0 if rings == 1 else -0.6 + 1.2 * ring / (rings - 1)
        for i in range(count):
            angle = 2 * np.pi * (i + 0.5 * (ring % 2)) / count + rng.normal(0, 0.05)
            radius = _RING + rng.normal(0, 0.03)
            centres.append((height + rng.normal(0, 0.03), radius * np.sin(angle), radius * np.cos(angle)))
    centre = np.array(centres)
    towards = -centre * np.array([0.3, 1.0, 1.0])  # each loop faces the axis of the head, tilted a little to its middle
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    first = np.cross(towards, np.array([1.0, 0.0, 0.0]))
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    return centre, first, np.cross(towards, first)


def _field(centre: np.ndarray, first: np.ndarray, second: np.ndarray, radius: float, points: np.ndarray) -> np.ndarray:
    """Transverse receive field B_x - i B_y of a current loop at `points` (..., 3), by the law of Biot and Savart."""
    angle = 2 * np.pi * (np.arange(_SEGMENTS) + 0.5) / _SEGMENTS
    wire = centre + radius * (np.cos(angle)[:, None] * first + np.sin(angle)[:, None] * second)
    current = 2 * np.pi / _SEGMENTS * radius * (-np.sin(angle)[:, None] * first + np.cos(angle)[:, None] * second)
    distance = points[..., None, :] - wire
    cubed = np.sum(distance**2, axis=-1) ** 1.5
    # axes are z, y, x: of the cross product current x distance only the y and x components are received
    along_y = np.sum((current[:, 2] * distance[..., 0] - current[:, 0] * distance[..., 2]) / cubed, axis=-1)
    along_x = np.sum((current[:, 0] * distance[..., 1] - current[:, 1] * distance[..., 0]) / cubed, axis=-1)
    return along_x - 1j * along_y


def coil_maps(size: int | tuple[int, int], coils: int, z: np.ndarray | float = 0.0, *, seed: int = 0) -> np.ndarray:
    """Maps of an array of loops around the head.

    Parameters
    ----------
    size
        Matrix (y, x), or one number for a square.
    coils
        Number of loops; one coil has a map of magnitude 1.
    z
        Heights of the slices, in units of half the field of view.
    seed
        Source of the loops' small misplacements and of their constant phases.

    Returns
    -------
    numpy.ndarray
        (slice, coil, y, x) complex64; the root of the sum of squares over coils is 1 everywhere.

    Raises
    ------
    ValueError
        For fewer than one coil.
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    if coils < 1:
        raise ValueError(f"coils: expected at least 1, got {coils}")
    rng = np.random.default_rng(seed)
    centre, first, second = _loops(coils, rng)
    phases = np.exp(2j * np.pi * rng.random(coils))
    heights = np.atleast_1d(np.asarray(z, dtype=np.float64))
    # neighbours overlap a little, as in real arrays: the radius follows from how many share the ring
    radius = float(np.clip(1.2 * np.pi * _RING / min(coils, 8), 0.45, 0.75))

    grid = np.linspace(-1.02, 1.02, _GRID)
    to_grid = (_GRID - 1) / 2.04
    where = np.stack(
        np.broadcast_arrays(
            (pixel_centres(rows)[:, None] + 1.02) * to_grid, (pixel_centres(columns)[None, :] + 1.02) * to_grid
        )
    )
    maps = np.empty((len(heights), coils, rows, columns), np.complex64)
    for s, height in enumerate(heights):
        points = np.stack(np.broadcast_arrays(height, grid[:, None], grid[None, :]), axis=-1)
        for c in range(coils):
            field = phases[c] * _field(centre[c], first[c], second[c], radius, points)
            maps[s, c] = map_coordinates(field.real, where, order=3) + 1j * map_coordinates(field.imag, where, order=3)
    return maps / np.sqrt(np.sum(np.abs(maps) ** 2, axis=1, keepdims=True))
