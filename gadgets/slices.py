"""What sorting makes of acquisitions: the k-space of a slice (or a volume) and its calibration lines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np


class Key(NamedTuple):
    """Which image: the MRD counters that tell one image from another. Averages and segments are merged."""

    slice: int
    contrast: int
    phase: int
    repetition: int
    set: int

    def __str__(self) -> str:
        """As an operator would say it: counters other than slice and repetition only where they count."""
        others = [f", {name} {getattr(self, name)}" for name in ("contrast", "phase", "set") if getattr(self, name)]
        return f"slice {self.slice}, repetition {self.repetition}{''.join(others)}"


@dataclass(frozen=True)
class Acs:
    """Calibration lines of one slice: the smallest block that holds them all.

    Attributes
    ----------
    kspace
        (coil, kz, ky, x) complex64, not whitened, zero where there was no line; x is the whole readout matrix.
    mask
        (kz, ky) bool, true where there was a line.
    origin
        (kz, ky) of the block's first line in the encoded matrix, whose DC lies at matrix // 2.
    readout
        First sample of x that was acquired, and the one behind the last.
    """

    kspace: np.ndarray
    mask: np.ndarray
    origin: tuple[int, int]
    readout: tuple[int, int]


@dataclass
class SliceData:
    """All that was acquired for one image.

    Attributes
    ----------
    key
        Which image this is.
    kspace
        (coil, kz, ky, x) complex64 on the encoded matrix, DC at index N // 2 of each axis; the mean over averages,
        not whitened, zero where nothing was acquired. In an `AcsReady` event it holds no lines: (coil, 0, 0, x).
    counts
        (kz, ky) uint16, how many readouts each line is the mean of.
    readout
        First sample of x that was acquired, and the one behind the last; all of x unless the echo is asymmetric.
    acs
        Calibration lines, None where there are none.
    acs_key
        Which image the calibration lines were acquired with: another repetition's where this one has none of its own.
    head
        Acquisition header of the line nearest to the centre of k-space.
    stamps
        acquisition_time_stamp of the first and of the last line.
    dwell_us
        Time between two samples in microseconds (0 where the headers do not say).
    readouts
        Number of readouts that came, averages counted singly.
    """

    key: Key
    kspace: np.ndarray
    counts: np.ndarray
    readout: tuple[int, int]
    acs: Acs | None
    acs_key: Key | None
    head: np.void
    stamps: tuple[int, int]
    dwell_us: float
    readouts: int
    notes: dict[str, Any] = field(default_factory=dict)


class AcsReady(NamedTuple):
    """The calibration lines of a slice are complete; the slice itself is still being acquired."""

    key: Key
    slice_data: SliceData


class SliceReady(NamedTuple):
    """All lines of a slice have come."""

    key: Key
    slice_data: SliceData


Event = AcsReady | SliceReady
