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
from collections.abc import Sequence

import torch

from .cholesky_solve import back_substitution, forward_substitution
from .cholesky_stencil import coefficient_channels, product, transposed_product


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
        Couplings that would leave the image are not read. (Both functions: `cholesky_stencil`.)
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
        return transposed_product(self.values, e, self.neighbourhood)

    def product(self, u: torch.Tensor) -> torch.Tensor:
        """L u."""
        self._check(u)
        return product(self.values, u, self.neighbourhood)

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
        return back_substitution(self.values, u, self.neighbourhood)

    @torch.no_grad()
    def solve(self, u: torch.Tensor) -> torch.Tensor:
        """e with L e = u, exactly, by forward substitution; no gradient."""
        self._check(u)
        return forward_substitution(self.values, u, self.neighbourhood)

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
