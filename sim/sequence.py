"""The order in which a simulated scan measures its lines, and the flags, counters and clock that go with it."""

from __future__ import annotations

import warnings

import numpy as np
from scanprior.sim.masks import Sampling

# importing ismrmrd resets the warnings filter of the process; put it back
with warnings.catch_warnings():
    import ismrmrd

READOUT = np.dtype(
    [
        ("repetition", "u2"),
        ("average", "u2"),
        ("slice", "u2"),
        ("step_1", "u2"),
        ("step_2", "u2"),
        ("time_ms", "f8"),
        ("flags", "u8"),
        ("separate", "?"),
    ]
)
"""One measured readout: counters in the full matrix (before any shift by partial Fourier), start time, MRD flags."""


def interleaved(slices: int) -> np.ndarray:
    """Slice order 0, 2, 4, .., 1, 3, 5, ..: neighbours are not excited one after the other."""
    return np.concatenate([np.arange(0, slices, 2), np.arange(1, slices, 2)])


def _bit(flag: int) -> np.uint64:
    """Mask of an MRD flag; flags are numbered from 1."""
    return np.uint64(1 << (flag - 1))


def _mark(readouts: np.ndarray, names: tuple[str, ...], first: int, last: int) -> None:
    """Set `first` and `last` on the first and last readout of each combination of the counters `names`."""
    key = np.zeros(len(readouts), np.int64)
    for name in names:
        key = key * 65536 + readouts[name]
    _, begins = np.unique(key, return_index=True)
    _, ends = np.unique(key[::-1], return_index=True)
    readouts["flags"][begins] |= _bit(first)
    readouts["flags"][len(key) - 1 - ends] |= _bit(last)


def parallel_flags(reference: np.ndarray, imaging: np.ndarray) -> np.ndarray:
    """Flags (readout,) of calibration lines: 21 where they are imaging lines too, else 20; never both, which would lose
    the line in Gadgetron's buckets.
    """
    flags = np.zeros(len(reference), READOUT["flags"])
    flags[reference & imaging] = _bit(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)
    flags[reference & ~imaging] = _bit(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
    return flags


def mark_order(scan: np.ndarray, volume: bool) -> None:
    """Set the flags that say where slices, encodings, averages, repetitions and the measurement begin and end.

    Parameters
    ----------
    scan
        (readout,) of `READOUT`, in order of time.
    volume
        Whether step_2 encodes.
    """
    _mark(scan, ("repetition", "slice"), ismrmrd.ACQ_FIRST_IN_SLICE, ismrmrd.ACQ_LAST_IN_SLICE)
    _mark(
        scan,
        ("repetition", "average", "slice", "step_2"),
        ismrmrd.ACQ_FIRST_IN_ENCODE_STEP1,
        ismrmrd.ACQ_LAST_IN_ENCODE_STEP1,
    )
    if volume:
        _mark(scan, ("repetition", "average"), ismrmrd.ACQ_FIRST_IN_ENCODE_STEP2, ismrmrd.ACQ_LAST_IN_ENCODE_STEP2)
    if scan["average"].any():
        _mark(scan, ("repetition", "average"), ismrmrd.ACQ_FIRST_IN_AVERAGE, ismrmrd.ACQ_LAST_IN_AVERAGE)
    _mark(scan, ("repetition",), ismrmrd.ACQ_FIRST_IN_REPETITION, ismrmrd.ACQ_LAST_IN_REPETITION)
    scan["flags"][-1] |= _bit(ismrmrd.ACQ_LAST_IN_MEASUREMENT)


def _points(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """step_1 and step_2 of the true points of (y,) or (z, y), partition by partition."""
    step_2, step_1 = np.nonzero(np.atleast_2d(mask))
    return step_1, step_2


def order(
    sampling: Sampling,
    slices: int,
    *,
    repetitions: int = 1,
    averages: int = 1,
    echo_train: int = 1,
    repetition_time: float = 1000.0,
    separate_acs: np.ndarray | None = None,
) -> np.ndarray:
    """Lay out a scan: repetition, then average, then shot, then slice (interleaved), then echo.

    Parameters
    ----------
    sampling
        What is measured in each repetition, average and slice. Calibration points that are no imaging points carry
        flag 20, those that are both carry flag 21, never the two at once.
    slices
        Number of slices; 1 for a 3-D scan, whose partitions are step_2.
    echo_train
        Lines measured after one excitation; echo e of shot s takes point s + e * shots of the sorted points.
    repetition_time
        In ms, between two shots of a slice.
    separate_acs
        Calibration points measured once, slice by slice, before everything else and with flag 20 only.

    Returns
    -------
    numpy.ndarray
        (readout,) of `READOUT`, in order of time.

    Raises
    ------
    ValueError
        If a count is below 1 or nothing is measured.
    """
    for name, value in (
        ("slices", slices),
        ("repetitions", repetitions),
        ("averages", averages),
        ("echo train", echo_train),
    ):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    step_1, step_2 = _points(sampling.mask)
    if not len(step_1):
        raise ValueError("sampling: expected at least one measured line, got none")
    shots = -(-len(step_1) // echo_train)
    trains = [np.arange(shot, len(step_1), shots) for shot in range(shots)]
    visits = [(s, train) for train in trains for s in interleaved(slices)]
    per_visit = repetition_time / slices
    echo_spacing = min(10.0, per_visit / (echo_train + 1))

    once = np.zeros(len(step_1) * slices, READOUT)
    point = np.concatenate([train for _, train in visits])
    once["slice"] = np.concatenate([np.full(len(train), s) for s, train in visits])
    once["step_1"], once["step_2"] = step_1[point], step_2[point]
    once["time_ms"] = np.concatenate(
        [i * per_visit + np.arange(len(train)) * echo_spacing for i, (_, train) in enumerate(visits)]
    )
    imaging, acs = np.atleast_2d(sampling.imaging), np.atleast_2d(sampling.acs)
    is_imaging = imaging[once["step_2"], once["step_1"]]
    is_acs = acs[once["step_2"], once["step_1"]]
    once["flags"] = parallel_flags(is_acs, is_imaging)

    duration = len(visits) * per_visit
    passes = []
    for i in range(repetitions * averages):
        part = once.copy()
        part["repetition"], part["average"] = divmod(i, averages)
        part["time_ms"] += i * duration
        passes.append(part)
    scan = np.concatenate(passes)
    mark_order(scan, np.ndim(sampling.mask) == 2)
    if separate_acs is None:
        return scan

    acs_1, acs_2 = _points(separate_acs)
    before = np.zeros(len(acs_1) * slices, READOUT)
    before["slice"] = np.repeat(interleaved(slices), len(acs_1))
    before["step_1"], before["step_2"] = np.tile(acs_1, slices), np.tile(acs_2, slices)
    before["time_ms"] = np.arange(len(before)) * echo_spacing
    before["flags"] = _bit(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
    before["separate"] = True
    scan["time_ms"] += len(before) * echo_spacing
    return np.concatenate([before, scan])
