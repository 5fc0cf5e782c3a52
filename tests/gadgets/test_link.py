from __future__ import annotations

import io
import logging
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from scanprior.gadgets import mrd
from scanprior.gadgets.dialect import FIRE, PIPE, Opening
from scanprior.gadgets.errors import ScanError
from scanprior.gadgets.frames import Frame, FrameReader, to_bytes
from scanprior.gadgets.link import Link, LinkSettings, ScanReport, serve_scan
from session_double import SessionDouble, blank_image, double_of
from support import recorded_stream
from wire_helpers import images, kinds, with_properties

QUICK = LinkSettings(idle_s=5, stall_s=5, drain_s=5, quiet_s=0.2, abort_s=5)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [thread for thread in threading.enumerate() if thread not in before]
    for thread in left:
        thread.join(2)
    assert [thread for thread in left if thread.is_alive()] == []


class Peer:
    """The other side of a link, over a socket pair."""

    def __init__(self, factory: Any, settings: LinkSettings = QUICK, opening: Opening | None = None) -> None:
        self.ours, theirs = socket.socketpair()
        self.ours.settimeout(10)
        self.link = Link(theirs, theirs, factory, settings, opening)
        self.report: ScanReport | None = None

        def run() -> None:
            with theirs:
                self.report = self.link.run()
                theirs.shutdown(socket.SHUT_WR)

        self.thread = threading.Thread(target=run)
        self.thread.start()

    def rest(self) -> list[Frame]:
        """All frames until the link's end, and nothing behind CLOSE."""
        chunks = []
        while chunk := self.ours.recv(1 << 20):
            chunks.append(chunk)
        self.thread.join(10)
        assert not self.thread.is_alive()
        raw = b"".join(chunks)
        reader = FrameReader(io.BytesIO(raw))
        frames = list(reader)
        assert reader.source.received == len(raw)
        assert reader.source.at_end("nothing")
        return frames


@contextmanager
def peer(factory: Any, settings: LinkSettings = QUICK, opening: Opening | None = None) -> Iterator[Peer]:
    other = Peer(factory, settings, opening)
    try:
        yield other
    finally:
        other.ours.close()
        other.thread.join(10)
        assert not other.thread.is_alive()


def run(stream: bytes, factory: Any, settings: LinkSettings = QUICK) -> tuple[list[Any], ScanReport]:
    """The messages that come back for `stream`, all of it sent at once."""
    with peer(factory, settings) as other:
        sender = threading.Thread(target=other.ours.sendall, args=(stream,))
        sender.start()
        messages = [frame.message for frame in other.rest()]
        sender.join(5)
        assert not sender.is_alive(), "the input was not drained"
        assert other.report is not None
        return messages, other.report


@pytest.mark.parametrize(
    ("case", "dialect", "parameters"),
    [
        ("gt_acq_noise/to_external", "Gadgetron", {"recipe": "dds", "samples": "4", "device": "cpu"}),
        ("gt_empty_scan/to_external", "Gadgetron", {"recipe": "dds"}),
        ("gt_client/to_gadgetron", "Gadgetron", {"config": "default.xml"}),
        ("fire_config_name/to_external", "FIRE", {"config": "wirefix"}),
        ("fire_config_text/to_external", "FIRE", {"recipe": "dds", "samples": "4"}),
        ("fire_images_in/to_external", "FIRE", {"config": "wirefix"}),
        ("stdio/hdf5_to_stream_small", "pipe", {}),
    ],
)
def test_dialects_are_recognised_in_real_streams(case: str, dialect: str, parameters: dict[str, Any]) -> None:
    opening = Opening()
    assert opening.read(FrameReader(io.BytesIO(recorded_stream(case))))
    assert (opening.dialect.name, opening.parameters) == (dialect, parameters)
    assert (opening.header_xml is None) == (case == "fire_images_in/to_external")


def test_fire_json_of_a_real_client() -> None:
    opening = Opening()
    assert opening.read(FrameReader(io.BytesIO(recorded_stream("fire_config_json/to_external"))))
    assert opening.dialect is FIRE
    assert opening.parameters["recipe"] == "dds"
    assert len(opening.parameters) > 1, "the JSON holds parameters"


def opening_of(*messages: Any) -> Opening:
    opening = Opening()
    opening.read(FrameReader(io.BytesIO(to_bytes(*messages, mrd.Close()))))
    return opening


