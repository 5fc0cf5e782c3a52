"""Recon data, image arrays and buckets, against gadgetron-python's readers and writers and real streams."""

from __future__ import annotations

import ctypes
import io
import struct
from collections.abc import Iterator
from typing import Any

import gadgetron.external.writers as their_writers
import gadgetron.types.acquisition_bucket as their_bucket
import gadgetron.types.image_array as their_array
import gadgetron.types.recon_data as their_recon
import ismrmrd
import numpy as np
import pytest
from scanprior.gadgets import mrd
from scanprior.gadgets.byte_source import Limits
from scanprior.gadgets.errors import WireError
from scanprior.gadgets.frames import Frame, FrameReader, to_bytes
from scanprior.gadgets.link import LinkSettings, serve_scan
from session_double import SessionDouble, double_of
from support import data_dir, recorded_stream
from wire_helpers import images

# numpy's word about the array of ctypes headers that gadgetron-python's own reader makes
pytestmark = pytest.mark.filterwarnings("ignore:A builtin ctypes object gave a PEP3118:RuntimeWarning")

STREAMS = [
    *(
        f"{case}/{side}_external"
        for case in (
            *("fire_config_json", "fire_config_name", "fire_config_text", "fire_images_in", "gt_acq_noise"),
            *("gt_acq_passthrough", "gt_bucket", "gt_bucket_sorted", "gt_empty_scan", "gt_error"),
            *("gt_imagearray_midchain", "gt_images_meta_midchain", "gt_images_midchain", "gt_recondata_nosplit"),
            *("gt_recondata_to_imagearray", "gt_recondata_to_images"),
        )
        for side in ("to", "from")
    ),
    *("gt_client/to_gadgetron", "gt_client/from_gadgetron", "stdio/gadgetron_from_stream_default"),
    *("stdio/hdf5_to_stream_small", "stdio/hdf5_to_stream_small_noise"),
]


def test_all_recorded_streams_are_listed() -> None:
    wire = data_dir() / "wire"
    assert sorted(STREAMS) == sorted(str(path.relative_to(wire))[:-7] for path in wire.glob("*/*.bin.gz"))


@pytest.mark.parametrize("name", STREAMS)
def test_recorded_streams_survive_to_the_byte(name: str) -> None:
    stream = recorded_stream(name)
    reader = FrameReader(io.BytesIO(stream))
    frames = list(reader)
    assert reader.source.at_end("nothing")
    assert to_bytes(*frames) == stream


def with_nul(frame: Frame) -> bool:
    """Whether the sender ended a text of this frame with a NUL, which we do not."""
    message = frame.message
    if isinstance(message, mrd.Image | mrd.ImageArray):
        return b">\0" in frame.body()
    return isinstance(message, mrd.Header | mrd.ConfigText | mrd.Text) and frame.body().endswith(b"\0")


@pytest.mark.parametrize("name", STREAMS)
def test_what_was_understood_says_the_same_bytes(name: str) -> None:
    """Written again from the decoded fields, so that a field read from the wrong place shows."""
    for frame in FrameReader(io.BytesIO(recorded_stream(name))):
        if not with_nul(frame):
            assert to_bytes(frame.message) == to_bytes(frame)


def bodies(name: str, message_id: int) -> Iterator[tuple[Any, io.BytesIO]]:
    found = 0
    for frame in FrameReader(io.BytesIO(recorded_stream(name))):
        if frame.id == message_id:
            found += 1
            yield frame.message, io.BytesIO(frame.body())
    assert found


def same_header(ours: np.void, theirs: Any) -> bool:
    return ours.tobytes() == bytes(theirs)


@pytest.mark.parametrize(
    ("case", "shape"),
    [("gt_recondata_to_images", (64, 64, 1, 4, 1, 1, 1)), ("gt_recondata_nosplit", (64, 64, 1, 4, 2, 1, 2))],
)
def test_recon_data_is_what_gadgetron_python_reads(case: str, shape: tuple[int, ...]) -> None:
    for ours, body in bodies(f"{case}/to_external", 1023):
        theirs = their_recon.read_recon_data(body)
        assert body.read() == b""
        assert len(ours.bits) == len(theirs.bits) == 1
        for mine, other in ((ours.bits[0].data, theirs.bits[0].data), (ours.bits[0].reference, theirs.bits[0].ref)):
            assert mine.data.shape == shape
            np.testing.assert_array_equal(mine.data, other.data)
            assert mine.headers.shape == other.headers.shape
            assert all(same_header(a, b) for a, b in zip(mine.headers.ravel(), other.headers.ravel(), strict=True))
            assert list(mine.sampling["recon_matrix"]) == list(other.sampling.recon_matrix)
            assert list(mine.sampling["encoded_fov"]) == list(other.sampling.encoded_FOV)
            limits = [tuple(limit) for limit in mine.sampling["limits"].tolist()]
            assert limits == [tuple(limit) for limit in other.sampling.sampling_limits]
            assert mine.trajectory is other.trajectory is None
        lines = ours.bits[0].data.headers["number_of_samples"][:, 0, 0, 0, 0]
        assert set(lines[0::2]) == {64}
        assert set(lines[1::2]) == {0}


