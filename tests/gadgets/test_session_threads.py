"""A session and the engine's worker in their threads: what waits, what abort ends, and that nothing stays behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from scanprior.gadgets import session as session_module
from scanprior.gadgets.engine import Engine
from scanprior.gadgets.mrd import Image
from scanprior.models.methods import METHODS, Method
from scanprior.models.scan import Progress, Reconstruction, Scan, Settings
from sessions import NOISE_SCAN, begin, feed, slice_lines


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Replaces `zero-filled` by a method that reports progress until the event is set."""
    go = threading.Event()

    def wait(scan: Scan, prior: None, settings: Settings, progress: Progress) -> Reconstruction:
        while not go.wait(0.01):
            progress(1, 2)
        return Reconstruction(scan.kspace.abs().sum(-3).to(scan.kspace.dtype), info={"method": "held"})

    original = METHODS["zero-filled"]
    monkeypatch.setitem(METHODS, "zero-filled", Method(wait, original.settings, needs_noise=False))
    yield go
    go.set()


def in_thread(call: Any, *arguments: Any) -> tuple[threading.Thread, list[BaseException]]:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            call(*arguments)
        except BaseException as error:  # noqa: BLE001  the test looks at it
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, failures


def promptly(call: Any, *arguments: Any) -> None:
    """Fails, and does not hang, where `call` does not return within 3 s."""
    thread, failures = in_thread(call, *arguments)
    thread.join(3)
    assert not thread.is_alive(), f"{call.__name__} does not return"
    assert not failures


def test_abort_lets_close_return_and_sends_nothing_more(engine: Engine, held: threading.Event) -> None:
    images: list[Image] = []
    session = begin(engine, images, recipe="zero-filled")
    feed(session, [line for number in range(5) for line in slice_lines(slice=number)])
    closing, failures = in_thread(session.close)
    time.sleep(0.1)
    assert closing.is_alive()
    promptly(session.abort, "the peer is gone")
    closing.join(2)
    assert not closing.is_alive()
    assert not failures
    held.set()
    engine.worker.submit(lambda: None).result()
    assert images == []


def test_abort_lets_feed_return(
    engine: Engine, held: threading.Event, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session_module, "MAX_PENDING_BYTES", 1)
    session = begin(engine, [], recipe="zero-filled")
    feeding, failures = in_thread(feed, session, [line for n in range(3) for line in slice_lines(slice=n)])
    time.sleep(0.1)
    assert feeding.is_alive(), "the input waits for the reconstruction"
    assert "input waits" in caplog.text
    promptly(session.abort, "the server is being stopped")
    feeding.join(2)
    assert not feeding.is_alive()
    assert not failures


def test_input_goes_on_when_there_is_room_again(
    engine: Engine, held: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "MAX_PENDING_BYTES", 1)
    images: list[Image] = []
    session = begin(engine, images, recipe="zero-filled")
    feeding, failures = in_thread(feed, session, [line for n in range(3) for line in slice_lines(slice=n)])
    time.sleep(0.1)
    assert feeding.is_alive()
    held.set()
    feeding.join(5)
    session.close()
    assert not failures
    assert len(images) == 3


def test_an_aborted_scan_does_not_hold_up_another(engine: Engine, held: threading.Event) -> None:
    """20 slices of one scan wait at the worker; when it is given up, the other's image comes at once."""
    session = begin(engine, [], recipe="zero-filled")
    feed(session, [line for number in range(20) for line in slice_lines(slice=number)])
    images: list[Image] = []
    other = begin(engine, images, recipe="sense")
    feed(other, [*NOISE_SCAN, *slice_lines()])
    time.sleep(0.05)
    assert not images
    promptly(session.abort, "the peer is gone")
    promptly(other.close)
    assert len(images) == 1


def test_abort_while_another_scans_work_runs_returns_at_once(engine: Engine, held: threading.Event) -> None:
    made: list[Image] = []
    given_up: list[Image] = []
    first = begin(engine, made, recipe="zero-filled")
    feed(first, slice_lines())
    second = begin(engine, given_up, recipe="zero-filled")
    feed(second, slice_lines())
    promptly(second.abort, "the peer is gone")
    held.set()
    first.close()
    assert len(made) == 1
    assert not given_up


def test_a_shut_down_engine_is_told(engine: Engine, held: threading.Event) -> None:
    session = begin(engine, [], recipe="zero-filled")
    feed(session, slice_lines(slice=0) + slice_lines(slice=1))
    closing, failures = in_thread(session.close)
    shutting, _ = in_thread(engine.close)
    time.sleep(0.1)
    held.set()
    closing.join(5)
    shutting.join(5)
    assert [str(error) for error in failures] == ["the reconstruction was shut down before all images were made"]
