"""MRD messages in memory. Header fields keep their MRD names; layouts are those of the ISMRMRD standard."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

# importing ismrmrd resets the warnings filter of the process; put it back
import warnings

with warnings.catch_warnings():
    import ismrmrd.hdf5 as _layout

ACQUISITION_HEADER: np.dtype = np.dtype(_layout.acquisition_header_dtype)  # 340 bytes, as on the wire and in files
IMAGE_HEADER: np.dtype = np.dtype(_layout.image_header_dtype)  # 198 bytes
WAVEFORM_HEADER: np.dtype = np.dtype(_layout.waveform_header_dtype)  # 40 bytes


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
