"""What a Pulseq sequence does, told by its own blocks: when, where in k-space, on which slice and with which phase."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pypulseq as pp
from scanprior.sim.sequence_file import SequenceFileError, read_sequence


class PlaybackError(ValueError):
    """A sequence that cannot be played back; the message names what it lacks."""


@dataclass(frozen=True, eq=False)
class Playback:
    """The readouts of a sequence in order of time, noise scan included.

    Attributes
    ----------
    trajectory
        (readout, sample, 3) float64, k along x, y, z in 1/m, as pypulseq integrates the gradients.
    phase
        (readout,) phase in radians of the magnetisation against the receiver; 0 for all where pulses and receiver go
        together.
    position
        (readout,) where along z the slice lies that was excited, in m; nan where nothing is excited.
    age
        (readout, sample) seconds since the middle of the excitation; nan without one.
    start
        (readout,) seconds since the start of the sequence.
    dwell
        Seconds per sample, of all readouts.
    labels
        (readout,) int of each label; 0 for one that the file never sets.
    definitions
        Of the file, by name.
    """

    trajectory: np.ndarray
    phase: np.ndarray
    position: np.ndarray
    age: np.ndarray
    start: np.ndarray
    dwell: float
    labels: dict[str, np.ndarray]
    definitions: dict[str, Any]

    def lengths(self, name: str, count: int | None = None) -> np.ndarray:
        """A definition that holds numbers.

        Raises
        ------
        PlaybackError
            If it is missing, not of finite numbers, or not `count` of them.
        """
        try:
            found = np.atleast_1d(np.asarray(self.definitions[name], float))
        except KeyError:
            raise PlaybackError(f"definition {name}: missing; sequences of export-mask have it") from None
        except (TypeError, ValueError):
            raise PlaybackError(f"definition {name}: expected numbers, found {self.definitions[name]!r}") from None
        if not np.isfinite(found).all() or count not in (None, len(found)):
            raise PlaybackError(f"definition {name}: expected {count or 'finite'} numbers, found {found.tolist()}")
        return found

    def positive(self, name: str) -> float:
        """A definition that is one number above 0.

        Raises
        ------
        PlaybackError
            If it is not.
        """
        value = float(self.lengths(name, 1)[0])
        if not value > 0:
            raise PlaybackError(f"definition {name}: expected more than 0, found {value:g}")
        return value


LABELS = ("LIN", "PAR", "SLC", "SEG", "NOISE", "REF", "IMA")
"""What a scan is written from. Others (averages, reversed readouts, navigators, ..) mean more than is simulated."""

_UNKNOWN_TO_THE_SIMULATION = ("freq_ppm", "phase_ppm", "phase_modulation")


def play_back(path: Path) -> Playback:
    """Read a sequence and follow it block by block.

    An excitation tips the magnetisation to the phase of the pulse less 90 degrees, a refocusing pulse mirrors it at its
    own phase. Slices are where the frequency of the pulse and its gradient say. Relaxation and imperfect pulses are
    left out.

    Raises
    ------
    PlaybackError
        If the file was changed or pypulseq cannot read it, its readouts have no common length and dwell time, or it
        asks for what is not simulated: other labels than `LABELS`, a receiver off resonance, phases in ppm.
    """
    try:
        read = read_sequence(path)
    except SequenceFileError as error:
        raise PlaybackError(str(error)) from error
    sequence, labels, trajectory, times = read.sequence, read.labels, read.trajectory, read.times
    phases, positions, excited, starts, adcs = _follow(sequence, path)
    count = len(adcs)
    if not count or trajectory.shape[1] % count or len({(adc.num_samples, adc.dwell) for adc in adcs}) > 1:
        raise PlaybackError(f"{path}: expected readouts of one length and dwell time, found {count} readouts")
    if "LIN" not in labels:
        raise PlaybackError(f"{path}: expected readouts with the label LIN, found {', '.join(labels) or 'no label'}")
    for name, values in labels.items():
        if name not in LABELS and np.any(values):
            raise PlaybackError(
                f"{path}: label {name}: it is {np.asarray(values).max():g} on a readout; simulated are "
                f"{', '.join(LABELS)} alone"
            )
    times = times.reshape(count, -1)
    return Playback(
        np.moveaxis(trajectory.reshape(3, count, -1), 0, -1),
        np.array(phases),
        np.array(positions),
        times - np.array(excited)[:, None],
        np.array(starts),
        float(adcs[0].dwell),
        {name: np.asarray(labels.get(name, np.zeros(count, np.int64))) for name in LABELS},
        dict(sequence.definitions),
    )


def _follow(
    sequence: pp.Sequence, path: Path
) -> tuple[list[float], list[float], list[float], list[float], list[SimpleNamespace]]:
    """Of each readout: phase, slice position, time of the excitation, start; and its event."""
    phases, positions, excited, starts, adcs = [], [], [], [], []
    now, phase, position, since = 0.0, 0.0, math.nan, math.nan
    for number in sequence.block_events:
        block = sequence.get_block(number)
        _check_events(block, f"{path}: block {number}")
        if block.rf is not None:
            middle = float(pp.calc_rf_center(block.rf)[0])
            own = block.rf.phase_offset + 2 * math.pi * block.rf.freq_offset * middle
            amplitude = block.gz.amplitude if block.gz is not None else math.nan
            where = block.rf.freq_offset / amplitude if amplitude else math.nan
            use = getattr(block.rf, "use", "")
            if use == "excitation":
                phase, position, since = own - math.pi / 2, where, now + block.rf.delay + middle
            elif use == "refocusing":
                # one that hits another slice than the excitation did refocuses nothing
                phase = 2 * own - phase
                position = position if abs(where - position) < 1e-5 else math.nan
            else:
                raise PlaybackError(f"{path}: block {number}: a pulse for {use or 'nothing that the file tells'}")
        if block.adc is not None:
            against = phase - block.adc.phase_offset + math.pi / 2
            phases.append(0.0 if math.isnan(since) else math.remainder(against, 2 * math.pi))
            positions.append(position)
            excited.append(since)
            starts.append(now + block.adc.delay)
            adcs.append(block.adc)
        now += sequence.block_durations[number]
    return phases, positions, excited, starts, adcs


def _check_events(block: SimpleNamespace, where: str) -> None:
    """Refuse what a pulse or a readout asks for and the playback would pass over."""
    if block.adc is not None and block.adc.freq_offset:
        raise PlaybackError(f"{where}: the receiver is {block.adc.freq_offset:g} Hz off, which is not simulated")
    for kind in ("adc", "rf"):
        for name in _UNKNOWN_TO_THE_SIMULATION:
            value = getattr(getattr(block, kind), name, None)
            if value is not None and np.any(value):
                raise PlaybackError(f"{where}: {kind} has {name}, which is not simulated")
