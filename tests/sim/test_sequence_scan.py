"""A sequence played on a simulated object: against the direct simulation of the mask, line by line."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from masks import lines_mask, points_mask
from scanprior.sim.acquisition_order import OrderSettings
from scanprior.sim.anatomy import to_image
from scanprior.sim.pulseq_file import build_sequence, write_pulseq
from scanprior.sim.pulseq_protocol import PulseqProtocol
from scanprior.sim.sampling_table import SamplingTable
from scanprior.sim.scan import simulate
from scanprior.sim.sequence_playback import PlaybackError, play_back
from scanprior.sim.sequence_scan import _signal, play
from scanprior.sim.tables import write_table
from sequences import sign_again

with warnings.catch_warnings():
    import ismrmrd

NOISELESS = 120.0
LINES = lines_mask(64, 8, seed=3, columns=48)
GRE = PulseqProtocol(te_ms=8, tr_ms=60, slices=3, slice_gap_mm=1, dummy_scans=2, noise_readouts=5, dwell_us=8)
TSE = PulseqProtocol("tse", te_ms=24, tr_ms=400, echo_spacing_ms=12, slices=2, dummy_scans=1, noise_readouts=4)
GRE_3D = PulseqProtocol(te_ms=4, tr_ms=9, flip_deg=8, noise_readouts=2, dummy_scans=3)
CASES = {
    "gre": (SamplingTable(LINES, OrderSettings("centre-out")), GRE),
    "tse": (SamplingTable(LINES, OrderSettings("interleaved", 4, 1)), TSE),
    "gre3d": (SamplingTable(points_mask((18, 12), 4, seed=2, columns=32), OrderSettings("interleaved", 4)), GRE_3D),
}


def export(folder: Path, case: str, **changes: object) -> Path:
    table, protocol = CASES[case]
    path = folder / "mask.seq"
    write_table(path, table, "pulseq", partial(write_pulseq, protocol=replace(protocol, **changes)))
    return path


def rows_of(path: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """Headers and data (coil, sample) of a file's readouts."""
    with h5py.File(path) as file:
        rows = file["dataset/data"][()]
    return rows["head"], [
        np.ascontiguousarray(row["data"]).view(np.complex64).reshape(int(row["head"]["active_channels"]), -1)
        for row in rows
    ]


def lines_of(path: Path) -> dict[tuple[int, int, int], tuple[np.void, np.ndarray]]:
    """Imaging readouts by (slice, step_1, step_2)."""
    heads, data = rows_of(path)
    found = {}
    for head, values in zip(heads, data, strict=True):
        if not int(head["flags"]) >> (ismrmrd.ACQ_IS_NOISE_MEASUREMENT - 1) & 1:
            idx = head["idx"]
            key = int(idx["slice"]), int(idx["kspace_encode_step_1"]), int(idx["kspace_encode_step_2"])
            assert key not in found
            found[key] = head, values
    return found


@pytest.mark.parametrize("version", ["1.5", "1.4.1"])
@pytest.mark.parametrize("case", CASES)
def test_the_played_scan_is_that_of_the_mask(tmp_path: Path, case: str, version: str) -> None:
    table, protocol = CASES[case]
    mask = table.mask
    volume = mask.kind == "points"
    slices = mask.matrix[2] if volume else protocol.slices
    played = play(export(tmp_path, case, version=version), tmp_path / "played.h5", coils=3, snr_db=NOISELESS, seed=4)
    direct = simulate(
        tmp_path / "direct.h5", mask=mask, matrix=mask.matrix[1], columns=mask.matrix[0], slices=slices, three_d=volume,
        coils=3, snr_db=NOISELESS, seed=4,
    )  # fmt: skip
    ours, theirs = lines_of(played.path), lines_of(direct.path)
    assert ours.keys() == theirs.keys()
    both = 1 << (ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING - 1) | 1 << (ismrmrd.ACQ_IS_PARALLEL_CALIBRATION - 1)
    for key, (head, values) in ours.items():
        assert int(head["flags"]) & both == int(theirs[key][0]["flags"]) & both
        assert int(head["flags"]) & both != both
        assert int(head["center_sample"]) == int(theirs[key][0]["center_sample"])
        # files hold gradients of six digits, which put a line off by up to a thousandth
        assert np.abs(values - theirs[key][1]).max() < 5e-3 * np.abs(theirs[key][1]).max(), key
    for part in ("encodedSpace", "reconSpace", "parallelImaging"):
        assert element(played.path, part) == element(direct.path, part), part
    assert f"<x>{mask.fov_mm[0]}</x>" in element(direct.path, "reconSpace")
    one, other = np.load(played.truth), np.load(direct.truth)
    assert set(one) == set(other)
    for name in ("image", "maps", "mask", "acs"):
        assert np.allclose(one[name], other[name], atol=1e-10), name
    assert np.allclose(one["noise_cov"], other["noise_cov"], rtol=1e-5, atol=0)


