"""Files of sampling masks: an `.npz` with the pattern and a JSON file beside it that says what it is.

A mask file knows nothing of MRD, of a sequence or of a vendor: exports, simulations and evaluations read it.
`mine.npz` holds `mask` and `acs`, `mine.json` all else; a hash ties the two together.
"""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scanprior.models.weights_description import explain
from scanprior.sim.masks import Sampling
from scanprior.sim.whole_files import whole_files

FORMAT = "scanprior-mask"
VERSION = 1

Kind = Literal["lines", "points"]


class MaskFileError(ValueError):
    """A mask file that cannot be read, does not fit its description, or describes what cannot be."""


@dataclass(frozen=True, eq=False)
class SamplingMask:
    """One fixed sampling pattern, and where it comes from. The arrays are read-only.

    Attributes
    ----------
    mask
        bool, what is acquired, the ACS included: (y, 1) lines, or (y, z) points of two phase encodings. DC lies at
        index N // 2 of each axis.
    acs
        bool, of the same shape: the fully sampled box around DC; all false where there is none.
    matrix
        (x, y, z) samples: readout, first and second phase encoding; z is 1 for lines.
    fov_mm
        Field of view along (x, y, z), in mm; for lines z is the slice's thickness.
    made_by
        Name of the family or of the learner.
    settings
        Its settings, as JSON holds them.
    asked_r
        Undersampling factor that was asked for.
    seed
        Of the draw or of the learning.
    data
        What it was learned on, in words; empty for a family.
    prior, prior_sha256
        Name and hash (of the weights, hexadecimal) of the prior that it was learned with; None for a family.

    Raises
    ------
    MaskFileError
        Where the parts do not fit together.
    """

    mask: np.ndarray
    acs: np.ndarray
    matrix: tuple[int, int, int]
    fov_mm: tuple[float, float, float]
    made_by: str
    settings: dict[str, Any] = field(default_factory=dict)
    asked_r: float = 1.0
    seed: int = 0
    data: str = ""
    prior: str | None = None
    prior_sha256: str | None = None

    def __post_init__(self) -> None:
        for name in ("mask", "acs"):
            value = np.asarray(getattr(self, name))
            if value.dtype != bool or value.ndim != 2:
                raise MaskFileError(
                    f"{name}: expected a bool array (y, 1) or (y, z), found {value.dtype} of shape {value.shape}"
                )
            value = value.copy()
            value.setflags(write=False)
            object.__setattr__(self, name, value)
        if len(self.matrix) != 3 or min(self.matrix) < 1:
            raise MaskFileError(f"matrix: expected three sizes (x, y, z) from 1, found {self.matrix}")
        if len(self.fov_mm) != 3 or not all(math.isfinite(value) and value > 0 for value in self.fov_mm):
            raise MaskFileError(f"fov_mm: expected three lengths (x, y, z) above 0, found {self.fov_mm}")
        if self.mask.shape != tuple(self.matrix[1:]):
            raise MaskFileError(
                f"mask: expected {tuple(self.matrix[1:])} for the matrix (x, y, z) = {tuple(self.matrix)}, "
                f"found {self.mask.shape}"
            )
        if self.acs.shape != self.mask.shape:
            raise MaskFileError(f"acs: expected the shape of the mask {self.mask.shape}, found {self.acs.shape}")
        if not self.mask.any():
            raise MaskFileError("mask: nothing is sampled")
        off = int((self.acs & ~self.mask).sum())
        if off:
            raise MaskFileError(f"acs: {off} of {int(self.acs.sum())} ACS {self.kind} are not in the mask")
        box = np.ix_(*(self.acs.any(1 - axis) for axis in (0, 1)))
        centre = tuple(size // 2 for size in self.acs.shape)
        spans = [np.flatnonzero(self.acs.any(1 - axis)) for axis in (0, 1)]
        if self.acs.any() and not (
            self.acs[box].all() and self.acs[centre] and all(len(s) == s[-1] - s[0] + 1 for s in spans)
        ):
            raise MaskFileError(f"acs: expected one full box around DC at {centre}")

    @property
    def kind(self) -> Kind:
        """`lines` (y, 1) or `points` (y, z)."""
        return "lines" if self.mask.shape[1] == 1 else "points"

    @property
    def acs_extent(self) -> tuple[int, int]:
        """Edges (y, z) of the box of ACS; (0, 0) without."""
        return int(self.acs.any(1).sum()), int(self.acs.any(0).sum())

    @property
    def samples(self) -> int:
        """Lines or points acquired."""
        return int(self.mask.sum())

    @property
    def effective_r(self) -> float:
        """Points of the matrix over points acquired, ACS counted."""
        return self.mask.size / self.samples

    @property
    def sha256(self) -> str:
        """Hash, in hexadecimal, of shape, mask and ACS: that of the pattern, whatever file it lies in."""
        digest = hashlib.sha256(f"{FORMAT} {VERSION} {self.mask.shape[0]} {self.mask.shape[1]}|".encode())
        for part in (self.mask, self.acs):
            digest.update(np.packbits(part).tobytes())
        return digest.hexdigest()

    def sampling(self) -> Sampling:
        """As the simulations take it: (y,) for lines, (y, z) for points."""
        flat = (self.mask[:, 0], self.acs[:, 0]) if self.kind == "lines" else (self.mask, self.acs)
        return Sampling(flat[0].copy(), flat[1].copy(), self.asked_r)


class _Learned(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class MaskDescription(BaseModel):
    """What the JSON file beside a mask, or beside a table of one, says of the mask."""

    model_config = ConfigDict(extra="forbid")

    format: str
    version: int
    matrix: tuple[int, int, int]
    fov_mm: tuple[float, float, float]
    acs_extent: tuple[int, int]
    samples: int
    effective_r: float
    asked_r: float = Field(ge=1, allow_inf_nan=False)
    made_by: str = Field(min_length=1)
    settings: dict[str, Any]
    data: str
    seed: int = Field(ge=0)
    mask_sha256: str

    def text(self) -> str:
        """As JSON.

        Raises
        ------
        TypeError, ValueError
            If the settings are not what JSON can hold.
        """
        return json.dumps(self.model_dump(), indent=2, allow_nan=False) + "\n"


class _Sidecar(MaskDescription):
    """What `mine.json` holds."""

    format: Literal["scanprior-mask"]
    version: Literal[1]
    kind: Kind
    prior: _Learned | None


def description(mask: SamplingMask) -> dict[str, Any]:
    """The fields of `MaskDescription`, format and version apart."""
    return {name: getattr(mask, name) for name in MaskDescription.model_fields if hasattr(mask, name)} | {
        "mask_sha256": mask.sha256
    }


def described(
    path: Path, beside: Path, said: MaskDescription, arrays: tuple[np.ndarray, np.ndarray],
    prior: tuple[str | None, str | None],
) -> SamplingMask:  # fmt: skip
    """The mask of `path`, whose pattern and ACS are `arrays`, after checking that it is the one that `beside` says.

    Parameters
    ----------
    prior
        Name and hash of the prior that `beside` says.

    Raises
    ------
    MaskFileError
        If the parts make no mask, or another one.
    """
    try:
        mask = SamplingMask(
            *arrays, said.matrix, said.fov_mm, said.made_by, said.settings, said.asked_r, said.seed, said.data, *prior
        )
    except MaskFileError as error:
        raise MaskFileError(f"{path}: {error}") from None
    if mask.sha256 != said.mask_sha256:
        raise MaskFileError(
            f"{path}: its pattern has the hash {mask.sha256}, {beside.name} describes {said.mask_sha256}: "
            "one of the two was changed, or they belong to different masks"
        )
    for name in ("kind", "acs_extent", "samples", "effective_r"):
        own = getattr(mask, name)
        claimed = getattr(said, name, own)
        if own != claimed and not (name == "effective_r" and math.isclose(own, claimed, rel_tol=1e-9)):
            raise MaskFileError(f"{beside}: {name} is {claimed}, the mask has {own}")
    return mask


def check_own(beside: Path, form: str) -> None:
    """Refuse to replace a file that is not a description of this format.

    Raises
    ------
    MaskFileError
        Naming it.
    """
    if not beside.exists():
        return
    try:
        found = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or found.get("format") != form:
        raise MaskFileError(
            f"{beside}: is there already and is no description of ours (format {form!r}), which would take its place; "
            "move it away, or choose another name"
        )


def sidecar_path(path: Path) -> Path:
    """The JSON file that lies beside a mask file."""
    return path.with_suffix(".json")


def save_mask(path: Path, mask: SamplingMask) -> None:
    """Write `path` (.npz) and the JSON file beside it; each is replaced as a whole or not at all.

    Raises
    ------
    MaskFileError
        If the name does not end in .npz, the settings are not what JSON can hold, or another file has the name of the
        JSON file.
    """
    path = Path(path)
    _check_name(path)
    beside = sidecar_path(path)
    check_own(beside, FORMAT)
    prior = None if mask.prior is None else {"name": mask.prior, "sha256": mask.prior_sha256}
    own = {"format": FORMAT, "version": VERSION, "kind": mask.kind, "prior": prior}
    try:
        text = _Sidecar.model_validate(own | description(mask)).text()
    except ValidationError as error:
        raise MaskFileError(f"{path}: cannot be described: {explain(error)}") from None
    except (TypeError, ValueError) as error:
        raise MaskFileError(f"{path}: settings that JSON cannot hold: {error}") from None
    with whole_files(path.parent) as folder:
        np.savez_compressed(folder / path.name, mask=mask.mask, acs=mask.acs)
        (folder / beside.name).write_text(text, encoding="utf-8")


def load_mask(path: Path) -> SamplingMask:
    """Read a mask and what lies beside it, and check that all of it fits together.

    Raises
    ------
    MaskFileError
        Naming the file, what was found and what was expected: either file missing or not readable, an unknown version,
        a shape that does not fit the matrix, ACS that are not in the mask, a pattern that is not the one described.
    """
    path = Path(path)
    _check_name(path)
    beside = sidecar_path(path)
    for file in (path, beside):
        if not file.is_file():
            raise MaskFileError(f"{file}: no such file; a mask is an .npz and the .json of the same name beside it")
    try:
        found = json.loads(beside.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise MaskFileError(f"{beside}: not JSON: {error}") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise MaskFileError(f"{beside}: expected the format {FORMAT!r} of a sampling mask")
    if found.get("version") != VERSION:
        raise MaskFileError(f"{beside}: expected version {VERSION}, found {found.get('version')!r}")
    try:
        sidecar = _Sidecar.model_validate(found)
    except ValidationError as error:
        raise MaskFileError(f"{beside}: {explain(error)}") from None
    arrays = _arrays(path)
    prior = (None, None) if sidecar.prior is None else (sidecar.prior.name, sidecar.prior.sha256)
    return described(path, beside, sidecar, (arrays["mask"], arrays["acs"]), prior)


def _check_name(path: Path) -> None:
    if path.suffix != ".npz":
        raise MaskFileError(f"{path}: a mask file ends in .npz")


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise MaskFileError(f"{path}: not an .npz archive, but a single array")
        with file:
            if set(file.files) != {"mask", "acs"}:
                raise MaskFileError(f"{path}: expected the arrays mask and acs, found {', '.join(sorted(file.files))}")
            return {name: file[name] for name in ("mask", "acs")}
    except MaskFileError:
        raise
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise MaskFileError(f"{path}: not an .npz archive that can be read: {error}") from None
