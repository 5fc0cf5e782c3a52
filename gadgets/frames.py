"""Frames of an MRD stream: a 16-bit message id and a body. Reads them in order, writes them whole."""

from __future__ import annotations

import logging
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
from scanprior.gadgets import message_codec as codec
from scanprior.gadgets.bucket_wire import read_bucket, write_bucket
from scanprior.gadgets.byte_source import Body, ByteSource, Limits, Readable
from scanprior.gadgets.errors import PeerGone, PeerSilent, ScanError, WireError
from scanprior.gadgets.image_array_wire import read_image_array, write_image_array
from scanprior.gadgets.mrd import (
    Acquisition,
    Bucket,
    Close,
    ConfigName,
    ConfigText,
    ErrorText,
    Header,
    Image,
    ImageArray,
    Query,
    Raw,
    ReconData,
    Response,
    Text,
    Waveform,
)
from scanprior.gadgets.recon_data_wire import read_recon_data, write_recon_data

log = logging.getLogger(__name__)


class MessageId(IntEnum):
    """The ids of MRD and Gadgetron that can be framed."""

    CONFIG_NAME = 1
    CONFIG_TEXT = 2
    HEADER = 3
    CLOSE = 4
    TEXT = 5
    QUERY = 6
    RESPONSE = 7
    ERROR = 8
    ACQUISITION = 1008
    IMAGE = 1022
    RECON_DATA = 1023
    IMAGE_ARRAY = 1024
    WAVEFORM = 1026
    BUCKET = 1050


Data = Acquisition | Waveform | Image | ReconData | ImageArray | Bucket
Control = ConfigName | ConfigText | Header | Close | Text | ErrorText | Query | Response
Message = Data | Control | Raw


