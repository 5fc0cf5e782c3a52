"""DPS: diffusion posterior sampling (Chung et al. 2023) on Karras's noise levels, as Ravula et al. 2023 use it.

Each step follows the prior down one noise level and then goes a little way down the gradient of the data's misfit.
"""

from __future__ import annotations

import itertools
import math

import torch
from pydantic import Field

from .denoiser_prior import Prior
from .posterior import Problem, SamplerSettings, denoise_with_gradient, sample_posterior
from .scan import Progress, Reconstruction, Scan

REFERENCE_EDGE = 384
"""Edge of the images that `weight` is for (those of Ravula et al. 2023)."""


class DPSSettings(SamplerSettings):
    """Settings of `dps`."""

    steps: int = Field(50, ge=2, le=1000, description="network evaluations a sample (NFE), each with its gradient")
    sigma_end: float = Field(0.01, gt=0, description="last noise level")
    rho: float = Field(7.0, ge=1, le=100, description="bend of the noise levels: 1 is linear, much is geometric")
    weight: float = Field(10.0, gt=0, le=1000, description="length of the data step: weight / ||A D(x) - y||")
    s_churn: float = Field(0.0, ge=0, description="noise put back in all steps together; 0 is deterministic")
    s_min: float = Field(0.0, ge=0, description="noise is put back at this level and above")
    s_max: float = Field(math.inf, gt=0, description="noise is put back at this level and below")
    s_noise: float = Field(1.0, gt=0, le=2, description="standard deviation of the noise that is put back")


def karras_levels(start: float, end: float, steps: int, rho: float = 7.0) -> list[float]:
    """`steps` levels from `start` to `end`, evenly spaced in their rho-th root, then 0 (Karras et al. 2022, eq. 5)."""
    first, last = start ** (1 / rho), end ** (1 / rho)
    return [(first + step / max(1, steps - 1) * (last - first)) ** rho for step in range(steps)] + [0.0]


def dps(scan: Scan, prior: Prior, settings: DPSSettings, progress: Progress | None = None) -> Reconstruction:
    """Samples by DPS; see `sample_posterior` for what is returned and raised.

    Ravula et al. 2023, algorithm 1: with noise put back from level s to s' (`s_churn`, Karras et al. 2022, algorithm 2)
    an Euler step `x + (s_next - s') (x - D(x, s')) / s'`, less `weight / ||r||` times the gradient of ||r||^2,
    r = A D(x, s') - y, with respect to x.

    The paper's own run is start: noise, sigma_start: 80, sigma_end: 0.002, steps: 100. A start from CG-SENSE is better.

    Two things are added. The step grows with the edge of the image (`REFERENCE_EDGE`): a gradient of that length is
    spread over all pixels, and a setting has to mean the same in all sizes. And it is at most 1/2, beyond which it
    would overshoot where the network passes the image unchanged: else it never settles on data with little noise.

    It claims images, not posterior samples: the likelihood of x is that of the one image D(x), its weight is not the
    noise's, and for a Gaussian prior too mean and variance are not the posterior's. Fully sampled data without noise
    are reproduced.
    """
    return sample_posterior("dps", sample_dps, scan, prior, settings, progress)


def sample_dps(problem: Problem, prior: Prior, settings: DPSSettings, progress: Progress) -> torch.Tensor:
    """The samples of `dps`, in the prior's scale."""
    levels = karras_levels(settings.sigma_start, settings.sigma_end, settings.steps, settings.rho)
    churn = min(settings.s_churn / settings.steps, math.sqrt(2) - 1)
    x = problem.begin(levels[0])
    for step, (level, following) in enumerate(itertools.pairwise(levels)):
        if churn > 0 and settings.s_min <= level <= settings.s_max:
            noisier = min(level * (1 + churn), max(level, prior.sigma_max))
            x = x + math.sqrt(noisier**2 - level**2) * settings.s_noise * problem.noise()
            level = noisier
        denoised, descent = data_step(problem, prior, x, level, settings.weight)
        x = x + (following - level) / level * (x - denoised) - descent
        progress(step + 1, settings.steps)
    return x


def data_step(
    problem: Problem, prior: Prior, x: torch.Tensor, level: float, weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """D(x, level), and the step down the gradient of ||A D(x) - y||^2, both of the shape of `x`."""
    rows, columns = x.shape[-2:]
    longest = weight * math.sqrt(rows * columns) / REFERENCE_EDGE
    image_dims = len(problem.model.image_shape)

    def cotangent(denoised: torch.Tensor, which: slice) -> torch.Tensor:
        residual = problem.model(denoised) - problem.kspace
        norm = residual.abs().square().sum((-3, -2, -1)).sqrt()
        rate = (longest / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(0.5)
        return 2 * rate.reshape(*rate.shape, *[1] * image_dims) * problem.model.H(residual)

    return denoise_with_gradient(prior, x, level, cotangent)
