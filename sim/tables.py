"""Export of masks as tables that a sequence or a program reads, by the name of the format, and reading them back."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from scanprior.sim.mask_file import MaskFileError, check_own
from scanprior.sim.sampling_table import (
    FORMAT,
    Measured,
    SamplingTable,
    TableError,
    assemble,
    read_sidecar,
    sidecar_path,
    write_sidecar,
)
from scanprior.sim.table_bart import read_bart, write_bart
from scanprior.sim.table_bruker import read_bruker, write_bruker
from scanprior.sim.table_csv import read_csv, write_csv
from scanprior.sim.table_ge import read_ge, write_ge
from scanprior.sim.table_mrd import read_mrd, write_mrd
from scanprior.sim.table_mrsolutions import read_mrsolutions, write_mrsolutions
from scanprior.sim.whole_files import whole_files


def _write_pulseq(path: Path, table: SamplingTable) -> None:
    _need_pypulseq()
    from scanprior.sim.pulseq_file import write_pulseq

    write_pulseq(path, table)


def _read_pulseq(path: Path, shape: tuple[int, int]) -> Measured:
    _need_pypulseq()
    from scanprior.sim.pulseq_file import read_pulseq

    return read_pulseq(path, shape)


def _need_pypulseq() -> None:
    if find_spec("pypulseq") is None:
        raise TableError("format pulseq needs pypulseq, which the extra 'seq' brings: pip install 'scanprior[seq]'")


@dataclass(frozen=True)
class TableFormat:
    """One file format.

    Attributes
    ----------
    suffix
        That its file names must have.
    status
        What is claimed of it, in words.
    write
        `write(path, table)`.
    read
        `read(path, (y, z))`: what the file says by itself.
    """

    suffix: str
    status: str
    write: Callable[[Path, SamplingTable], None]
    read: Callable[[Path, tuple[int, int]], Measured]


TABLE_FORMATS: dict[str, TableFormat] = {
    "pulseq": TableFormat(".seq", "supported: a sequence that plays the mask", _write_pulseq, _read_pulseq),
    "csv": TableFormat(".csv", "supported: for sequences of your own", write_csv, read_csv),
    "mrd": TableFormat(".h5", "supported: template of acquisition headers", write_mrd, read_mrd),
    "bart": TableFormat(".cfl", "supported: read by BART; holds no order", write_bart, read_bart),
    "mrsolutions": TableFormat(
        ".txt", "pe1_order = 5 table: read back by scanprior only, tried on no scanner", write_mrsolutions,
        read_mrsolutions,
    ),
    "ge": TableFormat(
        ".txt", "experimental, syntax of kacq_yz.txt only: no product sequence reads it", write_ge, read_ge
    ),
    "bruker": TableFormat(
        ".txt", "PVM_EncSteps1/2: read back by scanprior only, tried in no ParaVision", write_bruker, read_bruker
    ),
}  # fmt: skip


def write_table(
    path: Path, table: SamplingTable, name: str, write: Callable[[Path, SamplingTable], None] | None = None
) -> TableFormat:
    """Write a table and the JSON file beside it, read them back, and only then put them in their places.

    `write` takes the place of the format's own writer: `pulseq_file.write_pulseq` with a protocol, say. Where anything
    fails, what was there before is left as it was.

    Raises
    ------
    TableError
        For an unknown format, another suffix, a mask that the format cannot hold, a table that does not read back as
        it is, or another file that has the name of the JSON file.
    """
    path = Path(path)
    chosen = table_format(path, name)
    try:
        check_own(sidecar_path(path), FORMAT)
    except MaskFileError as error:
        raise TableError(str(error)) from None
    with whole_files(path.parent) as folder:
        partial = folder / path.name
        try:
            (write or chosen.write)(partial, table)
            write_sidecar(partial, table, name, chosen.status)
            back = read_table(partial)[0]
            if back.mask.sha256 != table.mask.sha256 or not np.array_equal(back.order.points, table.order.points):
                raise TableError(f"{partial}: reads back as another table than was written")
        except TableError as error:
            # named as asked for, not as the partial file
            raise TableError(str(error).replace(f"{folder}{os.sep}", f"{path.parent / '_'}"[:-1])) from error
    return chosen


def read_table(path: Path) -> tuple[SamplingTable, TableFormat]:
    """Read a table that `write_table` wrote, and check it against the JSON file beside it.

    Returns
    -------
    SamplingTable
        Mask and order, from the table's own points; of a format without an order, that of the JSON file.
    TableFormat
        What it was.

    Raises
    ------
    TableError
        Naming the file, what was found and what was expected.
    """
    path = Path(path)
    if not path.is_file():
        raise TableError(f"{path}: no such file")
    sidecar = read_sidecar(path)
    if sidecar.table not in TABLE_FORMATS:
        raise TableError(f"{sidecar_path(path)}: table: expected one of {', '.join(TABLE_FORMATS)}")
    chosen = table_format(path, sidecar.table)
    return assemble(path, sidecar, chosen.read(path, sidecar.matrix[1:])), chosen


def table_format(path: Path, name: str) -> TableFormat:
    """A format by name, for a file of its suffix."""
    if name not in TABLE_FORMATS:
        raise TableError(f"format {name!r}: expected one of {', '.join(TABLE_FORMATS)}")
    if path.suffix != TABLE_FORMATS[name].suffix:
        raise TableError(f"{path}: a {name} table ends in {TABLE_FORMATS[name].suffix}")
    return TABLE_FORMATS[name]
