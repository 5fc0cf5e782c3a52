"""A folder of scans to train on: one safetensors file each, which holds what was measured and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scanprior.models.channels import to_channels, to_complex
from scanprior.models.divergence import rademacher
from scanprior.models.forward import SenseModel
from scanprior.models.intensity import intensity_scale
from scanprior.models.measured_scans import MeasuredScans, first_image
from scanprior.models.scan import Scan
from tqdm import tqdm

from .image_stack import ImageStack, SourceError
from .pairs import MASKS, Scanner
from .patch_bank import stack_shares
from .slice_bank import AIR_MEAN, whole_slice
from .unsupervised_settings import UnsupervisedTraining

SCALE = (99.5, 1.0)
"""Of the prior: the percentile of a scan's own CG-SENSE image that is 1, as a reconstruction scales it."""
KEYS = ("samples", "mask", "maps", "sigma", "scale")
Batch = dict[str, torch.Tensor]
"""The attributes of `MeasuredScans` by name; of a `ScanStream` also `first` (batch, 2, y, x) and `level` (batch,): the
image that the network is given of all the data, and the level that it is told (`first_image`)."""


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
        name: torch.cat([scan[name] for scan in scans]) for name in ("sigma", "first", "level") if name in scans[0]
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

    Each is a slice in a pose, contrast and phase of its own (`whole_slice`), as if of another subject, scanned once.
    Slices of mere air are passed over. A folder that is there was finished by an earlier call, and is left as it is.
    """
    if folder.exists():
        return
    # a mask for each scan: lines that no mask has say nothing of what the images have there
    scanner = Scanner(settings.scans(), settings.seed, masks=max(scans, MASKS))
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    share = stack_shares(stacks)
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists():  # of a run that was cut
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    for number in tqdm(range(scans), desc=f"simulated scans -> {folder.name}"):
        image = np.zeros(())
        while np.abs(image).mean() < AIR_MEAN:
            stack = stacks[rng.choice(len(stacks), p=share)]
            image = whole_slice(stack.slices[rng.integers(len(stack.slices))], settings.size, 2, rng)
        channels = torch.view_as_real(torch.from_numpy(image)).movedim(-1, 0)[None]
        model, kspace, sigma = scanner.measure(channels, generator)
        scan = Scan(kspace[0], model.mask[0] > 0, model.maps[0], float(sigma) * 2**0.5)
        write_scan(partial / f"{number:06d}.safetensors", scan)
    partial.rename(folder)


def turned(scan: Batch, rng: np.random.Generator) -> Batch:
    """The scan of the same object flipped and with another phase, which is a scan as likely as this one.

    An axis that is reversed about its centre is reversed in image, maps and k-space alike, and white noise stays white.
    """
    scan = dict(scan)
    for axis in (-2, -1):
        if rng.random() < 0.5:
            for name in {"kspace", "mask", "maps", "first"} & set(scan):
                scan[name] = reversed_axis(scan[name], axis)
    angle = rng.uniform(0, 2 * np.pi)
    factor = complex(np.cos(angle), np.sin(angle))
    scan["kspace"] = scan["kspace"] * factor
    if "first" in scan:
        scan["first"] = to_channels(to_complex(scan["first"]) * factor)
    return scan


def reversed_axis(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """Position p from the centre N // 2 to -p."""
    length = tensor.shape[axis]
    return tensor if length == 1 else tensor.flip(axis).roll(1 - length % 2, axis)


class ScanStream(torch.utils.data.IterableDataset):
    """Endless stream of scans of a folder, `turned` at random: each a batch of one, to be put `together`.

    Their first images do not depend on the network, so each is made once and kept: 8 bytes a pixel of all scans.

    Parameters
    ----------
    sigma_data
        Of the prior; see `first_image`.
    """

    def __init__(self, folder: Path, sigma_data: float, seed: int, rank: int = 0) -> None:
        self.folder, self.sigma_data, self.seed, self.rank = folder, sigma_data, seed, rank

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, self.rank, worker.id if worker else 0])
        files = scan_files(self.folder)
        made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        while True:
            number = int(rng.integers(len(files)))
            scan = read_scan(files[number])
            if number not in made:
                like = torch.empty(1, 2, *scan["maps"].shape[-2:])
                probe = rademacher(like, torch.Generator().manual_seed(number))
                made[number] = first_image(MeasuredScans(**scan), probe, self.sigma_data)
            first, level = made[number]
            yield turned(scan | {"first": first, "level": level}, rng)


def batches(folder: Path, size: int) -> Iterator[MeasuredScans]:
    """All scans of a folder in order, up to `size` at once."""
    files = scan_files(folder)
    for first in range(0, len(files), size):
        yield MeasuredScans(**together([read_scan(path) for path in files[first : first + size]]))