@pytest.mark.parametrize("case", ["gt_imagearray_midchain", "gt_recondata_nosplit", "gt_recondata_to_imagearray"])
def test_image_arrays_are_what_gadgetron_python_reads(case: str) -> None:
    for ours, body in bodies(f"{case}/from_external", 1024):
        theirs = their_array.read_image_array(body)
        assert body.read() == b""
        np.testing.assert_array_equal(ours.data, theirs.data)
        assert ours.headers.shape == theirs.headers.shape
        assert all(same_header(a, b) for a, b in zip(ours.headers.ravel(), theirs.headers.ravel(), strict=True))
        assert ours.meta == [meta.rstrip("\0") for meta in theirs.meta]
        if case == "gt_imagearray_midchain":
            assert ours.acquisition_headers is not None or len(ours.meta) == 2
            if ours.waveforms:
                assert len(ours.waveforms) == len(theirs.waveform) == 8
                for mine, other in zip(ours.waveforms, theirs.waveform, strict=True):
                    np.testing.assert_array_equal(mine.data, other.data)


def test_buckets_are_what_gadgetron_python_reads() -> None:
    for ours, body in bodies("gt_bucket/to_external", 1050):
        sizes = their_bucket.bucket_meta.from_buffer_copy(body.read(ctypes.sizeof(their_bucket.bucket_meta)))
        for mine, my_stats, size in (
            (ours.data, ours.data_stats, sizes.data),
            (ours.reference, ours.reference_stats, sizes.reference),
        ):
            theirs = their_bucket.read_acquisitions(body, size)
            their_stats = their_bucket.read_bucketstats(body)
            assert len(mine) == len(theirs) in (32, 64)
            for a, b in zip(mine, theirs, strict=True):
                np.testing.assert_array_equal(a.data, b.data)
                assert int(a.head["scan_counter"]) == b.scan_counter
            assert [vars(stat) for stat in my_stats] == [vars(stat) for stat in their_stats]
        assert [waveform.data.shape for waveform in ours.waveforms] == [(5, 40)] * 4


def test_buckets_by_slice_as_recorded() -> None:
    counts = [
        (len(bucket.data), len(bucket.reference), len(bucket.waveforms))
        for bucket, _ in bodies("gt_bucket_sorted/to_external", 1050)
    ]
    assert counts == [(32, 16, 4), (32, 16, 0), (32, 16, 4), (32, 16, 0)]


def sampling() -> np.void:
    values = np.zeros((), mrd.SAMPLING_DESCRIPTION)
    values["recon_matrix"] = (4, 5, 6)
    return values[()]


def test_our_recon_data_and_image_arrays_are_read_by_gadgetron_python() -> None:
    rng = np.random.default_rng(2)
    kspace = (rng.standard_normal((8, 3, 1, 2, 2, 1, 2)) + 1j).astype("c8")
    headers = np.zeros((3, 1, 2, 1, 2), mrd.ACQUISITION_HEADER)
    headers["scan_counter"] = np.arange(12).reshape(headers.shape)
    trajectory = rng.random((2, 8, 3, 1, 2, 1, 2)).astype("f4")
    buffer = mrd.ReconBuffer(kspace, trajectory, None, headers, sampling())
    raw = to_bytes(mrd.ReconData([mrd.ReconBit(buffer, mrd.ReconBuffer(kspace, None, None, headers, sampling()))]))
    theirs = their_recon.read_recon_data(io.BytesIO(raw[2:]))
    np.testing.assert_array_equal(theirs.bits[0].data.data, kspace)
    np.testing.assert_array_equal(theirs.bits[0].data.trajectory, trajectory)
    counters = np.vectorize(lambda head: head.scan_counter)(theirs.bits[0].ref.headers)
    np.testing.assert_array_equal(counters, headers["scan_counter"])
    assert list(theirs.bits[0].data.sampling.recon_matrix) == [4, 5, 6]

    image_headers = np.zeros((2, 1, 2), mrd.IMAGE_HEADER)
    image_headers["image_index"] = [[[0, 1]], [[2, 3]]]
    array = mrd.ImageArray(kspace[:, :, :, :1], image_headers, ["<ismrmrdMeta/>"] * 4, None, headers)
    back = their_array.read_image_array(io.BytesIO(to_bytes(array)[2:]))
    np.testing.assert_array_equal(back.data, array.data)
    np.testing.assert_array_equal(
        np.vectorize(lambda head: head.image_index)(back.headers), image_headers["image_index"]
    )
    assert back.acq_headers.shape == headers.shape