def element(path: Path, name: str) -> str:
    """Text of the first element of that name in a file's XML header."""
    with h5py.File(path) as file:
        text = file["dataset/xml"][0].decode()
    return text[text.index(f"<{name}>") : text.index(f"</{name}>")]


def test_noise_is_not_that_of_the_direct_simulation(tmp_path: Path) -> None:
    protocol = replace(GRE, slices=1, noise_readouts=0)
    path = tmp_path / "mask.seq"
    write_table(path, SamplingTable(LINES, OrderSettings()), "pulseq", partial(write_pulseq, protocol=protocol))
    played = play(path, tmp_path / "played.h5", coils=2, seed=4)
    direct = simulate(tmp_path / "direct.h5", mask=LINES, matrix=64, columns=48, coils=2, seed=4)
    ours, theirs = lines_of(played.path), lines_of(direct.path)
    root = np.linalg.inv(np.linalg.cholesky(np.load(played.truth)["noise_cov"].astype(np.complex128)))
    off = np.array([np.mean(np.abs(root @ (values - theirs[key][1])) ** 2) for key, (_, values) in ours.items()])
    assert off.mean() == pytest.approx(2, rel=0.1)  # two draws


def test_order_and_noise_scan_are_those_of_the_sequence(tmp_path: Path) -> None:
    table, protocol = CASES["tse"]
    made = play(export(tmp_path, "tse"), tmp_path / "played.h5", coils=2, seed=1)
    heads, data = rows_of(made.path)
    noise = (heads["flags"].astype(np.uint64) >> np.uint64(ismrmrd.ACQ_IS_NOISE_MEASUREMENT - 1)) & np.uint64(1) == 1
    assert np.flatnonzero(noise).tolist() == list(range(protocol.noise_readouts))
    imaging = heads[~noise]
    for number in range(protocol.slices):
        own = imaging[imaging["idx"]["slice"] == number]
        assert np.array_equal(own["idx"]["kspace_encode_step_1"], table.order.points[:, 0])
        assert np.array_equal(own["idx"]["segment"], table.order.echo)
    assert f"<maximum>{table.order.echo.max()}</maximum>" in element(made.path, "segment")
    assert (np.diff(imaging["acquisition_time_stamp"].astype(int)) >= 0).all()
    values = np.concatenate([part for part, quiet in zip(data, noise, strict=True) if quiet], 1)
    found = values @ values.conj().T / values.shape[1]
    expected = np.load(made.truth)["noise_cov"]
    assert np.abs(found - expected).max() < 0.2 * np.abs(expected).max()


def test_a_receiver_that_does_not_follow_rf_spoiling_is_seen(tmp_path: Path) -> None:
    table, protocol = CASES["gre"]
    right = play_back(export(tmp_path, "gre"))
    imaging = right.labels["NOISE"] == 0
    assert np.abs(right.phase).max() < 1e-5
    sequence = build_sequence(table, protocol)
    for number in sequence.block_events:
        block = sequence.get_block(number)
        if block.adc is not None:
            block.adc.phase_offset = 0.0
            sequence.set_block(number, block)
    sequence.write(str(tmp_path / "wrong.seq"))
    assert np.abs(play_back(tmp_path / "wrong.seq").phase[imaging]).max() > 1


def test_t2_weighs_echoes_around_the_effective_echo_time(tmp_path: Path) -> None:
    table, protocol = CASES["tse"]
    path = export(tmp_path, "tse")
    still, decaying = (
        lines_of(play(path, tmp_path / f"{t2}.h5", coils=1, snr_db=NOISELESS, t2_ms=t2).path) for t2 in (None, 40.0)
    )
    te = protocol.te_ms
    assert te is not None
    for point, echo in zip(table.order.points, table.order.echo, strict=True):
        key = (0, int(point[0]), 0)
        middle = still[key][1].shape[1] // 2
        ratio = abs(decaying[key][1][0, middle] / still[key][1][0, middle])
        assert ratio == pytest.approx(
            np.exp((te - 12 * (echo + 1)) / 40.0), rel=1e-3
        )  # the middle sample is a few dwell times from the echo


