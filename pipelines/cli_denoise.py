"""`scanprior denoise`: a fully sampled scan, denoised in SNR units by a diffusion prior."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from scanprior.gadgets.engine import Engine
from scanprior.gadgets.errors import ScanError
from scanprior.models.prior import PriorError
from scanprior.models.recipe import RecipeError, load_recipe, recipe_from
from tqdm import tqdm


def denoise(
    scan: Annotated[Path, typer.Argument(help="MRD raw-data file (HDF5), fully sampled.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option(help="Folder for images.h5, PNGs and report.json.")],
    prior: Annotated[str, typer.Option(help="Diffusion prior: a released one's name, or a file.")] = "small",
    sigma: Annotated[
        float | None,
        typer.Option(
            help="Noise of each real channel in SNR units, in place of what the noise scan says (1 for one average)."
        ),
    ] = None,
    precision: Annotated[str, typer.Option(help="Of the prior's network: float32, bfloat16, float16.")] = "float32",
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1; default: auto.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves it to torch.")] = 0,
) -> None:
    """Denoise a fully sampled scan by a prior, one network evaluation an image (Tweedie's formula).

    The noise of each pixel is known from the noise scan: data are whitened, and coils combined by maps from the centre
    of k-space. What the residual says of the noise level is told and stands in report.json.

    Example: scanprior denoise full.h5 --out denoised/
    """
    from .replay import ScanFileError, replay

    try:
        recipe = load_recipe("tweedie").model_dump()
        recipe |= {"prior": prior, "precision": precision}
        recipe["settings"] |= {"sigma": sigma}
        engine = Engine(recipe_from(recipe, "denoise"), device=device, threads=threads)
    except RecipeError as error:
        raise typer.BadParameter(str(error)) from None
    try:
        with tqdm(desc=scan.name, unit="readout") as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            images, report = replay(scan, engine, out, progress=progress)
    except (ScanError, ScanFileError, PriorError, ValueError, RuntimeError, OSError) as error:
        typer.echo(f"{scan.name}: {error}", err=True)
        raise typer.Exit(1) from None
    finally:
        engine.close()
    for told in report["images"]:
        where = ", ".join(f"{name} {number}" for name, number in told["key"].items() if number) or "slice 0"
        noise = f"; noise found {told['noise_found']:.2f} of it" if "noise_found" in told else ""
        typer.echo(
            f"{where}: noise {told['sigma']:.3g} ({_SOURCES.get(told['noise'], told['noise'])}), residual "
            f"{told['residual']:.2f} of it, correlation {told['residual_correlation']:+.2f}{noise}"
        )
        if "warning" in told:
            typer.echo(f"{where}: WARNING: {told['warning']}", err=True)
    typer.echo(f"{len(images)} images in {report['seconds']:.1f} s -> {out}")


_SOURCES = {"scan": "noise scan", "estimated": "estimated from the edge of k-space"}
