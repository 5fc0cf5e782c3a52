"""A session that reconstructs nothing: it counts, sends an image for each slice that ends, and fails when told to."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

import numpy as np
from scanprior.gadgets import mrd
from scanprior.gadgets.errors import ScanError
from scanprior.gadgets.link import Send, Tell

LAST_IN_SLICE = 8


def blank_image(value: float, size: int = 16) -> mrd.Image:
    """A float32 magnitude image that is `value` everywhere."""
    head = np.zeros((), mrd.IMAGE_HEADER)
    head["version"], head["image_type"], head["image_series_index"] = 1, 1, 1
    return mrd.Image(head[()], np.full((1, 1, size, size), value, np.float32))


class SessionDouble:
    """Images leave from a worker thread, as those of a reconstruction do.

    Its parameters: `fail_at` acquisition number (ScanError), `crash_at` (another error), `fail_in` = open, close
    or worker, `tell`, `hold` seconds for each image, `slow_open` seconds.
    """

    accepts: tuple[type, ...] = (mrd.Acquisition, mrd.ReconData, mrd.Bucket)

    def __init__(self, header_xml: str, parameters: dict[str, Any], send: Send, tell: Tell) -> None:
        time.sleep(float(parameters.get("slow_open", 0)))
        if parameters.get("fail_in") == "open":
            raise ScanError("the trajectory is radial; only Cartesian scans can be reconstructed")
        self.parameters = parameters
        self.fed: list[Any] = []
        self.aborted: str | None = None
        self._send = send
        self._failure: Exception | None = None
        self._slices: queue.Queue[int | None] = queue.Queue()
        self._made = 0
        if "tell" in parameters:
            tell("warning", parameters["tell"])
        self._worker = threading.Thread(target=self._work, name="double")
        self._worker.start()

    def feed(self, message: Any) -> None:
        self.fed.append(message)
        if len(self.fed) == int(self.parameters.get("fail_at", -1)):
            self._slices.join()  # so that what a test expects to be sent before the failure is
            raise ScanError(f"acquisition {len(self.fed)} has 3 coils; the scan has 4")
        if len(self.fed) == int(self.parameters.get("crash_at", -1)):
            self._slices.join()
            raise IndexError("list index out of range")
        if not isinstance(message, mrd.Acquisition) or message.is_flag_set(LAST_IN_SLICE):
            self._made += 1
            self._slices.put(self._made)

    def close(self) -> None:
        self._slices.put(None)
        self._worker.join()
        if self._failure is not None:
            raise self._failure
        if self.parameters.get("fail_in") == "close":
            raise ScanError("the last slice has no calibration lines")

    def abort(self, reason: str) -> None:
        self.aborted = reason
        self._slices.put(None)
        self._worker.join()

    def _work(self) -> None:
        while (value := self._slices.get()) is not None:
            time.sleep(0 if self.aborted else float(self.parameters.get("hold", 0)))
            try:
                if self.parameters.get("fail_in") == "worker" and value == 2:
                    raise ScanError("slice 2 did not converge")
                if self.aborted is None:
                    self._send(blank_image(value))
            except ScanError as error:
                self._failure = error
                return
            finally:
                self._slices.task_done()


def double_of(**parameters: Any) -> tuple[Any, list[SessionDouble]]:
    """A session factory with parameters of its own, and the sessions that it will have opened."""
    opened: list[SessionDouble] = []

    def factory(header_xml: str, given: dict[str, Any], send: Send, tell: Tell) -> SessionDouble:
        opened.append(SessionDouble(header_xml, {**given, **parameters}, send, tell))
        return opened[-1]

    return factory, opened
