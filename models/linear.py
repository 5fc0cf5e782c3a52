"""Linear reconstructions: zero-filled, and CG-SENSE with a Tikhonov term."""

from __future__ import annotations

import time
from typing import Literal

import torch
from pydantic import Field
from scanprior.models.forward import SenseModel
from scanprior.models.fourier import ifft2c
from scanprior.models.scan import Progress, Reconstruction, Scan, Settings


class ZeroFilledSettings(Settings):
    """Settings of `zero_filled`."""

    combine: Literal["auto", "rss", "maps"] = Field(
        "auto",
        description="how coils are combined: root-sum-of-squares, with maps, or with maps if the scan has them (auto)",
    )


class SenseSettings(Settings):
    """Settings of `sense`."""

    iterations: int = Field(30, gt=0, le=1000, description="the most iterations of the conjugate gradient")
    lam: float = Field(
        8.0,
        ge=0,
        description="Tikhonov weight in units of the scan's noise-to-signal power: 1 is the Wiener weight of a white "
        "image, images are smoother than white, so more is better; 0 is plain SENSE",
    )
    tolerance: float = Field(1e-4, ge=0, lt=1, description="stop when the relative residual is below this")


def zero_filled(
    scan: Scan, prior: None, settings: ZeroFilledSettings, progress: Progress | None = None
) -> Reconstruction:
    """Inverse Fourier transform of the k-space as it is, coils combined; no correction for the missing samples.

    Raises
    ------
    ValueError
        If `combine` is "maps" and the scan has none.
    """
    start = time.perf_counter()
    combine = settings.combine
    if combine == "auto":
        combine = "rss" if scan.maps is None else "maps"
    if combine == "maps":
        model = SenseModel.of(scan)
        image = combine_sets(model.H(scan.kspace), model)
    else:
        image = ifft2c(scan.kspace).abs().square().sum(-3).sqrt().to(scan.kspace.dtype)
    if progress is not None:
        progress(1, 1)
    return Reconstruction(
        image, info={"method": "zero-filled", "combine": combine, "seconds": time.perf_counter() - start}
    )


def sense(scan: Scan, prior: None, settings: SenseSettings, progress: Progress | None = None) -> Reconstruction:
    """CG-SENSE: the minimiser of ||A x - y||^2 + ridge ||x||^2, ridge = lam * sigma^2 / signal power.

    The signal power is that of `signal_power`, one number for each batch element, known for any prospective scan.

    Raises
    ------
    ValueError
        If the scan has no maps or shapes do not fit.
    """
    start = time.perf_counter()
    model = SenseModel.of(scan)
    adjoint = model.H(scan.kspace)
    ridge = settings.lam * noise_to_signal(scan, model)
    done = 0

    def count(step: int, steps: int) -> None:
        nonlocal done
        done = step
        if progress is not None:
            progress(step, steps)

    images = model.solve(adjoint, ridge, iterations=settings.iterations, tolerance=settings.tolerance, progress=count)
    return Reconstruction(
        combine_sets(images, model),
        info={"method": "sense", "iterations": done, "lam": settings.lam, "seconds": time.perf_counter() - start},
    )


def noise_to_signal(scan: Scan, model: SenseModel) -> torch.Tensor:
    """sigma^2 over the mean |x|^2 of the image on the maps' support, for each batch element.

    The image's energy is taken from the sampled k-space less its expected noise. The centre of k-space, which every
    scan samples, holds nearly all of it.

    Returns
    -------
    Real tensor that broadcasts against images (..., y, x) or (..., set, y, x). 1 where a scan holds noise only.
    """
    image_dims = len(model.image_shape)
    coils = scan.kspace.shape[-3]
    energy = (scan.kspace.abs().square() * (model.mask.unsqueeze(-3) != 0)).sum((-3, -2, -1))
    sampled = (model.mask != 0).expand(*model.mask.shape[:-2], *model.maps.shape[-2:]).sum((-2, -1))
    noise = scan.sigma**2 * coils * sampled
    any_map = model.maps.abs().amax(-3)
    if model.sets:
        any_map = any_map.amax(-3)
    support = (any_map > 0).sum((-2, -1)).clamp_min(1)
    power = (energy - noise).clamp_min(0) / support
    ratio = torch.where(power > scan.sigma**2, scan.sigma**2 / power.clamp_min(torch.finfo(power.dtype).tiny), 1.0)
    return ratio.reshape(*ratio.shape, *([1] * image_dims))


def threshold_unit(scan: Scan, model: SenseModel, adjoint: torch.Tensor) -> torch.Tensor:
    """What a sparse method's `lam` is relative to, for each batch element: the noise `sigma` of the scan.

    Noise in a unitary transform of an optimally combined image has this size, whatever the receiver's gain. A scan
    without noise (a simulated one) has no such size: at least 1/1000 of the 99th percentile of |A^H y| is taken.

    Returns
    -------
    Real tensor that broadcasts against images (..., y, x) or (..., set, y, x). Zero for an all-zero scan without noise.
    """
    image_dims = len(model.image_shape)
    scale = torch.quantile(adjoint.abs().flatten(-image_dims), 0.99, dim=-1)
    return torch.clamp_min(1e-3 * scale, scan.sigma).reshape(*scale.shape, *([1] * image_dims))


def combine_sets(images: torch.Tensor, model: SenseModel) -> torch.Tensor:
    """One image (..., y, x) of the images that a model reconstructs.

    With one set it is that image. With several the magnitude is the root sum of squares over the sets and the phase
    that of the first one (of the second where the first is zero): in a fold-over of anatomy the sets belong to
    different places, whose phases are unrelated, and a complex sum could cancel.

    Pixels without a map are set to zero: the data say nothing of them, and a prior fills them with what suits it.
    """
    images = images * (model.maps != 0).any(-3)
    if not model.sets:
        return images
    phase = images.select(-3, 0)
    for index in range(1, images.shape[-3]):
        phase = torch.where(phase == 0, images.select(-3, index), phase)
    return torch.sgn(phase) * images.abs().square().sum(-3).sqrt()