def test_recon_data_of_gadgetron_python_are_read() -> None:
    data = np.zeros((4, 2, 1, 3, 1, 1, 1), np.complex64, order="F")
    data[...] = np.random.default_rng(0).random(data.shape)
    headers = np.empty((2, 1, 1, 1, 1), object)
    for line in range(2):
        headers[line, 0, 0, 0, 0] = ismrmrd.AcquisitionHeader()
        headers[line, 0, 0, 0, 0].scan_counter = line + 5
    out = io.BytesIO()
    out.write(struct.pack("<HQ", 1023, 1))
    # their write_array fails on numpy 2 (copy=False), so the array is written by hand and the rest by theirs
    out.write(struct.pack("<Q7Q", 7, *data.shape) + data.tobytes(order="F") + b"\0\0")
    their_writers.write_object_array(out, headers, their_writers.write_acquisition_header)
    out.write(bytes(their_recon.SamplingDescription()) + b"\0")
    out.seek(0)
    (bit,) = FrameReader(out).read().message.bits  # type: ignore[union-attr]
    np.testing.assert_array_equal(bit.data.data, data)
    assert bit.data.headers["scan_counter"].ravel().tolist() == [5, 6]
    assert bit.reference is None


@pytest.mark.parametrize(
    ("case", "sent"), [("gt_recondata_to_images", 4), ("gt_recondata_nosplit", 1), ("gt_bucket", 2)]
)
def test_gadgetrons_sorted_data_reach_the_session(case: str, sent: int) -> None:
    factory, opened = double_of()
    out = io.BytesIO()
    report = serve_scan(io.BytesIO(recorded_stream(f"{case}/to_external")), out, factory)
    assert report.failure is None
    assert len(opened[0].fed) == sent
    messages = [frame.message for frame in FrameReader(io.BytesIO(out.getvalue()))]
    assert images(messages) == list(range(1, sent + 1))


def test_image_arrays_pass_as_recorded() -> None:
    out = io.BytesIO()
    stream = recorded_stream("gt_imagearray_midchain/to_external")
    serve_scan(io.BytesIO(stream), out, SessionDouble, LinkSettings())
    assert out.getvalue() == recorded_stream("gt_imagearray_midchain/from_external")


def array(dimensions: int, *sizes: int) -> bytes:
    return struct.pack(f"<{1 + len(sizes)}Q", dimensions, *sizes)


@pytest.mark.parametrize(
    ("stream", "complaint"),
    [
        (struct.pack("<HQ", 1023, 1 << 50), "recon data: number of bits is 1125899906842624; the limit is 256"),
        (struct.pack("<HQ", 1023, 1) + array(99), "number of dimensions of bit 0 data samples is 99; the limit is 16"),
        (
            struct.pack("<HQ", 1023, 1) + array(7, *[1 << 32] * 7),
            f"recon data: bit 0 data samples of {8 << 224} bytes makes",
        ),
        (struct.pack("<HQ", 1023, 1) + array(2, 1, 1) + bytes(8), "samples have 2 dimensions .1, 1.; expected 7"),
        (
            struct.pack("<HQ", 1023, 1) + array(7, *[1] * 7) + bytes(8) + b"\x07",
            "trajectory flag is 7; expected 0 or 1",
        ),
        (
            struct.pack("<HQ", 1023, 1) + array(7, *[1] * 7) + bytes(10) + array(5, 2, 1, 1, 1, 1) + bytes(680),
            r"headers of shape \(2, 1, 1, 1, 1\) .* for samples of shape \(1, 1, 1, 1, 1, 1, 1\)",
        ),
        (struct.pack("<H", 1024) + array(3, 0, 0, 0), "image array: pixels have 3 dimensions"),
        (
            struct.pack("<H", 1024) + array(7, *[0] * 7) + array(3, 0, 0, 0) + struct.pack("<Q", 1 << 40),
            "image array: number of metas is 1099511627776; the limit is 16777216",
        ),
        (struct.pack("<H13Q", 1050, 1, 5, *[0] * 11), "bucket: 5 bytes are announced for data headers, which need 340"),
        (struct.pack("<H13Q", 1050, 1 << 60, *[0] * 12), "bucket: number of data acquisitions is 1152921504606846976"),
    ],
)
def test_absurd_values_are_refused(stream: bytes, complaint: str) -> None:
    with pytest.raises(WireError, match=complaint):
        FrameReader(io.BytesIO(stream), Limits()).read()


def test_bucket_parts_must_agree() -> None:
    bucket, body = next(bodies("gt_bucket/to_external", 1050))
    raw = bytearray(body.getvalue())
    for at, part in ((16, "data samples"), (24, "data trajectories"), (64, "data stats"), (96, "waveform samples")):
        (right,) = struct.unpack_from("<Q", raw, at)
        damaged = raw.copy()
        struct.pack_into("<Q", damaged, at, right + 8)
        with pytest.raises(WireError, match=f"{right + 8} bytes are announced for {part}, which need {right}"):
            FrameReader(io.BytesIO(struct.pack("<H", 1050) + damaged)).read()
    assert len(bucket.data) == 64
