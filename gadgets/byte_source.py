"""Reads exact numbers of bytes from a socket or file, with time-outs, and bounds every length that a peer names."""

from __future__ import annotations

import io
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scanprior.gadgets.errors import PeerGone, PeerSilent, WireError


class ReadableFile(Protocol):
    """A binary file as `open(..., "rb", buffering=0)` or `io.BytesIO` gives it."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Reads at most len(buffer) bytes into it and returns how many; 0 at the end."""


Readable = socket.socket | ReadableFile


@dataclass(frozen=True)
class Limits:
    """The largest sizes that a stream may ask for, in bytes unless said otherwise.

    Attributes
    ----------
    text
        A configuration, header, text or error.
    meta
        The meta of one image.
    acquisition, waveform, image
        One such message.
    message
        One message of any other kind: recon data, an image array, a bucket.
    count
        Number of things (headers, metas, waveforms, counters) that one message may announce.
    """

    text: int = 16 << 20
    meta: int = 16 << 20
    acquisition: int = 256 << 20
    waveform: int = 64 << 20
    image: int = 4 << 30
    message: int = 8 << 30
    count: int = 1 << 24


class ByteSource:
    """Buffered exact reads from `stream`.

    Parameters
    ----------
    stream
        A blocking socket, or a binary file with `readinto`.
    idle_s
        After so many seconds without a byte `PeerSilent` is raised; None waits for ever. Needs a
        socket or an unbuffered file (whose readiness the system can tell).

    Attributes
    ----------
    received
        Bytes received so far.
    deadline
        A `time.monotonic()` after which `PeerSilent` is raised even if bytes keep coming, or None.
    """

    _BUFFER = 1 << 16

    def __init__(self, stream: Readable, idle_s: float | None = None) -> None:
        self.idle_s = idle_s
        self.deadline: float | None = None
        self.received = 0
        self._buffer = memoryview(bytearray(self._BUFFER))
        self._start = self._end = 0
        self._poll: select.poll | None = None
        self._receive_into: Callable[[memoryview], int | None]
        if isinstance(stream, socket.socket):
            stream.settimeout(None)
            self._receive_into = stream.recv_into
        elif isinstance(stream, io.BufferedReader):
            raise ValueError("the stream is a buffered reader, which waits for full blocks: pass its `raw` file")
        else:
            self._receive_into = stream.readinto
        try:
            descriptor = stream.fileno()  # type: ignore[union-attr]
        except (AttributeError, OSError):  # a file in memory never waits
            return
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    def read_into(self, view: memoryview, part: str) -> None:
        """Fills `view`. `part` names what is read, for the error if the stream ends first."""
        wanted = len(view)
        filled = min(self._end - self._start, wanted)
        view[:filled] = self._buffer[self._start : self._start + filled]
        self._start += filled
        while filled < wanted:
            if wanted - filled >= self._BUFFER:
                got = self._receive(view[filled:], part)
                filled += got
            else:
                got = self._receive(self._buffer, part)
                used = min(got, wanted - filled)
                view[filled : filled + used] = self._buffer[:used]
                filled += used
                self._start, self._end = used, got
            if got == 0:
                raise PeerGone(f"the stream was cut short: it ended after {filled} of {wanted} bytes of {part}")

    def at_end(self, part: str) -> bool:
        """Whether the stream has ended; waits for a byte or the end."""
        if self._start == self._end:
            self._start, self._end = 0, self._receive(self._buffer, part)
        return self._start == self._end

    def discard(self, quiet_s: float, after: bytes = b"", quiet_after_s: float = 0.0) -> None:
        """Throws away what comes until the stream ends, falls silent for `quiet_s`, or `deadline` passes.

        Where the last bytes are `after`, `quiet_after_s` of silence are enough. For a stream whose step is
        lost: nothing in it can be told apart any more.
        """
        tail = bytes(self._buffer[self._start : self._end])
        self._start = self._end = 0
        idle, self.idle_s = self.idle_s, quiet_s
        try:
            while True:
                tail = tail[-len(after) :] if after else b""
                self.idle_s = quiet_after_s if after and tail == after else quiet_s
                got = self._receive(self._buffer, "input")
                if got == 0:
                    return
                tail += bytes(self._buffer[max(0, got - len(after)) : got])
        except (PeerGone, PeerSilent):
            return
        finally:
            self.idle_s = idle

    def _receive(self, view: memoryview, part: str) -> int:
        if self._poll is not None and (self.idle_s is not None or self.deadline is not None):
            self._wait(self._poll, part)
        try:
            got = self._receive_into(view)
        except (OSError, ValueError) as error:  # ValueError: closed by another thread of ours
            raise PeerGone(f"the connection broke while waiting for {part}: {error}") from error
        self.received += got or 0
        return got or 0

    def _wait(self, poll: select.poll, part: str) -> None:
        wait_s = self.idle_s
        if self.deadline is not None:
            left = max(0.0, self.deadline - time.monotonic())
            wait_s = left if wait_s is None else min(wait_s, left)
            if left == 0.0:
                raise PeerSilent(f"the input had not ended in time, still waiting for {part}")
        if wait_s is not None and not poll.poll(wait_s * 1000):
            raise PeerSilent(f"the peer sent nothing for {wait_s:g} s while {part} was expected")


