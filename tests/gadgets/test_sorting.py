"""Sorting: the right lines in the right slices, events at the right time, bad lines refused one by one."""

from __future__ import annotations

import numpy as np
import pytest
from acquisitions import (
    BOTH,
    CALIBRATION,
    LAST,
    LAST_IN_REPETITION,
    LAST_IN_SLICE,
    NOISE,
    REVERSE,
    acquisition,
    header_xml,
    recorded,
    truth,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scanprior.gadgets.encoding import Encoding
from scanprior.gadgets.errors import ScanError
from scanprior.gadgets.mrd import Acquisition
from scanprior.gadgets.slices import AcsReady, Event, Key, SliceReady
from scanprior.gadgets.sorting import Sorter

SIZE_X, SIZE_Y, COILS = 32, 24, 4


def lines(seed: int = 0, count: int = SIZE_Y, samples: int = SIZE_X) -> np.ndarray:
    generator = np.random.default_rng(seed)
    shape = (count, COILS, samples)
    return (generator.standard_normal(shape) + 1j * generator.standard_normal(shape)).astype(np.complex64)


def sorter(**header: object) -> Sorter:
    return Sorter(Encoding.from_header(header_xml(**header)))  # type: ignore[arg-type]


def feed(target: Sorter, acquisitions: list[Acquisition]) -> list[tuple[int, Event]]:
    """Events with the index of the acquisition after which they came."""
    return [(index, event) for index, one in enumerate(acquisitions) for event in target.add(one)]


def only_slice(events: list[tuple[int, Event]]) -> SliceReady:
    ready = [event for _, event in events if isinstance(event, SliceReady)]
    assert len(ready) == 1
    return ready[0]


# --- recorded scans -------------------------------------------------------------------------------------------------


def test_multislice_fires_each_slice_with_its_last_line_and_all_lines() -> None:
    scan, expected = recorded("brain_t2_multislice_r3"), truth("brain_t2_multislice_r3")
    target = Sorter(scan.encoding)
    events = feed(target, scan.acquisitions)
    ready = [(index, event) for index, event in events if isinstance(event, SliceReady)]
    assert [event.key for _, event in ready] == [
        Key(int(number), 0, 0, repetition, 0) for repetition in (0, 1) for number in expected["slice_order"]
    ]
    assert [index for index, _ in ready] == [
        index for index, one in enumerate(scan.acquisitions) if one.is_flag_set(LAST_IN_SLICE)
    ]
    for _, event in ready:
        data = event.slice_data
        assert np.array_equal(data.counts[0] > 0, expected["mask"])  # the off-grid lines with flag 20 alone, too
        assert np.array_equal(data.acs.origin[1] + np.arange(data.acs.kspace.shape[2]), expected["acs"])
        assert data.acs.mask.all()
        assert np.array_equal(data.acs.kspace[:, 0], data.kspace[:, 0, expected["acs"]])
        assert data.acs_key == event.key
    announced = [(index, event.key) for index, event in events if isinstance(event, AcsReady)]
    assert [key for _, key in announced] == [event.key for _, event in ready]
    # in repetition 1 the number of lines is known, and the maps can be made before the last shot is through
    last = {event.key: index for index, event in ready}
    assert all(index < last[key] for index, key in announced)
    assert target.flush() == []
    assert target.noise.readouts == 16


def test_lines_land_where_they_belong() -> None:
    scan = recorded("brain_t2_multislice_r3")
    events = feed(Sorter(scan.encoding), scan.acquisitions)
    slices = {event.key: event.slice_data for _, event in events if isinstance(event, SliceReady)}
    for one in scan.acquisitions[16::37]:
        idx = one.head["idx"]
        data = slices[Key(int(idx["slice"]), 0, 0, int(idx["repetition"]), 0)]
        assert np.array_equal(data.kspace[:, 0, int(idx["kspace_encode_step_1"])], one.data)


def test_separate_calibration_stays_out_of_the_image() -> None:
    scan = recorded("phantom16ch_grappa")
    events = feed(Sorter(scan.encoding), scan.acquisitions)
    assert [(index, type(event)) for index, event in events] == [(24, AcsReady), (54, SliceReady)]
    data = events[1][1].slice_data
    assert np.array_equal(np.flatnonzero(data.counts[0]), np.arange(1, 62, 2))
    assert data.acs.origin == (0, 17)
    assert data.acs.kspace.shape == (16, 1, 24, 64)
    reference = np.stack([one.data for one in scan.acquisitions[:24]], 1)
    assert np.array_equal(data.acs.kspace[:, 0], reference)
    assert np.array_equal(events[0][1].slice_data.acs.kspace, data.acs.kspace)


def test_volume_of_single_points() -> None:
    scan = recorded("brain8ch_poisson_r8")
    event = only_slice(feed(Sorter(scan.encoding), scan.acquisitions))
    data = event.slice_data
    assert data.kspace.shape == (8, 180, 230, 1)
    assert int((data.counts > 0).sum()) == 5148
    assert data.acs.origin == (78, 103)
    assert data.acs.kspace.shape == (8, 24, 24, 1)
    assert data.acs.mask.all()
    one = scan.acquisitions[1234]
    at = one.head["idx"]["kspace_encode_step_2"], one.head["idx"]["kspace_encode_step_1"]
    assert np.array_equal(data.kspace[:, at[0], at[1], 0], one.data[:, 0])


def test_early_acs_of_ascending_lines() -> None:
    scan = recorded("brain_t2_8ch_r4")
    events = feed(Sorter(scan.encoding), scan.acquisitions)
    acs = next(index for index, event in events if isinstance(event, AcsReady))
    last_calibration = max(index for index, one in enumerate(scan.acquisitions) if one.is_flag_set(BOTH))
    assert acs == last_calibration + 1


# --- order, averages, ends ------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(SIZE_Y)), st.permutations(range(SIZE_Y)))
def test_any_order_of_lines_gives_the_same_slice(order: list[int], other: list[int]) -> None:
    samples = lines()
    results = []
    for permutation in (order, other):
        target = sorter()
        for number in permutation:
            flags = (CALIBRATION,) if 6 <= number < 18 and number % 2 else (BOTH,) if 6 <= number < 18 else ()
            target.add(acquisition(samples[number], number, *flags))
        events = target.flush()
        assert [type(event) for event in events] == [SliceReady]
        results.append(events[0].slice_data)
    first, second = results
    assert np.array_equal(first.kspace, samples.transpose(1, 0, 2)[:, None])
    assert np.array_equal(first.kspace, second.kspace)
    assert np.array_equal(first.acs.kspace, second.acs.kspace)
    assert np.array_equal(first.acs.mask, second.acs.mask)
    assert first.head == second.head
    assert int(first.head["idx"]["kspace_encode_step_1"]) == SIZE_Y // 2
    assert first.stamps == second.stamps == (1000, 1000 + SIZE_Y - 1)


@pytest.mark.parametrize("inner", [True, False])
def test_averages_are_averaged_and_waited_for(inner: bool) -> None:
    target = sorter(limits={"average": (0, 1, 0)}, calibration="other")
    samples = [lines(0), lines(1)]
    order = [(number, average) for average in (0, 1) for number in range(SIZE_Y)]
    if inner:
        order.sort()
    scan = []
    for number, average in order:
        flags = (LAST_IN_SLICE,) if number == SIZE_Y - 1 else ()  # once per average
        scan.append(acquisition(samples[average][number], number, *flags, average=average))
    events = feed(target, scan)
    assert [index for index, _ in events] == [2 * SIZE_Y - 1]
    data = only_slice(events).slice_data
    assert (data.counts == 2).all()
    assert np.allclose(data.kspace[:, 0], (samples[0] + samples[1]).transpose(1, 0, 2) / 2, atol=1e-6)


def test_an_average_that_never_comes_is_closed_by_the_end_of_the_measurement() -> None:
    target = sorter(limits={"average": (0, 1, 0)}, calibration="other")
    scan = [acquisition(row, number) for number, row in enumerate(lines())]
    scan[10] = acquisition(lines()[10], 10, LAST_IN_SLICE)
    scan[-1] = acquisition(lines()[-1], SIZE_Y - 1, LAST_IN_SLICE, LAST)
    assert [index for index, _ in feed(target, scan)] == [SIZE_Y - 1]


def test_segments_are_merged_and_contrasts_kept_apart() -> None:
    limits = {"contrast": (0, 1, 0), "phase": (0, 0, 0), "set": (0, 0, 0), "segment": (0, 3, 0)}
    target = sorter(limits=limits, calibration="other")
    scan = []
    for number, row in enumerate(lines()):
        for contrast in (0, 1):
            # the flag comes with the last echo only
            flags = (LAST_IN_SLICE,) if number == SIZE_Y - 1 and contrast == 1 else ()
            scan.append(acquisition(row * (1 + contrast), number, *flags, contrast=contrast, segment=number % 4))
    ready = [event for _, event in feed(target, scan)]
    assert sorted(event.key.contrast for event in ready) == [0, 1]
    assert all((event.slice_data.counts == 1).all() for event in ready)


def test_last_in_repetition_closes_all_slices_of_that_repetition_only() -> None:
    target = sorter(calibration="other")
    row = lines()[0]
    for number in (0, 1):
        for repetition in (0, 1):
            target.add(acquisition(row, 3, slice=number, repetition=repetition))
    events = target.add(acquisition(row, 4, LAST_IN_REPETITION, slice=1, repetition=0))
    assert sorted((event.key.slice, event.key.repetition) for event in events) == [(0, 0), (1, 0)]
    assert sorted(event.key.repetition for event in target.flush()) == [1, 1]


def test_ends_count_on_lines_that_are_left_out() -> None:
    target = sorter(calibration="other")
    target.add(acquisition(lines()[0], 3))
    assert [type(event) for event in target.add(acquisition(lines()[0], 0, 27, LAST))] == [SliceReady]


def test_flag_20_alone_is_reference_only_unless_embedded() -> None:
    for mode, image_lines in (("embedded", 2), ("separate", 1), ("other", 1), ("interleaved", 1)):
        target = sorter(calibration=mode)
        target.add(acquisition(lines()[11], 11, CALIBRATION))
        target.add(acquisition(lines()[12], 12, BOTH))
        data = target.flush()[0].slice_data
        assert int(data.counts.sum()) == image_lines, mode
        assert data.acs.mask.sum() == 2, mode


def test_both_calibration_flags_are_taken_as_21(caplog: pytest.LogCaptureFixture) -> None:
    target = sorter(calibration="separate")
    target.add(acquisition(lines()[12], 12, CALIBRATION, BOTH))
    target.add(acquisition(lines()[13], 13, CALIBRATION, BOTH))
    data = target.flush()[0].slice_data
    assert (int(data.counts.sum()), int(data.acs.mask.sum())) == (2, 2)
    assert caplog.text.count("taken as 21") == 1


def test_a_reference_scan_is_used_for_later_repetitions() -> None:
    target = sorter(calibration="separate")
    for number in range(6, 18):
        target.add(acquisition(lines(1)[number], number, CALIBRATION, *((LAST_IN_SLICE,) if number == 17 else ())))
    events = []
    for repetition in (0, 1):
        for number in range(0, SIZE_Y, 2):
            flags = (LAST_IN_SLICE,) if number == SIZE_Y - 2 else ()
            events += target.add(acquisition(lines()[number], number, *flags, repetition=repetition))
    assert [type(event) for event in events] == [AcsReady, SliceReady, SliceReady]
    assert events[2].slice_data.acs_key == events[0].key
    assert events[2].slice_data.acs is not None


def test_embedded_reference_of_known_size_is_announced_at_once() -> None:
    target = sorter(reference_lines=8)
    scan = [acquisition(lines()[number], number, BOTH) for number in (12, 11, 13, 10, 14, 9, 15, 8)]
    events = feed(target, scan)
    assert [(index, type(event)) for index, event in events] == [(7, AcsReady)]


def test_more_calibration_lines_after_the_announcement_reach_the_slice() -> None:
    target = sorter()
    for number in [*range(6, 18), 0]:
        events = target.add(acquisition(lines()[number], number, *((BOTH,) if number else ())))
    assert [type(event) for event in events] == [AcsReady]
    assert events[0].slice_data.acs.kspace.shape[2] == 12
    target.add(acquisition(lines()[18], 18, BOTH))
    assert target.flush()[0].slice_data.acs.kspace.shape[2] == 13


def test_left_out_lines_are_counted() -> None:
    target = sorter(calibration="other")
    for flag, _ in ((23, ""), (24, ""), (26, ""), (27, ""), (28, ""), (29, ""), (30, ""), (31, "")):
        assert target.add(acquisition(lines()[0], 0, flag)) == []
    assert sum(target.left_out.values()) == 8
    assert len(target.left_out) == 8
    assert target.flush() == []


def test_a_feedback_line_that_is_also_imaging_stays() -> None:
    target = sorter()
    target.add(acquisition(lines()[0], 12, 28, BOTH))
    assert target.flush()[0].slice_data.readouts == 1


def test_reversed_lines_are_flipped() -> None:
    target = sorter(calibration="other")
    target.add(acquisition(lines()[0][:, ::-1], 5, REVERSE))
    assert np.array_equal(target.flush()[0].slice_data.kspace[:, 0, 5], lines()[0])


def test_asymmetric_echo_and_discarded_samples_are_placed() -> None:
    target = sorter(calibration="other")
    full = lines()[0]
    # samples 8..31 of 32 with the centre at 16, in a readout that has two samples to discard at either end
    padded = np.pad(full[:, 8:], ((0, 0), (2, 2)), constant_values=99)
    target.add(acquisition(padded, 5, center=10, discard=(2, 2)))
    data = target.flush()[0].slice_data
    assert data.readout == (8, 32)
    assert np.array_equal(data.kspace[:, 0, 5, 8:], full[:, 8:])
    assert not data.kspace[:, 0, 5, :8].any()


def test_oversampling_removed_upstream_is_recognised() -> None:
    target = sorter(encoded=(64, 24, 1), recon=(32, 24, 1), fov=(480, 240, 5), recon_fov=(240, 240, 5))
    target.add(acquisition(lines()[0], 5))
    assert target.flush()[0].slice_data.kspace.shape == (COILS, 1, 24, 32)


# --- bad lines ------------------------------------------------------------------------------------------------------


def bad(kind: str) -> Acquisition:
    row = lines()[0]
    if kind == "channels":
        return acquisition(row[:3], 6)
    if kind == "shape":
        one = acquisition(row, 6)
        return Acquisition(one.head, row[:, :-1])
    if kind == "long":
        return acquisition(np.tile(row, 2), 6)
    if kind == "centre":
        return acquisition(row[:, :20], 6, center=19)
    if kind == "discard":
        return acquisition(row, 6, discard=(20, 12))
    if kind == "line":
        return acquisition(row, SIZE_Y)
    if kind == "slice":
        return acquisition(row, 6, slice=2)
    if kind == "space":
        one = acquisition(row, 6)
        one.head["encoding_space_ref"] = 1
        return one
    if kind == "length":
        return acquisition(row[:, :-4], 6, center=SIZE_X // 2 - 2)
    row = row.copy()
    row[1, 7] = {"nan": np.nan, "infinite": np.inf}[kind]
    return acquisition(row, 6)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("channels", r"acquisition 7 \(line 6, slice 0, repetition 0\) has 3 channels, expected 4"),
        ("shape", r"has data \(4, 31\), its header says \(4, 32\)"),
        ("long", "readout of 64 samples with its centre at sample 32 does not fit into a matrix of 32"),
        ("centre", "readout of 20 samples with its centre at sample 19 does not fit"),
        ("discard", "32 samples discards 20 before and 12 after: none are left"),
        ("line", "has kspace_encoding_step_1 24, the header allows 0 to 23"),
        ("slice", "has slice 2, the header allows 0 to 1"),
        ("space", "belongs to encoding space 1, the header has only space 0"),
        ("length", r"has 28 samples \(centre 14\), the lines before it 32"),
        ("nan", "not finite"),
        ("infinite", "not finite"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_bad_line_is_refused_and_the_rest_kept(kind: str, message: str, first: bool) -> None:
    target = sorter(limits={"slice": (0, 1, 0)}, calibration="other")
    scan = [acquisition(row, number) for number, row in enumerate(lines())]
    split = 0 if first and kind != "length" else 5  # a length can only differ from lines before
    before, after = scan[:split], scan[split:]
    feed(target, before)
    with pytest.raises(ScanError, match=message):
        target.add(bad(kind))
    feed(target, after)
    data = target.flush()[0].slice_data
    # a line of another slice, or of another encoding space, is nothing that this image misses
    assert data.notes == ({} if kind in ("slice", "space") else {"refused_readouts": 1})
    assert (data.counts == 1).all()
    assert np.array_equal(data.kspace[:, 0], lines().transpose(1, 0, 2))


def test_huge_finite_values_are_not_taken_for_infinite() -> None:
    target = sorter(calibration="other")
    target.add(acquisition(np.full((COILS, SIZE_X), 1e30, np.complex64), 3))
    assert target.flush()[0].slice_data.readouts == 1


def test_memory_budget_is_kept_and_named() -> None:
    size = COILS * SIZE_X * SIZE_Y * 8
    target = Sorter(Encoding.from_header(header_xml(calibration="other")), max_bytes=2 * size)
    for number in (0, 1):
        target.add(acquisition(lines()[0], 3, slice=number))
    with pytest.raises(ScanError, match="the memory budget is"):
        target.add(acquisition(lines()[0], 3, slice=2))
    assert len(target.add(acquisition(lines()[0], 4, LAST_IN_SLICE, slice=1))) == 1
    target.add(acquisition(lines()[0], 3, slice=2))
    assert len(target.flush()) == 2


def test_lines_after_the_end_of_their_slice_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    target = sorter(calibration="other")
    assert len(target.add(acquisition(lines()[0], 3, LAST_IN_SLICE))) == 1
    assert target.add(acquisition(lines()[0], 4)) == []
    assert target.flush() == []
    assert target.left_out["after the end of their slice"] == 1
    assert "more lines of it come" in caplog.text


def test_noise_goes_to_the_noise_scan_whatever_its_length() -> None:
    target = sorter()
    target.add(acquisition(np.ones((COILS, 256), np.complex64), 0, NOISE, LAST))
    assert (target.noise.readouts, target.noise.samples) == (1, 256)
    with pytest.raises(ScanError, match="not finite"):
        target.add(acquisition(np.full((COILS, 256), np.nan, np.complex64), 0, NOISE))
    assert target.noise.readouts == 1
