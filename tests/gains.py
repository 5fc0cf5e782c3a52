"""Gaussian images and linear denoisers of a gain for each pixel and level: all errors are known in closed form."""

from __future__ import annotations

from collections.abc import Callable

import torch
from scanprior.models.preconditioning import EDMDenoiser
from torch import nn

SHAPE = (2, 4, 4)
GENERATOR = torch.Generator().manual_seed(0)
VARIANCE = 0.02 + 0.2 * torch.rand(SHAPE, dtype=torch.float64, generator=GENERATOR)
"""Of the images, pixel by pixel; their mean is zero."""


class Gains(EDMDenoiser):
    """D(x, sigma) = w x, with weights w (level, channel, y, x) of their own for each of some levels."""

    def __init__(self, levels: list[float], shape: tuple[int, ...] = SHAPE, begin: float = 0.5) -> None:
        super().__init__(nn.Identity(), 0.3)
        self.levels = torch.tensor(levels, dtype=torch.float64)
        self.gains = nn.Parameter(torch.full((len(levels), *shape), begin, dtype=torch.float64))

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        nearest = (sigma[:, None].double() - self.levels).abs().argmin(1)
        return self.gains[nearest] * x


def images(count: int, seed: int) -> torch.Tensor:
    """(count, *SHAPE) of the model."""
    return VARIANCE.sqrt() * normal(count, seed)


def normal(count: int, seed: int) -> torch.Tensor:
    """(count, *SHAPE) white noise."""
    return torch.randn(count, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def zero_mean(differences: torch.Tensor, limit: float = 4.5) -> None:
    """All means over the first axis are within `limit` standard errors of zero.

    A right estimator of 32 entries exceeds 4.5 in one of 4600 draws; the draws are fixed.
    """
    differences = differences.detach()
    error = differences.std(0) / len(differences) ** 0.5
    assert float((differences.mean(0).abs() / error.clamp_min(1e-300)).max()) < limit


def gradients(
    loss: Callable[[slice], torch.Tensor], parameter: torch.Tensor, count: int, parts: int = 100
) -> torch.Tensor:
    """Gradients (part, ...) of `loss(some of the images)`, for the images in `parts` parts."""
    size = count // parts
    return torch.stack(
        [torch.autograd.grad(loss(slice(size * part, size * (part + 1))), parameter)[0] for part in range(parts)]
    )


def minimise(denoiser: nn.Module, loss: Callable[[], torch.Tensor]) -> None:
    """By L-BFGS, to the end."""
    optimizer = torch.optim.LBFGS(
        denoiser.parameters(), max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)  # type: ignore[arg-type]
