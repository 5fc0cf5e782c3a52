"""Training of diffusion priors on augmented patches, by Lightning: `train_prior`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar

from .banks import PatchData
from .training_module import Average, DenoiserTraining
from .training_report import Report
from .training_settings import TrainingSettings


def train_prior(data: list[Path], folder: Path, settings: TrainingSettings) -> Path:
    """Train a prior on magnitude images; an interrupted run in the same folder goes on where it stopped.

    Parameters
    ----------
    data
        Files or folders of them; see `image_sources`. MRD scans are no images yet: `pipelines/training_data.py`.
    folder
        Gets the banks of patches, `last.ckpt`, `curve.csv`, `samples.png` and `prior.safetensors`.
    settings
        Kind, size of the network, steps, and so on.

    Returns
    -------
    Path of the prior.

    Raises
    ------
    FileNotFoundError, FileExistsError, SourceError
        See `prepare_banks`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pl.seed_everything(settings.seed)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    average = Average(decay=0.9995)
    module = DenoiserTraining(settings)
    # without the counter: a folder that was moved would get last-v1.ckpt, and be resumed from the stale last.ckpt
    checkpoint = ModelCheckpoint(
        folder, filename="last", every_n_train_steps=settings.save_every, enable_version_counter=False
    )
    checkpoint.FILE_EXTENSION = ".ckpt"
    trainer = pl.Trainer(
        max_steps=settings.steps,
        accelerator=settings.accelerator,
        devices=settings.devices,
        precision=settings.precision,  # type: ignore[arg-type]
        gradient_clip_val=1.0,
        logger=False,
        default_root_dir=folder,
        callbacks=[average, checkpoint, Report(folder, average, settings), TQDMProgressBar(refresh_rate=20)],
    )
    last = folder / "last.ckpt"
    start = int(torch.load(last, weights_only=True, map_location="cpu")["global_step"]) if last.exists() else 0
    patches = PatchData(data, folder, settings, settings.seed + start)
    trainer.fit(module, patches, ckpt_path=last if last.exists() else None, weights_only=True)
    if trainer.is_global_zero:
        (folder / "settings.txt").write_text("\n".join(f"{k}: {v}" for k, v in asdict(settings).items()) + "\n")
    return folder / "prior.safetensors"
