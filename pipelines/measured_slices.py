"""From one MRD scan to its slices as training data: k-space, noise, maps and mask by the gadgets of the stream."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from scanprior.gadgets.coil_maps import CoilMaps
from scanprior.gadgets.encoding import Encoding
from scanprior.gadgets.errors import ScanError
from scanprior.gadgets.noise import Whitening, estimate_noise
from scanprior.gadgets.preparation import Problem, prepare, whitening_for
from scanprior.gadgets.slices import SliceData, SliceReady
from scanprior.gadgets.sorting import Sorter
from scanprior.models.espirit import NoAcsError
from scanprior.models.recipe import Maps
from scanprior.models.scan import Scan
from scanprior.sim.image_stack import SourceError
from scanprior.sim.measured_file import MeasuredSlice

from .replay import ScanFile, ScanFileError
from .training_data import subject_of

LEAST_COVERED = 0.9
"""Partial Fourier scans cover 7/8 of k-space or less, full ones all but a line or two."""
LEAST_HALF = 0.8
"""Shorter over longer half of the lines of a slice that nothing says is complete: a cut scan has a short one."""
DOUBT = "CAUTION"
"""Begins a note that speaks against using a scan."""
AGREES = (0.8, 1.6)
"""Noise at the edge of k-space over that of the noise scan where nothing is wrong: some signal is there, never less
than the noise."""
LEAST_POWER = 1.1
"""Power of a slice's samples over that of its noise, below which it is mere air."""


@dataclass
class ReadScan:
    """What became of a scan's slices.

    Attributes
    ----------
    slices
        Those that can be used, in the order in which they were complete.
    left_out
        Why others cannot, and how many.
    noise_samples
        Samples of the noise scan.
    notes
        What is unusual, but no reason to leave the scan out.
    """

    slices: list[MeasuredSlice] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    noise_samples: int = 0
    notes: list[str] = field(default_factory=list)


def read_slices(path: Path, maps: Maps | None = None) -> ReadScan:
    """All slices of a scan that training can use, whitened by its noise scan.

    Parameters
    ----------
    maps
        ESPIRiT's settings; those of a recipe that says nothing, if none are given. One set.

    Raises
    ------
    SourceError
        When the scan has no noise scan, or no image.
    ScanError
        When the stream's core refuses the header or a readout.
    ScanFileError
        When it is no MRD file, or damaged.
    """
    settings = maps or Maps.model_validate({})
    if settings.sets != 1:
        raise ValueError(f"expected one set of maps, got {settings.sets}")
    scan = ScanFile(path)
    try:
        subject = subject_of(scan.header, path)
        encoding = Encoding.from_header(scan.header)
        sorter = Sorter(encoding)
        coil_maps = CoilMaps(settings, torch.device("cpu"))
        found, notes = ReadScan(), set()
        for data, ended in _complete(scan, sorter):
            noise = sorter.noise.noise()
            if noise is None:
                raise SourceError(
                    "no noise readouts before the image (acquisition flag 19): without them the noise level, which "
                    "training needs, is not known"
                )
            found.noise_samples = noise.samples
            try:
                why = _unusable(data, encoding, ended)
                if why is not None:
                    raise SourceError(why)
                whitening = whitening_for(data, encoding, noise)
                if whitening.regularised:
                    notes.add(f"the noise covariance, of {noise.samples} samples, was regularised")
                if whitening.dropped:
                    notes.add(f"coils without noise were left out: {', '.join(map(str, whitening.dropped))}")
                if not (found.slices or found.left_out):  # of the first slice: all have one noise scan
                    notes |= _doubt(data, whitening)
                problem = prepare(data, encoding, whitening)
                slices = list(_slices(problem, coil_maps, whitening.sigma if data.acs is None else 0.0))
            except (NoAcsError, ScanError, SourceError) as error:
                found.left_out[str(error)] += 1
                continue
            for number, one in enumerate(slices):
                if not _power(one) > LEAST_POWER:
                    found.left_out["no signal, mere noise"] += 1
                    continue
                where = f"{path.name}, {data.key}" + (f", x {number}" if problem.volume else "")
                found.slices.append(MeasuredSlice(one, subject, where))
        if not (found.slices or found.left_out):
            raise SourceError("the scan has no image: a noise scan alone, or nothing at all")
        found.notes = sorted(notes)
        return found
    except (ScanError, ScanFileError, SourceError):
        raise
    except (OSError, LookupError, TypeError, ValueError, RuntimeError, MemoryError) as error:
        raise ScanFileError(f"{path}: damaged ({error})") from error
    finally:
        scan.close()


