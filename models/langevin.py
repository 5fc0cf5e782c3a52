"""Annealed Langevin posterior sampling, CSGM-Langevin (Jalal et al., NeurIPS 2021; step sizes of Song & Ermon 2020).

At each noise level a few steps of Langevin dynamics: up the score of the prior, up the likelihood of the data, and
noise. The levels go down until the law of the samples is the posterior.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator

from .dds import noise_levels
from .denoiser_prior import Prior
from .posterior import Problem, SamplerSettings, sample_posterior
from .scan import Progress, Reconstruction, Scan
from .starting_image import Start


class LangevinSettings(SamplerSettings):
    """Settings of `langevin`. The paper's own: levels 1155, sigma_end 0.0066, step 1.15, data_term norm-matched."""

    samples: int = Field(4, ge=1, le=256, description="posterior samples; their mean is the image")
    start: Start = Field(
        "noise", description="image to begin with; `noise`: real and imaginary part uniform in [0, 1], as in the paper"
    )
    sigma_start: float = Field(1.23, gt=0, le=1e4, description="first noise level")
    sigma_end: float = Field(0.01, gt=0, description="last noise level")
    levels: int = Field(150, ge=2, le=10000, description="noise levels, geometric")
    steps_per_level: int = Field(3, ge=1, le=100, description="Langevin steps, network evaluations, a level")
    step: float = Field(
        0.2, gt=0, lt=2, description="step size over sigma^2 (the paper's epsilon / s_L^2), below 1 for the exact term"
    )
    data_term: Literal["exact", "norm-matched"] = Field(
        "exact",
        description="exact: gradient of the log-likelihood; norm-matched: `data_weight` times as long as the score",
    )
    data_weight: float = Field(5.0, gt=0, le=100, description="of the norm-matched data term")

    @model_validator(mode="after")
    def _step_is_stable(self) -> LangevinSettings:
        # the curvatures of prior and data are each at most 1 / sigma^2, and b times their sum must be below 2
        if self.data_term == "exact" and self.step >= 1:
            raise ValueError(f"step ({self.step}) must be below 1 with data_term 'exact': it would diverge")
        return self


def langevin(scan: Scan, prior: Prior, settings: LangevinSettings, progress: Progress | None = None) -> Reconstruction:
    """Posterior samples of the image by annealed Langevin dynamics; see `sample_posterior` for what is returned.

    At level s, with b = step s^2 (that is epsilon (s / s_L)^2):

        x <- x + b ((D(x, s) - x) / s^2 + A^H (y - A x) / (s_y^2 + s^2)) + N(0, 2 b)

    and D(x, s_L) at the end. All variances are per real channel. The s^2 beside the noise s_y^2 of the data is the
    poster's gamma_t^2: x is an image with noise s, which A maps into k-space with an eigenvalue of at most 1. It keeps
    b times the curvature below 2 at every level, and vanishes beside s_y where `sigma_end` is well below it: what is
    drawn there is the posterior, if there were levels enough to settle. With `data_term: norm-matched` (the authors'
    code) A^H (y - A x) is given `data_weight` times the norm of the score instead, image by image; that knows nothing
    of s_y and is no exact posterior.
    """
    return sample_posterior("langevin", sample_langevin, scan, prior, settings, progress)


def sample_langevin(problem: Problem, prior: Prior, settings: LangevinSettings, progress: Progress) -> torch.Tensor:
    """Samples (sample, ..., y, x) of a problem, see `langevin`."""
    levels = noise_levels(settings.sigma_start, settings.sigma_end, settings.levels)[:-1]
    x = _uniform(problem) if settings.start == "noise" else problem.begin(levels[0])
    for number, level in enumerate(levels):
        size = settings.step * level**2
        for _ in range(settings.steps_per_level):
            x = x + size * drift(problem, prior, x, level, settings) + math.sqrt(2 * size) * problem.noise()
        progress(number + 1, len(levels))
    return prior.denoise(x, levels[-1])


def drift(problem: Problem, prior: Prior, x: torch.Tensor, level: float, settings: LangevinSettings) -> torch.Tensor:
    """Score of the prior and data term, of the shape of `x` (sample, ..., y, x)."""
    score = (prior.denoise(x, level) - x) / level**2
    data = problem.residual(x)
    if settings.data_term == "exact":
        return score + data / (problem.data_variance + level**2)
    image_dims = tuple(range(-len(problem.model.image_shape), 0))
    wanted, found = (torch.linalg.vector_norm(part, dim=image_dims, keepdim=True) for part in (score, data))
    return score + data * (settings.data_weight * wanted / found.clamp_min(torch.finfo(found.dtype).tiny))


def _uniform(problem: Problem) -> torch.Tensor:
    """Complex images (sample, ..., y, x), each part uniform in [0, 1]."""
    drawn = torch.rand((problem.samples, *problem.start.shape, 2), generator=problem.generator)
    return torch.view_as_complex(drawn).to(problem.start.device)
