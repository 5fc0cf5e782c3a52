"""One measured slice as a file to train on: what the scanner gave, whitened, and nothing that was reconstructed.

An npz of

=========== ====================== ==========================================================================
`samples`   (coil, sample)         complex64, the measured samples in the order of `mask`; whitened
`mask`      (y, 1) or (y, x)       bool, true where measured; DC at index N // 2
`maps`      (coil, y, x)           complex64, ESPIRiT of the ACS lines alone; unit norm on their support, else 0
`sigma`     ()                     float32, standard deviation of the complex noise of a sample: always 1
`subject`   ()                     text, a name that does not tell who it is; slices of one subject have the same
`source`    ()                     text, the scan's file and which image of it
=========== ====================== ==========================================================================

The matrix is the encoded one, without readout oversampling; a slice of a volume is a plane (z, y) of it, decoupled
along the readout. An orthonormal transform of `maps * image` plus noise of `sigma` gives the samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from scanprior.models.scan import Scan

from .image_stack import SourceError


@dataclass(frozen=True)
class MeasuredSlice:
    """A slice (coil, y, x) with its coil maps and noise level, whom it shows, and where it comes from."""

    scan: Scan
    subject: str
    source: str


def write_measured(path: Path, measured: MeasuredSlice) -> None:
    """Write a slice, scaled to complex noise of standard deviation 1.

    Raises
    ------
    ValueError
        If it has no maps, no noise level, or is a batch of several.
    """
    scan = measured.scan
    if scan.maps is None or scan.maps.ndim != 3 or scan.kspace.ndim != 3:
        found = None if scan.maps is None else tuple(scan.maps.shape)
        raise ValueError(f"expected k-space and maps (coil, y, x), got {tuple(scan.kspace.shape)} and {found}")
    if not scan.sigma > 0:
        raise ValueError(f"expected a noise level above 0, got {scan.sigma:g}")
    where = scan.mask.expand(scan.kspace.shape[-2:])
    np.savez(
        path,
        samples=(scan.kspace[:, where] / scan.sigma).numpy().astype(np.complex64),
        mask=scan.mask.numpy(),
        maps=scan.maps.numpy().astype(np.complex64),
        sigma=np.float32(1),
        subject=measured.subject,
        source=measured.source,
    )


def read_measured(path: Path) -> MeasuredSlice:
    """Read what `write_measured` wrote.

    Raises
    ------
    SourceError
        When it is not such a file, or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            maps, mask = torch.from_numpy(file["maps"]), torch.from_numpy(file["mask"])
            kspace = torch.zeros_like(maps)
            kspace[:, mask.expand(maps.shape[-2:])] = torch.from_numpy(file["samples"])
            scan = Scan(kspace, mask, maps, float(file["sigma"]))
            return MeasuredSlice(scan, str(file["subject"]), str(file["source"]))
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, BadZipFile) as error:
        raise SourceError(f"{path}: not a measured slice that can be read ({error})") from error
