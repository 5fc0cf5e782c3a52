"""pULA: annealed Langevin sampling, preconditioned so that data of any condition are followed at every noise level.

The preconditioner is the covariance that the data and the noise level give together: no step size depends on the scan.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field

from .dds import noise_levels
from .denoiser_prior import Prior
from .posterior import Problem, SamplerSettings, sample_posterior
from .scan import Progress, Reconstruction, Scan


class PULASettings(SamplerSettings):
    """Settings of `pula`."""

    levels: int = Field(40, ge=2, le=1000, description="noise levels")
    level_steps: int = Field(4, ge=1, le=100, description="steps at each level; NFE is levels times this")
    sigma_end: float = Field(0.02, gt=0, description="last noise level")
    step: float = Field(1.0, gt=0, le=2, description="step h; at 2 the well-measured part is drawn anew in each step")
    cg_iterations: int = Field(10, ge=1, le=200, description="CG iterations of the preconditioner")
    spread: Literal["gaussian", "tight"] = Field(
        "gaussian", description="prior whose variance a step keeps: a Gaussian of sigma_data, or one far tighter than s"
    )
    max_ratio: float = Field(1000.0, gt=0, description="cap of the noise level's variance over that of the data")
    final_denoise: bool = Field(True, description="denoise at the end: one more evaluation, samples without noise")


def pula(scan: Scan, prior: Prior, settings: PULASettings, progress: Progress | None = None) -> Reconstruction:
    """Posterior samples of the image by pULA; see `sample_posterior` for what is returned and raised.

    At each level s the target is the prior blurred by s times the likelihood itself, `-A^H A / s_y^2` its curvature.
    With M = (A^H A / s_y^2 + I / s^2)^-1 and score = (D - x) / s^2 a step is
    `x += M [(h / 2) (A^H (y - A x) / s_y^2 + score) + a A^H n1 / s_y + b n2]`, by CG; s^2 / s_y^2 at most `max_ratio`.

    Langevin's own noise, a^2 = h and b^2 = h / s^2, gives a variance that is too large for a finite step: by
    1 / (1 - h q / 4), q between 0 and 1 the curvature of the target in units of that of M, a third where the data
    decide and h = 1. Here a^2 = h (1 - h / 4) and b^2 = h / s^2 - h^2 / (4 (sd^2 + s^2)), the noise that keeps the
    target's variance at any h when the prior is Gaussian with variance sd^2.

    It claims the posterior's mean and variance, exactly for such a prior in the limit of many levels, a last level far
    below sd and CG to convergence. For other priors a bias of the step remains: where the prior is tighter than sd the
    variance at level s is too large, by 1 / (1 - h / 4) at most; as it is a part of s^2 there, it goes away with s if
    there are levels enough. `spread` tight has sd = 0 in b: right across the prior's images, where most directions lie,
    and better images in few levels; along them it is too narrow, for the Gaussian by 1 - h / 4 at most.
    What the data leave open moves by h / 2 s^2 / (sd^2 + s^2) in a step only, and must settle before s is far below sd.
    """
    return sample_posterior("pula", sample_pula, scan, prior, settings, progress)


def sample_pula(problem: Problem, prior: Prior, settings: PULASettings, progress: Progress) -> torch.Tensor:
    """The samples of `pula`, in the prior's scale."""
    levels = noise_levels(settings.sigma_start, settings.sigma_end, settings.levels)[:-1]
    steps = settings.levels * settings.level_steps + settings.final_denoise
    x = problem.begin(levels[0])
    done = 0
    for level in levels:
        for _ in range(settings.level_steps):
            x = langevin_step(problem, prior, x, level, settings)
            done += 1
            progress(done, steps)
    if settings.final_denoise:
        x = prior.denoise(x, levels[-1])
        progress(steps, steps)
    return x


def langevin_step(
    problem: Problem, prior: Prior, x: torch.Tensor, level: float, settings: PULASettings
) -> torch.Tensor:
    """One preconditioned step at one level."""
    h = settings.step
    # everything is multiplied by the data's variance, so that the system is A^H A + ridge
    data_variance = max(problem.data_variance, level**2 / settings.max_ratio)
    ridge = data_variance / level**2
    drift = problem.residual(x) + ridge * (prior.denoise(x, level) - x)
    measured = problem.model.H(problem.kspace_noise()) * math.sqrt(h * (1 - h / 4) * data_variance)
    image_variance = prior.sigma_data**2 if settings.spread == "gaussian" else 0.0
    open_variance = h / level**2 - h**2 / 4 / (image_variance + level**2)
    noise = measured + data_variance * math.sqrt(open_variance) * problem.noise()
    return x + problem.model.solve(h / 2 * drift + noise, ridge, iterations=settings.cg_iterations)