HEADER = mrd.Header('<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"/>')
FIRE_HEADER = mrd.Header(HEADER.xml + "\0")


@pytest.mark.parametrize(
    ("json", "recipe"),
    [
        ('{"parameters": {"config": "sense"}}', "sense"),
        ('{"parameters": {"config": "sense", "customconfig": "tv"}}', "tv"),
        ('{"parameters": {"config": "sense", "customconfig": "", "recipe": "dds", "samples": 4}}', "dds"),
        ('{"version": "1.0"}', "openrecon"),
    ],
)
def test_fire_recipe_comes_from_the_most_explicit_place(json: str, recipe: str) -> None:
    opening = opening_of(mrd.ConfigName("openrecon"), FIRE_HEADER, mrd.Text(json + "\0"))
    # a configuration's name is a wish: it stays apart from the recipe that is asked for by name
    assert opening.parameters.get("recipe", opening.parameters["config"]) == recipe
    assert "customconfig" not in opening.parameters
    assert opening.parameters.get("samples", 4) == 4


@pytest.mark.parametrize("config", ['<?xml version="1.0"?>\n', "", "<configuration />"])
def test_empty_configurations_of_gadgetron(config: str) -> None:
    assert opening_of(mrd.ConfigText(config), HEADER).parameters == {}


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        (
            [mrd.ConfigText("<configuration>"), HEADER],
            "the configuration is not XML that can be read: no element found",
        ),
        ([mrd.ConfigText("<x/>"), HEADER], "root element is <x>; expected <configuration>"),
        ([mrd.ConfigText('<configuration><property name="a"/></configuration>')], "lacks its name or value"),
        (
            [
                mrd.ConfigText(
                    '<configuration><property name="a" value=""/><property name="a" value=""/></configuration>'
                )
            ],
            "sets the property 'a' twice",
        ),
        ([mrd.Header("no XML")], "the header is not XML that can be read: .* it begins with 'no XML'"),
        ([mrd.Header("<siemens/>")], "the header's root element is <siemens>; expected <ismrmrdHeader>"),
        (
            [mrd.Header('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>')],
            "the header is not XML that can be read: EntitiesForb",
        ),
        (
            [mrd.ConfigName("a"), FIRE_HEADER, mrd.Text('{"parameters": 3}\0')],
            "`parameters` is a int; expected an object",
        ),
        ([mrd.ConfigName("a"), FIRE_HEADER, mrd.Text("{,}\0")], "the parameters are not JSON"),
        (
            [mrd.ConfigName("a"), FIRE_HEADER, mrd.Text('{"a":' * 100_000 + "\0")],
            "the parameters are not JSON: maximum rec",
        ),
        ([mrd.ConfigName("a"), blank_image(1)], r"image \(id 1022\) came before the header"),
    ],
)
def test_bad_openings(messages: list[Any], complaint: str) -> None:
    with pytest.raises(ScanError, match=complaint):
        opening_of(*messages)


@pytest.mark.parametrize("case", ["gt_acq_passthrough", "gt_images_midchain"])
def test_what_the_session_does_not_take_passes_unchanged(case: str) -> None:
    class Nothing(SessionDouble):
        accepts = ()

    out = io.BytesIO()
    report = serve_scan(io.BytesIO(recorded_stream(f"{case}/to_external")), out, Nothing, QUICK)
    assert report.failure is None
    assert out.getvalue() == recorded_stream(f"{case}/from_external")


def test_images_without_a_header_pass_through_a_fire_server() -> None:
    factory, opened = double_of()
    stream = recorded_stream("fire_images_in/to_external")
    messages, report = run(stream, factory)
    assert kinds(messages) == ["Image"] * 4 + ["Close"]
    assert to_bytes(*messages) == stream[-len(to_bytes(*messages)) :]
    assert not opened
    assert report.failure is None


@pytest.mark.parametrize("case", ["gt_acq_noise", "fire_config_name", "fire_config_text", "fire_config_json"])
def test_a_real_scan_from_end_to_end(case: str) -> None:
    factory, opened = double_of()
    messages, report = run(recorded_stream(f"{case}/to_external"), factory)
    assert report.failure is None
    assert images(messages) == [1, 2, 3, 4]
    assert kinds(messages)[-1] == "Close"
    assert len(opened[0].fed) == (164 if case == "gt_acq_noise" else 160)
    assert report.images == 4
    waveforms = [message for message in messages if isinstance(message, mrd.Waveform)]
    # as recorded from a real FIRE server: its client gets images alone
    assert len(waveforms) == (8 if case == "gt_acq_noise" else 0)


