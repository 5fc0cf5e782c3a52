"""Where the recorded data lie, and how tests read them."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest


def data_dir() -> Path:
    """The folder of recorded data; skips the test where there is none, fails in CI."""
    folder = Path(os.environ.get("SCANPRIOR_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if folder.is_dir():
        return folder
    reason = f"no recorded data in {folder}: set SCANPRIOR_DATA"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def recorded_stream(name: str) -> bytes:
    """A byte stream recorded from a real peer, e.g. `gt_bucket/to_external`."""
    return gzip.decompress((data_dir() / "wire" / f"{name}.bin.gz").read_bytes())
