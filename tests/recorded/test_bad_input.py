"""Bad input, over a socket, to the real reconstruction: one clear message in the peer's dialect, the images that can be
made, no hang, and a next scan that works."""

from __future__ import annotations

import copy
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import ismrmrd
import numpy as np
import pytest
import torch
from gadgetron.external import writers
from peers import (
    CLOSE,
    CONFIG_TEXT,
    HEADER,
    PeerScan,
    Replies,
    Wire,
    by_connect,
    configuration,
    open_fire,
    open_gadgetron,
    read_replies,
    read_scan,
    scan_file,
)
from scanprior.gadgets.engine import Engine
from scanprior.gadgets.link import LinkSettings
from scanprior.models.recipe import recipe_names
from scanprior.pipelines.server import Server, ServerSettings

LINK = LinkSettings(idle_s=10, stall_s=10, drain_s=10, quiet_s=0.2, abort_s=10)
RECIPE = {"recipe": "sense", "steps": 2}


@contextmanager
def running(link: LinkSettings = LINK) -> Iterator[Server]:
    """A server in this process; when it stops, no thread of a scan is left."""
    before = set(threading.enumerate())
    engine = Engine("zero-filled", device="cpu", threads=1)
    server = Server(engine.open_session, ServerSettings(port=0, grace_s=10, link=link))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(20)
        engine.close()
        assert not thread.is_alive()
        names = ("scan", "reconstruct")
        left = [left.name for left in threading.enumerate() if left not in before]
        assert [name for name in left if name.startswith(names)] == []


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> PeerScan:
    """2 slices, 2 repetitions, 40 lines each, 4 coils."""
    return read_scan(scan_file("small", tmp_path_factory.mktemp("scan")))


@pytest.fixture
def server(shared: Server, scan: PeerScan) -> Iterator[Server]:
    """After each test: the next scan works, and the threads of those before are gone."""
    yield shared
    following = by_connect(shared.port, scan, **RECIPE)
    assert not following.errors
    assert len(following.images) == 4
    deadline = time.monotonic() + 5
    while scans := [thread.name for thread in threading.enumerate() if thread.name.startswith("scan")]:
        assert time.monotonic() < deadline, scans
        time.sleep(0.01)


class Peer:
    """A client that can do wrong at any point."""

    def __init__(self, server: Server, dialect: str = "Gadgetron") -> None:
        self.dialect = dialect
        self.wire = Wire(socket.create_connection(("127.0.0.1", server.port), timeout=20))
        self.replies: Replies | None = None
        self.came = threading.Semaphore(0)
        self.thread = threading.Thread(target=self._listen)
        self.thread.start()

    def _listen(self) -> None:
        self.replies = read_replies(self.wire, lambda kind: self.came.release() if kind == "image" else None)

    def open(self, header: bytes, **parameters: object) -> None:
        if self.dialect == "FIRE":
            given = dict(parameters)
            open_fire(self.wire, header, str(given.pop("recipe")), **given)
        else:
            open_gadgetron(self.wire, header, **parameters)

    def send(self, *acquisitions: ismrmrd.Acquisition) -> None:
        for acquisition in acquisitions:
            writers.write_acquisition(self.wire, acquisition)

    def await_images(self, count: int) -> None:
        for _ in range(count):
            assert self.came.acquire(timeout=20)

    def finish(self, close: bool = True) -> Replies:
        """Ends the stream, with CLOSE or without, and waits for the other side's CLOSE."""
        if close:
            self.wire.id(CLOSE)
        else:
            self.wire.connection.shutdown(socket.SHUT_WR)
        return self.result()

    def result(self) -> Replies:
        self.thread.join(20)
        assert not self.thread.is_alive(), "the server is silent"
        self.wire.close()
        assert self.replies is not None
        assert self.replies.closed, "no CLOSE came"
        return self.replies

    def told(self, replies: Replies) -> str:
        """The one message to the operator, which has come in the dialect's way."""
        if self.dialect == "FIRE":
            assert replies.errors == []
            (text,) = replies.texts
            assert text.startswith("ERR     ")
            return text[8:].rstrip("\0")
        assert replies.texts == []
        (text,) = replies.errors
        return text


dialects = pytest.mark.parametrize("dialect", ["Gadgetron", "FIRE"])


def ends(scan: PeerScan) -> list[int]:
    """Where slices end."""
    return [n for n, line in enumerate(scan.acquisitions) if line.is_flag_set(ismrmrd.ACQ_LAST_IN_SLICE)]


