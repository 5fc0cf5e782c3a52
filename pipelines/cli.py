"""The command line: `scanprior`."""

from __future__ import annotations

import typer

from .cli_train import train

app = typer.Typer(
    help="Reconstruct MRI scans with deep generative priors while they stream from the scanner.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(train)


@app.callback()
def _keep_subcommands() -> None:
    """Keep `scanprior COMMAND` even while there is one command."""


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
