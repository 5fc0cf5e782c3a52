"""A folder of scans to train on: one safetensors file each, which holds what was measured and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scanprior.models.espirit import NoAcsError
from scanprior.models.forward import SenseModel
from scanprior.models.intensity import intensity_scale
from scanprior.models.measured_scans import MeasuredScans
from scanprior.models.recipe import Maps
from scanprior.models.scan import Scan
from tqdm import tqdm

from .evaluation import Condition, simulate_scan
from .image_stack import ImageStack, SourceError
from .patch_bank import stack_shares
from .slice_bank import AIR_MEAN, whole_slice
from .unsupervised_settings import UnsupervisedTraining

SCALE = (99.5, 1.0)
"""Of the prior: the percentile of a scan's own CG-SENSE image that is 1, as a reconstruction scales it."""
ESPIRIT = Maps.model_validate({})
"""Of the maps: the settings of a recipe that says nothing."""
KEYS = ("samples", "mask", "maps", "sigma", "scale")
Batch = dict[str, torch.Tensor]
"""The attributes of `MeasuredScans` by name; of a `scan_stream.ScanStream` also `weights` (batch, y, x) of the points
of k-space, and images (batch, 2, y, x): `image`, or `first` with its `level` (batch,), see `first_image`."""


def write_scan(path: Path, scan: Scan) -> None:
    """Write a scan (coil, y, x): its samples, mask, maps, noise, and the scale of its CG-SENSE image.

    Raises
    ------
    SourceError
        If it has no maps, no noise level, or no signal.
    """
    if scan.maps is None:
        raise SourceError(f"{path.name}: the scan has no coil maps, which the losses need")
    if not scan.sigma > 0:
        raise SourceError(f"{path.name}: expected a noise level above 0, found {scan.sigma:g}")
    model = SenseModel.of(scan)
    try:  # as `sample_posterior` finds the scale
        scale = intensity_scale(model.solve(model.H(scan.kspace), 0.01, iterations=15), SCALE)
    except ValueError as error:
        raise SourceError(f"{path.name}: {error}") from error
    measured = scan.mask.expand(scan.kspace.shape[-2:])
    found = {
        "samples": torch.view_as_real(scan.kspace[:, measured]).contiguous(),
        "mask": scan.mask.contiguous(),
        "maps": torch.view_as_real(scan.maps).contiguous(),
        "sigma": torch.tensor(scan.sigma),
        "scale": torch.tensor(scale),
    }
    save_file(found, path)


def read_scan(path: Path) -> Batch:
    """A scan of `write_scan` in the prior's scale, as a batch of one."""
    found = load_file(path)
    maps = torch.view_as_complex(found["maps"])
    kspace = torch.zeros_like(maps)
    kspace[:, found["mask"].expand(maps.shape[-2:])] = torch.view_as_complex(found["samples"]) / found["scale"]
    sigma = found["sigma"] / found["scale"] / 2**0.5  # a scan's is of the complex noise
    return {"kspace": kspace[None], "mask": found["mask"][None], "maps": maps[None], "sigma": sigma[None]}


def together(scans: Sequence[Batch]) -> Batch:
    """One batch of several; coils that a scan has not are zeros.

    Raises
    ------
    ValueError
        If the matrices differ.
    """
    shapes = {tuple(scan["maps"].shape[-2:]) for scan in scans}
    if len(shapes) > 1:
        raise ValueError(f"scans of one batch: expected one matrix, got {sorted(shapes)}")
    coils = max(scan["maps"].shape[1] for scan in scans)
    # masks of lines and of points in one batch: points
    wide = max(scan["mask"].shape[-1] for scan in scans)

    def padded(coil_images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(coil_images, (0, 0, 0, 0, 0, coils - coil_images.shape[1]))

    whole = {
        name: torch.cat([scan[name] for scan in scans])
        for name in ("sigma", "weights", "given", "image", "first", "level")
        if name in scans[0]
    }
    return whole | {
        "kspace": torch.cat([padded(scan["kspace"]) for scan in scans]),
        "maps": torch.cat([padded(scan["maps"]) for scan in scans]),
        "mask": torch.cat([scan["mask"].expand(-1, -1, wide) for scan in scans]),
    }


def scan_files(folder: Path) -> list[Path]:
    """The scans of a folder, in order.

    Raises
    ------
    SourceError
        If there is none.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise SourceError(f"{folder}: expected scans (*.safetensors), found none")
    return files


def write_simulated(
    folder: Path, stacks: list[ImageStack], scans: int, seed: int, settings: UnsupervisedTraining
) -> None:
    """Scan slices and write the scans to `folder`; the images are dropped.

    Each is a slice in a pose, contrast and phase of its own (`whole_slice`), as if of another subject, scanned once,
    with a coil array, a mask and noise of its own; its maps are ESPIRiT's of its noisy ACS. Slices of mere air are
    passed over. A folder that is there was finished by an earlier call, and is left as it is.
    """
    if folder.exists():
        return
    rng, share = np.random.default_rng(seed), stack_shares(stacks)
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists():  # of a run that was cut
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    for number in tqdm(range(scans), desc=f"simulated scans -> {folder.name}"):
        image = np.zeros(())
        while np.abs(image).mean() < AIR_MEAN:
            stack = stacks[rng.choice(len(stacks), p=share)]
            image = whole_slice(stack.slices[rng.integers(len(stack.slices))], settings.size, 2, rng)
        scan = simulate_scan(image, _condition(settings, rng), seed)
        try:
            maps = scan.maps(ESPIRIT)
        except NoAcsError as error:
            raise SourceError(f"simulated scans (mask {settings.mask}, --acs {settings.acs}): {error}") from error
        write_scan(partial / f"{number:06d}.safetensors", Scan(scan.kspace, scan.mask, maps, scan.sigma))
    partial.rename(folder)


def _condition(settings: UnsupervisedTraining, rng: np.random.Generator) -> Condition:
    """One scan as the settings say, its noise and coils within their ranges."""
    low, high = settings.noise
    noise = low * (high / low) ** rng.random()
    coils = int(rng.integers(settings.coils[0], settings.coils[1] + 1))
    return Condition(settings.mask, settings.amount, None, coils, settings.acs, noise=noise)


def batches(folder: Path, size: int) -> Iterator[MeasuredScans]:
    """All scans of a folder in order, up to `size` at once."""
    files = scan_files(folder)
    for first in range(0, len(files), size):
        yield MeasuredScans(**together([read_scan(path) for path in files[first : first + size]]))
