"""A client of a reconstruction server: sends a recorded scan as a scanner would, and takes its images."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import quoteattr

from scanprior.gadgets.errors import PeerSilent, WireError
from scanprior.gadgets.frames import FrameReader, FrameWriter
from scanprior.gadgets.mrd import Close, ConfigText, ErrorText, Header, Image, Text

from .replay import ScanFile


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


class SendError(RuntimeError):
    """A server that cannot be reached, or that ended the scan early.

    Attributes
    ----------
    received
        What had come by then.
    """

    def __init__(self, message: str, received: Received | None = None) -> None:
        super().__init__(message)
        self.received = received or Received()


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
        Seconds that the server may take nothing, or be silent once all is sent.
    progress
        Called as `progress(readouts sent, readouts)`.

    Raises
    ------
    ScanFileError
        When the file is no MRD raw-data file.
    SendError
        When the server cannot be reached, or the connection ends before the server has closed the scan. It holds what
        had come.
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
            frames = FrameReader(connection)  # no idle time: while lines are on their way, no image need come
            ended: list[Exception | None] = []
            reader = threading.Thread(target=_receive, args=(frames, received, ended), name="images", daemon=True)
            reader.start()
            writer = FrameWriter(connection, stall_s=patience)
            properties = "".join(
                f"<property name={quoteattr(name)} value={quoteattr(value)}/>" for name, value in parameters.items()
            )
            broken: Exception | None = None
            try:
                try:
                    writer.send(ConfigText(f"<configuration>{properties}</configuration>"), Header(header))
                    for number, acquisition in enumerate(scan.acquisitions()):
                        writer.send(acquisition)
                        if progress is not None:
                            progress(number + 1, total)
                    writer.send(Close())
                except WireError as error:
                    broken = error  # what the server says of it may still arrive
                silent = _wait(reader, frames, patience)
            finally:
                with contextlib.suppress(OSError):  # the server may have closed it
                    connection.shutdown(socket.SHUT_RDWR)
                reader.join()
    finally:
        scan.close()
    broken = broken or silent or ended[0]
    if broken is not None:
        said = f"; it said: {'; '.join(received.failures)}" if received.failures else ""
        if not isinstance(broken, WireError):
            said = f" ({type(broken).__name__}){said}"
        raise SendError(
            f"the server ended the scan after {len(received.images)} images: {broken}{said}", received
        ) from broken
    return received


def _wait(reader: threading.Thread, frames: FrameReader, patience: float) -> PeerSilent | None:
    """Wait for the reader's end, at most `patience` seconds without a byte."""
    got, since = frames.source.received, time.monotonic()
    while reader.is_alive():
        reader.join(min(patience, 1.0))
        now = time.monotonic()
        if frames.source.received != got:
            got, since = frames.source.received, now
        elif reader.is_alive() and now - since >= patience:
            return PeerSilent(f"the server has been silent for {patience:g} s")
    return None


def _receive(frames: FrameReader, received: Received, ended: list[Exception | None]) -> None:
    """Take messages until the server closes; puts what went wrong, if anything, into `ended`."""
    try:
        for frame in frames:
            message = frame.message
            if isinstance(message, Close):
                ended.append(None)
                return
            if isinstance(message, Image):
                received.images.append(message)
            elif isinstance(message, ErrorText):
                received.failures.append(message.text)
            elif isinstance(message, Text):
                received.texts.append(message.text)
    except Exception as error:  # noqa: BLE001 - whatever it is, the sender's thread tells it
        ended.append(error)
