"""The other side of the wire, by other people's code: ismrmrd and gadgetron-python read and write all messages.

Nothing here uses our framing. Only what these packages lack is done by hand: lengths and ids of texts.
"""

from __future__ import annotations

import gzip
import json
import os
import queue
import re
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import ismrmrd
from gadgetron.external import constants, readers, writers
from ismrmrd.serialization import ProtocolDeserializer, ProtocolSerializer
from support import data_dir

PATIENCE_S = 60.0
CONFIG_NAME, CONFIG_TEXT, HEADER, CLOSE, TEXT, ERROR = 1, 2, 3, 4, 5, 8
IMAGE, WAVEFORM = 1022, 1026

ImageBytes = tuple[bytes, bytes, bytes]
"""Header, meta and pixels of an image, as they are on the wire."""


@dataclass
class PeerScan:
    """A raw-data file as ismrmrd reads it."""

    header: bytes
    acquisitions: list[ismrmrd.Acquisition]


@dataclass
class Replies:
    """What came back up to CLOSE, or to the end of the stream."""

    images: list[ismrmrd.Image] = field(default_factory=list)
    waveforms: list[ismrmrd.Waveform] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    bits: list[ImageBytes] = field(default_factory=list)
    closed: bool = False
    status: int | None = None
    log: str = ""


class Tap:
    """Remembers what a reader reads of a message: ismrmrd's Image keeps no meta text, but writes one of its own."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._pieces: list[bytes] = []

    def read(self, size: int) -> bytes:
        """As the stream."""
        self._pieces.append(self._stream.read(size))
        return self._pieces[-1]

    def image(self) -> ImageBytes:
        """The image that was read last, and with it all that was read before."""
        raw, self._pieces = b"".join(self._pieces[-4:]), []
        (length,) = struct.unpack_from("<Q", raw, 198)
        return raw[:198], raw[206 : 206 + length], raw[206 + length :]


def scan_file(name: str, folder: Path) -> Path:
    """A recorded scan by name; those of the wire fixtures are unpacked into `folder`."""
    if not name.startswith("small"):
        return data_dir() / "recorded" / f"{name}.h5"
    path = folder / f"{name}.h5"
    path.write_bytes(gzip.decompress((data_dir() / "wire" / f"{name}.h5.gz").read_bytes()))
    return path


def read_scan(path: Path) -> PeerScan:
    """Header as it stands in the file, and all acquisitions."""
    with h5py.File(path) as file:
        header = bytes(file["dataset/xml"][0])
    with ismrmrd.File(str(path), "r") as dataset:
        return PeerScan(header, list(dataset["dataset"].acquisitions[:]))


def configuration(**properties: object) -> bytes:
    """Gadgetron's inner configuration."""
    lines = "".join(f'<property name="{name}" value="{value}"/>' for name, value in properties.items())
    return f'<?xml version="1.0"?>\n<configuration>{lines}</configuration>\n'.encode()


class Wire:
    """A connection as the packages' readers and writers want it; a stream that ends too early is an EOFError."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE_S)
        self.connection = connection
        self._file = connection.makefile("rb")

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes."""
        data = self._file.read(size)
        if len(data) < size:
            raise EOFError(f"{len(data)} of {size} bytes")
        return data

    def write(self, data: Any) -> None:
        """All of `data`."""
        self.connection.sendall(bytes(data))

    def id(self, number: int) -> None:
        """A message id."""
        self.write(struct.pack("<H", number))

    def close(self) -> None:
        """Both directions."""
        self._file.close()
        self.connection.close()


def open_gadgetron(wire: Wire, header: bytes, **properties: object) -> None:
    """What Gadgetron's external node sends first."""
    for number, text in ((CONFIG_TEXT, configuration(**properties)), (HEADER, header)):
        wire.id(number)
        writers.write_byte_string(wire, text)


def open_fire(wire: Wire, header: bytes, config: str, **parameters: object) -> None:
    """What a FIRE client sends first: 1024 bytes of name, strings that end with NUL, JSON if there are parameters."""
    wire.id(CONFIG_NAME)
    wire.write(config.encode().ljust(1024, b"\0"))
    texts = [(HEADER, header + b"\0")]
    if parameters:
        document = {"version": "1.0.0", "parameters": {"config": config, **parameters}}
        texts.append((TEXT, json.dumps(document).encode() + b"\0"))
    for number, text in texts:
        wire.id(number)
        writers.write_byte_string(wire, text)


def read_replies(wire: Wire, seen: Callable[[str], None] | None = None) -> Replies:
    """All messages until CLOSE; `seen` is told the kind of each as it comes."""
    replies = Replies()
    tap = Tap(wire)
    while not replies.closed:
        try:
            (number,) = struct.unpack("<H", wire.read(2))
        except EOFError:
            return replies
        if number == IMAGE:
            replies.images.append(readers.read_image(tap))
            replies.bits.append(tap.image())
        elif number == WAVEFORM:
            replies.waveforms.append(readers.read_waveform(wire))
        elif number == TEXT:
            replies.texts.append(readers.read_byte_string(wire).decode())
        elif number == ERROR:
            replies.errors.append(readers.read_byte_string(wire, constants.uint64).decode())
        elif number == CLOSE:
            replies.closed = True
            assert wire._file.read(1) == b"", "something followed CLOSE"
        else:
            raise AssertionError(f"id {number} came back")
        if seen is not None:
            seen({IMAGE: "image", CLOSE: "close"}.get(number, "other"))
    return replies


