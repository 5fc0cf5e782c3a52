"""Recorded scans for `scanprior train --method`: MRD files go through the stream's gadgets into the run's folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from scanprior.sim.bank_data import claim_folder
from scanprior.sim.image_sources import find_images
from scanprior.sim.image_stack import SourceError
from scanprior.sim.scan_bank import write_scan
from scanprior.sim.scan_data import VALIDATION_SCANS, training_scans, validation_scans
from scanprior.sim.source_hdf5 import hdf5_layout
from scanprior.sim.unsupervised_settings import UnsupervisedTraining

from .scan_folder import FULL_R, SUFFIXES, FolderFound, collect_scans, hand_over

FOUND = "found"
"""Folder of the run that gets the slices and the report."""


def holds_scans(data: Iterable[Path]) -> bool:
    """Whether there are MRD scans among the data.

    Raises
    ------
    FileNotFoundError
        When a path does not exist.
    """
    paths = list(data)
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"training data: {path} does not exist")
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return any(_is_scan(file) for file in files if file.suffix.lower() in SUFFIXES and file.is_file())


def _is_scan(file: Path) -> bool:
    try:
        return hdf5_layout(file) == "mrd"
    except SourceError:  # torn or foreign: `collect_scans` says so, beside scans that can be read
        return False


def collect_for(data: Iterable[Path], out: Path, settings: UnsupervisedTraining) -> FolderFound:
    """Read the scans, choose those that the method can use, and write the report `out/found/found.txt`.

    Raises
    ------
    FileNotFoundError, SourceError
        As `collect_scans`; and when the patches are larger than the matrix of the scans.
    """
    found = collect_scans(data, out / FOUND, full=settings.method == "sure")
    # undersampled ones are trained on as a whole
    full = all(one.r <= FULL_R for scan in found.scans for one in scan.slices)
    if full and settings.method in ("sure", "em") and settings.patch > min(found.matrix):
        raise SourceError(
            f"training data: scans of {found.matrix[0]} x {found.matrix[1]}: expected --patch of at most "
            f"{min(found.matrix)}, found {settings.patch}"
        )
    return found


def prepare(
    data: Iterable[Path], out: Path, settings: UnsupervisedTraining, tell: Callable[[str], object]
) -> list[str]:
    """Read recorded scans and put what can be used where the training reads it.

    Parameters
    ----------
    tell
        Is given the report.

    Returns
    -------
    What is doubtful about them, for the model card.

    Raises
    ------
    FileExistsError
        When the run's folder holds scans of other data.
    FileNotFoundError, SourceError
        As of `collect_for`; and when none of the slices can be used.
    """
    found = collect_for(data, out, settings)
    tell(str(found))
    used, note = "".join(f"{scan.made_from}\n" for scan in found.scans if scan.slices), out / FOUND / "used.txt"
    if note.exists() and note.read_text(encoding="utf-8") != used:
        raise FileExistsError(
            f"{out} holds a run on other scans, which {note} lists: begin one with these in a folder of its own"
        )
    _, claim = claim_folder(find_images(found.files), out)
    refused = hand_over(
        found, training_scans(out, settings), validation_scans(out),
        lambda path, scan: write_scan(path.with_suffix(".safetensors"), scan), VALIDATION_SCANS,
    )  # fmt: skip
    with (out / FOUND / "found.txt").open("a", encoding="utf-8") as report:
        report.writelines(f"left out: {reason}\n" for reason in refused)
    claim()
    note.write_text(used, encoding="utf-8")
    return found.doubts
