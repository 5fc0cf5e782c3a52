"""Pulseq files (`.seq`): written after the timing check, and read back from their own labels and gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pypulseq as pp
from scanprior.sim.pulseq_gre import build_gre
from scanprior.sim.pulseq_protocol import ProtocolError, PulseqProtocol
from scanprior.sim.pulseq_tse import build_tse
from scanprior.sim.sampling_table import Measured, SamplingTable, TableError
from scanprior.sim.sequence_file import SequenceFileError, check_encoding, read_sequence


def build_sequence(table: SamplingTable, protocol: PulseqProtocol) -> pp.Sequence:
    """The sequence that plays a table, its timing checked.

    Raises
    ------
    ProtocolError
        If it cannot be played within the limits.
    """
    try:
        sequence = (build_gre if protocol.sequence == "gre" else build_tse)(table, protocol)
    except ProtocolError:
        raise
    except (ValueError, AssertionError) as error:  # what pypulseq raises for events beyond the limits
        raise ProtocolError(f"sequence {protocol.sequence}: {error}") from error
    fine, report = sequence.check_timing()
    if not fine:
        raise ProtocolError(
            f"sequence {protocol.sequence}: pypulseq's timing check found {len(report)} errors, first: {report[0]}"
        )
    return sequence


def write_pulseq(path: Path, table: SamplingTable, protocol: PulseqProtocol | None = None) -> None:
    """Write the sequence that plays a table.

    Raises
    ------
    ProtocolError
        If it cannot be played within the limits.
    """
    protocol = protocol or PulseqProtocol()
    sequence = build_sequence(table, protocol)
    sequence.write(str(path), check_timing=False, v141_compat=protocol.version == "1.4.1")


def read_pulseq(path: Path, shape: tuple[int, int]) -> Measured:
    """Read what a sequence measures, for a matrix (y, z): LIN and PAR of its readouts, noise scan left out.

    Every slice must measure the same points in the same order, and the gradients must take each readout where its
    labels say.

    Raises
    ------
    TableError
        If the signature is not that of the text, the file cannot be read, or the above does not hold.
    """
    try:
        read = read_sequence(path)
        fov = np.array(read.sequence.get_definition("FOV"), float)
        sign = float(read.sequence.get_definition("PhaseSign"))
    except SequenceFileError as error:
        raise TableError(str(error)) from error
    except (TypeError, ValueError) as error:
        raise TableError(f"{path}: definitions FOV and PhaseSign: expected numbers: {error}") from error
    labels, trajectory = read.labels, read.trajectory
    count = np.size(labels.get("LIN", ()))
    if (
        not count
        or any(np.shape(values) != (count,) for values in labels.values())
        or trajectory.shape[1] % count
        or not trajectory.size
        or fov.shape != (3,)
        or abs(sign) != 1
    ):
        raise TableError(
            f"{path}: expected readouts of one length, labelled LIN, and the definitions FOV and PhaseSign"
        )
    label = {name: labels.get(name, np.zeros(count, np.int64)) for name in ("LIN", "PAR", "SLC", "NOISE", "REF", "IMA")}
    imaging = label["NOISE"] == 0
    points = np.stack([label["LIN"], label["PAR"]], 1)[imaging].astype(np.int64)
    samples = trajectory.reshape(3, count, -1)
    try:
        check_encoding(path, samples[:, imaging, samples.shape[2] // 2].T, points, shape, fov, sign)
    except SequenceFileError as error:
        raise TableError(str(error)) from None
    if not np.array_equal(label["REF"], label["IMA"]):
        raise TableError(f"{path}: an ACS line carries REF and IMA both, for it is imaging data too; found one alone")
    slices = label["SLC"][imaging]
    rows = {int(number): np.flatnonzero(slices == number) for number in np.unique(slices)}
    first = rows[min(rows)]
    columns = {"acs": label["REF"][imaging].astype(bool)}
    if "SEG" in labels:
        columns["echo"] = labels["SEG"][imaging].astype(np.int64)
    for number, own in rows.items():
        if not all(np.array_equal(values[own], values[first]) for values in (points, *columns.values())):
            raise TableError(f"{path}: slice {number} does not measure what slice {min(rows)} does")
    return Measured(
        points[first], echo=columns["echo"][first] if "echo" in columns else None, acs=columns["acs"][first]
    )
