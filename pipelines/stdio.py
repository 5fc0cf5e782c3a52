"""The way in through a pipe: frames on stdin and stdout, as Tyger and `gadgetron --from_stream` use them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from scanprior.gadgets.byte_source import Readable
from scanprior.gadgets.dialect import PIPE, Opening
from scanprior.gadgets.frames import WritableFile
from scanprior.gadgets.link import LinkSettings, ScanReport, SessionFactory, serve_scan


def run_stdio(
    factory: SessionFactory,
    source: Readable | None = None,
    sink: WritableFile | None = None,
    settings: LinkSettings | None = None,
) -> ScanReport:
    """Serves one scan from `source` to `sink`.

    Parameters
    ----------
    factory
        Opens the reconstruction.
    source, sink
        Unbuffered binary files; the process's own stdin and stdout if None. Stdout is then kept for
        frames alone: whatever prints, also a library or a child process, prints to stderr.
    settings
        Bounds; without a time-out for silence if None, since a pipe's end is always noticed.

    Returns
    -------
    ScanReport
        Its `failure` is what the caller's exit status and stderr shall tell.
    """
    settings = settings or LinkSettings(idle_s=None, stall_s=None)
    opening = Opening(PIPE, fixed=True)
    with contextlib.ExitStack() as stack:
        if source is None:
            source = stack.enter_context(open(os.dup(0), "rb", buffering=0))
        if sink is None:
            sink = stack.enter_context(_own_stdout())
        return serve_scan(source, sink, factory, settings, opening)


@contextlib.contextmanager
def _own_stdout() -> Iterator[WritableFile]:
    """Stdout as a file of our own; descriptor 1 and `sys.stdout` lead to stderr meanwhile."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with open(kept, "wb", buffering=0, closefd=False) as sink:
            yield sink
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
