"""Recon data and buckets recorded from a real Gadgetron give the slices that our own sorting gives."""

from __future__ import annotations

import gzip
import io
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from acquisitions import read_file
from gadgetron.types.acquisition_bucket import read_acquisition_bucket
from gadgetron.types.recon_data import read_recon_data
from scanprior.gadgets.encoding import Encoding
from scanprior.gadgets.errors import ScanError
from scanprior.gadgets.fourier import crop_field_of_view
from scanprior.gadgets.mrd import ACQUISITION_HEADER, Acquisition
from scanprior.gadgets.recon_data import acquisitions_from_bucket, slices_from_recon
from scanprior.gadgets.slices import Key, SliceData, SliceReady
from scanprior.gadgets.sorting import Sorter
from support import data_dir

# gadgetron-python packs ctypes headers into an object array, which numpy comments on
pytestmark = pytest.mark.filterwarnings("ignore:A builtin ctypes object:RuntimeWarning")


def messages(case: str, wanted: int) -> tuple[Encoding, io.BytesIO]:
    """The header of a recorded stream, and the stream behind it."""
    path = data_dir() / "wire" / case / "to_external.bin.gz"
    stream = io.BytesIO(gzip.decompress(path.read_bytes()))
    xml = b""
    for expected in (2, 3):
        number, length = struct.unpack("<HI", stream.read(6))
        assert number == expected
        xml = stream.read(length)
    return Encoding.from_header(xml), stream


def heads(objects: np.ndarray) -> np.ndarray:
    flat = [np.frombuffer(bytes(head), ACQUISITION_HEADER)[0] for head in objects.ravel(order="F")]
    return np.array(flat, ACQUISITION_HEADER).reshape(objects.shape, order="F")


def buffer(read: Any) -> Any:
    return SimpleNamespace(data=read.data, headers=heads(read.headers)) if read is not None else None


def slices_of(data: Any, reference: Any, encoding: Encoding) -> list[SliceData]:
    """The slices of a recon bit, none of which may be refused."""

    def refuse(key: Key, error: ScanError) -> None:
        raise AssertionError(f"{key} is refused: {error}")

    return list(slices_from_recon(data, reference, encoding, refuse))


def recon_slices(case: str) -> tuple[Encoding, list[SliceData]]:
    encoding, stream = messages(case, 1023)
    found: list[SliceData] = []
    while struct.unpack("<H", stream.read(2))[0] == 1023:
        for bit in read_recon_data(stream):
            found += slices_of(buffer(bit.data), buffer(bit.ref), encoding)
    return encoding, found


@pytest.fixture(scope="module")
def sorted_slices(tmp_path_factory: pytest.TempPathFactory) -> dict[Key, SliceData]:
    """The same scan, sorted by us from its file."""
    path: Path = tmp_path_factory.mktemp("wire") / "small.h5"
    with gzip.open(data_dir() / "wire" / "small.h5.gz") as source, path.open("wb") as target:
        shutil.copyfileobj(source, target)
    xml, acquisitions = read_file(path)
    sorter = Sorter(Encoding.from_header(xml))
    events = [event for one in acquisitions for event in sorter.add(one)]
    return {event.key: event.slice_data for event in events if isinstance(event, SliceReady)}


@pytest.mark.parametrize("case", ["gt_recondata_to_images", "gt_recondata_to_imagearray", "gt_recondata_nosplit"])
def test_recon_data_are_what_we_sort(case: str, sorted_slices: dict[Key, SliceData]) -> None:
    encoding, found = recon_slices(case)
    assert {data.key for data in found} == set(sorted_slices)
    assert len(found) == 4
    for data in found:
        ours = sorted_slices[data.key]
        assert np.array_equal(data.counts, ours.counts)  # the odd reference lines, too: calibration is embedded
        assert np.allclose(data.kspace, crop_field_of_view(ours.kspace, 64), atol=1e-3 * np.abs(ours.kspace).max())
        assert data.readout == (0, 64)
        assert data.acs is not None
        assert ours.acs is not None
        assert data.acs.origin == ours.acs.origin
        assert data.acs.mask.all()
        assert data.acs.kspace.shape[2] == ours.acs.kspace.shape[2]
        assert data.stamps == ours.stamps
        for name in ("position", "read_dir", "acquisition_time_stamp"):
            assert np.array_equal(data.head[name], ours.head[name])
    assert encoding.calibration == "embedded"


def as_ours(acquisitions: list[Any]) -> list[Acquisition]:
    return [
        Acquisition(np.frombuffer(bytes(one.getHead()), ACQUISITION_HEADER)[0], np.asarray(one.data))
        for one in acquisitions
    ]


@pytest.mark.parametrize(("case", "count"), [("gt_bucket", 2), ("gt_bucket_sorted", 4)])
def test_buckets_give_every_acquisition_once(case: str, count: int, sorted_slices: dict[Key, SliceData]) -> None:
    encoding, stream = messages(case, 1050)
    sorter = Sorter(encoding)
    found: dict[Key, SliceData] = {}
    for _ in range(count):
        assert struct.unpack("<H", stream.read(2))[0] == 1050
        bucket = read_bucket_without_waveforms(stream)
        for one in acquisitions_from_bucket(as_ours(bucket.data), as_ours(bucket.ref)):
            found |= {event.key: event.slice_data for event in sorter.add(one) if isinstance(event, SliceReady)}
    assert set(found) == set(sorted_slices)
    for key, data in found.items():
        assert np.array_equal(data.counts, sorted_slices[key].counts)
        assert data.kspace.shape[-1] == 64  # oversampling went upstream
    assert sum(data.readouts for data in found.values()) == 160


