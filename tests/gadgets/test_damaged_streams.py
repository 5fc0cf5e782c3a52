"""Streams damaged at random: the reader and the link always end, soon, without absurd memory, with a clear error."""

from __future__ import annotations

import io
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scanprior.gadgets import mrd
from scanprior.gadgets.byte_source import Limits
from scanprior.gadgets.errors import WireError
from scanprior.gadgets.frames import FrameReader, to_bytes
from scanprior.gadgets.link import LinkSettings, serve_scan
from session_double import blank_image, double_of
from support import recorded_stream

LIMITS = Limits(
    text=1 << 16, meta=1 << 16, acquisition=1 << 20, waveform=1 << 20, image=1 << 20, message=4 << 20, count=4096
)
CASES = [
    "gt_bucket_sorted/to",
    "gt_recondata_to_images/to",
    "gt_imagearray_midchain/to",
    "fire_config_json/to",
    "gt_error/from",
]


def shortened(case: str) -> bytes:
    """The first frames of a recorded stream, so that damage often hits what counts."""
    frames = []
    for frame in FrameReader(io.BytesIO(recorded_stream(f"{case}_external"))):
        if len(frames) < 6 and not isinstance(frame.message, mrd.Close):
            frames.append(frame)
    return to_bytes(*frames, mrd.Close())


@pytest.fixture(scope="module", params=CASES)
def stream(request: pytest.FixtureRequest) -> bytes:
    return shortened(request.param)


def read_until_the_end(raw: bytes) -> str | None:
    try:
        for _ in FrameReader(io.BytesIO(raw), LIMITS):
            pass
    except WireError as error:
        return str(error)
    return None


@settings(max_examples=60, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_truncated(stream: bytes, data: st.DataObject) -> None:
    end = data.draw(st.integers(0, len(stream) - 1))
    error = read_until_the_end(stream[:end])
    assert error is not None
    assert "the stream was cut short: it ended after" in error or "closed the connection without CLOSE" in error


# what a length becomes when it is damaged: nothing, something plausible, all bits
_BYTES = st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\xff\xff"]))


@settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_corrupted(stream: bytes, data: st.DataObject) -> None:
    raw = bytearray(stream)
    # half of the damage in the first kilobytes, where lengths and counts lie close together
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.one_of(st.integers(0, min(len(raw), 6000) - 1), st.integers(0, len(raw) - 1)))
        patch = data.draw(_BYTES)
        raw[at : at + len(patch)] = patch
    tracemalloc.start()
    try:
        error = read_until_the_end(bytes(raw))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * LIMITS.message + (1 << 20)
    assert error is None or len(error) < 2000


@settings(max_examples=100, deadline=2000)
@given(raw=st.binary(max_size=3000), opened=st.booleans())
def test_garbage_through_the_link_ends_with_one_message(raw: bytes, opened: bool) -> None:
    header = to_bytes(mrd.ConfigText(""), mrd.Header("<ismrmrdHeader/>")) if opened else b""
    out = io.BytesIO()
    report = serve_scan(io.BytesIO(header + raw), out, double_of()[0], LinkSettings(limits=LIMITS))
    if not header + raw:
        assert out.getvalue() == b""
        return
    replies = [frame.message for frame in FrameReader(io.BytesIO(out.getvalue()))]
    assert replies[-1] == mrd.Close()
    told = [reply for reply in replies if isinstance(reply, mrd.ErrorText)]
    assert [reply.text for reply in told] == ([] if report.failure is None else [report.failure])


@settings(max_examples=60, deadline=2000)
@given(
    sizes=st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(0, 3)),
    flags=st.integers(0, (1 << 64) - 1),
    counter=st.integers(0, 65535),
)
def test_acquisitions_of_any_size_survive(sizes: tuple[int, int, int], flags: int, counter: int) -> None:
    channels, samples, dimensions = sizes
    head = np.zeros((), mrd.ACQUISITION_HEADER)
    head["active_channels"], head["number_of_samples"] = channels, samples
    head["trajectory_dimensions"], head["flags"], head["idx"]["user"][3] = dimensions, flags, counter
    data = np.arange(channels * samples, dtype="c8").reshape(channels, samples)
    traj = np.arange(samples * dimensions, dtype="f4").reshape(samples, dimensions)
    raw = to_bytes(mrd.Acquisition(head[()], data, traj), mrd.Close())
    acquisition: Any = next(iter(FrameReader(io.BytesIO(raw)))).message
    assert int(acquisition.head["flags"]) == flags
    assert int(acquisition.head["idx"]["user"][3]) == counter
    np.testing.assert_array_equal(acquisition.data, data)
    assert acquisition.traj.size == traj.size
    assert to_bytes(acquisition, mrd.Close()) == raw


@settings(max_examples=40, deadline=2000)
@given(meta=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), level=st.floats(0, 1, width=32))
def test_images_with_any_meta_survive(meta: str, level: float) -> None:
    image = blank_image(level)
    image.meta = f"<ismrmrdMeta>{meta}</ismrmrdMeta>"
    back: Any = FrameReader(io.BytesIO(to_bytes(image))).read().message
    assert back.meta == image.meta
    np.testing.assert_array_equal(back.data, image.data)
