"""Readouts a second that arrive from a socket: 16 coils x 512 samples.

python benchmarks/framing.py
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scanprior.gadgets.frames import FrameReader, to_bytes
from scanprior.gadgets.link import serve_scan
from scanprior.gadgets.message_codec import check_acquisition
from scanprior.gadgets.mrd import ACQUISITION_HEADER, Acquisition, Close, ConfigText, Header

COILS, SAMPLES, READOUTS = 16, 512, 20_000


def read(stream: socket.socket) -> None:
    """Frames alone."""
    for _ in FrameReader(stream, idle_s=10):
        pass


def read_and_check(stream: socket.socket) -> None:
    """Frames, and every sample is looked at for NaN."""
    for frame in FrameReader(stream, idle_s=10):
        if isinstance(frame.message, Acquisition):
            check_acquisition(frame.message)


class Nothing:
    """A session that does nothing with what it is fed."""

    accepts = (Acquisition,)

    def __init__(self, *ignored: Any) -> None:
        pass

    def feed(self, message: Any) -> None:
        """Drops it."""

    def close(self) -> None:
        """Nothing is left."""

    def abort(self, reason: str) -> None:
        """Nothing is left."""


def serve(stream: socket.socket) -> None:
    """The whole link: frames, queue, the feeding thread."""
    report = serve_scan(stream, stream, Nothing)
    if report.failure is not None:
        raise RuntimeError(report.failure)


def measure(receive: Callable[[socket.socket], None]) -> tuple[float, float]:
    """Readouts a second of wall time, and for a second of CPU time without that of sending alone."""
    head = np.zeros((), ACQUISITION_HEADER)
    head["version"], head["active_channels"], head["number_of_samples"] = 1, COILS, SAMPLES
    data = np.random.default_rng(1).standard_normal((COILS, 2 * SAMPLES)).astype(np.float32).view(np.complex64)
    ten = to_bytes(*[Acquisition(head[()], data)] * 10)
    ours, theirs = socket.socketpair()
    sending_cpu = 0.0

    def send() -> None:
        nonlocal sending_cpu
        theirs.sendall(to_bytes(ConfigText(""), Header("<ismrmrdHeader/>")))
        for _ in range(READOUTS // 10):
            theirs.sendall(ten)
        theirs.sendall(to_bytes(Close()))
        sending_cpu = time.thread_time()

    sender = threading.Thread(target=send)
    start, cpu_start = time.perf_counter(), time.process_time()
    sender.start()
    receive(ours)
    sender.join()
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu_start - sending_cpu
    ours.close()
    theirs.close()
    return READOUTS / wall, READOUTS / cpu


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    for receive in (read, read_and_check, serve):
        per_wall, per_cpu = measure(receive)
        print(
            f"{receive.__name__:>15}: {per_wall:6.0f} readouts/s, {per_cpu:6.0f} per CPU second "
            f"({4000 / per_cpu:.1%} of one core at 4000/s of {COILS} x {SAMPLES})"
        )
