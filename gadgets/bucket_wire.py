"""Bytes of Gadgetron's acquisition bucket (id 1050): acquisitions between two triggers."""

from __future__ import annotations

import struct
from dataclasses import astuple

import numpy as np
from scanprior.gadgets.byte_source import Body
from scanprior.gadgets.errors import WireError
from scanprior.gadgets.message_codec import (
    MAX_TRAJECTORY_DIMENSIONS,
    Pieces,
    check_acquisition,
    raw_bytes,
    write_waveform,
)
from scanprior.gadgets.mrd import ACQUISITION_HEADER, WAVEFORM_HEADER, Acquisition, Bucket, BucketStats, Waveform

_COMPLEX = np.dtype("<c8")
_FLOAT = np.dtype("<f4")
_U16 = np.dtype("<u2")
_U32 = np.dtype("<u4")
_SIZES = struct.Struct("<13Q")
_SETS = 9


def read_bucket(body: Body) -> Bucket:
    """13 u64 with counts and bytes, then data with its counter values, calibration lines with theirs, waveforms.

    Raises
    ------
    WireError
        If the bytes announced for a part are not those that its headers ask for.
    """
    sizes = _SIZES.unpack(body.take(_SIZES.size, "sizes").data)
    data = _read_acquisitions(body, sizes[0:4], "data")
    data_stats = _read_stats(body, sizes[8], "data")
    reference = _read_acquisitions(body, sizes[4:8], "reference")
    reference_stats = _read_stats(body, sizes[9], "reference")
    waveforms = _read_waveforms(body, sizes[10:13])
    return Bucket(data, reference, data_stats, reference_stats, waveforms)


def write_bucket(bucket: Bucket) -> Pieces:
    """The body of a bucket; `ScanError` where an acquisition or waveform does not fit its header."""
    data, data_sizes = _write_acquisitions(bucket.data)
    reference, reference_sizes = _write_acquisitions(bucket.reference)
    data_stats, reference_stats = _write_stats(bucket.data_stats), _write_stats(bucket.reference_stats)
    waveforms = [write_waveform(waveform) for waveform in bucket.waveforms]
    samples = [piece for _, piece in waveforms]
    waveform_sizes = (len(waveforms), WAVEFORM_HEADER.itemsize * len(waveforms), sum(len(piece) for piece in samples))
    sizes = _SIZES.pack(*data_sizes, *reference_sizes, len(data_stats), len(reference_stats), *waveform_sizes)
    return [sizes, *data, data_stats, *reference, reference_stats, *(head for head, _ in waveforms), *samples]


def _read_acquisitions(body: Body, sizes: tuple[int, ...], part: str) -> list[Acquisition]:
    count, header_bytes, data_bytes, trajectory_bytes = sizes
    body.bounded(count, body.limits.count, f"number of {part} acquisitions")
    _agree(body, header_bytes, count * ACQUISITION_HEADER.itemsize, f"{part} headers")
    heads = body.records(ACQUISITION_HEADER, count, f"{part} headers")
    samples = heads["number_of_samples"].astype(np.int64)
    dimensions = heads["trajectory_dimensions"].astype(np.int64)
    channels = heads["active_channels"].astype(np.int64)
    body.bounded(int(dimensions.max(initial=0)), MAX_TRAJECTORY_DIMENSIONS, f"{part} trajectory_dimensions")
    _agree(body, trajectory_bytes, int((samples * dimensions).sum()) * _FLOAT.itemsize, f"{part} trajectories")
    _agree(body, data_bytes, int((samples * channels).sum()) * _COMPLEX.itemsize, f"{part} samples")
    trajectories = _split(body.take(trajectory_bytes, f"{part} trajectories").view(_FLOAT), samples, dimensions)
    data = _split(body.take(data_bytes, f"{part} samples").view(_COMPLEX), channels, samples)
    return [Acquisition(heads[number], data[number], trajectories[number]) for number in range(count)]


def _split(values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> list[np.ndarray]:
    ends = np.cumsum(rows * columns)
    starts = ends - rows * columns
    return [
        values[start:end].reshape(shape)
        for start, end, *shape in zip(starts.tolist(), ends.tolist(), rows.tolist(), columns.tolist(), strict=True)
    ]


def _write_acquisitions(acquisitions: list[Acquisition]) -> tuple[Pieces, tuple[int, int, int, int]]:
    for acquisition in acquisitions:
        check_acquisition(acquisition, finite=False)
    heads = [acquisition.head.tobytes() for acquisition in acquisitions]
    trajectories = [raw_bytes(acquisition.traj, _FLOAT) for acquisition in acquisitions]
    data = [raw_bytes(acquisition.data, _COMPLEX) for acquisition in acquisitions]
    sizes = (len(heads), sum(map(len, heads)), sum(map(len, data)), sum(map(len, trajectories)))
    return [*heads, *trajectories, *data], sizes


def _read_stats(body: Body, announced: int, part: str) -> list[BucketStats]:
    before = body.taken
    stats = []
    for _ in range(body.bounded(body.u64(f"number of {part} stats"), 256, f"number of {part} stats")):
        counters = []
        for _ in range(_SETS):
            count = body.bounded(body.u64(f"{part} counter values"), 1 << 16, f"number of {part} counter values")
            counters.append(frozenset(body.records(_U16, count, f"{part} counter values").tolist()))
        stats.append(BucketStats(*counters))
    _agree(body, announced, body.taken - before, f"{part} stats")
    return stats


def _write_stats(stats: list[BucketStats]) -> bytes:
    raw = struct.pack("<Q", len(stats))
    for stat in stats:
        for values in astuple(stat):
            raw += struct.pack(f"<Q{len(values)}H", len(values), *sorted(values))
    return raw


def _read_waveforms(body: Body, sizes: tuple[int, ...]) -> list[Waveform]:
    count, header_bytes, data_bytes = sizes
    body.bounded(count, body.limits.count, "number of waveforms")
    _agree(body, header_bytes, count * WAVEFORM_HEADER.itemsize, "waveform headers")
    heads = body.records(WAVEFORM_HEADER, count, "waveform headers")
    channels, samples = heads["channels"].astype(np.int64), heads["number_of_samples"].astype(np.int64)
    _agree(body, data_bytes, int((channels * samples).sum()) * _U32.itemsize, "waveform samples")
    data = _split(body.take(data_bytes, "waveform samples").view(_U32), channels, samples)
    return [Waveform(heads[number], data[number]) for number in range(count)]


def _agree(body: Body, announced: int, needed: int, part: str) -> None:
    if announced != needed:
        raise WireError(f"{body.name}: {announced} bytes are announced for {part}, which need {needed}")
