"""Table as the look-up table of MR Solutions' `pe1_order = 5`. Checked by reading it back here, on no scanner.

One whole number a line of text: the count of points as the low and the high half of 32 bits, then ky and kz of each,
signed about DC.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scanprior.sim.sampling_table import Measured, SamplingTable, TableError
from scanprior.sim.table_text import read_lines, whole


def write_mrsolutions(path: Path, table: SamplingTable) -> None:
    """Write the points in order of acquisition."""
    points = table.order.points - np.array(table.mask.mask.shape) // 2
    high, low = divmod(len(points), 65536)
    path.write_text("".join(f"{number}\n" for number in (low, high, *points.ravel().tolist())), encoding="ascii")


def read_mrsolutions(path: Path, shape: tuple[int, int]) -> Measured:
    """Read what `write_mrsolutions` wrote, for a matrix (y, z).

    Raises
    ------
    TableError
        If a line is no whole number, or their count is not what the first two lines say.
    """
    lines = read_lines(path)
    numbers = [whole(line, f"{path}: line {i}") for i, line in enumerate(lines, 1)]
    if len(numbers) < 2 or min(numbers[:2]) < 0:
        raise TableError(f"{path}: expected the count of points as two halves of 16 bits in the first two lines")
    count = numbers[0] + 65536 * numbers[1]
    if len(numbers) != 2 + 2 * count:
        raise TableError(f"{path}: its first lines say {count} points, found {len(numbers) - 2} numbers after them")
    return Measured(np.array(numbers[2:], np.int64).reshape(-1, 2) + np.array(shape) // 2)
