"""What went wrong in a scan: kept while it runs, told in one text at its end."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field

from .slices import Key

log = logging.getLogger(__name__)

MAX_TOLD = 5
MAX_KEPT = 100  # texts that differ; a scan in which every readout is bad has no end of them


@dataclass
class Befallen:
    """How often a failure happened, and to which images, the first few of them."""

    times: int = 0
    keys: list[Key] = field(default_factory=list)

    def told(self, failure: str) -> str:
        """The failure and whom it befell, in one statement."""
        named = [str(key) for key in self.keys]
        if not named:
            return failure if self.times == 1 else f"{failure} ({self.times} times)"
        if self.times == 1:
            return f"{named[0]}: {failure}"
        shown = "; ".join(named[:MAX_TOLD]) + ("; ..." if len(named) > MAX_TOLD else "")
        return f"{failure} ({self.times} images: {shown})"


class Failures:
    """Failures of one scan, from any thread; a text that comes again takes no memory."""

    def __init__(self) -> None:
        self.kept: dict[str, Befallen] = {}
        self._more = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.kept)

    def note(self, failure: str, key: Key | None = None) -> None:
        """Keep a failure (of the image `key`) for `told`; the log has it at once."""
        with self._lock:
            first = failure not in self.kept
            if first and len(self.kept) >= MAX_KEPT:
                self._more += 1
                return
            befallen = self.kept.setdefault(failure, Befallen())
            befallen.times += 1
            if key is not None and len(befallen.keys) <= MAX_TOLD:  # one more than told: "..." stands for it
                befallen.keys.append(key)
        if first:
            log.error("%s", failure if key is None else f"{key}: {failure}")

    def told(self) -> list[str]:
        """One statement for each, the first few of them, and how many more there were; empty where all went well."""
        with self._lock:
            every = [befallen.told(text) for text, befallen in self.kept.items()]
            more = len(every) + self._more - MAX_TOLD
        return every[:MAX_TOLD] + ([f"and {more} more"] if more > 0 else [])
