"""Pulseq files as pypulseq reads them: signed, and with all that it may raise made one clear error."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pypulseq as pp

TOLERANCE = 1e-3
"""How far, in lines, the gradients may put a readout from where its labels say it is."""

_SIGNATURE = b"\n[SIGNATURE]\n"


class SequenceFileError(ValueError):
    """A file that was changed or cut, that pypulseq cannot read, or whose gradients are not what its labels say."""


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
        If its signature is not that of its text, or pypulseq cannot read it, whatever it stumbles over.
    """
    check_signature(path)
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


def check_signature(path: Path) -> None:
    """Check that a file's signature is the hash of its text.

    Raises
    ------
    SequenceFileError
        If it has none, or the text was changed.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SequenceFileError(f"{path}: cannot be read: {error.strerror}") from None
    text, mark, signature = content.rpartition(_SIGNATURE)
    found = signature.decode("ascii", "replace").split()
    if not mark or "Hash" not in found[:-1]:
        raise SequenceFileError(f"{path}: expected a signed Pulseq file; the signature is missing, the file may be cut")
    expected = hashlib.md5(text, usedforsecurity=False).hexdigest()
    if found[found.index("Hash") + 1 :] != [expected]:
        raise SequenceFileError(f"{path}: its signature is not that of its text: the file was changed")


def check_encoding(
    path: Path, centre: np.ndarray, points: np.ndarray, shape: tuple[int, int], fov: np.ndarray, sign: float
) -> None:
    """Check that the gradients take each readout where its labels say, within `TOLERANCE` lines.

    Parameters
    ----------
    centre
        (readout, 3) k along x, y, z in 1/m of the sample N // 2, which is to be that of k_x = 0.
    points
        (readout, 2) LIN and PAR.
    shape
        Matrix (y, z); with one partition k_z is to be 0.
    fov
        (3,) m.
    sign
        PhaseSign: 1, or -1 where k runs against the labels.

    Raises
    ------
    SequenceFileError
        Naming the readout that is farthest off.
    """
    expected = np.zeros(centre.shape)
    expected[:, 1:] = sign * (points - np.array(shape) // 2)
    if shape[1] == 1:
        expected[:, 2] = 0.0
    lines = centre * fov
    off = np.abs(lines - expected)
    if not (off <= TOLERANCE).all():
        row, axis = np.unravel_index(int(np.argmax(np.nan_to_num(off, nan=np.inf))), off.shape)
        raise SequenceFileError(
            f"{path}: readout {row} is at k_{'xyz'[axis]} = {lines[row, axis]:.4f} lines, its labels say "
            f"{expected[row, axis]:.0f}"
        )
