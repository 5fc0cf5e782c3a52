"""A target for `python -m gadgetron PORT execute_target reconstruct`: ours, with a session double."""

from __future__ import annotations

import os
from typing import Any

from scanprior.gadgets import execute
from session_double import SessionDouble


def reconstruct(connection: Any) -> None:
    """What gadgetron-python calls."""
    print("a stray print, which is the server's log here")
    report = execute.reconstruct(connection, SessionDouble)
    print("descriptor 0 is", os.readlink("/proc/self/fd/0"))
    print("report", report)
