"""Magnitude images of DICOM files, series by series: what a hospital's archive has, where raw data are gone.

A magnitude prior learned from them serves complex raw data (Chung and Ye 2022, "Score-MRI", section 3).
"""

from __future__ import annotations

import struct
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .image_stack import ImageStack, SourceError, anonymous, stack_of

MIN_EDGE = 64  # pixels; smaller ones have no detail that a prior could learn
MACROS = (
    "MRImageFrameTypeSequence",
    "PixelValueTransformationSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
)
NO_IMAGE = {"LOCALIZER", "PROJECTION IMAGE", "MIP", "MINIP", "MOSAIC"}
NO_MAGNITUDE = {"P", "PHASE", "PHASE MAP", "VELOCITY", "R", "REAL", "I", "IMAGINARY"}
GE_BLOCK, GE_KIND = (0x0043, "GEMS_PARM_01"), 0x2F  # private: 0 magnitude, 1 phase, 2 real, 3 imaginary


@dataclass(frozen=True)
class Frame:
    """One image of a series, before its pixels are read.

    Attributes
    ----------
    file, number
        The file, and which of its frames; None where it has only one.
    series, subject
        Which series it belongs to, and whom it shows, by a name that tells nothing.
    place
        Distance along the slice normal in mm, then the number within the series.
    slope, intercept
        Stored value to value.
    inverted
        MONOCHROME1: the largest value is dark.
    """

    file: Path
    number: int | None
    series: str
    subject: str
    place: tuple[float, int, int]
    slope: float
    intercept: float
    inverted: bool


def is_dicom(path: Path) -> bool:
    """Whether a file is one of DICOM: named .dcm, or with no suffix (or .ima, or the number that ends a UID) and the
    mark DICM behind 128 bytes. Not a DICOMDIR, which lists others."""
    suffix = path.suffix.lower()
    if path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    if suffix == ".dcm":
        return True
    if suffix not in ("", ".ima") and not suffix[1:].isdigit():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def load_dicom(files: Iterable[Path]) -> tuple[list[ImageStack], list[str]]:
    """Read the MR magnitude images of DICOM files, one stack for each series, sorted along the slice normal.

    Left out are files that are not MR, derived images (maps, projections, subtractions), localizers, phase, real and
    imaginary images, colour, mosaics, images of an edge below 64 pixels, and files whose compression cannot be undone.

    Returns
    -------
    stacks
        One for each series.
    left_out
        One text for each reason, with the number of files and the first of them.

    Raises
    ------
    ImportError
        When pydicom is not installed.
    """
    damage = _errors_of_damage()
    reasons: dict[str, list[Path]] = defaultdict(list)
    series: dict[str, list[Frame]] = defaultdict(list)
    for file in files:
        try:
            frames = _frames(file, reasons)
        except damage as error:
            reasons[str(error) if isinstance(error, SourceError) else f"it cannot be read ({error})"].append(file)
            continue
        for frame in frames:
            series[frame.series].append(frame)
    stacks = []
    for frames in series.values():
        try:
            stacks.append(_load_series(sorted(frames, key=lambda frame: frame.place), reasons, damage))
        except SourceError as error:
            reasons[str(error)].append(frames[0].file)
    left_out = [
        f"{paths[0]}: {reason}" if len(paths) == 1 else f"{len(paths)} DICOM images such as {paths[0]}: {reason}"
        for reason, paths in reasons.items()
    ]
    return stacks, left_out


def _errors_of_damage() -> tuple[type[Exception], ...]:
    """What reading a damaged file raises: pydicom's own, and those of the libraries below it."""
    try:
        import pydicom
    except ImportError as error:
        raise ImportError(f"DICOM files need the extra: pip install 'scanprior[dicom]' ({error})") from error
    own = pydicom.errors.InvalidDicomError, pydicom.errors.BytesLengthException
    return (
        *own, OSError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError,
        OverflowError, RuntimeError, MemoryError, struct.error, zlib.error,
    )  # fmt: skip


def _frames(file: Path, reasons: dict[str, list[Path]]) -> list[Frame]:
    """The usable frames of a file; why others are not goes to `reasons`."""
    from pydicom import dcmread

    header = dcmread(file, stop_before_pixels=True)
    _check_file(header)
    count = int(header.get("NumberOfFrames") or 1)
    groups = header.get("PerFrameFunctionalGroupsSequence")
    if count > 1 and (groups is None or len(groups) != count):
        raise SourceError(f"it has {count} frames, expected one, or an enhanced MR image that describes each frame")
    found = []
    for number in range(count) if groups is not None else [None]:
        look = _look_up(header, number)
        reason = _reason_against(header, look)
        if reason:
            reasons[reason].append(file)
        else:
            found.append(_frame(file, number if count > 1 else None, header, look))
    return found


