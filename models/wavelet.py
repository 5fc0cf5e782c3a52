"""L1-wavelet compressed sensing (Lustig et al., MRM 2007) and its orthogonal wavelet transform."""

from __future__ import annotations

import time

import torch
from pydantic import Field
from scanprior.models.forward import SenseModel
from scanprior.models.linear import combine_sets, threshold_unit
from scanprior.models.scan import Progress, Reconstruction, Scan, Settings
from scanprior.models.solvers import inner

_LOW = (
    0.23037781330889650,
    0.71484657055291540,
    0.63088076792985890,
    -0.02798376941685985,
    -0.18703481171909310,
    0.03084138183556076,
    0.03288301166688520,
    -0.01059740178506903,
)
"""Daubechies' low-pass filter of four vanishing moments (Daubechies, Ten Lectures on Wavelets, table 6.1, N = 4)."""

_HIGH = tuple((-1) ** tap * value for tap, value in enumerate(reversed(_LOW)))

_SMALLEST = 16
"""An axis shorter than two filters is not split further."""


class L1WaveletSettings(Settings):
    """Settings of `l1_wavelet`."""

    lam: float = Field(
        0.2,
        gt=0,
        description="threshold of the wavelet coefficients in units of the noise (`threshold_unit`); more is smoother",
    )
    iterations: int = Field(100, gt=0, le=10000, description="the most iterations")
    tolerance: float = Field(1e-4, ge=0, lt=1, description="stop when the image's relative change is below this")
    levels: int = Field(4, gt=0, le=10, description="levels of the transform; fewer where the image is small")
    shifts: bool = Field(
        True,
        description="shift the wavelets' grid at random in each iteration (seeded): no blocks in the image, but no one "
        "objective that is minimised to the end",
    )
    seed: int = Field(0, ge=0, description="seed of the shifts")


def wavelet(image: torch.Tensor, levels: int) -> list[torch.Tensor]:
    """Orthogonal Daubechies wavelet transform over the last two axes, periodic, any size.

    Along an axis of odd length the last sample goes to the low band as it is, which keeps the transform orthogonal.

    Parameters
    ----------
    image
        (..., y, x), complex or real.
    levels
        Levels of the pyramid; fewer where an axis would become shorter than 16.

    Returns
    -------
    The bands: three of details for each level, finest first, (..., y', x') each, then the one of the coarsest level.
    """
    bands: list[torch.Tensor] = []
    low = image
    for _ in range(_depth(image.shape[-2], image.shape[-1], levels)):
        left, right = _split(low, -1)
        (low, bottom), (corner, other) = _split(left, -2), _split(right, -2)
        bands += [bottom, corner, other]
    return [*bands, low]


def inverse_wavelet(bands: list[torch.Tensor]) -> torch.Tensor:
    """Inverse, and adjoint, of `wavelet`."""
    low = bands[-1]
    for first in range(len(bands) - 4, -1, -3):
        bottom, corner, other = bands[first : first + 3]
        low = _merge(_merge(low, bottom, -2), _merge(corner, other, -2), -1)
    return low


