"""Training of diffusion priors on scans without clean images, by Lightning: `train_unsupervised`, and what it shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from scanprior.models.channels import to_channels, to_complex
from scanprior.models.divergence import rademacher
from scanprior.models.measured_scans import MeasuredScans, random_part
from scanprior.models.posterior_images import draw_images, sense_images
from scanprior.models.preconditioning import EDMDenoiser
from scanprior.models.prior import save_prior
from scanprior.models.sure import sure

from .scan_bank import SCALE, batches, scan_files
from .scan_data import VALIDATION_SCANS, Preparation, ScanData, check_same_scans, training_scans, validation_scans
from .scan_images import noisy_images
from .training_module import Average
from .training_run import PRIOR, PeriodicReport, begin_run, run_training
from .unsupervised_card import clean_free, write_card
from .unsupervised_module import Redraw, UnsupervisedModule, as_prior
from .unsupervised_settings import UnsupervisedTraining

HELD = 0.2
"""Share of the lines that the validation holds out."""


def train_unsupervised(
    data: list[Path], folder: Path, settings: UnsupervisedTraining, prepare: Preparation | None = None
) -> Path:
    """Train a prior on scans alone; an interrupted run in the same folder goes on where it stopped.

    Parameters
    ----------
    data
        Files of images or folders of them (see `image_sources`), each of whose slices is scanned as the settings say.
        No loss, no choice and no figure of the run sees the images again.
    folder
        Gets the scans, `last.ckpt`, `curve.csv`, `samples.png`, `prior.safetensors` and `prior.md`, its model card.
    prepare
        Of `ScanData`: recorded scans in the place of `data`.

    Returns
    -------
    Path of the prior.

    Raises
    ------
    FileNotFoundError, FileExistsError, SourceError
        See `bank_data.make_banks` and `scan_bank`; and when the folder's run has another method or other scans.
    PriorError
        When the prior to begin with is not there, or of another network.
    """
    check_same_scans(folder, settings)
    start = begin_run(folder, settings)
    average = Average(decay=0.9995)
    scans = ScanData(data, folder, settings, settings.seed + start, prepare)
    report = ScanReport(folder, average, settings, scans)
    redraw = [Redraw(folder, average, settings)] if settings.method == "em" else []
    return run_training(folder, settings, UnsupervisedModule(settings, folder), scans, report, callbacks=redraw)


class ScanReport(PeriodicReport[UnsupervisedTraining, Average]):
    """Every `save_every` steps: figures that need no clean image, on held-back scans; pictures; the prior and its card.

    Of full scans `rmse_by_sure`: the root of SURE at their own noise level, an estimate of the error of the denoised
    images. Of undersampled ones a fifth of the lines is held out, and two posterior images are drawn of each scan by
    the others. `held_lines`: squared error of the posterior mean on the lines held out, the noise's share taken off,
    over their energy. `held_spread`: variance of the draws there, over the same; as large where the prior is as sure as
    it may be.
    """

    COLUMNS = ("step", "seconds", "loss", "rmse_by_sure", "held_lines", "held_spread")

    def __init__(self, folder: Path, average: Average, settings: UnsupervisedTraining, data: ScanData) -> None:
        super().__init__(folder, average, settings)
        self.data = data

    def report(self, step: int, module: UnsupervisedModule, loss: torch.Tensor | None) -> None:
        """Write `curve.csv`, `samples.png`, the prior and its card."""
        denoiser = self.average.denoiser(module)
        assert isinstance(denoiser, EDMDenoiser)
        (scans,) = batches(validation_scans(self.folder), VALIDATION_SCANS)
        scans = scans.to(module.device)
        with module.trainer.precision_plugin.forward_context():
            if scans.fully_sampled:
                found, pictures = full_figures(denoiser, scans)
            else:
                found, pictures = undersampled_figures(denoiser, scans, self.settings)
        self.write_row(step, loss, {name: f"{value:.5f}" for name, value in found.items()})
        _write_pictures(self.folder / "samples.png", pictures)
        low, high = self.settings.sigma_range
        files = scan_files(training_scans(self.folder, self.settings))
        clean = 0 if clean_free(self.settings) else None
        training = {"method": self.settings.method, "clean_images": clean, "scans": len(files)}
        save_prior(
            self.folder / PRIOR, denoiser,
            {
                "network": self.settings.network_description, "sigma_min": low, "sigma_max": high, "scale": SCALE,
                "step": step, "training": training,
            },
        )  # fmt: skip
        write_card(self.folder / "prior.md", files, self.settings, step, found, self.data.batch_told, self.data.doubts)


@torch.no_grad()
def full_figures(denoiser: EDMDenoiser, scans: MeasuredScans) -> tuple[dict[str, float], list[torch.Tensor]]:
    """`rmse_by_sure` of full scans; their images, and denoised (batch, y, x)."""
    noisy = to_channels(noisy_images(1)(scans))
    probe = rademacher(noisy, torch.Generator().manual_seed(2))
    risk, denoised = sure(denoiser, noisy, scans.sigma, probe)
    # SURE of few images can be below zero where the noise is high
    return {"rmse_by_sure": float(risk.mean().clamp_min(0).sqrt())}, [to_complex(noisy), to_complex(denoised)]


@torch.no_grad()
def undersampled_figures(
    denoiser: EDMDenoiser, scans: MeasuredScans, settings: UnsupervisedTraining
) -> tuple[dict[str, float], list[torch.Tensor]]:
    """`held_lines` and `held_spread`; CG-SENSE images, posterior means and draws (batch, y, x) of undersampled scans.

    Of two independent draws the product of their errors is, in the mean, the square of the error of the posterior
    mean: a prior is not favoured for drawing always the same.
    """
    prior = as_prior(denoiser, settings)
    given = random_part(scans.mask, HELD, torch.Generator().manual_seed(1))
    part = replace(scans, kspace=scans.kspace * given.unsqueeze(1), mask=given)
    generator = torch.Generator().manual_seed(2)
    drawn = [draw_images(part, prior, generator) for _ in range(2)]
    rest = scans.model((scans.mask & ~given).float())
    kspace = scans.kspace * rest.mask.unsqueeze(1)
    noise = _energy(rest.mask.expand(-1, *kspace.shape[-2:])) * scans.coils() * 2 * scans.sigma**2
    first, second = (rest(image) - kspace for image in drawn)
    error = ((first.conj() * second).real.flatten(1).sum(1) - noise).sum()
    spread = _energy(first - second).sum() / 2
    signal = (_energy(kspace) - noise).sum()
    figures = {"held_lines": float(error / signal), "held_spread": float(spread / signal)}
    return figures, [sense_images(scans), (drawn[0] + drawn[1]) / 2, drawn[0]]


def _energy(kspace: torch.Tensor) -> torch.Tensor:
    """(batch,) sum of squares."""
    return kspace.abs().square().flatten(1).sum(1)


def _write_pictures(path: Path, rows: list[torch.Tensor]) -> None:
    """Magnitudes of five scans' images, one row of each kind."""
    from matplotlib.image import imsave

    picture = torch.cat([torch.cat(list(row[:5].abs()), 1) for row in rows]).clamp(0, 1.2)
    imsave(path, picture.cpu().float().numpy(), cmap="gray", vmin=0, vmax=1.2)
