"""Centred orthonormal Fourier transforms: DC and the image's middle both lie at index N // 2, for even and odd N."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def fftc(image: torch.Tensor, dims: Sequence[int]) -> torch.Tensor:
    """Centred orthonormal Fourier transform, image to k-space.

    Parameters
    ----------
    image
        Complex (or real) tensor of any shape.
    dims
        The dimensions that are transformed.

    Returns
    -------
    Complex tensor of the same shape; DC lies at index N // 2. Unitary: energies are kept.
    """
    dims = tuple(dims)
    return torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(image, dims), dim=dims, norm="ortho"), dims)


def ifftc(kspace: torch.Tensor, dims: Sequence[int]) -> torch.Tensor:
    """Inverse (and adjoint) of `fftc`, k-space to image."""
    dims = tuple(dims)
    return torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(kspace, dims), dim=dims, norm="ortho"), dims)


def fft2c(image: torch.Tensor, dims: tuple[int, int] = (-2, -1)) -> torch.Tensor:
    """Two-dimensional `fftc`, by default over (y, x)."""
    return fftc(image, dims)


def ifft2c(kspace: torch.Tensor, dims: tuple[int, int] = (-2, -1)) -> torch.Tensor:
    """Two-dimensional `ifftc`, by default over (y, x)."""
    return ifftc(kspace, dims)


def fft1c(image: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """One-dimensional `fftc` along `dim`."""
    return fftc(image, (dim,))


def ifft1c(kspace: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """One-dimensional `ifftc` along `dim`."""
    return ifftc(kspace, (dim,))
