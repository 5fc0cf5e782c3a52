"""A scan's session: which images come, when, and what they say; and that it does not grow."""

from __future__ import annotations

import logging
import time

import numpy as np
import pytest
import torch
from acquisitions import BOTH
from scanprior.gadgets.engine import Engine
from scanprior.gadgets.mrd import Bucket, Image
from scanprior.models.methods import METHODS, Method
from scanprior.models.recipe import recipe_from
from scanprior.models.scan import Progress, Reconstruction, Scan, Settings
from sessions import HEADER, NOISE_SCAN, SIZE, begin, feed, slice_lines


def test_each_slice_is_an_image_as_soon_as_it_is_complete(engine: Engine) -> None:
    images: list[Image] = []
    session = begin(engine, images)
    feed(session, NOISE_SCAN)
    for number in range(3):
        feed(session, slice_lines(slice=number))
        deadline = time.monotonic() + 10
        while len(images) <= number:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    session.close()
    assert [int(image.head["slice"]) for image in images] == [0, 1, 2]
    assert [int(image.head["image_index"]) for image in images] == [1, 2, 3]
    assert [entry["noise"] for entry in session.results] == ["scan"] * 3
    assert len(session.timing.slices) == 3
    assert session.timing.first_image is not None


def test_a_server_remembers_the_latest_images_only(engine: Engine) -> None:
    images: list[Image] = []
    session = engine.open_session(HEADER, {}, images.append, records=2)
    feed(session, NOISE_SCAN)
    for number in range(5):
        feed(session, slice_lines(slice=number))
    session.close()
    assert len(images) == 5
    assert [entry["key"]["slice"] for entry in session.results] == [3, 4]  # type: ignore[index]
    assert [entry["key"] for entry in session.timing.slices] == [f"slice {n}, repetition 0" for n in (3, 4)]
    assert session.timing.first_image is not None
    assert session.timing.first_image < session.timing.slices[0]["sent"]  # type: ignore[operator]