def test_a_pipe_gets_the_header_back_first() -> None:
    out = io.BytesIO()
    factory, _ = double_of()
    serve_scan(io.BytesIO(recorded_stream("stdio/hdf5_to_stream_small")), out, factory, QUICK)
    theirs = recorded_stream("stdio/gadgetron_from_stream_default")
    (length,) = struct.unpack_from("<I", theirs, 2)
    assert out.getvalue()[: 6 + length] == theirs[: 6 + length]
    assert images([frame.message for frame in FrameReader(io.BytesIO(out.getvalue()))]) == [1, 2, 3, 4]


def test_an_empty_scan_is_answered_as_recorded() -> None:
    factory, opened = double_of()
    messages, report = run(recorded_stream("gt_empty_scan/to_external"), factory)
    assert to_bytes(*messages) == recorded_stream("gt_empty_scan/from_external")
    assert report.failure is None
    assert len(opened) == 1


@pytest.mark.parametrize("stream", [mrd.Close(), mrd.ConfigName("openrecon")])
def test_dependency_query_is_answered_with_close(stream: Any) -> None:
    factory, opened = double_of()
    messages, report = run(to_bytes(stream) + to_bytes(mrd.Close()) * isinstance(stream, mrd.ConfigName), factory)
    assert messages == [mrd.Close()]
    assert not opened
    assert report.failure is None


def test_a_gadgetron_query_is_answered() -> None:
    messages, _ = run(to_bytes(mrd.Query(7, "gadgetron::info"), mrd.Close()), double_of()[0])
    assert messages == [mrd.Response(7, "unknown query: gadgetron::info"), mrd.Close()]


@pytest.mark.parametrize(
    ("properties", "kept", "complaint"),
    [
        ({"fail_in": "open"}, [], "the trajectory is radial; only Cartesian scans can be reconstructed"),
        ({"fail_at": "1"}, [], "acquisition 1 has 3 coils; the scan has 4"),
        ({"fail_at": "90"}, [1, 2], "acquisition 90 has 3 coils; the scan has 4"),
        ({"crash_at": "90"}, [1, 2], "Reconstruction failed: IndexError: list index out of range"),
        ({"fail_in": "worker"}, [1], "slice 2 did not converge"),
        ({"fail_in": "close"}, [1, 2, 3, 4], "the last slice has no calibration lines"),
    ],
)
def test_failures_reach_gadgetrons_operator_once_behind_the_images(
    properties: dict[str, str], kept: list[float], complaint: str
) -> None:
    factory, opened = double_of()
    with peer(factory) as other:
        other.ours.sendall(with_properties("gt_acq_noise", **properties))
        messages = [frame.message for frame in other.rest()]
    assert images(messages) == kept
    assert [message for message in messages if not isinstance(message, mrd.Image | mrd.Waveform)] == [
        mrd.ErrorText(complaint),
        mrd.Close(),
    ]
    assert other.report is not None
    assert other.report.failure == complaint
    if opened:
        assert opened[0].aborted == complaint


def test_gadgetron_is_told_some_time_after_close_and_in_one_write() -> None:
    factory, _ = double_of(fail_in="open")
    with peer(factory) as other:
        stream = recorded_stream("gt_acq_noise/to_external")
        other.ours.sendall(stream[:-2])
        time.sleep(0.2)
        other.ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.ours.recv(1)  # nothing while input is open: Gadgetron's server would crash
        other.ours.settimeout(5)
        other.ours.sendall(stream[-2:])
        start = time.monotonic()
        first = other.ours.recv(1 << 16)
        assert time.monotonic() - start > 0.045
        assert first[:2] == struct.pack("<H", 8)
        assert first[-2:] == struct.pack("<H", 4)
        assert other.ours.recv(1) == b""


def test_fire_is_told_at_once_and_only_once() -> None:
    factory, _ = double_of(fail_at=90)
    with peer(factory) as other:
        stream = recorded_stream("fire_config_name/to_external")
        other.ours.sendall(stream[:-2])
        reader = FrameReader(other.ours, idle_s=5)
        early = []
        while not (early and isinstance(early[-1], mrd.Text)):
            early.append(reader.read().message)
        assert early[-1] == mrd.Text("ERR     acquisition 90 has 3 coils; the scan has 4")
        other.ours.sendall(stream[-2:])
        assert reader.read().message == mrd.Close()


