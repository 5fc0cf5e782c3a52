"""The resident server, with clients that speak by gadgetron-python's and ismrmrd's own readers and writers."""

from __future__ import annotations

import io
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
import pytest
from gadgetron.external import readers, writers
from ismrmrd.serialization import ProtocolDeserializer, ProtocolSerializer
from scanprior.gadgets import mrd
from scanprior.gadgets.errors import ScanError
from scanprior.gadgets.frames import FrameReader, to_bytes
from scanprior.gadgets.link import LinkSettings
from scanprior.pipelines.server import Server, ServerSettings
from session_double import double_of
from support import recorded_stream
from wire_helpers import images, kinds, with_properties

LINK = LinkSettings(idle_s=10, stall_s=10, drain_s=10, quiet_s=0.2, abort_s=5)


@contextmanager
def running(factory: Any, **settings: Any) -> Iterator[Server]:
    server = Server(factory, ServerSettings(port=0, link=LINK, **{"grace_s": 5.0, **settings}))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive()
        assert [left for left in threading.enumerate() if left.name.startswith(("scan", "double"))] == []


def client(server: Server, stream: bytes) -> list[Any]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(stream)
        messages = [frame.message for frame in FrameReader(connection, idle_s=10)]
        connection.settimeout(10)
        assert connection.recv(1) == b""
        return messages


def test_scans_one_after_another_and_at_once() -> None:
    factory, opened = double_of(hold=0.05)
    stream = recorded_stream("fire_config_name/to_external")
    with running(factory) as server:
        assert images(client(server, stream)) == [1, 2, 3, 4]
        results: list[list[float]] = []
        threads = [threading.Thread(target=lambda: results.append(images(client(server, stream)))) for _ in range(4)]
        start = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [[1, 2, 3, 4]] * 4
        assert time.monotonic() - start < 4 * 4 * 0.05 + 2
    assert len(opened) == 5


def test_a_failing_scan_does_not_hurt_the_one_beside_it_nor_the_next() -> None:
    factory, _ = double_of(hold=0.1)
    with running(factory) as server:
        good: list[Any] = []
        stream = recorded_stream("gt_acq_noise/to_external")
        beside = threading.Thread(target=lambda: good.extend(client(server, stream)))
        beside.start()
        bad = client(server, with_properties("gt_acq_noise", crash_at="3"))
        assert bad[-2:] == [mrd.ErrorText("Reconstruction failed: IndexError: list index out of range"), mrd.Close()]
        with socket.create_connection(("127.0.0.1", server.port)) as gone:
            gone.sendall(stream[:100_000])
        assert client(server, struct.pack("<H", 999))[0].text.startswith("unknown message id 999")
        beside.join()
        assert images(good) == [1, 2, 3, 4]
        assert images(client(server, stream)) == [1, 2, 3, 4]


def test_a_scan_too_many_is_refused_with_a_message() -> None:
    factory, opened = double_of()
    with running(factory, max_scans=1) as server:
        stream = recorded_stream("fire_config_name/to_external")
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as first:
            first.sendall(stream[:-2])
            reader = FrameReader(first, idle_s=10)
            assert isinstance(reader.read().message, mrd.Image)
            refused = client(server, stream)
            assert kinds(refused) == ["Text", "Close"]
            assert refused[0].text == (
                "ERR     the server is busy: 1 scans run, which is its limit; repeat this scan when one has ended"
            )
            assert client(server, to_bytes(mrd.Close())) == [mrd.Close()], "a query needs no place"
            first.sendall(stream[-2:])
            assert len(list(reader)) == 4
        assert images(client(server, stream)) == [1, 2, 3, 4]
    assert len(opened) == 2


def test_dependency_query_and_port_probe(caplog: pytest.LogCaptureFixture) -> None:
    factory, opened = double_of()
    with running(factory) as server:
        assert client(server, to_bytes(mrd.Close())) == [mrd.Close()]
        socket.create_connection(("127.0.0.1", server.port)).close()
    assert not opened
    assert "failed" not in caplog.text


def test_ipv6_loopback_where_localhost_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def both(host: str, port: int, *rest: Any, **more: Any) -> Any:
        six = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0))
        return (
            [six, *real("127.0.0.1", port, *rest, **more)] if host == "localhost" else real(host, port, *rest, **more)
        )

    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 loopback here: {error}")
    monkeypatch.setattr(socket, "getaddrinfo", both)
    factory, _ = double_of()
    with running(factory) as server:
        assert server.addresses == ["127.0.0.1", "::1"]
        with socket.create_connection(("::1", server.port), timeout=10) as connection:
            connection.sendall(to_bytes(mrd.Close()))
            assert connection.recv(10) == to_bytes(mrd.Close())


def test_a_port_in_use_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ScanError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use"):
            Server(double_of()[0], ServerSettings(port=port))


