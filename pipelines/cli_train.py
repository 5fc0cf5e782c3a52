"""`scanprior train`: train a prior."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
import yaml


def train(
    data: Annotated[
        list[Path], typer.Option(help="File or folder (npz, NIfTI, DICOM, fastMRI, MRD); may be given often.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run; the same folder again resumes it.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 30_000,
    batch: Annotated[int, typer.Option(min=1, help="Patches a step.")] = 8,
    patch: Annotated[int, typer.Option(min=32, max=512, help="Edge of a patch in pixels.")] = 96,
    learning_rate: Annotated[float, typer.Option(min=1e-6, max=0.1)] = 8e-4,
    network: Annotated[
        str | None, typer.Option(help="Of a diffusion prior: unet (usual), ncsnv2, ncsnpp; supervised: varnet, unet.")
    ] = None,
    loss: Annotated[
        str, typer.Option(help="edm, ve (score matching, VE-SDE), ncsnv2 (discrete levels), vae, or supervised.")
    ] = "edm",
    method: Annotated[
        str | None,
        typer.Option(
            help="Of --loss edm, without clean images: sure (noisy full scans), gsure, split or em (undersampled ones)."
        ),
    ] = None,
    channels: Annotated[int, typer.Option(min=1, max=2, help="2: complex images; 1: magnitudes.")] = 2,
    widths: Annotated[
        str | None, typer.Option(help="Channels of each resolution (ncsnv2: stage), finest first; unet: 32,64,128,160.")
    ] = None,
    blocks: Annotated[
        str | None, typer.Option(help="Residual blocks: of each resolution (unet: 2,2,2,2), or one number (ncsnpp: 2).")
    ] = None,
    network_option: Annotated[
        list[str] | None, typer.Option(help="Another argument of the network, e.g. attention=[3]; may be given often.")
    ] = None,
    sigma_min: Annotated[float | None, typer.Option(help="Lowest noise level; else the loss's own.")] = None,
    sigma_max: Annotated[float | None, typer.Option(help="Highest noise level; else the loss's own.")] = None,
    levels: Annotated[int, typer.Option(min=2, help="Noise levels of --loss ncsnv2.")] = 2311,
    bank: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Augmented patches made ahead (16000; 100 kB each on disk, 400 kB at --patch 320), or slices (4000), "
            "or scans (--method: 1000).",
        ),
    ] = None,
    precision: Annotated[str, typer.Option(help="Lightning's: 32-true, bf16-mixed, 16-mixed.")] = "32-true",
    accelerator: Annotated[str, typer.Option(help="Lightning's: auto, cpu, gpu.")] = "auto",
    devices: Annotated[int, typer.Option(min=1, help="GPUs (or processes), by DDP.")] = 1,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves it to torch.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load patches; some 4 for a GPU.")] = 0,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 1000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    size: Annotated[
        int,
        typer.Option(
            min=0, help="Edge of whole slices; --loss vae: for a dense latent, else 0; supervised and --method: 128."
        ),
    ] = 0,
    covariance: Annotated[
        str | None, typer.Option(help="Of --loss vae: identity, diagonal or structured (usual).")
    ] = None,
    mean_steps: Annotated[
        int | None, typer.Option(min=0, help="Of --loss vae: steps of the first stage (60 %; with --begin-with none).")
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(help="Of --loss supervised or --method: masks of its scans, as of evaluate (gaussian-1d)."),
    ] = None,
    r: Annotated[
        float | None, typer.Option("--r", help="Undersampling of the mask, ACS counted (4; --method sure: 1).")
    ] = None,
    spokes: Annotated[int | None, typer.Option(help="Of the mask radial (25).")] = None,
    probability: Annotated[float | None, typer.Option(help="Of a row of the mask horizontal (0.2).")] = None,
    acs: Annotated[int | None, typer.Option(min=1, help="Lines, or edge of the square; else the mask's own.")] = None,
    noise: Annotated[
        str | None,
        typer.Option(help="Of each real channel over the image's maximum; two numbers are a range: 0.01,0.1 (0.01)."),
    ] = None,
    coils: Annotated[str | None, typer.Option(help="Number of coils, or a range of it: 1,8 (8).")] = None,
    criterion: Annotated[str | None, typer.Option("--error", help="Of --loss supervised: mse or l1 (mse).")] = None,
    held: Annotated[
        float | None, typer.Option(help="Of --method split: share of the lines held out in each step (0.2).")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Of --method em: how often posterior images are drawn (8).")
    ] = None,
    begin_with: Annotated[
        str | None, typer.Option(help="Prior (released or a file) whose weights to begin with.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the options and the data, then stop.")] = False,
) -> None:
    """Train a prior on magnitude or complex images, with random contrast, phase, size and pose.

    A diffusion prior; with --loss vae a variational autoencoder with structured covariance, in two stages; with --loss
    supervised a network for scans of one kind, simulated as --mask, --noise and --coils say. With --method a diffusion
    prior from such scans alone: each image is scanned once, and no clean one is seen again.

    Writes prior.safetensors (usable as `prior:` of a recipe), curve.csv and samples.png as it goes.
    What goes with what, and commands for each prior: docs/priors.md.

    Example: scanprior train --data images/ --out runs/brain --steps 30000 --precision bf16-mixed
    """
    try:
        from scanprior.models.prior import PriorError
        from scanprior.sim.image_sources import load_sources
        from scanprior.sim.image_stack import SourceError
        from scanprior.sim.supervised_settings import SupervisedTraining
        from scanprior.sim.supervised_training import train_supervised
        from scanprior.sim.training import train_prior
        from scanprior.sim.training_settings import TrainingSettings
        from scanprior.sim.unsupervised_settings import UnsupervisedTraining
        from scanprior.sim.unsupervised_training import train_unsupervised
        from scanprior.sim.vae_settings import VAESettings
        from scanprior.sim.vae_training import train_vae

        from .train_measured import collect_for, holds_scans, prepare
        from .train_scans import scans, unsupervised
        from .training_data import images_for_training
    except ImportError as error:
        raise typer.BadParameter(f"training needs the extra: pip install 'scanprior[train]' ({error})") from error
    options = _options(network_option or [])
    settings: TrainingSettings | VAESettings | SupervisedTraining
    try:
        scanned = {
            "--mask": mask, "--r": r, "--spokes": spokes, "--probability": probability, "--acs": acs, "--noise": noise,
            "--coils": coils, "--error": criterion,
        }  # fmt: skip
        without_clean = {"--method": method, "--held": held, "--rounds": rounds}
        other = {"--blocks": blocks, "--sigma-min": sigma_min, "--sigma-max": sigma_max}
        common: dict[str, Any] = {
            "steps": steps, "batch": batch, "learning_rate": learning_rate, "precision": precision,
            "accelerator": accelerator, "devices": devices, "threads": threads, "save_every": save_every, "seed": seed,
            "begin_with": begin_with, "workers": workers,
        }  # fmt: skip
        if bank is not None:
            common["bank"] = bank
        if loss == "supervised":
            _refuse(
                loss,
                other | without_clean | {"--widths": widths, "--mean-steps": mean_steps, "--covariance": covariance},
            )
            settings = SupervisedTraining(
                **common, size=size or 128, channels=channels, network=network or "varnet", network_options=options,
                **scans(mask, r, spokes, probability, acs, noise, coils, criterion),
            )  # fmt: skip
        elif loss == "vae":
            _refuse(loss, other | without_clean | scanned | {"--network": network})
            numbers = _numbers(widths)
            options = {"covariance": covariance or "structured"} | ({"widths": numbers} if numbers else {}) | options
            settings = VAESettings(
                **common, patch=patch, parts=channels, size=size or None, network=options, mean_steps=mean_steps
            )
        else:
            _refuse(loss, {"--mean-steps": mean_steps, "--covariance": covariance})
            common |= {
                "patch": patch, "widths": _numbers(widths), "blocks": _numbers(blocks), "network": network or "unet",
                "kind": loss, "channels": channels, "network_options": options, "sigma_min": sigma_min,
                "sigma_max": sigma_max, "levels": levels,
            }  # fmt: skip
            if method is None:
                _refuse(loss, scanned | without_clean | {"--size": size or None})
                settings = TrainingSettings(**common)
            else:
                told = scans(mask, r, spokes, probability, acs, noise, coils, criterion)
                settings = UnsupervisedTraining(
                    **common, size=size or 128, **unsupervised(method, told, scanned, held, rounds)
                )
        parameters = sum(weight.numel() for weight in settings.build().parameters())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    try:
        if isinstance(settings, UnsupervisedTraining) and holds_scans(data):
            for option, value in scanned.items() | {("--size", size or None), ("--bank", bank)}:
                if value is not None:
                    raise typer.BadParameter(f"{option}: of simulated scans; recorded ones tell that themselves")
            settings = replace(settings, recorded=True)
            if dry_run:
                with TemporaryDirectory() as passing:
                    typer.echo(str(collect_for(data, Path(passing), settings)), nl=False)
                typer.echo(f"{settings}, {parameters / 1e6:.1f} million parameters")
                return
            # by the training itself: of several processes the first alone reads them
            reading = partial(prepare, data, out, settings, partial(typer.echo, nl=False))
            typer.echo(f"prior: {train_unsupervised([], out, settings, reading)}")
            return
        if dry_run:
            with TemporaryDirectory() as passing:
                files, left_out = images_for_training(data, Path(passing), threads)
                sources = load_sources(files)
            for line in [*map(str, sources.stacks), *(f"left out: {why}" for why in left_out + sources.left_out)]:
                typer.echo(line)
            typer.echo(f"{settings}, {parameters / 1e6:.1f} million parameters")
            return
        files, _ = images_for_training(data, out / "scans", threads)
        if isinstance(settings, UnsupervisedTraining):
            path = train_unsupervised(files, out, settings)
        elif isinstance(settings, SupervisedTraining):
            path = train_supervised(files, out, settings)
        elif isinstance(settings, VAESettings):
            path = train_vae(files, out, settings)
        else:
            path = train_prior(files, out, settings)
        typer.echo(f"prior: {path}")
    except (FileNotFoundError, FileExistsError, ImportError, PriorError, SourceError) as error:
        typer.echo(f"train: {error}", err=True)
        raise typer.Exit(1) from None


def _refuse(loss: str, given: dict[str, Any]) -> None:
    """An option that this loss does not read is a mistake of who gave it."""
    for option, value in given.items():
        if value is not None:
            raise ValueError(f"{option} is not for loss {loss!r}")


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"expected whole numbers with commas between, got {text!r}") from None


def _options(given: list[str]) -> dict[str, Any]:
    """`name=value` each, the value as YAML."""
    found = {}
    for option in given:
        name, equals, value = option.partition("=")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise typer.BadParameter(f"--network-option {option!r}: {error}") from None
        if not equals:
            raise typer.BadParameter(f"--network-option: expected name=value, got {option!r}")
    return found
