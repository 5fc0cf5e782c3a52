"""Bytes of the plain messages: acquisition, waveform, image, and those that carry text."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from scanprior.gadgets.byte_source import Body
from scanprior.gadgets.errors import ScanError, WireError
from scanprior.gadgets.mrd import (
    ACQUISITION_HEADER,
    IMAGE_HEADER,
    WAVEFORM_HEADER,
    Acquisition,
    Image,
    Query,
    Response,
    Waveform,
)

Pieces = list[Any]
"""Buffers that follow one another on the wire."""

CONFIG_NAME_BYTES = 1024
MAX_TRAJECTORY_DIMENSIONS = 16

PIXEL_TYPES: dict[int, np.dtype] = {
    1: np.dtype("<u2"),
    2: np.dtype("<i2"),
    3: np.dtype("<u4"),
    4: np.dtype("<i4"),
    5: np.dtype("<f4"),
    6: np.dtype("<f8"),
    7: np.dtype("<c8"),
    8: np.dtype("<c16"),
}
"""MRD's `data_type` of an image, as the standard has it."""

SENT_PIXEL_TYPES: dict[np.dtype, int] = {PIXEL_TYPES[code]: code for code in (1, 5, 7)}
"""What we send: every receiver takes these. Gadgetron refuses int16; the python package sends int32 as 64 bit."""

_COMPLEX = np.dtype("<c8")
_FLOAT = np.dtype("<f4")
_U32 = np.dtype("<u4")
_ACQUISITION_SIZES = struct.Struct("<HHH")
_SAMPLES_AT = ACQUISITION_HEADER.fields["number_of_samples"][1]  # type: ignore[index]
_TRAJECTORY = struct.Struct("<H")
_TRAJECTORY_AT = ACQUISITION_HEADER.fields["trajectory_dimensions"][1]  # type: ignore[index]


def raw_bytes(array: np.ndarray, dtype: np.dtype, order: Literal["C", "F"] = "C") -> memoryview:
    """The values of `array` as bytes, without a copy where it is contiguous and of `dtype` already."""
    return np.asarray(array, dtype, order=order).ravel(order).view(np.uint8).data


def read_acquisition(body: Body) -> Acquisition:
    """Header (340 bytes), trajectory (sample, dimension) float32, samples (coil, sample) complex64."""
    raw = body.take(ACQUISITION_HEADER.itemsize, "header")
    # struct is several times faster here than fields of a numpy record
    samples, _, channels = _ACQUISITION_SIZES.unpack_from(raw.data, _SAMPLES_AT)
    (dimensions,) = _TRAJECTORY.unpack_from(raw.data, _TRAJECTORY_AT)
    head = raw.view(ACQUISITION_HEADER)[0]
    if dimensions == 0:
        data = body.take(samples * channels * 8, "samples").view(_COMPLEX).reshape(channels, samples)
        return Acquisition(head, data)
    body.bounded(dimensions, MAX_TRAJECTORY_DIMENSIONS, "trajectory_dimensions")
    traj = body.records(_FLOAT, samples * dimensions, "trajectory").reshape(samples, dimensions)
    data = body.records(_COMPLEX, samples * channels, "samples").reshape(channels, samples)
    return Acquisition(head, data, traj)


def write_acquisition(acquisition: Acquisition) -> Pieces:
    """The body of an acquisition; `ScanError` where data and header disagree."""
    check_acquisition(acquisition, finite=False)
    pieces: Pieces = [acquisition.head.tobytes()]
    if acquisition.traj.size:
        pieces.append(raw_bytes(acquisition.traj, _FLOAT))
    return [*pieces, raw_bytes(acquisition.data, _COMPLEX)]