def test_stopping_lets_scans_end_and_stops_those_that_do_not() -> None:
    factory, _ = double_of()
    server = Server(factory, ServerSettings(port=0, link=LINK, grace_s=0.5))
    thread = threading.Thread(target=server.run)
    thread.start()
    address = ("127.0.0.1", server.port)
    stream = recorded_stream("gt_acq_noise/to_external")
    with (
        socket.create_connection(address, timeout=10) as quick,
        socket.create_connection(address, timeout=10) as stuck,
    ):
        quick.sendall(stream[:-2])
        stuck.sendall(stream[:-2])
        time.sleep(0.3)
        server.stop()
        quick.sendall(stream[-2:])
        assert images([frame.message for frame in FrameReader(quick, idle_s=5)]) == [1, 2, 3, 4]
        messages = [frame.message for frame in FrameReader(stuck, idle_s=5)]
        assert messages[-2:] == [mrd.ErrorText("the reconstruction server is being stopped"), mrd.Close()]
    thread.join(10)
    assert not thread.is_alive()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(address)


def test_sigterm_after_ready(tmp_path: Path) -> None:
    script = tmp_path / "run_server.py"
    script.write_text(
        "import logging, sys\n"
        "from scanprior.pipelines.server import ServerSettings, serve\n"
        "from session_double import SessionDouble\n"
        "logging.basicConfig(level=logging.INFO, stream=sys.stdout, format='%(message)s', force=True)\n"
        "serve(SessionDouble, ServerSettings(port=0), warm_up=lambda: logging.info('warming'))\n"
    )
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-u", str(script)], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert process.stdout is not None
    lines = []
    while not (lines and lines[-1].startswith("ready")):
        line = process.stdout.readline()
        assert line, lines
        lines.append(line)
    assert [line.split()[0] for line in lines] == ["warming", "warmed", "ready"]
    port = int(lines[-1].split("port ")[1].split()[0])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(to_bytes(mrd.Close()))
        assert connection.recv(10) == to_bytes(mrd.Close())
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert "stopped" in process.stdout.read()
    process.stdout.close()


class Wrapped:
    """A socket as gadgetron-python's readers and writers want it."""

    def __init__(self, connection: socket.socket) -> None:
        self._file = connection.makefile("rwb")

    def read(self, size: int) -> bytes:
        return self._file.read(size)

    def write(self, data: Any) -> None:
        self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def test_gadgetron_pythons_writers_and_readers_as_the_peer() -> None:
    """Messages are made by ismrmrd and written by gadgetron-python; replies are read by its readers."""
    factory, opened = double_of()
    header = recorded_stream("gt_client/to_gadgetron")[1026 + 6 : 1026 + 6 + 3382]
    rng = np.random.default_rng(5)
    with running(factory) as server, socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        theirs = Wrapped(connection)
        for message_id, text in ((2, b'<configuration><property name="a" value="b"/></configuration>'), (3, header)):
            theirs.write(struct.pack("<H", message_id))
            writers.write_byte_string(theirs, text)
        sent = []
        for line in range(6):
            data = (rng.standard_normal((3, 7)) + 1j).astype(np.complex64)
            acquisition = ismrmrd.Acquisition.from_array(data, rng.random((7, 2), np.float32))
            acquisition.idx.kspace_encode_step_1 = line
            if line == 5:
                acquisition.setFlag(ismrmrd.ACQ_LAST_IN_SLICE)
            writers.write_acquisition(theirs, acquisition)
            sent.append(acquisition)
        mine = ismrmrd.Image.from_array(rng.random((1, 1, 4, 6)).astype(np.float32))
        mine.meta["Zoë"] = "1"
        writers.write_image(theirs, mine)
        theirs.write(struct.pack("<H", 4))
        theirs.flush()
        received = []
        while (message_id := struct.unpack("<H", theirs.read(2))[0]) != 4:
            assert message_id == 1022
            received.append(readers.read_image(theirs))
        assert theirs.read(1) == b""
    assert opened[0].parameters == {"a": "b"}
    for ours, acquisition in zip(opened[0].fed, sent, strict=True):
        np.testing.assert_array_equal(ours.data, acquisition.data)
        np.testing.assert_array_equal(ours.traj, acquisition.traj)
        assert int(ours.head["idx"]["kspace_encode_step_1"]) == acquisition.idx.kspace_encode_step_1
    passed = [image for image in received if image.meta]
    assert len(received) == 2
    assert passed[0] == mine


def test_ismrmrds_serializer_as_the_peer_of_a_pipe() -> None:
    from scanprior.pipelines.stdio import run_stdio

    stream = recorded_stream("stdio/hdf5_to_stream_small")
    (length,) = struct.unpack_from("<I", stream, 2)
    raw = io.BytesIO()
    serializer = ProtocolSerializer(raw)
    serializer.serialize(ismrmrd.xsd.CreateFromDocument(stream[6 : 6 + length]))
    for _ in range(3):
        acquisition = ismrmrd.Acquisition.from_array(np.ones((2, 8), np.complex64))
        acquisition.setFlag(ismrmrd.ACQ_LAST_IN_SLICE)
        serializer.serialize(acquisition)
    serializer.close()
    out = io.BytesIO()
    report = run_stdio(double_of()[0], io.BytesIO(raw.getvalue()), out)
    assert report.failure is None
    replies = list(ProtocolDeserializer(io.BytesIO(out.getvalue())).deserialize())
    assert [type(reply).__name__ for reply in replies] == ["ismrmrdHeader"] + ["Image"] * 3
    assert [reply.data.flat[0] for reply in replies[1:]] == [1, 2, 3]
