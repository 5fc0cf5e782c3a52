"""Magnitude images to train on or to test with, from npz stacks and NIfTI volumes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

SUFFIXES = (".npz", ".nii", ".nii.gz")


@dataclass
class ImageStack:
    """Slices of one file.

    Attributes
    ----------
    name
        File name, for the model card.
    slices
        List of (y, x) float32 magnitudes, the 99.5th percentile of their volume at 1.
    subjects
        Subject of each slice, so that a split can go by subject.
    """

    name: str
    slices: list[np.ndarray]
    subjects: list[str]


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Image files among `paths`; folders are searched one level deep.

    Raises
    ------
    FileNotFoundError
        When a path does not exist, or no image file is found at all.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"images: {path} does not exist")
        candidates = sorted(path.iterdir()) if path.is_dir() else [path]
        found += [file for file in candidates if file.name.endswith(SUFFIXES)]
    if not found:
        raise FileNotFoundError(f"images: no file with {', '.join(SUFFIXES)} in {', '.join(map(str, paths))}")
    return found


def load_images(path: Path) -> ImageStack:
    """Read one file: npz with key `slices` (slice, y, x) and optional `subject`, or a NIfTI volume.

    Raises
    ------
    ValueError
        When the file does not hold a stack of two-dimensional images.
    """
    if path.name.endswith(".npz"):
        data = _npz(path)
        if "slices" not in data:
            raise ValueError(f"{path}: expected the key 'slices' (slice, y, x), found {sorted(data)}")
        slices = np.abs(data["slices"]).astype(np.float32)
        subjects = [str(s) for s in data["subject"]] if "subject" in data else [path.name] * len(slices)
    else:
        slices = _nifti_slices(path)
        subjects = [path.name] * len(slices)
    if slices.ndim != 3:
        raise ValueError(f"{path}: expected (slice, y, x), got shape {slices.shape}")
    scale = np.percentile(slices[slices > 0.02 * slices.max()], 99.5) if slices.any() else 1.0
    return ImageStack(path.name, list(slices / np.float32(scale)), subjects)


def _npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in data.files}
    except (ValueError, OSError, EOFError, BadZipFile, AttributeError) as error:  # AttributeError: a lone .npy
        raise ValueError(f"{path}: not an npz file that can be read: {error}") from error


def _nifti_slices(path: Path) -> np.ndarray:
    """Axial slices of a volume, anterior up, those in the middle 70 % (the ends are neck and air)."""
    import nibabel

    try:
        image = nibabel.as_closest_canonical(nibabel.load(path))  # axes to right, anterior, superior
    except nibabel.filebasedimages.ImageFileError as error:
        raise ValueError(f"{path}: not a NIfTI file that can be read: {error}") from error
    volume = np.asarray(image.dataobj, dtype=np.float32)
    if volume.ndim != 3:
        raise ValueError(f"{path}: expected a volume of 3 dimensions, got shape {volume.shape}")
    depth = volume.shape[2]
    axial = volume[:, :, int(0.25 * depth) : int(0.95 * depth)]
    slices = np.abs(axial.transpose(2, 1, 0)[:, ::-1, ::-1])
    filled = slices.mean(axis=(1, 2)) > 0.25 * slices.mean()
    return slices[filled]
