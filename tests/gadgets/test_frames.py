from __future__ import annotations

import io
import socket
import struct
import threading
import time

import ismrmrd
import numpy as np
import pytest
from scanprior.gadgets import mrd
from scanprior.gadgets.byte_source import Limits
from scanprior.gadgets.errors import PeerGone, PeerSilent, ScanError, WireError
from scanprior.gadgets.frames import Frame, FrameReader, FrameWriter, MessageId, to_bytes
from scanprior.gadgets.message_codec import check_acquisition
from support import recorded_stream


def read_all(stream: bytes, limits: Limits | None = None) -> list[Frame]:
    return list(FrameReader(io.BytesIO(stream), limits))


def acquisition(channels: int = 3, samples: int = 8, dimensions: int = 0) -> mrd.Acquisition:
    head = np.zeros((), mrd.ACQUISITION_HEADER)
    head["version"], head["scan_counter"] = 1, 7
    head["active_channels"], head["number_of_samples"] = channels, samples
    head["trajectory_dimensions"] = dimensions
    rng = np.random.default_rng(3)
    data = (rng.standard_normal((channels, samples)) + 1j * rng.standard_normal((channels, samples))).astype("c8")
    traj = rng.standard_normal((samples, dimensions)).astype("f4")
    return mrd.Acquisition(head[()], data, traj)


def image(data: np.ndarray, meta: str = "") -> mrd.Image:
    head = np.zeros((), mrd.IMAGE_HEADER)
    head["version"], head["image_type"], head["slice"] = 1, 1, 4
    return mrd.Image(head[()], data, meta)


META = '<?xml version="1.0"?><ismrmrdMeta><meta><name>ü</name><value>1</value></meta></ismrmrdMeta>'


@pytest.mark.parametrize("dimensions", [0, 2])
def test_acquisition_is_what_ismrmrd_reads_and_writes(dimensions: int) -> None:
    ours = acquisition(dimensions=dimensions)
    theirs = ismrmrd.Acquisition.from_bytes(to_bytes(ours)[2:])
    np.testing.assert_array_equal(theirs.data, ours.data)
    np.testing.assert_array_equal(theirs.traj.reshape(8, dimensions), ours.traj)
    assert theirs.scan_counter == 7

    frame = FrameReader(io.BytesIO(to_bytes(ours))).read()
    assert to_bytes(frame.message) == struct.pack("<H", 1008) + theirs.to_bytes()


@pytest.mark.parametrize("dtype", ["u2", "f4", "c8"])
def test_image_is_what_ismrmrd_reads_and_writes(dtype: str) -> None:
    pixels = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).astype(dtype)
    raw = to_bytes(image(pixels, META))
    theirs = ismrmrd.Image.from_bytes(raw[2:])
    np.testing.assert_array_equal(theirs.data, pixels)
    assert theirs.data.dtype == pixels.dtype
    assert theirs.slice == 4
    assert theirs.meta["ü"] == "1"
    assert b"\0" not in raw[2 + 198 + 8 : 2 + 198 + 8 + len(META.encode())]

    (frame,) = read_all(struct.pack("<H", 1022) + theirs.to_bytes() + to_bytes(mrd.Close()))[:1]
    np.testing.assert_array_equal(frame.message.data, pixels)
    assert "<name>ü</name>" in frame.message.meta


def test_waveform_is_what_ismrmrd_reads() -> None:
    frames = read_all(recorded_stream("gt_acq_noise/to_external"))
    waveform = next(frame.message for frame in frames if isinstance(frame.message, mrd.Waveform))
    theirs = ismrmrd.Waveform.from_bytes(to_bytes(waveform)[2:])
    assert waveform.data.shape == (5, 40)
    np.testing.assert_array_equal(theirs.data, waveform.data)


