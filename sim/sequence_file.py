"""Pulseq files as pypulseq reads them, with all that it may raise made one clear error."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pypulseq as pp


class SequenceFileError(ValueError):
    """A file that pypulseq cannot read."""


@dataclass(frozen=True, eq=False)
class ReadSequence:
    """A sequence and what pypulseq makes of it.

    Attributes
    ----------
    sequence
        Its blocks and definitions.
    labels
        (readout,) of each label that it sets.
    trajectory
        (3, readout * sample) k along x, y, z in 1/m.
    times
        (readout * sample,) seconds.
    """

    sequence: pp.Sequence
    labels: dict[str, np.ndarray]
    trajectory: np.ndarray
    times: np.ndarray


def read_sequence(path: Path) -> ReadSequence:
    """Read a Pulseq file.

    Raises
    ------
    SequenceFileError
        If pypulseq cannot, whatever it stumbles over.
    """
    sequence = pp.Sequence()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # files before 1.5 do not say what a pulse is for; None lets pypulseq tell by its flip angle
            sequence.read(str(path), detect_rf_use=None)  # type: ignore[arg-type]
            labels = sequence.evaluate_labels(evolution="adc")
            trajectory, _, _, _, times = sequence.calculate_kspace()
    except (
        ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError,
        UnboundLocalError, ValueError, Warning,
    ) as error:  # fmt: skip
        raise SequenceFileError(f"{path}: pypulseq cannot read it: {type(error).__name__}: {error}") from error
    return ReadSequence(sequence, labels, trajectory, times)
