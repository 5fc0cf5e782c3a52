"""Pulseq sequences: the timing, labels and gradients of the file itself against the table and the protocol."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pypulseq as pp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from masks import lines_mask, points_mask, tables
from scanprior.sim.acquisition_order import OrderSettings
from scanprior.sim.pulseq_file import build_sequence, read_pulseq, write_pulseq
from scanprior.sim.pulseq_protocol import ProtocolError, PulseqProtocol, effective_echo
from scanprior.sim.sampling_table import SamplingTable, TableError
from scanprior.sim.tables import read_table, write_table
from sequences import sign_again

GRE = PulseqProtocol(te_ms=8, tr_ms=60, slices=3, slice_gap_mm=1, dummy_scans=2, noise_readouts=5, dwell_us=8)
GRE_3D = PulseqProtocol(te_ms=4, tr_ms=9, flip_deg=8, noise_readouts=2, dummy_scans=3)
TSE = PulseqProtocol("tse", te_ms=24, tr_ms=400, echo_spacing_ms=12, slices=2, dummy_scans=1, noise_readouts=4)
LINES = SamplingTable(lines_mask(64, 8, seed=3, columns=64), OrderSettings("centre-out"))
POINTS = SamplingTable(points_mask((16, 12), 4, seed=2, columns=32), OrderSettings("interleaved", 4))
THIN = SamplingTable(replace(points_mask((256, 256), 4, columns=32), fov_mm=(230.0, 230.0, 4.0)), OrderSettings())
TRAINS = SamplingTable(lines_mask(64, 8, seed=3, columns=64), OrderSettings("interleaved", 4, 1))
CASES = {"gre": (LINES, GRE), "gre3d": (POINTS, GRE_3D), "tse": (TRAINS, TSE)}


def read_back(path: Path) -> pp.Sequence:
    sequence = pp.Sequence()
    sequence.read(str(path), detect_rf_use=None)
    return sequence


def write(folder: Path, table: SamplingTable, protocol: PulseqProtocol) -> Path:
    path = folder / "mask.seq"
    write_table(path, table, "pulseq", partial(write_pulseq, protocol=protocol))
    return path


@pytest.mark.parametrize("version", ["1.5", "1.4.1"])
@pytest.mark.parametrize("negate", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_file_plays_the_table(tmp_path: Path, case: str, negate: bool, version: str) -> None:
    table, protocol = CASES[case]
    path = write(tmp_path, table, replace(protocol, version=version, negate_phase=negate))
    assert f"major 1\nminor {version[2]}\n" in path.read_text()
    sequence = read_back(path)
    assert sequence.check_timing() == (True, [])

    labels = sequence.evaluate_labels(evolution="adc")
    noise, rows = protocol.noise_readouts, len(table.order.points)
    assert labels["NOISE"].tolist() == [1] * noise + [0] * (rows * protocol.slices)
    imaging = {name: values[noise:] for name, values in labels.items()}
    for slice_ in range(protocol.slices):
        own = imaging["SLC"] == slice_
        assert np.array_equal(imaging["LIN"][own], table.order.points[:, 0])
        assert np.array_equal(imaging["PAR"][own], table.order.points[:, 1])
        for flag in ("REF", "IMA"):
            assert np.array_equal(imaging[flag][own], table.in_acs)
        if table.settings.echo_train > 1:
            assert np.array_equal(imaging["SEG"][own], table.order.echo)

    samples = table.mask.matrix[0] * protocol.oversampling
    trajectory, _, excitations, refocusings, times = sequence.calculate_kspace()
    kspace = trajectory.reshape(3, -1, samples)[:, noise:] * (np.array(table.mask.fov_mm) * 1e-3)[:, None, None]
    times = times.reshape(-1, samples)
    sign = -1 if negate else 1
    assert times[:noise].max(initial=0) < excitations[0]
    # one line is 1; every sample of a readout has the line's ky and kz, and kx is on its own grid
    assert np.abs(kspace[1] - sign * (imaging["LIN"] - table.mask.matrix[1] // 2)[:, None]).max() < 1e-3
    centre_z = table.mask.matrix[2] // 2
    assert np.abs(kspace[2] - sign * (imaging["PAR"] - centre_z)[:, None]).max() < 1e-3
    assert np.abs(kspace[0] - (np.arange(samples) - samples // 2) / protocol.oversampling).max() < 1e-3

    assert len(excitations) == (
        protocol.slices * (protocol.dummy_scans + int(table.order.shot.max() + 1 if case == "tse" else rows))
    )
    per_slice = protocol.tr_ms * 1e-3 / protocol.slices
    assert np.allclose(np.diff(excitations), per_slice, atol=1e-9)
    centre = times[noise:, samples // 2]
    since = centre - np.array(excitations)[np.searchsorted(excitations, centre) - 1]
    if case == "tse":
        assert np.allclose(since, (imaging["SEG"] + 1) * 12e-3, atol=1e-8)
        at_centre = imaging["LIN"] == table.mask.matrix[1] // 2
        assert np.allclose(since[at_centre], 24e-3, atol=1e-8)
        train = np.array(refocusings).reshape(-1, 4) - np.array(excitations)[:, None]
        assert np.allclose(train, 1e-3 * np.array([6, 18, 30, 42]), atol=1e-8)
    else:
        assert np.allclose(since, protocol.te_ms * 1e-3, atol=1e-8)
    for name, value in {
        "TE": protocol.te_ms * 1e-3, "TR": protocol.tr_ms * 1e-3, "kSpaceCenterLine": table.mask.matrix[1] // 2,
        "SliceThickness": table.mask.fov_mm[2] * (0.8e-3 if case == "gre3d" else 1e-3),
        "SliceGap": protocol.slice_gap_mm * 1e-3,
    }.items():  # fmt: skip
        assert sequence.get_definition(name) == pytest.approx(value)
    assert read_table(path)[0].order.points.tolist() == table.order.points.tolist()


@pytest.mark.parametrize("case", CASES)
def test_no_axis_goes_beyond_its_limits(tmp_path: Path, case: str) -> None:
    table, protocol = CASES[case]
    sequence = build_sequence(table, replace(protocol, max_grad_mt_m=20, max_slew_t_m_s=80, te_ms=None, tr_ms=None))
    waveforms = sequence.waveforms_and_times()[0]
    for time, amplitude in waveforms:
        assert np.abs(amplitude).max() <= 20e-3 * 42.576e6 * 1.000001
        assert np.abs(np.diff(amplitude) / np.diff(time)).max() <= 80 * 42.576e6 * 1.000001


def moments(sequence: pp.Sequence, begin: float, end: float) -> np.ndarray:
    """Area in 1/m of each gradient axis between two times."""
    areas = []
    for time, amplitude in sequence.waveforms_and_times()[0]:
        inside = np.unique(np.concatenate([[begin, end], time[(time > begin) & (time < end)]]))
        areas.append(np.trapezoid(np.interp(inside, time, amplitude), inside))
    return np.array(areas)


@pytest.mark.parametrize("case", ["gre", "gre3d"])
def test_gre_leaves_the_same_spoiled_moment_after_every_excitation(case: str) -> None:
    table, protocol = CASES[case]
    sequence = build_sequence(table, replace(protocol, slices=1, tr_ms=30))
    times = sequence.rf_times()[0]
    found = np.array([moments(sequence, a, b) for a, b in itertools.pairwise(times)][3:])
    assert np.allclose(found, found[0], atol=1e-6)
    # y is rewound; x ends half a readout further than it began, and both x and z carry two cycles of spoiling
    pixel = table.mask.fov_mm[0] * 1e-3 / table.mask.matrix[0]
    depth = table.mask.fov_mm[2] * 1e-3 / table.mask.matrix[2]  # of the slice, or of a partition
    readout = sequence.get_block(len(sequence.block_events) - 2).gx
    x, y, z = found[0]
    assert y == pytest.approx(0, abs=1e-6)
    assert x == pytest.approx(2 / pixel + readout.area / 2, rel=1e-6)
    # and the slice selection that stands before the next pulse's middle
    block = sequence.get_block(_first_pulse(sequence))
    plateau = block.rf.delay + pp.calc_rf_center(block.rf)[0] - block.gz.delay - block.gz.rise_time
    before = block.gz.amplitude * (block.gz.rise_time / 2 + plateau)
    assert z == pytest.approx(2 / depth + before, rel=1e-6)


def excited(sequence: pp.Sequence, positions: np.ndarray) -> np.ndarray:
    """Signal at positions along z in m over that of a spin that the pulse turns as asked, by the Bloch equations."""
    block = sequence.get_block(_first_pulse(sequence))
    step = block.rf.t[1] - block.rf.t[0]
    spins = np.stack([0 * positions, 0 * positions, 1 + 0 * positions])
    for pulse in block.rf.signal.real:
        for angle, (a, b) in ((pulse, (1, 2)), (block.gz.amplitude * positions, (0, 1))):
            turn = 2 * np.pi * step * angle
            spins[a], spins[b] = (
                np.cos(turn) * spins[a] + np.sin(turn) * spins[b],
                np.cos(turn) * spins[b] - np.sin(turn) * spins[a],
            )
    return np.hypot(spins[0], spins[1]) / np.sin(2 * np.pi * step * block.rf.signal.real.sum())


def test_a_slab_hardly_excites_what_aliases_into_its_partitions() -> None:
    fov = POINTS.mask.fov_mm[2] * 1e-3
    places = np.array([0.0, 0.32, 0.4, 0.5, 0.56, 0.6, 0.7, 0.9]) * fov
    found = excited(build_sequence(POINTS, GRE_3D), places)
    assert np.allclose(found[:3], [1, 0.85, 0.5], atol=0.02)  # half of the signal at the edge of the slab
    assert found[3] < 0.1
    assert (found[4:] < 0.02).all()
    whole = excited(build_sequence(POINTS, replace(GRE_3D, slab_fraction=1.0)), places)
    assert whole[3] == pytest.approx(0.5, abs=0.02)
    assert whole[5] > 0.1


def _first_pulse(sequence: pp.Sequence) -> int:
    return next(number for number in sequence.block_events if sequence.get_block(number).rf is not None)


def test_gre_phase_grows_quadratically_and_the_receiver_follows() -> None:
    sequence = build_sequence(LINES, replace(GRE, slices=1))
    blocks = [sequence.get_block(number) for number in sequence.block_events]
    pulses = [block.rf.phase_offset for block in blocks if block.rf is not None]
    receivers = [block.adc.phase_offset for block in blocks if block.adc is not None][GRE.noise_readouts :]
    second = np.diff(pulses, 2) - math.radians(117)
    assert np.allclose(np.exp(1j * second), 1, atol=1e-9)
    assert np.allclose(np.exp(1j * (np.array(receivers) - pulses[GRE.dummy_scans :])), 1, atol=1e-9)


def test_slices_are_interleaved_and_where_they_are_asked() -> None:
    sequence = build_sequence(LINES, GRE)
    blocks = [sequence.get_block(number) for number in sequence.block_events]
    pulses = [block for block in blocks if block.rf is not None][:3]
    positions = [block.rf.freq_offset / block.gz.amplitude for block in pulses]
    assert np.allclose(positions, [-6e-3, 6e-3, 0])  # slices 0, 2, 1 of 5 mm and 1 mm between
    # the phase in the middle of the pulse does not depend on the slice
    middle = [
        block.rf.phase_offset + 2 * math.pi * block.rf.freq_offset * pp.calc_rf_center(block.rf)[0] for block in pulses
    ]
    assert np.allclose(np.exp(1j * np.array(middle)), 1, atol=1e-9)
    assert np.allclose(sequence.get_definition("SlicePositions"), [-6e-3, 0, 6e-3])
    assert np.allclose(sequence.get_definition("FOV"), [0.22, 0.2, 17e-3])


def test_tse_is_balanced_between_refocusing_pulses() -> None:
    """Carr-Purcell-Meiboom-Gill: equal moments between all refocusing pulses, half of it before the first."""
    sequence = build_sequence(TRAINS, replace(TSE, slices=1))
    excitations, _, refocusings, _ = sequence.rf_times()
    train = np.array(refocusings).reshape(-1, 4)
    for start, pulses in list(zip(excitations, train, strict=True))[1:4]:
        between = [moments(sequence, a, b) for a, b in itertools.pairwise(pulses)]
        assert np.allclose(between, between[0], atol=1e-6)
        assert np.allclose(2 * moments(sequence, start, pulses[0]), between[0], atol=1e-6)
    blocks = [sequence.get_block(number) for number in sequence.block_events]
    phases = {block.rf.use: block.rf.phase_offset for block in blocks if block.rf is not None}
    assert phases["excitation"] - phases["refocusing"] == pytest.approx(math.pi / 2)


@pytest.mark.parametrize("order", ["centre-out", "interleaved"])
@pytest.mark.parametrize("echo", range(4))
def test_tse_without_dc_has_the_effective_te_of_one_of_the_two_nearest_lines(order: str, echo: int) -> None:
    mask = np.zeros((16, 1), bool)
    mask[[0, 2, 5, 7, 9, 11, 13, 15]] = True  # 7 and 9 lie as near to DC
    whole = replace(lines_mask(16, 0, columns=16), mask=mask, acs=np.zeros_like(mask))
    table = SamplingTable(whole, OrderSettings(order, 4, echo))
    protocol = PulseqProtocol("tse", te_ms=12.0 * (echo + 1), echo_spacing_ms=12, noise_readouts=0, dwell_us=20)
    sequence = build_sequence(table, protocol)
    assert sequence.get_definition("TE") == pytest.approx(12e-3 * (echo + 1))
    labels = sequence.evaluate_labels(evolution="adc")
    assert labels["SEG"][labels["LIN"] == 7].tolist() == [echo]


def test_a_train_with_no_line_for_an_echo_takes_as_long(tmp_path: Path) -> None:
    assert TRAINS.mask.samples % 4
    rows = TRAINS.mask.samples * TSE.slices
    echoes = (-(-TRAINS.mask.samples // 4) + TSE.dummy_scans) * 4 * TSE.slices
    sequence = build_sequence(TRAINS, TSE)
    assert len(sequence.rf_times()[2]) == echoes
    assert len(sequence.evaluate_labels(evolution="adc")["LIN"]) == rows + TSE.noise_readouts


@pytest.mark.parametrize("protocol", [PulseqProtocol(), PulseqProtocol("tse", echo_spacing_ms=16)])
@pytest.mark.parametrize("lines", [256, 512])
def test_arbitrary_lines_of_large_matrices(tmp_path: Path, lines: int, protocol: PulseqProtocol) -> None:
    mask = np.zeros((lines, 1), bool)
    mask[np.random.default_rng(7).choice(lines, 65, replace=False)] = True
    mask[[0, lines - 1]] = True
    whole = replace(lines_mask(lines, 0, columns=256), mask=mask, acs=np.zeros_like(mask))
    table = SamplingTable(whole, OrderSettings("interleaved", 8 if protocol.sequence == "tse" else 1))
    path = write(tmp_path, table, replace(protocol, noise_readouts=0, max_grad_mt_m=40, max_slew_t_m_s=180))
    assert np.array_equal(read_pulseq(path, (lines, 1)).points, table.order.points)
    ky = read_back(path).calculate_kspace()[0][1].reshape(mask.sum(), -1) * 0.2
    # amplitudes have six digits in the file
    assert np.abs(ky - (table.order.points[:, :1] - lines // 2)).max() < 2e-4


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=tables(), negate=st.booleans(), version=st.sampled_from(["1.5", "1.4.1"]))
def test_round_trip_of_any_table(tmp_path: Path, table: SamplingTable, negate: bool, version: str) -> None:
    columns = (table.mask.matrix[0] // 4 + 1) * 4
    table = SamplingTable(replace(table.mask, matrix=(columns, *table.mask.matrix[1:])), table.settings)
    path = write(tmp_path, table, PulseqProtocol(negate_phase=negate, version=version, dwell_us=20))
    found = read_table(path)[0]
    assert found.mask.sha256 == table.mask.sha256
    for name in ("points", "shot", "echo"):
        assert np.array_equal(getattr(found.order, name), getattr(table.order, name))


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        (LINES, {"te_ms": 2}, r"te_ms: expected at least \d\.\d\d with these settings, got 2"),
        (LINES, {"tr_ms": 20}, r"tr_ms: expected at least \d\d\.\d\d with these settings, got 20"),
        (LINES, {"dwell_us": 2, "max_grad_mt_m": 20}, "dwell_us: the readout gradient .* needs at least 4"),
        (POINTS, {"sequence": "gre"}, "a mask of points is a volume, of 1 slab, got 3"),
        (POINTS, {"sequence": "tse", "slices": 1}, "expected a mask of lines"),
        (LINES, {"slab_fraction": 0.5}, "slab_fraction: a mask of lines has slices"),
        (
            THIN,
            {"slices": 1},
            "fov_mm: 4 mm along z are 256 partitions of 0.0156 mm, expected at least a tenth",
        ),
        (TRAINS, {"sequence": "tse", "te_ms": 10, "tr_ms": None}, "the table measures DC at 20 ms, got 10"),
        (TRAINS, {"sequence": "tse", "te_ms": None, "tr_ms": 40}, "tr_ms: expected at least"),
        (TRAINS, {"sequence": "tse", "te_ms": None, "echo_spacing_ms": 4}, "echo_spacing_ms: expected at least"),
        (TRAINS, {"sequence": "tse", "te_ms": None, "echo_spacing_ms": 9.99}, "a multiple of 0.02"),
    ],
)
def test_what_cannot_be_played_is_refused(table: SamplingTable, change: dict, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        build_sequence(table, replace(GRE, **change))


def test_the_te_and_tr_that_a_refusal_names_can_be_played() -> None:
    for name in ("te_ms", "tr_ms"):
        with pytest.raises(ProtocolError) as refused:
            build_sequence(LINES, replace(GRE, **{name: 1}))
        least = float(re.search(r"at least ([\d.]+)", str(refused.value))[1])  # type: ignore[index]
        build_sequence(LINES, replace(GRE, **{name: least}))
        with pytest.raises(ProtocolError, match=name):
            build_sequence(LINES, replace(GRE, **{name: least - 0.04}))


def test_columns_that_scanners_do_not_take() -> None:
    odd = SamplingTable(lines_mask(columns=41), OrderSettings())
    with pytest.raises(ProtocolError, match="multiple of 4 samples, 41 columns times 2 is 82"):
        build_sequence(odd, PulseqProtocol())


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"sequence": "epi"}, "one of gre, tse"),
        ({"version": "1.3"}, "one of 1.5, 1.4.1"),
        ({"slices": 0}, "slices: expected at least 1"),
        ({"dwell_us": 5}, "multiple of 2"),
        ({"slab_fraction": 0.0}, "slab_fraction: expected above 0 and at most 1, got 0"),
        ({"slab_fraction": 1.2}, "slab_fraction: expected above 0 and at most 1, got 1.2"),
        ({"te_ms": math.nan}, "finite"),
        ({"tr_ms": -1.0}, "more than 0"),
        ({"flip_deg": 120.0}, "at most 90"),
        ({"refocusing_deg": 90.0}, "91 to 180"),
    ],
)
def test_protocols_that_cannot_be(settings_: dict, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        PulseqProtocol(**settings_)


def test_effective_echo() -> None:
    assert effective_echo(24, 12, 4) == 1
    for te in (30, 60, 0):
        with pytest.raises(ProtocolError, match="multiple of the echo spacing 12 up to 48"):
            effective_echo(te, 12, 4)


def test_an_edited_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, LINES, GRE)
    text = path.read_text()
    for changed, message in (
        (text.replace("TE 0.008", "TE 0.009"), "signature is not that of its text"),
        (text[: len(text) // 2], "signature is missing"),
        (text.rpartition("Hash")[0], "signature is missing"),
        ("", "signature is missing"),
    ):
        path.write_text(changed)
        with pytest.raises(TableError, match=message):
            read_table(path)


def test_labels_that_the_gradients_do_not_follow_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, LINES, GRE)
    text = path.read_text()
    ky = int(LINES.order.points[5, 0])
    assert re.search(rf"^(\d+ ){ky} LIN$", text, re.MULTILINE)
    sign_again(path, re.sub(rf"^(\d+) {ky} LIN$", rf"\g<1> {ky + 1} LIN", text, flags=re.MULTILINE))
    with pytest.raises(TableError, match=rf"is at k_y = .* lines, its labels say {ky + 1 - 32}"):
        read_table(path)
    sign_again(path, re.sub(r"^(\d+) 1 IMA$", r"\g<1> 0 IMA", text, flags=re.MULTILINE))
    with pytest.raises(TableError, match="REF and IMA both"):
        read_table(path)


def rewritten(path: Path, keep_label: object, keep_adc: bool = True) -> None:
    """Write the file again without the labels that `keep_label(label, readout)` is false for, or without readouts."""
    old, new, readout = read_back(path), pp.Sequence(), -1
    new.definitions = old.definitions
    for number in old.block_events:
        block = old.get_block(number)
        readout += block.adc is not None
        events = [block.rf, block.gx, block.gy, block.gz, block.adc if keep_adc else None]
        events += [label for label in (block.label or {}).values() if keep_label(label, readout)]  # type: ignore[operator]
        new.add_block(*[event for event in events if event is not None], pp.make_delay(old.block_durations[number]))
    new.write(str(path), check_timing=False)


def test_slices_that_differ_and_readouts_without_labels_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, LINES, GRE)
    rewritten(path, lambda label, readout: True)
    read_table(path)
    # centre-out begins in the ACS: without the flags of its first line, slice 0 differs from the others
    rewritten(path, lambda label, readout: not (label.label in ("REF", "IMA") and readout == GRE.noise_readouts))
    with pytest.raises(TableError, match="does not measure what slice"):
        read_table(path)
    path = write(tmp_path, LINES, GRE)
    rewritten(path, lambda label, readout: label.label != "LIN")
    with pytest.raises(TableError, match="labelled LIN"):
        read_table(path)
    path = write(tmp_path, LINES, GRE)
    rewritten(path, lambda label, readout: True, keep_adc=False)
    with pytest.raises(TableError, match=r"labelled LIN|pypulseq cannot read it"):
        read_table(path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_edit_signed_again_is_refused_or_says_the_same(tmp_path: Path, data: st.DataObject) -> None:
    table = SamplingTable(lines_mask(8, 2, columns=8), OrderSettings())
    path = write(tmp_path, table, PulseqProtocol(noise_readouts=1, dwell_us=20))
    text = path.read_text()
    at = data.draw(st.integers(0, len(text)))
    put = data.draw(st.text(st.sampled_from("0123456789-. \n[]LINPAR#"), max_size=4))
    sign_again(path, text[:at] + put + text[at + data.draw(st.integers(0, 8)) :])
    try:
        found = read_table(path)[0]
    except TableError:
        return
    assert np.array_equal(found.order.points, table.order.points)