@pytest.mark.parametrize(
    ("data", "meta", "complaint"),
    [
        (np.zeros((1, 1, 4, 4), "i2"), "", "pixels are int16; images are sent as uint16, float32 or complex64"),
        (np.zeros((1, 1, 4, 4), "f8"), "", "pixels are float64"),
        (np.zeros((4, 4), "f4"), "", r"shape \(4, 4\); expected \(channel, z, y, x\)"),
        (np.zeros((1, 1, 4, 4), "f4"), "no XML", "the meta has no element ismrmrdMeta: 'no XML'"),
        (np.zeros((1, 1, 1, 70000), "f4"), "", "exceeds 65535"),
    ],
)
def test_images_that_receivers_choke_on_are_not_sent(data: np.ndarray, meta: str, complaint: str) -> None:
    with pytest.raises(ScanError, match=complaint):
        to_bytes(image(data, meta))


def test_acquisition_checks() -> None:
    check_acquisition(acquisition())
    wrong = acquisition()
    wrong.data = wrong.data[:2]
    with pytest.raises(ScanError, match=r"acquisition 7: samples have the shape \(2, 8\).*header says \(3, 8\)"):
        to_bytes(wrong)
    wrong = acquisition(dimensions=2)
    wrong.traj = wrong.traj[:, :1]
    with pytest.raises(ScanError, match=r"the trajectory has the shape \(8, 1\); its header says \(8, 2\)"):
        check_acquisition(wrong)
    wrong = acquisition()
    wrong.data[1, 5] = np.nan
    wrong.data[2, 5] = np.inf
    with pytest.raises(ScanError, match=r"2 samples are not finite, the first in coil 1 at sample 5"):
        check_acquisition(wrong)
    wrong = acquisition()
    wrong.head["discard_pre"] = 9
    with pytest.raises(ScanError, match="discard_pre 9 and discard_post 0 together exceed its 8 samples"):
        check_acquisition(wrong)


def test_control_messages_survive() -> None:
    sent = [
        mrd.ConfigName("dds"),
        mrd.ConfigText("<configuration/>"),
        mrd.Header("<ismrmrdHeader/>"),
        mrd.Text("DBG     ü"),
        mrd.ErrorText("two\nlines"),
        mrd.Query(5, "gadgetron::info"),
        mrd.Response(5, "yes"),
        mrd.Close(),
    ]
    assert [frame.message for frame in read_all(to_bytes(*sent))] == sent


def test_unknown_id_is_named() -> None:
    with pytest.raises(WireError, match="unknown message id 2000 after 1 messages; known are 1, 2, 3,"):
        read_all(to_bytes(mrd.Text("x")) + struct.pack("<H", 2000))


@pytest.mark.parametrize(
    ("stream", "complaint"),
    [
        (struct.pack("<HI", 3, 0xFFFFFFFF), "header: length is 4294967295; the limit is 16777216"),
        (struct.pack("<HQ", 8, 1 << 63), "error: length is 9223372036854775808; the limit is 16777216"),
        (struct.pack("<H", 1022) + bytes(198) + struct.pack("<Q", 1 << 40), "length of the meta is 1099511627776"),
        (struct.pack("<HQ", 6, 9), "query: the reserved field is 9; expected 0"),
        (struct.pack("<H", 1022) + bytes(206), "image: data_type is 0; expected one of"),
    ],
)
def test_absurd_values_are_refused(stream: bytes, complaint: str) -> None:
    with pytest.raises(WireError, match=complaint):
        read_all(stream)


def test_absurd_sizes_are_refused_before_they_are_allocated() -> None:
    head = np.zeros((), mrd.ACQUISITION_HEADER)
    head["active_channels"] = head["number_of_samples"] = 0xFFFF
    with pytest.raises(WireError, match="samples of 34358689800 bytes makes 34358690140 bytes; the limit"):
        read_all(struct.pack("<H", 1008) + head.tobytes())
    head["trajectory_dimensions"] = 999
    with pytest.raises(WireError, match="trajectory_dimensions is 999; the limit is 16"):
        read_all(struct.pack("<H", 1008) + head.tobytes())
    picture = np.zeros((), mrd.IMAGE_HEADER)
    picture["data_type"], picture["channels"], picture["matrix_size"] = 7, 64, 60000
    with pytest.raises(WireError, match="the limit of such a message is 4294967296"):
        read_all(struct.pack("<H", 1022) + picture.tobytes() + bytes(8))