def history(image: ismrmrd.Image) -> list[str]:
    return list(image.meta["ImageProcessingHistory"])


# -- the stream itself ---------------------------------------------------------------------------------------------


@dialects
def test_truncated_frame_after_an_image(server: Server, scan: PeerScan, dialect: str) -> None:
    peer = Peer(server, dialect)
    peer.open(scan.header, **RECIPE)
    peer.send(*scan.acquisitions[: ends(scan)[0] + 1])
    peer.await_images(1)
    pieces: list[bytes] = []
    scan.acquisitions[-1].serialize_into(lambda piece: pieces.append(bytes(piece)))
    peer.wire.id(1008)
    peer.wire.write(b"".join(pieces)[:1000])
    replies = peer.finish(close=False)
    assert peer.told(replies) == ("the stream was cut short: it ended after 660 of 4096 bytes of acquisition samples")
    assert len(replies.images) == 1


@dialects
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (struct.pack("<H", 2000), "unknown message id 2000 after 42 messages; known are 1, 2, 3,"),
        (struct.pack("<HI", 5, 0xFFFFFFF0), "text: length is 4294967280; the limit is 16777216"),
        (
            struct.pack("<H", 1008) + bytes(34) + struct.pack("<H", 65535) + bytes(2) + struct.pack("<H", 65535),
            "acquisition: samples of 34358689800 bytes makes 34358690140 bytes; the limit of such a message is",
        ),
    ],
    ids=["unknown id", "absurd text", "absurd acquisition"],
)
def test_what_cannot_be_framed(server: Server, scan: PeerScan, dialect: str, damage: bytes, message: str) -> None:
    peer = Peer(server, dialect)
    peer.open(scan.header, recipe="sense")
    peer.send(*scan.acquisitions[:40])
    peer.wire.write(damage)
    peer.send(*scan.acquisitions[40:])  # drained
    replies = peer.finish()
    assert peer.told(replies).startswith(message)
    assert not replies.images, "no slice was complete"


@dialects
@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"This is no XML", "the header is not XML that can be read: syntax error: line 1, column 0"),
        (b"<ismrmrdHeader><encoding>", "the header is not XML that can be read: no element found"),
        (b"<ismrmrdHeader/>", "the MRD header has no <encoding>"),
        (b"<siemens/>", "the header's root element is <siemens>; expected <ismrmrdHeader>"),
    ],
)
def test_bad_headers(server: Server, scan: PeerScan, dialect: str, header: bytes, message: str) -> None:
    peer = Peer(server, dialect)
    peer.open(header, **RECIPE)
    peer.send(*scan.acquisitions)
    replies = peer.finish()
    assert peer.told(replies).startswith(message)
    assert not replies.images


def test_header_missing(server: Server, scan: PeerScan) -> None:
    peer = Peer(server)
    peer.wire.id(CONFIG_TEXT)
    writers.write_byte_string(peer.wire, configuration(**RECIPE))
    peer.send(*scan.acquisitions)
    replies = peer.finish()
    assert peer.told(replies) == (
        "acquisition (id 1008) came before the header; expected a configuration (id 1 or 2) and a header (id 3) first"
    )


def test_a_second_header_among_the_data(server: Server, scan: PeerScan) -> None:
    peer = Peer(server)
    peer.open(scan.header, **RECIPE)
    peer.send(*scan.acquisitions[:20])
    peer.wire.id(HEADER)
    writers.write_byte_string(peer.wire, scan.header)
    peer.send(*scan.acquisitions[20:])
    assert peer.told(peer.finish()) == "a Header (id 3) came among the data; expected it before them"


# -- single readouts -----------------------------------------------------------------------------------------------


def other_channels(line: ismrmrd.Acquisition) -> ismrmrd.Acquisition:
    bad = ismrmrd.Acquisition.from_array(np.ones((3, 128), np.complex64))
    head = line.getHead()
    head.active_channels = 3
    bad.setHead(head)
    bad.resize(128, 3)
    return bad


def other_samples(line: ismrmrd.Acquisition) -> ismrmrd.Acquisition:
    bad = copy.deepcopy(line)
    bad.resize(100, 4)
    bad.center_sample = 90
    return bad


def outside(line: ismrmrd.Acquisition) -> ismrmrd.Acquisition:
    bad = copy.deepcopy(line)
    bad.idx.kspace_encode_step_1 = 999
    return bad


