"""A simulated scan, read back with the ismrmrd package alone, is what its truth file says."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import ismrmrd
import numpy as np
import pytest
from ismrmrd import xsd
from numpy.fft import fftshift, ifftn, ifftshift
from scanprior.sim.scan import Simulated, simulate

SMALL = {"matrix": 48, "coils": 4, "slices": 3, "acs": 8}


def read(scan: Simulated) -> tuple[xsd.ismrmrdHeader, list[ismrmrd.Acquisition]]:
    with ismrmrd.File(str(scan.path), "r") as file:
        return file["dataset"].header, list(file["dataset"].acquisitions[:])


def bits(acquisition: ismrmrd.Acquisition) -> set[int]:
    return {bit for bit in range(1, 65) if acquisition.is_flag_set(bit)}


def kspace_of(header: xsd.ismrmrdHeader, lines: list[ismrmrd.Acquisition]) -> np.ndarray:
    """(slice, coil, z, y, x) of single-average lines, placed by the header's centres and nothing else."""
    space, limits = header.encoding[0].encodedSpace.matrixSize, header.encoding[0].encodingLimits
    grid = np.zeros((limits.slice.maximum + 1, lines[0].active_channels, space.z, space.y, space.x), np.complex64)
    for line in lines:
        y = line.idx.kspace_encode_step_1 + space.y // 2 - limits.kspace_encoding_step_1.center
        z = line.idx.kspace_encode_step_2 + space.z // 2 - limits.kspace_encoding_step_2.center
        x = space.x // 2 - line.center_sample
        grid[line.idx.slice, :, z, y, x : x + line.number_of_samples] = line.data
    return grid


def images_of(header: xsd.ismrmrdHeader, kspace: np.ndarray) -> np.ndarray:
    """Centred orthonormal inverse transform, cropped to the recon matrix."""
    axes = (-3, -2, -1)
    image = fftshift(ifftn(ifftshift(kspace, axes), axes=axes, norm="ortho"), axes)
    recon = header.encoding[0].reconSpace.matrixSize
    for axis, size in ((-2, recon.y), (-1, recon.x)):
        start = image.shape[axis] // 2 - size // 2
        image = np.take(image, np.arange(start, start + size), axis)
    return image


def covariance(noise: np.ndarray) -> np.ndarray:
    """(coil, coil) of noise (coil, sample)."""
    return noise @ noise.conj().T / noise.shape[1]


def assert_covariance(found: np.ndarray, wanted: np.ndarray, tolerance: float) -> None:
    """Every entry within `tolerance` of the two coils' standard deviations."""
    deviations = np.sqrt(np.diag(wanted).real)
    assert np.abs((found - wanted) / np.outer(deviations, deviations)).max() < tolerance


@pytest.mark.parametrize("three_d", [False, True])
@pytest.mark.parametrize("phase_oversampling", [0.0, 0.25])
def test_full_scan_is_truth_times_maps_plus_noise(tmp_path: Path, three_d: bool, phase_oversampling: float) -> None:
    scan = simulate(
        tmp_path / "full.h5",
        **SMALL,
        three_d=three_d,
        columns=40,
        mask="full",
        phase_oversampling=phase_oversampling,
        snr_db=10,
    )
    header, acquisitions = read(scan)
    truth = np.load(scan.truth)
    lines = [a for a in acquisitions if not a.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)]
    image = images_of(header, kspace_of(header, lines))
    image = image[0].swapaxes(0, 1) if three_d else image[:, :, 0]
    noise = image - truth["image"][0][:, None] * truth["maps"]
    assert image.shape == (3, 4, 48, 40)
    # 5760 samples of each coil: the error of a covariance is about 1 / sqrt(5760) = 0.013
    assert_covariance(covariance(noise.swapaxes(0, 1).reshape(4, -1)), truth["noise_cov"], 0.06)


def test_noise_scan_has_the_covariance_of_its_dwell_time(tmp_path: Path) -> None:
    scan = simulate(
        tmp_path / "noise.h5", **SMALL, noise_dwell=2.5, dwell=10.0, noise_bandwidth=0.793, noise_readouts=64
    )
    header, acquisitions = read(scan)
    noise = [a for a in acquisitions if a.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)]
    assert acquisitions[: len(noise)] == noise
    assert len(noise) == 64
    assert {a.sample_time_us for a in noise} == {2.5}
    assert {a.sample_time_us for a in acquisitions[64:]} == {10.0}
    assert header.acquisitionSystemInformation.relativeReceiverNoiseBandwidth == 0.793
    wanted = np.load(scan.truth)["noise_cov"] * 4 * 0.793
    assert_covariance(covariance(np.concatenate([a.data for a in noise], axis=1)), wanted, 0.04)
    gains = np.sqrt(np.diag(wanted).real)
    assert gains.max() > 1.2 * gains.min()
    assert abs(wanted[0, 1]) > 0.1 * gains[0] * gains[1]


