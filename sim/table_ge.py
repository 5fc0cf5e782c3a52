"""Table in the syntax of GE's `kacq_yz.txt`, as public sequences write it for the ARC reconstruction. Experimental.

No product sequence reads such a file, and this one was checked by reading it back here only. Fields are separated by
tabs; ky and kz count from 0. A view is offset by ky + 1, in 3-D by ny + 1 views for each kz besides. The steps of a
pattern (max_stride) stand before its dimensions, the fully sampled box of a calibration after them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scanprior.sim.sampling_table import Measured, SamplingTable, TableError
from scanprior.sim.table_text import read_lines, whole

_SCHEDULE = ("# Reconstruction schedule", "# t, Echo, Cal Table, Cal Pass, Accel Table, Accel Pass, Mask Table")
_COLUMNS = "# View Offset, Pass Offset, ky, kz"


def write_ge(path: Path, table: SamplingTable) -> None:
    """Write the pattern in order of acquisition and, with an ACS, a second pattern with its points."""
    mask, points = table.mask, table.order.points
    calibrated = bool(mask.acs.any())
    lines = [
        "GE_KTACQ\t201\t0",
        f"num_sampling_patterns\t{2 if calibrated else 1}",
        "num_mask_patterns\t0",
        f"kx_peak_pos\t{mask.matrix[0] // 2}",
        "---",
        *_SCHEDULE,
        "RECON_SCHEDULE\t1\t7",
        "---",
        f"0\t0\t{1 if calibrated else -1}\t0\t0\t0\t-1",
        "# Sampling Pattern 0 (Accel)",
        _COLUMNS,
        f"SAMPLING_PATTERN\t{len(points)}\t4",
        f"max_stride\t{_stride(mask.mask)}\t{_stride(mask.mask.T)}",
        _dimensions(mask.mask.shape),
        "---",
        *_views(points, mask.mask.shape),
    ]
    if calibrated:
        acs = points[table.in_acs]
        lines += [
            "# Sampling Pattern 1 (Calibration)",
            _COLUMNS,
            f"SAMPLING_PATTERN\t{len(acs)}\t4",
            _dimensions(mask.mask.shape),
            "fully_sampled_start\t{}\t{}".format(*acs.min(0)),
            "fully_sampled_length\t{}\t{}".format(*mask.acs_extent),
            "---",
            *_views(acs, mask.mask.shape),
        ]
    path.write_text("\n".join([*lines, ""]), encoding="ascii")


def read_ge(path: Path, shape: tuple[int, int]) -> Measured:
    """Read what `write_ge` wrote, for a matrix (y, z).

    Raises
    ------
    TableError
        For another version or layout, a pattern of another size than it says, or a view offset that is not that of its
        ky and kz.
    """
    lines = iter([(i, line) for i, line in enumerate(read_lines(path), 1) if line and not line.startswith("#")])
    _expect(path, lines, "GE_KTACQ", (201, 201), (0, 0))
    patterns = _expect(path, lines, "num_sampling_patterns", (1, 2))[0]
    _expect(path, lines, "num_mask_patterns", (0, 0))
    _expect(path, lines, "kx_peak_pos", (0, 65535))
    _expect(path, lines, "---")
    _expect(path, lines, "RECON_SCHEDULE", (1, 1), (7, 7))
    _expect(path, lines, "---")
    _expect(path, lines, "", (0, 0), (0, 0), (1, 1) if patterns == 2 else (-1, -1), (0, 0), (0, 0), (0, 0), (-1, -1))
    points = _read_pattern(path, lines, shape, before=("max_stride",))
    acs = np.zeros(len(points), bool)
    if patterns == 2:
        calibration = _read_pattern(path, lines, shape, after=("fully_sampled_start", "fully_sampled_length"))
        number = points[:, 0] * shape[1] + points[:, 1]
        known = calibration[:, 0] * shape[1] + calibration[:, 1]
        if not np.isin(known, number).all():
            raise TableError(f"{path}: the calibration pattern has points that the sampling pattern has not")
        acs = np.isin(number, known)
    left = next(lines, None)
    if left is not None:
        raise TableError(f"{path}: line {left[0]}: expected the end, found {left[1][:40]!r}")
    return Measured(points, acs=acs)


def _dimensions(shape: tuple[int, ...]) -> str:
    return f"pattern_dimensions\t{shape[0]}\t{shape[1]}"


def _views(points: np.ndarray, shape: tuple[int, ...]) -> Iterator[str]:
    """The rows of a pattern."""
    for ky, kz in points.tolist():
        yield f"{ky + 1 + kz * (shape[0] + 1)}\t0\t{ky}\t{kz}"


def _stride(mask: np.ndarray) -> int:
    """The largest step between neighbours along the first axis; 1 where no two points share the second."""
    steps = [int(np.diff(np.flatnonzero(column)).max()) for column in mask.T if column.sum() > 1]
    return max(steps, default=1)


def _expect(path: Path, lines: Iterator[tuple[int, str]], name: str, *limits: tuple[int, int]) -> list[int]:
    """Values of the next line, which must begin with `name` (empty: has values only)."""
    number, line = next(lines, (0, ""))
    if not number:
        raise TableError(f"{path}: the file ends early, expected {name or 'a row of numbers'}")
    head, *values = line.split("\t") if name else ["", *line.split("\t")]
    where = f"{path}: line {number}"
    if head != name or len(values) != len(limits):
        expected = f"{name!r} and {len(limits)} numbers" if name else f"{len(limits)} numbers"
        raise TableError(f"{where}: expected {expected}, separated by tabs, found {line[:60]!r}")
    return [whole(value, where, *limit) for value, limit in zip(values, limits, strict=True)]


def _read_pattern(
    path: Path,
    lines: Iterator[tuple[int, str]],
    shape: tuple[int, int],
    before: tuple[str, ...] = (),
    after: tuple[str, ...] = (),
) -> np.ndarray:
    """(n, 2) ky and kz of a pattern; `before` and `after` name the lines around its dimensions."""
    count = _expect(path, lines, "SAMPLING_PATTERN", (1, shape[0] * shape[1]), (4, 4))[0]
    for name in before:
        _expect(path, lines, name, (0, 65535), (0, 65535))
    _expect(path, lines, "pattern_dimensions", (shape[0], shape[0]), (shape[1], shape[1]))
    for name in after:
        _expect(path, lines, name, (0, 65535), (0, 65535))
    _expect(path, lines, "---")
    points = np.zeros((count, 2), np.int64)
    last = shape[1] * (shape[0] + 1)
    for row in range(count):
        view, _, *point = _expect(path, lines, "", (1, last), (0, 0), (0, shape[0] - 1), (0, shape[1] - 1))
        if view != point[0] + 1 + point[1] * (shape[0] + 1):
            raise TableError(f"{path}: view offset {view} is not that of ky {point[0]}, kz {point[1]}")
        points[row] = point
    return points
