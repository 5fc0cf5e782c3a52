"""From the lines of a slice to the 2-D problem that a reconstruction solves."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scanprior.gadgets.compression import Compression
from scanprior.gadgets.encoding import Encoding
from scanprior.gadgets.errors import ScanError
from scanprior.gadgets.fourier import crop_field_of_view, ifft, resize
from scanprior.gadgets.noise import Noise, Whitening, estimate_noise
from scanprior.gadgets.slices import Key, SliceData

log = logging.getLogger(__name__)

MIN_CENTRE, MAX_CENTRE = 8, 48  # calibration block taken from a scan that flags no calibration lines


@dataclass
class Problem:
    """A whitened slice, or a volume decoupled along its readout into a batch of 2-D problems.

    Attributes
    ----------
    key
        Which image.
    kspace
        2-D: (coil, y, x) = (coil, ky, kx). Volume: (x, coil, z, y) = (x, coil, kz, ky), where x is already image space.
        complex64, zero where nothing was acquired, DC at index N // 2.
    mask
        (y, 1) where whole rows were acquired, else (y, x); for a volume (z, 1) or (z, y). bool.
    acs
        Calibration region, fully sampled: (coil, lines, x) with the readout in k-space; for a volume (x, coil, z, y).
        None where there is none.
    acs_key
        Which image the calibration region was acquired with.
    sigma
        Standard deviation of the complex noise in a sample of `kspace`.
    volume
        Whether it is a volume.
    notes
        What the image's history shall say: noise source, averages, effective R, partial Fourier, coils.
    """

    key: Key
    kspace: np.ndarray
    mask: np.ndarray
    acs: np.ndarray | None
    acs_key: Key | None
    sigma: float
    volume: bool
    notes: dict[str, Any] = field(default_factory=dict)


def whitening_for(data: SliceData, encoding: Encoding, noise: Noise | None, *, upstream: bool = False) -> Whitening:
    """How to whiten this slice.

    Parameters
    ----------
    noise
        From the noise scan; None to estimate it from the edge of this slice's k-space.
    upstream
        The data were whitened before, to E|n|^2 = 2 (Gadgetron's NoiseAdjust).

    Raises
    ------
    ScanError
        The noise scan has other channels than the slice, or there is nothing to estimate the noise from.
    """
    coils = len(data.kspace)
    if upstream:
        return Whitening.upstream(coils)
    if noise is None:
        noise = estimate_noise(data)
    if len(noise.covariance) != coils:
        raise ScanError(f"the noise scan has {len(noise.covariance)} channels, the image {coils}")
    return noise.whitening(data.dwell_us, encoding.noise_bandwidth)


def prepare(
    data: SliceData, encoding: Encoding, whitening: Whitening, compression: Compression | None = None
) -> Problem:
    """Make the 2-D problem of a slice: whitened, compressed, without readout oversampling, with its mask.

    Raises
    ------
    ScanError
        No line was acquired, or all samples are zero.
    """
    kz, ky = np.nonzero(data.counts)
    if not len(kz):
        raise ScanError(f"{data.key} has no lines")
    lines = data.kspace[:, kz, ky]
    if not lines.any():
        raise ScanError(f"{data.key} has only zeros in its {len(kz)} lines")
    width = _width(data, encoding)
    lines = _combine(_cut(lines, width), whitening, compression)
    columns = _columns(data.readout, data.kspace.shape[-1], width)
    if not columns.all():
        lines[..., ~columns] = 0
    kspace = np.zeros((len(lines), *data.counts.shape, width), np.complex64)
    kspace[:, kz, ky] = lines

    sampled = data.counts > 0
    volume = encoding.volume
    mask: np.ndarray
    if volume:
        kspace = np.ascontiguousarray(np.moveaxis(ifft(kspace, -1), -1, 0))
        mask = sampled
    else:
        kspace = kspace[:, 0]
        mask = np.logical_and(sampled[0][:, None], columns)
    whole_rows: np.ndarray = np.logical_or.reduce(mask, axis=1, keepdims=True)
    if (mask == whole_rows).all():
        mask = whole_rows
    acs = prepare_acs(data, encoding, whitening, compression)
    # the noise of a mean of n readouts is 1 / n of the power of one
    sigma = whitening.sigma * float(np.sqrt(np.mean(1.0 / data.counts[kz, ky])))
    if volume:  # a transform of readouts that are zero in part spreads the noise of the rest over all of x
        sigma *= float(np.sqrt(columns.mean()))
    notes: dict[str, Any] = {
        "noise": whitening.source,
        "averages": int(data.counts.max()),
        "lines": len(kz),
        "effective_r": float(mask.size / np.count_nonzero(mask)),
        "partial_fourier": partial_fourier_fraction(data, encoding),
        "partial_echo": (data.readout[1] - data.readout[0]) / data.kspace.shape[-1],
        "coils": len(lines),
    }
    if whitening.dropped:
        notes["dropped_coils"] = list(whitening.dropped)
    if whitening.regularised:
        notes["noise_regularised"] = True
    return Problem(data.key, kspace, mask, acs, data.acs_key or data.key, sigma, volume, notes | data.notes)


def prepare_acs(
    data: SliceData, encoding: Encoding, whitening: Whitening, compression: Compression | None = None
) -> np.ndarray | None:
    """Calibration region of a slice, whitened: what `Problem.acs` holds. Works on `AcsReady` and `SliceReady` data.

    It is the largest rectangle that the calibration lines fill, over the readout samples that were acquired. Where no
    line is flagged for calibration, it is the fully sampled centre of k-space, if that is large enough.
    """
    block, (start, stop) = _calibration(data, encoding)
    if block is None:
        return None
    width = _width(data, encoding)
    block = _combine(_cut(block, width), whitening, compression)
    columns = _columns((start, stop), data.kspace.shape[-1], width)
    block = block * columns
    if encoding.volume:
        return np.ascontiguousarray(np.moveaxis(ifft(block, -1), -1, 0))
    return np.ascontiguousarray(block[:, 0][:, :, columns])


def calibration_kspace(data: SliceData, encoding: Encoding) -> np.ndarray:
    """K-space (coil, ...) from which coils can be compressed: the calibration region, or else all that was acquired."""
    block, _ = _calibration(data, encoding)
    return data.kspace[:, data.counts > 0] if block is None else block


def partial_fourier_fraction(data: SliceData, encoding: Encoding) -> float:
    """Part of the extent of k-space along ky that the scan covers; 1 where it goes from edge to edge.

    From the header's limits, or, where there are none, from the lines themselves.
    """
    limit = encoding.limits["kspace_encoding_step_1"]
    size = encoding.encoded.matrix[1]
    if limit.given:
        return min(1.0, (limit.maximum - limit.minimum + 1) / size)
    ky = np.flatnonzero(data.counts.any(0))
    step = int(np.max(np.diff(ky))) if len(ky) > 1 else 1  # undersampling, not partial Fourier, leaves such gaps
    low, high = max(0, ky[0] - step + 1), min(size, ky[-1] + step)
    return float((high - low) / size)


def largest_rectangle(mask: np.ndarray) -> tuple[slice, slice]:
    """Largest rectangle of true values in `mask` (z, y) bool, as slices; empty ones where there is none.

    Of equally large ones, the first. For every top row, runs of columns that are true down to every bottom row.
    """
    best, area = (slice(0, 0), slice(0, 0)), 0
    for top in range(len(mask)):
        alive = np.ones(mask.shape[1], bool)
        for bottom in range(top, len(mask)):
            alive &= mask[bottom]
            if not alive.any():
                break
            if (len(mask) - top) * int(alive.sum()) <= area:
                break
            edges = np.flatnonzero(np.diff(np.concatenate(([0], alive.view(np.int8), [0]))))
            lengths = edges[1::2] - edges[::2]
            run = int(lengths.argmax())
            if lengths[run] * (bottom - top + 1) > area:
                area = int(lengths[run]) * (bottom - top + 1)
                best = (slice(top, bottom + 1), slice(int(edges[2 * run]), int(edges[2 * run + 1])))
    return best


def _width(data: SliceData, encoding: Encoding) -> int:
    return min(data.kspace.shape[-1], encoding.readout_cropped)


def _combine(kspace: np.ndarray, whitening: Whitening, compression: Compression | None) -> np.ndarray:
    kspace = whitening(kspace)
    return compression(kspace) if compression is not None else kspace


def _cut(kspace: np.ndarray, width: int) -> np.ndarray:
    return crop_field_of_view(kspace, width).astype(np.complex64, copy=False)


def _columns(readout: tuple[int, int], full: int, width: int) -> np.ndarray:
    """Columns (x,) bool of the cropped readout that were acquired. A cropped sample stands for full / width of them."""
    position = (np.arange(width) - width // 2) * (full / width) + full // 2
    columns: np.ndarray = (position >= readout[0]) & (position < readout[1])
    return columns


def _calibration(data: SliceData, encoding: Encoding) -> tuple[np.ndarray | None, tuple[int, int]]:
    if data.acs is not None:
        box = largest_rectangle(data.acs.mask)
        block = data.acs.kspace[(slice(None), *box)]
        return (block if block.size else None), data.acs.readout
    box = _sampled_centre(data.counts > 0)
    block = data.kspace[(slice(None), *box)]
    return (block if block.size else None), data.readout


def _sampled_centre(sampled: np.ndarray) -> tuple[slice, slice]:
    """Fully sampled block around DC, at most MAX_CENTRE a side; empty where it is smaller than MIN_CENTRE."""
    if not sampled.size:
        return slice(0, 0), slice(0, 0)
    offsets, window = [], sampled
    for axis in (0, 1):
        size = min(sampled.shape[axis], MAX_CENTRE)
        offsets.append(sampled.shape[axis] // 2 - size // 2)
        window = resize(window, axis, size)
    box = largest_rectangle(window)
    for side, length in zip(box, sampled.shape, strict=True):
        if side.stop - side.start < min(MIN_CENTRE, length):
            return slice(0, 0), slice(0, 0)
    z, y = (slice(side.start + offset, side.stop + offset) for side, offset in zip(box, offsets, strict=True))
    center_z, center_y = sampled.shape[0] // 2, sampled.shape[1] // 2
    if not (z.start <= center_z < z.stop and y.start <= center_y < y.stop):
        return slice(0, 0), slice(0, 0)
    return z, y
