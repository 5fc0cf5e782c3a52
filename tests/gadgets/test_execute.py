"""Gadgetron's `<execute>`, launched as Gadgetron does: stdin closed, the socket as descriptor 0."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from scanprior.gadgets import mrd
from scanprior.gadgets.frames import FrameReader
from support import recorded_stream
from wire_helpers import images, kinds, with_properties


def launch(module: str) -> tuple[subprocess.Popen[str], socket.socket]:
    """Starts gadgetron-python and takes its connection."""
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        process = subprocess.Popen(
            [
                "/bin/sh",
                "-c",
                f'exec "$0" -m gadgetron {listener.getsockname()[1]} {module} reconstruct <&-',
                sys.executable,
            ],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(path).resolve()) for path in paths)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        connection, _ = listener.accept()
    connection.settimeout(30)
    return process, connection


def replies(connection: socket.socket) -> list[object]:
    with connection:
        messages = [frame.message for frame in FrameReader(connection, idle_s=60)]
        assert connection.recv(1) == b"", "something followed CLOSE"
        return messages


def test_a_scan_through_gadgetron_python() -> None:
    process, connection = launch("execute_target")
    connection.sendall(recorded_stream("gt_acq_noise/to_external"))
    messages = replies(connection)
    log = process.communicate(timeout=30)[0]
    assert process.returncode == 0, log
    assert images(messages) == [1, 2, 3, 4]
    assert kinds(messages).count("Waveform") == 8
    assert messages[-1] == mrd.Close()
    assert "descriptor 0 is /dev/null" in log


def test_a_failure_through_gadgetron_python() -> None:
    process, connection = launch("execute_target")
    connection.sendall(with_properties("gt_acq_noise", fail_in="open"))
    messages = replies(connection)
    log = process.communicate(timeout=30)[0]
    assert process.returncode == 0, log
    assert messages[-2:] == [
        mrd.ErrorText("the trajectory is radial; only Cartesian scans can be reconstructed"),
        mrd.Close(),
    ]


def test_a_dead_peer_ends_the_process() -> None:
    process, connection = launch("execute_target")
    connection.sendall(recorded_stream("gt_acq_noise/to_external")[:300_000])
    connection.close()
    log = process.communicate(timeout=30)[0]  # gadgetron-python's own reader would spin here for ever
    assert process.returncode == 0
    assert "failure=" in log


def test_bad_properties_are_told() -> None:
    process, connection = launch("execute_target")
    stream = recorded_stream("gt_acq_noise/to_external")
    connection.sendall(stream.replace(b'name="device"', b'nome="device"'))
    messages = replies(connection)
    process.communicate(timeout=30)
    assert kinds(messages) == ["ErrorText", "Close"]
    assert "a <property> of the configuration lacks its name or value" in messages[0].text  # type: ignore[attr-defined]


def test_the_package_is_imported_cheaply() -> None:
    code = "import sys, scanprior.gadgets as g; g.reconstruct; print({'numpy', 'torch', 'ismrmrd'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_an_import_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from scanprior.gadgets import execute

    class Theirs:
        def __init__(self, connected: socket.socket) -> None:
            self.socket = connected

    class Connection:
        def __init__(self, connected: socket.socket) -> None:
            self.socket = Theirs(connected)
            self.raw_bytes = type("Raw", (), {"config": b"<configuration/>", "header": b"<ismrmrdHeader/>"})

    monkeypatch.setitem(sys.modules, "scanprior.gadgets.session", None)
    ours, theirs = socket.socketpair()
    with ours:
        ours.sendall(b"\x04\x00")
        report = execute.reconstruct(Connection(theirs))
        messages = replies(ours)
    assert kinds(messages) == ["ErrorText", "Close"]
    assert str(report.failure).startswith(
        "Reconstruction failed: ModuleNotFoundError: import of scanprior.gadgets.session"
    )
