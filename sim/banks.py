"""The banks of patches that a training runs on: made once in its folder, by one process, for all of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch

from .image_sources import find_images, load_sources
from .image_stack import ImageStack
from .patch_bank import BANK_PATCH, PatchBank, write_bank
from .training_settings import TrainingSettings

VALIDATION = "validation.npy"


def split_by_subject(stacks: list[ImageStack]) -> tuple[list[ImageStack], list[ImageStack]]:
    """Training and validation stacks, no subject in both.

    The last subject of each stack that has several validates; where each has one only, the last of all; where there is
    but one subject, it does both.
    """
    held = {max(stack.subjects) for stack in stacks if len(set(stack.subjects)) > 1}
    everyone = {subject for stack in stacks for subject in stack.subjects}
    held = held or {max(everyone)}
    train: list[ImageStack] = []
    validation: list[ImageStack] = []
    for stack in stacks:
        for target, keep in ((train, False), (validation, True)):
            chosen = [i for i, subject in enumerate(stack.subjects) if (subject in held) == keep]
            if chosen:
                subjects = [stack.subjects[i] for i in chosen]
                target.append(ImageStack(stack.name, [stack.slices[i] for i in chosen], subjects))
    return train or validation, validation


def prepare_banks(data: list[Path], folder: Path, settings: TrainingSettings) -> tuple[Path, Path]:
    """Make the banks of augmented patches in `folder`, or take those that an earlier call has finished there.

    Raises
    ------
    FileNotFoundError
        When there is no data.
    FileExistsError
        When the banks there were made from other files.
    SourceError
        When no file can be used.
    """
    files = find_images(data)
    record = claim_folder(files, folder)
    training, validation = training_bank(folder, settings), folder / VALIDATION
    if not (training.exists() and validation.exists()):
        train, held = split_by_subject(load_sources(files).stacks)
        write_bank(validation, held, 16, seed=12345)
        write_bank(training, train, settings.bank, settings.seed, max(BANK_PATCH, settings.patch))
        record()
    return training, validation


def claim_folder(files: list[Path], folder: Path) -> Callable[[], object]:
    """Make sure that a run's folder holds no banks of other files.

    Returns
    -------
    To be called once the banks are written: notes in `folder` what they were made from.

    Raises
    ------
    FileExistsError
        When the banks there were made from other files.
    """
    made_from, names = folder / "data.txt", "".join(f"{path.name} {path.stat().st_size}\n" for path in files)
    if made_from.exists() and made_from.read_text() != names:
        raise FileExistsError(
            f"{folder} holds patches of other data ({made_from.name} lists it), found {names.split()[0]} and so on: "
            "begin a run of its own in another folder"
        )
    return partial(made_from.write_text, names)


def training_bank(folder: Path, settings: TrainingSettings) -> Path:
    """Where the bank of a run lies."""
    size = f"-{settings.patch}" if settings.patch > BANK_PATCH else ""
    return folder / f"bank-{settings.bank}-{settings.seed}{size}.npy"


def validation_patches(folder: Path, channels: int) -> torch.Tensor:
    """Held-back patches (patch, channels, 128, 128) of a run; their magnitudes for one channel."""
    patches = torch.from_numpy(np.load(folder / VALIDATION)[:, :, :128, :128].astype(np.float32))
    return patches if channels == 2 else patches.square().sum(1, keepdim=True).sqrt()


class PatchData(pl.LightningDataModule):
    """Banks made by the first process of all, the others waiting for it; then each its own stream of patches.

    Parameters
    ----------
    seed
        Of the streams. A resumed run must not see the patches of the first one again in the same order.
    """

    def __init__(self, data: list[Path], folder: Path, settings: TrainingSettings, seed: int) -> None:
        super().__init__()
        self.data, self.folder, self.settings, self.seed = data, folder, settings, seed
        # all hosts share the folder, as they must for the checkpoints: one process of all, not one of each host
        self.prepare_data_per_node = False

    def prepare_data(self) -> None:
        """Called by Lightning on the first process, behind a barrier."""
        prepare_banks(self.data, self.folder, self.settings)

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        """Batches (batch, channel, y, x) without end."""
        assert self.trainer is not None
        settings = self.settings
        bank = training_bank(self.folder, settings)
        patches = PatchBank(bank, settings.patch, self.seed, self.trainer.global_rank, settings.channels)
        return torch.utils.data.DataLoader(
            patches, batch_size=settings.batch, num_workers=settings.workers, pin_memory=settings.workers > 0
        )