def test_maps_are_made_ahead_once_and_used(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        session = begin(engine, [])
        lines = slice_lines()
        feed(session, [*NOISE_SCAN, *lines[:-1]])
        engine.worker.submit(lambda: None).result()
        made = [record for record in caplog.records if "calibration samples" in record.message]
        assert len(made) == 1, "before the last line"
        session.feed(lines[-1])
        session.close()
    assert [r.message for r in caplog.records].count(made[0].message) == 1
    assert len([r for r in caplog.records if "calibration samples" in r.message]) == 1


def test_a_bucket_is_its_acquisitions(engine: Engine) -> None:
    direct: list[Image] = []
    session = begin(engine, direct)
    feed(session, [*NOISE_SCAN, *slice_lines()])
    session.close()
    bucketed: list[Image] = []
    session = begin(engine, bucketed)
    feed(session, NOISE_SCAN)
    lines = slice_lines()
    session.feed(Bucket(lines, [line for line in lines if line.is_flag_set(BOTH)], [], [], []))
    session.close()
    np.testing.assert_array_equal(bucketed[0].data, direct[0].data)


def test_an_empty_scan_is_no_failure(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    session = begin(engine, [])
    feed(session, NOISE_SCAN)
    session.close()
    assert "the scan ended without imaging readouts" in caplog.text


def test_complex_output_is_the_same_image(engine: Engine) -> None:
    found: dict[str, list[Image]] = {}
    for output in ("magnitude", "complex"):
        found[output] = []
        session = begin(engine, found[output], output=output)
        feed(session, [*NOISE_SCAN, *slice_lines()])
        session.close()
    (magnitude,), (image,) = found["magnitude"], found["complex"]
    assert (int(image.head["image_series_index"]), int(image.head["image_type"])) == (1, 5)
    np.testing.assert_allclose(np.abs(image.data), magnitude.data, rtol=1e-6)


@pytest.mark.parametrize("filling", ["zero-fill", "pocs", "homodyne"])
@pytest.mark.parametrize("first", [0, 6], ids=["whole", "partial"])
def test_the_meta_say_what_partial_fourier_did(filling: str, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image is filled; the standard deviation is that of the image before, and says so."""
    std = torch.linspace(0.1, 1, SIZE * SIZE).reshape(SIZE, SIZE)
    original = METHODS["zero-filled"]

    def run(scan: Scan, prior: None, settings: Settings, progress: Progress) -> Reconstruction:
        result = original.run(scan, prior, settings, progress)
        return Reconstruction(result.image, std, result.info)

    monkeypatch.setitem(METHODS, "zero-filled", Method(run, original.settings, needs_noise=False))
    found: dict[str, list[Image]] = {}
    for asked in ("zero-fill", filling):
        found[asked] = []
        recipe = recipe_from({"name": "mine", "method": "zero-filled", "partial_fourier": asked}, "test")
        mine = Engine(recipe, device="cpu")
        try:
            session = begin(mine, found[asked])
            feed(session, [line for line in slice_lines() if int(line.head["idx"]["kspace_encode_step_1"]) >= first])
            session.close()
        finally:
            mine.close()
    image, deviation = found[filling]
    filled = first > 0 and filling != "zero-fill"
    assert np.array_equal(image.data, found["zero-fill"][0].data) is not filled
    np.testing.assert_allclose(deviation.data[0, 0], std, rtol=1e-5)
    for message in (image, deviation):
        assert (f"partial fourier filling {filling}" in message.meta) is filled
    assert "standard deviation" not in image.meta
    told = f"standard deviation of the image before {filling}, which it did not pass through"
    assert (told in deviation.meta) is filled
    assert (f"standard deviation of the magnitude before {filling}<" in deviation.meta) is filled


def test_images_do_not_depend_on_the_order_in_which_slices_come(engine: Engine) -> None:
    """The seed of a learned reconstruction belongs to the image, not to its turn."""
    found = []
    for order in ((0, 1), (1, 0)):
        images: list[Image] = []
        session = begin(engine, images, recipe="dds", steps="2", samples="2")
        feed(session, NOISE_SCAN)
        for number in order:
            feed(session, slice_lines(slice=number))
        session.close()
        found.append({(int(i.head["slice"]), int(i.head["image_series_index"])): i.data for i in images})
    assert set(found[0]) == set(found[1]) == {(0, 1), (0, 2), (1, 1), (1, 2)}
    for key, data in found[0].items():
        np.testing.assert_array_equal(found[1][key], data)
    assert not np.array_equal(found[0][0, 2], found[0][1, 2]), "each slice has draws of its own"


def test_nothing_is_drawn_for_a_standard_deviation_that_nobody_wants(engine: Engine) -> None:
    found = []
    for std in ("true", "false"):
        images: list[Image] = []
        session = begin(engine, images, recipe="pnp-admm", steps="3", samples="2", std=std)
        feed(session, NOISE_SCAN)
        feed(session, slice_lines(slice=0))
        session.close()
        found.append(images)
    (image, _), (alone,) = found
    np.testing.assert_array_equal(image.data, alone.data)
    assert "evaluations 4 + 10 x 2" in image.meta
    assert "evaluations 4<" in alone.meta


@pytest.mark.parametrize(("calibration", "told"), [(8, True), (12, False)])
def test_a_kernel_that_was_made_smaller_is_told(engine: Engine, calibration: int, told: bool) -> None:
    images: list[Image] = []
    session = begin(engine, images, recipe="sense")
    feed(session, NOISE_SCAN)
    feed(session, slice_lines(calibration=calibration, slice=0))
    session.close()
    (image,) = images
    assert ("espirit kernel 4, not 6: few ACS lines" in image.meta) is told


def test_a_long_dynamic_scan_does_not_grow(engine: Engine) -> None:
    """Each repetition has calibration lines of its own, so maps of its own; only the latest are kept."""
    counts: list[int] = []

    def look(image: Image) -> None:
        counts.append(len(session._maps))

    session = engine.open_session(HEADER, {"recipe": "sense", "steps": "1"}, look)
    feed(session, NOISE_SCAN)
    for repetition in range(12):
        for number in range(2):
            feed(session, slice_lines(1 + 0.1 * repetition, slice=number, repetition=repetition))
        engine.worker.submit(lambda: None).result()
        assert len(session._jobs) <= 1, "the callback of the last one may still run"
    session.close()
    assert len(counts) == 24
    assert max(counts) <= 4
    assert not session._jobs
