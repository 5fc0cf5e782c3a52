"""Runs one scan over a stream of bytes: reads it, feeds a reconstruction, sends its images, and tells of any failure.

Two threads share the work: the calling one reads to the end of the input whatever happens, because a peer
that cannot send does not listen either; the other feeds the reconstruction.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from scanprior.gadgets.byte_source import Limits, Readable
from scanprior.gadgets.dialect import Level, Opening
from scanprior.gadgets.errors import PeerGone, ScanError, WireError
from scanprior.gadgets.frame_queue import FrameQueue
from scanprior.gadgets.frames import Frame, FrameReader, FrameWriter, Message, MessageId, WritableFile, to_bytes
from scanprior.gadgets.mrd import (
    Acquisition,
    Bucket,
    Close,
    ConfigName,
    ConfigText,
    ErrorText,
    Header,
    Image,
    Query,
    ReconData,
    Response,
    Text,
    Waveform,
)

log = logging.getLogger(__name__)

Send = Callable[[Message], None]
"""Sends a message to the peer, from any thread; `WireError` once the peer is gone."""

Tell = Callable[[Level, str], None]
"""Shows a text on the operator's console where there is one, and in the log."""


class Session(Protocol):
    """The reconstruction of one scan."""

    @property
    def accepts(self) -> tuple[type, ...]:
        """The kinds of messages that `feed` takes. All others pass through unchanged."""

    def feed(self, message: Any) -> None:
        """Takes the next message. Raises `ScanError` for bad input or if an earlier reconstruction failed."""

    def close(self) -> None:
        """The input has ended: returns when all images are sent. Raises `ScanError` where something failed."""

    def abort(self, reason: str) -> None:
        """Gives up: no image is sent after it returns, and no thread of the session is left.

        Called once, after a failure instead of `close`, or while `feed` or `close` runs in another thread;
        that one then returns soon, by an exception or without.
        """


class SessionFactory(Protocol):
    """Opens the reconstruction of a scan, given its header, parameters, and how to send and tell."""

    def __call__(self, header_xml: str, parameters: dict[str, Any], send: Send, tell: Tell, /) -> Session:
        """Raises `ScanError` for a header or parameters that cannot be reconstructed."""


@dataclass(frozen=True)
class LinkSettings:
    """Bounds in bytes and seconds.

    Attributes
    ----------
    limits
        What a peer may ask for.
    idle_s
        Silence of the peer after which the scan is given up; None waits for ever.
    stall_s
        Seconds for which the peer may take nothing of what we send; None waits for ever.
    drain_s
        Seconds for which input is still read after a failure.
    quiet_s
        Silence that counts as the end of input in which messages can no longer be told apart.
    abort_s
        Seconds that an aborted reconstruction may take to end.
    queue_bytes
        Input that may wait for the reconstruction.
    """

    limits: Limits = field(default_factory=Limits)
    idle_s: float | None = 600.0
    stall_s: float | None = 120.0
    drain_s: float = 3600.0
    quiet_s: float = 2.0
    abort_s: float = 60.0
    queue_bytes: int = 1 << 30


@dataclass
class ScanReport:
    """What became of a scan.

    Attributes
    ----------
    dialect
        The peer's kind.
    messages
        Messages received.
    sent
        Messages sent, without the last CLOSE; `images` of them were images.
    images
        Images sent, those passed through included.
    failure
        What the operator was told, or None.
    seconds
        From the first byte to the last.
    """

    dialect: str
    messages: int = 0
    sent: int = 0
    images: int = 0
    failure: str | None = None
    seconds: float = 0.0


def serve_scan(
    source: Readable,
    sink: socket.socket | WritableFile,
    factory: SessionFactory,
    settings: LinkSettings | None = None,
    opening: Opening | None = None,
) -> ScanReport:
    """Runs one scan to its end; see `Link`."""
    return Link(source, sink, factory, settings, opening).run()


