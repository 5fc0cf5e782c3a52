"""DDS: decomposed diffusion sampling (Chung, Lee, Ye 2024), in the form for Gaussian noise.

Each step denoises, solves a least-squares problem that weighs the denoised image against the data by their variances,
and goes down one noise level.
"""

from __future__ import annotations

import itertools
import math

import torch
from pydantic import Field

from .denoiser_prior import Prior
from .posterior import Problem, SamplerSettings, sample_posterior
from .scan import Progress, Reconstruction, Scan


class DDSSettings(SamplerSettings):
    """Settings of `dds`."""

    steps: int = Field(30, ge=2, le=1000, description="network evaluations a sample (NFE)")
    eta: float = Field(1.0, ge=0, le=1, description="share of fresh noise in each step; 0 is deterministic")
    sigma_end: float = Field(0.0125, gt=0, description="last noise level: below that of the images themselves")
    cg_iterations: int = Field(4, ge=1, le=100, description="CG iterations of the data consistency")
    max_ratio: float = Field(50.0, gt=0, description="cap of the prior's variance over that of the data")


def noise_levels(start: float, end: float, steps: int) -> list[float]:
    """`steps` geometric levels from `start` to `end`, then 0."""
    ratio = math.log(end / start) / max(1, steps - 1)
    return [start * math.exp(ratio * step) for step in range(steps)] + [0.0]


def dds(scan: Scan, prior: Prior, settings: DDSSettings, progress: Progress | None = None) -> Reconstruction:
    """Posterior samples of the image by DDS; see `sample_posterior` for what is returned and raised.

    Solves in each step `(A^H A / s_y^2 + I / r^2) x0 = A^H y / s_y^2 + D(x, s) / r^2`, `r^2 = s^2 sd^2 / (s^2 + sd^2)`,
    with r^2 / s_y^2 at most `max_ratio`, then `x <- x0 + s_next (sqrt(1 - eta^2) (x - D) / s + eta n)`. Noise levels
    here are per real channel; s_y is that of the data in the prior's scale.
    """
    return sample_posterior("dds", dds_samples, scan, prior, settings, progress)


def dds_samples(problem: Problem, prior: Prior, settings: DDSSettings, progress: Progress) -> torch.Tensor:
    """Samples (sample, ..., y, x), or (sample, ..., set, y, x): the `Sampler` of `dds`."""
    levels = noise_levels(settings.sigma_start, settings.sigma_end, settings.steps)
    image_variance = prior.sigma_data**2
    x = problem.begin(levels[0])
    for step, (level, following) in enumerate(itertools.pairwise(levels)):
        denoised = prior.denoise(x, level)
        variance = level**2 * image_variance / (level**2 + image_variance)
        ratio = settings.max_ratio
        if variance < ratio * problem.data_variance:
            ratio = variance / problem.data_variance
        consistent = problem.proximal(denoised, ratio, settings.cg_iterations)
        kept = math.sqrt(1 - settings.eta**2) / level
        x = consistent + following * (kept * (x - denoised) + settings.eta * problem.noise())
        progress(step + 1, settings.steps)
    return x
