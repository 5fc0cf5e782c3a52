"""The resident server: Gadgetron's `<connect>` and FIRE clients come to it, one after another and at once."""

from __future__ import annotations

import contextlib
import errno
import logging
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from scanprior.gadgets.connection import close_gently, keep_alive
from scanprior.gadgets.errors import ScanError
from scanprior.gadgets.link import Link, LinkSettings, ScanReport, Send, Session, SessionFactory, Tell

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerSettings:
    """How the server listens.

    Attributes
    ----------
    host
        Address or name; the loopback addresses, IPv4 and IPv6, for 127.0.0.1 and localhost.
    port
        0 takes a free one.
    max_scans
        Scans that run at once; a further one is refused with a message.
    grace_s
        Seconds that running scans may take to end when the server is asked to stop.
    link
        Bounds of a single scan.
    """

    host: str = "127.0.0.1"
    port: int = 9002
    max_scans: int = 4
    grace_s: float = 30.0
    link: LinkSettings = field(default_factory=LinkSettings)


class Server:
    """Accepts connections and serves a scan on each, every one in a thread of its own.

    Parameters
    ----------
    factory
        Opens the reconstruction of a scan.
    settings
        How to listen; the defaults if None.
    """

    # a refused scan must still be drained before its peer can be told, which needs a thread too
    _REFUSALS = 16

    def __init__(self, factory: SessionFactory, settings: ServerSettings | None = None) -> None:
        self.settings = settings or ServerSettings()
        self._factory = factory
        self._listeners = _listen(self.settings.host, self.settings.port)
        self._wake, self._woken = socket.socketpair()
        self._links: dict[threading.Thread, Link] = {}
        self._scans = 0
        self._number = 0
        self._lock = threading.Lock()

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        return self._listeners[0].getsockname()[1]

    @property
    def addresses(self) -> list[str]:
        """The addresses that the server listens on."""
        return [listener.getsockname()[0] for listener in self._listeners]

    def run(self) -> None:
        """Serves until `stop` is called, then lets running scans end, at most `grace_s`."""
        with contextlib.closing(selectors.DefaultSelector()) as selector:
            for listener in self._listeners:
                selector.register(listener, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            stopping = False
            while not stopping:
                for key, _ in selector.select():
                    if key.fileobj is self._woken:
                        stopping = True
                    else:
                        self._accept(key.fileobj)  # type: ignore[arg-type]
        for listener in self._listeners:
            listener.close()
        self._finish()
        self._wake.close()
        self._woken.close()

    def stop(self) -> None:
        """Asks `run` to end. May be called from a signal handler or any thread."""
        self._wake.send(b"x")

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, address = listener.accept()
        except OSError as error:
            log.warning("a connection could not be accepted: %s", error)
            if error.errno in (errno.EMFILE, errno.ENFILE):
                time.sleep(0.1)  # it stays pending: without a pause this would spin
            return
        with self._lock:
            if len(self._links) >= self.settings.max_scans + self._REFUSALS:
                log.error("connection from %s closed: %d connections are open", address, len(self._links))
                connection.close()
                return
            self._number += 1
            number = self._number
            link = Link(connection, connection, self._open, self.settings.link)
            thread = threading.Thread(
                target=self._serve, args=(link, connection, address), name=f"scan-{number}", daemon=True
            )
            self._links[thread] = link
        keep_alive(connection)
        thread.start()

    def _serve(self, link: Link, connection: socket.socket, address: Any) -> None:
        name = threading.current_thread().name
        log.info("%s: connection from %s port %d", name, *address[:2])
        try:
            report = link.run()
            _log_report(name, report)
        except Exception:
            log.exception("%s: the link failed", name)
        finally:
            close_gently(connection)
            with self._lock:
                del self._links[threading.current_thread()]

    def _open(self, header_xml: str, parameters: dict[str, Any], send: Send, tell: Tell) -> Session:
        """Opens a session where there is room for one. A query or a mere connection takes none."""
        with self._lock:
            if self._scans >= self.settings.max_scans:
                raise ScanError(
                    f"the server is busy: {self._scans} scans run, which is its limit; "
                    "repeat this scan when one has ended"
                )
            self._scans += 1
        try:
            return _Counted(self._factory(header_xml, parameters, send, tell), self._release)
        except BaseException:
            self._release()
            raise

    def _release(self) -> None:
        with self._lock:
            self._scans -= 1

    def _finish(self) -> None:
        deadline = time.monotonic() + self.settings.grace_s
        with self._lock:
            running = dict(self._links)
        if running:
            log.info("stopping: %d connections are open, waiting at most %.0f s", len(running), self.settings.grace_s)
        for thread in running:
            thread.join(max(0.0, deadline - time.monotonic()))
        left = {thread: link for thread, link in running.items() if thread.is_alive()}
        for link in left.values():
            link.stop("the reconstruction server is being stopped")
        for thread in left:
            thread.join(10)
            if thread.is_alive():
                log.error("%s did not end", thread.name)
        log.info("stopped")


class _Counted:
    """A session that gives its place back when it ends."""

    def __init__(self, session: Session, release: Callable[[], None]) -> None:
        self._session = session
        self._release: Callable[[], None] | None = release
        self._lock = threading.Lock()
        self.accepts = session.accepts
        self.feed = session.feed

    def close(self) -> None:
        # not released when it raises: `abort` follows
        self._session.close()
        self._end()

    def abort(self, reason: str) -> None:
        try:
            self._session.abort(reason)
        finally:
            self._end()

    def _end(self) -> None:
        with self._lock:
            release, self._release = self._release, None
        if release is not None:
            release()


def serve(
    factory: SessionFactory,
    settings: ServerSettings | None = None,
    warm_up: Callable[[], None] | None = None,
    ready: Callable[[Server], None] | None = None,
) -> None:
    """Runs a server until SIGTERM or SIGINT. Call it from the main thread.

    Parameters
    ----------
    factory
        Opens the reconstruction of a scan.
    settings
        How to listen; the defaults if None.
    warm_up
        Loads the model and runs it once. The port is bound before, so that a port in use is told at
        once, and a client that comes early waits instead of being refused.
    ready
        Called when scans are served.
    """
    server = Server(factory, settings)
    stops = 0

    def stop(number: int, frame: Any) -> None:
        nonlocal stops
        stops += 1
        if stops > 1:
            raise KeyboardInterrupt
        server.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        if warm_up is not None:
            start = time.monotonic()
            warm_up()
            log.info("warmed up in %.1f s", time.monotonic() - start)
        log.info("ready on port %d (%s)", server.port, ", ".join(server.addresses))
        if ready is not None:
            ready(server)
        server.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listen(host: str, port: int) -> list[socket.socket]:
    """Listening sockets on `host`. Loopback means each address that `localhost` resolves to, because Gadgetron
    tries only the first one of the name that it is given."""
    loopback = host in ("127.0.0.1", "localhost")
    found = socket.getaddrinfo("localhost" if loopback else host, port, type=socket.SOCK_STREAM)
    wanted = list(dict.fromkeys((family, address[0]) for family, _, _, _, address in found))
    if loopback and (socket.AF_INET, "127.0.0.1") not in wanted:
        wanted.insert(0, (socket.AF_INET, "127.0.0.1"))
    wanted.sort(key=lambda entry: entry[0] != socket.AF_INET)
    listeners: list[socket.socket] = []
    for family, address in wanted:
        try:
            listener = socket.create_server((address, port), family=family, backlog=16)
        except OSError as error:
            if listeners and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                log.warning("not listening on %s: %s", address, error)  # named in /etc/hosts, but not there
                continue
            for listener in listeners:
                listener.close()
            raise ScanError(f"cannot listen on {address} port {port}: {error.strerror}") from error
        listeners.append(listener)
        port = listener.getsockname()[1]
    return listeners


def _log_report(name: str, report: ScanReport) -> None:
    log.log(
        logging.INFO if report.failure is None else logging.ERROR,
        "%s: %s, %d messages in %.1f s, %d images sent; %s",
        name,
        report.dialect,
        report.messages,
        report.seconds,
        report.images,
        "done" if report.failure is None else f"failed: {report.failure}",
    )
