"""`scanprior train`: train a diffusion prior."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer


def train(
    data: Annotated[
        list[Path], typer.Option(help="File or folder (npz, NIfTI, DICOM, fastMRI, MRD); may be given often.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run; the same folder again resumes it.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 30_000,
    batch: Annotated[int, typer.Option(min=1, help="Patches a step.")] = 8,
    patch: Annotated[int, typer.Option(min=32, max=160, help="Edge of a patch in pixels.")] = 96,
    learning_rate: Annotated[float, typer.Option(min=1e-6, max=0.1)] = 8e-4,
    widths: Annotated[str, typer.Option(help="Channels of each resolution, finest first.")] = "32,64,128,160",
    blocks: Annotated[str, typer.Option(help="Residual blocks of each resolution.")] = "2,2,2,2",
    bank: Annotated[int, typer.Option(min=1, help="Augmented patches made ahead (100 kB each on disk).")] = 16_000,
    precision: Annotated[str, typer.Option(help="Lightning's: 32-true, bf16-mixed, 16-mixed.")] = "32-true",
    accelerator: Annotated[str, typer.Option(help="Lightning's: auto, cpu, gpu.")] = "auto",
    devices: Annotated[int, typer.Option(min=1, help="GPUs (or processes), by DDP.")] = 1,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves it to torch.")] = 0,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 1000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    begin_with: Annotated[
        str | None, typer.Option(help="Prior (released or a file) whose weights to begin with.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the options and the data, then stop.")] = False,
) -> None:
    """Train a diffusion prior on magnitude or complex images, with random contrast, phase, size and pose.

    Writes prior.safetensors (usable as `prior:` of a recipe), curve.csv and samples.png as it goes.

    Example: scanprior train --data images/ --out runs/brain --steps 30000 --precision bf16-mixed
    """
    try:
        from scanprior.models.prior import PriorError
        from scanprior.sim.image_sources import load_sources
        from scanprior.sim.image_stack import SourceError
        from scanprior.sim.training import TrainingSettings, train_prior

        from .training_data import images_for_training
    except ImportError as error:
        raise typer.BadParameter(f"training needs the extra: pip install 'scanprior[train]' ({error})") from error
    settings = TrainingSettings(
        steps, batch, patch, learning_rate, _numbers(widths), _numbers(blocks), bank, precision, accelerator, devices,
        threads, save_every, seed, begin_with,
    )  # fmt: skip
    try:
        if dry_run:
            with TemporaryDirectory() as passing:
                files, left_out = images_for_training(data, Path(passing), threads)
                sources = load_sources(files)
            for line in [*map(str, sources.stacks), *(f"left out: {why}" for why in left_out + sources.left_out)]:
                typer.echo(line)
            typer.echo(f"{settings}")
            return
        files, _ = images_for_training(data, out / "scans", threads)
        typer.echo(f"prior: {train_prior(files, out, settings)}")
    except (FileNotFoundError, FileExistsError, ImportError, PriorError, SourceError) as error:
        typer.echo(f"train: {error}", err=True)
        raise typer.Exit(1) from None


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"expected whole numbers with commas between, got {text!r}") from None