def _check_file(header: Any) -> None:
    """Refuse what concerns the whole file."""
    from pydicom.pixels import get_decoder

    if header.get("Modality") != "MR":
        raise SourceError(f"modality {header.get('Modality')!r}, expected 'MR'")
    photometric = header.get("PhotometricInterpretation")
    if header.get("SamplesPerPixel") != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise SourceError(f"photometric interpretation {photometric!r}, expected 'MONOCHROME1' or 'MONOCHROME2'")
    rows, columns = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
    if min(rows, columns) < MIN_EDGE:
        raise SourceError(f"an image of {rows}x{columns} pixels, expected at least {MIN_EDGE} along each axis")
    syntax = header.file_meta.TransferSyntaxUID
    try:
        readable = not syntax.is_encapsulated or get_decoder(syntax).is_available
    except NotImplementedError:  # one that pydicom has never heard of
        readable = False
    if not readable:
        raise SourceError(
            f"its pixels are compressed by {syntax.name!r} ({syntax}), for which pydicom has no decoder here; "
            "expected uncompressed or RLE, or a decoder that is installed (pylibjpeg)"
        )


def _look_up(header: Any, number: int | None) -> Callable[[str], Any]:
    """Attributes of a frame by keyword: its own macros first, then those shared by all, then the file's."""
    places = [header]
    if number is not None:
        groups = [header.PerFrameFunctionalGroupsSequence[number], *header.get("SharedFunctionalGroupsSequence", [])]
        places = [group[name][0] for group in groups for name in MACROS if group.get(name)] + places
    return lambda name: next((place[name].value for place in places if place.get(name) is not None), None)


def _reason_against(header: Any, look: Callable[[str], Any]) -> str | None:
    """Why a frame is no magnitude image of an anatomy, or None."""
    given = look("FrameType") or look("ImageType") or []
    words = [str(word).upper() for word in ([given] if isinstance(given, str) else given)]
    if words[:1] == ["DERIVED"]:
        return f"a derived image (type {'/'.join(words)}), expected an original one: it may be a map or a projection"
    if NO_IMAGE & set(words):
        return f"a localizer, projection or mosaic (type {'/'.join(words)}), expected images of single slices"
    component = str(look("ComplexImageComponent") or "MAGNITUDE").upper()
    if NO_MAGNITUDE & set(words[2:]) or component != "MAGNITUDE" or _ge_kind(header) in (1, 2, 3):
        return f"a phase, real or imaginary image (type {'/'.join(words)}), expected the magnitude"
    return None


def _ge_kind(header: Any) -> Any:
    try:
        return header.private_block(*GE_BLOCK)[GE_KIND].value
    except KeyError:
        return None


def _frame(file: Path, number: int | None, header: Any, look: Callable[[str], Any]) -> Frame:
    orientation, position = look("ImageOrientationPatient"), look("ImagePositionPatient")
    distance = 0.0
    if orientation and position:
        row, column = np.array(orientation, float).reshape(2, 3)
        distance = float(np.cross(row, column) @ np.array(position, float))
    slope, intercept = look("RescaleSlope"), look("RescaleIntercept")
    # where a file was stripped of the patient, its study is the next larger thing that must not be split
    person = str(header.get("PatientID") or "") or f"study {header.get('StudyInstanceUID', file.parent.name)}"
    return Frame(
        file,
        number,
        str(header.get("SeriesInstanceUID") or file.parent),
        anonymous(person),
        (round(distance, 3), int(header.get("InstanceNumber") or 0), number or 0),
        1.0 if slope is None else float(slope),
        0.0 if intercept is None else float(intercept),
        header.PhotometricInterpretation == "MONOCHROME1",
    )


def _load_series(
    frames: list[Frame], reasons: dict[str, list[Path]], damage: tuple[type[Exception], ...]
) -> ImageStack:
    from pydicom.pixels import pixel_array

    slices, subjects = [], []
    for frame in frames:
        try:
            stored = pixel_array(frame.file, index=frame.number)
            if stored.ndim != 2:
                raise ValueError(f"its pixels have shape {stored.shape}")
        except damage as error:
            reasons[f"its pixels cannot be read ({error})"].append(frame.file)
            continue
        slices.append(stored.astype(np.float32) * np.float32(frame.slope) + np.float32(frame.intercept))
        subjects.append(frame.subject)
    if not slices:
        raise SourceError("no image of its series can be read")
    if frames[0].inverted:
        white = max(one.max() for one in slices)
        slices = [white - one for one in slices]
    low, high = min(one.min() for one in slices), max(one.max() for one in slices)
    if low < -0.02 * high:
        raise SourceError(f"the values of its series go from {low:g} to {high:g}, expected a magnitude, from 0 up")
    first = frames[0].file
    return stack_of(f"{first.parent.name}/{first.name}", [np.maximum(one, 0) for one in slices], subjects)