def converse(wire: Wire, opening: Callable[[], None], scan: PeerScan) -> Replies:
    """Sends a whole scan while the replies are read, as clients do."""
    broken: list[Exception] = []

    def send() -> None:
        try:
            opening()
            for acquisition in scan.acquisitions:
                writers.write_acquisition(wire, acquisition)
            wire.id(CLOSE)
        except OSError as error:
            broken.append(error)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        replies = read_replies(wire)
    finally:
        sender.join(PATIENCE_S)
        wire.close()
    assert not sender.is_alive(), "the input was not drained"
    assert not broken, broken
    return replies


def by_connect(port: int, scan: PeerScan, recipe: str, **parameters: object) -> Replies:
    """Gadgetron's `<connect>`."""
    wire = Wire(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S))
    return converse(wire, lambda: open_gadgetron(wire, scan.header, recipe=recipe, **parameters), scan)


def by_fire(port: int, scan: PeerScan, recipe: str, **parameters: object) -> Replies:
    """A FIRE client."""
    wire = Wire(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S))
    return converse(wire, lambda: open_fire(wire, scan.header, recipe, **parameters), scan)


def by_execute(scan: PeerScan, recipe: str, **parameters: object) -> Replies:
    """Gadgetron's `<execute>`: stdin closed, which makes the socket descriptor 0."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_S)
        shell = f'exec "$0" -m gadgetron {listener.getsockname()[1]} scanprior.gadgets reconstruct <&-'
        process = subprocess.Popen(
            ["/bin/sh", "-c", shell, sys.executable], env=child_environment(), text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        wire = Wire(listener.accept()[0])
    try:
        replies = converse(wire, lambda: open_gadgetron(wire, scan.header, recipe=recipe, **parameters), scan)
        replies.log = process.communicate(timeout=PATIENCE_S)[0]
    finally:
        process.kill()
        process.wait()
    replies.status = process.returncode
    return replies


def by_pipe(scan: PeerScan, recipe: str, **parameters: object) -> Replies:
    """`scanprior stdio`, with ismrmrd's serializer on stdin and its deserializer on stdout."""
    process = subprocess.Popen(
        [sys.executable, "-m", "scanprior.pipelines.cli", "stdio", "--recipe", recipe], env=child_environment(),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    stdin = process.stdin

    def send() -> None:
        with stdin:
            if parameters:
                text = configuration(**parameters)
                stdin.write(struct.pack("<HI", CONFIG_TEXT, len(text)) + text)
            serializer = ProtocolSerializer(stdin)
            serializer.serialize(ismrmrd.xsd.CreateFromDocument(scan.header))
            for acquisition in scan.acquisitions:
                serializer.serialize(acquisition)
            serializer.close()

    log: list[bytes] = []
    assert process.stdout is not None
    assert process.stderr is not None
    stderr: BinaryIO = process.stderr  # type: ignore[assignment]
    threads = [threading.Thread(target=send), threading.Thread(target=lambda: log.append(stderr.read()))]
    for thread in threads:
        thread.start()
    replies = Replies()
    try:
        tap = Tap(process.stdout)
        for message in ProtocolDeserializer(tap).deserialize():
            if isinstance(message, ismrmrd.Image):
                replies.images.append(message)
                replies.bits.append(tap.image())
        replies.closed = True
        assert process.stdout.read() == b"", "something followed CLOSE"
        replies.status = process.wait(PATIENCE_S)
    finally:
        process.kill()
        for thread in threads:
            thread.join(PATIENCE_S)
        process.wait()
        process.stdout.close()
        stderr.close()
    replies.log = b"".join(log).decode()
    return replies


def child_environment() -> dict[str, str]:
    """This process's environment, so that every way in finds the same package and as many threads."""
    here = str(Path(__file__).resolve().parent)
    paths = [here, *(str(Path(p).resolve()) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@dataclass
class ServerProcess:
    """A running `scanprior serve`, and what it has logged."""

    port: int
    lines: list[str]


@contextmanager
def serving(*options: str) -> Iterator[ServerProcess]:
    """`scanprior serve` as a process of its own on a free port, stopped by SIGTERM at the end."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "scanprior.pipelines.cli", "serve", "--port", "0", *options],
        env=child_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    lines: list[str] = []
    ready: queue.Queue[int | None] = queue.Queue()

    def listen() -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                lines.append(line.rstrip())
                if found := re.fullmatch(r"ready on port (\d+)\s*", line):
                    ready.put(int(found[1]))
        ready.put(None)

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        port = ready.get(timeout=PATIENCE_S)
        assert port is not None, lines
        yield ServerProcess(port, lines)
    finally:
        process.terminate()
        try:
            process.wait(20)
        finally:
            process.kill()
            process.wait()
            listener.join(PATIENCE_S)
    assert process.returncode == 0, lines[-20:]
