"""The scans of a run, and what each method trains on of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from scanprior.models.prior import load_prior

from .bank_data import VALIDATION_SEED, BankData, make_banks
from .scan_bank import read_scan, scan_files, together, write_simulated
from .scan_images import ImageStream, first_images, noise_levels, noisy_images, write_images, write_posterior_images
from .scan_stream import ScanStream, beside_first, beside_images, scan_density
from .unsupervised_settings import UnsupervisedTraining

log = logging.getLogger(__name__)

VALIDATION_SCANS = 12
MOST_UNSEEN = 0.02
"""Share of k-space that may be in no scan's mask before it is told."""
Preparation = Callable[[], list[str]]


def training_scans(folder: Path, settings: UnsupervisedTraining) -> Path:
    """Folder of the scans of a run."""
    return folder / f"scans-{settings.bank}-{settings.seed}-{settings.size}"


def validation_scans(folder: Path) -> Path:
    """Folder of the scans that a run validates on: of other subjects, where there are several."""
    return folder / "scans-validation"


def images_file(folder: Path) -> Path:
    """Where the images of the training scans lie, of the methods that make some."""
    return folder / "images.npy"


OF_THE_SCANS = (
    "method", "begin_with", "recorded", "size", "bank", "seed", "mask", "amount", "acs", "noise", "coils", "held",
    "rounds",
)  # fmt: skip
"""Settings that what lies in a run's folder depends on."""


def check_same_scans(folder: Path, settings: UnsupervisedTraining) -> None:
    """Refuse to go on with the scans and images of a folder that were made by other settings.

    Raises
    ------
    FileExistsError
        Naming the first setting that differs.
    """
    note = _note(folder)
    if not note.exists():
        return
    found = json.loads(note.read_text(encoding="utf-8"))
    for name, value in _of_the_scans(settings).items():
        if found.get(name) != value:
            raise FileExistsError(
                f"{folder} holds a run with {name} {found.get(name)!r}, found {value!r}: begin another in a folder of "
                "its own"
            )


def _write_note(folder: Path, settings: UnsupervisedTraining) -> None:
    """What the scans and images of a folder were made by; once they are there."""
    partial = _note(folder).with_suffix(".partial")
    partial.write_text(json.dumps(_of_the_scans(settings), indent=1) + "\n", encoding="utf-8")
    partial.replace(_note(folder))


def _note(folder: Path) -> Path:
    return folder / "scans.json"


def _of_the_scans(settings: UnsupervisedTraining) -> dict[str, Any]:
    return json.loads(json.dumps({name: getattr(settings, name) for name in OF_THE_SCANS}))


class ScanData(BankData[UnsupervisedTraining]):
    """Scans, or images of them; no clean image is kept.

    Parameters
    ----------
    data, folder, settings, seed
        As of `BankData`.
    prepare
        Puts recorded scans where `training_scans` and `validation_scans` say, and returns what is doubtful about them;
        None: the images of `data` are scanned. Called by the first process of all, the others waiting.
    """

    def __init__(
        self,
        data: list[Path],
        folder: Path,
        settings: UnsupervisedTraining,
        seed: int,
        prepare: Preparation | None = None,
    ) -> None:
        super().__init__(data, folder, settings, seed)
        self.prepare = prepare
        self.doubts: list[str] = []

    @property
    def device(self) -> torch.device:
        """Where the training runs."""
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def prepare_data(self) -> None:
        """Scans, and the images to begin with; errors as of `bank_data.make_banks`, and of `prepare`."""
        settings = self.settings
        scans = training_scans(self.folder, settings)
        if self.prepare is not None:
            self.doubts = self.prepare()
        else:
            make_banks(
                self.data, self.folder,
                (scans, partial(write_simulated, scans=settings.bank, seed=settings.seed, settings=settings)),
                (
                    validation_scans(self.folder),
                    partial(write_simulated, scans=VALIDATION_SCANS, seed=VALIDATION_SEED, settings=settings),
                ),
            )  # fmt: skip
        _write_note(self.folder, settings)
        unseen = float((self.density == 0).float().mean())
        if unseen > MOST_UNSEEN:
            self.doubts.append(
                f"{unseen:.0%} of k-space is in no scan's mask, however turned: there the prior learns from coils alone"
            )
        for doubt in self.doubts:
            log.warning("scans to train on: %s", doubt)
        path = images_file(self.folder)
        if path.exists():
            return
        if settings.method == "sure":
            write_images(scans, path, noisy_images(settings.seed), "noisy images")
        elif settings.method == "em" and settings.begin_with is not None:
            prior = load_prior(settings.begin_with).to(self.device)
            write_posterior_images(scans, path, prior, settings.seed, "posterior images to begin with")
        elif settings.method == "em":
            write_images(scans, path, first_images, "CG-SENSE images to begin with")

    def stream(self, rank: int) -> torch.utils.data.IterableDataset[Any]:
        """Patches of images of full scans; of undersampled ones, whose losses need k-space, whole scans."""
        settings, images = self.settings, images_file(self.folder)
        scans, density = training_scans(self.folder, settings), self.density
        if self.patches:
            return ImageStream(images, noise_levels(scans), settings.patch, self.seed, rank)
        beside = beside_images(images) if settings.method == "em" else beside_first(scans, density)
        held = settings.held if settings.method == "split" else None
        return ScanStream(scans, density, beside, self.seed, rank, held)

    @cached_property
    def density(self) -> torch.Tensor:
        """`scan_density` of the training scans."""
        return scan_density(training_scans(self.folder, self.settings))

    @property
    def patches(self) -> bool:
        """Whether it streams patches: images of full scans can be judged pixel by pixel."""
        return self.settings.method in ("sure", "em") and bool((self.density == 1).all())

    @property
    def batch_size(self) -> int:
        """Patches, or whole scans of about as many pixels."""
        settings = self.settings
        if self.patches:
            return settings.batch
        rows, columns = read_scan(scan_files(training_scans(self.folder, settings))[0])["maps"].shape[-2:]
        return max(1, round(settings.batch * settings.patch**2 / (rows * columns)))

    @property
    def batch_told(self) -> str:
        """What a step takes, in words."""
        return f"{self.batch_size} " + (f"patches of {self.settings.patch}" if self.patches else "scans")

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        """Batches without end."""
        loader = super().train_dataloader()
        if isinstance(loader.dataset, ScanStream):
            loader.collate_fn = together
        return loader
