"""Noise levels that a prior is trained on: one law for each kind."""

from __future__ import annotations

import math

import torch
from scanprior.models.preconditioning import geometric_levels


def draw_edm(count: int, low: float, high: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """Noise levels (count,): ln sigma ~ N(-1.5, 1.3^2), and one in ten log-uniform over the whole range.

    EDM's lognormal, moved to where data consistency leaves the prior something to decide; the rest keeps the far ends
    of the range defined.
    """
    usual = (torch.randn(count, generator=generator) * 1.3 - 1.5).exp()
    uniform = draw_log_uniform(count, low, high, generator)
    pick = torch.rand(count, generator=generator) < 0.1
    return torch.where(pick, uniform, usual).clamp(low, high)


def draw_log_uniform(count: int, low: float, high: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """Noise levels (count,) of the VE-SDE at times uniform in [0, 1] (Song et al. 2021)."""
    return (math.log(low) + math.log(high / low) * torch.rand(count, generator=generator)).exp()


def draw_discrete(
    count: int, low: float, high: float, levels: int, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Noise levels (count,), each of `levels` geometric ones equally likely (Song and Ermon 2020)."""
    return geometric_levels(high, low, levels)[torch.randint(levels, (count,), generator=generator)]