def read_bucket_without_waveforms(stream: io.BytesIO) -> Any:
    """gadgetron-python fails on a bucket with waveforms: hide them from it, and skip their bytes."""
    start = stream.tell()
    counts = struct.unpack("<13Q", stream.read(13 * 8))
    waveforms = counts[-3:]
    blob = bytearray(stream.getvalue())
    blob[start + 10 * 8 : start + 13 * 8] = bytes(24)
    patched = io.BytesIO(bytes(blob))
    patched.seek(start)
    bucket = read_acquisition_bucket(patched)
    stream.seek(patched.tell() + waveforms[1] + waveforms[2])
    return bucket


def first_bit() -> tuple[Encoding, Any, Any]:
    """Of a recorded stream the first recon bit: header, data, reference."""
    encoding, stream = messages("gt_recondata_to_images", 1023)
    stream.read(2)
    bit = read_recon_data(stream).bits[0]
    return encoding, buffer(bit.data), buffer(bit.ref)


def test_what_spoils_the_whole_message_is_raised() -> None:
    encoding, data, reference = first_bit()
    with pytest.raises(ScanError, match="headers should be"):
        slices_of(SimpleNamespace(data=data.data, headers=data.headers[:-1]), None, encoding)
    with pytest.raises(ScanError, match="readouts of 60 samples, the header says 128 or 64"):
        slices_of(SimpleNamespace(data=data.data[:60], headers=data.headers), None, encoding)
    with pytest.raises(ScanError, match="6 axes, expected 7"):
        slices_of(SimpleNamespace(data=data.data[..., 0], headers=data.headers), None, encoding)
    short = SimpleNamespace(data=reference.data[:, :, :, :3], headers=reference.headers)
    with pytest.raises(ScanError, match="have 4 channels, their reference 3"):
        slices_of(data, short, encoding)
    empty = SimpleNamespace(data=reference.data[..., :0], headers=reference.headers[..., :0])
    with pytest.raises(ScanError, match="expected 1 or more of N, S and LOC"):
        slices_of(data, empty, encoding)


def locations(buffer: Any, number: int) -> Any:
    """As many copies of a buffer's first location, each a slice of its own, from 0."""
    data, headers = (np.repeat(array[..., :1], number, -1) for array in (buffer.data, buffer.headers))
    headers["idx"]["slice"] = np.arange(number)
    return SimpleNamespace(data=data, headers=headers)


def sampled_lines(buffer: Any) -> np.ndarray:
    return np.flatnonzero(buffer.headers["number_of_samples"][:, 0, 0, 0, 0] > 0)


def spoil_samples(data: Any, reference: Any) -> None:
    data.data[3, sampled_lines(data)[0], ..., 1] = np.nan


def spoil_reference(data: Any, reference: Any) -> None:
    reference.data[3, sampled_lines(reference)[0], ..., 1] = np.inf


def spoil_lines(data: Any, reference: Any) -> None:
    data.headers["idx"]["kspace_encode_step_1"][..., 1] += 60


def spoil_slice(data: Any, reference: Any) -> None:
    data.headers["idx"]["slice"][..., 1] = 70


@pytest.mark.parametrize(
    ("spoil", "number", "told"),
    [
        (spoil_samples, 1, "recon data have samples that are not finite"),
        (spoil_reference, 1, "recon reference have samples that are not finite"),
        (spoil_lines, 1, "outside the encoded matrix of 64 x 1"),
        (spoil_slice, 70, "recon data have slice 70, the header allows 0 to "),
    ],
)
def test_a_bad_location_is_refused_alone(spoil: Any, number: int, told: str) -> None:
    encoding, data, reference = first_bit()
    limits = dict(encoding.limits)
    limits["slice"] = replace(limits["slice"], minimum=0, maximum=2)
    encoding = replace(encoding, limits=limits)
    data, reference = locations(data, 3), locations(reference, 3)
    whole = slices_of(data, reference, encoding)
    spoil(data, reference)
    refused: list[tuple[Key, ScanError]] = []
    found = list(slices_from_recon(data, reference, encoding, lambda key, error: refused.append((key, error))))
    assert [one.key.slice for one in found] == [0, 2]
    for one, expected in zip(found, whole[::2], strict=True):
        assert np.array_equal(one.kspace, expected.kspace)
    [(key, error)] = refused
    assert key.slice == number
    assert told in str(error)


def test_what_was_not_acquired_spoils_nothing() -> None:
    encoding, data, _ = first_bit()
    expected = slices_of(data, None, encoding)
    unsampled = np.setdiff1d(np.arange(data.data.shape[1]), sampled_lines(data))
    assert len(unsampled)
    spoiled = data.data.copy()
    spoiled[:, unsampled] = np.nan
    for one, other in zip(
        slices_of(SimpleNamespace(data=spoiled, headers=data.headers), None, encoding), expected, strict=True
    ):
        assert np.array_equal(one.kspace, other.kspace)
