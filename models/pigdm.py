"""PiGDM: pseudo-inverse guided diffusion (Song et al. 2023), in its form for noisy data.

Each step asks how likely the data are, given the noisy image, when the clean image is a Gaussian about the denoised.
"""

from __future__ import annotations

import itertools
import math

import torch
from pydantic import Field

from .dds import noise_levels
from .denoiser_prior import Prior
from .posterior import Problem, SamplerSettings, conditional_variance, denoise_with_gradient, sample_posterior
from .scan import Progress, Reconstruction, Scan


class PiGDMSettings(SamplerSettings):
    """Settings of `pigdm`."""

    steps: int = Field(50, ge=2, le=1000, description="network evaluations a sample (NFE), each with its gradient")
    eta: float = Field(1.0, ge=0, le=1, description="0: deterministic (DDIM), 1: as random as the reverse SDE (DDPM)")
    cg_iterations: int = Field(10, ge=1, le=200, description="CG iterations of the pseudo-inverse")
    max_ratio: float = Field(1000.0, gt=0, description="cap of the prior's variance over that of the data")


def pigdm(scan: Scan, prior: Prior, settings: PiGDMSettings, progress: Progress | None = None) -> Reconstruction:
    """Posterior samples of the image by PiGDM; see `sample_posterior` for what is returned and raised.

    With x0 ~ N(D, r^2) given x (r^2 of `conditional_variance`) and y = A x0 + n the score of the data given x is
    `J^T A^H (A A^H r^2 + s_y^2)^-1 (y - A D) = J^T (A^H A + c)^-1 A^H (y - A D) / r^2`, c = s_y^2 / r^2, J the Jacobian
    of D. By Tweedie's formula the posterior's denoiser is `E = D + (s^2 / r^2) J^T (A^H A + c)^-1 A^H (y - A D)`: the
    guidance has no weight to choose. Then the step of DDIM (Song, Meng, Ermon 2021, eq. 12 and 16),
    `x <- E + s_next (sqrt(1 - e^2) (x - E) / s + e n)`, e = `eta` sqrt(1 - s_next^2 / s^2). r^2 / s_y^2 is at most
    `max_ratio`.

    It claims the posterior's mean and variance, exactly for a Gaussian prior of variance sd^2 in the limit of many
    steps, a first level far above sd and a last one far below. A finite step loses variance, relatively about
    ln(s / s_next); the last one takes E, and leaves out at most `sigma_end`^2. With `eta` 0 the start is forgotten only
    as sd / `sigma_start`. For other priors it is approximate: N(D, r^2) is.
    """
    return sample_posterior("pigdm", sample_pigdm, scan, prior, settings, progress)


def sample_pigdm(problem: Problem, prior: Prior, settings: PiGDMSettings, progress: Progress) -> torch.Tensor:
    """The samples of `pigdm`, in the prior's scale."""
    levels = noise_levels(settings.sigma_start, settings.sigma_end, settings.steps)
    x = problem.begin(levels[0])
    for step, (level, following) in enumerate(itertools.pairwise(levels)):
        mean = posterior_mean(problem, prior, x, level, settings)
        fresh = settings.eta * math.sqrt(1 - (following / level) ** 2)
        x = mean + following * math.sqrt(1 - fresh**2) / level * (x - mean)
        if fresh > 0 and following > 0:
            x = x + following * fresh * problem.noise()
        progress(step + 1, settings.steps)
    return x


def posterior_mean(
    problem: Problem, prior: Prior, x: torch.Tensor, level: float, settings: PiGDMSettings
) -> torch.Tensor:
    """E[x0 | x, y], of the shape of `x`; one network evaluation with its gradient."""
    # Not `measured_variance`: J differs between directions, and where it is far above its mean J / r^2 would overshoot.
    variance = conditional_variance(prior, level)
    ridge = max(problem.data_variance / variance, 1 / settings.max_ratio)

    def cotangent(denoised: torch.Tensor, which: slice) -> torch.Tensor:
        return problem.model.solve(problem.residual(denoised), ridge, iterations=settings.cg_iterations)

    denoised, guidance = denoise_with_gradient(prior, x, level, cotangent)
    return denoised + level**2 / variance * guidance
