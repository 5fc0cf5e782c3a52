"""Total-variation reconstruction (Block et al., MRM 2007)."""

from __future__ import annotations

import time

import torch
from pydantic import Field
from scanprior.models.forward import SenseModel
from scanprior.models.linear import combine_sets, threshold_unit
from scanprior.models.scan import Progress, Reconstruction, Scan, Settings
from scanprior.models.solvers import inner

_GRADIENT_NORM = 8.0
"""Bound of the squared norm of `gradient` in two dimensions."""

_DUAL_STEP = 0.3
"""Without units, as A and `gradient` keep the image's. 0.1 to 1 converge alike on a brain, 0.003 is far slower."""

_WINDOW = 10
"""Iterations over which the objective must have settled."""


class TvSettings(Settings):
    """Settings of `tv`."""

    lam: float = Field(
        0.15,
        gt=0,
        description="weight of the total variation in units of the noise (`threshold_unit`); more is flatter",
    )
    iterations: int = Field(500, gt=0, le=10000, description="the most iterations")
    tolerance: float = Field(
        1e-5, ge=0, lt=1, description="stop when the objective's relative change over 10 iterations is below this"
    )


def gradient(image: torch.Tensor) -> torch.Tensor:
    """Forward differences along y and x, zero at the last row and column: (..., y, x) to (2, ..., y, x)."""
    result = image.new_zeros(2, *image.shape)
    torch.sub(image[..., 1:, :], image[..., :-1, :], out=result[0, ..., :-1, :])
    torch.sub(image[..., 1:], image[..., :-1], out=result[1, ..., :-1])
    return result


def gradient_adjoint(field: torch.Tensor) -> torch.Tensor:
    """Adjoint of `gradient`: minus the divergence, (2, ..., y, x) to (..., y, x)."""
    down, right = field[0, ..., :-1, :], field[1, ..., :-1]
    result = torch.zeros_like(field[0])
    result[..., 1:, :] += down
    result[..., :-1, :] -= down
    result[..., 1:] += right
    result[..., :-1] -= right
    return result


def total_variation(image: torch.Tensor) -> torch.Tensor:
    """Each pixel's part of the isotropic total variation, (..., y, x): the length of the complex gradient."""
    return _length(gradient(image))


def _length(field: torch.Tensor) -> torch.Tensor:
    return field.abs().square().sum(0).sqrt()


def tv(scan: Scan, prior: None, settings: TvSettings, progress: Progress | None = None) -> Reconstruction:
    """Minimise 1/2 ||A x - y||^2 + lam TV(x), TV isotropic, by a primal-dual method.

    Algorithm: Condat, J. Optim. Theory Appl. 2013, algorithm 3.1, without relaxation: one normal operator, one gradient
    and one divergence an iteration, no inner solver. `lam` is `settings.lam` times `threshold_unit`. All batch elements
    run until the objective of the last has settled.

    `info["objective"]` has the objective of every iteration, summed over the batch.

    Raises
    ------
    ValueError
        If the scan has no maps or shapes do not fit.
    """
    start = time.perf_counter()
    model = SenseModel.of(scan)
    adjoint = model.H(scan.kspace)
    batch_dims = adjoint.ndim - len(model.image_shape)
    lam = settings.lam * threshold_unit(scan, model, adjoint)
    primal_step = 1 / (model.norm_bound / 2 + _GRADIENT_NORM * _DUAL_STEP)
    energy = 0.5 * scan.kspace.abs().square().flatten(batch_dims).sum(-1, dtype=torch.float64)

    image = adjoint
    normal = model.normal(image)
    slope = gradient(image)
    dual = torch.zeros_like(slope)
    history: list[torch.Tensor] = []
    for done in range(1, settings.iterations + 1):
        candidate = image - primal_step * (normal - adjoint + gradient_adjoint(dual))
        candidate_slope = gradient(candidate)
        dual = dual + _DUAL_STEP * (2 * candidate_slope - slope)
        length = _length(dual)
        dual = dual * (lam / torch.maximum(length, lam).clamp_min(torch.finfo(length.dtype).tiny))
        image, slope = candidate, candidate_slope
        normal = model.normal(image)
        variation = lam * _length(slope)
        data_term = inner(image, 0.5 * normal - adjoint, batch_dims).flatten(batch_dims).sum(-1)
        history.append(energy + data_term + variation.flatten(batch_dims).sum(-1, dtype=torch.float64))
        if progress is not None:
            progress(done, settings.iterations)
        if done > _WINDOW:
            change = (history[-1 - _WINDOW] - history[-1]).abs()
            if bool((change <= settings.tolerance * history[-1].abs()).all()):
                break
    return Reconstruction(
        combine_sets(image, model),
        info={
            "method": "tv",
            "iterations": len(history),
            "lam": settings.lam,
            "objective": [float(total.sum()) for total in history],
            "seconds": time.perf_counter() - start,
        },
    )
