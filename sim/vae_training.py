"""Training of VAE priors in two stages, by Lightning: `train_vae`, and what it shows as it goes."""

from __future__ import annotations

import csv
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from scanprior.models.vae import VAE, elbo_terms
from scanprior.models.vae_prior import save_vae

from .vae_data import VAEData, validation_images
from .vae_module import VAEAverage, VAETraining, stage_of, with_air_noise
from .vae_settings import VAESettings

COLUMNS = ("step", "seconds", "stage", "loss", "elbo", "nll", "kl", "rmse")


def train_vae(data: list[Path], folder: Path, settings: VAESettings) -> Path:
    """Train a VAE prior; an interrupted run in the same folder goes on where it stopped, in either stage.

    Parameters
    ----------
    data
        Files or folders of them; see `image_sources`.
    folder
        Gets the banks of images, `last.ckpt`, `curve.csv`, `samples.png` and `prior.safetensors`.
    settings
        Covariance, size of the networks, steps, and so on.

    Returns
    -------
    Path of the prior.

    Raises
    ------
    FileNotFoundError, FileExistsError, SourceError, PriorError
        See `prepare_vae_banks` and `take_mean`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pl.seed_everything(settings.seed)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    average = VAEAverage(0.998, settings)
    module = VAETraining(settings)
    checkpoint = ModelCheckpoint(
        folder, filename="last", every_n_train_steps=settings.save_every, enable_version_counter=False
    )
    checkpoint.FILE_EXTENSION = ".ckpt"
    trainer = pl.Trainer(
        max_steps=settings.steps,
        accelerator=settings.accelerator,
        devices=settings.devices,
        strategy="ddp_find_unused_parameters_true" if settings.devices > 1 else "auto",
        precision=settings.precision,  # type: ignore[arg-type]
        gradient_clip_val=1.0,
        logger=False,
        default_root_dir=folder,
        callbacks=[average, checkpoint, VAEReport(folder, average, settings), TQDMProgressBar(refresh_rate=20)],
    )
    last = folder / "last.ckpt"
    start = int(torch.load(last, weights_only=True, map_location="cpu")["global_step"]) if last.exists() else 0
    principal = settings.network_description["principal"] and not start and settings.begin_with is None
    images = VAEData(data, folder, settings, settings.seed + start, module.vae if principal else None)
    trainer.fit(module, images, ckpt_path=last if last.exists() else None, weights_only=True)
    if trainer.is_global_zero:
        (folder / "settings.txt").write_text("\n".join(f"{k}: {v}" for k, v in asdict(settings).items()) + "\n")
    return folder / "prior.safetensors"


class VAEReport(Callback):
    """Every `save_every` steps and at the end of a stage: validation likelihood, pictures, and the prior's file."""

    def __init__(self, folder: Path, average: VAEAverage, settings: VAESettings) -> None:
        self.folder, self.average, self.settings = folder, average, settings
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Report when it is time, on the first process alone."""
        step = trainer.global_step
        due = step % self.settings.save_every == 0 or step in (self.settings.steps, self.settings.first_stage)
        if trainer.is_global_zero and due:
            self.report(step, module, trainer.callback_metrics.get("loss"))

    @torch.no_grad()
    def report(self, step: int, module: VAETraining, loss: torch.Tensor | None) -> None:
        """Write `curve.csv`, `samples.png` and `prior.safetensors`."""
        vae = self.average.vae(module).eval()
        generator = torch.Generator().manual_seed(1)
        images = validation_images(self.folder, self.settings)
        images = with_air_noise(images, self.settings.air_noise, generator).to(module.device)
        numbers, shape = images[0].numel(), (images.shape[-2], images.shape[-1])
        sums = torch.zeros(3)
        for batch in images.split(8):
            with module.trainer.precision_plugin.forward_context():
                mean, log_var = vae.encode(batch)
                z = mean + (0.5 * log_var).exp() * torch.randn(mean.shape, generator=generator).to(mean)
                nll, kl = elbo_terms(vae, batch, z, mean, log_var)
                error = (batch - vae.mean(z)[..., : shape[0], : shape[1]]).square().mean()
            sums += torch.tensor([float(nll.sum()), float(kl.sum()), float(error) * len(batch)])
        nll_mean, kl_mean, square = (sums / len(images)).tolist()
        row = {
            "step": step,
            "seconds": round(time.perf_counter() - self.started, 1),
            "stage": stage_of(self.settings, step - 1),
            "loss": float(loss) if loss is not None else "",
            "elbo": f"{-(nll_mean + kl_mean) / numbers:.5f}",
            "nll": f"{nll_mean / numbers:.5f}",
            "kl": f"{kl_mean:.2f}",
            "rmse": f"{square**0.5:.5f}",
        }
        path = self.folder / "curve.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if new:
                writer.writeheader()
            writer.writerow(row)
        write_pictures(self.folder / "samples.png", vae, images[:6], generator)
        description = {"network": self.settings.network_description, "step": step}
        save_vae(self.folder / "prior.safetensors", vae, description)


@torch.no_grad()
def write_pictures(path: Path, vae: VAE, images: torch.Tensor, generator: torch.Generator) -> None:
    """Rows: images, their reconstructions G(z), residuals, drawn residuals; G(z) of z ~ N(0, I), and draws of p(x|z).

    Images show the first part; residuals are signed, grey is zero, from -0.3 to 0.3.
    """
    from matplotlib.image import imsave

    shape = (images.shape[-2], images.shape[-1])
    z, _ = vae.encode(images)
    mean = vae.mean(z)[..., : shape[0], : shape[1]]
    drawn = vae.factor(z, shape).sample(1).cpu()[0]
    new = torch.randn(z.shape, generator=generator).to(z)
    made = vae.mean(new)[..., : shape[0], : shape[1]]
    full = made.cpu() + vae.factor(new, shape).sample(1).cpu()[0]
    signed = [(part.cpu() / 0.6 + 0.5) * 1.2 for part in (images - mean, drawn)]
    rows = [images.cpu(), mean.cpu(), *signed, made.cpu(), full]
    picture = torch.cat([torch.cat(list(row[:, 0]), 1) for row in rows]).clamp(0, 1.2)
    imsave(path, picture.float().numpy(), cmap="gray", vmin=0, vmax=1.2)
