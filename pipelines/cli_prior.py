"""`scanprior convert-prior`: other people's weights into the project's own file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert_prior(
    mapping: Annotated[Path, typer.Argument(help="Mapping file (YAML or JSON): see docs/priors.md.")],
    out: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
) -> None:
    """Write foreign weights, read through a mapping file, as a prior of our own format.

    Example: scanprior convert-prior score-mri.yaml score-mri.safetensors
    """
    from scanprior.models.prior import PriorError, load_prior, prior_description, save_prior

    if out.suffix != ".safetensors":
        raise typer.BadParameter(f"expected a name that ends in .safetensors, got {out.name!r}")
    try:
        prior = load_prior(str(mapping))
    except PriorError as error:
        typer.echo(f"convert-prior: {error}", err=True)
        raise typer.Exit(1) from None
    save_prior(out, prior.denoiser, prior_description(prior))
    typer.echo(
        f"prior: {out} ({prior.kind}, {prior.network['name']}, sigma {prior.sigma_min:g} to {prior.sigma_max:g})"
    )
