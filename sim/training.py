"""Training of diffusion priors on augmented patches, by Lightning: `train_prior`."""

from __future__ import annotations

from pathlib import Path

from .banks import PatchData
from .training_module import Average, DenoiserTraining
from .training_report import Report
from .training_run import begin_run, run_training
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
        See `bank_data.make_banks`.
    """
    start = begin_run(folder, settings)
    report = Report(folder, Average(decay=0.9995), settings)
    patches = PatchData(data, folder, settings, settings.seed + start)
    return run_training(folder, settings, DenoiserTraining(settings), patches, report)