def test_snr_is_what_was_asked(tmp_path: Path) -> None:
    scan = simulate(tmp_path / "snr.h5", **SMALL, snr_db=17.0)
    truth = np.load(scan.truth)
    maps, inside = truth["maps"], truth["object"]
    weights = np.linalg.inv(truth["noise_cov"].astype(np.complex128))
    variance = 1 / np.einsum("scyx,cd,sdyx->syx", maps.conj(), weights, maps).real
    level = np.abs(truth["image"][0])[inside].mean() / np.sqrt(variance[inside].mean())
    assert 20 * np.log10(level) == pytest.approx(17.0, abs=0.05)
    assert np.abs(truth["image"]).max() == pytest.approx(1e-5, rel=1e-4)


@pytest.mark.parametrize(
    ("mask", "calibration"),
    [("uniform", "embedded"), ("random", "embedded"), ("uniform", "separate"), ("random", "separate")],
)
def test_lines_and_their_calibration_flags(tmp_path: Path, mask: str, calibration: str) -> None:
    scan = simulate(tmp_path / "r.h5", **SMALL, mask=mask, r=4, calibration=calibration)
    header, acquisitions = read(scan)
    truth = np.load(scan.truth)
    parallel = header.encoding[0].parallelImaging
    assert parallel.calibrationMode.value == calibration
    assert parallel.accelerationFactor.kspace_encoding_step_1 == 4
    grid = set(range(0, 48, 4))
    for s in range(3):
        lines = [a for a in acquisitions[16:] if a.idx.slice == s]
        both = {a.idx.kspace_encode_step_1 for a in lines if 21 in bits(a)}
        reference = {a.idx.kspace_encode_step_1 for a in lines if 20 in bits(a)}
        imaging = {a.idx.kspace_encode_step_1 for a in lines if 20 not in bits(a)}
        assert not any({20, 21} <= bits(a) for a in lines)
        if calibration == "separate":
            assert [bits(a) for a in lines[:8]] == [{20}] * 8
            assert reference == set(range(20, 28))
            assert not both
            measured = imaging
        else:
            assert both | reference == set(range(20, 28))
            measured = imaging | reference
        assert measured == set(np.flatnonzero(truth["mask"]))
        if mask == "uniform":
            assert imaging == grid
            assert both == (grid & set(range(20, 28)) if calibration == "embedded" else set())
        else:
            assert len(measured) == 12
            assert not reference or calibration == "separate"
    assert scan.effective_r == 48 / truth["mask"].sum() == float(truth["effective_r"])
    assert scan.asked_r == 4