def test_text_encodings() -> None:
    def header(raw: bytes) -> str:
        return read_all(struct.pack("<HI", 3, len(raw)) + raw + to_bytes(mrd.Close()))[0].message.xml

    latin = '<?xml version="1.0" encoding="ISO-8859-1"?><a>Müller</a>'
    assert header(latin.encode("latin-1")) == latin
    assert header(b"Dummy XML header\0") == "Dummy XML header"
    with pytest.raises(WireError, match=r"header: the text is not UTF-8 .byte 0xfc at 4"):
        header(b"<a>M\xfcller</a>")


def test_every_truncation_is_told() -> None:
    stream = to_bytes(mrd.Header("<a/>"), acquisition(), image(np.zeros((1, 1, 2, 2), "f4"), META))
    ends = {2 + 4 + 4, 2 + 4 + 4 + 2 + 340 + 3 * 8 * 8, len(stream)}
    for size in range(len(stream)):
        expected = "closed the connection without CLOSE" if size in ends | {0} else "the stream was cut short: it ended"
        with pytest.raises(PeerGone, match=expected):
            read_all(stream[:size])


def test_silent_peer_within_a_frame() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(to_bytes(acquisition())[:100])
        start = time.monotonic()
        with pytest.raises(PeerSilent, match=r"sent nothing for 0.2 s while acquisition header was expected"):
            FrameReader(ours, idle_s=0.2).read()
        assert 0.15 < time.monotonic() - start < 2


def test_slow_peer_in_small_pieces_is_read() -> None:
    ours, theirs = socket.socketpair()
    stream = to_bytes(acquisition(), image(np.ones((1, 1, 9, 9), "f4"), META), mrd.Close())
    with ours, theirs:
        reader = FrameReader(ours, idle_s=5)

        def dribble() -> None:
            for start in range(0, len(stream), 13):
                theirs.sendall(stream[start : start + 13])

        thread = threading.Thread(target=dribble)
        thread.start()
        assert to_bytes(*reader) == stream
        thread.join()


def test_reset_is_peer_gone() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    theirs = socket.create_connection(listener.getsockname())
    ours, _ = listener.accept()
    with listener, ours:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        with pytest.raises(PeerGone, match="the connection broke while waiting for a message"):
            FrameReader(ours).read()


def test_buffered_readers_are_refused() -> None:
    with pytest.raises(ValueError, match="pass its `raw` file"):
        FrameReader(io.BufferedReader(io.BytesIO(b"")))  # type: ignore[type-var]


def test_writer_gives_up_on_a_peer_that_takes_nothing_and_stays_broken() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        writer = FrameWriter(ours, stall_s=0.2)
        with pytest.raises(PeerSilent, match=r"taken nothing for 0.2 s, \d+ bytes are left"):
            writer.send(image(np.zeros((1, 1, 4000, 1000), "f4")))
        with pytest.raises(PeerSilent):
            writer.send(mrd.Close())


def test_large_messages_go_through_a_socket_whole() -> None:
    ours, theirs = socket.socketpair()
    picture = image(np.random.default_rng(0).random((1, 1, 2000, 1000)).astype("f4"), META)
    with ours, theirs:
        thread = threading.Thread(target=lambda: FrameWriter(ours, stall_s=5).send(picture, mrd.Close()))
        thread.start()
        frames = list(FrameReader(theirs, idle_s=5))
        thread.join()
    np.testing.assert_array_equal(frames[0].message.data, picture.data)
    assert [frame.id for frame in frames] == [MessageId.IMAGE, MessageId.CLOSE]