def _complete(scan: ScanFile, sorter: Sorter) -> Iterator[tuple[SliceData, bool]]:
    """The slices of a scan, and of each whether a readout said that it is its last."""
    for acquisition in scan.acquisitions():
        for event in sorter.add(acquisition):
            if isinstance(event, SliceReady):
                yield event.slice_data, True
    for event in sorter.flush():
        if isinstance(event, SliceReady):
            yield event.slice_data, False


def _unusable(data: SliceData, encoding: Encoding, ended: bool) -> str | None:
    """Why the samples of a slice cannot train a prior, None if they can."""
    width, (start, stop) = data.kspace.shape[-1], data.readout
    if stop - start < LEAST_COVERED * width:
        return f"its readouts cover {(stop - start) / width:.0%} of k-space (asymmetric echo)"
    for number, axis in ((1, "ky"), (2, "kz")):
        limit, size = encoding.limits[f"kspace_encoding_step_{number}"], encoding.encoded.matrix[number]
        covered = (limit.maximum - limit.minimum + 1) / size
        if size > 1 and limit.given and covered < LEAST_COVERED:
            return f"its lines cover {covered:.0%} of k-space along {axis} (partial Fourier)"
    lines = np.flatnonzero(data.counts.any(0)) - data.counts.shape[1] // 2
    if not len(lines):
        return "it has no lines"
    if not ended and len(lines) > 1:
        halves = sorted((max(0, -int(lines[0])), max(0, int(lines[-1]) + 1)))
        if halves[0] < LEAST_HALF * halves[1]:
            return (
                f"it ends without a last line, and its lines go from {lines[0]} to {lines[-1]} around the centre: "
                "cut short, or partial Fourier"
            )
    repeated = np.unique(data.counts[data.counts > 0])
    if len(repeated) > 1:
        return f"its lines were measured {repeated[0]} to {repeated[-1]} times, so that its noise is not white"
    return None


def _doubt(data: SliceData, whitening: Whitening) -> set[str]:
    """What the edge of k-space says against the noise scan, if anything."""
    covariance = whitening.matrix @ estimate_noise(data).covariance @ whitening.matrix.conj().T
    ratio = math.sqrt(float(covariance.diagonal().real.mean())) / whitening.sigma
    if AGREES[0] <= ratio <= AGREES[1]:
        return set()
    return {f"{DOUBT}: the noise at the edge of k-space is {ratio:.2f} times that of the noise scan"}


def _slices(problem: Problem, coil_maps: CoilMaps, acs_sigma: float) -> Iterator[Scan]:
    """The 2-D problems of a slice, or of a volume."""
    # without calibration lines ESPIRiT itself says what can be done
    acs = problem.kspace[..., :0, :] if problem.acs is None else problem.acs
    key = problem.acs_key or problem.key
    maps = coil_maps.of(key, acs, (problem.kspace.shape[-2], problem.kspace.shape[-1]), acs_sigma)
    coil_maps.forget_before(key)
    kspace, mask = torch.from_numpy(problem.kspace), torch.from_numpy(problem.mask)
    if not problem.volume:
        kspace, maps = kspace[None], maps[None]
    for samples, each in zip(kspace, maps, strict=True):
        yield Scan(samples, mask, each, problem.sigma)


def _power(scan: Scan) -> float:
    """Mean power of the measured samples over that of their noise; 0 where there is no map at all."""
    assert scan.maps is not None
    if not scan.maps.any():
        return 0.0
    points = len(scan.kspace) * int(scan.mask.expand(scan.kspace.shape[-2:]).sum())
    return float(scan.kspace.abs().square().sum()) / (points * scan.sigma**2) if points else math.nan
