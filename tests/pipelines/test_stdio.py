from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

from scanprior.gadgets.frames import FrameReader
from support import recorded_stream
from wire_helpers import images, kinds

SCRIPT = """
import os, sys
from scanprior.pipelines.stdio import run_stdio
from session_double import SessionDouble

def factory(header, parameters, send, tell):
    print("a stray print")
    os.system("echo a stray child")
    return SessionDouble(header, {**parameters, **FAIL}, send, tell)

report = run_stdio(factory)
print("stdout is back")
sys.exit(report.failure)
"""


def run(stream: bytes, fail: str = "{}") -> subprocess.CompletedProcess[bytes]:
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-c", f"FAIL = {fail}\n{SCRIPT}"],
        input=stream,
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )


def test_stdout_carries_frames_alone() -> None:
    done = run(recorded_stream("stdio/hdf5_to_stream_small"))
    assert done.returncode == 0, done.stderr
    assert b"a stray print" in done.stderr
    assert b"a stray child" in done.stderr
    assert done.stdout.endswith(b"\x04\x00stdout is back\n")
    messages = [frame.message for frame in FrameReader(io.BytesIO(done.stdout))]
    assert kinds(messages)[0] == "Header"
    assert images(messages) == [1, 2, 3, 4]


def test_a_failure_is_told_by_status_and_stderr_and_keeps_the_images() -> None:
    done = run(recorded_stream("stdio/hdf5_to_stream_small"), "{'fail_in': 'close'}")
    assert done.returncode == 1
    assert b"the last slice has no calibration lines" in done.stderr
    messages = [frame.message for frame in FrameReader(io.BytesIO(done.stdout))]
    assert images(messages) == [1, 2, 3, 4]


def test_a_pipe_that_ends_early() -> None:
    done = run(recorded_stream("stdio/hdf5_to_stream_small")[:100_000])
    assert done.returncode == 1
    assert b"the stream was cut short: it ended after" in done.stderr


def test_a_pipe_without_a_byte_is_a_failure() -> None:
    """Its writer has failed; a caller that looks at the exit status must not take that for a scan without images."""
    done = run(b"")
    assert done.returncode == 1
    assert b"the peer closed the connection" in done.stderr
