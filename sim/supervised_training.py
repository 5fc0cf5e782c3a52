"""Training of supervised networks on simulated pairs, by Lightning: `train_supervised`, and what it shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scanprior.models.supervised import first_image, save_supervised

from .pair_module import PairTraining
from .slice_data import SliceData, slice_banks
from .supervised_settings import SupervisedTraining
from .training_module import Average
from .training_run import PRIOR, PeriodicReport, begin_run, run_training


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
        See `bank_data.make_banks`.
    PriorError
        When the weights to begin with are not there, or of another network.
    """
    start = begin_run(folder, settings)
    report = PairReport(folder, Average(decay=0.998), settings)
    slices = SliceData(data, folder, settings, settings.seed + start)
    return run_training(folder, settings, PairTraining(settings), slices, report)


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
