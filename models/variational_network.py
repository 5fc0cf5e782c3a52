"""The variational network (Hammernik et al., MRM 2018): gradient descent on a learned energy, unrolled.

Stage t goes `x <- x - K_t^T phi_t(K_t x) - lambda_t (A^H A x - A^H y)`: the second term is the gradient of a "field of
experts" `sum Phi((K x))`, `phi = Phi'`, whose filters K and functions phi are learned in each stage anew; so is the
weight of the data. Differences from the paper: data without a range of their own (the caller scales them), images zero
outside (the paper mirrors them), and filters held to mean 0 and norm 1 by how they are parametrised, not by a
projection after each step of the training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

MAX_FEATURES = 1 << 27
"""Filter responses that are held at once where no gradient is wanted: half a gigabyte."""
TABLE = 512
"""Intervals of the table of phi; with the widths below its error is less than 0.1 % of a basis function's height."""
REACH = 5.0
"""The table ends so many widths of a basis function beyond the outermost one: phi is zero there."""


class Activations(nn.Module):
    """phi, one for each filter: a weighted sum of Gaussian radial basis functions over the number of filters, by table.

    The centres are `bases` points from -span to span and the width is their distance, as in the paper. Sums of 31
    exponentials in each pixel of each filter would take most of the time, so phi is tabulated on `TABLE` intervals, at
    every call anew, and interpolated linearly; that is differentiable, by the weights too.

    Parameters
    ----------
    filters
        How many functions.
    bases
        Basis functions of each.
    span
        Largest centre, in the units of the filters' responses.
    """

    centres: torch.Tensor
    basis: torch.Tensor

    def __init__(self, filters: int, bases: int, span: float) -> None:
        super().__init__()
        self.width = 2 * span / (bases - 1)
        self.limit = span + REACH * self.width
        centres = torch.linspace(-span, span, bases)
        points = torch.linspace(-self.limit, self.limit, TABLE + 1)
        self.register_buffer("centres", centres, persistent=False)
        self.register_buffer("basis", self._gaussians(points), persistent=False)
        # to begin with a weak quadratic energy: phi(z) = 0.2 z, over the number of filters as all of phi is
        per_unit = math.sqrt(2 * math.pi)  # what overlapping Gaussians of height 1 add up to at every point
        self.weights = nn.Parameter((0.2 / per_unit * centres).repeat(filters, 1))

    def _gaussians(self, points: torch.Tensor) -> torch.Tensor:
        centres = self.centres.to(points)
        return torch.exp(-0.5 * ((points[:, None] - centres) / self.width).square())

    def exact(self, z: torch.Tensor) -> torch.Tensor:
        """phi(z) of responses (..., filter, y, x), without the table: slow, for comparison."""
        return (self._gaussians(z.flatten()).reshape(*z.shape, -1) * self.weights[:, None, None, :]).sum(-1) / len(
            self.weights
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """phi(z) of responses (batch, filter, y, x), in the type of the weights whatever autocast computes in."""
        with torch.autocast(z.device.type, enabled=False):
            table = self.weights @ self.basis.T / len(self.weights)
            return _Interpolation.apply(z.to(table.dtype), table, self.limit)


class _Interpolation(torch.autograd.Function):
    """Linear interpolation in a table of its own for each channel; five times faster than by autograd's own means."""

    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, table: torch.Tensor, limit: float) -> torch.Tensor:
        """z (batch, channel, y, x), table (channel, TABLE + 1) at points from -limit to limit."""
        channels, points = table.shape
        ctx.per_unit = (points - 1) / (2 * limit)
        place = z.add(limit).mul_(ctx.per_unit).clamp_(0, points - 1 - 1e-3)
        below = place.floor()
        fraction = place.sub_(below)
        first = torch.arange(channels, dtype=torch.int32, device=z.device)[:, None, None] * points
        # clamped again for the sake of what is not finite: it has to come out, as NaN, and not to break off here
        index = below.to(torch.int32).clamp_(0, points - 2).add_(first).reshape(-1)
        rise = torch.diff(table, append=table[:, -1:]).reshape(-1).index_select(0, index).reshape(z.shape)
        value = table.reshape(-1).index_select(0, index).reshape(z.shape)
        ctx.save_for_backward(fraction, index, rise)
        ctx.table_shape = table.shape
        return value.addcmul_(fraction, rise)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Gradients by z and by the table."""
        fraction, index, rise = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.contiguous_format)
        by_z = gradient * rise * ctx.per_unit
        zeros = gradient.new_zeros(ctx.table_shape).reshape(-1)
        above = torch.index_add(zeros, 0, index, (gradient * fraction).reshape(-1))
        both = torch.index_add(zeros, 0, index, gradient.reshape(-1))
        by_table = (both - above).index_add_(0, torch.arange(1, len(zeros), device=zeros.device), above[:-1])
        return by_z, by_table.reshape(ctx.table_shape), None


class Stage(nn.Module):
    """One gradient step: filters (filter, 2, kernel, kernel) on (Re, Im), their phi, and the weight of the data."""

    def __init__(self, filters: int, kernel: int, bases: int, span: float) -> None:
        super().__init__()
        # its size, which the filters do not show, is how slowly an optimiser's steps turn them
        self.raw = nn.Parameter(0.1 * torch.randn(filters, 2, kernel, kernel))
        self.activations = Activations(filters, bases, span)
        self.log_weight = nn.Parameter(torch.tensor(math.log(0.8)))

    @property
    def filters(self) -> torch.Tensor:
        """K (filter, 2, kernel, kernel): mean 0 of either part, norm 1 of both; a filter of zeros stays one."""
        centred = self.raw - self.raw.mean((-2, -1), keepdim=True)
        return centred / torch.linalg.vector_norm(centred, dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)

    @property
    def data_weight(self) -> torch.Tensor:
        """lambda, above 0."""
        return self.log_weight.exp()

    def regulariser(self, image: torch.Tensor) -> torch.Tensor:
        """K^T phi(K x) of images (batch, 2, y, x)."""
        filters = self.filters
        reach = filters.shape[-1] // 2
        responses = F.conv2d(image.contiguous(memory_format=torch.channels_last), filters, padding=reach)
        active = self.activations(responses.contiguous())
        back = F.conv_transpose2d(active.contiguous(memory_format=torch.channels_last), filters, padding=reach)
        return back.to(image.dtype)


class VariationalNetwork(nn.Module):
    """Unrolled gradient descent on images of any size; A and the data come with each call.

    Parameters
    ----------
    stages
        Steps; 10 in the paper.
    filters
        Filters of each; 24 of 11 x 11 in Duff et al. 2023, 48 in the paper.
    kernel
        Edge of a filter, odd.
    bases
        Radial basis functions of each activation.
    span
        Largest response that they cover. Images are about 1 and filters of norm 1, so few responses are beyond 0.75.

    Raises
    ------
    ValueError
        When an argument does not do.
    """

    start = "zero-filled"

    def __init__(
        self, stages: int = 10, filters: int = 24, kernel: int = 11, bases: int = 31, span: float = 0.75
    ) -> None:
        super().__init__()
        if stages < 1 or filters < 1 or bases < 3 or span <= 0:
            raise ValueError(
                f"expected at least 1 stage, 1 filter, 3 bases and a span above 0, found {stages}, {filters}, {bases} "
                f"and {span}"
            )
        if kernel < 3 or kernel % 2 == 0:
            raise ValueError(f"kernel: expected an odd number from 3 on, found {kernel}")
        self.stages = nn.ModuleList(Stage(filters, kernel, bases, span) for _ in range(stages))
        self.filters = filters

    def forward(
        self, x: torch.Tensor, adjoint: torch.Tensor, normal: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """The image after all stages.

        Parameters
        ----------
        x
            Image to begin with, (..., y, x) complex: A^H y.
        adjoint
            A^H y, of the same shape.
        normal
            A^H A on images of that shape.

        Returns
        -------
        (..., y, x) complex.
        """
        for stage in self.stages:
            assert isinstance(stage, Stage)
            step = self._in_parts(stage, x)
            x = x - step - stage.data_weight * (normal(x) - adjoint)
        return x

    def _in_parts(self, stage: Stage, x: torch.Tensor) -> torch.Tensor:
        """The regulariser's step for complex images; a few at a time where nothing is kept for a gradient."""
        pictures = torch.view_as_real(x.reshape(-1, *x.shape[-2:])).movedim(-1, 1)
        at_once = len(pictures)
        if not torch.is_grad_enabled():
            at_once = max(1, MAX_FEATURES // (self.filters * x.shape[-2] * x.shape[-1]))
        step = torch.cat([stage.regulariser(part) for part in pictures.split(at_once)])
        return torch.view_as_complex(step.movedim(1, -1).contiguous()).reshape(x.shape)
