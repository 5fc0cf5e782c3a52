"""Exact solves with the sparse factor L of `precision.CholeskyFactor`, in wavefronts of independent pixels."""

from __future__ import annotations

import torch

from .cholesky_stencil import neighbour_steps, pieces_of


def back_substitution(values: torch.Tensor, u: torch.Tensor, neighbourhood: int) -> torch.Tensor:
    """e (..., parts, y, x) with L^T e = u; no gradient."""
    pieces = pieces_of(values, u.shape[-3])
    rows = None if pieces.couplings is None else pieces.couplings.transpose(2, 3)
    return _solve_upper(pieces.diagonal, pieces.cross, rows, u, neighbourhood)


def forward_substitution(values: torch.Tensor, u: torch.Tensor, neighbourhood: int) -> torch.Tensor:
    """e (..., parts, y, x) with L e = u; no gradient."""
    # With pixels and parts in reverse order L is upper triangular, and has the same neighbours as L^T has.
    pieces = pieces_of(values, u.shape[-3])
    diagonal = pieces.diagonal.flip(1, 2, 3)
    cross = None if pieces.cross is None else pieces.cross.flip(1, 2)
    rows = None
    if pieces.couplings is not None:
        rows = torch.zeros_like(pieces.couplings)
        for k, here, there in neighbour_steps(neighbourhood, values.shape[2:]):
            rows[:, k][there] = pieces.couplings[:, k][here]
        rows = rows.flip(2, 3, 4, 5)
    return _solve_upper(diagonal, cross, rows, u.flip(-3, -2, -1), neighbourhood).flip(-3, -2, -1)


def _solve_upper(
    diagonal: torch.Tensor, cross: torch.Tensor | None, rows: torch.Tensor | None, u: torch.Tensor, neighbourhood: int
) -> torch.Tensor:
    """Solve an upper triangular system whose rows couple a pixel to its later neighbours.

    Pixels with the same d = x + (radius + 1) y do not depend on each other, only on those of larger d: every such
    wavefront is one vectorised step, of up to width / (radius + 1) pixels of all images. Wavefronts are strided views
    of the images as they lie in memory, with a frame of zeros for neighbours outside.

    Parameters
    ----------
    diagonal, cross
        (batch, parts, y, x) and (batch, y, x): the blocks on the diagonal, upper triangular.
    rows
        (batch, neighbour, own part, part of the later pixel, y, x), or None without neighbours.
    u
        (..., parts, y, x).
    """
    u = _solve_blocks(diagonal, cross, u)
    if rows is None:
        return u
    *lead, parts, height, width = u.shape
    radius = neighbourhood // 2
    slots = (radius + 1, 2 * radius + 1)  # dy from 0, dx from -radius: those not later have a zero coefficient
    batch = diagonal.shape[0]
    blocks = _solve_blocks(
        diagonal[:, None], None if cross is None else cross[:, None], rows.transpose(2, 3).flatten(1, 2)
    )
    coefficients = u.new_zeros(batch, parts, parts, slots[0] * slots[1], height, width)
    coefficients[:, :, :, radius + 1 :] = -blocks.unflatten(1, (-1, parts)).permute(0, 3, 2, 1, 4, 5)
    framed = u.new_zeros(*lead, parts, height + radius, width + 2 * radius)
    framed[..., :height, radius : radius + width] = u

    skew, line = radius + 1, width + 2 * radius
    step = max(0, width - skew)  # of an image narrower than the skew a wavefront is one pixel
    image_strides, area = framed.stride(), height * width
    own_strides = coefficients.stride()[:3]
    for d in range(width - 1 + skew * (height - 1), -1, -1):
        first = max(0, -((width - 1 - d) // skew))  # rows of the wavefront: 0 <= d - skew y < width
        count = min(height - 1, d // skew) - first + 1
        if count <= 0:
            continue
        x = d - skew * first
        later = framed.as_strided(
            (*lead, 1, parts, *slots, count),
            (*image_strides[:-3], 0, image_strides[-3], line, 1, line - skew),
            first * line + x,
        )
        weights = coefficients.as_strided(
            (batch, parts, parts, *slots, count),
            (*own_strides, slots[1] * area, area, step),
            first * width + x,
        )
        own = framed.as_strided((*lead, parts, count), (*image_strides[:-2], line - skew), first * line + x + radius)
        own += (weights * later).sum((-4, -3, -2))
    return framed[..., :height, radius : radius + width].contiguous()


def _solve_blocks(diagonal: torch.Tensor, cross: torch.Tensor | None, u: torch.Tensor) -> torch.Tensor:
    """Solve with every pixel's own block, upper triangular: [[d_0, cross], [0, d_1]] or [d_0]."""
    result = u / diagonal
    if cross is not None:
        result[..., 0, :, :] -= cross / diagonal[..., 0, :, :] * result[..., 1, :, :]
    return result
