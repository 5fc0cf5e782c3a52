"""Sorts acquisitions, as they come, into slices; tells when calibration lines and slices are complete."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from scanprior.gadgets.collecting import Line, Reference, Slot
from scanprior.gadgets.encoding import Encoding
from scanprior.gadgets.errors import ScanError
from scanprior.gadgets.mrd import Acquisition
from scanprior.gadgets.noise import NoiseScan
from scanprior.gadgets.readout import matrix_width, read
from scanprior.gadgets.slices import Acs, AcsReady, Event, Key, SliceData, SliceReady

log = logging.getLogger(__name__)

LAST_IN_SLICE, LAST_IN_REPETITION, LAST_IN_MEASUREMENT = 1 << 7, 1 << 13, 1 << 24
NOISE, REVERSE = 1 << 18, 1 << 21
CALIBRATION, CALIBRATION_AND_IMAGING = 1 << 19, 1 << 20
ENDS = LAST_IN_SLICE | LAST_IN_REPETITION | LAST_IN_MEASUREMENT
LEFT_OUT = {  # lines that are not part of the image
    1 << 22: "navigation",
    1 << 23: "phase correction",
    1 << 25: "HP feedback",
    1 << 26: "dummy",
    1 << 27: "RT feedback",
    1 << 28: "surface coil correction",
    1 << 29: "phase stabilization reference",
    1 << 30: "phase stabilization",
}
LEFT_OUT_BITS = sum(LEFT_OUT)
FEEDBACK = (1 << 25) | (1 << 27)
DEFAULT_BUDGET = 4 << 30


class Sorter:
    """Turns a stream of acquisitions into slices.

    Lines with flag 21 (calibration and imaging) go to both the image and its calibration lines. Lines with flag 20
    (calibration) alone go to the calibration lines, and to the image, too, if calibrationMode is "embedded": Siemens
    acquires them within the same scan, off the undersampled grid. Flags 20 and 21 together count as 21.
    Noise readouts (19) go to `noise`. Navigators, phase correction, dummies, surface coil correction, phase
    stabilisation and feedback lines are left out and counted in `left_out`; a feedback line that is flagged 21 says
    itself that it is imaging, and stays. Trajectories are ignored: only Cartesian headers get this far.

    Parameters
    ----------
    encoding
        What the header says.
    max_bytes
        Memory that unfinished slices and calibration lines may take.

    Attributes
    ----------
    noise
        The noise readouts so far.
    left_out
        Readouts that were left out, counted by reason. Those that were refused count as "refused".
    """

    def __init__(self, encoding: Encoding, *, max_bytes: int = DEFAULT_BUDGET) -> None:
        self.encoding = encoding
        self.max_bytes = max_bytes
        self.noise = NoiseScan()
        self.left_out: Counter[str] = Counter()
        self._refused: Counter[Key] = Counter()
        self._channels = encoding.receiver_channels
        self._width: int | None = None
        self._slots: dict[Key, Slot] = {}
        self._references: dict[Key, Reference] = {}
        self._done: set[Key] = set()
        self._acs: dict[int, tuple[Key, Acs]] = {}  # the latest of each slice
        self._acs_lines: dict[int, int] = {}
        self._bytes = 0
        self._warned: set[str] = set()
        expected = encoding.reference_lines[0]
        if expected and encoding.volume:
            second = encoding.reference_lines[1]
            expected = expected * second if second else None
        self._expected_acs = expected

    def add(self, acquisition: Acquisition) -> list[Event]:
        """Take one readout.

        Returns
        -------
        list of Event
            What is complete now, in the order in which it became so.

        Raises
        ------
        ScanError
            The readout contradicts the header or the readouts before it. It is not taken; all before it are kept,
            and the next can be added. The image that it belongs to says in its notes that it misses it.
        """
        try:
            return self._add(acquisition)
        except ScanError:
            self.left_out["refused"] += 1
            key = self._known_key(acquisition.head)
            if key is not None and not int(acquisition.head["flags"]) & NOISE:
                self._refused[key] += 1
            raise

    def ended_by(self, acquisition: Acquisition) -> list[Event]:
        """What ends with a readout that `add` refused: no other will come that says so."""
        flags, key = int(acquisition.head["flags"]), self._known_key(acquisition.head)
        if key is None or flags & NOISE or not flags & ENDS:
            return []
        return list(self._close(key, flags, int(acquisition.head["idx"]["average"])))

    def _add(self, acquisition: Acquisition) -> list[Event]:
        flags = int(acquisition.head["flags"])
        if flags & NOISE:
            self._check_data(acquisition, acquisition.head)
            self.noise.add(acquisition)
            return []
        reason = self._reason_to_leave_out(flags)
        if reason:
            self.left_out[reason] += 1
            key = self._key(acquisition.head["idx"])
            return list(self._close(key, flags, int(acquisition.head["idx"]["average"]))) if flags & ENDS else []
        line = self._line(acquisition, flags)
        calibration_only = bool(
            flags & CALIBRATION and not flags & CALIBRATION_AND_IMAGING and self.encoding.calibration != "embedded"
        )
        events: list[Event] = []
        if line.calibration and self.encoding.calibration != "embedded":
            self._add_reference(line, calibration_only)
        if not calibration_only:
            events += self._add_line(line)
        # the end of a separate reference scan is not the end of the slice
        if flags & ENDS and not (calibration_only and line.key not in self._slots):
            events += self._close(line.key, flags, line.average)
        return events

    def flush(self) -> list[Event]:
        """The stream has ended: close what is open."""
        for reason, count in self.left_out.items():
            log.info("left out %d %s readouts", count, reason)
        return [event for key in list(self._slots) for event in self._finish(key)]

    def _reason_to_leave_out(self, flags: int) -> str | None:
        bits = flags & LEFT_OUT_BITS
        if flags & CALIBRATION_AND_IMAGING:
            bits &= ~FEEDBACK
        return next((name for bit, name in LEFT_OUT.items() if bits & bit), None)

    def _key(self, idx: np.void) -> Key:
        return Key(int(idx["slice"]), int(idx["contrast"]), int(idx["phase"]), int(idx["repetition"]), int(idx["set"]))

    def _known_key(self, head: np.void) -> Key | None:
        """Which image a readout belongs to, as far as its header can be believed."""
        key, limits = self._key(head["idx"]), self.encoding.limits
        known = all(limits[name].minimum <= value <= limits[name].maximum for name, value in key._asdict().items())
        return key if known and int(head["encoding_space_ref"]) == 0 else None

    def _line(self, acquisition: Acquisition, flags: int) -> Line:
        head, idx = acquisition.head, acquisition.head["idx"]
        self._check_data(acquisition, head)
        if int(head["encoding_space_ref"]) != 0:
            raise ScanError(
                f"{_where(head)} belongs to encoding space {int(head['encoding_space_ref'])}, "
                "the header has only space 0"
            )
        both = CALIBRATION | CALIBRATION_AND_IMAGING
        if flags & both == both:
            self._warn("both flags 20 (calibration) and 21 (calibration and imaging) are set: taken as 21")
        key, average = self._key(idx), int(idx["average"])
        for name, value in (*zip(Key._fields, key, strict=True), ("average", average)):
            self._check_limit(head, name, value)
        step_1, step_2 = int(idx["kspace_encode_step_1"]), int(idx["kspace_encode_step_2"])
        self._check_limit(head, "kspace_encoding_step_1", step_1)
        self._check_limit(head, "kspace_encoding_step_2", step_2)
        try:
            readout = read(head, bool(flags & REVERSE))
        except ScanError as error:
            raise ScanError(f"{_where(head)}: {error}") from None
        at = (self.encoding.position(2, step_2), self.encoding.position(1, step_1))
        return Line(key, at, average, readout.samples(acquisition.data), readout, head, bool(flags & both))

    def _check_data(self, acquisition: Acquisition, head: np.void) -> None:
        expected = (int(head["active_channels"]), int(head["number_of_samples"]))
        if acquisition.data.shape != expected:
            raise ScanError(f"{_where(head)} has data {acquisition.data.shape}, its header says {expected}")
        if self._channels is None:
            self._channels = expected[0]
        if expected[0] != self._channels:
            raise ScanError(f"{_where(head)} has {expected[0]} channels, expected {self._channels}")
        flat = acquisition.data.ravel()
        # the energy is finite if every sample is, unless it overflows: only then look at each
        if not np.isfinite(np.vdot(flat, flat).real) and not np.isfinite(flat).all():
            raise ScanError(f"{_where(head)} has samples that are not finite (NaN or infinite)")

    def _check_limit(self, head: np.void, name: str, value: int) -> None:
        limit = self.encoding.limits[name]
        if not limit.minimum <= value <= limit.maximum:
            raise ScanError(f"{_where(head)} has {name} {value}, the header allows {limit.minimum} to {limit.maximum}")

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            log.warning(message)

    def _claim(self, size: int, what: str) -> None:
        if self._bytes + size > self.max_bytes:
            raise ScanError(
                f"{what} needs {size / 2**20:.1f} MiB, {self._bytes / 2**20:.1f} MiB are taken by unfinished slices, "
                f"and the memory budget is {self.max_bytes / 2**20:.1f} MiB"
            )
        self._bytes += size

    def _add_reference(self, line: Line, only: bool) -> None:
        reference = self._references.get(line.key)
        if reference is None:
            size_y, size_z = self.encoding.encoded.matrix[1:]
            reference = Reference(line, (size_z // 2, size_y // 2))
        _place(line, self._width or self.encoding.encoded.matrix[0])
        if reference.readout != line.readout:
            raise ScanError(
                f"{_where(line.head)} has {line.readout.length} samples (centre {line.readout.center}), "
                f"the calibration lines before it {reference.readout.length} (centre {reference.readout.center})"
            )
        if line.at not in reference.lines:
            self._claim(line.samples.nbytes, "a calibration line")
        reference.add(line)
        reference.separate |= only and self.encoding.calibration in ("separate", "external")
        self._references[line.key] = reference

    def _add_line(self, line: Line) -> list[Event]:
        if line.key in self._done:
            self.left_out["after the end of their slice"] += 1
            self._warn(f"{line.key} was complete, but more lines of it come: left out")
            return []
        width = self._width or matrix_width(line.readout, self.encoding)
        slot = self._slots.get(line.key)
        if slot is None:
            _place(line, width)  # an unfit line must not take memory
            points = self.encoding.encoded.matrix[1] * self.encoding.encoded.matrix[2]
            self._claim(len(line.samples) * points * width * 8, f"{line.key}")
            slot = self._slots[line.key] = Slot(line, width, self.encoding)
            self._width = width
        if _place(line, width) != slot.columns or line.readout.length != slot.first_readout.length:
            raise ScanError(
                f"{_where(line.head)} has {line.readout.length} samples (centre {line.readout.center}), "
                f"the lines before it {slot.first_readout.length} (centre {slot.first_readout.center})"
            )
        events = self._early_acs(line, slot)
        slot.add(line)
        if self._expected(line.key) == slot.block.lines and not slot.announced and self._embedded:
            events += self._announce(line.key, slot, slot.acs())
        return events

    @property
    def _embedded(self) -> bool:
        return self.encoding.calibration == "embedded"

    def _expected(self, key: Key) -> int | None:
        return self._acs_lines.get(key.slice, self._expected_acs)

    def _early_acs(self, line: Line, slot: Slot) -> list[Event]:
        """Calibration lines that are complete because another kind of line follows."""
        if self._embedded:
            if slot.announced or line.calibration or not slot.block.centred():
                return []
            return self._announce(line.key, slot, slot.acs())
        if line.calibration:
            return []
        for key, reference in self._references.items():
            complete = reference.separate or reference.block.centred()
            if key.slice == line.key.slice and complete and not reference.announced:
                reference.announced = True
                return self._announce(line.key, slot, self._reference_acs(reference, slot))
        return []

    def _reference_acs(self, reference: Reference, slot: Slot) -> Acs | None:
        try:
            return reference.acs(slot.kspace.shape[-1])
        except ScanError as error:  # oversampling was removed from the image, but not from these
            self._warn(f"the calibration lines do not fit the image and are left out: {error}")
            return None

    def _announce(self, key: Key, slot: Slot, acs: Acs | None) -> list[Event]:
        slot.announced = True
        if acs is None:
            return []
        empty = slot.kspace[:, :0, :0]
        data = SliceData(
            key, empty.copy(), slot.counts[:0, :0].copy(), slot.columns, acs, key, slot.head,
            (slot.stamps[0], slot.stamps[1]) if slot.stamps else (0, 0), float(slot.head["sample_time_us"]), 0,
        )  # fmt: skip
        if not self._embedded:
            self._remember(key, acs)
        return [AcsReady(key, data)]

    def _remember(self, key: Key, acs: Acs) -> None:
        old = self._acs.get(key.slice)
        self._bytes += acs.kspace.nbytes - (old[1].kspace.nbytes if old else 0)
        self._acs[key.slice] = (key, acs)

    def _close(self, key: Key, flags: int, average: int) -> Iterator[Event]:
        if flags & LAST_IN_MEASUREMENT:
            yield from self.flush()
            return
        if flags & LAST_IN_SLICE:
            for sibling in self._siblings(key):
                slot = self._slots[sibling]
                slot.ended.add(average)
                if self._all_averages(slot, average):
                    yield from self._finish(sibling)
        if flags & LAST_IN_REPETITION:
            for other in [other for other in self._slots if other.repetition == key.repetition]:
                if self._all_averages(self._slots[other], average):
                    yield from self._finish(other)

    def _siblings(self, key: Key) -> list[Key]:
        """Images that LAST_IN_SLICE on a line of `key` ends.

        Echoes, phases and sets of a slice are often acquired together and the flag set only on the last of them.
        """
        limits = self.encoding.limits
        inner = ("contrast", "phase", "set")
        last = all(limits[name].given and getattr(key, name) == limits[name].maximum for name in inner)
        if not last:
            return [key] if key in self._slots else []
        return [other for other in self._slots if (other.slice, other.repetition) == (key.slice, key.repetition)]

    def _all_averages(self, slot: Slot, average: int) -> bool:
        """Whether the end that came with `average` is the end of the last average: LAST_IN_SLICE may come with each."""
        announced = set(range(self.encoding.averages))
        if not announced <= slot.averages:
            return False
        return average >= max(announced) or announced <= slot.ended

    def _finish(self, key: Key) -> list[Event]:
        slot = self._slots.pop(key)
        self._bytes -= slot.kspace.nbytes
        self._done.add(key)
        if self._embedded:
            acs = slot.acs()
            if acs is not None:
                self._acs_lines[key.slice] = slot.block.lines
                self._remember(key, acs)
        elif key in self._references:
            reference = self._references.pop(key)
            self._bytes -= sum(samples.nbytes for samples, _ in reference.lines.values())
            own = self._reference_acs(reference, slot)
            if own is not None:
                self._remember(key, own)
        acs_key, acs = self._acs.get(key.slice, (None, None))
        if acs is None:  # calibration lines whose other counters differ from those of the image
            for other, reference in self._references.items():
                if other.slice == key.slice:
                    acs_key, acs = other, self._reference_acs(reference, slot)
        repeated = slot.counts > 1
        if repeated.any():
            slot.kspace[:, repeated] /= slot.counts[repeated].astype(np.float32)[None, :, None]
        data = SliceData(
            key, slot.kspace, slot.counts, slot.columns, acs, acs_key, slot.head, (slot.stamps[0], slot.stamps[1]),
            float(slot.head["sample_time_us"]), int(slot.counts.sum()), self._notes(key),
        )  # fmt: skip
        return [SliceReady(key, data)]

    def _notes(self, key: Key) -> dict[str, Any]:
        """For the image's history: what was left out of the scan so far, and which of its own lines were refused."""
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(self.left_out.items()) if reason != "refused")
        notes: dict[str, Any] = {"readouts_left_out": told} if told else {}
        if refused := self._refused.pop(key, 0):
            notes["refused_readouts"] = refused
        return notes


def _place(line: Line, width: int) -> tuple[int, int]:
    try:
        return line.readout.place(width)
    except ScanError as error:
        raise ScanError(f"{_where(line.head)}: {error}") from None


def _where(head: np.void) -> str:
    idx = head["idx"]
    return (
        f"acquisition {int(head['scan_counter'])} (line {int(idx['kspace_encode_step_1'])}, "
        f"slice {int(idx['slice'])}, repetition {int(idx['repetition'])})"
    )