class Body:
    """Reads the body of one message piece by piece and keeps the pieces, so that the message can be passed
    on to the byte.

    Parameters
    ----------
    source
        Where the bytes come from.
    name
        What the message is, for errors.
    limits
        Bounds of single lengths; `limit` bounds the whole body.
    """

    __slots__ = ("_left", "_source", "limit", "limits", "name", "pieces")

    def __init__(self, source: ByteSource, name: str, limits: Limits, limit: int) -> None:
        self._source = source
        self._left = limit
        self.name = name
        self.limits = limits
        self.limit = limit
        self.pieces: list[np.ndarray] = []

    def take(self, size: int, part: str) -> np.ndarray:
        """The next `size` bytes as uint8. `part` names them in errors."""
        if size > self._left:
            total = self.taken + size
            raise WireError(
                f"{self.name}: {part} of {size} bytes makes {total} bytes; the limit of such a message is {self.limit}"
            )
        self._left -= size
        try:
            piece = np.empty(size, np.uint8)
        except MemoryError as error:
            raise WireError(f"{self.name}: there is no memory for {part} of {size} bytes") from error
        self._source.read_into(piece.data, f"{self.name} {part}")
        self.pieces.append(piece)
        return piece

    @property
    def taken(self) -> int:
        """Bytes taken so far."""
        return self.limit - self._left

    def u64(self, part: str) -> int:
        """An unsigned 64-bit number."""
        return struct.unpack("<Q", self.take(8, part).data)[0]

    def u32(self, part: str) -> int:
        """An unsigned 32-bit number."""
        return struct.unpack("<I", self.take(4, part).data)[0]

    def count(self, part: str) -> int:
        """A u64 that says how many things follow."""
        return self.bounded(self.u64(part), self.limits.count, part)

    def flag(self, part: str) -> bool:
        """Whether something optional follows (one byte, 0 or 1)."""
        value = int(self.take(1, part)[0])
        if value > 1:
            raise WireError(f"{self.name}: {part} is {value}; expected 0 or 1")
        return value == 1

    def bounded(self, value: int, limit: int, part: str) -> int:
        """`value`, or a `WireError` where it is over `limit`."""
        if value > limit:
            raise WireError(f"{self.name}: {part} is {value}; the limit is {limit}")
        return value

    def records(self, dtype: np.dtype, count: int, part: str) -> np.ndarray:
        """`count` values of `dtype`, one-dimensional."""
        return self.take(count * dtype.itemsize, part).view(dtype)

    def array(self, dtype: np.dtype, part: str) -> np.ndarray:
        """An array as Gadgetron writes it: u64 number of dimensions, u64 sizes, values in Fortran order."""
        shape = self.shape(part)
        return self.records(dtype, _product(shape), part).reshape(shape, order="F")

    def shape(self, part: str) -> tuple[int, ...]:
        """The sizes that stand in front of an array."""
        dimensions = self.bounded(self.u64(f"dimensions of {part}"), 16, f"number of dimensions of {part}")
        return tuple(int(size) for size in self.records(np.dtype("<u8"), dimensions, f"sizes of {part}"))


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:  # python integers: the sizes of a corrupt stream overflow any fixed width
        product *= size
    return product
