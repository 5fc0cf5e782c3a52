"""Slices from what Gadgetron sorted before us: recon data (id 1023) and buckets (id 1050)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from scanprior.gadgets.encoding import Encoding
from scanprior.gadgets.errors import ScanError
from scanprior.gadgets.fourier import resize
from scanprior.gadgets.mrd import Acquisition
from scanprior.gadgets.slices import Acs, Key, SliceData

AXES = "(RO, E1, E2, CHA, N, S, LOC)"


class Buffer(Protocol):
    """Sorted k-space: `data` (RO, E1, E2, CHA, N, S, LOC) complex64, `headers` (E1, E2, N, S, LOC) of acquisitions."""

    data: np.ndarray
    headers: np.ndarray


def slices_from_recon(
    data: Buffer, reference: Buffer | None, encoding: Encoding, refuse: Callable[[Key, ScanError], None]
) -> Iterator[SliceData]:
    """The slices of one recon bit, those of a location together.

    Lines are placed by their headers' counters, not by their place in the array, which a reference may have cut short.
    With embedded calibration, reference lines that the data lack belong to the same scan and are put into them, as
    the sorter does. Columns that are zero at the ends of all lines are taken as not acquired (asymmetric echo).

    Parameters
    ----------
    refuse
        Called for a slice that cannot be used, with its key as its headers have it, and what is wrong with it or with
        its reference: counters outside the header's limits, lines outside the matrix, samples that are not finite. It
        is left out, and the next follows.

    Raises
    ------
    ScanError
        The array and its headers do not fit each other or the MRD header: none of its slices can be used.
    """
    for buffer, name in ((data, "data"), (reference, "reference")):
        if buffer is not None:
            _check(buffer, name, encoding)
    if reference is not None and reference.data.shape[3] != data.data.shape[3]:
        raise ScanError(f"recon data have {data.data.shape[3]} channels, their reference {reference.data.shape[3]}")
    _, _, _, _, sets_n, sets_s, locations = data.data.shape
    for location in range(locations):
        for s in range(sets_s):
            for n in range(sets_n):
                heads = _acquired_heads(data, (n, s, location))
                if not len(heads):
                    continue
                try:
                    found = _slice(data, reference, (n, s, location), encoding)
                except ScanError as error:
                    refuse(_key(heads[0]), error)
                else:
                    yield found


def acquisitions_from_bucket(data: Sequence[Acquisition], reference: Sequence[Acquisition]) -> list[Acquisition]:
    """The acquisitions of a bucket in the order in which they were acquired, each once.

    Gadgetron puts a line for calibration and imaging (21) into both lists; only calibration lines (20) are in the
    reference alone.
    """
    calibration = 20
    only = [acquisition for acquisition in reference if acquisition.is_flag_set(calibration)]
    return sorted([*data, *only], key=lambda acquisition: int(acquisition.head["scan_counter"]))


class _Lines:
    """Lines of one image: where they go, (kz, ky), what they hold, (coil, line, x), and their headers."""

    def __init__(self, at: np.ndarray, samples: np.ndarray, heads: np.ndarray) -> None:
        self.at, self.samples, self.heads = at, samples, heads


def _check(buffer: Buffer, name: str, encoding: Encoding) -> None:
    shape = buffer.data.shape
    if len(shape) != 7:
        raise ScanError(f"recon {name} have {len(shape)} axes, expected 7: {AXES}")
    expected = (shape[1], shape[2], *shape[4:])
    if buffer.headers.shape != expected:
        raise ScanError(f"recon {name} are {shape}, so their headers should be {expected}, not {buffer.headers.shape}")
    widths = (encoding.encoded.matrix[0], encoding.readout_cropped)
    if shape[0] not in widths and (name == "data" or shape[0] > widths[0]):
        raise ScanError(f"recon {name} have readouts of {shape[0]} samples, the header says {widths[0]} or {widths[1]}")
    if name == "reference" and 0 in shape[4:]:
        raise ScanError(f"recon reference are {shape}, expected 1 or more of N, S and LOC")


def _key(head: np.void) -> Key:
    return Key(*(int(head["idx"][name]) for name in Key._fields))


def _own(buffer: Buffer, which: tuple[int, int, int]) -> tuple[int, int, int]:
    """Where a buffer holds image (n, s, location): a reference may hold fewer, the last for all others."""
    n, s, location = (min(index, size - 1) for index, size in zip(which, buffer.data.shape[4:], strict=True))
    return n, s, location


def _acquired_heads(buffer: Buffer, which: tuple[int, int, int]) -> np.ndarray:
    heads = buffer.headers[(slice(None), slice(None), *_own(buffer, which))]
    return heads[heads["number_of_samples"] > 0]


def _lines(buffer: Buffer, name: str, which: tuple[int, int, int], encoding: Encoding) -> _Lines | None:
    n, s, location = _own(buffer, which)
    e1, e2 = np.nonzero(buffer.headers[:, :, n, s, location]["number_of_samples"] > 0)
    if not len(e1):
        return None
    heads = _acquired_heads(buffer, which)
    step_1, step_2 = heads["idx"]["kspace_encode_step_1"], heads["idx"]["kspace_encode_step_2"]
    kz = np.array([encoding.position(2, int(step)) for step in step_2])
    ky = np.array([encoding.position(1, int(step)) for step in step_1])
    _, size_y, size_z = encoding.encoded.matrix
    if ky.min() < 0 or ky.max() >= size_y or kz.min() < 0 or kz.max() >= size_z:
        raise ScanError(
            f"recon {name} have lines at ky {ky.min()}..{ky.max()}, kz {kz.min()}..{kz.max()}, "
            f"outside the encoded matrix of {size_y} x {size_z}"
        )
    samples = buffer.data[:, :, :, :, n, s, location][:, e1, e2]  # (RO, line, CHA)
    if not np.isfinite(samples).all():
        raise ScanError(f"recon {name} have samples that are not finite (NaN or infinite)")
    return _Lines(np.stack([kz, ky], 1), np.moveaxis(samples, -1, 0).swapaxes(1, 2), heads)


def _slice(data: Buffer, reference: Buffer | None, which: tuple[int, int, int], encoding: Encoding) -> SliceData:
    lines = _lines(data, "data", which, encoding)
    assert lines is not None  # whoever asks has seen their headers
    width = data.data.shape[0]
    _, size_y, size_z = encoding.encoded.matrix
    kspace = np.zeros((lines.samples.shape[0], size_z, size_y, width), np.complex64)
    counts = np.zeros((size_z, size_y), np.uint16)
    kspace[:, lines.at[:, 0], lines.at[:, 1]] = lines.samples
    counts[lines.at[:, 0], lines.at[:, 1]] = 1

    acs = None
    extra = _lines(reference, "reference", which, encoding) if reference is not None else None
    heads = lines.heads
    if extra is not None:
        extra.samples = resize(extra.samples, -1, width)
        acs = _acs(extra, width)
        if encoding.calibration == "embedded":
            new = counts[extra.at[:, 0], extra.at[:, 1]] == 0
            kspace[:, extra.at[new, 0], extra.at[new, 1]] = extra.samples[:, new]
            counts[extra.at[new, 0], extra.at[new, 1]] = 1
            heads = np.concatenate([heads, extra.heads[new]])

    distance = [
        abs(encoding.position(1, int(idx["kspace_encode_step_1"])) - size_y // 2)
        + abs(encoding.position(2, int(idx["kspace_encode_step_2"])) - size_z // 2)
        for idx in heads["idx"]
    ]
    head = heads[int(np.argmin(distance))]
    key, stamps = _key(head), heads["acquisition_time_stamp"]
    for name, value in key._asdict().items():
        limit = encoding.limits[name]
        if not limit.minimum <= value <= limit.maximum:
            raise ScanError(f"recon data have {name} {value}, the header allows {limit.minimum} to {limit.maximum}")
    return SliceData(
        key, kspace, counts, _acquired(lines.samples), acs, key, head, (int(stamps.min()), int(stamps.max())),
        float(head["sample_time_us"]), int(counts.sum()),
    )  # fmt: skip


def _acs(lines: _Lines, width: int) -> Acs:
    origin = lines.at.min(0)
    size_z, size_y = lines.at.max(0) - origin + 1
    kspace = np.zeros((lines.samples.shape[0], size_z, size_y, width), np.complex64)
    mask = np.zeros((size_z, size_y), bool)
    at = lines.at - origin
    kspace[:, at[:, 0], at[:, 1]] = lines.samples
    mask[at[:, 0], at[:, 1]] = True
    return Acs(kspace, mask, (int(origin[0]), int(origin[1])), _acquired(lines.samples))


def _acquired(samples: np.ndarray) -> tuple[int, int]:
    columns = np.flatnonzero(samples.any((0, 1)))
    return (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, samples.shape[-1])