@pytest.mark.parametrize("negate", [False, True])
@pytest.mark.parametrize("shape", [(32, 1), (18, 9)])
def test_the_truth_is_the_image_of_the_full_scan_for_both_signs(
    tmp_path: Path, shape: tuple[int, int], negate: bool
) -> None:
    volume = shape[1] > 1
    plan = points_mask(shape, 4, columns=32) if volume else lines_mask(shape[0], 8, columns=24)
    full = replace(plan, mask=np.ones_like(plan.mask))
    protocol = replace(GRE_3D if volume else GRE, negate_phase=negate)
    path = tmp_path / "full.seq"
    write_table(path, SamplingTable(full, OrderSettings()), "pulseq", partial(write_pulseq, protocol=protocol))
    made = play(path, tmp_path / "full.h5", coils=2, snr_db=NOISELESS, seed=3)
    lines = lines_of(made.path)
    samples = next(iter(lines.values()))[1].shape[1]
    kspace = np.zeros((9 if volume else 3, 2, shape[0], samples), np.complex64)
    for (slice_, ky, kz), (_, values) in lines.items():
        kspace[kz if volume else slice_, :, ky] = values
    columns = full.matrix[0]
    image = to_image(kspace, (0, -2, -1) if volume else (-2, -1))[..., samples // 2 - columns // 2 :][..., :columns]
    truth = np.load(made.truth)
    expected = truth["image"][0][:, None] * truth["maps"]
    assert np.abs(image - expected).max() < 2e-3 * np.abs(expected).max()
    magnitude, inside = np.abs(truth["image"][0]), truth["object"]
    assert magnitude[~inside].mean() < 0.025 * magnitude[inside].mean()
    directions = {name: np.array([head[name] for head, _ in lines.values()]) for name in ("phase_dir", "slice_dir")}
    sign = -1.0 if negate else 1.0
    assert np.array_equal(directions["phase_dir"], np.tile([0, sign, 0], (len(lines), 1)))
    assert np.array_equal(directions["slice_dir"], np.tile([0, 0, sign if volume else 1.0], (len(lines), 1)))


def test_the_sign_of_the_phase_encoding_turns_the_image_and_its_direction(tmp_path: Path) -> None:
    up, down = (
        lines_of(
            play(
                export(tmp_path, "gre", negate_phase=negate, slices=1), tmp_path / f"{negate}.h5", coils=1,
                snr_db=NOISELESS,
            ).path
        )
        for negate in (False, True)
    )  # fmt: skip
    line = next(key for key in up if key[1] != 32 and (0, 64 - key[1], 0) in up)
    mirrored = up[(0, 64 - line[1], 0)][1]
    assert np.abs(down[line][1] - mirrored).max() < 5e-3 * np.abs(mirrored).max()
    assert np.allclose(down[line][0]["phase_dir"], -up[line][0]["phase_dir"])


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("Matrix 48 64 1", "Matrix 48 9999 1", "Matrix: expected whole numbers from 1 to 2048"),
        ("Matrix 48 64 1", "Matrix 48 64", "Matrix: expected 3 numbers"),
        ("Matrix 48 64 1", "Other 48 64 1", "Matrix: missing"),
        ("Matrix 48 64 1", "Matrix 48 20 1", "label LIN: expected 0 to 19"),
        ("SlicePositions -0.006 0 0.006", "SlicePositions -0.006 0.001 0.006", "is labelled slice 1 at 1 mm"),
        ("[BLOCKS]", "[BLOCK", "pypulseq cannot read it"),
        ("SlicePositions -0.006 0 0.006", "SlicePositions -0.006 0 0.006 1", "slice 3 does not measure what slice 0"),
        ("PhaseSign 1", "PhaseSign 0.5", "PhaseSign: expected 1 or -1, found 0.5"),
        ("PhaseSign 1", "PhaseSign -1", "is at k_y = "),
        ("FOV 0.22 0.2 0.017", "FOV 0.23 0.2 0.017", "samples lie 1.0455 to 1.0455 steps"),
        ("FOV 0.22 0.2 0.017", "FOV 0.22 0.21 0.017", "is at k_y = "),
        ("FOV 0.22 0.2 0.017", "FOV 0.22 0.2 0", "FOV: expected lengths above 0"),
        ("SliceThickness 0.005", "SliceThickness 0", "SliceThickness: expected more than 0, found 0"),
        ("SliceGap 0.001", "SliceGap -0.001", "SliceGap: expected at least 0, found -0.001"),
        ("\nTE 0.008", "\nTE -0.008", "TE: expected more than 0, found -0.008"),
        ("\nTR 0.06", "\nTR 0", "TR: expected more than 0, found 0"),
    ],
)
def test_a_file_that_does_not_fit_itself_is_refused(tmp_path: Path, before: str, after: str, message: str) -> None:
    path = export(tmp_path, "gre")
    text = path.read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, after))
    with pytest.raises(PlaybackError, match="signature is not that of its text"):
        play(path, tmp_path / "played.h5")
    sign_again(path, text.replace(before, after))
    with pytest.raises(PlaybackError, match=message):
        play(path, tmp_path / "played.h5")


