"""Centred orthonormal Fourier transforms of numpy arrays, and what a change of matrix is in them.

DC and the centre of the image lie at index N // 2. complex64 stays complex64.
"""

from __future__ import annotations

import numpy as np
from scipy import fft as sfft

Axes = int | tuple[int, ...]


def fft(image: np.ndarray, axes: Axes) -> np.ndarray:
    """Image to k-space along `axes`."""
    axes = (axes,) if isinstance(axes, int) else axes
    return sfft.fftshift(sfft.fftn(sfft.ifftshift(image, axes), axes=axes, norm="ortho"), axes)


def ifft(kspace: np.ndarray, axes: Axes) -> np.ndarray:
    """K-space to image along `axes`."""
    axes = (axes,) if isinstance(axes, int) else axes
    return sfft.fftshift(sfft.ifftn(sfft.ifftshift(kspace, axes), axes=axes, norm="ortho"), axes)


def resize(array: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Cut or pad with zeros along `axis` to `size`, keeping the centre N // 2 in its place."""
    old = array.shape[axis]
    if old == size:
        return array
    start = old // 2 - size // 2
    if size < old:
        return array[(slice(None),) * (axis % array.ndim) + (slice(start, start + size),)]
    widths = [(0, 0)] * array.ndim
    widths[axis] = (-start, size - old + start)
    return np.pad(array, widths)


def crop_field_of_view(kspace: np.ndarray, size: int, axis: int = -1) -> np.ndarray:
    """Cut the field of view along `axis` of k-space to `size` pixels: removes (readout) oversampling.

    Orthonormal on both sides, so that the noise of a sample stays what it is.
    """
    full = kspace.shape[axis]
    if full == size:
        return kspace
    if axis in (-1, kspace.ndim - 1) and full % 2 == size % 2 == 0 and size < full:
        return _crop_last(kspace, size)
    return fft(resize(ifft(kspace, axis), axis, size), axis)


def _crop_last(kspace: np.ndarray, size: int) -> np.ndarray:
    """`crop_field_of_view` along the last axis for even sizes.

    Without shifts, pixels come in the order [right half, left half] times (-1)^n, which is just what puts the DC of the
    transform back into the middle: four passes over the data less. One coil at a time stays in the cache.
    """
    half = size // 2
    cropped = np.empty((*kspace.shape[:-1], size), kspace.dtype)
    for source, target in zip(kspace, cropped, strict=True) if kspace.ndim > 1 else [(kspace, cropped)]:
        image = sfft.ifft(source, norm="ortho")
        kept = np.concatenate([image[..., :half], image[..., -half:]], -1)
        target[...] = sfft.fft(kept, norm="ortho", overwrite_x=True)
    return cropped


def interpolate(image: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Image with `size` pixels in the same field of view: its k-space padded with zeros or cut.

    Pixel values are kept, not energy: an orthonormal transform of another size divides values by sqrt(size / old),
    which is multiplied back here.
    """
    old = image.shape[axis]
    if old == size:
        return image
    resized = ifft(resize(fft(image, axis), axis, size), axis)
    return resized * np.asarray(np.sqrt(size / old), dtype=resized.real.dtype)
