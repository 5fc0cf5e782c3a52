"""The way in through Gadgetron's `<execute>`: `python -m gadgetron PORT scanprior.gadgets reconstruct`.

gadgetron-python connects and reads configuration and header; from there on the socket is ours, because its
reader spins for ever on a dead peer, takes an unknown id for the end, and never sends an ERROR.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from scanprior.gadgets.connection import close_gently, keep_alive
from scanprior.gadgets.dialect import GADGETRON, Opening
from scanprior.gadgets.link import LinkSettings, ScanReport, Send, Session, SessionFactory, Tell, serve_scan


def reconstruct(
    connection: Any, factory: SessionFactory | None = None, settings: LinkSettings | None = None
) -> ScanReport:
    """Serves the scan of a `gadgetron.external.Connection` from which only configuration and header were read.

    Parameters
    ----------
    connection
        gadgetron-python's connection. Its socket is taken over and closed.
    factory
        Opens the reconstruction; `scanprior.gadgets.session.open_session` if None.
    settings
        Bounds; the defaults if None.
    """
    given = (connection.raw_bytes.config, connection.raw_bytes.header)
    opening = Opening(GADGETRON, fixed=True, given=given)
    ours = _take_over(connection)
    try:
        keep_alive(ours)
        return serve_scan(ours, ours, factory or _open_session, settings, opening)
    finally:
        close_gently(ours)


class _Closed:
    """Stands in for gadgetron-python's socket, which would send a CLOSE of its own at the end: we have sent ours,
    with the failure in the same write where there was one, and Gadgetron expects nothing behind it."""

    def close(self) -> None:
        """Nothing is left to close."""


def _take_over(connection: Any) -> socket.socket:
    theirs: socket.socket = connection.socket.socket
    connection.socket = _Closed()
    if theirs.fileno() != 0:
        return theirs
    # Gadgetron starts us with stdin closed, so the socket became descriptor 0, the standard input of every
    # process that is forked from here
    ours = theirs.dup()
    theirs.close()
    os.open(os.devnull, os.O_RDONLY)
    return ours


def _open_session(header_xml: str, parameters: dict[str, Any], send: Send, tell: Tell) -> Session:
    # imported here: an import that fails must reach the operator, and takes seconds in which input is read already
    from scanprior.gadgets.session import open_session

    return open_session(header_xml, parameters, send, tell)
