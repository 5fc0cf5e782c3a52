"""What goes wrong in a scan is told once, and takes no other image with it."""

from __future__ import annotations

import time

import numpy as np
import pytest
from acquisitions import BOTH, CALIBRATION, LAST_IN_SLICE, acquisition
from scanprior.gadgets import failures as failures_module
from scanprior.gadgets.engine import Engine
from scanprior.gadgets.errors import PeerGone, ScanError
from scanprior.gadgets.mrd import Image
from scanprior.gadgets.slices import Key
from scanprior.models.recipe import recipe_from
from sessions import COILS, HEADER, NOISE_SCAN, SIZE, begin, feed, recon_data, slice_lines, told_by


def test_a_bad_location_of_recon_data_takes_no_other_with_it(engine: Engine) -> None:
    direct: list[Image] = []
    session = begin(engine, direct)
    feed(session, NOISE_SCAN)
    for number in (0, 1, 2, 3):
        feed(session, slice_lines(1 + number, slice=number))
    session.close()

    images: list[Image] = []
    session = begin(engine, images)
    feed(session, NOISE_SCAN)
    message = recon_data(4)
    message.bits[0].data.data[5, 8, ..., 1] = np.nan
    message.bits[0].data.data[..., 2] = 0
    session.feed(message)
    told = told_by(session)
    assert told.count("slice 1, repetition 0: recon data have samples that are not finite (NaN or infinite)") == 1
    assert told.count("slice 2, repetition 0 has only zeros in its 18 lines") == 1
    assert told.count("slice") == 2
    assert [int(image.head["slice"]) for image in images] == [0, 3]
    for image, other in zip(images, direct[::3], strict=True):
        np.testing.assert_array_equal(image.data, other.data)


def test_recon_data_that_are_all_bad_fail_once_and_the_next_scan_works(engine: Engine) -> None:
    images: list[Image] = []
    session = begin(engine, images)
    feed(session, NOISE_SCAN)
    message = recon_data(3)
    message.bits[0].data.data[5, 8] = np.nan
    session.feed(message)
    assert told_by(session) == (
        "recon data have samples that are not finite (NaN or infinite) "
        "(3 images: slice 0, repetition 0; slice 1, repetition 0; slice 2, repetition 0)"
    )
    assert not images
    session = begin(engine, images)
    feed(session, NOISE_SCAN)
    session.feed(recon_data(3))
    session.close()
    assert [int(image.head["slice"]) for image in images] == [0, 1, 2]


def test_refused_readouts_stand_in_the_history_of_their_own_image(engine: Engine) -> None:
    images: list[Image] = []
    session = begin(engine, images)
    feed(session, NOISE_SCAN)
    for number in range(2):
        lines = slice_lines(slice=number)
        if number == 0:
            for bad in (2, 3):
                lines[bad].data[0, 0] = np.nan
        feed(session, lines)
    told = told_by(session)
    assert told.count("has samples that are not finite (NaN or infinite)") == 2
    assert told.endswith("2 readouts were left out, as the history of their images says")
    assert ["refused readouts 2" in image.meta for image in images] == [True, False]
    assert "readouts left out" not in images[1].meta


def test_a_refused_last_line_still_ends_its_slice(engine: Engine) -> None:
    images: list[Image] = []
    session = begin(engine, images)
    lines = slice_lines()
    lines[-1].data[0, 0] = np.inf
    feed(session, [*NOISE_SCAN, *lines])
    deadline = time.monotonic() + 10
    while not images:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert "refused readouts 1" in images[0].meta
    told_by(session)


def test_one_failure_of_many_slices_is_told_once(engine: Engine) -> None:
    """Three slices without calibration lines are one message; the one that has them is made."""
    images: list[Image] = []
    session = begin(engine, images)
    feed(session, NOISE_SCAN)
    for number in range(4):
        lines = slice_lines(slice=number)
        if number != 2:
            for line in lines:
                line.head["flags"] &= ~np.uint64(1 << (BOTH - 1) | 1 << (CALIBRATION - 1))
            lines = [line for line in lines if int(line.head["idx"]["kspace_encode_step_1"]) % 2 == 0]
            lines[-1].head["flags"] |= np.uint64(1 << (LAST_IN_SLICE - 1))
        feed(session, lines)
    told = told_by(session)
    assert told.startswith("no ACS lines: coil maps cannot be estimated; acquire ACS lines")
    assert told.endswith("(3 images: slice 0, repetition 0; slice 1, repetition 0; slice 3, repetition 0)")
    assert [int(image.head["slice"]) for image in images] == [2]


def test_many_failures_of_one_kind_take_no_memory(engine: Engine) -> None:
    session = begin(engine, [])
    for number in range(300):
        session._failures.note("no luck", Key(number, 0, 0, 0, 0))
    assert len(session._failures.kept["no luck"].keys) == failures_module.MAX_TOLD + 1
    told = told_by(session)
    assert told.startswith("no luck (300 images: slice 0")
    assert told.endswith("slice 4, repetition 0; ...)")


def test_failures_without_end_are_told_in_short(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    session = begin(engine, [])
    for number in range(1000):
        bad = acquisition(np.full((COILS, SIZE), np.nan), 3)
        bad.head["scan_counter"] = number
        session.feed(bad)
    told = told_by(session)
    assert "; and 995 more; 1000 readouts were left out" in told
    assert len(told) < 1000
    assert len([record for record in caplog.records if "not finite" in record.message]) == 100


def test_a_corrupt_noise_scan_is_told_once_and_ends_nothing(engine: Engine) -> None:
    images: list[Image] = []
    session = begin(engine, images)
    feed(session, [acquisition(np.zeros((COILS, 64)), 0, 19)])
    feed(session, slice_lines())
    assert told_by(session) == "the noise scan is corrupt: all samples of its 1 readouts are zero"


def test_a_peer_that_is_gone_fails_the_images_alone(engine: Engine) -> None:
    def send(image: Image) -> None:
        raise PeerGone("the peer takes nothing any more")

    session = engine.open_session(HEADER, {"recipe": "zero-filled"}, send)
    feed(session, slice_lines(slice=0) + slice_lines(slice=1))
    told = told_by(session)
    assert told.startswith("the peer takes nothing any more (2 images: slice 0")


def test_an_unknown_prior_is_refused_at_the_beginning(engine: Engine) -> None:
    recipe = recipe_from({"name": "mine", "method": "dds", "prior": "nobody"}, "test")
    mine = Engine(recipe, device="cpu")
    try:
        with pytest.raises(ScanError, match="prior 'nobody' not found: expected one of"):
            mine.open_session(HEADER, {}, lambda image: None)
    finally:
        mine.close()
