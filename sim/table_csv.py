"""Table as CSV, for sequences that somebody writes: one row a point, in order of acquisition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scanprior.sim.sampling_table import Measured, SamplingTable, TableError
from scanprior.sim.table_text import read_lines, whole

COLUMNS = ("index", "shot", "echo", "ky", "kz", "acs")


def write_csv(path: Path, table: SamplingTable) -> None:
    """Rows of `COLUMNS`: ky and kz count from 0, DC lies at N // 2; acs is 1 for a point of the ACS, else 0."""
    order = table.order
    rows = np.column_stack([np.arange(len(order.points)), order.shot, order.echo, order.points, table.in_acs])
    text = "".join(",".join(map(str, row)) + "\n" for row in [COLUMNS, *rows.tolist()])
    path.write_text(text, encoding="ascii")


def read_csv(path: Path, shape: tuple[int, int]) -> Measured:
    """Read what `write_csv` wrote, for a matrix (y, z).

    Raises
    ------
    TableError
        For other columns, rows that are missing, or numbers out of range.
    """
    lines = read_lines(path)
    if not lines or tuple(lines[0].split(",")) != COLUMNS:
        raise TableError(f"{path}: expected the columns {','.join(COLUMNS)}, found {(lines or [''])[0][:80]!r}")
    points = shape[0] * shape[1]
    most = (points - 1, points - 1, points - 1, shape[0] - 1, shape[1] - 1, 1)
    rows = []
    for number, line in enumerate(lines[1:]):
        values = line.split(",")
        if len(values) != len(COLUMNS):
            raise TableError(f"{path}: row {number}: expected {len(COLUMNS)} values, found {len(values)}")
        row = [
            whole(value, f"{path}: row {number}: {name}", 0, limit)
            for name, value, limit in zip(COLUMNS, values, most, strict=True)
        ]
        if row[0] != number:
            raise TableError(f"{path}: row {number}: index is {row[0]}; a row is missing or was moved")
        rows.append(row)
    array = np.array(rows, np.int64).reshape(-1, len(COLUMNS))
    return Measured(array[:, 3:5], array[:, 1], array[:, 2], array[:, 5].astype(bool))
