"""The training of a prior without clean images, as Lightning runs it: the loss of each method, the rounds of em."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from scanprior.models.diffusion_prior import DiffusionPrior
from scanprior.models.divergence import rademacher
from scanprior.models.gsure import gsure, held_out
from scanprior.models.measured_scans import MeasuredScans, consistent_images, random_part
from scanprior.models.preconditioning import Denoiser, EDMDenoiser
from scanprior.models.sure import sure_score

from .scan_data import images_file, mask_weights, training_scans
from .scan_images import CPU_ELEMENTS, CUDA_ELEMENTS, posterior_images, write_images
from .training_module import Average, DenoiserTraining
from .unsupervised_settings import UnsupervisedTraining

RISK_SHARE = 4
"""One image in so many of a batch goes into the risk (SURE, GSURE, held-out lines), which costs three times as much."""


class UnsupervisedModule(DenoiserTraining):
    """A denoiser and the loss of its method; what it is given are noisy images, scans, or posterior images."""

    def __init__(self, settings: UnsupervisedTraining, folder: Path) -> None:
        super().__init__(settings)
        self.settings: UnsupervisedTraining = settings
        self.folder = folder
        self._weights: torch.Tensor | None = None

    @property
    def edm(self) -> EDMDenoiser:
        """The denoiser; settings admit no other kind."""
        assert isinstance(self.denoiser, EDMDenoiser)
        return self.denoiser

    def training_step(  # type: ignore[override]
        self, batch: dict[str, torch.Tensor], index: int
    ) -> torch.Tensor:
        """Loss of a batch of `scan_data`."""
        if self.settings.method in ("gsure", "split"):
            matching, risk = self._of_scans(batch)
            self.log("risk", risk, prog_bar=True)
            loss = matching + risk
        elif self.settings.method == "sure":
            noisy, known = batch["image"], batch["sigma"]
            sigma = self.settings.draw_sigma(len(noisy)).to(noisy.device)
            probe = rademacher(noisy[: -(-len(noisy) // RISK_SHARE)])
            each, risks = sure_score(self.edm, noisy, known, sigma, torch.randn_like(noisy), probe)
            self.log("risk", risks.mean(), prog_bar=True)
            loss = each.mean() + risks.mean()
        else:
            loss = self._matching(batch["image"])
        self.log("loss", loss, prog_bar=True)
        return loss

    def _matching(self, images: torch.Tensor) -> torch.Tensor:
        sigma = self.settings.draw_sigma(len(images)).to(images.device)
        return self.edm.loss(images, sigma, torch.randn_like(images)).mean()

    def _of_scans(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Score matching on patches of what is denoised now (a constant to it), and the risk of a part of the scans."""
        if self._weights is None:
            self._weights = mask_weights(self.folder, self.settings).to(self.device)
        few = -(-len(batch["kspace"]) // RISK_SHARE)
        whole = [batch[name] for name in ("kspace", "mask", "maps", "sigma")]
        part = MeasuredScans(*(tensor[:few] for tensor in whole))
        probe = rademacher(batch["first"][:few])
        if self.settings.method == "gsure":
            risk, level = gsure(self.edm, part, self._weights, probe)
        else:
            given = random_part(part.mask, self.settings.held)
            # held out of all measured lines: each counts for the share of the times that it is
            risk, level = held_out(self.edm, part, self._weights / self.settings.held, probe, given)
        with torch.no_grad():
            # scan by scan: on a CPU the coil images of all at once would not fit into its cache
            scans = [MeasuredScans(*(one[None] for one in each)) for each in zip(*whole, strict=True)]
            found = self.edm(batch["first"], batch["level"]).split(1)
            levels = batch["level"].split(1)
            images = [consistent_images(*each) for each in zip(scans, found, levels, strict=True)]
            denoised = torch.cat(images)
        edge = self.settings.patch
        y, x = (int(torch.randint(length - edge + 1, ())) for length in denoised.shape[-2:])
        matching = self._matching(denoised[:, :, y : y + edge, x : x + edge])
        return matching, (self.edm.weight(level) * risk).mean()


def as_prior(denoiser: Denoiser, settings: UnsupervisedTraining, name: str = "present") -> DiffusionPrior:
    """The denoiser as samplers take it."""
    return DiffusionPrior(denoiser, name, *settings.sigma_range)


class Redraw(Callback):
    """The rounds of `em`: every `redraw_every` steps new posterior images of all scans, by the averaged weights.

    They lie in a file of the run, so that an interrupted run goes on with the images that it had.
    """

    def __init__(self, folder: Path, average: Average, settings: UnsupervisedTraining) -> None:
        self.folder, self.average, self.settings = folder, average, settings

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        """Draw where a round ends; the first process does, the others wait."""
        step = trainer.global_step
        if step == 0 or step % self.settings.redraw_every:
            return
        if trainer.is_global_zero:
            denoiser = self.average.denoiser(module)
            training = denoiser.training
            denoiser.eval()
            with trainer.precision_plugin.forward_context():
                prior = as_prior(denoiser, self.settings)
                write_images(
                    training_scans(self.folder, self.settings), images_file(self.folder),
                    posterior_images(prior, self.settings.seed + step), f"posterior images, step {step}",
                    CUDA_ELEMENTS if prior.device.type == "cuda" else CPU_ELEMENTS,
                )  # fmt: skip
            denoiser.train(training)
        trainer.strategy.barrier()
