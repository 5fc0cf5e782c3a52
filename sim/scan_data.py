"""The scans of a run, and what each method trains on of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from scanprior.models.measured_scans import density_weights
from scanprior.models.prior import load_prior

from .bank_data import VALIDATION_SEED, BankData, make_banks
from .scan_bank import ScanStream, read_scan, reversed_axis, scan_files, together, write_simulated
from .scan_images import ImageStream, first_images, noise_levels, noisy_images, posterior_images, write_images
from .training_settings import SIGMA_DATA
from .unsupervised_settings import UnsupervisedTraining

VALIDATION_SCANS = 12


def training_scans(folder: Path, settings: UnsupervisedTraining) -> Path:
    """Folder of the scans of a run."""
    return folder / f"scans-{settings.bank}-{settings.seed}-{settings.size}"


def validation_scans(folder: Path) -> Path:
    """Folder of the scans that a run validates on: of other subjects, where there are several."""
    return folder / "scans-validation"


def images_file(folder: Path) -> Path:
    """Where the images of the training scans lie, of the methods that make some."""
    return folder / "images.npy"


def mask_weights(folder: Path, settings: UnsupervisedTraining) -> torch.Tensor:
    """`density_weights` of the training scans' masks, flipped as `turned` flips them."""
    masks = [read_scan(path)["mask"] for path in scan_files(training_scans(folder, settings))]
    wide = max(mask.shape[-1] for mask in masks)
    every = torch.cat([mask.expand(-1, -1, wide) for mask in masks])
    for axis in (-2, -1):
        every = torch.cat([every, reversed_axis(every, axis)])
    return density_weights(every)


class ScanData(BankData[UnsupervisedTraining]):
    """Scans, or images of them; no clean image is kept."""

    def prepare_data(self) -> None:
        """Simulate the scans, and make the images to begin with; errors as of `bank_data.make_banks`."""
        settings = self.settings
        scans = training_scans(self.folder, settings)
        make_banks(
            self.data, self.folder,
            (scans, partial(write_simulated, scans=settings.bank, seed=settings.seed, settings=settings)),
            (
                validation_scans(self.folder),
                partial(write_simulated, scans=VALIDATION_SCANS, seed=VALIDATION_SEED, settings=settings),
            ),
        )  # fmt: skip
        path = images_file(self.folder)
        if path.exists():
            return
        if settings.method == "sure":
            write_images(scans, path, noisy_images(settings.seed), "noisy images")
        elif settings.method == "em" and settings.begin_with is not None:
            prior = load_prior(settings.begin_with)
            write_images(scans, path, posterior_images(prior, settings.seed), "posterior images to begin with")
        elif settings.method == "em":
            write_images(scans, path, first_images, "CG-SENSE images to begin with")

    def stream(self, rank: int) -> torch.utils.data.IterableDataset[Any]:
        """Scans for gsure and split, patches of images for sure and em."""
        settings = self.settings
        scans = training_scans(self.folder, settings)
        if settings.method in ("gsure", "split"):
            return ScanStream(scans, SIGMA_DATA[settings.channels], self.seed, rank)
        return ImageStream(images_file(self.folder), noise_levels(scans), settings.patch, self.seed, rank)

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        """Batches without end."""
        loader = super().train_dataloader()
        if isinstance(loader.dataset, ScanStream):
            loader.collate_fn = together
        return loader
