"""Gaussian residuals of images whose precision has a sparse Cholesky factor on the pixel grid (Dorta et al. 2018).

Sigma^-1 = L L^T over images e of shape (parts, y, x), with parts = 1 for real images and 2 for (Re, Im). L is lower
triangular in raster order, a pixel's parts standing together, and couples pixels of a neighbourhood only; Sigma is
dense all the same. Row j of L^T holds what belongs to pixel j: its diagonal, and the couplings to neighbours that come
*later*,

    (L^T e)_j = l_jj e_j + sum_k l_k(j) e_(j + o_k),

so that u = L^T e whitens e by one local stencil, and e_j given the later pixels is normal with the standard deviation
1 / l_jj. Duff et al. 2023, section 3; their equation 10 doubles the log-determinant and writes L for L^T.
"""

from __future__ import annotations

import math
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


def bounded(raw: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """A positive diagonal between `low` and `high` from what a network gives: exp of a scaled tanh.

    0 gives the geometric mean of the bounds. Without an upper bound the likelihood of a constant background has none
    either (Duff et al. 2023, section 3).

    Raises
    ------
    ValueError
        Unless 0 < low < high < infinity.
    """
    if not 0 < low < high < math.inf:
        raise ValueError(f"bounds of the diagonal: expected 0 < low < high, got low {low} and high {high}")
    middle, half = math.log(low * high) / 2, math.log(high / low) / 2
    return torch.exp(middle + half * torch.tanh(raw))


class CholeskyFactor:
    """A batch of sparse factors L, precision Sigma^-1 = L L^T.

    Parameters
    ----------
    values
        (batch, channels, y, x) real, `channels` by `coefficient_channels`. First the diagonal, `parts` channels, in
        units of 1 / standard deviation; then, for two parts, the coupling L[(j, 1), (j, 0)] within the pixel; then of
        every later neighbour k (order of `later_neighbours`) the blocks L[(j + o_k, p), (j, q)], q running fastest.
        Couplings that would leave the image are not read.
    parts
        1 for real images, 2 for (Re, Im).
    neighbourhood
        Edge of the neighbourhood in pixels: 1, 3 or 5.

    Notes
    -----
    Images are (..., parts, y, x) of the values' dtype; what stands before `parts` broadcasts with `batch` as in torch,
    so that one factor serves many images. `transposed`, `product`, `precision`, `log_det` and `nll` are differentiable,
    once, in the image and in the values; solves and what rests on them carry no gradient.

    Raises
    ------
    ValueError
        When shape or type of `values` do not fit, or the diagonal is not positive and finite.
    """

    def __init__(self, values: torch.Tensor, parts: int, neighbourhood: int) -> None:
        channels = coefficient_channels(parts, neighbourhood)
        if values.ndim != 4 or values.shape[1] != channels or 0 in values.shape[2:]:
            raise ValueError(
                f"coefficients: expected (batch, {channels}, y, x) for {parts} parts and neighbourhood "
                f"{neighbourhood}, got {tuple(values.shape)}"
            )
        if not values.is_floating_point():
            raise ValueError(f"coefficients: expected real floating-point numbers, got {values.dtype}")
        diagonal = values[:, :parts].detach()
        if not bool(((diagonal > 0) & (diagonal < math.inf)).all()):
            raise ValueError(
                f"coefficients: expected a positive, finite diagonal, found values from {float(diagonal.min()):g} "
                f"to {float(diagonal.max()):g}"
            )
        self.values = values
        self.parts = parts
        self.neighbourhood = neighbourhood

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of a batch of its images: (batch, parts, y, x)."""
        batch, _, height, width = self.values.shape
        return batch, self.parts, height, width

    def diagonal(self) -> torch.Tensor:
        """Diagonal of L, (batch, parts, y, x), positive."""
        return self.values[:, : self.parts]

    def transposed(self, e: torch.Tensor) -> torch.Tensor:
        """L^T e: white noise of variance 1 if e is a residual."""
        self._check(e)
        return _Transposed.apply(self.values, e, self.neighbourhood)

    def product(self, u: torch.Tensor) -> torch.Tensor:
        """L u."""
        self._check(u)
        return _Product.apply(self.values, u, self.neighbourhood)

    def precision(self, e: torch.Tensor) -> torch.Tensor:
        """Sigma^-1 e = L L^T e."""
        return self.product(self.transposed(e))

    def log_det(self) -> torch.Tensor:
        """(batch,): log det L = sum_i log L_ii, half the precision's log-determinant."""
        return self.diagonal().log().sum((1, 2, 3))

    def nll(self, e: torch.Tensor) -> torch.Tensor:
        """Negative log-likelihood of residuals, 1/2 ||L^T e||^2 - log det L, of shape (...) for e (..., parts, y, x).

        In nats, for all pixels together, without the constant n/2 log 2 pi.
        """
        return 0.5 * self.transposed(e).square().sum((-3, -2, -1)) - self.log_det()

    @torch.no_grad()
    def solve_transposed(self, u: torch.Tensor) -> torch.Tensor:
        """e with L^T e = u, exactly, by back substitution; no gradient."""
        self._check(u)
        pieces = _pieces(self.values, self.parts)
        rows = None if pieces.couplings is None else pieces.couplings.transpose(2, 3)
        return _back_substitution(pieces.diagonal, pieces.cross, rows, u, self.neighbourhood)

    @torch.no_grad()
    def solve(self, u: torch.Tensor) -> torch.Tensor:
        """e with L e = u, exactly, by forward substitution; no gradient."""
        self._check(u)
        # With pixels and parts in reverse order L is upper triangular, and has the same neighbours as L^T has.
        pieces = _pieces(self.values, self.parts)
        diagonal = pieces.diagonal.flip(1, 2, 3)
        cross = None if pieces.cross is None else pieces.cross.flip(1, 2)
        rows = None
        if pieces.couplings is not None:
            rows = torch.zeros_like(pieces.couplings)
            for k, here, there in _steps(self.neighbourhood, self.shape[2:]):
                rows[:, k][there] = pieces.couplings[:, k][here]
            rows = rows.flip(2, 3, 4, 5)
        return _back_substitution(diagonal, cross, rows, u.flip(-3, -2, -1), self.neighbourhood).flip(-3, -2, -1)

    def sample(self, count: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """`count` residuals of N(0, Sigma) of every factor: (count, batch, parts, y, x); no gradient.

        `generator` is of the values' device.
        """
        noise = torch.randn(count, *self.shape, generator=generator, device=self.values.device, dtype=self.values.dtype)
        return self.solve_transposed(noise)

    def covariance_rows(self, pixels: Sequence[tuple[int, int, int]]) -> torch.Tensor:
        """Rows of Sigma, of several pixels at once.

        Parameters
        ----------
        pixels
            (y, x, part) each.

        Returns
        -------
        (pixel, batch, parts, y, x): the covariance of the pixel's part with every pixel's; no gradient.

        Raises
        ------
        ValueError
            When a pixel is not in the image.
        """
        batch, parts, height, width = self.shape
        units = self.values.new_zeros(len(pixels), batch, parts, height, width)
        for unit, (y, x, part) in zip(units, pixels, strict=True):
            if not (0 <= y < height and 0 <= x < width and 0 <= part < parts):
                raise ValueError(
                    f"covariance row: pixel (y, x, part) = {(y, x, part)} is not in images of (y, x) = "
                    f"{(height, width)} with {parts} parts"
                )
            unit[:, part, y, x] = 1
        return self.solve_transposed(self.solve(units))

    def covariance_row(self, y: int, x: int, part: int = 0) -> torch.Tensor:
        """(batch, parts, y, x): the covariance of one pixel's part with every pixel's; see `covariance_rows`."""
        return self.covariance_rows([(y, x, part)])[0]

    def _check(self, e: torch.Tensor) -> None:
        lead = tuple(e.shape[:-3])
        fits = e.shape[-3:] == self.shape[1:]
        fits = fits and (self.shape[0] == 1 or not lead or lead[-1] in (1, self.shape[0]))
        if not fits:
            raise ValueError(
                f"image of shape {tuple(e.shape)} does not fit a factor of images of shape (batch, parts, y, x) = "
                f"{self.shape}"
            )
        if e.dtype != self.values.dtype:
            raise ValueError(f"image: expected {self.values.dtype} as the factor has, got {e.dtype}")


class _Pieces(NamedTuple):
    """Views of the coefficients, or of their gradient."""

    diagonal: torch.Tensor  # (batch, parts, y, x)
    cross: torch.Tensor | None  # (batch, y, x)
    couplings: torch.Tensor | None  # (batch, neighbour, part of the later pixel, own part, y, x)


def _pieces(values: torch.Tensor, parts: int) -> _Pieces:
    diagonal, rest = values[:, :parts], values[:, 2 * parts - 1 :]
    cross = values[:, parts] if parts == 2 else None
    couplings = rest.unflatten(1, (-1, parts, parts)) if rest.shape[1] else None
    return _Pieces(diagonal, cross, couplings)


def _steps(neighbourhood: int, shape: Sequence[int]) -> Iterator[tuple[int, Any, Any]]:
    """Of every later neighbour: its number, and indices of the pixels that have it and of these neighbours."""
    height, width = shape
    for k, (dy, dx) in enumerate(later_neighbours(neighbourhood)):
        if dy >= height or abs(dx) >= width:
            continue
        left, right = max(0, -dx), max(0, dx)
        here = (..., slice(0, height - dy), slice(left, width - right))
        there = (..., slice(dy, height), slice(right, width - left))
        yield k, here, there


def _transposed(values: torch.Tensor, e: torch.Tensor, neighbourhood: int) -> torch.Tensor:
    diagonal, cross, couplings = _pieces(values, e.shape[-3])
    result = diagonal * e
    if cross is not None:
        result[..., 0, :, :].addcmul_(cross, e[..., 1, :, :])
    if couplings is not None:
        for k, here, there in _steps(neighbourhood, e.shape[-2:]):
            own, later, block = result[here], e[there], couplings[:, k][here]
            for part in range(e.shape[-3]):
                own.addcmul_(block[:, part], later[..., part : part + 1, :, :])
    return result


def _product(values: torch.Tensor, u: torch.Tensor, neighbourhood: int) -> torch.Tensor:
    diagonal, cross, couplings = _pieces(values, u.shape[-3])
    result = diagonal * u
    if cross is not None:
        result[..., 1, :, :].addcmul_(cross, u[..., 0, :, :])
    if couplings is not None:
        for k, here, there in _steps(neighbourhood, u.shape[-2:]):
            later, own, block = result[there], u[here], couplings[:, k][here]
            for part in range(u.shape[-3]):
                later.addcmul_(block[:, :, part], own[..., part : part + 1, :, :])
    return result


def _outer(values: torch.Tensor, left: torch.Tensor, right: torch.Tensor, neighbourhood: int) -> torch.Tensor:
    """Gradient of left^T L right in the values: the entries of left right^T where L has any."""
    batch, parts = values.shape[0], left.shape[-3]
    gradient = torch.zeros_like(values)
    diagonal, cross, couplings = _pieces(gradient, parts)

    def put(into: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
        if a.ndim == into.ndim and len(a) == len(b) == batch:
            torch.mul(a, b, out=into)
        else:
            into.copy_((a * b).sum_to_size(into.shape))

    put(diagonal, left, right)
    if cross is not None:
        put(cross, left[..., 1, :, :], right[..., 0, :, :])
    if couplings is not None:
        for k, here, there in _steps(neighbourhood, values.shape[-2:]):
            later, own = left[there], right[here]
            put(couplings[:, k][here], later[..., :, None, :, :], own[..., None, :, :, :])
    return gradient


class _Transposed(torch.autograd.Function):
    """L^T e. By hand, because autograd would keep and fill one image for each neighbour."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, e: torch.Tensor, neighbourhood: int) -> torch.Tensor:
        ctx.save_for_backward(values, e)
        ctx.neighbourhood = neighbourhood
        return _transposed(values, e, neighbourhood)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        values, e = ctx.saved_tensors
        by_values = _outer(values, e, gradient, ctx.neighbourhood) if ctx.needs_input_grad[0] else None
        by_e = _product(values, gradient, ctx.neighbourhood) if ctx.needs_input_grad[1] else None
        return by_values, None if by_e is None else by_e.sum_to_size(e.shape), None


class _Product(torch.autograd.Function):
    """L u; see `_Transposed`."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, u: torch.Tensor, neighbourhood: int) -> torch.Tensor:
        ctx.save_for_backward(values, u)
        ctx.neighbourhood = neighbourhood
        return _product(values, u, neighbourhood)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        values, u = ctx.saved_tensors
        by_values = _outer(values, gradient, u, ctx.neighbourhood) if ctx.needs_input_grad[0] else None
        by_u = _transposed(values, gradient, ctx.neighbourhood) if ctx.needs_input_grad[1] else None
        return by_values, None if by_u is None else by_u.sum_to_size(u.shape), None


def _back_substitution(
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