def check_acquisition(acquisition: Acquisition, finite: bool = True) -> None:
    """Raises `ScanError` where samples or trajectory do not fit the header or, with `finite`, are NaN or infinite."""
    head = acquisition.head
    which = f"acquisition {int(head['scan_counter'])}"
    samples, channels = int(head["number_of_samples"]), int(head["active_channels"])
    dimensions = int(head["trajectory_dimensions"])
    if acquisition.data.shape != (channels, samples):
        raise ScanError(
            f"{which}: samples have the shape {acquisition.data.shape} (coil, sample); "
            f"its header says {(channels, samples)}"
        )
    if dimensions and acquisition.traj.shape != (samples, dimensions):
        raise ScanError(
            f"{which}: the trajectory has the shape {acquisition.traj.shape}; its header says {(samples, dimensions)}"
        )
    if not dimensions and acquisition.traj.size:
        raise ScanError(
            f"{which}: a trajectory of shape {acquisition.traj.shape}, but its header says that it has none"
        )
    if int(head["discard_pre"]) + int(head["discard_post"]) > samples:
        raise ScanError(
            f"{which}: discard_pre {int(head['discard_pre'])} and discard_post {int(head['discard_post'])} "
            f"together exceed its {samples} samples"
        )
    if finite and not np.isfinite(acquisition.data.view(_FLOAT)).all():
        bad = np.argwhere(~np.isfinite(acquisition.data))
        coil, sample = (int(index) for index in bad[0])
        value = acquisition.data[coil, sample]
        raise ScanError(
            f"{which}: {len(bad)} samples are not finite, the first in coil {coil} at sample {sample}: {value}"
        )


def read_waveform(body: Body) -> Waveform:
    """Header (40 bytes, the last two padding) and samples (channel, sample) uint32."""
    head = body.take(WAVEFORM_HEADER.itemsize, "header").view(WAVEFORM_HEADER)[0]
    return read_waveform_samples(body, head)


def read_waveform_samples(body: Body, head: np.void) -> Waveform:
    """The samples of a waveform whose header is known."""
    channels, samples = int(head["channels"]), int(head["number_of_samples"])
    return Waveform(head, body.records(_U32, channels * samples, "waveform samples").reshape(channels, samples))


def write_waveform(waveform: Waveform) -> Pieces:
    """The body of a waveform; `ScanError` where data and header disagree."""
    shape = (int(waveform.head["channels"]), int(waveform.head["number_of_samples"]))
    if waveform.data.shape != shape:
        raise ScanError(f"waveform: samples of shape {waveform.data.shape} (channel, sample); its header says {shape}")
    return [waveform.head.tobytes(), raw_bytes(waveform.data, _U32)]


def read_image(body: Body) -> Image:
    """Header (198 bytes), u64 length of the meta, meta, pixels (channel, z, y, x)."""
    head = body.take(IMAGE_HEADER.itemsize, "header").view(IMAGE_HEADER)[0]
    # the header's own attribute_string_len is 32-bit, counts a NUL or not, and may be 0: the u64 rules
    meta = read_meta(body)
    code = int(head["data_type"])
    if code not in PIXEL_TYPES:
        raise WireError(f"{body.name}: data_type is {code}; expected one of {sorted(PIXEL_TYPES)}")
    x, y, z = (int(size) for size in head["matrix_size"])
    shape = (int(head["channels"]), z, y, x)
    pixels = body.records(PIXEL_TYPES[code], shape[0] * z * y * x, f"pixels {shape}")
    return Image(head, pixels.reshape(shape), meta)