def test_fire_texts_are_laid_out_as_a_real_server_has_them() -> None:
    theirs = recorded_stream("fire_config_json/from_external")
    (length,) = struct.unpack_from("<I", theirs, 2)
    assert to_bytes(FIRE.note("info", "wire fixture: input complete")) == theirs[: 6 + length]


def test_notes_go_to_fires_console_and_to_gadgetrons_log(caplog: pytest.LogCaptureFixture) -> None:
    factory, _ = double_of(tell="noise is estimated")
    messages, _ = run(recorded_stream("fire_config_name/to_external"), factory)
    assert mrd.Text("WRN     noise is estimated") in messages
    with caplog.at_level(logging.WARNING):
        messages, _ = run(recorded_stream("gt_acq_noise/to_external"), factory)
    assert not any(isinstance(message, mrd.Text) for message in messages)
    assert "noise is estimated" in caplog.text


def test_a_failing_pipe_ends_in_order_and_reports() -> None:
    out = io.BytesIO()
    factory, _ = double_of(fail_in="close")
    report = serve_scan(io.BytesIO(recorded_stream("stdio/hdf5_to_stream_small")), out, factory, QUICK)
    assert report.failure == "the last slice has no calibration lines"
    messages = [frame.message for frame in FrameReader(io.BytesIO(out.getvalue()))]
    assert images(messages) == [1, 2, 3, 4]
    assert not any(isinstance(message, mrd.ErrorText | mrd.Text) for message in messages)


def test_peer_gone_in_mid_scan() -> None:
    factory, opened = double_of(hold=0.5)
    with peer(factory) as other:
        other.ours.sendall(recorded_stream("fire_config_name/to_external")[:400_000])
        other.ours.close()
        other.thread.join(5)
    assert other.report is not None
    assert other.report.failure is not None
    assert "the stream was cut short: it ended after" in other.report.failure
    assert opened[0].aborted == other.report.failure


def test_a_peer_that_only_stops_sending_is_told() -> None:
    factory, _ = double_of()
    with peer(factory) as other:
        stream = recorded_stream("gt_acq_noise/to_external")
        other.ours.sendall(stream[:-2])
        other.ours.shutdown(socket.SHUT_WR)
        messages = [frame.message for frame in other.rest()]
    assert messages[-2:] == [
        mrd.ErrorText("the peer closed the connection without CLOSE after 174 messages"),
        mrd.Close(),
    ]


def test_silent_peer() -> None:
    settings = LinkSettings(idle_s=0.3, stall_s=5, drain_s=5, quiet_s=0.1, abort_s=5)
    factory, _ = double_of()
    with peer(factory, settings) as other:
        other.ours.sendall(recorded_stream("fire_config_name/to_external")[:200_000])
        messages = [frame.message for frame in other.rest()]
    assert kinds(messages)[-2:] == ["Text", "Close"]
    assert messages[-2].text.startswith("ERR     the peer sent nothing for 0.3 s while acquisition")


def test_peer_that_says_nothing_at_all_from_the_start() -> None:
    settings = LinkSettings(idle_s=0.2, stall_s=5, quiet_s=0.1)
    with peer(double_of()[0], settings) as other:
        messages = [frame.message for frame in other.rest()]
    assert messages == [mrd.ErrorText("the peer sent nothing for 0.2 s while a message was expected"), mrd.Close()]


def test_a_connection_without_a_byte_is_no_failure() -> None:
    with peer(double_of()[0]) as other:
        other.ours.shutdown(socket.SHUT_WR)
        assert other.ours.recv(1) == b""
        other.thread.join(5)
    assert other.report is not None
    assert other.report.failure is None


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (struct.pack("<H", 2000), "unknown message id 2000 after 2 messages; known are"),
        (struct.pack("<HI", 5, 0xF0000000), "text: length is 4026531840; the limit is 16777216"),
    ],
)
def test_corrupt_input_is_drained_and_told(damage: bytes, complaint: str) -> None:
    stream = recorded_stream("gt_acq_noise/to_external")
    opening = 6 + struct.unpack_from("<I", stream, 2)[0]
    opening += 6 + struct.unpack_from("<I", stream, opening + 2)[0]
    messages, _ = run(stream[:opening] + damage + stream[opening:], double_of()[0])
    assert kinds(messages) == ["ErrorText", "Close"]
    assert messages[0].text.startswith(complaint)


