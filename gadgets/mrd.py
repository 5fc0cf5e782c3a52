"""MRD messages in memory. Header fields keep their MRD names; layouts are those of the ISMRMRD standard."""

from __future__ import annotations

# importing ismrmrd resets the warnings filter of the process; put it back
import warnings
from dataclasses import dataclass, field

import numpy as np

with warnings.catch_warnings():
    import ismrmrd.hdf5 as _layout

ACQUISITION_HEADER: np.dtype = np.dtype(_layout.acquisition_header_dtype)  # 340 bytes, as on the wire and in files
IMAGE_HEADER: np.dtype = np.dtype(_layout.image_header_dtype)  # 198 bytes
WAVEFORM_HEADER: np.dtype = np.dtype(_layout.waveform_header_dtype)  # 40 bytes
SAMPLING_DESCRIPTION: np.dtype = np.dtype(  # 56 bytes, Gadgetron's; the last two are padding
    [
        ("encoded_fov", "<f4", (3,)),
        ("recon_fov", "<f4", (3,)),
        ("encoded_matrix", "<u2", (3,)),
        ("recon_matrix", "<u2", (3,)),
        ("limits", np.dtype([("min", "<u2"), ("center", "<u2"), ("max", "<u2")]), (3,)),
        ("padding", "<u2"),
    ]
)


@dataclass
class Acquisition:
    """One readout. `head` is a scalar of ACQUISITION_HEADER (fields as `head["idx"]["slice"]`),
    `data` (coil, sample) complex64, `traj` (sample, dimension) float32 (may be empty)."""

    head: np.void
    data: np.ndarray
    traj: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def is_flag_set(self, bit: int) -> bool:
        """Whether MRD flag `bit` (numbered from 1, as in the standard) is set."""
        return bool(int(self.head["flags"]) >> (bit - 1) & 1)


@dataclass
class Waveform:
    """A physiological or other waveform: `head` a scalar of WAVEFORM_HEADER, `data` (channel, sample) uint32."""

    head: np.void
    data: np.ndarray


@dataclass
class Image:
    """An image: `head` a scalar of IMAGE_HEADER, `data` (channel, z, y, x), `meta` XML text ("" for none)."""

    head: np.void
    data: np.ndarray
    meta: str = ""


@dataclass
class Raw:
    """A message that is not ours: its id and its body, byte for byte, to be passed on unchanged."""

    id: int
    body: bytes


@dataclass
class ReconBuffer:
    """Sorted k-space as Gadgetron's BucketToBuffer makes it.

    Attributes
    ----------
    data
        (RO, E1, E2, CHA, N, S, LOC) complex64 in Fortran order.
    trajectory, density
        float32 arrays in Fortran order, or None.
    headers
        (E1, E2, N, S, LOC) of ACQUISITION_HEADER; lines that were not sampled have 0 samples.
    sampling
        A scalar of SAMPLING_DESCRIPTION: matrices, fields of view (mm), limits of the three encoding directions.
    """

    data: np.ndarray
    trajectory: np.ndarray | None
    density: np.ndarray | None
    headers: np.ndarray
    sampling: np.void


@dataclass
class ReconBit:
    """One encoding space of ReconData: its k-space, and the calibration lines where they are separate."""

    data: ReconBuffer
    reference: ReconBuffer | None = None


@dataclass
class ReconData:
    """Gadgetron's recon data (id 1023): one bit for each encoding space."""

    bits: list[ReconBit]


@dataclass
class ImageArray:
    """Gadgetron's image array (id 1024).

    Attributes
    ----------
    data
        (X, Y, Z, CHA, N, S, LOC) complex64 in Fortran order.
    headers
        (N, S, LOC) of IMAGE_HEADER. May outnumber the images of `data`.
    meta
        XML texts, that of image (n, s, loc) at `loc * N * S + s * N + n`.
    waveforms
        Physiological waveforms, or None.
    acquisition_headers
        (E1, E2, N, S, LOC) of ACQUISITION_HEADER, or None.
    """

    data: np.ndarray
    headers: np.ndarray
    meta: list[str]
    waveforms: list[Waveform] | None = None
    acquisition_headers: np.ndarray | None = None


@dataclass
class BucketStats:
    """The values that the encoding counters of a bucket's acquisitions take, for one encoding space."""

    kspace_encode_step_1: frozenset[int]
    kspace_encode_step_2: frozenset[int]
    slice: frozenset[int]
    phase: frozenset[int]
    contrast: frozenset[int]
    repetition: frozenset[int]
    set: frozenset[int]
    segment: frozenset[int]
    average: frozenset[int]


@dataclass
class Bucket:
    """Gadgetron's acquisition bucket (id 1050): acquisitions and calibration lines between two triggers."""

    data: list[Acquisition]
    reference: list[Acquisition]
    data_stats: list[BucketStats]
    reference_stats: list[BucketStats]
    waveforms: list[Waveform]


@dataclass
class ConfigName:
    """The name of a configuration that the receiver has (id 1)."""

    name: str


@dataclass
class ConfigText:
    """A configuration as text (id 2)."""

    text: str


@dataclass
class Header:
    """The scan's XML header (id 3)."""

    xml: str


@dataclass
class Close:
    """The end of a stream (id 4)."""


@dataclass
class Text:
    """A text for the log or the console (id 5); with FIRE also the JSON parameters."""

    text: str


@dataclass
class ErrorText:
    """A failure that Gadgetron shows at its client (id 8)."""

    text: str


@dataclass
class Query:
    """A question to a Gadgetron server (id 6), `number` pairs it with its response."""

    number: int
    text: str


@dataclass
class Response:
    """The answer to a query (id 7)."""

    number: int
    text: str
