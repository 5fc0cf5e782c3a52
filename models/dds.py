"""DDS: decomposed diffusion sampling (Chung, Lee, Ye 2024), in the form for Gaussian noise.

Each step denoises, solves a least-squares problem that weighs the denoised image against the data by their variances,
and goes down one noise level.
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import replace
from types import EllipsisType

import torch
from pydantic import Field, model_validator

from .forward import SenseModel
from .linear import combine_sets
from .prior import DiffusionPrior
from .scan import Progress, Reconstruction, Scan, Settings

MAX_PIXELS = 1 << 23
"""Pixels of all samples that are sampled at once: 64 MiB a tensor, and a handful of tensors for each coil."""


class DDSSettings(Settings):
    """Settings of `dds`. Noise levels are per real channel, in the prior's scale (99.5th percentile at 1)."""

    steps: int = Field(30, ge=2, le=1000, description="network evaluations a sample (NFE)")
    samples: int = Field(8, ge=1, le=256, description="posterior samples; their mean is the image")
    eta: float = Field(1.0, ge=0, le=1, description="share of fresh noise in each step; 0 is deterministic")
    sigma_start: float = Field(1.0, gt=0, le=80, description="noise put on the CG-SENSE image at the start")
    sigma_end: float = Field(0.025, gt=0, description="last noise level: about that of the images themselves")
    cg_iterations: int = Field(4, ge=1, le=100, description="CG iterations of the data consistency")
    max_ratio: float = Field(50.0, gt=0, description="cap of the prior's variance over that of the data")
    start_iterations: int = Field(15, ge=1, le=200, description="CG iterations of the starting image")
    seed: int = Field(0, ge=0, description="seed of all draws; the same on every device")

    @model_validator(mode="after")
    def _levels_fall(self) -> DDSSettings:
        if self.sigma_end >= self.sigma_start:
            raise ValueError(f"sigma_end ({self.sigma_end}) must be below sigma_start ({self.sigma_start})")
        return self


def noise_levels(start: float, end: float, steps: int) -> list[float]:
    """`steps` geometric levels from `start` to `end`, then 0."""
    ratio = math.log(end / start) / max(1, steps - 1)
    return [start * math.exp(ratio * step) for step in range(steps)] + [0.0]


def dds(scan: Scan, prior: DiffusionPrior, settings: DDSSettings, progress: Progress | None = None) -> Reconstruction:
    """Posterior samples of the image by DDS; their mean, and the standard deviation of their magnitudes.

    Solves in each step `(A^H A / s_y^2 + I / r^2) x0 = A^H y / s_y^2 + D(x, s) / r^2`, `r^2 = s^2 sd^2 / (s^2 + sd^2)`,
    with r^2 / s_y^2 at most `max_ratio`, then `x <- x0 + s_next (sqrt(1 - eta^2) (x - D) / s + eta n)`. Noise levels
    here are per real channel; s_y is that of the data in the prior's scale.

    Parameters
    ----------
    scan
        A batch shares one intensity scale, as the slices of a volume must. With several sets of maps each set's image
        is one image to the prior.

    Returns
    -------
    Reconstruction with `std` (None for one sample); zero, both, where the maps are.

    Raises
    ------
    ValueError
        If the scan has no maps or no signal, or the prior was not trained on the noise levels asked for.
    """
    began = time.perf_counter()
    if settings.sigma_end < prior.sigma_min or settings.sigma_start > prior.sigma_max:
        raise ValueError(
            f"noise levels from sigma_start {settings.sigma_start} to sigma_end {settings.sigma_end} asked for; "
            f"prior {prior.name!r} was trained from {prior.sigma_max} to {prior.sigma_min}"
        )
    model = SenseModel.of(scan)
    adjoint = model.H(scan.kspace)
    # the weight only steadies the unmeasured directions; the sampler replaces them anyway
    start = model.solve(adjoint, 0.01, iterations=settings.start_iterations)
    scale = intensity_scale(start)
    generator = torch.Generator().manual_seed(settings.seed)
    pieces = _pieces(scan, settings.samples)
    images, spreads = [], []
    for number, (part, piece) in enumerate(pieces):

        def tell(step: int, steps: int, number: int = number) -> None:
            if progress is not None:
                progress(number * steps + step, len(pieces) * steps)

        begin, measured = start[part] / scale, adjoint[part] / scale
        samples = scale * _sample(piece, prior, settings, begin, measured, scale, generator, tell)
        images.append(samples.mean(0))
        spreads.append(samples.abs().std(0) if settings.samples > 1 else None)
    std = torch.cat([spread for spread in spreads if spread is not None]) if settings.samples > 1 else None
    return Reconstruction(
        torch.cat(images),
        std,
        {
            "method": "dds",
            "prior": prior.name,
            "nfe": settings.steps,
            "samples": settings.samples,
            "scale": scale,
            "seconds": time.perf_counter() - began,
        },
    )


