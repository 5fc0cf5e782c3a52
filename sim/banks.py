"""The banks of patches that diffusion priors are trained on."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch

from .bank_data import VALIDATION, VALIDATION_SEED, BankData, make_banks
from .patch_bank import BANK_PATCH, PatchBank, write_bank
from .training_settings import TrainingSettings


def prepare_banks(data: list[Path], folder: Path, settings: TrainingSettings) -> tuple[Path, Path]:
    """Training and validation bank of augmented patches, made if they are not there; errors as of `make_banks`."""
    edge = max(BANK_PATCH, settings.patch)
    training = partial(write_bank, patches=settings.bank, seed=settings.seed, size=edge)
    validation = partial(write_bank, patches=16, seed=VALIDATION_SEED)
    return make_banks(data, folder, (training_bank(folder, settings), training), (folder / VALIDATION, validation))


def training_bank(folder: Path, settings: TrainingSettings) -> Path:
    """Where the bank of a run lies."""
    size = f"-{settings.patch}" if settings.patch > BANK_PATCH else ""
    return folder / f"bank-{settings.bank}-{settings.seed}{size}.npy"


def validation_patches(folder: Path, channels: int) -> torch.Tensor:
    """Held-back patches (patch, channels, 128, 128) of a run; their magnitudes for one channel."""
    patches = torch.from_numpy(np.load(folder / VALIDATION)[:, :, :128, :128].astype(np.float32))
    return patches if channels == 2 else patches.square().sum(1, keepdim=True).sqrt()


class PatchData(BankData[TrainingSettings]):
    """Patches for a denoiser."""

    def prepare_data(self) -> None:
        """Make the banks."""
        prepare_banks(self.data, self.folder, self.settings)

    def stream(self, rank: int) -> PatchBank:
        """Patches of this rank."""
        settings = self.settings
        return PatchBank(training_bank(self.folder, settings), settings.patch, self.seed, rank, settings.channels)
