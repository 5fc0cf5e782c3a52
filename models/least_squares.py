"""Least squares with early stopping: no regulariser but the number of iterations, which the noise decides."""

from __future__ import annotations

import time
from typing import Literal

import torch
from pydantic import Field

from .forward import SenseModel
from .linear import combine_sets
from .scan import Progress, Reconstruction, Scan, Settings
from .solvers import inner


class LeastSquaresSettings(Settings):
    """Settings of `least_squares`."""

    algorithm: Literal["cgls", "gradient"] = Field(
        "cgls",
        description="conjugate gradients, or steepest descent: slower, and its path to the solution is smoother",
    )
    iterations: int = Field(100, gt=0, le=100000, description="the most iterations")
    tau: float = Field(
        1.0,
        gt=0,
        le=100,
        description="stop when the residual is this many times the noise; above 1 stops sooner, which is smoother",
    )
    tolerance: float = Field(
        1e-4, ge=0, lt=1, description="stop, too, when the gradient A^H (y - A x) is this share of A^H y or less"
    )


def least_squares(
    scan: Scan, prior: None, settings: LeastSquaresSettings, progress: Progress | None = None
) -> Reconstruction:
    """Go down ||A x - y||^2 from zero until the residual is the noise (Morozov's discrepancy principle).

    Stops when ||A x - y||^2 <= tau^2 samples sigma^2, samples counted over all coils. Iterating further would fit the
    noise. Errors of the maps may keep the residual above it: then the gradient's size or the bound stops. Every slice
    of a batch stops by itself.

    Algorithm: Hestenes and Stiefel 1952, section 10 (`cgls`); `gradient` is the same without conjugation: gradient
    descent with the exact line search that a quadratic allows. The residual never rises in either.

    `info["residuals"]` has, for each iteration, ||A x - y|| over that of the noise, of the slice where it is largest
    (none for a scan without noise, which runs to the gradient's tolerance); `info["stopped"]` says by what it ended:
    discrepancy, gradient or iterations.

    Raises
    ------
    ValueError
        If the scan has no maps or shapes do not fit.
    """
    start = time.perf_counter()
    model = SenseModel.of(scan)
    residual = scan.kspace * (model.mask != 0).unsqueeze(-3)
    gradient = model.H(residual)
    of_image = *scan.kspace.shape[:-3], *[1] * len(model.image_shape)  # one number a slice, beside images
    of_data = *scan.kspace.shape[:-3], 1, 1, 1
    noise = scan.sigma**2 * sample_count(scan.kspace, model).reshape(of_data)

    def power(values: torch.Tensor) -> torch.Tensor:
        return inner(values, values, len(of_data) - 3)

    image = torch.zeros_like(gradient)
    direction, slope = gradient, power(gradient)
    least = settings.tolerance**2 * slope
    history: list[float] = []
    iterations = 0
    while True:
        misfit = power(residual)
        above, steep = misfit > settings.tau**2 * noise, slope > least
        active = above & steep.reshape(of_data)
        if iterations == settings.iterations or not bool(active.any()):
            break
        measured = model(direction)
        curvature = power(measured)
        length = torch.where(active & (curvature > 0), slope.reshape(of_data) / curvature, 0.0)
        image = image + length.reshape(of_image) * direction
        residual = residual - length * measured
        gradient = model.H(residual)
        previous, slope = slope, power(gradient)
        kept = torch.where(previous > 0, slope / previous, 0.0) if settings.algorithm == "cgls" else 0.0
        direction = gradient + kept * direction
        iterations += 1
        if scan.sigma > 0:
            history.append(float((power(residual) / noise).amax().sqrt()))
        if progress is not None:
            progress(iterations, settings.iterations)
    stopped = "iterations" if bool(active.any()) else "gradient" if bool(above.any()) else "discrepancy"
    return Reconstruction(
        combine_sets(image, model),
        info={
            "method": "least-squares",
            "iterations": iterations,
            "stopped": stopped,
            "residuals": history,
            "seconds": time.perf_counter() - start,
        },
    )


def sample_count(kspace: torch.Tensor, model: SenseModel) -> torch.Tensor:
    """Complex samples of each slice of k-space (..., coil, y, x), over all coils: (...), or () for one slice."""
    points = (model.mask != 0).expand(*model.mask.shape[:-2], *kspace.shape[-2:]).sum((-2, -1))
    return (points * kspace.shape[-3]).expand(kspace.shape[:-3])
