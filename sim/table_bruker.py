"""Table as Bruker's `PVM_EncSteps1` and `PVM_EncSteps2`. Checked by reading it back here, in no ParaVision.

JCAMP-DX parameters, the steps signed about DC. A method plays every step of the first list for each of the second,
so that a mask of points fits only if it is such a product.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import numpy as np
from scanprior.sim.sampling_table import Measured, SamplingTable, TableError
from scanprior.sim.table_text import read_lines, whole

_HEAD = ("##TITLE=Parameter List, scanprior", "##JCAMPDX=4.24", "##DATATYPE=Parameter Values", "##OWNER=scanprior")
_ARRAY = re.compile(r"##\$(\w+)=\( ?([0-9]{1,6}) ?\)", re.ASCII)


def write_bruker(path: Path, table: SamplingTable) -> None:
    """Write `PVM_Matrix` and the steps in order of acquisition.

    Raises
    ------
    TableError
        If the points in their order are not every ky for each kz; the message says what fits.
    """
    points = table.order.points
    kz, first = np.unique(points[:, 1], return_index=True)
    kz = kz[np.argsort(first)]
    ky = points[: len(points) // len(kz), 0]
    if not np.array_equal(points, _product(ky, kz)):
        raise TableError(
            f"{path}: a Bruker table plays every step of one list for each of the other; in this order this mask of "
            "points is no such product. Lines always fit, and every ky of each kz in the order linear; other points "
            "need another format, such as csv"
        )
    ny, nz = table.mask.mask.shape
    arrays = {"PVM_Matrix": table.mask.matrix[: 2 if nz == 1 else 3], "PVM_EncSteps1": ky - ny // 2}
    if nz > 1:
        arrays["PVM_EncSteps2"] = kz - nz // 2
    lines = list(_HEAD)
    for name, values in arrays.items():
        lines.append(f"##${name}=( {len(values)} )")
        lines += textwrap.wrap(" ".join(str(int(value)) for value in values), 72, break_on_hyphens=False)
    path.write_text("\n".join([*lines, "##END=", ""]), encoding="ascii")


def read_bruker(path: Path, shape: tuple[int, int]) -> Measured:
    """Read the steps of a parameter file, for a matrix (y, z); other parameters are passed over.

    Raises
    ------
    TableError
        If a list is missing, shorter or longer than it says, or the matrix is another.
    """
    arrays = _arrays(path)
    wanted = list(shape if shape[1] > 1 else shape[:1])
    names = ["PVM_Matrix", "PVM_EncSteps1", *(["PVM_EncSteps2"] if shape[1] > 1 else [])]
    missing = [name for name in names if name not in arrays]
    if missing:
        raise TableError(f"{path}: expected the parameter {missing[0]}, found none")
    if arrays["PVM_Matrix"][1:] != wanted:
        raise TableError(f"{path}: PVM_Matrix: expected {wanted} after the readout, found {arrays['PVM_Matrix'][1:]}")
    ky = np.array(arrays["PVM_EncSteps1"], np.int64) + shape[0] // 2
    kz = np.array(arrays.get("PVM_EncSteps2", [0]), np.int64) + (shape[1] // 2 if shape[1] > 1 else 0)
    return Measured(_product(ky, kz))


def _product(ky: np.ndarray, kz: np.ndarray) -> np.ndarray:
    """(n, 2), every ky for each kz."""
    return np.stack([np.tile(ky, len(kz)), np.repeat(kz, len(ky))], 1)


def _arrays(path: Path) -> dict[str, list[int]]:
    """The arrays of the parameters that this format uses."""
    arrays: dict[str, list[int]] = {}
    sizes: dict[str, int] = {}
    name = ""
    lines = read_lines(path)
    if "##END=" not in lines:
        raise TableError(f"{path}: expected ##END= at the end; the file was cut, or is no JCAMP-DX parameter file")
    for line in lines[: lines.index("##END=")]:
        if line.startswith(("##", "$$")):
            found = _ARRAY.fullmatch(line.rstrip())
            name = found[1] if found and found[1] in ("PVM_Matrix", "PVM_EncSteps1", "PVM_EncSteps2") else ""
            if found and name:
                if name in arrays:
                    raise TableError(f"{path}: {name} stands there twice")
                arrays[name], sizes[name] = [], int(found[2])
        elif name:
            arrays[name] += [whole(text, f"{path}: {name}") for text in line.split()]
    for known, values in arrays.items():
        if len(values) != sizes[known]:
            raise TableError(f"{path}: {known}: expected {sizes[known]} numbers, found {len(values)}")
    return arrays
