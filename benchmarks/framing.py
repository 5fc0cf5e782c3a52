"""Readouts a second that the framing reads from a socket: 16 coils x 512 samples, one thread.

python benchmarks/framing.py
"""

from __future__ import annotations

import socket
import threading
import time

import numpy as np
from scanprior.gadgets.frames import FrameReader, to_bytes
from scanprior.gadgets.message_codec import check_acquisition
from scanprior.gadgets.mrd import ACQUISITION_HEADER, Acquisition, Close

COILS, SAMPLES, READOUTS = 16, 512, 20_000


def readouts_per_second(check: bool) -> tuple[float, float]:
    """Readouts a second of wall time, and of the reading thread's CPU time."""
    head = np.zeros((), ACQUISITION_HEADER)
    head["version"], head["active_channels"], head["number_of_samples"] = 1, COILS, SAMPLES
    data = np.random.default_rng(1).standard_normal((COILS, 2 * SAMPLES)).astype(np.float32).view(np.complex64)
    ten = to_bytes(*[Acquisition(head[()], data)] * 10)
    ours, theirs = socket.socketpair()

    def send() -> None:
        for _ in range(READOUTS // 10):
            theirs.sendall(ten)
        theirs.sendall(to_bytes(Close()))

    sender = threading.Thread(target=send)
    sender.start()
    start, cpu_start = time.perf_counter(), time.thread_time()
    for frame in FrameReader(ours, idle_s=10):
        if check and isinstance(frame.message, Acquisition):
            check_acquisition(frame.message)
    wall, cpu = time.perf_counter() - start, time.thread_time() - cpu_start
    sender.join()
    ours.close()
    theirs.close()
    return READOUTS / wall, READOUTS / cpu


if __name__ == "__main__":
    for check in (False, True):
        per_wall, per_cpu = readouts_per_second(check)
        print(
            f"{COILS} x {SAMPLES}, {'with' if check else 'without'} the check for NaN: "
            f"{per_wall:.0f} readouts/s, {per_cpu:.0f} per CPU second "
            f"({4000 / per_cpu:.1%} of one core at 4000/s)"
        )
