"""A scan's session: when things happen, what is told, and that nothing stays behind."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from acquisitions import BOTH, CALIBRATION, LAST_IN_SLICE, acquisition, header_xml, noise_readouts, smooth_object
from scanprior.gadgets import failures as failures_module
from scanprior.gadgets import session as session_module
from scanprior.gadgets.engine import Engine
from scanprior.gadgets.errors import PeerGone, ScanError
from scanprior.gadgets.mrd import (
    ACQUISITION_HEADER,
    SAMPLING_DESCRIPTION,
    Acquisition,
    Bucket,
    Image,
    ReconBit,
    ReconBuffer,
    ReconData,
)
from scanprior.gadgets.session import ScanSession
from scanprior.gadgets.slices import Key
from scanprior.models.methods import METHODS, Method
from scanprior.models.recipe import Recipe, RecipeError, load_recipe, recipe_from
from scanprior.models.scan import Progress, Reconstruction, Scan, Settings

SIZE = 24
COILS = 4


@pytest.fixture
def engine() -> Iterator[Engine]:
    running = Engine("sense", device="cpu")
    yield running
    running.close()


def slice_lines(scale: float = 1.0, **idx: int) -> list[Acquisition]:
    """A slice of 24 lines, twofold undersampled outside of 12 calibration lines, the flag of its end on the last."""
    kspace = np.fft.fftshift(
        np.fft.fft2(np.fft.ifftshift(smooth_object(SIZE, SIZE, COILS), (1, 2)), norm="ortho"), (1, 2)
    )
    numbers = [n for n in range(SIZE) if n % 2 == 0 or 6 <= n < 18]
    lines = []
    for n in numbers:
        flags = [BOTH] if 6 <= n < 18 else []
        if n == numbers[-1]:
            flags.append(LAST_IN_SLICE)
        lines.append(acquisition(scale * kspace[:, n], n, *flags, **idx))
    return lines


HEADER = header_xml((SIZE, SIZE, 1), channels=COILS, reference_lines=12)
NOISE_SCAN = noise_readouts(1e-6 * np.eye(COILS), 8, 64, seed=1)


def begin(engine: Engine, images: list[Image], header: str = HEADER, **parameters: str) -> ScanSession:
    return engine.open_session(header, parameters, images.append)


def feed(session: ScanSession, acquisitions: list[Acquisition]) -> None:
    for one in acquisitions:
        session.feed(one)


def told_by(session: ScanSession) -> str:
    with pytest.raises(ScanError) as failure:
        session.close()
    return str(failure.value)


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


# -- one scan ------------------------------------------------------------------------------------------------------


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


def test_many_failures_of_one_kind_take_no_memory(engine: Engine) -> None:
    session = begin(engine, [])
    for number in range(300):
        session._failures.note("no luck", Key(number, 0, 0, 0, 0))
    assert len(session._failures.kept["no luck"].keys) == failures_module.MAX_TOLD + 1
    told = told_by(session)
    assert told.startswith("no luck (300 images: slice 0")
    assert told.endswith("slice 4, repetition 0; ...)")


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


def recon_buffer(slices: list[list[Acquisition]]) -> ReconBuffer:
    """Slices as BucketToBuffer sorts them: one location each."""
    data = np.zeros((SIZE, SIZE, 1, COILS, 1, 1, len(slices)), np.complex64)
    headers = np.zeros((SIZE, 1, 1, 1, len(slices)), ACQUISITION_HEADER)
    for location, lines in enumerate(slices):
        for line in lines:
            number = int(line.head["idx"]["kspace_encode_step_1"])
            data[:, number, 0, :, 0, 0, location] = line.data.T
            headers[number, 0, 0, 0, location] = line.head
    return ReconBuffer(data, None, None, headers, np.zeros(1, SAMPLING_DESCRIPTION)[0])


def recon_data(count: int) -> ReconData:
    """A message with that many slices, and their calibration lines in its reference."""
    slices = [slice_lines(1 + number, slice=number) for number in range(count)]
    reference = [[line for line in lines if line.is_flag_set(BOTH)] for lines in slices]
    return ReconData([ReconBit(recon_buffer(slices), recon_buffer(reference))])


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


def test_an_empty_scan_is_no_failure(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    session = begin(engine, [])
    feed(session, NOISE_SCAN)
    session.close()
    assert "the scan ended without imaging readouts" in caplog.text


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


# -- more than one thread ------------------------------------------------------------------------------------------


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


# -- the engine ----------------------------------------------------------------------------------------------------


def test_which_recipe_a_scan_gets(engine: Engine) -> None:
    told: list[tuple[str, str]] = []

    def recipe(**parameters: str) -> Recipe:
        return engine.recipe(parameters, lambda level, text: told.append((level, text)))

    assert recipe().name == "sense"
    assert recipe(recipe="tv", config="zero-filled").name == "tv"
    assert recipe(config="zero-filled").name == "zero-filled"
    assert not told
    assert recipe(config="default.xml").name == "sense"
    assert told == [("warning", "configuration 'default.xml' is no recipe of ours: recipe 'sense' is used")]
    assert recipe(recipe="dds", device="auto").device == "auto", "the scan's word is the last"
    assert recipe(recipe="dds").device == "cpu", "the engine's before the recipe's"


def test_a_prior_is_loaded_once(engine: Engine) -> None:
    recipe = engine.recipe({"recipe": "dds"})
    assert engine.prior(recipe) is engine.prior(recipe)
    assert engine.prior(engine.recipe({})) is None


@pytest.mark.parametrize("name", ["sense", "zero-filled", "tv", "l1-wavelet"])
def test_warm_up_runs_every_method(name: str) -> None:
    running = Engine(name, device="cpu")
    try:
        assert running.warm_up() > 0
    finally:
        running.close()


def test_an_unknown_prior_is_refused_at_the_beginning(engine: Engine) -> None:
    recipe = recipe_from({"name": "mine", "method": "dds", "prior": "nobody"}, "test")
    mine = Engine(recipe, device="cpu")
    try:
        with pytest.raises(ScanError, match="prior 'nobody' not found: expected one of"):
            mine.open_session(HEADER, {}, lambda image: None)
    finally:
        mine.close()


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


def test_the_engines_device_is_checked_at_once() -> None:
    with pytest.raises(RecipeError, match=r"device: expected auto, cpu, cuda or cuda:<number> .*, found 'gpu0'"):
        Engine("sense", device="gpu0")


def test_warm_up_runs_where_the_scans_will(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server told to use a device warmed up on that of its recipe, and the first scan loaded the prior anew."""
    running = Engine(load_recipe("sense").on("cuda:7"), device="cpu")
    try:
        running.warm_up()
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        with pytest.raises(RuntimeError, match="asks for device 'cuda:7', and there are only 2 here"):
            running.device(running.default.on("cuda:7"))
    finally:
        running.close()


def test_parameters_that_nobody_knows_are_logged(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    engine.recipe({"sampels": "3", "std": "true"})
    assert "parameters that are not ours are left alone: 'sampels'" in caplog.text