def write_image(image: Image) -> Pieces:
    """The body of an image. Sizes, pixel type and meta length of the header are set from the data.

    Raises
    ------
    ScanError
        If the pixels are not (channel, z, y, x) of uint16, float32 or complex64, or the meta is no MRD meta:
        Gadgetron drops the whole scan over either.
    """
    if image.data.ndim != 4:
        raise ScanError(f"image: pixels have the shape {image.data.shape}; expected (channel, z, y, x)")
    dtype = image.data.dtype.newbyteorder("<")
    if dtype not in SENT_PIXEL_TYPES:
        raise ScanError(f"image: pixels are {image.data.dtype}; images are sent as uint16, float32 or complex64")
    meta = image.meta.rstrip("\0").encode()
    if meta and b"<ismrmrdMeta" not in meta:
        raise ScanError(f"image: the meta has no element ismrmrdMeta: {image.meta[:60]!r}")
    if max(image.data.shape) > 0xFFFF:
        raise ScanError(f"image: a size of {image.data.shape} (channel, z, y, x) exceeds 65535")
    head = np.array(image.head, IMAGE_HEADER)
    head["data_type"] = SENT_PIXEL_TYPES[dtype]
    head["channels"] = image.data.shape[0]
    head["matrix_size"] = image.data.shape[:0:-1]
    head["attribute_string_len"] = len(meta)
    return [head.tobytes(), struct.pack("<Q", len(meta)), meta, raw_bytes(image.data, dtype)]


def read_meta(body: Body) -> str:
    """An image's meta: u64 length, then text, with or without a NUL."""
    size = body.bounded(body.u64("meta length"), body.limits.meta, "length of the meta")
    return decode_text(body.take(size, "meta").tobytes(), f"{body.name} meta")


def read_config_name(body: Body) -> str:
    """The name of a configuration: 1024 bytes, padded with NUL."""
    raw = body.take(CONFIG_NAME_BYTES, "name").tobytes()
    return decode_text(raw.split(b"\0", 1)[0], body.name)


def write_config_name(name: str) -> Pieces:
    """The body of a configuration by name."""
    raw = name.encode()
    if len(raw) >= CONFIG_NAME_BYTES:
        raise ScanError(f"configuration name of {len(raw)} bytes; the limit is {CONFIG_NAME_BYTES - 1}")
    return [raw.ljust(CONFIG_NAME_BYTES, b"\0")]


def read_text(body: Body) -> str:
    """A text behind its u32 length."""
    return _read_text(body, body.u32)


def read_long_text(body: Body) -> str:
    """A text behind its u64 length, as an ERROR has it."""
    return _read_text(body, body.u64)


def write_text(text: str) -> Pieces:
    """The body of a text, configuration or header: u32 length, UTF-8 as given."""
    raw = text.encode()
    return [struct.pack("<I", len(raw)), raw]


def write_long_text(text: str) -> Pieces:
    """The body of an ERROR: u64 length, UTF-8 as given."""
    raw = text.encode()
    return [struct.pack("<Q", len(raw)), raw]


def read_query(body: Body) -> Query:
    """u64 reserved (0), u64 number, text behind its u64 length: Gadgetron's QueryHandler."""
    reserved = body.u64("reserved field")
    if reserved:
        raise WireError(f"{body.name}: the reserved field is {reserved}; expected 0")
    return Query(body.u64("number"), read_long_text(body))


def write_query(query: Query) -> Pieces:
    """The body of a query."""
    return [struct.pack("<QQ", 0, query.number), *write_long_text(query.text)]


def read_response(body: Body) -> Response:
    """u64 number, text behind its u64 length: Gadgetron's ResponseWriter."""
    return Response(body.u64("number"), read_long_text(body))


def write_response(response: Response) -> Pieces:
    """The body of a response."""
    return [struct.pack("<Q", response.number), *write_long_text(response.text)]


def _read_text(body: Body, length: Callable[[str], int]) -> str:
    size = body.bounded(length("length"), body.limits.text, "length")
    return decode_text(body.take(size, "text").tobytes(), body.name)


def decode_text(raw: bytes, name: str) -> str:
    """Text of `raw` without the NULs at its end: UTF-8, or the 8-bit encoding that its XML declaration names."""
    raw = raw.rstrip(b"\0")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        declared = re.match(
            rb"""<\?xml[^>]*encoding=["'](iso-8859-1|iso-8859-15|windows-1252)["']""", raw, re.IGNORECASE
        )
        if declared is None:
            raise WireError(f"{name}: the text is not UTF-8 (byte {raw[error.start]:#04x} at {error.start})") from error
        return raw.decode(declared[1].decode(), errors="replace")
