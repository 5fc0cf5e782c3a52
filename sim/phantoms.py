"""A complex brain-like phantom: tissues with folds and texture, a smooth phase, contrasts from relaxation times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scanprior.sim.fields import pixel_centres, smooth_field

TISSUES: dict[str, tuple[float, float, float]] = {
    # proton density, T1 and T2 in ms: round values of the order seen at 3 T; fat is halved, as partial saturation does
    "fat": (0.45, 380.0, 70.0),
    "bone": (0.05, 300.0, 5.0),
    "muscle": (0.75, 1400.0, 45.0),
    "csf": (1.00, 4200.0, 1900.0),
    "grey": (0.83, 1450.0, 100.0),
    "white": (0.70, 900.0, 72.0),
    "nuclei": (0.78, 1200.0, 78.0),
}

CONTRASTS: dict[str, tuple[float, float, float]] = {
    # repetition, echo and inversion time in ms (0: no inversion), of a spin echo
    "t1": (2300.0, 3.0, 950.0),
    "t2": (4500.0, 95.0, 0.0),
    "pd": (4500.0, 15.0, 0.0),
    "flair": (9000.0, 95.0, 2500.0),
}


@dataclass(frozen=True)
class Phantom:
    """What `brain` returns.

    Attributes
    ----------
    image
        (slice, y, x) complex64, largest magnitude 1.
    head
        (slice, y, x) bool, true inside the head.
    """

    image: np.ndarray
    head: np.ndarray


def signal(tissue: str, contrast: str) -> float:
    """Magnitude of a tissue's spin-echo signal, with an inversion where the contrast has one; 1 at most."""
    density, t1, t2 = TISSUES[tissue]
    tr, te, ti = CONTRASTS[contrast]
    longitudinal = 1.0 - np.exp(-tr / t1)
    if ti:
        longitudinal = abs(1.0 - 2.0 * np.exp(-ti / t1) + np.exp(-tr / t1))
    return float(density * longitudinal * np.exp(-te / t2))


