"""`scanprior inspect-prior`: a picture of what a prior believes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy as np


def inspect_prior(
    prior: Annotated[str, typer.Argument(help="A released prior's name, or a prior's file.")],
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("prior.png"),
    image: Annotated[
        Path | None, typer.Option(help="Image for the prior to see: npz (key slices), NIfTI, DICOM or fastMRI.")
    ] = None,
    slice_number: Annotated[
        int | None, typer.Option("--slice", min=0, help="Slice of --image, from 0; else the one in the middle.")
    ] = None,
    pixel: Annotated[
        list[str] | None,
        typer.Option(help="y,x of a pixel whose covariances to show (VAE priors); may be given often. Else chosen."),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=16, max=1024, help="Edge of the draws; --image is resized to it. Else 128.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
) -> None:
    """Show what a prior believes, in one PNG.

    Of a VAE prior: draws, draws of the residual, and the covariance of chosen pixels with all others: red positive,
    blue negative. Of a diffusion prior: draws from noise as they form, and --image denoised at several noise levels.

    Example: scanprior inspect-prior brain-vae --image brain.nii.gz --pixel 60,44 --out brain-vae.png
    """
    from scanprior.models.diffusion_prior import DiffusionPrior
    from scanprior.models.prior import PriorError, load_any_prior
    from scanprior.sim.image_stack import SourceError
    from scanprior.sim.prior_views import diffusion_rows, prepare_image, vae_rows

    from .prior_figure import write_figure

    pixels = [_pixel(text) for text in pixel or []]
    if out.suffix != ".png":
        raise typer.BadParameter(f"--out: expected a name that ends in .png, got {out.name!r}")
    if slice_number is not None and image is None:
        raise typer.BadParameter("--slice is of an --image, and there is none")
    try:
        loaded = load_any_prior(prior)
        fixed = getattr(loaded, "size", None)
        if fixed is not None and size not in (None, fixed):
            raise ValueError(f"prior {loaded.name!r} is for images of {fixed}x{fixed}, found --size {size}")
        edge = fixed or size
        seen = None if image is None else prepare_image(_read(image, slice_number), loaded, edge)
        shape = (edge or 128, edge or 128) if seen is None else (seen.shape[0], seen.shape[1])
        if loaded.family == "vae":
            rows = vae_rows(loaded, shape, seen, pixels, seed)
            kind = f"VAE prior, {loaded.covariance} covariance"
        elif isinstance(loaded, DiffusionPrior):
            if pixels:
                raise ValueError(
                    f"prior {loaded.name!r} is a diffusion prior: --pixel is for covariances of VAE priors"
                )
            rows = diffusion_rows(loaded, shape, seen, seed)
            kind = f"diffusion prior, sigma {loaded.sigma_min:g} to {loaded.sigma_max:g}"
        else:
            raise ValueError(
                f"{loaded.name!r} is of the family {loaded.family!r}, which cannot be drawn from: expected a VAE or a "
                "diffusion prior"
            )
    except (PriorError, SourceError, ValueError, OSError, ImportError) as error:
        typer.echo(f"inspect-prior: {error}", err=True)
        raise typer.Exit(1) from None
    of = "" if image is None else f"; {image.name}"
    write_figure(out, f"{loaded.name}: {kind}; {shape[0]}x{shape[1]}{of}", rows)
    typer.echo(f"picture: {out}")


def _read(path: Path, slice_number: int | None) -> np.ndarray:
    from scanprior.sim.image_sources import load_images

    slices = load_images(path).slices
    number = len(slices) // 2 if slice_number is None else slice_number
    if number >= len(slices):
        raise ValueError(f"--slice {number}: {path.name} has the slices 0 to {len(slices) - 1}")
    return slices[number]


def _pixel(text: str) -> tuple[int, int]:
    try:
        y, x = (int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"--pixel: expected y,x as two whole numbers, got {text!r}") from None
    return y, x
