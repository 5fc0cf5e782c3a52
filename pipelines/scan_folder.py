"""A folder of MRD scans as training data without clean images: which of them can be used, and their slices as npz.

The slices lie in a folder of the run, one sub-folder a scan, in the layout of `scanprior.sim.measured_file`. Beside
them `found.txt` and `found.json` tell what was found, and what was left out and why; `scans.json` remembers the scans,
so that they are not read again.
"""

from __future__ import annotations

import json
import logging
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scanprior.gadgets.errors import ScanError
from scanprior.models.recipe import Maps
from scanprior.models.scan import Scan
from scanprior.sim.image_stack import SourceError
from scanprior.sim.measured_file import read_measured, write_measured
from tqdm import tqdm

from .measured_slices import DOUBT, ReadScan, read_slices
from .replay import ScanFileError

log = logging.getLogger(__name__)

SUFFIXES = (".h5", ".hdf5", ".mrd")
RECORD = "scans.json"
UNDERSAMPLED = "this method needs fully sampled scans"
FULL_R = 1.0


@dataclass
class SliceFound:
    """A slice that can be used: its file (relative to the run's folder), matrix (y, x), coils, and true R."""

    file: str
    matrix: tuple[int, int]
    coils: int
    r: float


@dataclass
class ScanFound:
    """What was found in a file.

    Attributes
    ----------
    path
        The file.
    made_from
        Name, size and time of the file, by which a change of it is noticed.
    subject
        By a name that does not tell who it is; "" where no slice can be used.
    slices
        Those that can be used.
    left_out
        How many slices cannot be, by the reason; of a scan that cannot be read at all, the reason with 0 slices.
    notes
        What is unusual.
    """

    path: str
    made_from: str
    subject: str = ""
    noise_samples: int = 0
    slices: list[SliceFound] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of the sub-folder of its slices; "" where it has none."""
        return self.slices[0].file.split("/")[0] if self.slices else ""


@dataclass
class FolderFound:
    """What a folder of scans holds.

    Attributes
    ----------
    folder
        Of the slices' files.
    scans
        All files that were looked at; their slices are those that were chosen.
    matrix
        Of all slices chosen: those of one training have one.
    other_files
        Files of other kinds, which were not looked at.
    """

    folder: Path
    scans: list[ScanFound]
    matrix: tuple[int, int]
    other_files: int

    @property
    def files(self) -> list[Path]:
        """The slices chosen; `scanprior.sim.measured_file.read_measured` reads each."""
        return [self.folder / one.file for scan in self.scans for one in scan.slices]

    @property
    def subjects(self) -> list[str]:
        """Whom each of `files` shows."""
        return [scan.subject for scan in self.scans for _ in scan.slices]

    @property
    def doubts(self) -> list[str]:
        """Where noise scans and the edge of k-space contradict each other.

        Without the files' names, which may tell who it is; `found.txt` names them.
        """
        used = [scan for scan in self.scans if scan.slices]
        notes = [note for scan in used for note in scan.notes if note.startswith(DOUBT)]
        return [f"{len(notes)} of {len(used)} scans: {'; '.join(sorted(set(notes)))}"] if notes else []

    def split(self) -> tuple[list[Path], list[Path]]:
        """Files to train on and to validate on, no subject in both; where there is but one subject, it does both."""
        held = max(self.subjects)
        pairs = list(zip(self.files, self.subjects, strict=True))
        training = [path for path, subject in pairs if subject != held]
        return training or self.files, [path for path, subject in pairs if subject == held]

    def __str__(self) -> str:
        """The report, for a person."""
        used = [scan for scan in self.scans if scan.slices]
        slices = [one for scan in used for one in scan.slices]
        lines = [
            f"{len(slices)} slices of {len(used)} scans of {len({scan.subject for scan in used})} subjects are used, "
            f"of {len(self.scans)} files looked at",
            f"matrix {self.matrix[0]} x {self.matrix[1]}, R {_range([one.r for one in slices])}, "
            f"coils {_range([one.coils for one in slices])}, noise scans of "
            f"{_range([scan.noise_samples for scan in used])} samples",
        ]
        if self.other_files:
            lines.append(f"{self.other_files} files of other kinds were not looked at ({', '.join(SUFFIXES)} are)")
        for scan in self.scans:
            found = f"{len(scan.slices)} slices, R {_range([s.r for s in scan.slices])}" if scan.slices else "left out"
            lines.append(f"{scan.path}: {found}" + "".join(f"; {note}" for note in scan.notes))
            for reason, count in scan.left_out.items():
                lines.append(f"  left out: {f'{count} slices: ' if count else ''}{reason}")
        return "\n".join(lines) + "\n"


def collect_scans(
    data: Iterable[Path],
    folder: Path,
    *,
    full: bool = False,
    matrix: tuple[int, int] | None = None,
    maps: Maps | None = None,
) -> FolderFound:
    """Go through files and folders of MRD scans, and write what can be trained on into `folder`.

    A file that was read there before, and has not changed, is not read again. Of mixed matrices the one with the most
    slices is kept.

    Parameters
    ----------
    data
        MRD files, and folders that are searched for them with all that lies below.
    full
        Leave undersampled scans out.
    matrix
        Keep slices of this (y, x) instead.
    maps
        ESPIRiT's settings; see `read_slices`.

    Raises
    ------
    FileNotFoundError
        When a path does not exist, or there is no file of a scan's kind.
    SourceError
        When none of them can be used; with the reason of each.
    """
    files, others = _scan_files(data)
    folder.mkdir(parents=True, exist_ok=True)
    settings = maps or Maps.model_validate({})
    known = _earlier(folder, settings)
    scans: list[ScanFound] = []
    for path in tqdm(files, desc="scans", disable=len(files) < 2):
        made_from = f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}"
        found = known.get(str(path))
        if (
            found is None
            or found.made_from != made_from
            or not all((folder / one.file).exists() for one in found.slices)
        ):
            own = "" if found is None else found.name
            taken = {inside.name for inside in folder.iterdir() if inside.name != own}
            known[str(path)] = found = _read(path, made_from, folder, taken, settings)
            _remember(folder, settings, known)
        for reason in found.left_out:
            log.warning("left out of the training data: %s: %s", path, reason)
        scans.append(found)
    chosen = _choose(folder, scans, full, matrix, others)
    (folder / "found.txt").write_text(str(chosen), encoding="utf-8")
    report = {"matrix": chosen.matrix, "other_files": others, "scans": [asdict(scan) for scan in chosen.scans]}
    (folder / "found.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return chosen


def hand_over(
    found: FolderFound, training: Path, validation: Path, write: Callable[[Path, Scan], None], most: int = 12
) -> list[str]:
    """Write the slices in the form that a training reads, numbered, into a folder to train on and one to validate on.

    A folder that is there was finished by an earlier call, and is left as it is.

    Parameters
    ----------
    write
        Writes one scan (coil, y, x) to a path without suffix.
    most
        Slices to validate on, evenly spread over the held-back subject's.

    Returns
    -------
    One text for each slice that `write` refused (by a `SourceError`).

    Raises
    ------
    SourceError
        When it refused all slices of a folder.
    """
    shown, held = found.split()
    held = [held[number] for number in sorted({round(at) for at in np.linspace(0, len(held) - 1, most)})]
    refused: list[str] = []
    for folder, files in ((training, shown), (validation, held)):
        if folder.exists():
            continue
        partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
        partial.mkdir(parents=True)
        for number, path in enumerate(files):
            measured = read_measured(path)
            try:
                write(partial / f"{number:06d}", measured.scan)
            except SourceError as error:
                refused.append(f"{measured.source}: {error}")
        if not any(partial.iterdir()):
            partial.rmdir()
            raise SourceError(f"{folder.name}: none of {len(files)} slices can be used: {'; '.join(refused)}")
        partial.rename(folder)
    return refused


def _scan_files(data: Iterable[Path]) -> tuple[list[Path], int]:
    """Files that may be scans, each once, and how many there are of other kinds."""
    paths, found, others = list(data), [], 0
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"training data: {path} does not exist")
        if path.is_file():
            found.append(path)
            continue
        inside = [file for file in sorted(path.rglob("*")) if file.is_file()]
        scans = [file for file in inside if file.suffix.lower() in SUFFIXES]
        found += scans
        others += len(inside) - len(scans)
    if not found:
        where = ", ".join(map(str, paths))
        raise FileNotFoundError(
            f"training data: expected MRD scans ({', '.join(SUFFIXES)}) in {where}, found none among {others} files"
        )
    return list(dict.fromkeys(found)), others


def _read(path: Path, made_from: str, folder: Path, taken: set[str], maps: Maps) -> ScanFound:
    """Read a scan and write its slices; all of them or none."""
    found = ScanFound(str(path), made_from)
    try:
        read: ReadScan = read_slices(path, maps)
    except (SourceError, ScanError, ScanFileError) as error:
        found.left_out[str(error).removeprefix(f"{path}: ")] = 0
        return found
    found.noise_samples, found.notes, found.left_out = read.noise_samples, read.notes, dict(read.left_out)
    if not read.slices:
        return found
    name, number = path.stem, 1
    while name in taken:
        number += 1
        name = f"{path.stem}-{number}"
    # the whole scan or nothing: a run that is interrupted here must not go on with a part of it
    partial = folder / f".{name}.{uuid.uuid4().hex}"
    partial.mkdir()
    for number, one in enumerate(read.slices):
        write_measured(partial / f"{number:04d}.npz", one)
        rows, columns = one.scan.kspace.shape[-2:]
        found.slices.append(
            SliceFound(f"{name}/{number:04d}.npz", (rows, columns), len(one.scan.kspace), one.scan.effective_r)
        )
    found.subject = read.slices[0].subject
    if (folder / name).exists():
        shutil.rmtree(folder / name)
    partial.rename(folder / name)
    return found


def _choose(
    folder: Path, scans: list[ScanFound], full: bool, matrix: tuple[int, int] | None, others: int
) -> FolderFound:
    """Leave out what one training cannot take together."""
    chosen = [replace(scan, slices=list(scan.slices), left_out=dict(scan.left_out)) for scan in scans]
    if full:
        for scan in chosen:
            most = max((one.r for one in scan.slices), default=FULL_R)
            _leave_out(scan, lambda one: one.r > FULL_R, f"R = {most:.1f}; {UNDERSAMPLED}")
    counted = Counter(one.matrix for scan in chosen for one in scan.slices)
    if not counted:
        reasons = "; ".join(f"{scan.path}: {reason}" for scan in chosen for reason in scan.left_out)
        raise SourceError(f"training data: none of {len(scans)} scans can be used: {reasons}")
    if matrix is not None and matrix not in counted:
        sizes = ", ".join(f"{y} x {x}" for y, x in counted)
        raise SourceError(f"training data: no slice has the matrix {matrix[0]} x {matrix[1]}; there are: {sizes}")
    kept = matrix or max(counted, key=lambda size: (counted[size], size))
    for scan in chosen:
        sizes = ", ".join(sorted({f"{y} x {x}" for y, x in (one.matrix for one in scan.slices) if (y, x) != kept}))
        _leave_out(
            scan,
            lambda one: one.matrix != kept,
            f"matrix {sizes}, kept is {kept[0]} x {kept[1]} with {counted[kept]} of {counted.total()} slices",
        )
    return FolderFound(folder, chosen, kept, others)


def _leave_out(scan: ScanFound, which: Callable[[SliceFound], bool], reason: str) -> None:
    """Move the slices for which `which` is true to those left out."""
    kept = [one for one in scan.slices if not which(one)]
    if len(kept) < len(scan.slices):
        scan.left_out[reason] = len(scan.slices) - len(kept)
        scan.slices = kept


def _earlier(folder: Path, maps: Maps) -> dict[str, ScanFound]:
    """What was found in an earlier run with these settings, by the path."""
    path = folder / RECORD
    if not path.exists():
        return {}
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["maps"] != maps.model_dump():
        return {}
    return {one["path"]: _scan_found(one) for one in record["scans"]}


def _scan_found(record: dict[str, Any]) -> ScanFound:
    slices = [SliceFound(**{**one, "matrix": tuple(one["matrix"])}) for one in record["slices"]]
    return ScanFound(**{**record, "slices": slices})


def _remember(folder: Path, maps: Maps, known: dict[str, ScanFound]) -> None:
    """Write down what every scan holds, whatever of it this training takes."""
    partial = folder / f".{RECORD}.{uuid.uuid4().hex}"
    text = json.dumps({"maps": maps.model_dump(), "scans": [asdict(scan) for scan in known.values()]}, indent=1)
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(folder / RECORD)


def _range(values: list[float] | list[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:.4g}" if f"{low:.4g}" == f"{high:.4g}" else f"{low:.4g} to {high:.4g}"