def slice_positions(slices: int, spacing: float = 0.06) -> np.ndarray:
    """Heights of the slices in units of half the field of view, (slice,), centred a little above the head's middle."""
    return 0.08 + (np.arange(slices) - slices // 2) * min(spacing, 1.0 / slices)


def _ellipsoid(
    z: np.ndarray,
    y: np.ndarray,
    x: np.ndarray,
    centre: tuple[float, float, float],
    half: tuple[float, float, float],
    angle: float = 0.0,
) -> np.ndarray:
    """Signed depth under the surface of an ellipsoid (positive inside), near the surface in units of half the FOV."""
    c, s = np.cos(angle), np.sin(angle)
    v, u = y - centre[1], x - centre[2]
    u, v = c * u + s * v, c * v - s * u
    radius = np.sqrt(((z - centre[0]) / half[0]) ** 2 + (v / half[1]) ** 2 + (u / half[2]) ** 2)
    return (1.0 - radius) * min(half[1], half[2])


def brain(
    size: int | tuple[int, int] = 256,
    slices: int = 1,
    *,
    contrast: str = "t2",
    seed: int = 0,
    texture: float = 0.05,
    phase: float = 1.0,
) -> Phantom:
    """Draw axial slices of a random head.

    The anatomy depends on `seed` alone, so one seed at two sizes is one head on two grids; edges are one pixel soft.

    Parameters
    ----------
    size
        Matrix (y, x), or one number for a square.
    slices
        Number of slices, evenly spaced through the upper half of the head.
    contrast
        `t1`, `t2`, `pd` or `flair`.
    seed
        Any non-negative number; another seed is another head.
    texture
        Standard deviation of the tissue's fine texture, as a fraction of its signal.
    phase
        Standard deviation of the smooth phase in radians (about).

    Raises
    ------
    ValueError
        For an unknown contrast, a matrix below 16 or no slice.
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    if min(rows, columns) < 16:
        raise ValueError(f"phantom size: expected at least 16 x 16, got {rows} x {columns}")
    if slices < 1:
        raise ValueError(f"phantom slices: expected at least 1, got {slices}")
    if contrast not in CONTRASTS:
        raise ValueError(f"phantom contrast: expected one of {', '.join(CONTRASTS)}, got {contrast!r}")
    rng = np.random.default_rng(seed)
    z = slice_positions(slices)[:, None, None]
    y = pixel_centres(rows)[None, :, None]
    x = pixel_centres(columns)[None, None, :]
    pixel = 2.0 / min(rows, columns)

    def soft(depth: np.ndarray) -> np.ndarray:
        """0 outside to 1 inside, over about one pixel."""
        return 1.0 / (1.0 + np.exp(np.clip(-depth / (0.3 * pixel), -40.0, 40.0)))

    # no head is an ellipsoid: bend the coordinates a little
    yy = y + 0.018 * smooth_field(rng, 6, z, y, x)
    xx = x + 0.018 * smooth_field(rng, 6, z, y, x)
    centre = (0.0, float(rng.normal(0, 0.02)), float(rng.normal(0, 0.02)))
    half = (0.80, float(rng.uniform(0.84, 0.90)), float(rng.uniform(0.68, 0.76)))

    surface = _ellipsoid(z, yy, xx, centre, half)
    scalp = 0.045 + 0.010 * smooth_field(rng, 8, z, y, x)
    skull = scalp + 0.050 + 0.008 * smooth_field(rng, 8, z, y, x)
    depth = surface - skull - 0.02
    # the folds are the zero lines of a fine field, followed only near the surface, and the gap between the hemispheres
    folds = np.abs(smooth_field(rng, 22, z, y, x)) * 0.070 + np.maximum(depth - 0.20, 0.0) * 1.5
    folds = np.minimum(folds, np.abs(smooth_field(rng, 30, z, y, x)) * 0.060 + np.maximum(depth - 0.13, 0.0) * 1.5)
    gap = np.abs(xx - centre[2]) + np.maximum(0.42 - np.abs(yy - centre[1]), 0.0)
    pial = np.minimum(np.minimum(depth, folds), gap)

    weights: dict[str, np.ndarray] = {}
    rest = np.ones(pial.shape)

    def paint(tissue: str, inside: np.ndarray) -> None:
        """Give a tissue its share of what is not yet painted."""
        nonlocal rest
        weights[tissue] = weights.get(tissue, 0.0) + rest * inside
        rest = rest * (1.0 - inside)

    head = soft(surface)
    paint("air", 1.0 - head)
    paint("fat", soft(scalp - surface))
    paint("bone", soft(skull - surface))
    for side in (-1.0, 1.0):
        horn = _ellipsoid(
            z, yy, xx, (0.12, centre[1] - 0.13, centre[2] + side * 0.10), (0.30, 0.22, 0.060), side * 0.22
        )
        tail = _ellipsoid(
            z, yy, xx, (0.06, centre[1] + 0.20, centre[2] + side * 0.17), (0.24, 0.17, 0.055), -side * 0.35
        )
        paint("csf", soft(np.maximum(horn, tail)))
        thalamus = _ellipsoid(
            z, yy, xx, (0.0, centre[1] + 0.06, centre[2] + side * 0.11), (0.22, 0.13, 0.080), side * 0.30
        )
        putamen = _ellipsoid(
            z, yy, xx, (0.0, centre[1] - 0.03, centre[2] + side * 0.27), (0.22, 0.17, 0.055), side * 0.15
        )
        paint("nuclei", soft(np.maximum(thalamus, putamen)))
    ribbon = 0.045 + 0.008 * smooth_field(rng, 8, z, y, x)
    paint("csf", soft(0.012 - pial))
    paint("grey", soft(ribbon - pial))
    paint("white", np.ones(pial.shape))

    magnitude = sum(weights[t] * signal(t, contrast) for t in TISSUES if t in weights)
    grain = 0.6 * smooth_field(rng, 40, z, y, x) + 0.8 * smooth_field(rng, 90, z, y, x)
    magnitude = magnitude * np.maximum(1.0 + texture * grain + 0.08 * smooth_field(rng, 5, z, y, x), 0.0)
    angle = phase * (0.8 * smooth_field(rng, 5, z, y, x) + 0.3 * smooth_field(rng, 9, z, y, x))
    image = (magnitude / magnitude.max() * np.exp(1j * angle)).astype(np.complex64)
    return Phantom(image=image, head=head > 0.5)
