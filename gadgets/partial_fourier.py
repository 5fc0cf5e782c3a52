"""Fills the part of k-space that a partial Fourier or partial echo scan leaves out, on the reconstructed image.

Sources: Haacke, Lindskog, Lin, "A fast, iterative, partial-Fourier technique capable of local phase recovery", JMR 1991
(POCS); Noll, Nishimura, Macovski, "Homodyne detection in magnetic resonance imaging", IEEE TMI 1991.
"""

from __future__ import annotations

import numpy as np
from scanprior.gadgets.errors import ScanError
from scanprior.gadgets.fourier import fft, ifft
from scanprior.gadgets.preparation import Problem

METHODS = ("zero-fill", "pocs", "homodyne")
MIN_HALF_WIDTH = 4  # lines beyond the centre that carry the phase
TOLERANCE = 0.05  # of the matrix: less asymmetry than that is none

Range = tuple[int, int]


def acquired_ranges(problem: Problem) -> tuple[Range, Range]:
    """Acquired range of each axis, (rows, columns): first index, and the one behind the last.

    Undersampling leaves gaps at the edges too: a range is taken as the whole axis unless it is asymmetric by more than
    both the largest gap and 5 % of the matrix.
    """
    rows_full, columns_full = problem.kspace.shape[-2:]
    rows = _range(np.logical_or.reduce(problem.mask, axis=1), rows_full)
    whole = problem.mask.shape[1] == 1
    columns = (0, columns_full) if whole else _range(np.logical_or.reduce(problem.mask, axis=0), columns_full)
    return rows, columns


def fills(problem: Problem, method: str) -> bool:
    """Whether `complete` changes the image: it is asked for, and the scan is asymmetric."""
    return method != "zero-fill" and bool(_asymmetric_axes(acquired_ranges(problem), problem))


def complete(image: np.ndarray, problem: Problem, method: str = "zero-fill", iterations: int = 10) -> np.ndarray:
    """Image with the missing part of k-space filled in.

    Not for a map of the standard deviation: what a filling makes of errors depends on how those of different pixels go
    together (homodyne weighs k-space by up to 2 and keeps the real part, POCS is not even linear), and a map of pixels
    does not hold that. Such a map stays as it is, and its meta says that it is of the image before.

    Parameters
    ----------
    image
        (..., y, x) complex64, unfolded, as reconstructed from `problem`.
    method
        "zero-fill": as it is. "pocs": projections onto the measured k-space and onto the phase of the symmetric centre;
        any number of asymmetric axes. "homodyne": the real part after removing that phase; one asymmetric axis.
    iterations
        Of POCS.

    Raises
    ------
    ValueError
        Unknown method, or homodyne with two asymmetric axes.
    ScanError
        The scan stops so near to the centre that there is no phase estimate.
    """
    if method not in METHODS:
        raise ValueError(f"partial Fourier method {method!r}, expected one of {', '.join(METHODS)}")
    ranges = acquired_ranges(problem)
    sizes = image.shape[-2:]
    asymmetric = _asymmetric_axes(ranges, problem)
    if method == "zero-fill" or not asymmetric:
        return image
    measured = fft(image, (-2, -1))
    phase = _phase(measured, ranges)
    if method == "homodyne":
        if len(asymmetric) == 2:
            raise ValueError("homodyne fills one axis, and both phase encoding and readout are asymmetric: use pocs")
        weighted = measured * _homodyne_weights(ranges[asymmetric[0]], sizes, asymmetric[0])
        demodulated = ifft(weighted, (-2, -1)) * phase.conj()
        return (demodulated.real * phase).astype(np.complex64)
    known = np.zeros(sizes, bool)
    known[slice(*ranges[0]), slice(*ranges[1])] = True
    estimate = image
    for _ in range(iterations):
        kspace = np.where(known, measured, fft(np.abs(estimate) * phase, (-2, -1)))
        estimate = ifft(kspace, (-2, -1))
    return estimate.astype(np.complex64)


def _asymmetric_axes(ranges: tuple[Range, Range], problem: Problem) -> list[int]:
    return [axis for axis in (0, 1) if ranges[axis] != (0, problem.kspace.shape[axis - 2])]


def _range(sampled: np.ndarray, size: int) -> Range:
    at = np.flatnonzero(sampled)
    low, high = int(at[0]), int(at[-1]) + 1
    gap = int(np.diff(at).max()) if len(at) > 1 else 1
    before, after = size // 2 - low, high - size // 2
    if abs(before - after) <= max(gap, TOLERANCE * size):
        return 0, size
    return (0, high) if before > after else (low, size)


def _phase(measured: np.ndarray, ranges: tuple[Range, Range]) -> np.ndarray:
    """Unit phase (..., y, x) of the image that the symmetric centre of k-space makes, under a Hann window."""
    window = np.ones((1, 1), np.float32)
    for axis, (low, high) in enumerate(ranges):
        size = measured.shape[axis - 2]
        if (low, high) == (0, size):
            continue
        half = min(size // 2 - low, high - size // 2)
        if half < MIN_HALF_WIDTH:
            raise ScanError(
                f"partial Fourier: only {half} lines lie beyond the centre of k-space, "
                f"at least {MIN_HALF_WIDTH} are needed for a phase"
            )
        distance = np.abs(np.arange(size) - size // 2)
        taper = np.where(distance < half, 0.5 + 0.5 * np.cos(np.pi * distance / half), 0).astype(np.float32)
        window = window * (taper[:, None] if axis == 0 else taper[None])
    image = ifft(measured * window, (-2, -1))
    return np.exp(1j * np.angle(image)).astype(np.complex64)


def _homodyne_weights(acquired: Range, sizes: tuple[int, ...], axis: int) -> np.ndarray:
    """0 where nothing was acquired, 2 where the mirror image was not, a ramp between them in the symmetric centre."""
    size = sizes[axis]
    low, high = acquired
    position = np.arange(size) - size // 2
    half = min(size // 2 - low, high - size // 2)
    towards = position if low > 0 else -position
    weights = np.clip(1 + towards / half, 0, 2)
    weights[~((np.arange(size) >= low) & (np.arange(size) < high))] = 0
    weights = weights.astype(np.float32)
    return weights[:, None] if axis == 0 else weights[None]
