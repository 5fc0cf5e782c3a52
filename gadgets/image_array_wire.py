"""Bytes of Gadgetron's image array (id 1024): the images of one encoding space before ImageArraySplit."""

from __future__ import annotations

import struct

import numpy as np
from scanprior.gadgets.byte_source import Body
from scanprior.gadgets.errors import ScanError, WireError
from scanprior.gadgets.message_codec import Pieces, read_meta, read_waveform, write_waveform
from scanprior.gadgets.mrd import ACQUISITION_HEADER, IMAGE_HEADER, ImageArray
from scanprior.gadgets.recon_data_wire import write_array

_COMPLEX = np.dtype("<c8")


def read_image_array(body: Body) -> ImageArray:
    """Pixels, headers, metas, and behind a flag each: waveforms, acquisition headers.

    Headers and metas may outnumber the images: Gadgetron's g-factor maps have two of each for one image.
    """
    data = body.array(_COMPLEX, "pixels")
    if data.ndim != 7:
        raise WireError(
            f"{body.name}: pixels have {data.ndim} dimensions {data.shape}; expected 7 (X, Y, Z, CHA, N, S, LOC)"
        )
    headers = body.array(IMAGE_HEADER, "headers")
    meta = [read_meta(body) for _ in range(body.count("number of metas"))]
    waveforms = None
    if body.flag("waveform flag"):
        # they lie bare, header and samples, without the message id that gadgetron-python writes
        waveforms = [read_waveform(body) for _ in range(body.count("number of waveforms"))]
    acquisition_headers = None
    if body.flag("acquisition header flag"):
        acquisition_headers = body.array(ACQUISITION_HEADER, "acquisition headers")
    return ImageArray(data, headers, meta, waveforms, acquisition_headers)


def write_image_array(image_array: ImageArray) -> Pieces:
    """The body of an image array; metas without a NUL.

    Raises
    ------
    ScanError
        If the pixels do not have 7 dimensions, or there are fewer headers than images.
    """
    shape = image_array.data.shape
    if len(shape) != 7:
        raise ScanError(f"image array: pixels of shape {shape}; expected (X, Y, Z, CHA, N, S, LOC)")
    headers = image_array.headers.shape
    if len(headers) != 3 or any(has < wants for has, wants in zip(headers, shape[4:], strict=True)):
        raise ScanError(f"image array: headers of shape {headers} for images of shape {shape[4:]} (N, S, LOC)")
    pieces = [*write_array(image_array.data, _COMPLEX), *write_array(image_array.headers, IMAGE_HEADER)]
    pieces.append(struct.pack("<Q", len(image_array.meta)))
    for meta in image_array.meta:
        raw = meta.rstrip("\0").encode()
        pieces += [struct.pack("<Q", len(raw)), raw]
    pieces.append(struct.pack("<?", image_array.waveforms is not None))
    if image_array.waveforms is not None:
        pieces.append(struct.pack("<Q", len(image_array.waveforms)))
        for waveform in image_array.waveforms:
            pieces += write_waveform(waveform)
    pieces.append(struct.pack("<?", image_array.acquisition_headers is not None))
    if image_array.acquisition_headers is not None:
        pieces += write_array(image_array.acquisition_headers, ACQUISITION_HEADER)
    return pieces
