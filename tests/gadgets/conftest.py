"""An engine for the tests of the stream."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scanprior.gadgets.engine import Engine


@pytest.fixture
def engine() -> Iterator[Engine]:
    running = Engine("sense", device="cpu")
    yield running
    running.close()
