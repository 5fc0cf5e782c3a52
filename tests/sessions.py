"""A small scan, and sessions that it is fed to."""

from __future__ import annotations

import numpy as np
import pytest
from acquisitions import BOTH, LAST_IN_SLICE, acquisition, header_xml, noise_readouts, smooth_object
from scanprior.gadgets.engine import Engine
from scanprior.gadgets.errors import ScanError
from scanprior.gadgets.mrd import (
    ACQUISITION_HEADER,
    SAMPLING_DESCRIPTION,
    Acquisition,
    Image,
    ReconBit,
    ReconBuffer,
    ReconData,
)
from scanprior.gadgets.session import ScanSession

SIZE = 24
COILS = 4
HEADER = header_xml((SIZE, SIZE, 1), channels=COILS, reference_lines=12)
NOISE_SCAN = noise_readouts(1e-6 * np.eye(COILS), 8, 64, seed=1)


def slice_lines(scale: float = 1.0, calibration: int = 12, **idx: int) -> list[Acquisition]:
    """A slice of 24 lines, twofold undersampled outside of the calibration lines, the flag of its end on the last."""
    kspace = np.fft.fftshift(
        np.fft.fft2(np.fft.ifftshift(smooth_object(SIZE, SIZE, COILS), (1, 2)), norm="ortho"), (1, 2)
    )
    middle = range(SIZE // 2 - calibration // 2, SIZE // 2 + calibration // 2)
    numbers = [n for n in range(SIZE) if n % 2 == 0 or n in middle]
    lines = []
    for n in numbers:
        flags = [BOTH] if n in middle else []
        if n == numbers[-1]:
            flags.append(LAST_IN_SLICE)
        lines.append(acquisition(scale * kspace[:, n], n, *flags, **idx))
    return lines


def recon_buffer(slices: list[list[Acquisition]]) -> ReconBuffer:
    """Slices as BucketToBuffer sorts them: one location each."""
    data = np.zeros((SIZE, SIZE, 1, COILS, 1, 1, len(slices)), np.complex64)
    headers = np.zeros((SIZE, 1, 1, 1, len(slices)), ACQUISITION_HEADER)
    for location, lines in enumerate(slices):
        for line in lines:
            number = int(line.head["idx"]["kspace_encode_step_1"])
            data[:, number, 0, :, 0, 0, location] = line.data.T
            headers[number, 0, 0, 0, location] = line.head
    return ReconBuffer(data, None, None, headers, np.zeros(1, SAMPLING_DESCRIPTION)[0])


def recon_data(count: int) -> ReconData:
    """A message with that many slices, and their calibration lines in its reference."""
    slices = [slice_lines(1 + number, slice=number) for number in range(count)]
    reference = [[line for line in lines if line.is_flag_set(BOTH)] for lines in slices]
    return ReconData([ReconBit(recon_buffer(slices), recon_buffer(reference))])


def begin(engine: Engine, images: list[Image], header: str = HEADER, **parameters: str) -> ScanSession:
    return engine.open_session(header, parameters, images.append)


def feed(session: ScanSession, acquisitions: list[Acquisition]) -> None:
    for one in acquisitions:
        session.feed(one)


def told_by(session: ScanSession) -> str:
    with pytest.raises(ScanError) as failure:
        session.close()
    return str(failure.value)
