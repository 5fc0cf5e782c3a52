"""Images made of scans, on which a prior is trained: noisy ones of full scans, or draws from the present posterior."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from scanprior.models.channels import to_channels
from scanprior.models.diffusion_prior import DiffusionPrior
from scanprior.models.measured_scans import MeasuredScans
from scanprior.models.posterior_images import draw_images, sense_images
from tqdm import tqdm

from .augmentation import turned_patch
from .image_stack import SourceError
from .scan_bank import batches, read_scan, scan_files

CPU_ELEMENTS, CUDA_ELEMENTS = 1 << 17, 1 << 24
"""Coil images held at once, in complex numbers: on a CPU larger batches take up to ten times as long an image."""
Maker = Callable[[MeasuredScans], torch.Tensor]
"""Images (batch, y, x) of scans."""


def noisy_images(seed: int) -> Maker:
    """A^H y of full scans: the image and white noise of the scan's level.

    Where the maps are zero A^H y is zero, and so is the image: noise of the same level is put there, since a denoiser
    would else learn that there is none.
    """
    generator = torch.Generator().manual_seed(seed)

    def make(scans: MeasuredScans) -> torch.Tensor:
        if not scans.fully_sampled:
            raise SourceError("method 'sure' is for fully sampled scans, found undersampled ones; use split or em")
        image = scans.model().H(scans.kspace)
        noise = torch.view_as_complex(torch.randn((*image.shape, 2), generator=generator))
        air = (scans.maps == 0).all(1)
        noise = noise.to(image.device)
        return torch.where(air, scans.sigma[:, None, None] * noise, image)

    return make


def first_images(scans: MeasuredScans) -> torch.Tensor:
    """What `em` begins with where there is no prior: CG-SENSE images."""
    return sense_images(scans)


def write_posterior_images(folder: Path, path: Path, prior: DiffusionPrior, seed: int, what: str) -> None:
    """`write_images` of `posterior_images`, on the prior's device."""
    elements = CUDA_ELEMENTS if prior.device.type == "cuda" else CPU_ELEMENTS
    write_images(folder, path, posterior_images(prior, seed), what, elements)


def posterior_images(prior: DiffusionPrior, seed: int) -> Maker:
    """One posterior image of each, by the prior; zero where the maps are."""
    generator = torch.Generator().manual_seed(seed)

    def make(scans: MeasuredScans) -> torch.Tensor:
        scans = scans.to(prior.device)
        return draw_images(scans, prior, generator) * (scans.maps != 0).any(1)

    return make


def write_images(folder: Path, path: Path, make: Maker, what: str, elements: int = CPU_ELEMENTS) -> None:
    """Make the images of all scans of `folder` and write them to `path`: npy, (scan, 2, y, x) float32.

    A file that is there is overwritten in place, so that a stream that reads it goes on with the new images.
    """
    files, done = scan_files(folder), 0
    count, first = len(files), read_scan(files[0])
    at_once = max(1, elements // first["maps"].numel())
    images: np.memmap | None = None
    target = path if path.exists() else path.with_suffix(".partial.npy")
    with tqdm(total=count, desc=f"{what} -> {path.name}") as bar, torch.no_grad():
        for scans in batches(folder, at_once):
            made = to_channels(make(scans)).cpu().numpy()
            if images is None:
                shape = (count, *made.shape[1:])
                images = np.lib.format.open_memmap(
                    target, mode="r+" if target == path else "w+", dtype=np.float32, shape=shape
                )
            images[done : done + len(made)] = made
            done += len(made)
            bar.update(len(made))
    assert images is not None
    images.flush()
    target.replace(path)


def noise_levels(folder: Path) -> np.ndarray:
    """(scan,) noise of each real channel, in the prior's scale."""
    return np.concatenate([read_scan(path)["sigma"].numpy() for path in scan_files(folder)])


class ImageStream(torch.utils.data.IterableDataset):
    """Endless stream of patches of the images with their scans' noise level: crops, flips, transposition, phase.

    All of these leave white noise white. Yields `image` (2, size, size) float32 and `sigma`.
    """

    def __init__(self, path: Path, levels: np.ndarray, size: int, seed: int, rank: int = 0) -> None:
        self.path, self.levels, self.size, self.seed, self.rank = path, levels, size, seed, rank

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, self.rank, worker.id if worker else 0])
        images = np.load(self.path, mmap_mode="r")
        if self.size > min(images.shape[-2:]):
            raise ValueError(f"patch size {self.size} is larger than the images' {images.shape[-2:]}")
        while True:
            number = rng.integers(len(images))
            y, x = (rng.integers(0, edge - self.size + 1) for edge in images.shape[-2:])
            real, imaginary = np.array(images[number, :, y : y + self.size, x : x + self.size])
            patch = turned_patch(real + 1j * imaginary, rng)
            yield {
                "image": torch.from_numpy(np.stack([patch.real, patch.imag]).astype(np.float32)),
                "sigma": torch.tensor(self.levels[number]),
            }
