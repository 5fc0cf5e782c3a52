"""Images of fastMRI-layout HDF5 files: complex ones from fully sampled k-space, or the magnitudes that come along.

The layout is that of Zbontar et al. 2018 (fastMRI, arXiv:1811.08839): datasets `kspace` and `reconstruction_rss` or
`reconstruction_esc`, an MRD header in `ismrmrd_header`, attributes such as `patient_id`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import torch
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring
from scanprior.models.espirit import NoAcsError, espirit_maps
from scanprior.models.fourier import fft2c, ifft2c

from .image_stack import ImageStack, SourceError, anonymous, stack_of

log = logging.getLogger(__name__)

SUFFIXES = (".h5", ".hdf5")
RECONSTRUCTIONS = ("reconstruction_rss", "reconstruction_esc")
CROP = 0.8  # of ESPIRiT's eigenvalue, as in the recipes: the prior sees the background that reconstructions have
ONLY = "only fully sampled k-space can be used"
EVEN = 0.9  # shorter over longer half of k-space from which on it counts as one with its edges zero-filled


def hdf5_layout(path: Path) -> Literal["fastmri", "mrd"]:
    """Which of the two layouts an HDF5 file has, told by its content.

    Raises
    ------
    SourceError
        When it is no HDF5 file, or has neither.
    """
    with _opened(path) as file:
        if "kspace" in file or any(name in file for name in RECONSTRUCTIONS):
            return "fastmri"
        # by get: a link that leads nowhere gives None
        groups = [item for item in map(file.get, file) if isinstance(item, h5py.Group)]
        if any("xml" in group and "data" in group for group in groups):
            return "mrd"
        raise SourceError(
            "expected 'kspace' or 'reconstruction_rss' (fastMRI), or a group with 'xml' and 'data' (MRD), "
            f"found {sorted(file) or 'nothing'}"
        )


def load_fastmri(path: Path) -> ImageStack:
    """Read a file of fastMRI's layout.

    Slices are complex where `kspace` is fully sampled: the inverse transform, cropped to the recon matrix, coils
    combined by ESPIRiT maps from its centre. Else they are the magnitudes of `reconstruction_rss` or
    `reconstruction_esc`. The recon matrix is the reconstruction's, or the header's, or, with neither, that of k-space.

    Raises
    ------
    SourceError
        When it has another layout, is undersampled without a reconstruction, or damaged.
    """
    if hdf5_layout(path) == "mrd":
        raise SourceError(
            f"{path}: a raw MRD scan, expected images or fastMRI's layout; "
            "`scanprior train` reconstructs such scans first"
        )
    with _opened(path) as file:
        subject = anonymous(str(file.attrs.get("patient_id", path.name)))
        name = next((name for name in RECONSTRUCTIONS if name in file), None)
        matrix = _recon_matrix(file, name)
        reason = why_not_fully_sampled(file) if "kspace" in file else "has no 'kspace'"
        if not reason:
            slices = [_image(kspace, matrix) for kspace in file["kspace"]]
        elif name is None:
            raise SourceError(f"it {reason}; expected that, or '{RECONSTRUCTIONS[0]}'")
        else:
            log.info("%s %s: the magnitudes of %s are taken", path, reason, name)
            slices = list(np.abs(_magnitudes(file, name)))
        return stack_of(path.name, slices, [subject] * len(slices))


def why_not_fully_sampled(file: h5py.File) -> str:
    """Why `kspace` cannot be transformed as it is, or "".

    Rows or columns of zeros at both edges of k-space alike are a lower resolution, which fastMRI has; between measured
    ones they are undersampling, as is a plane with holes, and at one edge they are partial Fourier.
    """
    if "mask" in file and not np.asarray(file["mask"]).all():
        mask = np.asarray(file["mask"]) != 0
        return f"has a mask of R = {mask.size / max(1, np.count_nonzero(mask)):.1f}; {ONLY}"
    kspace = file["kspace"]
    if kspace.ndim not in (3, 4) or kspace.dtype.kind != "c" or not kspace.size:
        raise SourceError(
            f"expected complex 'kspace' (slice, coil, y, x) or (slice, y, x), found {kspace.dtype} {kspace.shape}"
        )
    return next(filter(None, (_why_not_full(kspace[number], number) for number in range(len(kspace)))), "")


def _why_not_full(kspace: np.ndarray, number: int) -> str:
    """The same for slice `number` alone, (coil, y, x) or (y, x)."""
    measured = kspace != 0 if kspace.ndim == 2 else (kspace != 0).any(0)
    if not measured.any():
        raise SourceError(f"slice {number} of 'kspace' holds nothing but zeros")
    box = []
    for axis, name in enumerate(("rows", "columns")):
        lines = np.flatnonzero(measured.any(1 - axis))
        size, first, last = measured.shape[axis], int(lines[0]), int(lines[-1])
        if len(lines) < last + 1 - first:
            return f"has R = {(last + 1 - first) / len(lines):.1f} along its {name}; {ONLY}"
        halves = sorted((size // 2 - first, last + 1 - size // 2))
        if halves[0] < EVEN * halves[1] - 1:
            return f"has the {name} {first} to {last} of {size} alone (partial Fourier); {ONLY}"
        box.append(slice(first, last + 1))
    share = float(measured[tuple(box)].mean())
    # a sample may be zero by chance; points left out on purpose are many
    return f"has R = {1 / share:.1f} in its plane; {ONLY}" if share < 0.99 else ""


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """The file; whatever is wrong with it is told with its path, as a `SourceError`."""
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise SourceError(f"{path}: not an HDF5 file that can be read ({error})") from error
    try:
        with file:
            yield file
    except SourceError as error:
        raise SourceError(f"{path}: {error}") from None
    except NoAcsError as error:
        raise SourceError(f"{path}: its coils cannot be combined: {error}") from error
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError, IndexError, MemoryError) as error:
        raise SourceError(f"{path}: damaged, or of another layout ({error})") from error


def _magnitudes(file: h5py.File, name: str) -> np.ndarray:
    values = np.asarray(file[name])
    if values.ndim != 3 or values.dtype.kind not in "uif":
        raise SourceError(f"expected numbers (slice, y, x) in '{name}', found {values.dtype} {values.shape}")
    return values


def _recon_matrix(file: h5py.File, reconstruction: str | None) -> tuple[int, int] | None:
    """(y, x) of the images. In fastMRI the readout runs along y, so that the header's x is our y."""
    if reconstruction is not None:
        shape = file[reconstruction].shape
        return int(shape[-2]), int(shape[-1])
    if "ismrmrd_header" not in file:
        return None
    text = file["ismrmrd_header"][()]
    try:
        root = fromstring(text if isinstance(text, bytes | str) else bytes(np.asarray(text).tobytes()))
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise SourceError(f"its 'ismrmrd_header' is no XML that can be read ({error})") from error
    path = "./{*}encoding/{*}reconSpace/{*}matrixSize/{*}"
    sizes = [root.findtext(path + axis) for axis in "xy"]
    if not all(
        size is not None and size.strip().isascii() and size.strip().isdigit() and int(size) > 0 for size in sizes
    ):
        raise SourceError(
            f"its 'ismrmrd_header' gives a reconSpace/matrixSize of {sizes}, expected two numbers above 0"
        )
    return int(sizes[0]), int(sizes[1])  # type: ignore[arg-type]


def _image(kspace: np.ndarray, matrix: tuple[int, int] | None) -> np.ndarray:
    """Complex image (y, x) of one slice's k-space, (coil, y, x) or (y, x)."""
    coils = torch.from_numpy(kspace.astype(np.complex64))
    coils = ifft2c(coils if coils.ndim == 3 else coils[None])
    if matrix is not None:
        coils = _cropped(coils, matrix)
    if len(coils) == 1:
        return coils[0].numpy()
    # the centre of the cropped field of view's k-space: fewer samples than of the whole, for the same maps
    maps, _ = espirit_maps(fft2c(coils), (coils.shape[-2], coils.shape[-1]), crop=CROP)
    return (maps.conj() * coils).sum(0).numpy()


def _cropped(images: torch.Tensor, matrix: tuple[int, int]) -> torch.Tensor:
    """The middle (y, x) of images; an axis that is smaller stays as it is."""
    for axis, wanted in zip((-2, -1), matrix, strict=True):
        have = images.shape[axis]
        if have > wanted:
            images = images.narrow(axis, have // 2 - wanted // 2, wanted)
    return images
