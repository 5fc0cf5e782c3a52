"""Banks of images that a training runs on: made once in its folder, by one process, for all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic

import lightning.pytorch as pl
import torch

from .image_sources import find_images, load_sources
from .image_stack import ImageStack
from .training_run import SettingsT

VALIDATION = "validation.npy"
VALIDATION_SEED = 12345
Bank = tuple[Path, Callable[[Path, list[ImageStack]], object]]
"""Where a bank lies, and what writes it there out of these images."""


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


def make_banks(data: list[Path], folder: Path, training: Bank, validation: Bank) -> tuple[Path, Path]:
    """Make both banks in `folder`, or take those that an earlier call has finished there; return their paths.

    Banks that no note tells the data of are made again: a call that was ended before it wrote the note left them.

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
    claimed, claim = claim_folder(files, folder)
    if not (claimed and training[0].exists() and validation[0].exists()):
        shown, held = split_by_subject(load_sources(files).stacks)
        for (path, write), stacks in ((validation, held), (training, shown)):
            write(path, stacks)
        claim()
    return training[0], validation[0]


def claim_folder(files: list[Path], folder: Path) -> tuple[bool, Callable[[], None]]:
    """Make sure that a run's folder holds no banks of other files.

    Returns
    -------
    Whether a note in `folder` says that its banks were made from these files; and what writes that note, to be called
    once the banks are written.

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

    def claim() -> None:
        partial = made_from.with_suffix(".partial.txt")
        partial.write_text(names)
        partial.replace(made_from)

    return made_from.exists(), claim


class BankData(pl.LightningDataModule, ABC, Generic[SettingsT]):
    """Banks made by the first process of all, the others waiting for it; then each its own stream of images.

    Parameters
    ----------
    data, folder
        As of `make_banks`.
    seed
        Of the streams. A resumed run must not see the images of the first one again in the same order.
    """

    def __init__(self, data: list[Path], folder: Path, settings: SettingsT, seed: int) -> None:
        super().__init__()
        self.data, self.folder, self.settings, self.seed = data, folder, settings, seed
        # all hosts share the folder, as they must for the checkpoints: one process of all, not one of each host
        self.prepare_data_per_node = False

    @abstractmethod
    def prepare_data(self) -> None:
        """Make the banks; called by Lightning on the first process, behind a barrier."""

    @abstractmethod
    def stream(self, rank: int) -> torch.utils.data.IterableDataset[Any]:
        """Images (channel, y, x) without end, for the process of this rank."""

    @property
    def batch_size(self) -> int:
        """Images a step."""
        return self.settings.batch

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        """Batches (batch, channel, y, x) without end."""
        assert self.trainer is not None
        settings = self.settings
        return torch.utils.data.DataLoader(
            self.stream(self.trainer.global_rank), batch_size=self.batch_size, num_workers=settings.workers,
            pin_memory=settings.workers > 0,
        )  # fmt: skip
