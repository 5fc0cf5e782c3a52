"""What an MRD connection's socket needs at its beginning and at its end."""

from __future__ import annotations

import contextlib
import logging
import socket
import time

from scanprior.gadgets.byte_source import ByteSource

log = logging.getLogger(__name__)


def keep_alive(connection: socket.socket) -> None:
    """Lets the system notice a peer that vanished without a word."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def close_gently(connection: socket.socket, patience_s: float = 2.0) -> None:
    """Closes a socket so that the peer receives all that was sent.

    A socket that is closed while input is unread resets the connection, and the peer may lose what it has
    not read yet; so ours ends first, and what still comes is thrown away for at most `patience_s`.
    """
    with contextlib.closing(connection):
        try:
            connection.shutdown(socket.SHUT_WR)
        except OSError as error:
            log.debug("the peer was gone before we closed: %s", error)
            return
        source = ByteSource(connection)
        source.deadline = time.monotonic() + patience_s
        source.discard(patience_s)