def test_acquisitions_without_a_header_are_refused() -> None:
    stream = recorded_stream("fire_config_name/to_external")
    body = stream[1026 + 6 + struct.unpack_from("<I", stream, 1028)[0] :]
    messages, _ = run(to_bytes(mrd.ConfigName("dds"), mrd.Header("Dummy XML header\0")) + body, double_of()[0])
    assert kinds(messages) == ["Text", "Close"]
    assert messages[0].text.startswith("ERR     acquisition (id 1008) came without an MRD header")


def test_a_second_header_is_refused() -> None:
    messages, _ = run(to_bytes(mrd.ConfigText(""), HEADER, HEADER, mrd.Close()), double_of()[0])
    assert messages == [
        mrd.ErrorText("a Header (id 3) came among the data; expected it before them"),
        mrd.Close(),
    ]


def test_intake_waits_at_its_budget_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    settings = LinkSettings(idle_s=5, stall_s=5, queue_bytes=50_000)
    factory, opened = double_of(slow_open=0.5)
    with caplog.at_level(logging.WARNING), peer(factory, settings) as other:
        stream = recorded_stream("gt_acq_noise/to_external")
        other.ours.settimeout(0.2)
        with pytest.raises(TimeoutError):
            other.ours.sendall(stream)  # back-pressure: neither the sockets nor the queue hold it all
    other.thread.join(5)
    assert "the reconstruction is behind: 0 MB wait (limit 0 MB), reading pauses" in caplog.text
    assert "reading goes on after" in caplog.text
    assert opened[0].fed


def test_reading_goes_on_while_the_reconstruction_is_busy() -> None:
    factory, _ = double_of(slow_open=1)
    with peer(factory) as other:
        start = time.monotonic()
        other.ours.sendall(recorded_stream("gt_acq_noise/to_external"))
        assert time.monotonic() - start < 0.8
        assert images([frame.message for frame in other.rest()]) == [1, 2, 3, 4]


def test_stop_from_outside() -> None:
    factory, opened = double_of()
    with peer(factory) as other:
        other.ours.sendall(recorded_stream("gt_acq_noise/to_external")[:400_000])
        time.sleep(0.2)
        other.link.stop("the reconstruction server is being stopped")
        messages = [frame.message for frame in other.rest()]
    assert messages[-2:] == [mrd.ErrorText("the reconstruction server is being stopped"), mrd.Close()]
    assert opened[0].aborted == "the reconstruction server is being stopped"


def test_a_peer_that_takes_no_images_does_not_hang_the_link() -> None:
    class Flood(SessionDouble):
        def close(self) -> None:
            for _ in range(200):
                self._send(blank_image(1, 300))

    settings = LinkSettings(idle_s=5, stall_s=0.3, abort_s=5)
    with peer(Flood, settings) as other:
        other.ours.sendall(recorded_stream("gt_acq_noise/to_external"))
        other.thread.join(5)
        assert not other.thread.is_alive()
    assert other.report is not None
    assert "the peer has taken nothing for 0.3 s" in str(other.report.failure)


def test_nothing_is_sent_behind_close() -> None:
    kept: list[Any] = []

    def factory(header: str, parameters: dict[str, Any], send: Any, tell: Any) -> SessionDouble:
        kept.append(send)
        return SessionDouble(header, parameters, send, tell)

    out = io.BytesIO()
    serve_scan(io.BytesIO(recorded_stream("gt_acq_noise/to_external")), out, factory, QUICK)
    size = len(out.getvalue())
    with pytest.raises(ScanError, match="the scan has ended: nothing more can be sent"):
        kept[0](blank_image(1))
    assert len(out.getvalue()) == size


def test_fixed_dialect_of_a_pipe_with_a_configuration() -> None:
    opening = Opening(PIPE, fixed=True)
    stream = to_bytes(mrd.ConfigName("dds"), HEADER, mrd.Close())
    assert opening.read(FrameReader(io.BytesIO(stream)))
    assert opening.dialect is PIPE
    assert opening.parameters == {"config": "dds"}
    assert np.all([isinstance(reply, Frame) for reply in opening.replies])
