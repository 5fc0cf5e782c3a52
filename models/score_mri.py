"""Score-MRI (Chung & Ye, Medical Image Analysis 2022): predictor-corrector sampling of a VE-SDE, held to the data.

Algorithms 2 to 5 of the paper are one walk down the noise levels. They differ in what is walked with: the combined
image, or all coil images; and in how it is made consistent with the data. Algorithm 6 (CCDF) is any of them from a
good image and a small `sigma_start`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field

from .dds import noise_levels
from .denoiser_prior import Prior
from .forward import SenseModel
from .fourier import fft2c, ifft2c
from .posterior import Problem, SamplerSettings, sample_posterior
from .scan import Progress, Reconstruction, Scan
from .starting_image import Start

Draw = Callable[[], torch.Tensor]
Denoise = Callable[[torch.Tensor, float], torch.Tensor]
Consistent = Callable[[torch.Tensor], torch.Tensor]
Correct = Callable[[torch.Tensor, int], torch.Tensor]
"""Of an image and the number of the step, from 0."""


class PCSettings(SamplerSettings):
    """Settings of `pc`. The paper's own: steps 2000, sigma 378 to 0.01, with a prior trained to it."""

    samples: int = Field(4, ge=1, le=256, description="posterior samples; their mean is the image")
    algorithm: Literal["real", "complex", "coils", "hybrid"] = Field(
        "complex",
        description="of the paper: real (2), complex (3; the SENSE-combined image), coils (4: each coil image on its "
        "own, then root sum of squares), hybrid (5: coils, with a SENSE correction now and then)",
    )
    start: Start = Field(
        "noise", description="image to begin with: `noise` is none; CCDF takes another and a small sigma_start"
    )
    sigma_start: float = Field(10.0, gt=0, le=1e4, description="first noise level")
    sigma_end: float = Field(
        0.025, gt=0, description="last noise level: about that of the data, whose noise is inserted at every step"
    )
    steps: int = Field(500, ge=2, le=10000, description="predictor steps, one a noise level")
    corrector_steps: int = Field(1, ge=0, le=20, description="Langevin steps after each predictor step")
    snr: float = Field(0.16, gt=0, le=1, description="r of the corrector: its step over that of the noise it adds")
    lam: float = Field(1.0, gt=0, le=1, description="weight of the data consistency, that of hybrid's correction apart")
    sense_every: int = Field(1, ge=1, le=1000, description="of hybrid: steps from one SENSE correction to the next (m)")

    @property
    def by_coil(self) -> bool:
        """Whether it is the coil images that are sampled."""
        return self.algorithm in ("coils", "hybrid")

    def images_per_sample(self, coils: int) -> int:
        """All coil images, or the combined one."""
        return coils if self.by_coil else 1


def pc(scan: Scan, prior: Prior, settings: PCSettings, progress: Progress | None = None) -> Reconstruction:
    """Samples of the image by Score-MRI; see `sample_posterior` for what is returned and raised.

    From level s to the next one t, with score(x, s) = (D(x, s) - x) / s^2:

        predictor   x <- x + (s^2 - t^2) score(x, s) + sqrt(s^2 - t^2) g
        corrector   x <- x + e score(x, t) + sqrt(2 e) g,   e = 2 (r |g| / |score(x, t)|)^2, image by image

    each followed by data consistency: x + lam A^H (y - A x) of the combined image (algorithms 2 and 3; for `real` its
    real part), x_c + lam F^H P (y_c - F x_c) of each coil image (4 and 5). The last level is 0 and has the
    predictor's mean alone, which is D. NFE is steps + (steps - 1) corrector_steps; all coils in one batch count once.

    The data are inserted as measured, with their noise: this is no sample of the posterior unless they have none.

    Raises
    ------
    ValueError
        Also if the coil images are asked for and the scan has several sets of maps.
    """
    return sample_posterior("pc", sample_pc, scan, prior, settings, progress)


def sample_pc(problem: Problem, prior: Prior, settings: PCSettings, progress: Progress) -> torch.Tensor:
    """Samples (sample, ..., y, x) of a problem, see `pc`."""
    if settings.by_coil:
        return _coil_by_coil(problem, prior, settings, progress)
    if settings.algorithm == "real":
        return _real(problem, prior, settings, progress)
    return predictor_corrector(
        problem.begin(settings.sigma_start), prior.denoise, problem.noise,
        lambda x: x + settings.lam * problem.residual(x), settings, progress,
    )  # fmt: skip


