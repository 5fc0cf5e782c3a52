"""`scanprior replay` and `scanprior recipes`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer
from scanprior.gadgets.engine import Engine
from scanprior.gadgets.errors import ScanError
from scanprior.models.prior import released_priors
from scanprior.models.recipe import DEFAULT_RECIPE, METHODS, Recipe, RecipeError, load_recipe, read_recipe, recipe_names
from tqdm import tqdm


def chosen_recipe(name: str) -> Recipe:
    """A shipped recipe by name, or a file of the user's own."""
    try:
        return read_recipe(Path(name)) if name.endswith((".yaml", ".yml")) else load_recipe(name)
    except RecipeError as error:
        raise typer.BadParameter(str(error)) from None


def chosen_engine(recipe: str, device: str | None, threads: int) -> Engine:
    """The engine of a command's options."""
    try:
        return Engine(chosen_recipe(recipe), device=device, threads=threads)
    except RecipeError as error:
        raise typer.BadParameter(str(error)) from None


def replay(
    scan: Annotated[Path, typer.Argument(help="MRD raw-data file (HDF5).", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option(help="Folder for images.h5, PNGs and report.json.")],
    recipe: Annotated[str, typer.Option(help="Name of a shipped recipe, or a YAML file.")] = DEFAULT_RECIPE,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1; default: the recipe's.")] = None,
    samples: Annotated[int | None, typer.Option(min=0, help="Posterior samples, of diffusion methods.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Iterations, or steps of a sampler.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves it to torch.")] = 0,
) -> None:
    """Reconstruct a recorded scan as if it streamed in.

    Example: scanprior replay scan.h5 --recipe pnp-admm --out out/
    """
    from .replay import ScanFileError
    from .replay import replay as run

    asked = {"samples": samples, "steps": steps}
    parameters = {key: str(value) for key, value in asked.items() if value is not None}
    engine = chosen_engine(recipe, device, threads)
    try:
        with tqdm(desc=scan.name, unit="readout") as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            images, report = run(scan, engine, out, parameters=parameters, progress=progress)
    except (ScanError, ScanFileError, ValueError, RuntimeError, OSError) as error:
        logging.getLogger(__name__).debug("replay failed", exc_info=True)
        typer.echo(f"{scan.name}: {error}", err=True)
        raise typer.Exit(1) from None
    finally:
        engine.close()
    typer.echo(f"{len(images)} images in {report['seconds']:.1f} s -> {out}")


def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this one whole, with all settings.")] = None,
) -> None:
    """List the shipped recipes and priors, or show one.

    Example: scanprior recipes pnp-admm
    """
    if name is None:
        for shipped in recipe_names():
            typer.echo(f"{shipped:14s} {load_recipe(shipped).description}")
        typer.echo(f"priors: {', '.join(released_priors())}")
        return
    recipe = chosen_recipe(name)
    for key, value in recipe.model_dump(exclude={"settings"}).items():
        typer.echo(f"{key}: {value}")
    typer.echo("settings:")
    for key, info in METHODS[recipe.method].settings.model_fields.items():
        typer.echo(f"  {key}: {getattr(recipe.method_settings, key)}    # {info.description}")
