"""Smooth random fields that belong to the anatomy, not to the pixel grid: one seed gives one field at any size."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import map_coordinates


def pixel_centres(n: int) -> np.ndarray:
    """Positions of `n` pixel centres in units of half the field of view, zero at index n // 2.

    Returns
    -------
    numpy.ndarray
        (n,) float64, from about -1 to about 1.
    """
    if n < 1:
        raise ValueError(f"number of pixels: expected at least 1, got {n}")
    return (np.arange(n) - n // 2) / max(n / 2, 1)


def smooth_field(rng: np.random.Generator, knots: int, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A random field, cubic between `knots` random values along each axis of the cube [-1.5, 1.5].

    Parameters
    ----------
    rng
        Source of the values at the knots; exactly knots**3 normal numbers are drawn, whatever the positions.
    knots
        Number of knots along each axis, at least 4; more knots give finer detail.
    z, y, x
        Positions, broadcastable against each other, in units of half the field of view.

    Returns
    -------
    numpy.ndarray
        float64 of the broadcast shape, roughly zero mean and unit variance.
    """
    if knots < 4:
        raise ValueError(f"knots: expected at least 4, got {knots}")
    values = rng.standard_normal((knots, knots, knots))
    scale = (knots - 1) / 3.0
    coordinates = np.stack([(p + 1.5) * scale for p in np.broadcast_arrays(z, y, x)])
    # cubic B-spline interpolation loses variance between the knots; 1.4 restores it on average
    return 1.4 * map_coordinates(values, coordinates, order=3, mode="nearest")
