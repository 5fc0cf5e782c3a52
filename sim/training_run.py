"""A run of a training by Lightning, whatever it trains: its settings, its checkpoints, what it shows as it goes."""

from __future__ import annotations

import csv
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar

if TYPE_CHECKING:  # it imports the settings of one training, which are made of those here
    from .training_module import Average

PRIOR = "prior.safetensors"


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What every training can be told.

    Attributes
    ----------
    steps
        Optimiser steps.
    batch
        Images a step.
    learning_rate
        The highest of the schedule.
    bank
        Augmented images made ahead.
    precision, accelerator, devices
        Lightning's.
    threads
        CPU threads; 0 leaves it to torch.
    save_every
        Steps between checkpoints, and between reports.
    seed
        Of the weights, the bank and the order of its images.
    begin_with
        Prior (released or a file) whose weights to begin with.
    workers
        Processes that load images.
    """

    steps: int = 30_000
    batch: int = 8
    learning_rate: float = 8e-4
    bank: int = 16_000
    precision: str = "32-true"
    accelerator: str = "auto"
    devices: int = 1
    threads: int = 0
    save_every: int = 1000
    seed: int = 0
    begin_with: str | None = None
    workers: int = 0

    def told(self) -> dict[str, Any]:
        """What this training reads of all that, by name."""
        return asdict(self)


SettingsT = TypeVar("SettingsT", bound=RunSettings)
AverageT = TypeVar("AverageT", bound="Average")


class PeriodicReport(Callback, ABC, Generic[SettingsT, AverageT]):
    """Every `save_every` steps and at the end: a row of `curve.csv`, pictures, and the prior's file.

    Parameters
    ----------
    folder
        Of the run.
    average
        Of the weights: what is reported and written.
    """

    COLUMNS: ClassVar[tuple[str, ...]]
    """Of `curve.csv`, in their order."""

    def __init__(self, folder: Path, average: AverageT, settings: SettingsT) -> None:
        self.folder, self.average, self.settings = folder, average, settings
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Report when it is time, on the first process alone."""
        if trainer.is_global_zero and self.is_due(trainer.global_step):
            with torch.no_grad():
                self.report(trainer.global_step, module, trainer.callback_metrics.get("loss"))

    def is_due(self, step: int) -> bool:
        """Whether this many steps call for a report."""
        return step % self.settings.save_every == 0 or step == self.settings.steps

    @abstractmethod
    def report(self, step: int, module: Any, loss: torch.Tensor | None) -> None:
        """Write `curve.csv`, `samples.png` and the prior."""

    def write_row(self, step: int, loss: torch.Tensor | None, found: dict[str, Any]) -> None:
        """Append to `curve.csv`: step, seconds and loss, and what else `COLUMNS` has."""
        row = {
            "step": step,
            "seconds": round(time.perf_counter() - self.started, 1),
            "loss": float(loss) if loss is not None else "",
        }
        path = self.folder / "curve.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self.COLUMNS)
            if new:
                writer.writeheader()
            writer.writerow(row | found)


def begin_run(folder: Path, settings: RunSettings) -> int:
    """Make the folder, seed everything (before the networks are built) and set the threads.

    Returns
    -------
    The step that an earlier run in this folder has reached; 0 for a new one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pl.seed_everything(settings.seed)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    last = _last(folder)
    return int(torch.load(last, weights_only=True, map_location="cpu")["global_step"]) if last.exists() else 0


def run_training(
    folder: Path,
    settings: RunSettings,
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    report: PeriodicReport[Any, Any],
    strategy: str = "auto",
    callbacks: Sequence[Callback] = (),
) -> Path:
    """Train from `last.ckpt` on if the folder has one, and note the settings in `settings.txt`.

    Parameters
    ----------
    folder
        As `begin_run` left it.
    strategy
        Lightning's.
    callbacks
        More of Lightning's, called first.

    Returns
    -------
    Path of the prior, which `report` has written.
    """
    # without the counter: a folder that was moved would get last-v1.ckpt, and be resumed from the stale last.ckpt
    checkpoint = ModelCheckpoint(
        folder, filename="last", every_n_train_steps=settings.save_every, enable_version_counter=False
    )
    checkpoint.FILE_EXTENSION = ".ckpt"
    trainer = pl.Trainer(
        max_steps=settings.steps,
        accelerator=settings.accelerator,
        devices=settings.devices,
        strategy=strategy,
        precision=settings.precision,  # type: ignore[arg-type]
        gradient_clip_val=1.0,
        logger=False,
        default_root_dir=folder,
        callbacks=[*callbacks, report.average, checkpoint, report, TQDMProgressBar(refresh_rate=20)],
    )
    last = _last(folder)
    trainer.fit(module, data, ckpt_path=last if last.exists() else None, weights_only=True)
    if trainer.is_global_zero:
        (folder / "settings.txt").write_text("\n".join(f"{k}: {v}" for k, v in settings.told().items()) + "\n")
    return folder / PRIOR


def _last(folder: Path) -> Path:
    return folder / "last.ckpt"