def not_a_number(line: ismrmrd.Acquisition) -> ismrmrd.Acquisition:
    bad = copy.deepcopy(line)
    bad.data[1, 5] = np.nan
    return bad


@dialects
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (other_channels, "has 3 channels, expected 4"),
        (other_samples, "a readout of 100 samples with its centre at sample 90 does not fit into a matrix of 128"),
        (outside, "has kspace_encoding_step_1 999, the header allows 0 to 63"),
        (not_a_number, "has samples that are not finite (NaN or infinite)"),
    ],
)
@pytest.mark.parametrize("last", [False, True], ids=["within", "last of its slice"])
def test_a_bad_readout_is_left_out_and_told(
    server: Server,
    scan: PeerScan,
    dialect: str,
    damage: Callable[[ismrmrd.Acquisition], ismrmrd.Acquisition],
    message: str,
    last: bool,
) -> None:
    """The image that misses it is made, even if its end came with that readout, and says so; the others do not."""
    which = ends(scan)[1] if last else 7
    line = scan.acquisitions[which]
    peer = Peer(server, dialect)
    peer.open(scan.header, **RECIPE)
    peer.send(*scan.acquisitions[:which], damage(line), *scan.acquisitions[which + 1 : ends(scan)[1] + 1])
    peer.await_images(2)  # both slices of the first repetition, while the input is open
    peer.send(*scan.acquisitions[ends(scan)[1] + 1 :])
    replies = peer.finish()
    told = peer.told(replies)
    assert f"acquisition {line.scan_counter} (line" in told
    assert message in told
    assert told.endswith("1 readouts were left out, as the history of their images says")
    assert len(replies.images) == 4
    for image in replies.images:
        misses = (image.slice, image.repetition) == (line.idx.slice, line.idx.repetition)
        assert ("refused readouts 1" in history(image)) == misses


def test_a_scan_of_bad_readouts_alone_is_told_in_short(server: Server, scan: PeerScan) -> None:
    peer = Peer(server)
    peer.open(scan.header, **RECIPE)
    peer.send(*map(not_a_number, scan.acquisitions))
    replies = peer.finish()
    told = peer.told(replies)
    assert not replies.images
    assert told.count("not finite") == 5
    assert "and 155 more; 160 readouts were left out" in told


# -- slices --------------------------------------------------------------------------------------------------------


@dialects
def test_no_acs_names_the_remedies(server: Server, scan: PeerScan, dialect: str) -> None:
    bare = []
    for acquisition in map(copy.deepcopy, scan.acquisitions):
        only = acquisition.is_flag_set(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
        acquisition.clearFlag(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
        acquisition.clearFlag(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)
        if not only:
            bare.append(acquisition)
    peer = Peer(server, dialect)
    peer.open(scan.header, **RECIPE)
    peer.send(*bare)
    replies = peer.finish()
    assert not replies.images
    told = peer.told(replies)
    assert told == (
        "no ACS lines: coil maps cannot be estimated; acquire ACS lines or a separate reference scan (acquisition "
        "flags 20, 21), or use a method without maps (zero-filled with root-sum-of-squares) (4 images: slice 0, "
        "repetition 0; slice 1, repetition 0; slice 0, repetition 1; slice 1, repetition 1)"
    )
    other = Peer(server, dialect)
    other.open(scan.header, recipe="zero-filled")
    other.send(*bare)
    assert len(other.finish().images) == 4


@dialects
def test_an_all_zero_slice_does_not_take_the_others_with_it(server: Server, scan: PeerScan, dialect: str) -> None:
    zeroed = [copy.deepcopy(acquisition) for acquisition in scan.acquisitions]
    for acquisition in zeroed:
        if (acquisition.idx.slice, acquisition.idx.repetition) == (0, 0):
            acquisition.data[:] = 0
    peer = Peer(server, dialect)
    peer.open(scan.header, **RECIPE)
    peer.send(*zeroed)
    replies = peer.finish()
    assert [(image.slice, image.repetition) for image in replies.images] == [(1, 0), (0, 1), (1, 1)]
    assert peer.told(replies) == "slice 0, repetition 0 has only zeros in its 40 lines"


# -- what is asked for ---------------------------------------------------------------------------------------------


@dialects
@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"recipe": "sense", "steps": "0"}, "settings.iterations: Input should be greater than 0, found 0"),
        ({"recipe": "sense", "steps": "many"}, "parameter 'steps': expected a whole number, found 'many'"),
        ({"recipe": "sense", "samples": "2"}, "parameter 'samples': the method 'sense' of this recipe has no such"),
        ({"recipe": "sense", "output": "phase"}, "image: Input should be 'magnitude' or 'complex', found 'phase'"),
        ({"recipe": "sense", "std": "maybe"}, "parameter 'std': expected true or false, found 'maybe'"),
        ({"recipe": "sense", "whitened": "2"}, "parameter 'whitened': expected true or false, found '2'"),
        ({"recipe": "sense", "device": "tpu"}, "device: expected auto, cpu, cuda or cuda:<number>"),
    ],
)
def test_wrong_parameters(
    server: Server, scan: PeerScan, dialect: str, parameters: dict[str, str], message: str
) -> None:
    peer = Peer(server, dialect)
    peer.open(scan.header, **parameters)
    peer.send(*scan.acquisitions)
    replies = peer.finish()
    assert message in peer.told(replies)
    assert not replies.images


