"""A scan sent to a server, and the resident server of the circle: what comes back, and what goes wrong on the way."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from masks import lines_mask
from scanprior.gadgets.engine import Engine
from scanprior.gadgets.errors import PeerGone
from scanprior.gadgets.frames import FrameReader, FrameWriter
from scanprior.gadgets.mrd import Close
from scanprior.pipelines.cli import app
from scanprior.pipelines.client import SendError, send_scan
from scanprior.pipelines.replay import replay
from scanprior.pipelines.resident import resident_server
from scanprior.pipelines.server import Server, ServerSettings
from scanprior.sim.mask_file import save_mask
from scanprior.sim.scan import simulate
from session_double import blank_image
from typer.testing import CliRunner

MASK = lines_mask(64, 24, seed=3, columns=48)


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine("sense", threads=1)
    yield made
    made.close()


@pytest.fixture
def server(engine: Engine) -> Iterator[Server]:
    made = Server(engine.open_session, ServerSettings(port=0))
    thread = threading.Thread(target=made.run)
    thread.start()
    yield made
    made.stop()
    thread.join(30)


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_play_and_send_are_commands_of_their_own(tmp_path: Path, server: Server, engine: Engine) -> None:
    save_mask(tmp_path / "mine.npz", MASK)
    run("export-mask", tmp_path / "mine.npz", "--format", "pulseq", "--out", tmp_path / "mine.seq")
    said = run("play", tmp_path / "mine.seq", tmp_path / "scan.h5", "--coils", 3)
    assert f"{16 + MASK.samples} readouts" in said
    run("send", tmp_path / "scan.h5", "--port", server.port, "--out", tmp_path / "images")
    assert (tmp_path / "images/images.h5").exists()
    sent = send_scan(tmp_path / "scan.h5", "127.0.0.1", server.port, {"recipe": "sense"})
    replayed, _ = replay(tmp_path / "scan.h5", engine, None)
    assert [np.array_equal(a.data, b.data) for a, b in zip(sent.images, replayed, strict=True)] == [True]


def test_what_the_server_refuses_is_told(tmp_path: Path, server: Server) -> None:
    simulate(tmp_path / "scan.h5", matrix=48, coils=2, r=2, acs=16)
    refused = send_scan(tmp_path / "scan.h5", "127.0.0.1", server.port, {"recipe": "nothing"})
    assert not refused.images
    assert "nothing" in refused.failures[0]
    result = CliRunner().invoke(
        app,
        [
            "send", str(tmp_path / "scan.h5"), "--port", str(server.port), "--recipe", "nothing", "--out",
            str(tmp_path / "images"),
        ],
    )  # fmt: skip
    assert result.exit_code == 1
    assert "recipe 'nothing' is not known" in result.output


def test_a_server_that_is_not_there_or_hangs_up_is_told(tmp_path: Path) -> None:
    simulate(tmp_path / "scan.h5", matrix=48, coils=2, r=2, acs=16)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def hang_up() -> None:
            connection, _ = listener.accept()
            connection.recv(100)
            connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(SendError, match="ended the scan after 0 images"):
            send_scan(tmp_path / "scan.h5", "127.0.0.1", port, {})
        thread.join()
    assert not [thread for thread in threading.enumerate() if thread.name == "images"]
    with pytest.raises(SendError, match=f"no server at 127.0.0.1 port {port}"):
        send_scan(tmp_path / "scan.h5", "127.0.0.1", port, {})


class _Peer(threading.Thread):
    """Takes one connection and does with it what a test says."""

    def __init__(self, behave: Callable[[socket.socket], None]) -> None:
        super().__init__(daemon=True)
        self._behave = behave
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.start()

    def run(self) -> None:
        connection, _ = self._listener.accept()
        with connection, self._listener:
            self._behave(connection)


def _until_closed(connection: socket.socket) -> None:
    with contextlib.suppress(PeerGone):
        for frame in FrameReader(connection):
            if isinstance(frame.message, Close):
                return


def test_images_that_came_before_a_failure_are_kept(tmp_path: Path) -> None:
    scan = simulate(tmp_path / "scan.h5", matrix=32, coils=1, r=2, acs=16)
    image = blank_image(1.0, 32)

    def one_and_gone(connection: socket.socket) -> None:
        _until_closed(connection)
        FrameWriter(connection).send(image)

    with pytest.raises(SendError, match="after 1 images") as told:
        send_scan(scan.path, "127.0.0.1", _Peer(one_and_gone).port, {})
    assert len(told.value.received.images) == 1
    result = CliRunner().invoke(
        app, ["send", str(scan.path), "--port", str(_Peer(one_and_gone).port), "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 1
    assert (tmp_path / "out/images.h5").exists()


def test_a_server_may_be_silent_while_the_scan_is_sent_and_no_longer(tmp_path: Path) -> None:
    scan = simulate(tmp_path / "scan.h5", matrix=32, coils=1, r=2, acs=16)
    over = threading.Event()

    def never_answers(connection: socket.socket) -> None:
        _until_closed(connection)
        over.wait(30)

    def slow(done: int, total: int) -> None:
        if done == 1:
            time.sleep(1.5)  # a slow scanner: longer than the patience, and nobody's fault

    began = time.monotonic()
    with pytest.raises(SendError, match="has been silent for 1 s"):
        send_scan(scan.path, "127.0.0.1", _Peer(never_answers).port, {}, patience=1.0, progress=slow)
    assert time.monotonic() - began > 2.4
    over.set()


def test_an_error_of_our_own_while_sending_leaves_nothing_behind(tmp_path: Path) -> None:
    scan = simulate(tmp_path / "scan.h5", matrix=32, coils=1, r=2, acs=16)

    def wrong(done: int, total: int) -> None:
        raise KeyError("progress")

    with pytest.raises(KeyError):
        send_scan(scan.path, "127.0.0.1", _Peer(_until_closed).port, {}, progress=wrong)
    assert not [thread for thread in threading.enumerate() if thread.name == "images"]


def test_the_reader_tells_whatever_goes_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = simulate(tmp_path / "scan.h5", matrix=32, coils=1, r=2, acs=16)

    def full(self: FrameReader) -> None:
        raise MemoryError("no room for an image")

    monkeypatch.setattr("scanprior.pipelines.client.FrameReader.read", full)
    peer = _Peer(lambda one: [None for _ in iter(lambda: one.recv(65536), b"")] and None)
    with pytest.raises(SendError, match=r"no room for an image \(MemoryError\)"):
        send_scan(scan.path, "127.0.0.1", peer.port, {})


def test_a_resident_server_ends_with_its_parent(tmp_path: Path) -> None:
    program = (
        "import time\nfrom scanprior.pipelines.resident import resident_server\n"
        "with resident_server('sense', 1) as port:\n    print(port, flush=True)\n    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline())
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.2)
    pytest.fail("the server still listens")


def test_what_a_server_says_at_its_end_is_told(tmp_path: Path) -> None:
    with pytest.raises(SendError, match=r"did not start: (.|\n)*recipe 'nothing' is not known"):
        resident_server("nothing", 1).__enter__()
    with pytest.raises(SendError, match=r"was not ready within 0\.05 s"):
        resident_server("sense", 1, patience=0.05).__enter__()
    told = r"the connection broke; scanprior serve ended with status -?\d+: (.|\n)*stopped"
    with pytest.raises(SendError, match=told), resident_server("sense", 1) as port:
        _end(port)


def _end(port: int) -> None:
    os.kill(_listening(port), signal.SIGTERM)
    raise SendError("the connection broke")


def _listening(port: int) -> int:
    """Process id of our child that listens on a port."""
    inode = next(
        row.split()[9] for row in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if row.split()[1].endswith(f":{port:04X}") and row.split()[3] == "0A"
    )  # fmt: skip
    for child in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
        for number in child.read_text().split():
            for descriptor in Path(f"/proc/{number}/fd").iterdir():
                if os.readlink(descriptor) == f"socket:[{inode}]":
                    return int(number)
    raise AssertionError(f"no child listens on port {port}")
