"""Images to train on: which files hold them, and reading npz stacks, NIfTI volumes, DICOM series, fastMRI files."""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from .image_stack import ImageStack, SourceError, stack_of
from .source_dicom import is_dicom, load_dicom
from .source_hdf5 import SUFFIXES as HDF5_SUFFIXES
from .source_hdf5 import load_fastmri

log = logging.getLogger(__name__)

SUFFIXES = (".npz", ".nii", ".nii.gz", *HDF5_SUFFIXES)
KINDS = f"{', '.join(SUFFIXES)}, or DICOM"


class Sources(NamedTuple):
    """What a list of files gave.

    Attributes
    ----------
    stacks
        The images; one stack for each file, or DICOM series.
    left_out
        One text for each file, or kind of DICOM file, that could not be used: which, and why.
    """

    stacks: list[ImageStack]
    left_out: list[str]


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Image files among `paths`, each once.

    Files that are named are all taken, so that reading them can tell what is wrong with them. Folders are searched
    for the suffixes of `SUFFIXES`, and with all that lies below them for DICOM files.

    Raises
    ------
    FileNotFoundError
        When a path does not exist, or no image file is found at all.
    """
    paths = list(paths)
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"training data: {path} does not exist")
        if path.is_dir():
            found += [file for file in sorted(path.iterdir()) if file.name.endswith(SUFFIXES) and file.is_file()]
            found += [file for file in sorted(path.rglob("*")) if is_dicom(file)]
        else:
            found.append(path)
    if not found:
        raise FileNotFoundError(f"training data: no file with {KINDS} in {', '.join(map(str, paths))}")
    return list(dict.fromkeys(found))


def load_sources(files: Iterable[Path]) -> Sources:
    """Read all files; those that cannot be used are left out, with a warning in the log.

    Raises
    ------
    SourceError
        When nothing remains; the message lists the reasons.
    ImportError
        When the library that reads a kind of file is not installed.
    """
    files = list(files)
    stacks: list[ImageStack] = []
    left_out: list[str] = []
    series: list[Path] = []
    for file in tqdm(files, desc="training data", disable=len(files) < 2):
        if is_dicom(file):
            series.append(file)
            continue
        try:
            stacks.append(load_images(file))
        except SourceError as error:
            left_out.append(str(error))
    if series:
        found, reasons = load_dicom(series)
        stacks += found
        left_out += reasons
    for reason in left_out:
        log.warning("left out of the training data: %s", reason)
    if not stacks:
        raise SourceError(f"training data: none of {len(files)} files can be used: {'; '.join(left_out)}")
    return Sources(stacks, left_out)


def load_images(path: Path) -> ImageStack:
    """Read one file.

    An npz has the key `slices` (slice, y, x), real or complex, and optionally `subject`. A NIfTI volume gives its axial
    slices. See `load_fastmri` for HDF5 and `load_dicom` for DICOM, of which this reads a single file.

    Raises
    ------
    SourceError
        When the file does not hold a stack of two-dimensional images.
    ImportError
        When the library that reads it is not installed.
    """
    if path.name.endswith(".npz"):
        return _load_npz(path)
    if path.name.endswith((".nii", ".nii.gz")):
        slices = _nifti_slices(path)
        return stack_of(path.name, list(slices), [path.name] * len(slices))
    if path.name.endswith(HDF5_SUFFIXES):
        return load_fastmri(path)
    if is_dicom(path):
        stacks, reasons = load_dicom([path])
        if not stacks:
            raise SourceError("; ".join(reasons))
        return stacks[0]
    raise SourceError(f"{path}: expected {KINDS}, found a file that is none of these")


def _load_npz(path: Path) -> ImageStack:
    try:
        with np.load(path, allow_pickle=False) as data:
            if "slices" not in data:
                raise SourceError(f"{path}: expected the key 'slices' (slice, y, x), found {sorted(data)}")
            slices = data["slices"]
            subjects = [str(s) for s in data["subject"]] if "subject" in data else [path.name] * len(slices)
    except SourceError:
        raise
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise SourceError(f"{path}: not an npz file that can be read ({error})") from error
    if slices.ndim != 3 or slices.dtype.kind not in "buifc":
        raise SourceError(f"{path}: expected (slice, y, x), got shape {slices.shape} of {slices.dtype}")
    if len(subjects) != len(slices):
        raise SourceError(f"{path}: expected a subject for each of {len(slices)} slices, found {len(subjects)}")
    return stack_of(path.name, [one if np.iscomplexobj(one) else np.abs(one) for one in slices], subjects)


def _nifti_slices(path: Path) -> np.ndarray:
    """Axial slices of a volume, anterior up, those in the middle 70 % (the ends are neck and air)."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        image = nibabel.as_closest_canonical(nibabel.load(path))  # axes to right, anterior, superior
        volume = np.asarray(image.dataobj, dtype=np.float32)
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError, HeaderDataError) as error:
        raise SourceError(f"{path}: not a NIfTI volume that can be read ({error})") from error
    if volume.ndim != 3:
        raise SourceError(f"{path}: expected a volume of 3 dimensions, got shape {volume.shape}")
    depth = volume.shape[2]
    axial = volume[:, :, int(0.25 * depth) : int(0.95 * depth)]
    slices = np.abs(axial.transpose(2, 1, 0)[:, ::-1, ::-1])
    filled = slices.mean(axis=(1, 2)) > 0.25 * slices.mean()
    return slices[filled]
