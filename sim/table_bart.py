"""Table as a BART pattern: a `.cfl` of ones where a point is measured, and its `.hdr`. It holds no order.

[1, Y, Z] in BART's order of dimensions, little-endian complex64, the first dimension running fastest.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from scanprior.sim.sampling_table import Measured, SamplingTable, TableError
from scanprior.sim.table_text import read_lines, whole


def write_bart(path: Path, table: SamplingTable) -> None:
    """Write `path` (.cfl) and the .hdr beside it, [1, Y, Z] of 1 + 0i and 0."""
    mask = table.mask.mask
    path.with_suffix(".hdr").write_text(f"# Dimensions\n1 {mask.shape[0]} {mask.shape[1]}\n", encoding="ascii")
    path.write_bytes(mask.astype("<c8").tobytes(order="F"))


def read_bart(path: Path, shape: tuple[int, int]) -> Measured:
    """Read a pattern of a matrix (y, z).

    Raises
    ------
    TableError
        For other dimensions, a file of another length, or values other than 0 and 1.
    """
    header = path.with_suffix(".hdr")
    lines = read_lines(header)
    if "# Dimensions" not in lines[:-1]:
        raise TableError(f"{header}: expected the line '# Dimensions' and the sizes after it")
    sizes = [whole(text, header.name, 1) for text in lines[lines.index("# Dimensions") + 1].split()]
    if sizes[:3] != [1, *shape] or math.prod(sizes[3:]) != 1:
        raise TableError(
            f"{header}: expected the dimensions 1 {shape[0]} {shape[1]}, found {' '.join(map(str, sizes))}"
        )
    try:
        found = path.stat().st_size
        if found != 8 * shape[0] * shape[1]:
            raise TableError(f"{path}: expected {8 * shape[0] * shape[1]} bytes, found {found}")
        values = np.fromfile(path, "<c8").reshape(shape, order="F")
    except OSError as error:
        raise TableError(f"{path}: cannot be read: {error.strerror}") from None
    if not ((values == 0) | (values == 1)).all():
        raise TableError(f"{path}: expected a pattern of 0 and 1, found other values")
    kz, ky = np.nonzero(values.T)
    return Measured(np.stack([ky, kz], 1), ordered=False)
