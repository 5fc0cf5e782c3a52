"""Bytes of Gadgetron's recon data (id 1023): sorted k-space behind NoiseAdjust and BucketToBuffer."""

from __future__ import annotations

import struct
from math import prod

import numpy as np
from scanprior.gadgets.byte_source import Body
from scanprior.gadgets.errors import ScanError, WireError
from scanprior.gadgets.message_codec import Pieces, raw_bytes
from scanprior.gadgets.mrd import ACQUISITION_HEADER, SAMPLING_DESCRIPTION, ReconBit, ReconBuffer, ReconData

_COMPLEX = np.dtype("<c8")
_FLOAT = np.dtype("<f4")


def read_recon_data(body: Body) -> ReconData:
    """u64 number of bits; for each its k-space, a flag, and its calibration lines where the flag is set."""
    bits = []
    for number in range(body.bounded(body.u64("number of bits"), 256, "number of bits")):
        data = _read_buffer(body, f"bit {number} data")
        with_reference = body.flag(f"bit {number} reference flag")
        bits.append(ReconBit(data, _read_buffer(body, f"bit {number} reference") if with_reference else None))
    return ReconData(bits)


def write_recon_data(recon_data: ReconData) -> Pieces:
    """The body of recon data."""
    pieces: Pieces = [struct.pack("<Q", len(recon_data.bits))]
    for bit in recon_data.bits:
        pieces += [*_write_buffer(bit.data), struct.pack("<?", bit.reference is not None)]
        if bit.reference is not None:
            pieces += _write_buffer(bit.reference)
    return pieces


def _read_buffer(body: Body, part: str) -> ReconBuffer:
    data = body.array(_COMPLEX, f"{part} samples")
    if data.ndim != 7:
        raise WireError(
            f"{body.name}: {part} samples have {data.ndim} dimensions {data.shape}; "
            "expected 7 (RO, E1, E2, CHA, N, S, LOC)"
        )
    trajectory = body.array(_FLOAT, f"{part} trajectory") if body.flag(f"{part} trajectory flag") else None
    density = body.array(_FLOAT, f"{part} density") if body.flag(f"{part} density flag") else None
    headers = body.array(ACQUISITION_HEADER, f"{part} headers")
    _, e1, e2, _, *rest = data.shape
    if headers.shape != (e1, e2, *rest):
        raise WireError(
            f"{body.name}: {part} has headers of shape {headers.shape} (E1, E2, N, S, LOC) "
            f"for samples of shape {data.shape} (RO, E1, E2, CHA, N, S, LOC)"
        )
    sampling = body.records(SAMPLING_DESCRIPTION, 1, f"{part} sampling description")[0]
    return ReconBuffer(data, trajectory, density, headers, sampling)


def _write_buffer(buffer: ReconBuffer) -> Pieces:
    if buffer.data.ndim != 7:
        raise ScanError(f"recon data: samples of shape {buffer.data.shape}; expected (RO, E1, E2, CHA, N, S, LOC)")
    pieces = write_array(buffer.data, _COMPLEX)
    for optional in (buffer.trajectory, buffer.density):
        pieces.append(struct.pack("<?", optional is not None))
        if optional is not None:
            pieces += write_array(optional, _FLOAT)
    return [*pieces, *write_array(buffer.headers, ACQUISITION_HEADER), buffer.sampling.tobytes()]


def write_array(array: np.ndarray, dtype: np.dtype) -> Pieces:
    """An array as Gadgetron reads it: u64 number of dimensions, u64 sizes, values in Fortran order."""
    sizes = struct.pack(f"<{1 + array.ndim}Q", array.ndim, *array.shape)
    return [sizes, raw_bytes(array, dtype, order="F") if prod(array.shape) else b""]
