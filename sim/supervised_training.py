"""Training of supervised networks on simulated pairs, by Lightning: `train_supervised`, and what it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from scanprior.models.prior import load_any_prior
from scanprior.models.supervised import SupervisedPrior, first_image, save_supervised
from scanprior.models.weights_file import PriorError
from torch import nn

from .banks import VALIDATION, claim_folder, split_by_subject
from .image_sources import find_images, load_sources
from .pairs import Pairs, Scanner
from .slice_bank import SliceBank, write_slices
from .supervised_settings import SupervisedTraining
from .training_module import Average, learning_rate_factor
from .training_run import PRIOR, PeriodicReport, begin_run, run_training

VALIDATION_SLICES = 24


def train_supervised(data: list[Path], folder: Path, settings: SupervisedTraining) -> Path:
    """Train a variational network or a U-Net; an interrupted run in the same folder goes on where it stopped.

    Parameters
    ----------
    data
        Files or folders of them; see `image_sources`.
    folder
        Gets the bank of slices, `last.ckpt`, `curve.csv`, `samples.png` and `prior.safetensors`.
    settings
        Network, scans to train on, steps, and so on.

    Returns
    -------
    Path of the prior.

    Raises
    ------
    FileNotFoundError, FileExistsError, SourceError
        See `banks.prepare_banks`.
    PriorError
        When the weights to begin with are not there, or of another network.
    """
    start = begin_run(folder, settings)
    report = PairReport(folder, Average(decay=0.998), settings)
    slices = SliceData(data, folder, settings, settings.seed + start)
    return run_training(folder, settings, PairTraining(settings), slices, report)


class PairTraining(pl.LightningModule):
    """A network and its error on scans that are simulated for every step."""

    def __init__(self, settings: SupervisedTraining) -> None:
        super().__init__()
        self.settings = settings
        self.network = settings.build()
        if settings.begin_with is not None:
            take_weights(self.network, settings)
        self.scanner = Scanner(settings, settings.seed)
        self._generator = torch.Generator()

    def on_train_start(self) -> None:
        """Each process, and each resumed run, draws scans of its own."""
        self._generator.manual_seed(self.settings.seed + 7919 * self.global_rank + self.trainer.global_step)

    def training_step(self, images: torch.Tensor, index: int) -> torch.Tensor:
        """Error of a batch of slices (batch, channel, y, x)."""
        loss = self.error(self.scanner.scan(images, self._generator))
        self.log("loss", loss, prog_bar=True)
        return loss

    def error(self, pairs: Pairs) -> torch.Tensor:
        """Mean over all pixels of |x - truth|^2, or of |x - truth|, in the prior's scale."""
        difference = torch.view_as_real(pairs.image(self.network) - pairs.truth)
        square = difference.square().sum(-1)
        # the root has no gradient at 0, where the maps are zero
        return square.mean() if self.settings.error == "mse" else (square + 1e-8).sqrt().mean()

    def configure_optimizers(self) -> Any:
        """AdamW with the schedule of `learning_rate_factor`."""
        learned = [weight for weight in self.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(learned, lr=self.settings.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, self.settings.steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def take_weights(network: nn.Module, settings: SupervisedTraining) -> None:
    """Fill a network with the weights of a prior, to train them further, on other scans for instance.

    Raises
    ------
    PriorError
        When there is no such prior, it is not supervised, or its network is another one.
    """
    name = str(settings.begin_with)
    prior = load_any_prior(name)
    if not isinstance(prior, SupervisedPrior) or prior.kind != settings.network:
        kind = prior.kind if isinstance(prior, SupervisedPrior) else prior.family
        raise PriorError(f"prior {name!r} to begin with is of kind {kind!r}, expected {settings.network!r}")
    try:
        network.load_state_dict(prior.weights())
    except RuntimeError as error:
        raise PriorError(
            f"prior {name!r} to begin with: its network {prior.arguments} is not the one asked for: {error}"
        ) from error


class SliceData(pl.LightningDataModule):
    """A bank of slices made by the first process of all, the others waiting; then each its own stream of them."""

    def __init__(self, data: list[Path], folder: Path, settings: SupervisedTraining, seed: int) -> None:
        super().__init__()
        self.data, self.folder, self.settings, self.seed = data, folder, settings, seed
        self.prepare_data_per_node = False  # all hosts share the folder

    def prepare_data(self) -> None:
        """Called by Lightning on the first process, behind a barrier."""
        files = find_images(self.data)
        record = claim_folder(files, self.folder)
        training, validation = slice_banks(self.folder, self.settings)
        if training.exists() and validation.exists():
            return
        train, held = split_by_subject(load_sources(files).stacks)
        size, channels = self.settings.size, self.settings.channels
        write_slices(validation, held, VALIDATION_SLICES, 12345, size, channels)
        write_slices(training, train, self.settings.bank, self.settings.seed, size, channels)
        record()

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        """Batches (batch, channel, y, x) without end."""
        assert self.trainer is not None
        settings = self.settings
        training, _ = slice_banks(self.folder, settings)
        return torch.utils.data.DataLoader(
            SliceBank(training, self.seed, self.trainer.global_rank), batch_size=settings.batch,
            num_workers=settings.workers, pin_memory=settings.workers > 0,
        )  # fmt: skip


def slice_banks(folder: Path, settings: SupervisedTraining) -> tuple[Path, Path]:
    """Training and validation bank of a run."""
    return (
        folder / f"slices-{settings.bank}-{settings.seed}-{settings.size}-{settings.channels}.npy",
        folder / f"{settings.size}-{settings.channels}-{VALIDATION}",
    )


class PairReport(PeriodicReport[SupervisedTraining, Average]):
    """Every `save_every` steps: error on fixed scans of held-back slices, pictures, and the prior's file."""

    COLUMNS = ("step", "seconds", "loss", "rmse", "rmse_start", "psnr", "psnr_start")

    def report(self, step: int, module: PairTraining, loss: torch.Tensor | None) -> None:
        """Write `curve.csv`, `samples.png` and the prior."""
        averaged = self.average.averaged(module)
        assert isinstance(averaged, PairTraining)
        network = averaged.network.eval()
        _, validation = slice_banks(self.folder, self.settings)
        slices = torch.from_numpy(np.load(validation).astype(np.float32)).to(module.device)
        pairs = module.scanner.scan(slices, torch.Generator().manual_seed(1))
        with module.trainer.precision_plugin.forward_context():
            found = pairs.image(network)
        begin = first_image(network, pairs.adjoint, pairs.rough)
        errors = {
            "rmse": f"{_rmse(found, pairs.truth):.5f}",
            "rmse_start": f"{_rmse(begin, pairs.truth):.5f}",
            "psnr": f"{_psnr(found, pairs.truth):.3f}",
            "psnr_start": f"{_psnr(begin, pairs.truth):.3f}",
        }
        self.write_row(step, loss, errors)
        _write_pictures(self.folder / "samples.png", begin, found, pairs.truth)
        save_supervised(
            self.folder / PRIOR, network, self.settings.network_options,
            module.scanner.trained_for(pairs), step=step,
        )  # fmt: skip


def _rmse(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Root mean square of each real channel's error."""
    return float(torch.view_as_real(found - truth).square().mean().sqrt())


def _psnr(found: torch.Tensor, truth: torch.Tensor) -> float:
    """PSNR in dB of the magnitudes (batch, y, x), data range the maximum of each truth, mean over the images."""
    square = (found.abs() - truth.abs()).square().mean((-2, -1))
    return float((10 * torch.log10(truth.abs().amax((-2, -1)).square() / square)).mean())


def _write_pictures(path: Path, begin: torch.Tensor, found: torch.Tensor, truth: torch.Tensor) -> None:
    """Magnitudes of four slices: truth, image to begin with, image found, and five times its error."""
    from matplotlib.image import imsave

    rows = [truth, begin, found, 5 * (found - truth)]
    picture = torch.cat([torch.cat(list(row[:4].abs()), 1) for row in rows]).clamp(0, 1.2)
    imsave(path, picture.cpu().float().numpy(), cmap="gray", vmin=0, vmax=1.2)
