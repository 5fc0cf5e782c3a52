"""What tests of the wire ask of the messages that came back."""

from __future__ import annotations

import struct
from typing import Any

from scanprior.gadgets import mrd
from scanprior.gadgets.frames import to_bytes
from support import recorded_stream


def images(messages: list[Any]) -> list[float]:
    """The first pixel of each image."""
    return [float(message.data[0, 0, 0, 0]) for message in messages if isinstance(message, mrd.Image)]


def kinds(messages: list[Any]) -> list[str]:
    """The type of each message."""
    return [type(message).__name__ for message in messages]


def with_properties(case: str, **properties: str) -> bytes:
    """A recorded Gadgetron stream with another configuration in front."""
    stream = recorded_stream(f"{case}/to_external")
    (length,) = struct.unpack_from("<I", stream, 2)
    lines = "".join(f'<property name="{name}" value="{value}" />' for name, value in properties.items())
    return to_bytes(mrd.ConfigText(f"<configuration>{lines}</configuration>")) + stream[6 + length :]
