"""A client of a reconstruction server: sends a recorded scan as a scanner would, and takes its images."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import quoteattr

from scanprior.gadgets.errors import WireError
from scanprior.gadgets.frames import FrameReader, FrameWriter
from scanprior.gadgets.mrd import Close, ConfigText, ErrorText, Header, Image, Text

from .replay import ScanFile


class SendError(RuntimeError):
    """A server that cannot be reached, or that ended the scan early."""


@dataclass
class Received:
    """What came back.

    Attributes
    ----------
    images
        In their order.
    texts
        For the operator's console.
    failures
        What the server said went wrong.
    """

    images: list[Image] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def send_scan(
    path: Path,
    host: str,
    port: int,
    parameters: dict[str, str],
    *,
    patience: float = 600.0,
    progress: Callable[[int, int], None] | None = None,
) -> Received:
    """Stream a recorded scan to a server, as Gadgetron's `connect` node does, and wait for all it sends.

    Sending and receiving go on at the same time: images come while lines are still on their way.

    Parameters
    ----------
    path
        MRD raw-data file.
    parameters
        Of the scan, such as `recipe`; sent as the properties of a configuration.
    patience
        Seconds that the server may be silent, or take nothing.
    progress
        Called as `progress(readouts sent, readouts)`.

    Raises
    ------
    ScanFileError
        When the file is no MRD raw-data file.
    SendError
        When the server cannot be reached, or the connection ends before the server has closed the scan. It says how
        many images had come.
    """
    scan = ScanFile(path)
    try:
        header, total = scan.header, len(scan)
        try:
            connection = socket.create_connection((host, port), timeout=patience)
        except OSError as error:
            raise SendError(f"no server at {host} port {port}: {error}; start one with `scanprior serve`") from error
        with connection:
            received = Received()
            ended: list[WireError | None] = []
            reader = threading.Thread(
                target=lambda: ended.append(_receive(connection, patience, received)), name="images", daemon=True
            )
            reader.start()
            writer = FrameWriter(connection, stall_s=patience)
            properties = "".join(
                f"<property name={quoteattr(name)} value={quoteattr(value)}/>" for name, value in parameters.items()
            )
            broken: WireError | None = None
            try:
                writer.send(ConfigText(f"<configuration>{properties}</configuration>"), Header(header))
                for number, acquisition in enumerate(scan.acquisitions()):
                    writer.send(acquisition)
                    if progress is not None:
                        progress(number + 1, total)
                writer.send(Close())
            except WireError as error:
                broken = error  # what the server says of it may still arrive
            reader.join()
    finally:
        scan.close()
    broken = broken or ended[0]
    if broken is not None:
        said = f"; it said: {'; '.join(received.failures)}" if received.failures else ""
        raise SendError(f"the server ended the scan after {len(received.images)} images: {broken}{said}")
    return received


def _receive(connection: socket.socket, patience: float, received: Received) -> WireError | None:
    """Take messages until the server closes; what went wrong with the connection, if anything."""
    try:
        for frame in FrameReader(connection, idle_s=patience):
            message = frame.message
            if isinstance(message, Close):
                return None
            if isinstance(message, Image):
                received.images.append(message)
            elif isinstance(message, ErrorText):
                received.failures.append(message.text)
            elif isinstance(message, Text):
                received.texts.append(message.text)
    except WireError as error:
        return error
    return WireError("the connection ended without a CLOSE")
