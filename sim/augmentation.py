"""From a magnitude or complex slice to a complex training image: random contrast, phase, size and pose.

A prior that shall serve any contrast and any coil array must not learn the one that its few subjects were scanned
with. So intensities go through random maps (air stays air), the image gets a smooth random phase, and it is
resampled (in k-space, as a scanner with fewer samples would) and moved. A complex slice keeps its measured phase; the
random one is added to it.
"""

from __future__ import annotations

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import affine_transform, map_coordinates


def fourier_resize(image: np.ndarray, factor: float) -> np.ndarray:
    """Resample (y, x), real or complex, to `factor` <= 1 of its size by cropping its centred spectrum; intensities are
    kept."""
    rows, columns = image.shape
    new = max(8, round(rows * factor)), max(8, round(columns * factor))
    if new[0] >= rows or new[1] >= columns:
        return image
    if np.iscomplexobj(image):  # part by part: a cropped spectrum of even size has its Nyquist line on one side only
        return fourier_resize(image.real, factor) + np.complex64(1j) * fourier_resize(image.imag, factor)
    spectrum = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image)))
    y, x = rows // 2 - new[0] // 2, columns // 2 - new[1] // 2
    cropped = spectrum[y : y + new[0], x : x + new[1]]
    small = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(cropped))).real
    return (small * (new[0] * new[1] / (rows * columns))).astype(np.float32)


def random_pose(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rotate, shear, stretch a little, shift and flip (y, x), by cubic splines."""
    angle = rng.normal(0, 0.25) if rng.random() < 0.8 else rng.uniform(-np.pi, np.pi)
    stretch = np.exp(rng.normal(0, 0.05, 2))
    shear = rng.normal(0, 0.05)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[stretch[0], shear], [0.0, stretch[1]]])
    centre = (np.array(image.shape) - 1) / 2
    offset = centre - matrix @ (centre + rng.normal(0, 0.04, 2) * image.shape)
    moved = affine_transform(image, matrix, offset, order=3, mode="constant")
    return moved[:, ::-1] if rng.random() < 0.5 else moved


def random_contrast(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Send magnitudes through a random map with 0 -> 0, monotone or not, and keep signs or phases.

    The 99.5th percentile of the result (of its magnitude, if complex) is 1.
    """
    kind = rng.random()
    knots = np.array([0.0, 0.06, 0.18, 0.32, 0.46, 0.6, 0.75, 0.95, 1.3, 2.5])
    if kind < 0.4:
        values = knots ** np.exp(rng.normal(0, 0.25))
    elif kind < 0.55:
        values = np.concatenate([[0.0], np.cumsum(rng.gamma(1.0, 1.0, len(knots) - 1) * np.diff(knots))])
    else:
        values = np.concatenate([[0.0, 0.0], rng.uniform(0.08, 1.0, len(knots) - 2)])
        values[1] = 0.06 * values[2:5].mean()
        if rng.random() < 0.5:  # neighbouring tissues keep similar values: a smoother map
            values[2:-1] = (values[1:-2] + 2 * values[2:-1] + values[3:]) / 4
    magnitude = np.abs(image)
    mapped = PchipInterpolator(knots, values)(np.clip(magnitude, 0, 2.5))
    if np.iscomplexobj(image):
        bright = np.percentile(mapped, 99.5)
        mapped = mapped * image / np.maximum(magnitude, np.finfo(np.float32).tiny)
        return (mapped / max(float(bright), 1e-3)).astype(np.complex64)
    mapped = mapped * np.sign(image)
    bright = np.percentile(mapped, 99.5)
    return (mapped / max(float(bright), 1e-3)).astype(np.float32)


def _smooth_field(shape: tuple[int, int], rng: np.random.Generator, grid: int) -> np.ndarray:
    """Random field of unit variance that varies over about 1 / grid of the image."""
    coarse = rng.normal(size=(grid + 3, grid + 3))
    y = np.linspace(1, grid + 1, shape[0])[:, None] + np.zeros(shape)
    x = np.linspace(1, grid + 1, shape[1])[None, :] + np.zeros(shape)
    return map_coordinates(coarse, [y, x], order=3, mode="nearest").astype(np.float32)


def random_phase(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Smooth phase (y, x) in radians: constant, linear and a random field of up to several cycles."""
    phase = np.full(shape, rng.uniform(-np.pi, np.pi), np.float32)
    if rng.random() < 0.2:
        return phase
    slope = rng.normal(0, 1.5, 2)
    phase += slope[0] * np.linspace(-1, 1, shape[0], dtype=np.float32)[:, None]
    phase += slope[1] * np.linspace(-1, 1, shape[1], dtype=np.float32)[None, :]
    return phase + rng.uniform(0, 1.5) * _smooth_field(shape, rng, int(rng.integers(1, 6)))


def smooth_shading(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Random factors (y, x) near 1 that vary slowly, as a coil's sensitivity leaves them."""
    return np.exp(rng.uniform(0, 0.25) * _smooth_field(shape, rng, int(rng.integers(1, 4))))


def random_image(source: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One augmented complex image from a slice, 99.5th percentile of the magnitude near 1.

    Parameters
    ----------
    source
        (y, x), magnitudes roughly 0 to 1: float32, or complex64, whose phase stays beneath the random one.
    rng
        Source of all randomness.

    Returns
    -------
    (y, x) complex64, of a size of its own.
    """
    longest = max(source.shape)
    target = np.exp(rng.uniform(np.log(150), np.log(420)))
    image = fourier_resize(source, min(1.0, target / longest))
    image = random_contrast(random_pose(image, rng), rng)
    shading = smooth_shading(image.shape, rng)
    gain = np.exp(rng.normal(-0.05, 0.2))
    return (gain * shading * image * np.exp(1j * random_phase(image.shape, rng))).astype(np.complex64)


def turned_patch(patch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A complex patch (y, x) with another phase, conjugated, transposed and flipped by chance: as likely an image."""
    patch = patch * np.exp(1j * rng.uniform(0, 2 * np.pi))
    if rng.random() < 0.5:
        patch = patch.conj()
    if rng.random() < 0.5:
        patch = patch.T
    return patch[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
