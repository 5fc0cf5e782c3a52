"""What a training shows as it goes: a curve, pictures, and the prior as it stands."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from scanprior.models.prior import save_prior

from .banks import validation_patches
from .training_module import Average, DenoiserTraining
from .training_settings import TrainingSettings

VALIDATION_SIGMAS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 3.0)


class Report(Callback):
    """Every `save_every` steps: validation denoising error per noise level, pictures, and the prior's file."""

    def __init__(self, folder: Path, average: Average, settings: TrainingSettings) -> None:
        self.folder, self.average, self.settings = folder, average, settings
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Report when it is time, on the first process alone."""
        due = trainer.global_step % self.settings.save_every == 0 or trainer.global_step == self.settings.steps
        if trainer.is_global_zero and due:
            self.report(trainer.global_step, module, trainer.callback_metrics.get("loss"))

    @torch.no_grad()
    def report(self, step: int, module: DenoiserTraining, loss: torch.Tensor | None) -> None:
        """Write `curve.csv`, `samples.png` and `prior.safetensors`."""
        denoiser = self.average.denoiser(module)
        clean = validation_patches(self.folder, self.settings.channels).to(module.device)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1)).to(module.device)
        errors, pictures = [], [clean[:4]]
        for sigma in VALIDATION_SIGMAS:
            with module.trainer.precision_plugin.forward_context():
                denoised = denoiser(clean + sigma * noise, torch.full((len(clean),), sigma, device=module.device))
            errors.append(float((denoised - clean).square().mean().sqrt()))
            if sigma in (0.1, 0.5, 3.0):
                pictures += [(clean + sigma * noise)[:4], denoised[:4]]
        path = self.folder / "curve.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", "seconds", "loss", *[f"rmse_at_{s}" for s in VALIDATION_SIGMAS]])
            seconds = round(time.perf_counter() - self.started, 1)
            writer.writerow([step, seconds, float(loss) if loss is not None else "", *[f"{e:.5f}" for e in errors]])
        _write_pictures(self.folder / "samples.png", pictures)
        low, high = self.settings.sigma_range
        description = {
            "network": self.settings.network_description,
            "sigma_min": low,
            "sigma_max": high,
            "step": step,
        }
        if self.settings.kind == "ncsnv2":
            description["levels"] = self.settings.levels
        save_prior(self.folder / "prior.safetensors", denoiser, description)


def _write_pictures(path: Path, rows: list[torch.Tensor]) -> None:
    """Magnitudes of clean, noisy and denoised validation patches, one row of each."""
    from matplotlib.image import imsave

    magnitudes = [torch.cat(list(row.square().sum(1).sqrt()), dim=1) for row in rows]
    imsave(path, torch.cat(magnitudes).clamp(0, 1.2).cpu().numpy(), cmap="gray", vmin=0, vmax=1.2)
