"""The factor L of `precision.CholeskyFactor` as a local stencil: the layout of its entries, L^T e and L u."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

NEIGHBOURHOODS = (1, 3, 5)
PARTS = (1, 2)


def later_neighbours(neighbourhood: int) -> list[tuple[int, int]]:
    """Offsets (dy, dx) to the pixels of the neighbourhood that come later in raster order, in that order."""
    radius = neighbourhood // 2
    grid = ((dy, dx) for dy in range(radius + 1) for dx in range(-radius, radius + 1))
    return [offset for offset in grid if offset > (0, 0)]


def coefficient_channels(parts: int, neighbourhood: int) -> int:
    """Channels of the coefficient image of `CholeskyFactor`.

    1, 5 and 13 for real images and neighbourhoods 1, 3 and 5; 3, 19 and 51 for complex ones.

    Raises
    ------
    ValueError
        When there is no such number of parts or such a neighbourhood.
    """
    if parts not in PARTS:
        raise ValueError(f"parts: expected one of {PARTS} (real; real and imaginary), got {parts}")
    if neighbourhood not in NEIGHBOURHOODS:
        raise ValueError(f"neighbourhood: expected one of {NEIGHBOURHOODS} pixels, got {neighbourhood}")
    return parts + (parts - 1) + parts**2 * len(later_neighbours(neighbourhood))


class Pieces(NamedTuple):
    """Views of the coefficients, or of their gradient."""

    diagonal: torch.Tensor  # (batch, parts, y, x)
    cross: torch.Tensor | None  # (batch, y, x)
    couplings: torch.Tensor | None  # (batch, neighbour, part of the later pixel, own part, y, x)


def pieces_of(values: torch.Tensor, parts: int) -> Pieces:
    """The coefficients (batch, channels, y, x) of images with so many parts, by what they belong to."""
    diagonal, rest = values[:, :parts], values[:, 2 * parts - 1 :]
    cross = values[:, parts] if parts == 2 else None
    couplings = rest.unflatten(1, (-1, parts, parts)) if rest.shape[1] else None
    return Pieces(diagonal, cross, couplings)


def neighbour_steps(neighbourhood: int, shape: Sequence[int]) -> Iterator[tuple[int, Any, Any]]:
    """Of every later neighbour: its number, and indices of the pixels that have it and of these neighbours."""
    height, width = shape
    for k, (dy, dx) in enumerate(later_neighbours(neighbourhood)):
        if dy >= height or abs(dx) >= width:
            continue
        left, right = max(0, -dx), max(0, dx)
        here = (..., slice(0, height - dy), slice(left, width - right))
        there = (..., slice(dy, height), slice(right, width - left))
        yield k, here, there


def transposed_product(values: torch.Tensor, e: torch.Tensor, neighbourhood: int) -> torch.Tensor:
    """L^T e of images (..., parts, y, x), differentiable once in both."""
    return _Stencil.apply(values, e, neighbourhood, True)


def product(values: torch.Tensor, u: torch.Tensor, neighbourhood: int) -> torch.Tensor:
    """L u of images (..., parts, y, x), differentiable once in both."""
    return _Stencil.apply(values, u, neighbourhood, False)


def _transposed(values: torch.Tensor, e: torch.Tensor, neighbourhood: int) -> torch.Tensor:
    diagonal, cross, couplings = pieces_of(values, e.shape[-3])
    result = diagonal * e
    if cross is not None:
        result[..., 0, :, :].addcmul_(cross, e[..., 1, :, :])
    if couplings is not None:
        for k, here, there in neighbour_steps(neighbourhood, e.shape[-2:]):
            own, later, block = result[here], e[there], couplings[:, k][here]
            for part in range(e.shape[-3]):
                own.addcmul_(block[:, part], later[..., part : part + 1, :, :])
    return result


def _product(values: torch.Tensor, u: torch.Tensor, neighbourhood: int) -> torch.Tensor:
    diagonal, cross, couplings = pieces_of(values, u.shape[-3])
    result = diagonal * u
    if cross is not None:
        result[..., 1, :, :].addcmul_(cross, u[..., 0, :, :])
    if couplings is not None:
        for k, here, there in neighbour_steps(neighbourhood, u.shape[-2:]):
            later, own, block = result[there], u[here], couplings[:, k][here]
            for part in range(u.shape[-3]):
                later.addcmul_(block[:, :, part], own[..., part : part + 1, :, :])
    return result


def _outer(values: torch.Tensor, left: torch.Tensor, right: torch.Tensor, neighbourhood: int) -> torch.Tensor:
    """Gradient of left^T L right in the values: the entries of left right^T where L has any."""
    batch, parts = values.shape[0], left.shape[-3]
    gradient = torch.zeros_like(values)
    diagonal, cross, couplings = pieces_of(gradient, parts)

    def put(into: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
        if a.ndim == into.ndim and len(a) == len(b) == batch:
            torch.mul(a, b, out=into)
        else:
            into.copy_((a * b).sum_to_size(into.shape))

    put(diagonal, left, right)
    if cross is not None:
        put(cross, left[..., 1, :, :], right[..., 0, :, :])
    if couplings is not None:
        for k, here, there in neighbour_steps(neighbourhood, values.shape[-2:]):
            later, own = left[there], right[here]
            put(couplings[:, k][here], later[..., :, None, :, :], own[..., None, :, :, :])
    return gradient


class _Stencil(torch.autograd.Function):
    """L^T times an image, or L times it. By hand, because autograd would keep and fill one image for each neighbour."""

    @staticmethod
    def forward(
        ctx: Any, values: torch.Tensor, image: torch.Tensor, neighbourhood: int, transpose: bool
    ) -> torch.Tensor:
        ctx.save_for_backward(values, image)
        ctx.neighbourhood, ctx.transpose = neighbourhood, transpose
        return (_transposed if transpose else _product)(values, image, neighbourhood)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        values, image = ctx.saved_tensors
        by_values = by_image = None
        if ctx.needs_input_grad[0]:
            left, right = (image, gradient) if ctx.transpose else (gradient, image)
            by_values = _outer(values, left, right, ctx.neighbourhood)
        if ctx.needs_input_grad[1]:
            by_image = (_product if ctx.transpose else _transposed)(values, gradient, ctx.neighbourhood)
            by_image = by_image.sum_to_size(image.shape)
        return by_values, by_image, None, None
