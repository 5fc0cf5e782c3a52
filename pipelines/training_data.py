"""Raw scans as training data: MRD files are reconstructed by the stream's core before the training sees them."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
from defusedxml.ElementTree import fromstring
from scanprior.gadgets.encoding import Encoding
from scanprior.gadgets.engine import Engine
from scanprior.gadgets.errors import ScanError
from scanprior.gadgets.preparation import partial_fourier_fraction
from scanprior.gadgets.slices import Event, SliceReady
from scanprior.gadgets.sorting import Sorter
from scanprior.models.recipe import recipe_from
from scanprior.sim.image_sources import find_images
from scanprior.sim.image_stack import SourceError, anonymous
from scanprior.sim.source_hdf5 import SUFFIXES, hdf5_layout

from .replay import ScanFile, ScanFileError, replay

log = logging.getLogger(__name__)

RECIPE = {
    "name": "training-images",
    "method": "zero-filled",
    "settings": {"combine": "maps"},
    "outputs": {"image": "complex", "std": False},
}
"""Of a fully sampled scan the inverse transform combined by maps is the least-squares image: nothing is smoothed."""


def images_for_training(data: Iterable[Path], folder: Path, threads: int = 0) -> tuple[list[Path], list[str]]:
    """Files of images among `data`; MRD scans become npz stacks of complex images in `folder`.

    A scan that was reconstructed there before is not reconstructed again.

    Parameters
    ----------
    data
        Files and folders, as `find_images` takes them.
    folder
        Where the npz files go; made when there is one to write.
    threads
        CPU threads; 0 leaves it to torch.

    Returns
    -------
    files
        What `scanprior.sim.training.train_prior` takes as data.
    left_out
        One text for each scan that could not be used: which, and why.

    Raises
    ------
    FileNotFoundError
        When there is no data.
    SourceError
        When there is nothing but scans that cannot be used.
    """
    files: list[Path] = []
    left_out: list[str] = []
    engine = Engine(recipe_from(RECIPE, "training images"), threads=threads)
    try:
        for path in find_images(data):
            try:
                files.append(_reconstructed(path, folder, files, engine) if _is_scan(path) else path)
            except (SourceError, ScanError, ScanFileError) as error:
                reason = str(error) if str(error).startswith(str(path)) else f"{path}: {error}"
                log.warning("left out of the training data: %s", reason)
                left_out.append(reason)
    finally:
        engine.close()
    if not files:
        raise SourceError(f"training data: none of {len(left_out)} scans can be used: {'; '.join(left_out)}")
    return files, left_out


def _is_scan(path: Path) -> bool:
    return path.name.endswith(SUFFIXES) and hdf5_layout(path) == "mrd"


def _reconstructed(path: Path, folder: Path, others: list[Path], engine: Engine) -> Path:
    """The npz of a scan's complex images, made unless it is there already."""
    target, number = folder / f"{path.stem}.npz", 1
    while target in others:  # a scan of the same name in another folder
        number += 1
        target = folder / f"{path.stem}-{number}.npz"
    made_from = f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}"
    if target.exists():
        with np.load(target, allow_pickle=False) as before:
            if "made_from" in before and str(before["made_from"]) == made_from:
                return target
    subject = check_scan(path)
    images, _ = replay(path, engine, None)
    slices = np.concatenate([image.data[0] for image in images])
    folder.mkdir(parents=True, exist_ok=True)
    # the whole file or none: a run that is interrupted here must not go on with half of one; and a name of its own,
    # since every process of a training on several GPUs comes here
    partial = folder / f".{target.stem}.{uuid.uuid4().hex}.npz"
    np.savez(partial, slices=slices, subject=[subject] * len(slices), made_from=made_from)
    partial.replace(target)
    log.info("%s: %d complex images of %s -> %s", path, len(slices), slices.shape[1:], target)
    return target


def check_scan(path: Path) -> str:
    """Make sure that a scan is fully sampled, before time goes into it.

    Returns
    -------
    Whom it shows, by a name that does not tell: made from the header's patient ID, or from the file's name.

    Raises
    ------
    SourceError
        When the scan is undersampled in any image, or has no image.
    ScanError, ScanFileError
        When the stream's core refuses the header or a readout, or the file is damaged.
    """
    scan = ScanFile(path)
    try:
        encoding = Encoding.from_header(scan.header)
        sorter = Sorter(encoding)
        found = 0
        for acquisition in scan.acquisitions():
            for event in sorter.add(acquisition):
                found += _check_slice(event, encoding)
        for event in sorter.flush():
            found += _check_slice(event, encoding)
        if not found:
            raise SourceError("the scan has no image: a noise scan alone, or nothing at all")
        return subject_of(scan.header, path)
    except (ScanError, ScanFileError, SourceError):
        raise
    except (OSError, LookupError, TypeError, ValueError, RuntimeError, MemoryError) as error:
        raise ScanFileError(f"{path}: damaged ({error})") from error
    finally:
        scan.close()


def subject_of(header: str, path: Path) -> str:
    """Whom a scan shows, by a name that does not tell: made from the header's patient ID, or from the file's name."""
    return anonymous(_patient(fromstring(header)) or path.name)


def _check_slice(event: Event, encoding: Encoding) -> int:
    """Refuse an image that misses lines or samples; 1 if `event` is an image that misses none, else 0."""
    if not isinstance(event, SliceReady):
        return 0
    data = event.slice_data
    only = "only fully sampled scans can train this prior"
    width, (start, stop) = data.kspace.shape[-1], data.readout
    if stop - start < width:
        raise SourceError(f"its readouts cover {(stop - start) / width:.0%} of k-space (asymmetric echo); {only}")
    lines = int(np.count_nonzero(data.counts))
    if lines < data.counts.size:
        covered = partial_fourier_fraction(data, encoding)
        what = f", with {covered:.0%} of k-space along ky (partial Fourier)" if covered < 1 else ""
        raise SourceError(f"this scan has R = {data.counts.size / max(1, lines):.1f}{what}; {only}")
    return 1


def _patient(header: Element) -> str:
    """The header's patient ID, "" where it has none; by local name, as `Encoding` reads headers."""
    return (header.findtext("./{*}subjectInformation/{*}patientID") or "").strip()
