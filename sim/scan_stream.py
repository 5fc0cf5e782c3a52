"""Streams of scans that a training runs on: turned at random, with what the method wants of each beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from scanprior.models.channels import to_channels, to_complex
from scanprior.models.divergence import rademacher
from scanprior.models.measured_scans import MeasuredScans, density_weights, first_image, missing_variance, random_part

from .scan_bank import Batch, read_scan, scan_files

SPREAD_SCANS = 48
"""Scans that `missing_variance` is the mean of."""
LEAST_SPREAD = 0.005
"""What is not measured is never known better."""
Beside = Callable[[int, Batch], Batch]
"""What a stream yields beside scan number n: images `first` or `image` (1, 2, y, x), and what has no axes."""


def scan_density(folder: Path) -> torch.Tensor:
    """(y, x): the share of all scans of a folder that have measured each point of k-space, as `turned` lays them.

    So scans of one and the same mask tell of the points between its lines too, where they lie turned.
    """
    files = scan_files(folder)
    first = read_scan(files[0])
    counts = torch.zeros(first["maps"].shape[-2:])
    for path in files:
        counts += read_scan(path)["mask"][0]
    density = counts / len(files)  # counted first: of full scans it is 1 exactly
    for axis in (-2, -1):
        density = (density + reversed_axis(density, axis)) / 2
    if density.shape[0] == density.shape[1]:
        density = (density + density.mT) / 2
    return density


def beside_images(path: Path) -> Beside:
    """`image`: of the file that `scan_images.write_images` wrote, as it is at the time."""
    images: list[np.ndarray] = []

    def find(number: int, scan: Batch) -> Batch:
        if not images:  # opened by the process that reads it
            images.append(np.load(path, mmap_mode="r"))
        return {"image": torch.from_numpy(np.array(images[0][number]))[None]}

    return find


def beside_first(folder: Path, density: torch.Tensor) -> Beside:
    """`first` and `level`: the first image and what the denoiser is told of it, made once of each scan and kept.

    They do not depend on the network. 8 bytes a pixel of all scans.
    """
    spread = folder_spread(folder, density)
    made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def find(number: int, scan: Batch) -> Batch:
        if number not in made:
            like = torch.empty(1, 2, *scan["maps"].shape[-2:])
            probe = rademacher(like, torch.Generator().manual_seed(number))
            made[number] = first_image(MeasuredScans(**scan), probe, spread)
        first, level = made[number]
        return {"first": first, "level": level}

    return find


def folder_spread(folder: Path, density: torch.Tensor) -> float:
    """The `spread` of `first_image` for the scans of a folder: the root of `missing_variance`, the mean of some."""
    files = scan_files(folder)
    chosen = sorted({round(at) for at in np.linspace(0, len(files) - 1, SPREAD_SCANS)})
    generator = torch.Generator().manual_seed(0)
    found = [missing_variance(MeasuredScans(**read_scan(files[number])), density, generator) for number in chosen]
    return max(LEAST_SPREAD, max(0.0, float(torch.cat(found).mean())) ** 0.5)


class ScanStream(torch.utils.data.IterableDataset):
    """Endless stream of scans of a folder, `turned` at random: each a batch of one, to be put `together`.

    Each comes with `weights` (1, y, x): the `density_weights` of its points.

    Parameters
    ----------
    density
        `scan_density` of the folder.
    beside
        What else comes with each scan.
    held
        With it each scan comes with `given` (1, y, x) bool: its mask without this share of its lines (or points).
    """

    def __init__(
        self, folder: Path, density: torch.Tensor, beside: Beside, seed: int, rank: int = 0, held: float | None = None
    ) -> None:
        self.folder, self.beside, self.seed, self.rank, self.held = folder, beside, seed, rank, held
        self.weights = density_weights(density)

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, self.rank, worker.id if worker else 0])
        files = scan_files(self.folder)
        while True:
            number = int(rng.integers(len(files)))
            scan = read_scan(files[number])
            weights = self.weights.expand(scan["maps"].shape[-2:])[None]
            more = self.beside(number, scan) | {"weights": weights}
            if self.held is not None:  # before lines become points by being turned
                more["given"] = random_part(scan["mask"], self.held)
            yield turned(scan | more, rng)


def turned(scan: Batch, rng: np.random.Generator) -> Batch:
    """The scan of the same object flipped, transposed, conjugated and with another phase: a scan as likely as this one.

    An axis that is reversed about its centre is reversed in image, maps and k-space alike; the transform of a conjugate
    image is the conjugate, both axes reversed; and white noise stays white. Transposed only where the matrix is square,
    so that scans still fit together.
    """
    shape = scan["maps"].shape[-2:]
    scan = scan | {name: scan[name].expand(-1, *shape) for name in {"mask", "given"} & set(scan)}
    kspace = {"kspace", "mask", "given", "weights"} & set(scan)
    images = {"maps", "first", "image"} & set(scan)
    axes = [axis for axis in (-2, -1) if rng.random() < 0.5]
    for name in kspace | images:
        for axis in axes:
            scan[name] = reversed_axis(scan[name], axis)
    if rng.random() < 0.5:
        for name in kspace:
            scan[name] = reversed_axis(reversed_axis(scan[name], -2), -1)
        scan["kspace"], scan["maps"] = scan["kspace"].conj_physical(), scan["maps"].conj_physical()
        for name in {"first", "image"} & set(scan):
            scan[name] = to_channels(to_complex(scan[name]).conj_physical())
    rows, columns = scan["maps"].shape[-2:]
    if rows == columns and rng.random() < 0.5:
        for name in kspace | images:
            scan[name] = scan[name].mT
    angle = rng.uniform(0, 2 * np.pi)
    factor = complex(np.cos(angle), np.sin(angle))
    scan["kspace"] = scan["kspace"] * factor
    for name in {"first", "image"} & set(scan):
        scan[name] = to_channels(to_complex(scan[name]) * factor)
    return scan


def reversed_axis(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """Position p from the centre N // 2 to -p."""
    length = tensor.shape[axis]
    return tensor if length == 1 else tensor.flip(axis).roll(1 - length % 2, axis)
