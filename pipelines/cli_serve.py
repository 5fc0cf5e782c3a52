"""`scanprior serve` and `scanprior stdio`: the resident server and the pipe."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from typing import Annotated

import typer
from scanprior.gadgets.errors import ScanError
from scanprior.gadgets.link import LinkSettings
from scanprior.models.recipe import DEFAULT_RECIPE

from .cli_replay import chosen_engine
from .server import Server, ServerSettings
from .server import serve as run_server
from .stdio import run_stdio

Recipe = Annotated[str, typer.Option(help="What scans get that ask for nothing: shipped recipe or YAML file.")]
Host = Annotated[str, typer.Option(help="Address to listen on; beyond loopback only in a network that you trust.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1; default: the recipe's.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves it to torch.")]


def serve(
    recipe: Recipe = DEFAULT_RECIPE,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 9002,
    device: Device = None,
    threads: Threads = 0,
    scans: Annotated[int, typer.Option(min=1, max=64, help="Scans at once; one more is refused with a message.")] = 4,
    idle: Annotated[float, typer.Option(min=1, help="Seconds of silence after which a scan is given up.")] = 600.0,
    while_stdin: Annotated[bool, typer.Option("--while-stdin", help="End when stdin does.", hidden=True)] = False,
) -> None:
    """Serve Gadgetron (connect) and FIRE clients: the model stays loaded from scan to scan.

    Example: scanprior serve --recipe pnp-admm --port 9002
    """
    logging.getLogger().setLevel(logging.INFO)
    if while_stdin:
        threading.Thread(target=_end_with_stdin, name="stdin", daemon=True).start()
    engine = chosen_engine(recipe, device, threads)

    def warm_up() -> None:
        engine.warm_up()

    def ready(server: Server) -> None:
        typer.echo(f"ready on port {server.port}")

    settings = ServerSettings(host=host, port=port, max_scans=scans, link=LinkSettings(idle_s=idle))
    try:
        run_server(engine.open_session, settings, warm_up, ready)
    except (ScanError, ValueError, RuntimeError) as error:  # ValueError: a prior that cannot be loaded
        typer.echo(f"serve: {error}", err=True)
        raise typer.Exit(1) from None
    finally:
        engine.close()


def _end_with_stdin() -> None:
    """For a server that belongs to another process: its end, however it comes, closes our stdin."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def stdio(recipe: Recipe = DEFAULT_RECIPE, device: Device = None, threads: Threads = 0) -> None:
    """Reconstruct one scan from stdin to stdout, as MRD frames.

    Example: ismrmrd_hdf5_to_stream -i scan.h5 --use-stdout | scanprior stdio --recipe pnp-admm > images.bin
    """
    engine = chosen_engine(recipe, device, threads)
    try:
        report = run_stdio(engine.open_session)
    finally:
        engine.close()
    if report.failure is not None:
        typer.echo(f"stdio: {report.failure}", err=True)
        raise typer.Exit(1)