class Link:
    """One scan. `run` never raises for what a peer or a reconstruction does: the report and the peer tell.

    Parameters
    ----------
    source, sink
        Where frames come from and go to: the same socket, or two unbuffered files. They stay open.
    factory
        Opens the reconstruction.
    settings
        Bounds; the defaults if None.
    opening
        What was read already, or an `Opening` that fixes the dialect. None reads it from the stream.
    """

    def __init__(
        self,
        source: Readable,
        sink: socket.socket | WritableFile,
        factory: SessionFactory,
        settings: LinkSettings | None = None,
        opening: Opening | None = None,
    ) -> None:
        self._settings = settings or LinkSettings()
        self._source = source
        self._reader = FrameReader(source, self._settings.limits, self._settings.idle_s)
        self._writer = FrameWriter(sink, self._settings.stall_s)
        self._factory = factory
        self._opening = opening or Opening()
        self._queue = FrameQueue(self._settings.queue_bytes)
        self._feeder = threading.Thread(target=self._feed, name="scanprior-feed", daemon=True)
        self._session: Session | None = None
        self._lock = threading.Lock()
        self._failure: ScanError | None = None
        self._told = False
        self._aborted = False
        self._unused = False
        self._report = ScanReport(self._opening.dialect.name)

    def run(self) -> ScanReport:
        """Serves the scan and returns when its last byte is sent."""
        start = time.monotonic()
        in_step = self._read()
        if self._feeder.ident is not None:
            self._join()
        if not self._unused:
            self._end(in_step)
        self._report.messages = self._reader.frames
        self._report.dialect = self._opening.dialect.name
        self._report.failure = None if self._failure is None else str(self._failure)
        self._report.seconds = time.monotonic() - start
        return self._report

    def stop(self, reason: str) -> None:
        """Gives the scan up, from another thread; the operator is told `reason`."""
        self._fail(ScanError(reason))
        if isinstance(self._source, socket.socket):
            try:
                self._source.shutdown(socket.SHUT_RD)  # wakes the reading thread
            except OSError as error:
                log.debug("the connection was closed already: %s", error)

    def _read(self) -> bool:
        """Reads to the end of the input. False where that cannot be found any more."""
        try:
            has_header = self._opening.read(self._reader)
            if self._opening.replies:
                self._writer.send(*self._opening.replies)
            if not has_header:
                log.info("a query: the stream ended before a header")
                return True
        except PeerGone as error:
            # a server sees connections that are only tried out; a pipe without a byte means that its writer failed
            if self._reader.source.received == 0 and self._opening.dialect.failure_by != "log":
                log.debug("a connection was opened and closed without a byte")
                self._unused = True
            else:
                self._fail(error)
            return True
        except ScanError as error:
            self._fail(error)
            if isinstance(error, WireError):
                return False
        return self._read_data()

    def _read_data(self) -> bool:
        if self._failure is None:
            self._feeder.start()
        ahead = iter(self._opening.ahead)
        try:
            while True:
                frame = next(ahead, None) or self._reader.read()
                self._queue.put(frame)
                if frame.id == MessageId.CLOSE:
                    return True
        except PeerGone as error:
            self._fail(error)
            return True
        except WireError as error:
            self._fail(error)
            return False

    def _feed(self) -> None:
        """The second thread: opens the session and feeds it until the input ends or something fails."""
        try:
            header_xml = self._opening.header_xml
            if header_xml is not None:
                self._session = self._factory(header_xml, self._opening.parameters, self._send, self._tell)
            while (frame := self._queue.get()) is not None:
                if frame.id == MessageId.CLOSE:
                    if self._session is not None:
                        self._session.close()
                    return
                self._handle(frame)
        except ScanError as error:
            self._fail(error)
        except Exception as error:
            log.exception("the reconstruction failed")
            self._fail(ScanError(f"Reconstruction failed: {type(error).__name__}: {error}"))
        self._abort()

    def _handle(self, frame: Frame) -> None:
        message, dialect = frame.message, self._opening.dialect
        if isinstance(message, Text):
            log.info("the peer says: %s", message.text)
        elif isinstance(message, ErrorText):
            raise ScanError(f"the peer reports an error: {message.text}")
        elif isinstance(message, Query):
            self._send(Response(message.number, f"unknown query: {message.text[:200]}"))
        elif isinstance(message, ConfigName | ConfigText | Header | Response):
            raise ScanError(f"a {type(message).__name__} (id {frame.id}) came among the data; expected it before them")
        elif self._session is not None and isinstance(message, self._session.accepts):
            self._session.feed(message)
        elif self._session is None and isinstance(message, Acquisition | ReconData | Bucket):
            raise ScanError(
                f"{MessageId(frame.id).name.lower()} (id {frame.id}) came without an MRD header "
                "(the header is 'Dummy XML header', which is for images alone)"
            )
        elif isinstance(message, Waveform) and self._session is not None and not dialect.returns_waveforms:
            log.debug("a waveform ends here: %s awaits images", dialect.name)
        else:
            self._send(frame)

    def _send(self, message: Message | Frame) -> None:
        try:
            self._writer.send(message)
        except WireError as error:
            self._fail(error)
            raise
        with self._lock:
            self._report.sent += 1
            self._report.images += isinstance(message.message if isinstance(message, Frame) else message, Image)

    def _tell(self, level: Level, text: str) -> None:
        log.log({"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}[level], "%s", text)
        note = self._opening.dialect.note(level, text)
        if note is not None:
            self._send(note)

    def _fail(self, error: ScanError) -> None:
        """Notes the first failure; what follows from it only goes to the log. Input is drained from here on."""
        with self._lock:
            if self._failure is not None:
                log.info("after the failure: %s", error)
                return
            self._failure = error
        log.error("the scan failed: %s", error)
        self._reader.source.deadline = time.monotonic() + self._settings.drain_s
        self._queue.discard()
        if self._opening.dialect.at_once:
            self._tell_failure()

    def _abort(self) -> None:
        with self._lock:
            if self._session is None or self._aborted:
                return
            self._aborted = True
        try:
            self._session.abort(str(self._failure))
        except Exception:
            log.exception("the reconstruction could not be aborted")

    def _join(self) -> None:
        """Waits for the reconstruction's end; after a failure, also of the peer, cuts it short."""
        while self._feeder.is_alive() and self._failure is None:
            self._feeder.join(0.05)
        if not self._feeder.is_alive():
            return
        self._abort()
        self._feeder.join(self._settings.abort_s)
        if self._feeder.is_alive():
            log.error("the reconstruction still runs %.0f s after it was aborted", self._settings.abort_s)

    def _end(self, in_step: bool) -> None:
        if not in_step:
            close = to_bytes(Close())
            self._reader.source.discard(self._settings.quiet_s, after=close, quiet_after_s=self._settings.quiet_s / 4)
        if self._failure is not None:
            time.sleep(self._opening.dialect.settle_s)
        try:
            # one write: see the race in `Dialect.settle_s`
            self._writer.finish(*self._failure_messages(), Close())
        except ScanError as error:
            self._failure = self._failure or error
            log.warning("the peer could not be told of the end: %s", error)

    def _tell_failure(self) -> None:
        try:
            self._writer.send(*self._failure_messages())
        except ScanError as error:
            log.warning("the peer could not be told of the failure: %s", error)

    def _failure_messages(self) -> list[Message]:
        with self._lock:
            if self._failure is None or self._told:
                return []
            self._told = True
            return self._opening.dialect.failure(str(self._failure))