def test_order_and_first_and_last_flags(tmp_path: Path) -> None:
    scan = simulate(
        tmp_path / "order.h5",
        matrix=32,
        coils=2,
        slices=5,
        repetitions=2,
        averages=2,
        echo_train=4,
        mask="uniform",
        r=2,
        acs=6,
    )
    _, acquisitions = read(scan)
    assert [a.scan_counter for a in acquisitions] == list(range(1, len(acquisitions) + 1))
    lines = acquisitions[16:]
    # the first train of each slice: interleaved slices, four echoes with a stride of the number of shots
    assert [a.idx.slice for a in lines[:20:4]] == [0, 2, 4, 1, 3]
    shots = -(-len(np.flatnonzero(np.load(scan.truth)["mask"])) // 4)
    measured = np.flatnonzero(np.load(scan.truth)["mask"])
    assert [a.idx.kspace_encode_step_1 for a in lines[:4]] == list(measured[np.arange(4) * shots])
    for flag_first, flag_last, key in (
        (7, 8, lambda a: (a.idx.repetition, a.idx.slice)),
        (1, 2, lambda a: (a.idx.repetition, a.idx.average, a.idx.slice)),
        (5, 6, lambda a: (a.idx.repetition, a.idx.average)),
        (13, 14, lambda a: a.idx.repetition),
    ):
        seen: dict[object, list[int]] = {}
        for i, a in enumerate(lines):
            seen.setdefault(key(a), []).append(i)
        assert {i for i, a in enumerate(lines) if flag_first in bits(a)} == {v[0] for v in seen.values()}
        assert {i for i, a in enumerate(lines) if flag_last in bits(a)} == {v[-1] for v in seen.values()}
    assert [i for i, a in enumerate(lines) if 25 in bits(a)] == [len(lines) - 1]
    stamps = [a.acquisition_time_stamp for a in lines]
    assert stamps == sorted(stamps)
    assert stamps[-1] > stamps[0]


def test_geometry_is_right_handed_and_slices_are_apart(tmp_path: Path) -> None:
    scan = simulate(tmp_path / "geometry.h5", **SMALL, thickness=4.0)
    header, acquisitions = read(scan)
    lines = acquisitions[16:]
    read_dir, phase_dir, slice_dir = (np.array(v) for v in (lines[0].read_dir, lines[0].phase_dir, lines[0].slice_dir))
    np.testing.assert_allclose(np.cross(read_dir, phase_dir), slice_dir, atol=1e-6)
    where = {a.idx.slice: np.array(a.position) for a in lines}
    np.testing.assert_allclose(where[1] - where[0], 5.0 * slice_dir, atol=1e-5)
    np.testing.assert_allclose((where[0] + where[2]) / 2, (2.5, -11.0, 14.0), atol=1e-5)
    space = header.encoding[0]
    assert (space.encodedSpace.matrixSize.x, space.encodedSpace.fieldOfView_mm.x) == (96, 460.0)
    assert (space.reconSpace.matrixSize.x, space.reconSpace.fieldOfView_mm.x) == (48, 230.0)


def test_partial_fourier_and_asymmetric_echo_are_placed_by_the_header(tmp_path: Path) -> None:
    options = {**SMALL, "mask": "full", "snr_db": 200.0}
    header, whole = read(simulate(tmp_path / "whole.h5", **options))
    expected = kspace_of(header, whole[16:])
    scan = simulate(tmp_path / "part.h5", **options, partial_fourier=0.75, asymmetric_echo=0.8)
    header, part = read(scan)
    found = kspace_of(header, part[16:])
    assert min(a.idx.kspace_encode_step_1 for a in part[16:]) == 0
    assert header.encoding[0].encodingLimits.kspace_encoding_step_1.center == 24 - 12
    assert {a.number_of_samples for a in part[16:]} == {77}
    assert scan.effective_r == 48 / 36
    assert not found[..., :12, :].any()
    assert not found[..., :19].any()
    np.testing.assert_allclose(found[..., 12:, 19:], expected[..., 12:, 19:], atol=1e-3 * np.abs(expected).max())


def test_repetitions_differ_and_averages_do_not(tmp_path: Path) -> None:
    scan = simulate(tmp_path / "repeat.h5", **SMALL, mask="full", repetitions=2, averages=2, snr_db=20)
    header, acquisitions = read(scan)
    truth = np.load(scan.truth)
    parts = {
        (r, a): images_of(
            header,
            kspace_of(
                header, [line for line in acquisitions[16:] if (line.idx.repetition, line.idx.average) == (r, a)]
            ),
        )[:, :, 0]
        for r in range(2)
        for a in range(2)
    }
    noise = (parts[1, 0] - parts[1, 1]).swapaxes(0, 1).reshape(4, -1)
    assert_covariance(covariance(noise), 2 * truth["noise_cov"], 0.15)
    change = np.abs(truth["image"][1] - truth["image"][0])
    assert change.max() > 0.2 * np.abs(truth["image"]).max()
    combined = np.sum(truth["maps"].conj() * (parts[1, 0] - parts[0, 0]), axis=1)
    assert np.corrcoef(np.abs(combined[change > change.max() / 4]), change[change > change.max() / 4])[0, 1] > 0.7


def test_random_points_in_3d(tmp_path: Path) -> None:
    scan = simulate(tmp_path / "3d.h5", matrix=32, coils=2, slices=16, three_d=True, r=3, acs=6)
    _, acquisitions = read(scan)
    truth = np.load(scan.truth)
    points = {(a.idx.kspace_encode_step_2, a.idx.kspace_encode_step_1) for a in acquisitions[16:]}
    assert points == set(zip(*np.nonzero(truth["mask"]), strict=True))
    assert len(points) == round(16 * 32 / 3)
    centre = {(a.idx.kspace_encode_step_2, a.idx.kspace_encode_step_1) for a in acquisitions if 21 in bits(a)}
    assert centre == {(z, y) for z in range(5, 11) for y in range(13, 19)}


def test_dataset_reads_header_acquisitions_and_waveforms(tmp_path: Path) -> None:
    scan = simulate(tmp_path / "ecg.h5", **SMALL, waveforms=True)
    with closing(ismrmrd.Dataset(str(scan.path), create_if_needed=False)) as dataset:
        text = dataset.read_xml_header()
        header = xsd.CreateFromDocument(text)  # fails on what the schema does not know, and on what it misses
        assert dataset.number_of_acquisitions() == scan.acquisitions
        line = dataset.read_acquisition(scan.acquisitions - 1)
        pulse = dataset.read_waveform(1)
        count = dataset.number_of_waveforms()
    assert line.data.shape == (4, 96)
    assert (pulse.waveform_id, pulse.channels, pulse.number_of_samples) == (0, 5, 40)
    assert pulse.data.shape == (5, 40)
    assert pulse.time_stamp == 40
    assert header.waveformInformation[0].waveformName == "ECG"
    assert count * 40 <= line.acquisition_time_stamp < (count + 1) * 40


def test_own_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    stack = rng.integers(0, 255, (4, 40, 36), dtype=np.uint8)
    np.savez(tmp_path / "own.npz", slices=stack, subject=np.zeros(4))
    scan = simulate(
        tmp_path / "own.h5", images=tmp_path / "own.npz", first_slice=1, slices=2, coils=2, r=2, acs=8, scale=1.0
    )
    image = np.load(scan.truth)["image"]
    assert image.shape == (1, 2, 40, 36)
    np.testing.assert_allclose(np.abs(image[0]), stack[1:3] / stack[1:3].max(), atol=1e-6)
    assert np.angle(image[stack[None, 1:3] > 0]).std() > 0.1
    smaller = simulate(tmp_path / "own.h5", images=tmp_path / "own.npz", matrix=32, coils=2, r=2, acs=8)
    assert np.load(smaller.truth)["image"].shape == (1, 1, 32, 32)


def test_a_seed_is_a_scan(tmp_path: Path) -> None:
    one, two, other = (simulate(tmp_path / f"{i}.h5", **SMALL, seed=s) for i, s in enumerate((3, 3, 4)))
    assert np.array_equal(read(one)[1][40].data, read(two)[1][40].data)
    assert not np.array_equal(read(one)[1][40].data, read(other)[1][40].data)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"mask": "spiral"}, "mask: expected one of full, uniform, random, got 'spiral'"),
        ({"contrast": "t3"}, "contrast: expected one of t1, t2, pd, flair"),
        ({"calibration": "none"}, "calibration: expected one of embedded, separate"),
        ({"partial_fourier": 0.5}, "partial Fourier fraction: expected above 0.5"),
        ({"asymmetric_echo": 1.1}, "asymmetric echo fraction: expected above 0.5 and at most 1, got 1.1"),
        ({"r": 9.0}, "R of a random mask: with these ACS lines expected 1.00 to 2.00, got 9.0"),
        ({"mask": "uniform", "r": 2.5}, "R of a uniform mask: expected a whole number"),
        ({"acs": 65}, "ACS lines: expected 0 to 48"),
        ({"coils": 0}, "coils: expected at least 1, got 0"),
        ({"three_d": True, "slices": 1}, "slices: expected at least 2, got 1"),
        ({"dwell": 0.0}, "dwell: expected more than 0"),
        ({"matrix": 8}, "phantom size: expected at least 16 x 16, got 8 x 8"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, option: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        simulate(tmp_path / "bad.h5", **{"matrix": 48, "coils": 2, **option})
    assert message in str(caught.value)
    assert not (tmp_path / "bad.h5").exists()


def test_images_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "names.npz", a=np.ones(3), b=np.ones(3))
    np.savez(tmp_path / "zero.npz", slices=np.zeros((1, 32, 32)))
    for name, option, message in (
        ("names", {}, "expected an array named slices, image or images, found a, b"),
        ("zero", {}, "not all zero"),
        ("zero", {"slices": 2}, "the file has 1"),
    ):
        with pytest.raises(ValueError, match=message):
            simulate(tmp_path / "bad.h5", images=tmp_path / f"{name}.npz", **option)
