"""Coil maps from the ACS lines alone: ESPIRiT (Uecker et al., MRM 71:990-1001, 2014)."""

from __future__ import annotations

import math

import torch

_CPU_CHUNK_BYTES = 1 << 22
_CUDA_CHUNK_BYTES = 1 << 28
"""Covariance matrices held at once: what a CPU's cache holds, and what keeps a GPU busy."""

_MAX_SQUARINGS = 8
"""The power method's 2^8 steps, taken as squarings; sigpy and BART take 100 and 30 steps."""

_REMEDIES = (
    "acquire ACS lines or a separate reference scan (acquisition flags 20, 21), "
    "or use a method without maps (zero-filled with root-sum-of-squares)"
)


class NoAcsError(ValueError):
    """There are no ACS lines, or too few of them, or they are empty: no maps can be estimated."""


def espirit_maps(
    acs: torch.Tensor | None,
    shape: tuple[int, int],
    *,
    kernel: int = 6,
    threshold: float = 0.02,
    crop: float = 0.95,
    sets: int = 1,
    width: int = 24,
    sigma: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Estimate coil maps from fully sampled k-space around the centre.

    The row space of the calibration matrix projects, in the image domain, onto the coil vectors that k-space can
    have. Its kernels' autocorrelation has (2 kernel - 1)^2 taps for each pair of coils, so that the projection's
    matrix of every pixel comes from one small Fourier sum; its eigenvectors of eigenvalue 1 are the maps.

    Phases are relative to a virtual coil, the one combination of coils that holds most of the ACS energy (as in BART):
    it is smooth wherever the object is, unlike the phase of one coil, which may see nothing of some region. The
    reconstructed image has the phase of the image in that virtual coil.

    Parameters
    ----------
    acs
        (..., coil, y, x) complex, every sample acquired, any size from `kernel` on. It need not be centred: a shift of
        k-space changes no map.
    shape
        (y, x) of the maps.
    kernel
        Width of the kernels in k-space, in samples of both axes; fewer where the ACS is small (`fitting_kernel`).
    threshold
        Singular values of the calibration matrix below `threshold` times the largest count as null space.
    crop
        Maps are zero where the eigenvalue is not above this.
    sets
        Sets of maps; 2 where the field of view is smaller than the object.
    sigma
        Standard deviation of the complex noise in `acs`, 0 where it is not known. Singular values that noise alone
        would have are left out too, whatever `threshold` says: at low SNR they are larger, and maps of noise were the
        result. Noise of n patches of m numbers has none above sigma (sqrt(m) + sqrt(n)) (Marchenko and Pastur 1967;
        measured, it holds for overlapping patches to 3 %).
    width
        The middle `width` samples of each axis are used, of a fully sampled readout for example.

    Returns
    -------
    maps
        (..., coil, y, x), or (..., set, coil, y, x) with `sets` > 1; complex64, unit norm over coils on the support,
        zero elsewhere. Sets come in order of falling eigenvalue and are orthogonal in every pixel.
    eigenvalues
        (..., y, x), or (..., set, y, x); float32 from 0 to 1 but for rounding. Where no eigenvalue can exceed `crop`
        they are lower bounds.

    Raises
    ------
    NoAcsError
        If the ACS is missing, smaller than the kernel, or zero.
    ValueError
        If a number is out of range, or the ACS is not complex or not finite.
    """
    _check(acs, shape, kernel, threshold, crop, sets, width)
    if not 0 <= sigma < math.inf:
        raise ValueError(f"expected a noise level sigma of 0 or more, got {sigma}")
    assert acs is not None
    kernel = fitting_kernel(min(acs.shape[-2:]), kernel)
    batch = acs.shape[:-3]
    results = [
        _slice_maps(_middle(each.to(torch.complex64), width), shape, kernel, threshold, crop, sets, sigma)
        for each in acs.reshape(-1, *acs.shape[-3:])
    ]
    maps = torch.stack([one[0] for one in results]).reshape(*batch, sets, acs.shape[-3], *shape)
    eigenvalues = torch.stack([one[1] for one in results]).reshape(*batch, sets, *shape)
    return (maps, eigenvalues) if sets > 1 else (maps.squeeze(-4), eigenvalues.squeeze(-3))


def fitting_kernel(lines: int, kernel: int) -> int:
    """The kernel's width for an ACS of so many lines: `kernel`, at most half of the lines, but no less than 3.

    Few lines give few patches, and where these are fewer than a patch has numbers, noise and truncation span the row
    space too: with 8 lines of 32 coils kernels of 6 gave maps that were wrong in parts of the head, kernels of 4 not.
    """
    return min(kernel, max(3, lines // 2))


def _check(
    acs: torch.Tensor | None,
    shape: tuple[int, int],
    kernel: int,
    threshold: float,
    crop: float,
    sets: int,
    width: int,
) -> None:
    if kernel < 1 or width < kernel:
        raise ValueError(f"expected 1 <= kernel <= width, got kernel {kernel} and width {width}")
    if not 0 < threshold < 1 or not 0 <= crop < 1:
        raise ValueError(f"expected threshold in (0, 1) and crop in [0, 1), got {threshold} and {crop}")
    if acs is None or acs.numel() == 0:
        raise NoAcsError(f"no ACS lines: coil maps cannot be estimated; {_REMEDIES}")
    if acs.ndim < 3:
        raise ValueError(f"expected (..., coil, y, x), got {tuple(acs.shape)} for acs")
    if not acs.is_complex():
        raise ValueError(f"expected a complex tensor, got {acs.dtype} for acs")
    if min(acs.shape[-2:]) < kernel:
        size = " x ".join(map(str, acs.shape[-2:]))
        raise NoAcsError(
            f"the ACS has {size} (y x x) samples, fewer than the kernel's {kernel} x {kernel}; {_REMEDIES}"
        )
    if min(shape) < 2 * kernel - 1:
        raise ValueError(f"expected at least {2 * kernel - 1} pixels along each axis for kernel {kernel}, got {shape}")
    if not 1 <= sets <= acs.shape[-3]:
        raise ValueError(f"expected 1 to {acs.shape[-3]} sets (the coils), got {sets}")
    if not bool(torch.isfinite(torch.view_as_real(acs)).all()):
        raise ValueError("the ACS holds NaN or infinite samples")
    if not bool((acs != 0).flatten(-3).any(-1).all()):
        raise NoAcsError(f"the ACS is all zero: coil maps cannot be estimated; {_REMEDIES}")


def _middle(acs: torch.Tensor, width: int) -> torch.Tensor:
    for axis in (-2, -1):
        size = acs.shape[axis]
        kept = min(size, width)
        acs = acs.narrow(axis, size // 2 - kept // 2, kept)
    return acs


def _slice_maps(
    acs: torch.Tensor, shape: tuple[int, int], kernel: int, threshold: float, crop: float, sets: int, sigma: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps (set, coil, y, x) and eigenvalues (set, y, x) of one slice."""
    coils = acs.shape[0]
    # Scaled, so that squares of any receiver's amplitudes stay within float32.
    largest = acs.abs().amax()
    acs = acs / largest
    lags = _kernel_autocorrelation(acs, kernel, threshold, sigma / float(largest))
    along_y, along_x = (_lag_phases(size, kernel, acs) for size in shape)
    # (lag y, lag x, coil pair), so that the sums below are plain matrix products.
    lags = lags.permute(2, 3, 0, 1).reshape(2 * kernel - 1, -1) / kernel**2
    virtual = torch.linalg.eigh(_gram(acs.reshape(coils, -1)))[1][:, -1]

    maps = acs.new_zeros(sets, coils, *shape)
    eigenvalues = torch.zeros(sets, *shape, device=acs.device)
    chunk_bytes = _CUDA_CHUNK_BYTES if acs.is_cuda else _CPU_CHUNK_BYTES
    rows = max(1, chunk_bytes // (shape[1] * coils**2 * 8))
    for first in range(0, shape[0], rows):
        phases = along_y[first : first + rows]
        some = (phases @ lags).reshape(len(phases), 2 * kernel - 1, -1)
        covariance = (along_x @ some).reshape(-1, coils, coils)
        part = slice(first, first + len(phases))
        for index in range(sets):
            vector, value = _dominant(covariance, crop)
            if index + 1 < sets:
                covariance = _project_out(covariance, vector)
            reference = vector @ virtual.conj()
            vector = vector * torch.where(reference == 0, 1, torch.sgn(reference).conj()).unsqueeze(-1)
            vector = vector * (value > crop).unsqueeze(-1)
            maps[index, :, part] = vector.reshape(len(phases), shape[1], coils).permute(2, 0, 1)
            eigenvalues[index, part] = value.reshape(len(phases), shape[1])
    return maps, eigenvalues


def _gram(rows: torch.Tensor) -> torch.Tensor:
    return rows @ rows.mH


def _kernel_autocorrelation(acs: torch.Tensor, kernel: int, threshold: float, sigma: float) -> torch.Tensor:
    """Sum over kernels v and taps q of v_c(q + lag) conj(v_d(q)), as (c, d, lag y, lag x) with lags from 1 - kernel."""
    coils = acs.shape[0]
    patches = acs.unfold(1, kernel, 1).unfold(2, kernel, 1)
    columns = patches.permute(0, 3, 4, 1, 2).reshape(coils * kernel**2, -1)
    # Squares halve the digits: the smallest singular value kept is `threshold`, so eigenvalues go down to its square.
    values, vectors = torch.linalg.eigh(_gram(columns.to(torch.complex128)) if threshold < 1e-2 else _gram(columns))
    noise = sigma * (math.sqrt(columns.shape[0]) + math.sqrt(columns.shape[1]))
    # where all is noise the largest is kept: maps that mean nothing, but maps
    least = min(max(threshold**2 * float(values[-1]), noise**2), float(values[-1]) * (1 - 1e-6))
    kept = vectors[:, values > least].to(acs.dtype)
    projection = _gram(kept).reshape(coils, kernel, kernel, coils, kernel, kernel)
    for first, second in ((1, 4), (1, 3)):
        # A sum along a diagonal of (tap, tap) is one lag; each pass turns one such pair of axes into a last axis.
        diagonals = [torch.diagonal(projection, -lag, first, second).sum(-1) for lag in range(1 - kernel, kernel)]
        projection = torch.stack(diagonals, -1)
    return projection


def _lag_phases(size: int, kernel: int, like: torch.Tensor) -> torch.Tensor:
    """(size, 2 kernel - 1): exp(2 pi i lag r / size) with r = 0 at size // 2."""
    position = torch.arange(size, device=like.device, dtype=torch.float64) - size // 2
    lag = torch.arange(1 - kernel, kernel, device=like.device, dtype=torch.float64)
    angle = 2 * math.pi / size * position.unsqueeze(1) * lag
    return torch.polar(torch.ones_like(angle), angle).to(like.dtype)


def _dominant(covariance: torch.Tensor, crop: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Dominant eigenvector (n, coil) and eigenvalue (n,) of positive semi-definite matrices (n, coil, coil).

    Power method by squaring: eight products of small matrices cost less than a hundred products with a vector, which
    are bound by memory. It ends when every matrix that may exceed `crop` has become of rank one; where none can, the
    eigenvalue is a lower bound.
    """
    tiny = torch.finfo(covariance.real.dtype).tiny
    power = covariance.clone()
    trace = _trace(power)
    _scale(power, 1 / trace.clamp_min(tiny))
    empty = torch.zeros_like(trace, dtype=torch.bool)
    for step in range(_MAX_SQUARINGS):
        power = power @ power
        # The trace of the square of a matrix of trace 1 is 1 when its rank is 1; before, it is at least 1 / coils.
        purity = _trace(power)
        if step == 0:
            # The Frobenius norm bounds the eigenvalue: below `crop` there is no map to be found.
            empty = purity.sqrt() * trace <= crop
        _scale(power, 1 / purity.clamp_min(tiny))
        if bool((empty | (purity > 1 - 1e-4)).all()):
            break
    # Any column of a matrix of rank one is the vector; the longest has the least rounding.
    column = torch.diagonal(power, dim1=-2, dim2=-1).real.argmax(-1)
    vector = power.gather(-1, column[:, None, None].expand(-1, power.shape[-1], 1)).squeeze(-1)
    vector = vector / torch.linalg.vector_norm(vector, dim=-1, keepdim=True).clamp_min(tiny)
    value = (vector.conj() * (covariance @ vector.unsqueeze(-1)).squeeze(-1)).sum(-1).real
    return vector, value


def _trace(matrices: torch.Tensor) -> torch.Tensor:
    return torch.diagonal(matrices, dim1=-2, dim2=-1).real.sum(-1)


def _scale(matrices: torch.Tensor, factor: torch.Tensor) -> None:
    # In place and real: a complex division of all matrices would cost three times the squaring.
    torch.view_as_real(matrices).mul_(factor[:, None, None, None])


def _project_out(covariance: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """(I - v v^H) C (I - v v^H)."""
    image = covariance @ vector.unsqueeze(-1)
    value = vector.conj().unsqueeze(-2) @ image
    cross = image @ vector.conj().unsqueeze(-2)
    return covariance - cross - cross.mH + value * (vector.unsqueeze(-1) @ vector.conj().unsqueeze(-2))