def test_labels_that_are_not_simulated_are_refused(tmp_path: Path) -> None:
    path = export(tmp_path, "gre")
    text = path.read_text()
    one, other = (int(line) for line in CASES["gre"][0].order.points[:2, 0])
    free = int(np.flatnonzero(~LINES.mask[:, 0])[0])
    for pattern, put, message in (
        (r"^(\d+) 1 REF$", r"\g<1> 1 REV", "label REV: it is 1 on a readout"),
        (r"^(\d+) (\d+) LIN$", r"\g<1> \g<2> ECO", "expected readouts with the label LIN"),
        (rf"^(\d+) {one} LIN$", rf"\g<1> {other} LIN", f"slice 0, LIN {other}, PAR 0 is measured 2 times"),
        (rf"^(\d+) {one} LIN$", rf"\g<1> {free} LIN", "is at k_y = "),
    ):
        sign_again(path, re.sub(pattern, put, text, flags=re.MULTILINE))
        with pytest.raises(PlaybackError, match=message):
            play(path, tmp_path / "played.h5")


@pytest.mark.parametrize(("kind", "name"), [("adc", "freq_ppm"), ("adc", "phase_ppm"), ("rf", "phase_ppm")])
def test_events_that_are_not_simulated_are_refused(tmp_path: Path, kind: str, name: str) -> None:
    sequence = build_sequence(*CASES["gre"])
    number = [n for n in sequence.block_events if getattr(sequence.get_block(n), kind) is not None][3]
    block = sequence.get_block(number)
    setattr(getattr(block, kind), name, 0.5)
    sequence.set_block(number, block)
    sequence.write(str(tmp_path / "odd.seq"))
    with pytest.raises(PlaybackError, match=f"block {number}: {kind} has {name}, which is not simulated"):
        play_back(tmp_path / "odd.seq")


def test_what_is_left_of_k_z_weighs_and_turns_an_off_centre_slice(tmp_path: Path) -> None:
    right = play_back(export(tmp_path, "gre"))
    row = np.flatnonzero(right.labels["SLC"] == 2)[:1]
    image, maps = np.ones((64, 48), np.complex64), np.ones((1, 64, 48), np.complex64)
    trajectory = right.trajectory.copy()
    trajectory[..., 2] = 40.0
    ratio = _signal(replace(right, trajectory=trajectory), row, image, maps, None) / _signal(
        right, row, image, maps, None
    )
    # the mean of exp(-2 pi i k z) over 5 mm about 6 mm
    z = 6e-3 + 5e-3 * ((np.arange(2000) + 0.5) / 2000 - 0.5)
    assert ratio[0, 0, 48] == pytest.approx(np.exp(-2j * np.pi * 40 * z).mean(), rel=1e-3)


def test_files_are_there_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = export(tmp_path, "gre", slices=1)

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space"):
        play(path, tmp_path / "played.h5", coils=1)
    with pytest.raises(OSError, match="no space"):
        simulate(tmp_path / "direct.h5", matrix=32, coils=1, acs=8)
    assert not list(tmp_path.glob("*.h5"))


def test_options_out_of_range_are_named(tmp_path: Path) -> None:
    path = export(tmp_path, "gre")
    with pytest.raises(ValueError, match="t2_ms: expected more than 0, got -1"):
        play(path, tmp_path / "played.h5", t2_ms=-1)
    for options, message in (
        ({"snr_db": np.nan}, "snr_db: expected a finite number, got nan"),
        ({"scale": np.inf}, "scale: expected a finite number, got inf"),
        ({"scale": 0.0}, "scale: expected more than 0, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            play(path, tmp_path / "played.h5", **options)
        with pytest.raises(ValueError, match=message):
            simulate(tmp_path / "direct.h5", **options)
    with pytest.raises(PlaybackError, match="3 slices of 48 x 64 x 1 for 999999 coils are too much"):
        play(path, tmp_path / "played.h5", coils=999999)
    with pytest.raises(ValueError, match="contrast: expected one of"):
        play(path, tmp_path / "played.h5", contrast="t9")
    with pytest.raises(PlaybackError, match=r"nothing.seq: cannot be read"):
        play(tmp_path / "nothing.seq", tmp_path / "played.h5")


def test_a_mask_for_another_matrix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"64 x 1 phase encodings \(y, z\), the scan has 48"):
        simulate(tmp_path / "scan.h5", mask=LINES, matrix=48)
    with pytest.raises(ValueError, match="without partial Fourier"):
        simulate(tmp_path / "scan.h5", mask=LINES, matrix=64, partial_fourier=0.75)
    with pytest.raises(ValueError, match="fov, thickness: the mask file brings them"):
        simulate(tmp_path / "scan.h5", mask=LINES, matrix=64, fov=200.0)
