"""The lines of one image, and of its calibration, while they come in."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scanprior.gadgets.encoding import Encoding
from scanprior.gadgets.readout import Readout
from scanprior.gadgets.slices import Acs, Key

MIN_EARLY_ACS = 12  # a smaller block around the centre may still be growing

Coordinates = tuple[int, int]  # (kz, ky) in the encoded matrix


class Line(NamedTuple):
    """A readout, checked and placed."""

    key: Key
    at: Coordinates
    average: int
    samples: np.ndarray
    readout: Readout
    head: np.void
    calibration: bool


class Block:
    """Bounding box of distinct lines, and how many there are."""

    def __init__(self, center: Coordinates) -> None:
        self.center = center
        self.lines = 0
        self.low, self.high = (2**31, 2**31), (-1, -1)

    def add(self, at: Coordinates) -> None:
        """Take a line that was not there before."""
        self.lines += 1
        self.low = (min(self.low[0], at[0]), min(self.low[1], at[1]))
        self.high = (max(self.high[0], at[0]), max(self.high[1], at[1]))

    def centred(self) -> bool:
        """Whether the lines fill the box, and it is large and lies around the centre within one line."""
        sides = [high - low + 1 for low, high in zip(self.low, self.high, strict=True)]
        if not self.lines or self.lines != sides[0] * sides[1]:
            return False
        for side, low, high, center in zip(sides, self.low, self.high, self.center, strict=True):
            flat = center == 0  # not encoded along this axis
            if not flat and (side < MIN_EARLY_ACS or abs((center - low) - (high - center + 1)) > 1):
                return False
        return True


class Slot:
    """An image whose lines are coming in."""

    def __init__(self, line: Line, width: int, encoding: Encoding) -> None:
        size_y, size_z = encoding.encoded.matrix[1:]
        self.kspace = np.zeros((len(line.samples), size_z, size_y, width), np.complex64)
        self.counts = np.zeros((size_z, size_y), np.uint16)
        self.flagged = np.zeros((size_z, size_y), bool)
        self.columns = line.readout.place(width)
        self.first_readout = line.readout
        self.center = (size_z // 2, size_y // 2)
        self.head, self.rank = line.head, (2**31, 0, 0, 0)
        self.stamps: list[int] = []
        self.averages: set[int] = set()
        self.ended: set[int] = set()
        self.block = Block(self.center)
        self.announced = False

    def add(self, line: Line) -> None:
        """Put a line in its place; one that was there before is averaged with it at the end."""
        (kz, ky), average = line.at, line.average
        place = self.kspace[:, kz, ky, slice(*self.columns)]
        if self.counts[kz, ky]:
            place += line.samples
        else:
            place[:] = line.samples
        self.counts[kz, ky] += 1
        self.averages.add(average)
        # the order of arrival must not matter: ties go to the lower line, then to the lower average
        rank = (abs(kz - self.center[0]) + abs(ky - self.center[1]), kz, ky, average)
        if rank < self.rank:
            self.head, self.rank = line.head, rank
        stamp = int(line.head["acquisition_time_stamp"])
        self.stamps = [min(stamp, *self.stamps[:1]), max(stamp, *self.stamps[1:])] if self.stamps else [stamp, stamp]
        if line.calibration and not self.flagged[kz, ky]:
            self.flagged[kz, ky] = True
            self.block.add(line.at)

    def acs(self) -> Acs | None:
        """Copy of the calibration lines so far; None if there are none."""
        if not self.block.lines:
            return None
        (low_z, low_y), (high_z, high_y) = self.block.low, self.block.high
        box = (slice(low_z, high_z + 1), slice(low_y, high_y + 1))
        mask = self.flagged[box]
        weight = mask / np.maximum(self.counts[box], 1).astype(np.float32)
        kspace = self.kspace[(slice(None), *box)] * weight[None, :, :, None].astype(np.float32)
        return Acs(kspace, mask.copy(), (low_z, low_y), self.columns)


class Reference:
    """Calibration lines kept apart from the image. Their readout may be shorter than that of the image."""

    def __init__(self, line: Line, center: Coordinates) -> None:
        self.readout = line.readout
        self.block = Block(center)
        self.separate = False  # whether lines came that the image does not have
        self.lines: dict[Coordinates, tuple[np.ndarray, int]] = {}
        self.announced = False

    def add(self, line: Line) -> None:
        """Keep a line; repeated ones are averaged."""
        old = self.lines.get(line.at)
        if old is None:
            self.lines[line.at] = (line.samples.astype(np.complex64), 1)
            self.block.add(line.at)
        else:
            self.lines[line.at] = (old[0] + line.samples, old[1] + 1)

    def acs(self, width: int) -> Acs:
        """The calibration lines, on a readout matrix of `width`; raises ScanError where they do not fit it."""
        origin = self.block.low
        size = (self.block.high[0] - origin[0] + 1, self.block.high[1] - origin[1] + 1)
        columns = self.readout.place(width)
        coils = len(next(iter(self.lines.values()))[0])
        kspace = np.zeros((coils, *size, width), np.complex64)
        mask = np.zeros(size, bool)
        for (kz, ky), (samples, count) in self.lines.items():
            kspace[:, kz - origin[0], ky - origin[1], slice(*columns)] = samples / np.float32(count)
            mask[kz - origin[0], ky - origin[1]] = True
        return Acs(kspace, mask, origin, columns)
