"""The command line: `scanprior`."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from .cli_circle import circle, play, send
from .cli_denoise import denoise
from .cli_evaluate import evaluate
from .cli_inspect import inspect_prior
from .cli_masks import learn_mask, make_mask
from .cli_prior import convert_prior
from .cli_replay import recipes, replay
from .cli_serve import serve, stdio
from .cli_simulate import simulate
from .cli_tables import export_mask, read_table_command
from .cli_train import train

app = typer.Typer(
    help="Reconstruct MRI scans with deep generative priors while they stream from the scanner.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (
    replay,
    denoise,
    serve,
    stdio,
    simulate,
    train,
    evaluate,
    make_mask,
    learn_mask,
    export_mask,
    play,
    send,
    circle,
    convert_prior,
    inspect_prior,
    recipes,
):
    app.command()(command)
app.command("read-table")(read_table_command)


@app.callback()
def _options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens to each scan.")] = False,
) -> None:
    """Options of every command."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
