"""Frames between the thread that reads them and the one that feeds the reconstruction, bounded by their bytes."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

from scanprior.gadgets.frames import Frame

log = logging.getLogger(__name__)


class FrameQueue:
    """Keeps the order. Over its budget `put` waits, and with it the peer, by TCP's own back-pressure.

    Parameters
    ----------
    budget
        Bytes that may wait. A frame that is larger by itself is taken when nothing else waits.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._frames: deque[tuple[Frame, int]] = deque()
        self._waiting = 0
        self._discards = False
        self._changed = threading.Condition()

    def put(self, frame: Frame) -> None:
        """Appends a frame, or drops it after `discard`."""
        size = frame.nbytes
        with self._changed:
            if self._over(size):
                log.warning(
                    "the reconstruction is behind: %.0f MB wait (limit %.0f MB), reading pauses",
                    self._waiting / 1e6,
                    self._budget / 1e6,
                )
                start = time.monotonic()
                self._changed.wait_for(lambda: not self._over(size))
                log.warning("reading goes on after %.2f s", time.monotonic() - start)
            if not self._discards:
                self._frames.append((frame, size))
                self._waiting += size
                self._changed.notify_all()

    def get(self) -> Frame | None:
        """The next frame, waiting for one; None after `discard`."""
        with self._changed:
            self._changed.wait_for(lambda: self._frames or self._discards)
            if self._discards:
                return None
            frame, size = self._frames.popleft()
            self._waiting -= size
            self._changed.notify_all()
            return frame

    def discard(self) -> None:
        """Drops what waits and whatever comes: nobody will take it any more."""
        with self._changed:
            self._discards = True
            self._frames.clear()
            self._waiting = 0
            self._changed.notify_all()

    def _over(self, size: int) -> bool:
        return not self._discards and bool(self._frames) and self._waiting + size > self._budget
