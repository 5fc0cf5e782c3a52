"""The banks of whole slices that supervised networks are trained on."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from .bank_data import VALIDATION, VALIDATION_SEED, BankData, make_banks
from .slice_bank import SliceBank, write_slices
from .supervised_settings import SupervisedTraining

VALIDATION_SLICES = 24


class SliceData(BankData[SupervisedTraining]):
    """Slices to be scanned."""

    def prepare_data(self) -> None:
        """Make the banks; errors as of `bank_data.make_banks`."""
        settings = self.settings
        training, validation = slice_banks(self.folder, settings)
        write = partial(write_slices, size=settings.size, channels=settings.channels)
        make_banks(
            self.data, self.folder,
            (training, partial(write, slices=settings.bank, seed=settings.seed)),
            (validation, partial(write, slices=VALIDATION_SLICES, seed=VALIDATION_SEED)),
        )  # fmt: skip

    def stream(self, rank: int) -> SliceBank:
        """Slices of this rank."""
        training, _ = slice_banks(self.folder, self.settings)
        return SliceBank(training, self.seed, rank)


def slice_banks(folder: Path, settings: SupervisedTraining) -> tuple[Path, Path]:
    """Training and validation bank of a run."""
    return (
        folder / f"slices-{settings.bank}-{settings.seed}-{settings.size}-{settings.channels}.npy",
        folder / f"{settings.size}-{settings.channels}-{VALIDATION}",
    )