def l1_wavelet(
    scan: Scan, prior: None, settings: L1WaveletSettings, progress: Progress | None = None
) -> Reconstruction:
    """Minimise 1/2 ||A x - y||^2 + lam ||details of W x||_1 by FISTA with restarts.

    Algorithm: Beck and Teboulle, SIAM J. Imaging Sci. 2009, each batch element restarted by the gradient criterion
    of O'Donoghue and Candes, Found. Comput. Math. 2015. `lam` is `settings.lam` times `threshold_unit`. The coarsest
    band is left free. Shifts: Figueiredo and Nowak, IEEE TIP 2003. All batch elements run until the last is done.

    `info["objective"]` has the objective of every iteration, summed over the batch (in the shifted basis, if any).

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
    step = 1 / max(model.norm_bound, torch.finfo(torch.float32).tiny)
    energy = 0.5 * float(scan.kspace.abs().square().sum(dtype=torch.float64))
    generator = torch.Generator().manual_seed(settings.seed)
    depth = _depth(adjoint.shape[-2], adjoint.shape[-1], settings.levels)

    image = adjoint
    normal = model.normal(image)
    point, point_normal = image, normal
    momentum = torch.ones_like(inner(image, image, batch_dims))
    objective: list[float] = []
    done = 0
    for done in range(1, settings.iterations + 1):
        shift = (0, 0)
        if settings.shifts:
            down, right = torch.randint(0, 2**depth, (2,), generator=generator).tolist()
            shift = (down, right)
        candidate, norm = _shrink(point - step * (point_normal - adjoint), step * lam, settings.levels, shift)
        candidate_normal = model.normal(candidate)
        data_term = 0.5 * inner(candidate, candidate_normal, 0) - inner(candidate, adjoint, 0)
        objective.append(energy + float(data_term) + float(norm) / step)

        change = candidate - image
        restart = inner(point - candidate, change, batch_dims) > 0
        following = torch.where(restart, 1.0, (1 + (1 + 4 * momentum.square()).sqrt()) / 2)
        weight = torch.where(restart, 0.0, (momentum - 1) / following)
        point = candidate + weight * change
        # Linear in the image, so the normal operator runs once an iteration and still gives the objective.
        point_normal = candidate_normal + weight * (candidate_normal - normal)
        moved = inner(change, change, batch_dims) > settings.tolerance**2 * inner(candidate, candidate, batch_dims)
        image, normal, momentum = candidate, candidate_normal, following
        if progress is not None:
            progress(done, settings.iterations)
        if not bool(moved.any()):
            break
    return Reconstruction(
        combine_sets(image, model),
        info={
            "method": "l1-wavelet",
            "iterations": done,
            "lam": settings.lam,
            "objective": objective,
            "seconds": time.perf_counter() - start,
        },
    )


def _shrink(
    image: torch.Tensor, threshold: torch.Tensor, levels: int, shift: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Soft-threshold the details; also the sum of threshold * |details| of the result."""
    bands = wavelet(torch.roll(image, shift, (-2, -1)), levels)
    norm = torch.zeros((), dtype=torch.float64, device=image.device)
    for index, band in enumerate(bands[:-1]):
        size = band.abs()
        kept = (size - threshold).clamp_min(0)
        norm = norm + (threshold * kept).sum(dtype=torch.float64)
        bands[index] = band * (kept / size.clamp_min(torch.finfo(size.dtype).tiny))
    return torch.roll(inverse_wavelet(bands), (-shift[0], -shift[1]), (-2, -1)), norm


def _depth(rows: int, columns: int, levels: int) -> int:
    depth = 0
    while depth < levels and min(rows, columns) >= _SMALLEST:
        rows, columns, depth = (rows + 1) // 2, (columns + 1) // 2, depth + 1
    return depth


def _split(signal: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One level along `dim`: (low, high), with the periodic filters' outputs at even positions."""
    signal = signal.movedim(dim, -1)
    pairs = signal.shape[-1] // 2
    reach = len(_LOW) // 2
    low: torch.Tensor | float = 0.0
    high: torch.Tensor | float = 0.0
    for parity in (0, 1):
        phase = signal[..., parity : 2 * pairs : 2]
        phase = torch.cat([phase, phase[..., : reach - 1]], -1)
        for tap in range(reach):
            shifted = phase[..., tap : tap + pairs]
            low = low + _LOW[2 * tap + parity] * shifted
            high = high + _HIGH[2 * tap + parity] * shifted
    assert isinstance(low, torch.Tensor)
    assert isinstance(high, torch.Tensor)
    low = torch.cat([low, signal[..., 2 * pairs :]], -1)
    return low.movedim(-1, dim), high.movedim(-1, dim)


def _merge(low: torch.Tensor, high: torch.Tensor, dim: int) -> torch.Tensor:
    """Inverse of `_split`."""
    low, high = low.movedim(dim, -1), high.movedim(dim, -1)
    pairs = high.shape[-1]
    reach = len(_LOW) // 2
    rest = low[..., pairs:]
    low = torch.cat([low[..., pairs - reach + 1 : pairs], low[..., :pairs]], -1)
    high = torch.cat([high[..., pairs - reach + 1 :], high], -1)
    phases = []
    for parity in (0, 1):
        phase: torch.Tensor | float = 0.0
        for tap in range(reach):
            part = slice(reach - 1 - tap, reach - 1 - tap + pairs)
            phase = phase + _LOW[2 * tap + parity] * low[..., part] + _HIGH[2 * tap + parity] * high[..., part]
        assert isinstance(phase, torch.Tensor)
        phases.append(phase)
    return torch.cat([torch.stack(phases, -1).flatten(-2), rest], -1).movedim(-1, dim)