@dataclass
class Frame:
    """A message as it was received.

    Attributes
    ----------
    id
        Its message id.
    message
        What it says.
    pieces
        Its body, byte for byte, in buffers that follow one another. The arrays of `message` lie in them.
    """

    id: int
    message: Message
    pieces: list[np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of the body."""
        return sum(piece.nbytes for piece in self.pieces)

    def body(self) -> bytes:
        """The body in one piece."""
        return b"".join(piece.data for piece in self.pieces)


_Decoder = Callable[[Body], Any]


def _decoders(limits: Limits) -> dict[int, tuple[str, int, _Decoder]]:
    """Name, limit of the body in bytes, and decoder of each id."""
    text = limits.text + 32
    return {
        MessageId.ACQUISITION: ("acquisition", limits.acquisition, codec.read_acquisition),
        MessageId.WAVEFORM: ("waveform", limits.waveform, codec.read_waveform),
        MessageId.IMAGE: ("image", limits.image, codec.read_image),
        MessageId.RECON_DATA: ("recon data", limits.message, read_recon_data),
        MessageId.IMAGE_ARRAY: ("image array", limits.message, read_image_array),
        MessageId.BUCKET: ("bucket", limits.message, read_bucket),
        MessageId.CONFIG_NAME: ("configuration name", text, lambda body: ConfigName(codec.read_config_name(body))),
        MessageId.CONFIG_TEXT: ("configuration", text, lambda body: ConfigText(codec.read_text(body))),
        MessageId.HEADER: ("header", text, lambda body: Header(codec.read_text(body))),
        MessageId.CLOSE: ("close", 0, lambda body: Close()),
        MessageId.TEXT: ("text", text, lambda body: Text(codec.read_text(body))),
        MessageId.ERROR: ("error", text, lambda body: ErrorText(codec.read_long_text(body))),
        MessageId.QUERY: ("query", text, codec.read_query),
        MessageId.RESPONSE: ("response", text, codec.read_response),
    }


class FrameReader:
    """Reads the frames of a stream in order.

    Parameters
    ----------
    stream
        A blocking socket or an unbuffered binary file.
    limits
        What the stream may ask for.
    idle_s
        Seconds of silence after which `PeerSilent` is raised; None waits for ever.

    Attributes
    ----------
    frames
        Frames read so far.
    """

    def __init__(self, stream: Readable, limits: Limits | None = None, idle_s: float | None = None) -> None:
        self.limits = limits or Limits()
        self.source = ByteSource(stream, idle_s)
        self.frames = 0
        self._decoders = _decoders(self.limits)
        self._id = memoryview(bytearray(2))

    def read(self) -> Frame:
        """The next frame.

        Raises
        ------
        PeerGone
            At the end of the stream, within a frame or between two.
        PeerSilent
            After `idle_s` without a byte.
        WireError
            For an id that is not known or a length over its limit. What follows cannot be framed any more.
        """
        if self.source.at_end("a message"):
            raise PeerGone(f"the peer closed the connection without CLOSE after {self.frames} messages")
        self.source.read_into(self._id, "message id")
        (message_id,) = struct.unpack("<H", self._id)
        known = self._decoders.get(message_id)
        if known is None:
            raise WireError(
                f"unknown message id {message_id} after {self.frames} messages; "
                f"known are {', '.join(str(int(known_id)) for known_id in sorted(self._decoders))}"
            )
        name, limit, decode = known
        body = Body(self.source, name, self.limits, limit)
        message = decode(body)
        self.frames += 1
        return Frame(message_id, message, body.pieces)

    def __iter__(self) -> Iterator[Frame]:
        """Frames up to CLOSE and with it; `PeerGone` where the stream ends without."""
        while True:
            frame = self.read()
            yield frame
            if frame.id == MessageId.CLOSE:
                return


def pieces_of(message: Message | Frame) -> codec.Pieces:
    """A whole frame, id first, as buffers that follow one another."""
    if isinstance(message, Frame):
        return [struct.pack("<H", message.id), *message.pieces]
    if isinstance(message, Raw):
        return [struct.pack("<H", message.id), message.body]
    for kind, message_id, encode in _ENCODERS:
        if isinstance(message, kind):
            return [struct.pack("<H", message_id), *encode(message)]
    raise TypeError(f"a {type(message).__name__} cannot be written as an MRD message")


def to_bytes(*messages: Message | Frame) -> bytes:
    """The frames of `messages`, one after another."""
    return b"".join(piece for message in messages for piece in pieces_of(message))


_ENCODERS: list[tuple[type, int, Callable[[Any], codec.Pieces]]] = [
    (Acquisition, MessageId.ACQUISITION, codec.write_acquisition),
    (Image, MessageId.IMAGE, codec.write_image),
    (Waveform, MessageId.WAVEFORM, codec.write_waveform),
    (ReconData, MessageId.RECON_DATA, write_recon_data),
    (ImageArray, MessageId.IMAGE_ARRAY, write_image_array),
    (Bucket, MessageId.BUCKET, write_bucket),
    (Text, MessageId.TEXT, lambda message: codec.write_text(message.text)),
    (ErrorText, MessageId.ERROR, lambda message: codec.write_long_text(message.text)),
    (Close, MessageId.CLOSE, lambda message: []),
    (ConfigName, MessageId.CONFIG_NAME, lambda message: codec.write_config_name(message.name)),
    (ConfigText, MessageId.CONFIG_TEXT, lambda message: codec.write_text(message.text)),
    (Header, MessageId.HEADER, lambda message: codec.write_text(message.xml)),
    (Query, MessageId.QUERY, codec.write_query),
    (Response, MessageId.RESPONSE, codec.write_response),
]


class WritableFile(Protocol):
    """A binary file as `open(..., "wb", buffering=0)` or `io.BytesIO` gives it."""

    def write(self, data: Any, /) -> int | None:
        """Writes some of `data` and returns how many bytes."""


class FrameWriter:
    """Writes frames whole, from any thread.

    Parameters
    ----------
    stream
        A blocking socket or an unbuffered binary file.
    stall_s
        Seconds after which a socket's peer that takes nothing is given up (`PeerSilent`); None waits for ever.
    """

    _JOIN = 1 << 20

    def __init__(self, stream: socket.socket | WritableFile, stall_s: float | None = None) -> None:
        self._stall_s = stall_s
        self._lock = threading.Lock()
        self._stream = stream
        self._broken: ScanError | None = None
        if isinstance(stream, socket.socket) and stream.family in (socket.AF_INET, socket.AF_INET6):
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, *messages: Message | Frame) -> None:
        """Writes the frames of `messages`; small ones in a single write.

        Raises
        ------
        PeerGone, PeerSilent
            If the peer does not take them. Every later call raises it again: half a frame may be out.
        """
        pieces = [memoryview(piece).cast("B") for message in messages for piece in pieces_of(message) if len(piece)]
        if sum(len(piece) for piece in pieces) <= self._JOIN:
            pieces = [memoryview(b"".join(pieces))]
        with self._lock:
            self._write_all(pieces)

    def finish(self, *messages: Message | Frame) -> None:
        """Like `send`, for the last time: afterwards `send` raises `ScanError`."""
        raw = memoryview(to_bytes(*messages))
        with self._lock:
            self._write_all([raw])
            self._broken = ScanError("the scan has ended: nothing more can be sent")

    def _write_all(self, pieces: list[memoryview]) -> None:
        if self._broken is not None:
            raise self._broken
        try:
            for piece in pieces:
                self._write(piece)
        except WireError as error:
            self._broken = error
            raise
        except (OSError, ValueError) as error:  # ValueError: a file closed under us
            self._broken = PeerGone(f"the peer takes nothing any more: {error}")
            raise self._broken from error

    def _write(self, view: memoryview) -> None:
        if isinstance(self._stream, socket.socket):
            self._write_socket(self._stream, view)
            return
        while len(view):
            view = view[self._stream.write(view) or 0 :]

    def _write_socket(self, stream: socket.socket, view: memoryview) -> None:
        # MSG_DONTWAIT and not a socket time-out, which would hold for the reading side too
        poll: select.poll | None = None
        while len(view):
            try:
                view = view[stream.send(view, socket.MSG_DONTWAIT) :]
                continue
            except BlockingIOError:
                pass
            if poll is None:
                poll = select.poll()
                poll.register(stream, select.POLLOUT)
            start = time.monotonic()
            if not poll.poll(None if self._stall_s is None else self._stall_s * 1000):
                raise PeerSilent(
                    f"the peer has taken nothing for {self._stall_s:g} s, {len(view)} bytes are left to send"
                )
            waited = time.monotonic() - start
            if waited > 5:
                log.warning("the peer took nothing for %.1f s", waited)
