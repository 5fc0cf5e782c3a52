"""Training of the diffusion prior: EDM loss on augmented complex patches, by Lightning."""

from __future__ import annotations

import csv
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar, WeightAveraging
from scanprior.models.preconditioning import EDMDenoiser
from scanprior.models.prior import PriorError, load_prior, save_prior
from scanprior.models.unet import UNet

from .image_sources import find_images, load_sources
from .image_stack import ImageStack
from .patch_bank import PatchBank, write_bank

SIGMA_DATA = 0.3  # rms of one real channel of the augmented patches, measured
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
VALIDATION_SIGMAS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 3.0)


@dataclass(frozen=True)
class TrainingSettings:
    """What `scanprior train` can be told; see its help for each."""

    steps: int = 30_000
    batch: int = 8
    patch: int = 96
    learning_rate: float = 8e-4
    widths: tuple[int, ...] = (32, 64, 128, 160)
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    bank: int = 16_000
    precision: str = "32-true"
    accelerator: str = "auto"
    devices: int = 1
    threads: int = 0
    save_every: int = 1000
    seed: int = 0
    begin_with: str | None = None


def draw_sigma(count: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Noise levels (count,): ln sigma ~ N(-1.5, 1.3^2), and one in ten log-uniform over the whole range.

    EDM's lognormal, moved to where data consistency leaves the prior something to decide; the rest keeps the far ends
    of the range defined.
    """
    usual = torch.randn(count, generator=generator) * 1.3 - 1.5
    span = math.log(SIGMA_MAX / SIGMA_MIN)
    uniform = math.log(SIGMA_MIN) + span * torch.rand(count, generator=generator)
    pick = torch.rand(count, generator=generator) < 0.1
    return torch.where(pick, uniform, usual).exp().clamp(SIGMA_MIN, SIGMA_MAX)


def learning_rate_factor(step: int, steps: int) -> float:
    """Warm-up over 300 steps, constant, then linear to zero over the last 30 %."""
    return min(1.0, (step + 1) / 300) * min(1.0, max(0.0, (steps - step) / (0.3 * steps)))


class DenoiserTraining(pl.LightningModule):
    """EDM training loss (Karras et al. 2022, eq. 2 and table 1) of a complex denoiser."""

    def __init__(self, settings: TrainingSettings) -> None:
        super().__init__()
        self.settings = settings
        network = UNet(2, settings.widths, settings.blocks)
        self.denoiser = EDMDenoiser(network, SIGMA_DATA)
        if settings.begin_with is not None:
            begin_with(self.denoiser, settings.begin_with)
        self.denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def training_step(self, clean: torch.Tensor, index: int) -> torch.Tensor:
        """Loss of a batch (batch, 2, y, x)."""
        sigma = draw_sigma(len(clean)).to(clean.device)
        loss = self.denoiser.loss(clean, sigma, torch.randn_like(clean)).mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """Adam with the schedule of `learning_rate_factor`."""
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=self.settings.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, self.settings.steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def begin_with(denoiser: EDMDenoiser, name: str) -> None:
    """Fill `denoiser` with the weights of a prior, released or one's own, to train them further.

    Raises
    ------
    PriorError
        When there is no such prior, or its network is another one.
    """
    prior = load_prior(name)
    try:
        denoiser.load_state_dict(prior.denoiser.state_dict())
    except RuntimeError as error:
        raise PriorError(
            f"prior {name!r} to begin with: its network {prior.network} is not the one asked for: {error}"
        ) from error


class Average(WeightAveraging):
    """EMA whose memory grows with the training: decay = min(`decay`, (1 + updates) / (10 + updates))."""

    def __init__(self, decay: float) -> None:
        def average(mean: torch.Tensor, current: torch.Tensor, updates: int | torch.Tensor) -> torch.Tensor:
            count = float(updates)
            return torch.lerp(mean, current, 1 - min(decay, (1 + count) / (10 + count)))

        super().__init__(avg_fn=average)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """After every optimiser step."""
        return step_idx is not None

    def denoiser(self, module: DenoiserTraining) -> EDMDenoiser:
        """The averaged denoiser, or the current one where no average exists yet."""
        averaged = getattr(self._average_model, "module", module)
        assert isinstance(averaged, DenoiserTraining)
        return averaged.denoiser


class Report(Callback):
    """Every `save_every` steps: validation denoising error per noise level, pictures, and the prior's file."""

    def __init__(self, folder: Path, average: Average, validation: torch.Tensor, settings: TrainingSettings) -> None:
        self.folder, self.average, self.validation, self.settings = folder, average, validation, settings
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
        clean = self.validation.to(module.device)
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
        description = {
            "network": {"image_channels": 2, "widths": self.settings.widths, "blocks": self.settings.blocks},
            "sigma_min": SIGMA_MIN,
            "sigma_max": SIGMA_MAX,
            "step": step,
        }
        save_prior(self.folder / "prior.safetensors", denoiser, description)


def _write_pictures(path: Path, rows: list[torch.Tensor]) -> None:
    """Magnitudes of clean, noisy and denoised validation patches, one row of each."""
    from matplotlib.image import imsave

    magnitudes = [torch.cat(list(row.square().sum(1).sqrt()), dim=1) for row in rows]
    imsave(path, torch.cat(magnitudes).clamp(0, 1.2).cpu().numpy(), cmap="gray", vmin=0, vmax=1.2)


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
    made_from, names = folder / "data.txt", "".join(f"{path.name} {path.stat().st_size}\n" for path in files)
    if made_from.exists() and made_from.read_text() != names:
        raise FileExistsError(
            f"{folder} holds patches of other data ({made_from.name} lists it), found {names.split()[0]} and so on: "
            "begin a run of its own in another folder"
        )
    training, validation = folder / f"bank-{settings.bank}-{settings.seed}.npy", folder / "validation.npy"
    if not (training.exists() and validation.exists()):
        train, held = split_by_subject(load_sources(files).stacks)
        write_bank(validation, held, 16, seed=12345)
        write_bank(training, train, settings.bank, settings.seed)
        made_from.write_text(names)
    return training, validation


def train_prior(data: list[Path], folder: Path, settings: TrainingSettings) -> Path:
    """Train a prior on magnitude images; an interrupted run in the same folder goes on where it stopped.

    Parameters
    ----------
    data
        Files (npz, NIfTI, DICOM, HDF5 of fastMRI's layout) or folders of them.
    folder
        Gets the banks of patches, `last.ckpt`, `curve.csv`, `samples.png` and `prior.safetensors`.
    settings
        Size of the network, steps, and so on.

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
    training, validation = prepare_banks(data, folder, settings)
    average = Average(decay=0.9995)
    held = torch.from_numpy(np.load(validation)[:, :, :128, :128].astype(np.float32))
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
        callbacks=[average, checkpoint, Report(folder, average, held, settings), TQDMProgressBar(refresh_rate=20)],
    )
    last = folder / "last.ckpt"
    start = int(torch.load(last, weights_only=True, map_location="cpu")["global_step"]) if last.exists() else 0
    # a resumed run must not see the patches of the first one again in the same order
    patches = PatchBank(training, settings.patch, settings.seed + start, trainer.global_rank)
    loader = torch.utils.data.DataLoader(patches, batch_size=settings.batch, num_workers=0)
    trainer.fit(module, loader, ckpt_path=last if last.exists() else None, weights_only=True)
    (folder / "settings.txt").write_text("\n".join(f"{k}: {v}" for k, v in asdict(settings).items()) + "\n")
    return folder / "prior.safetensors"