def predictor_corrector(
    x: torch.Tensor,
    denoise: Denoise,
    draw: Draw,
    consistent: Consistent,
    settings: PCSettings,
    progress: Progress,
    correct: Correct = lambda x, _: x,
) -> torch.Tensor:
    """The walk that all algorithms share, from images `x` (..., y, x) with noise of `settings.sigma_start`.

    Parameters
    ----------
    draw
        Gives noise of the shape of `x`, of unit variance in each real channel that the images have.
    consistent
        Data consistency, after every update.
    correct
        What else is done to the images at the end of a step.
    """

    def score(x: torch.Tensor, level: float) -> torch.Tensor:
        return (denoise(x, level) - x) / level**2

    levels = noise_levels(settings.sigma_start, settings.sigma_end, settings.steps)
    for step, (level, following) in enumerate(itertools.pairwise(levels)):
        gap = level**2 - following**2
        x = x + gap * score(x, level)
        if following == 0:
            x = consistent(x)
        else:
            x = consistent(x + math.sqrt(gap) * draw())
            for _ in range(settings.corrector_steps):
                direction, noise = score(x, following), draw()
                size = 2 * (settings.snr * _norm(noise) / _norm(direction)) ** 2
                x = consistent(x + size * direction + (2 * size).sqrt() * noise)
        x = correct(x, step)
        progress(step + 1, settings.steps)
    return x


def _real(problem: Problem, prior: Prior, settings: PCSettings, progress: Progress) -> torch.Tensor:
    """Algorithm 2. The prior knows complex images: it is shown the imaginary part, zero, under noise as well."""

    def denoise(x: torch.Tensor, level: float) -> torch.Tensor:
        return _real_part(prior.denoise(x + 1j * level * problem.noise().real, level))

    return predictor_corrector(
        _real_part(problem.begin(settings.sigma_start)), denoise, lambda: _real_part(problem.noise()),
        lambda x: _real_part(x + settings.lam * problem.residual(x)), settings, progress,
    )  # fmt: skip


def _coil_by_coil(problem: Problem, prior: Prior, settings: PCSettings, progress: Progress) -> torch.Tensor:
    """Algorithms 4 and 5: samples (sample, ..., coil, y, x), combined in the end."""
    model = problem.model
    if model.sets:
        raise ValueError(
            f"algorithm {settings.algorithm!r}: for one set of maps only, and this scan has several; "
            "use algorithm: complex"
        )
    mask = model.mask.unsqueeze(-3)
    # a prior that goes by the phase of the image must have each coil image's own
    rough = model.solve(problem.adjoint, 0.01, iterations=settings.start_iterations)
    of_coils = prior.for_image(model.maps * rough.unsqueeze(-3))

    def correct(x: torch.Tensor, step: int) -> torch.Tensor:
        left = settings.steps - 1 - step
        if settings.algorithm == "coils" or left % settings.sense_every:
            return x
        return sense_correction(problem, x, 1.0 - 0.8 * step / (settings.steps - 1))

    begin = model.maps * problem.start.unsqueeze(-3) + settings.sigma_start * problem.kspace_noise()
    x = predictor_corrector(
        begin, of_coils.denoise, problem.kspace_noise,
        lambda x: x + settings.lam * ifft2c(problem.kspace - mask * fft2c(x)), settings, progress, correct,
    )  # fmt: skip
    return root_sum_of_squares(model, x)


def sense_correction(problem: Problem, coil_images: torch.Tensor, lam: float) -> torch.Tensor:
    """x_c + lam S_c A^H (y - A x), x = sum conj(S_c) x_c, of coil images (sample, ..., coil, y, x)."""
    maps = problem.model.maps
    combined = (maps.conj() * coil_images).sum(-3)
    return coil_images + lam * maps * problem.residual(combined).unsqueeze(-3)


def root_sum_of_squares(model: SenseModel, coil_images: torch.Tensor) -> torch.Tensor:
    """sqrt(sum |x_c|^2) with the phase, which it lacks, of sum conj(S_c) x_c: (..., coil, y, x) to (..., y, x)."""
    combined = (model.maps.conj() * coil_images).sum(-3)
    return torch.sgn(combined) * coil_images.abs().square().sum(-3).sqrt()


def _norm(images: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(images, dim=(-2, -1), keepdim=True)


def _real_part(images: torch.Tensor) -> torch.Tensor:
    return torch.complex(images.real, torch.zeros_like(images.real))
