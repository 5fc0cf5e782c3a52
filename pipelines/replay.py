"""Replay of a recorded MRD file through the same core that serves a scanner."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scanprior.gadgets.engine import Engine
from scanprior.gadgets.errors import ScanError
from scanprior.gadgets.mrd import Acquisition, Image

from .pictures import write_pictures

log = logging.getLogger(__name__)

CHUNK = 256  # acquisitions read at once


class ScanFileError(ValueError):
    """A file that is not an MRD raw-data file."""


class ScanFile:
    """Raw data of an MRD (ISMRMRD) HDF5 file.

    Parameters
    ----------
    path
        The file.
    group
        Name of the group that holds `xml` and `data`; None takes `dataset`, or else the only one that has them.

    Raises
    ------
    ScanFileError
        When it is not such a file.
    """

    def __init__(self, path: Path, group: str | None = None) -> None:
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise ScanFileError(f"{path}: not an HDF5 file that can be read ({error})") from error
        groups = [name for name, item in self._file.items() if isinstance(item, h5py.Group) and "data" in item]
        name = group or ("dataset" if "dataset" in groups else groups[0] if len(groups) == 1 else None)
        if name is None or name not in groups or "xml" not in self._file[name]:
            raise ScanFileError(f"{path}: expected a group with 'xml' and 'data', found groups {groups or 'none'}")
        self._group = self._file[name]
        self._data = self._group["data"]
        if self._data.dtype.names is None or not {"head", "data"} <= set(self._data.dtype.names):
            raise ScanFileError(f"{path}: {name}/data does not hold acquisitions")

    @property
    def header(self) -> str:
        """MRD header, XML; a `ScanFileError` where it is not text."""
        text = self._group["xml"][()]
        text = text.ravel()[0] if isinstance(text, np.ndarray) else text
        try:
            return text.decode("utf-8") if isinstance(text, bytes) else str(text)
        except UnicodeDecodeError as error:
            raise ScanFileError(f"{self._file.filename}: the MRD header is not UTF-8 text: {error}") from error

    def __len__(self) -> int:
        """Number of acquisitions."""
        return len(self._data)

    def acquisitions(self) -> Iterator[Acquisition]:
        """The readouts in file order."""
        for first in range(0, len(self._data), CHUNK):
            for row in self._data[first : first + CHUNK]:
                head = row["head"]
                shape = int(head["active_channels"]), int(head["number_of_samples"])
                values = np.asarray(row["data"], np.float32)
                if values.size == 2 * shape[0] * shape[1]:
                    yield Acquisition(head, values.view(np.complex64).reshape(shape))
                else:  # the session refuses it by its shape, leaves it out and tells, as on every other way in
                    yield Acquisition(head, np.zeros((1, values.size // 2), np.complex64))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def replay(
    path: Path,
    engine: Engine,
    out: Path | None,
    *,
    parameters: dict[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Image], dict[str, Any]]:
    """Reconstruct a recorded scan.

    Parameters
    ----------
    path
        MRD HDF5 file.
    engine
        Holds the default recipe and the prior.
    out
        Folder for `images.h5`, pictures and `report.json`; None writes nothing.
    parameters
        As a scan would bring them: recipe, samples, ...
    progress
        Called as `progress(readouts fed, readouts)`.

    Returns
    -------
    Images in the order in which they were made, and the report.

    Raises
    ------
    ScanFileError
        When the file is no MRD raw-data file.
    ScanError
        When header or parameters are refused; or, after all images that could be made have been written, for what
        could not be made.
    """
    images: list[Image] = []
    began = time.perf_counter()
    scan = ScanFile(path)
    failures: list[str] = []
    try:
        session = engine.open_session(scan.header, parameters or {}, images.append, records=None)
        try:
            for number, acquisition in enumerate(scan.acquisitions()):
                session.feed(acquisition)
                if progress is not None:
                    progress(number + 1, len(scan))
            session.close()
        except ScanError as error:
            failures.append(str(error))
        except BaseException as error:
            session.abort(f"the replay ends: {type(error).__name__}")
            raise
    finally:
        scan.close()
    report = {
        "scan": path.name,
        "recipe": session.recipe.model_dump(),
        "device": str(engine.device(session.recipe)),
        "seconds": time.perf_counter() - began,
        "first_image_seconds": session.timing.first_image,
        "latency": list(session.timing.slices),
        "images": list(session.results),
        "failures": failures,
    }
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_images(out / "images.h5", images)
        write_pictures(out, images)
        (out / "report.json").write_text(json.dumps(report, indent=1, default=_plain) + "\n")
    if failures:
        raise ScanError("; ".join(dict.fromkeys(failures)))
    return images, report


def write_images(path: Path, images: list[Image]) -> None:
    """Write images as an MRD file: group `dataset`, one `image_<series>` for each series."""
    import ismrmrd

    path.unlink(missing_ok=True)
    dataset = ismrmrd.Dataset(str(path), "dataset")
    try:
        for image in images:
            head = ismrmrd.ImageHeader.from_buffer_copy(image.head.tobytes())
            message = ismrmrd.Image(head)
            message.data[:] = image.data
            message.attribute_string = image.meta
            dataset.append_image(f"image_{int(image.head['image_series_index'])}", message)
    finally:
        dataset.close()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return str(value)
