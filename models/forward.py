"""The forward model of Cartesian parallel imaging, A = P F S: coil maps, centred Fourier transform, sampling mask."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from scanprior.models.fourier import fft2c, ifft2c
from scanprior.models.scan import Progress, Scan
from scanprior.models.solvers import conjugate_gradient

_CPU_CHUNK = 1 << 18
_CUDA_CHUNK = 1 << 24
"""Coil images held at once by `A.H` and `A.normal`, in complex numbers: what a CPU's cache holds (2 MiB), and
what keeps a GPU busy (128 MiB). One coil of all the images is the least."""


class SenseModel:
    """A = P F S (Pruessmann et al., MRM 2001).

    With several sets of maps it is the sum over the sets (soft SENSE: Uecker et al., MRM 2014).

    `A(x)` gives k-space, `A.H(y)` the adjoint's image, `A.normal(x)` is A.H(A(x)). Leading batch dimensions of
    images, maps and mask broadcast: n samples (n, y, x) share maps (coil, y, x). All calls are differentiable.

    Parameters
    ----------
    maps
        (..., coil, y, x) complex, or (..., set, coil, y, x) with `sets=True`.
    mask
        (..., y, x), bool or real weights; either axis may have length 1 where the mask does not depend on it. It
        has no coil and no set dimension. For a mask that is constant along an axis, `normal` transforms the other
        axis only.
    sets
        Whether `maps` has a set dimension. It is asked for since a set dimension and a batch dimension look alike.

    Attributes
    ----------
    maps, mask
        As given, `mask` real-valued in the precision of the maps.
    sets
        As given.
    transformed
        The axes that `normal` transforms: (-2, -1), or one of them, or () for a fully sampled scan.

    Raises
    ------
    ValueError
        If shapes do not fit, naming both; or if the maps are not complex.
    """

    def __init__(self, maps: torch.Tensor, mask: torch.Tensor, *, sets: bool = False) -> None:
        least = 4 if sets else 3
        layout = "(..., set, coil, y, x)" if sets else "(..., coil, y, x)"
        if maps.ndim < least:
            raise ValueError(f"expected {layout}, got {tuple(maps.shape)} for maps")
        if not maps.is_complex():
            raise ValueError(f"expected a complex tensor, got {maps.dtype} for maps")
        rows, columns = maps.shape[-2:]
        if mask.ndim < 2 or mask.shape[-2] not in (1, rows) or mask.shape[-1] not in (1, columns):
            raise ValueError(
                f"expected (..., {rows}, {columns}) or 1 in place of either, got {tuple(mask.shape)} for mask"
            )
        if mask.is_complex():
            raise ValueError(f"expected a bool or real tensor, got {mask.dtype} for mask")
        self.sets = sets
        self.maps = maps
        self.mask = mask.to(device=maps.device, dtype=maps.real.dtype)
        self._event_dims = 3 if sets else 2

        self.transformed = tuple(axis for axis in (-2, -1) if not _constant_along(self.mask, axis))
        weights = self.mask.square()
        for axis in (-2, -1):
            if axis not in self.transformed:
                weights = weights.narrow(axis, 0, 1)
        # F^H diag(w) F is a circular convolution: it commutes with any shift of the image, so shifting w once
        # is all that "centred" means for the normal operator.
        weights = torch.fft.ifftshift(weights, (-2, -1)).unsqueeze(-3)
        # Transforms along the last axis are several times faster than along the one before it, so a mask of lines
        # along y works on transposed images. The scale of both transforms goes into the weights.
        self._transposed = self.transformed == (-2,)
        self._loop_axes = (-1,) if self._transposed else self.transformed
        for axis in self.transformed:
            weights = weights / maps.shape[axis]
        self._loop_weights = weights.mT.contiguous() if self._transposed else weights
        self._loop_maps = maps.mT.contiguous() if self._transposed else maps
        self._loop_conjugate = self._loop_maps.conj().resolve_conj()

    @classmethod
    def of(cls, scan: Scan) -> SenseModel:
        """The model of a scan. Maps with one dimension more than its k-space are sets of maps.

        Raises
        ------
        ValueError
            If the scan has no maps, or shapes do not fit.
        """
        if scan.maps is None:
            raise ValueError(
                "this method needs coil maps and the scan has none: estimate them from ACS lines, "
                "or use a method without maps (zero-filled with root-sum-of-squares)"
            )
        model = cls(scan.maps, scan.mask, sets=scan.maps.ndim == scan.kspace.ndim + 1)
        model._check(scan.kspace, model.coil_shape, "kspace")
        return model

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(y, x), or (set, y, x): the image's shape without batch."""
        rows, columns = self.maps.shape[-2:]
        return (self.maps.shape[-4], rows, columns) if self.sets else (rows, columns)

    @property
    def coil_shape(self) -> tuple[int, ...]:
        """(coil, y, x): the k-space's shape without batch."""
        return tuple(self.maps.shape[-3:])

    @property
    def norm_bound(self) -> float:
        """An upper bound of the largest eigenvalue of `normal`: 1 for unit-norm maps and a bool mask."""
        if not self.sets:
            largest = self.maps.abs().square().sum(-3).amax()
        else:
            gram = torch.einsum("...scyx,...tcyx->...yxst", self.maps.conj(), self.maps)
            # Row sums bound the eigenvalues of the small Hermitian matrix in every pixel (Gershgorin).
            largest = gram.abs().sum(-1).amax()
        return float(largest * self.mask.abs().amax() ** 2)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """(..., y, x), or (..., set, y, x), to k-space (..., coil, y, x)."""
        self._check(image, self.image_shape, "image")
        return fft2c(self._expand(image, self.maps)) * self.mask.unsqueeze(-3)

    def H(self, kspace: torch.Tensor) -> torch.Tensor:
        """Adjoint: k-space (..., coil, y, x) to (..., y, x), or (..., set, y, x)."""
        self._check(kspace, self.coil_shape, "kspace")
        mask = self.mask.unsqueeze(-3)
        total: torch.Tensor | None = None
        for coils in self._coils(kspace.numel() // kspace.shape[-3]):
            part = self._combine(ifft2c(kspace[..., coils, :, :] * mask), self.maps[..., coils, :, :].conj())
            total = part if total is None else total + part
        assert total is not None
        return total

    def normal(self, image: torch.Tensor) -> torch.Tensor:
        """A.H(A(image)), without a shift and with the transforms that the mask asks for only."""
        self._check(image, self.image_shape, "image")
        if self._transposed:
            image = image.mT.contiguous()
        total: torch.Tensor | None = None
        for coils in self._coils(image.numel()):
            part = self._filter(self._expand(image, self._loop_maps[..., coils, :, :]))
            part = self._combine(part, self._loop_conjugate[..., coils, :, :])
            total = part if total is None else total + part
        assert total is not None
        return total.mT.contiguous() if self._transposed else total

    def solve(
        self,
        rhs: torch.Tensor,
        ridge: float | torch.Tensor,
        x0: torch.Tensor | None = None,
        *,
        iterations: int = 10,
        tolerance: float = 0.0,
        progress: Progress | None = None,
    ) -> torch.Tensor:
        """Solve (A^H A + ridge) x = rhs by conjugate gradients, each batch element by itself.

        The Gaussian form of a sampler's data consistency,
        (A^H A / sigma_y^2 + I / r^2) x = A^H y / sigma_y^2 + d / r^2,
        is `solve(A.H(y) + ridge * d, ridge)` with ridge = sigma_y^2 / r^2.

        Parameters
        ----------
        rhs
            (..., y, x), or (..., set, y, x), complex.
        ridge
            Not negative; a number, or a real tensor that broadcasts against `rhs` (one per element: (n, 1, 1)).
        x0, iterations, tolerance, progress
            See `conjugate_gradient`.
        """
        self._check(rhs, self.image_shape, "rhs")
        return conjugate_gradient(
            lambda x: self.normal(x) + ridge * x,
            rhs,
            x0,
            iterations=iterations,
            tolerance=tolerance,
            batch_dims=rhs.ndim - self._event_dims,
            progress=progress,
        )

    def _expand(self, image: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        coil_images = image.unsqueeze(-3) * maps
        return coil_images.sum(-4) if self.sets else coil_images

    def _combine(self, coil_images: torch.Tensor, conjugate: torch.Tensor) -> torch.Tensor:
        if self.sets:
            coil_images = coil_images.unsqueeze(-4)
        return (coil_images * conjugate).sum(-3)

    def _filter(self, coil_images: torch.Tensor) -> torch.Tensor:
        if not self._loop_axes:
            return coil_images * self._loop_weights
        spectrum = torch.fft.fftn(coil_images, dim=self._loop_axes, norm="backward")
        return torch.fft.ifftn(spectrum * self._loop_weights, dim=self._loop_axes, norm="forward")

    def _coils(self, elements_per_coil: int) -> Iterator[slice]:
        coils = self.maps.shape[-3]
        chunk = _CUDA_CHUNK if self.maps.is_cuda else _CPU_CHUNK
        step = max(1, min(coils, chunk // max(1, elements_per_coil)))
        for first in range(0, coils, step):
            yield slice(first, min(first + step, coils))

    @staticmethod
    def _check(tensor: torch.Tensor, shape: tuple[int, ...], name: str) -> None:
        if tuple(tensor.shape[-len(shape) :]) != shape:
            raise ValueError(f"expected (..., {', '.join(map(str, shape))}), got {tuple(tensor.shape)} for {name}")


def _constant_along(mask: torch.Tensor, axis: int) -> bool:
    return mask.shape[axis] == 1 or bool((mask == mask.narrow(axis, 0, 1)).all())
