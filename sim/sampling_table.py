"""A mask as a sequence plays it: its points in order of acquisition, and the JSON file beside each exported table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from scanprior.models.weights_description import explain
from scanprior.sim.acquisition_order import Order, OrderSettings, acquisition_order
from scanprior.sim.mask_file import MaskDescription, MaskFileError, SamplingMask, described, description

FORMAT = "scanprior-table"

LARGEST_PLANE = 2**24
"""Phase encodings (y, z) of the largest matrix that is read: a file cannot ask for memory at will."""


class TableError(ValueError):
    """A table that cannot be read or cannot hold the mask, or that is not the one its sidecar describes."""


@dataclass(frozen=True)
class SamplingTable:
    """A mask and the order of its points.

    Attributes
    ----------
    mask
        What is measured.
    settings
        How it is ordered.
    order
        The points, which follow from the two.
    """

    mask: SamplingMask
    settings: OrderSettings
    order: Order = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", acquisition_order(self.mask.mask, self.settings))

    @property
    def in_acs(self) -> np.ndarray:
        """(point,) bool, whether a point belongs to the ACS."""
        return self.mask.acs[tuple(self.order.points.T)]


@dataclass(frozen=True)
class Measured:
    """What a table says by itself.

    Attributes
    ----------
    points
        (n, 2) ky and kz from 0, in the table's order.
    shot, echo, acs
        (n,) where the format holds them.
    ordered
        Whether the format holds an order.
    """

    points: np.ndarray
    shot: np.ndarray | None = None
    echo: np.ndarray | None = None
    acs: np.ndarray | None = None
    ordered: bool = True


class _Order(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    echo_train: int
    effective_echo: int | None


class TableSidecar(MaskDescription):
    """What the JSON file beside a table holds."""

    format: Literal["scanprior-table"]
    version: Literal[1]
    table: str
    status: str
    acs_start: tuple[int, int]
    order: _Order
    prior: str | None
    prior_sha256: str | None

    @property
    def order_settings(self) -> OrderSettings:
        """The order that the table was written in."""
        return OrderSettings(self.order.name, self.order.echo_train, self.order.effective_echo)


def sidecar_path(path: Path) -> Path:
    """`table.csv.json` beside `table.csv`: `table.json` would be that of a mask file of the same name."""
    return path.with_name(path.name + ".json")


def write_sidecar(path: Path, table: SamplingTable, name: str, status: str) -> None:
    """Write the JSON file beside the table `path` of the format `name`.

    Raises
    ------
    TableError
        If the mask's own facts are not what it can hold.
    """
    mask, settings = table.mask, table.settings
    own = {
        "format": FORMAT,
        "version": 1,
        "table": name,
        "status": status,
        "acs_start": (_first(mask.acs, 1), _first(mask.acs, 0)),
        "order": asdict(settings),
        "prior": mask.prior,
        "prior_sha256": mask.prior_sha256,
    }
    try:
        text = TableSidecar.model_validate(own | description(mask)).text()
    except ValidationError as error:
        raise TableError(f"{path}: cannot be described: {explain(error)}") from None
    except (TypeError, ValueError) as error:
        raise TableError(f"{path}: settings that JSON cannot hold: {error}") from None
    sidecar_path(path).write_text(text, encoding="utf-8")


def read_sidecar(path: Path) -> TableSidecar:
    """Read the JSON file beside the table `path`.

    Raises
    ------
    TableError
        If it is missing, no JSON, or not what this version writes.
    """
    beside = sidecar_path(path)
    try:
        found = json.loads(beside.read_text(encoding="utf-8"))
    except OSError:
        raise TableError(f"{beside}: cannot be read; every exported table has this file beside it") from None
    except (ValueError, RecursionError) as error:
        raise TableError(f"{beside}: not JSON: {error}") from None
    try:
        sidecar = TableSidecar.model_validate(found)
        sidecar.order_settings  # noqa: B018  # raises for an order that cannot be
    except ValidationError as error:
        raise TableError(f"{beside}: {explain(error)}") from None
    except ValueError as error:
        raise TableError(f"{beside}: {error}") from None
    if min(sidecar.matrix) < 1 or max(sidecar.matrix) > 65535 or sidecar.matrix[1] * sidecar.matrix[2] > LARGEST_PLANE:
        raise TableError(
            f"{beside}: matrix: expected sizes from 1 to 65535 and at most {LARGEST_PLANE} phase encodings, "
            f"found {sidecar.matrix}"
        )
    return sidecar


def assemble(path: Path, sidecar: TableSidecar, measured: Measured) -> SamplingTable:
    """The table that a file and its sidecar make, after checking that they agree point by point.

    Raises
    ------
    TableError
        If a point is listed twice or lies outside the matrix, or mask, ACS, order, shots or echoes differ.
    """
    shape = sidecar.matrix[1:]
    points = measured.points
    outside = (points < 0) | (points >= np.array(shape))
    if outside.any():
        row = int(np.flatnonzero(outside.any(1))[0])
        raise TableError(f"{path}: point {row} is {points[row].tolist()}, outside the matrix (y, z) = {shape}")
    mask = np.zeros(shape, bool)
    mask[tuple(points.T)] = True
    if int(mask.sum()) != len(points):
        raise TableError(f"{path}: {len(points) - int(mask.sum())} points are listed more than once")
    if len(points) != sidecar.samples:
        raise TableError(f"{path}: expected {sidecar.samples} points, found {len(points)}")
    acs = np.zeros(shape, bool)
    y, z = sidecar.acs_start
    acs[y : y + sidecar.acs_extent[0], z : z + sidecar.acs_extent[1]] = True
    prior = sidecar.prior, sidecar.prior_sha256
    try:
        whole = described(path, sidecar_path(path), sidecar, (mask, acs), prior)
    except MaskFileError as error:
        raise TableError(str(error)) from None
    table = SamplingTable(whole, sidecar.order_settings)
    if not measured.ordered:
        return table
    for name, found, expected in (
        ("point", points, table.order.points),
        ("shot", measured.shot, table.order.shot),
        ("echo", measured.echo, table.order.echo),
        ("ACS flag", measured.acs, table.in_acs),
    ):
        if found is not None and not np.array_equal(found, expected):
            row = int(np.flatnonzero(np.atleast_2d((found != expected).T).any(0))[0])
            raise TableError(
                f"{path}: {name} of row {row} is {found[row].tolist()}; the order that {sidecar_path(path).name} "
                f"describes has {expected[row].tolist()}"
            )
    return table


def _first(acs: np.ndarray, over: int) -> int:
    """First index that is true anywhere along the axis `over`; 0 without."""
    return int(np.argmax(acs.any(over)))
