"""DAPS: decoupled annealing posterior sampling (Zhang et al. 2025), with an exact Gaussian draw for its inner chain.

Each step draws a clean image given the noisy one and the data, and puts the next level's noise on it: levels are tied
by the clean image alone, so that an early mistake can be undone later.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal

import torch
from pydantic import Field

from .dds import noise_levels
from .denoiser_prior import Prior, check_levels
from .posterior import Problem, SamplerSettings, conditional_variance, measured_variance, sample_posterior
from .scan import Progress, Reconstruction, Scan


class DAPSSettings(SamplerSettings):
    """Settings of `daps`."""

    steps: int = Field(30, ge=2, le=1000, description="noise levels; NFE is this times ode_steps")
    ode_steps: int = Field(2, ge=1, le=50, description="Euler steps from the noisy to the clean image; 1: its mean")
    cg_iterations: int = Field(30, ge=1, le=500, description="the most CG iterations of the draw")
    spread: Literal["measured", "gaussian"] = Field(
        "measured", description="what r^2 is: measured on the noise drawn, or a Gaussian's of the prior's sigma_data"
    )
    tolerance: float = Field(3e-3, ge=0, lt=1, description="the draw's CG stops at this relative residual")
    max_ratio: float = Field(1000.0, gt=0, description="cap of the prior's variance over that of the data")
    last: Literal["draw", "mean"] = Field("draw", description="what the last level gives: a draw, or its mean")


def daps(scan: Scan, prior: Prior, settings: DAPSSettings, progress: Progress | None = None) -> Reconstruction:
    """Posterior samples of the image by DAPS; see `sample_posterior` for what is returned and raised.

    At each level s: xhat = D(x, s), or the end of the probability-flow ODE from x in `ode_steps` Euler steps; x0 is
    drawn from the Gaussian that N(xhat, r^2) and the data give, by solving
    `(A^H A / s_y^2 + I / r^2) x0 = A^H (y + s_y n1) / s_y^2 + (xhat + r n2) / r^2`; then x = x0 + s_next n.
    r^2 is `measured_variance`, or with `spread` gaussian `conditional_variance`; r^2 / s_y^2 is at most `max_ratio`.

    It claims the posterior's mean and variance, exactly for a Gaussian prior of variance sd^2 at any number of levels
    with `ode_steps` 1, `last` draw, CG to convergence and a start that is forgotten (a first level far above sd).
    `last` mean leaves out a variance of at most `sigma_end`^2. More `ode_steps` give a sharper xhat, and are not exact
    even for a Gaussian: xhat is then a sample, and r^2 counts its spread again. For other priors it is approximate:
    N(xhat, r^2), white, is.
    """
    check_levels(prior, settings.sigma_start, settings.sigma_end / settings.ode_steps)
    return sample_posterior("daps", sample_daps, scan, prior, settings, progress)


def sample_daps(problem: Problem, prior: Prior, settings: DAPSSettings, progress: Progress) -> torch.Tensor:
    """The samples of `daps`, in the prior's scale."""
    levels = noise_levels(settings.sigma_start, settings.sigma_end, settings.steps)
    x = problem.start
    for step, (level, following) in enumerate(itertools.pairwise(levels)):
        noise = problem.noise()
        clean = clean_image(prior, x + level * noise, level, settings.ode_steps)
        variance = torch.tensor(conditional_variance(prior, level), device=x.device)
        if settings.spread == "measured":
            variance = measured_variance(prior, level, noise, clean - x)
        x = draw(problem, clean, variance, settings, random=following > 0 or settings.last == "draw")
        progress(step + 1, settings.steps)
    return x


def clean_image(prior: Prior, x: torch.Tensor, level: float, ode_steps: int) -> torch.Tensor:
    """The probability-flow ODE from `level` to 0 in evenly spaced Euler steps; one step is D(x, level)."""
    for left in range(ode_steps, 0, -1):
        denoised = prior.denoise(x, level * left / ode_steps)
        x = denoised + (left - 1) / left * (x - denoised)
    return x


def draw(
    problem: Problem, centre: torch.Tensor, variance: torch.Tensor, settings: DAPSSettings, *, random: bool = True
) -> torch.Tensor:
    """A draw from the Gaussian that `centre` +- sqrt(variance) and the data give, or its mean.

    `variance` is real and broadcasts against `centre`.
    """
    data_variance = max(problem.data_variance, float(variance.max()) / settings.max_ratio)
    ridge = data_variance / variance
    adjoint, start = problem.adjoint, centre
    if random:
        adjoint = adjoint + math.sqrt(data_variance) * problem.model.H(problem.kspace_noise())
        centre = centre + variance.sqrt() * problem.noise()
    return problem.model.solve(
        adjoint + ridge * centre, ridge, start, iterations=settings.cg_iterations, tolerance=settings.tolerance
    )
