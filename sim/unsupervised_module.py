"""The training of a prior without clean images, as Lightning runs it: the loss of each method, the rounds of em."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from scanprior.models.diffusion_prior import DiffusionPrior
from scanprior.models.divergence import rademacher
from scanprior.models.gsure import gsure, held_out, projected_matching
from scanprior.models.measured_scans import MeasuredScans, consistent_images
from scanprior.models.preconditioning import Denoiser, EDMDenoiser
from scanprior.models.sure import sure_score

from .scan_data import images_file, training_scans
from .scan_images import write_posterior_images
from .scan_stream import folder_spread, scan_density
from .training_module import Average, DenoiserTraining
from .unsupervised_settings import UnsupervisedTraining

SCAN = ("kspace", "mask", "maps", "sigma")
"""What of a batch makes `MeasuredScans`."""
RISK_SHARE = 4
"""One image in so many of a batch goes into the risk (SURE, GSURE, held-out lines), which costs three times as much."""
RISK_WEIGHT = 0.1
"""Of the risk of undersampled scans: with 1 its gradient, of few scans and one probe, drowns that of the matching."""


class UnsupervisedModule(DenoiserTraining):
    """A denoiser and the loss of its method; what it is given are noisy images, or scans with images of them."""

    def __init__(self, settings: UnsupervisedTraining, folder: Path) -> None:
        super().__init__(settings)
        self.settings: UnsupervisedTraining = settings
        self.folder = folder
        self._spread: float | None = None

    @property
    def edm(self) -> EDMDenoiser:
        """The denoiser; settings admit no other kind."""
        assert isinstance(self.denoiser, EDMDenoiser)
        return self.denoiser

    def training_step(  # type: ignore[override]
        self, batch: dict[str, torch.Tensor], index: int
    ) -> torch.Tensor:
        """Loss of a batch of `scan_data`."""
        if self.settings.method == "sure":
            loss = self._of_noisy(batch["image"], batch["sigma"])
        elif "kspace" not in batch:  # patches of images of full scans
            sigma = self.settings.draw_sigma(len(batch["image"])).to(batch["image"].device)
            loss = self.edm.loss(batch["image"], sigma, torch.randn_like(batch["image"])).mean()
        else:
            scans = MeasuredScans(*(batch[name] for name in SCAN))
            images = batch["image"] if self.settings.method == "em" else self._denoised(scans, batch)
            sigma = self.settings.draw_sigma(len(images)).to(images.device)
            noise = torch.randn_like(images)
            loss = projected_matching(self.edm, scans, batch["weights"], images, sigma, noise).mean()
            if self.settings.method != "em":
                risk = self._risk(scans, batch)
                self.log("risk", risk, prog_bar=True)
                loss = loss + RISK_WEIGHT * risk
        self.log("loss", loss, prog_bar=True)
        return loss

    def _of_noisy(self, noisy: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """SURE-Score on patches of noisy images."""
        sigma = self.settings.draw_sigma(len(noisy)).to(noisy.device)
        probe = rademacher(noisy[: -(-len(noisy) // RISK_SHARE)])
        each, risks = sure_score(self.edm, noisy, known, sigma, torch.randn_like(noisy), probe)
        self.log("risk", risks.mean(), prog_bar=True)
        return each.mean() + risks.mean()

    @torch.no_grad()
    def _denoised(self, scans: MeasuredScans, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """What is denoised now of the first images, made consistent with the data: a constant to the matching."""
        found = self.edm(batch["first"], batch["level"])
        air = (scans.maps == 0).all(1, keepdim=True)
        # scan by scan: on a CPU the coil images of all at once would not fit into its cache
        images = [
            consistent_images(scans[slice(n, n + 1)], found[n : n + 1], batch["level"][n : n + 1])
            for n in range(len(scans))
        ]
        return torch.cat(images) * ~air

    def _risk(self, scans: MeasuredScans, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """GSURE, or the error on held-out lines, of a part of the scans, with EDM's weight."""
        part = scans[slice(-(-len(scans) // RISK_SHARE))]
        weights, probe = batch["weights"][: len(part)], rademacher(batch["first"][: len(part)])
        if self._spread is None:
            folder = training_scans(self.folder, self.settings)
            self._spread = folder_spread(folder, scan_density(folder))
        if self.settings.method == "gsure":
            risk, level = gsure(self.edm, part, weights, probe, self._spread)
        else:
            given = batch["given"][: len(part)]
            # held out of all measured lines: each counts for the share of the times that it is
            risk, level = held_out(self.edm, part, weights / self.settings.held, probe, self._spread, given)
        return (self.edm.weight(level) * risk).mean()


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
                write_posterior_images(
                    training_scans(self.folder, self.settings), images_file(self.folder),
                    as_prior(denoiser, self.settings), self.settings.seed + step, f"posterior images, step {step}",
                )  # fmt: skip
            denoiser.train(training)
        trainer.strategy.barrier()