def _pieces(scan: Scan, samples: int) -> list[tuple[slice | EllipsisType, Scan]]:
    """A scan in pieces that fit into memory together with all their samples: the slices of a volume a few at a time."""
    rows, columns = scan.kspace.shape[-2:]
    at_once = max(1, MAX_PIXELS // (samples * rows * columns))
    if scan.kspace.ndim != 4 or len(scan.kspace) <= at_once:
        return [(..., scan)]
    assert scan.maps is not None
    of_each = scan.maps.ndim >= scan.kspace.ndim  # else one set of maps serves all slices
    pieces: list[tuple[slice | EllipsisType, Scan]] = []
    for first in range(0, len(scan.kspace), at_once):
        part = slice(first, first + at_once)
        mask = scan.mask[part] if scan.mask.ndim == 3 else scan.mask
        maps = scan.maps[part] if of_each else scan.maps
        pieces.append((part, replace(scan, kspace=scan.kspace[part], mask=mask, maps=maps)))
    return pieces


def _sample(
    scan: Scan,
    prior: DiffusionPrior,
    settings: DDSSettings,
    start: torch.Tensor,
    measured: torch.Tensor,
    scale: float,
    generator: torch.Generator,
    progress: Progress,
) -> torch.Tensor:
    """The sampler itself: images (sample, ..., y, x) from `start` and `measured` = A^H y, all in the prior's scale."""
    model = SenseModel.of(scan)
    data_variance = (scan.sigma / scale) ** 2 / 2
    image_variance = prior.denoiser.sigma_data**2
    shape = (settings.samples, *start.shape)

    def noise() -> torch.Tensor:
        return torch.view_as_complex(torch.randn((*shape, 2), generator=generator)).to(start.device)

    levels = noise_levels(settings.sigma_start, settings.sigma_end, settings.steps)
    x = start + levels[0] * noise()
    for step, (level, following) in enumerate(itertools.pairwise(levels)):
        denoised = prior.denoise(x, level)
        variance = level**2 * image_variance / (level**2 + image_variance)
        ridge = 1 / min(variance / data_variance, settings.max_ratio)
        consistent = model.solve(measured + ridge * denoised, ridge, denoised, iterations=settings.cg_iterations)
        kept = math.sqrt(1 - settings.eta**2) / level
        x = consistent + following * (kept * (x - denoised) + settings.eta * noise())
        progress(step + 1, settings.steps)
    return combine_sets(x, model)


def intensity_scale(image: torch.Tensor) -> float:
    """99.5th percentile of the magnitude: what the prior's images have at 1.

    Raises
    ------
    ValueError
        If the image is zero.
    """
    magnitude = image.abs().flatten()
    scale = float(magnitude.kthvalue(max(1, round(0.995 * magnitude.numel()))).values)
    if not scale > 0:
        raise ValueError("the image to begin with is zero nearly everywhere: the scan holds no signal")
    return scale
