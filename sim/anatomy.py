"""What a simulated scan looks at: the phantom or an image stack, complex, changing between repetitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scanprior.sim.fields import pixel_centres, smooth_field
from scanprior.sim.phantoms import brain, slice_positions
from scipy.fft import fftn, fftshift, ifftn, ifftshift


def to_kspace(image: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Centred orthonormal Fourier transform; DC goes to index N // 2."""
    return fftshift(fftn(ifftshift(image, axes), axes=axes, norm="ortho"), axes)


def to_image(kspace: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Inverse of `to_kspace`."""
    return fftshift(ifftn(ifftshift(kspace, axes), axes=axes, norm="ortho"), axes)


def resize(array: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Crop or zero-pad the last two axes about their centres (index N // 2)."""
    for axis, size in zip((-2, -1), shape, strict=True):
        have = array.shape[axis]
        start = abs(have // 2 - size // 2)
        if size < have:
            array = np.take(array, np.arange(start, start + size), axis)
        elif size > have:
            pad = [(0, 0)] * array.ndim
            pad[axis % array.ndim] = (start, size - have - start)
            array = np.pad(array, pad)
    return array


def load_images(path: str | Path, slices: int, first_slice: int = 0) -> np.ndarray:
    """Slices of an image stack in an npz file: its array `slices`, `image` or `images`, or the only array it holds.

    Returns
    -------
    numpy.ndarray
        (slice, y, x), real or complex, largest magnitude 1.

    Raises
    ------
    ValueError
        If no such array is there, or the slices asked for are not in it.
    """
    with np.load(path, allow_pickle=False) as file:
        names = [n for n in ("slices", "image", "images") if n in file.files] or (
            file.files if len(file.files) == 1 else []
        )
        if not names:
            raise ValueError(f"{path}: expected an array named slices, image or images, found {', '.join(file.files)}")
        stack = np.asarray(file[names[0]])
    if stack.ndim == 2:
        stack = stack[None]
    if stack.ndim != 3 or stack.dtype.kind not in "uifc":
        raise ValueError(f"{path}: expected numbers of shape (slice, y, x), got {stack.dtype} {stack.shape}")
    if first_slice < 0 or first_slice + slices > len(stack):
        raise ValueError(
            f"{path}: slices {first_slice} to {first_slice + slices - 1} asked for, the file has {len(stack)}"
        )
    stack = stack[first_slice : first_slice + slices].astype(np.complex64 if stack.dtype.kind == "c" else np.float32)
    peak = float(np.abs(stack).max())
    if not np.isfinite(peak) or peak == 0.0:
        raise ValueError(f"{path}: expected finite images that are not all zero, largest magnitude is {peak}")
    return stack / peak


def anatomy(
    images: str | Path | None,
    slices: int,
    first_slice: int,
    shape: tuple[int | None, int | None],
    contrast: str,
    phase: float,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Complex image (slice, y, x) with largest magnitude 1, and where the object is (bool)."""
    if images is None:
        rows = shape[0] or 256
        head = brain((rows, shape[1] or rows), slices, contrast=contrast, seed=seed, phase=phase)
        return head.image, head.head
    stack = load_images(images, slices, first_slice)
    rows = shape[0] or stack.shape[1]
    columns = shape[1] or shape[0] or stack.shape[2]
    if stack.dtype.kind != "c":
        rng = np.random.default_rng(seed)
        where = (
            slice_positions(slices)[:, None, None],
            pixel_centres(stack.shape[1])[None, :, None],
            pixel_centres(stack.shape[2])[None, None, :],
        )
        stack = stack * np.exp(1j * phase * (0.8 * smooth_field(rng, 5, *where) + 0.3 * smooth_field(rng, 9, *where)))
    if (rows, columns) != stack.shape[1:]:
        stack = to_image(resize(to_kspace(stack, (-2, -1)), (rows, columns)), (-2, -1))
    image = (stack / np.abs(stack).max()).astype(np.complex64)
    return image, np.abs(image) > 0.05


def with_spots(image: np.ndarray, head: np.ndarray, repetitions: int, spot: float) -> np.ndarray:
    """(repetition, slice, y, x): every second repetition has a bright spot, so that neighbours differ."""
    series = np.repeat(image[None], repetitions, axis=0)
    rows, columns = image.shape[-2:]
    y, x = pixel_centres(rows)[:, None], pixel_centres(columns)[None, :]
    blob = spot * np.abs(image).max() * np.exp(-((y - 0.25) ** 2 + (x + 0.25) ** 2) / (2 * 0.04**2))
    series[1::2] += (head * blob * np.exp(1j * np.angle(image))).astype(np.complex64)
    return series