@pytest.mark.parametrize("name", ["grappa", "../../secret", "/etc/passwd", "sense.yaml"])
def test_unknown_recipes(server: Server, scan: PeerScan, name: str) -> None:
    peer = Peer(server)
    peer.open(scan.header, recipe=name)
    peer.send(*scan.acquisitions)
    assert peer.told(peer.finish()) == f"recipe {name!r} is not known; there are: {', '.join(recipe_names())}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@dialects
def test_cuda_where_there_is_none(server: Server, scan: PeerScan, dialect: str) -> None:
    peer = Peer(server, dialect)
    peer.open(scan.header, recipe="sense", device="cuda")
    peer.send(*scan.acquisitions)
    assert "asks for device 'cuda', and no CUDA device is to be had here" in peer.told(peer.finish())


# -- peers that vanish, fall silent, or come together --------------------------------------------------------------


def test_peer_gone_in_mid_scan(server: Server, scan: PeerScan) -> None:
    """The fixture proves the rest: the next scan works, and no thread is left."""
    peer = Peer(server)
    peer.open(scan.header, recipe="dds", steps=500, samples=4)
    peer.send(*scan.acquisitions[:120])
    time.sleep(0.3)  # a reconstruction of half a minute has begun
    peer.wire.connection.shutdown(socket.SHUT_RDWR)
    peer.thread.join(5)
    assert not peer.thread.is_alive()
    peer.wire.close()


def test_silent_peer(scan: PeerScan) -> None:
    with running(LinkSettings(idle_s=0.5, stall_s=5, drain_s=5, quiet_s=0.1, abort_s=10)) as server:
        peer = Peer(server)
        peer.open(scan.header, **RECIPE)
        peer.send(*scan.acquisitions[: ends(scan)[0] + 1])
        replies = peer.result()
        assert peer.told(replies) == "the peer sent nothing for 0.5 s while a message was expected"
        assert len(replies.images) == 1
        assert len(by_connect(server.port, scan, **RECIPE).images) == 4


def test_two_scans_at_once_get_their_own_images(server: Server, scan: PeerScan, tmp_path: Path) -> None:
    other = read_scan(scan_file("phantom16ch_grappa", tmp_path))
    alone = by_connect(server.port, scan, **RECIPE).bits, by_connect(server.port, other, "zero-filled").bits
    with ThreadPoolExecutor(4) as pool:
        jobs = [
            pool.submit(by_connect, server.port, *what)
            for what in ((scan, "sense"), (other, "zero-filled"), (scan, "sense"), (other, "zero-filled"))
        ]
        together = [job.result() for job in jobs]
    steps = by_connect(server.port, scan, "sense").bits
    assert [replies.bits for replies in together] == [steps, alone[1], steps, alone[1]]
    assert len(alone[0]) == len(steps) == 4
    assert not any(replies.errors for replies in together)


def test_an_aborted_scan_does_not_hold_up_the_next(server: Server, scan: PeerScan) -> None:
    """Two scans' work waits at one worker; that of the one that is gone is dropped at once."""
    gone = Peer(server)
    gone.open(scan.header, recipe="dds", steps=1000, samples=16)
    gone.send(*scan.acquisitions)
    time.sleep(0.3)
    gone.wire.connection.shutdown(socket.SHUT_RDWR)
    gone.thread.join(5)
    gone.wire.close()
    began = time.monotonic()
    assert len(by_connect(server.port, scan, **RECIPE).images) == 4
    assert time.monotonic() - began < 10
