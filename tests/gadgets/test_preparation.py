"""Preparation: whitened k-space, masks and calibration regions that a reconstruction can take as they are."""

from __future__ import annotations

import numpy as np
import pytest
from acquisitions import BOTH, acquisition, header_xml, recorded, smooth_object, truth
from hypothesis import given, settings
from hypothesis import strategies as st
from scanprior.gadgets.compression import Compression
from scanprior.gadgets.encoding import Encoding
from scanprior.gadgets.errors import ScanError
from scanprior.gadgets.fourier import fft, ifft
from scanprior.gadgets.noise import Whitening
from scanprior.gadgets.preparation import (
    Problem,
    calibration_kspace,
    largest_rectangle,
    prepare,
    prepare_acs,
    whitening_for,
)
from scanprior.gadgets.slices import AcsReady, SliceData, SliceReady
from scanprior.gadgets.sorting import Sorter


def sort_all(name: str) -> tuple[Sorter, list[AcsReady | SliceReady], list]:
    scan = recorded(name)
    target = Sorter(scan.encoding)
    events = [event for one in scan.acquisitions for event in target.add(one)]
    return target, events, scan.acquisitions


def problem_of(name: str) -> tuple[Problem, SliceData, Sorter]:
    target, events, _ = sort_all(name)
    data = next(event.slice_data for event in events if isinstance(event, SliceReady))
    return prepare(data, target.encoding, whitening_for(data, target.encoding, target.noise.noise())), data, target


def rss(kspace: np.ndarray) -> np.ndarray:
    return np.sqrt((np.abs(ifft(kspace, (-2, -1))) ** 2).sum(-3))


def nrmse(value: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))


def test_siemens_gre_is_the_manifests_rule() -> None:
    target, events, acquisitions = sort_all("siemens_gre_phantom")
    data = events[-1].slice_data
    problem = prepare(data, target.encoding, Whitening.upstream(2))
    matrix = np.zeros((2, 160, 320), np.complex128)
    for one in acquisitions:
        matrix[:, int(one.head["idx"]["kspace_encode_step_1"])] = one.data
    axes = (-2, -1)
    image = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(matrix, axes), norm="ortho"), axes)[:, :, 80:240]
    assert nrmse(rss(problem.kspace), np.sqrt((np.abs(image) ** 2).sum(0))) < 1e-6
    assert problem.mask.shape == (160, 1)
    assert problem.mask.all()


def test_r4_slice_has_the_true_mask_noise_and_calibration_region() -> None:
    problem, data, target = problem_of("brain_t2_8ch_r4")
    archive = truth("brain_t2_8ch")
    assert problem.kspace.shape == (8, 320, 320)
    assert problem.kspace.dtype == np.complex64
    assert np.array_equal(problem.mask[:, 0], archive["mask"])
    assert problem.acs is not None
    assert problem.acs.shape == (8, 24, 320)
    assert np.allclose(problem.acs, problem.kspace[:, archive["acs"]], atol=1e-4)
    assert problem.notes["effective_r"] == pytest.approx(4.0)
    # what is left after taking the true image away is noise of E|n|^2 = 2
    maps = archive["maps"][..., 0].astype(np.float32) + 1j * archive["maps"][..., 1].astype(np.float32)
    whitening = whitening_for(data, target.encoding, target.noise.noise())
    signal = whitening(fft((maps * archive["image"]).astype(np.complex64), (-2, -1)))
    noise = (problem.kspace - signal)[:, archive["mask"]].reshape(8, -1)
    measured = noise @ noise.conj().T / noise.shape[1]
    assert np.abs(measured - problem.sigma**2 * np.eye(8)).max() < 0.2
    assert not problem.kspace[:, ~archive["mask"]].any()


def test_noise_power_stays_when_oversampling_goes() -> None:
    generator = np.random.default_rng(0)
    encoding = Encoding.from_header(
        header_xml(encoded=(128, 64, 1), recon=(64, 64, 1), fov=(480, 240, 5), recon_fov=(240, 240, 5))
    )
    target = Sorter(encoding)
    for number in range(64):
        noise = generator.standard_normal((2, 4, 128))
        target.add(acquisition(noise[0] + 1j * noise[1], number))
    problem = prepare(target.flush()[0].slice_data, encoding, Whitening.upstream(4))
    assert problem.kspace.shape == (4, 64, 64)
    assert np.mean(np.abs(problem.kspace) ** 2) == pytest.approx(2, rel=0.05)


def test_early_and_late_calibration_regions_agree() -> None:
    target, events, _ = sort_all("brain_t2_multislice_r3")
    noise = target.noise.noise()
    early = {event.key: event.slice_data for event in events if isinstance(event, AcsReady)}
    late = {event.key: event.slice_data for event in events if isinstance(event, SliceReady)}
    assert early.keys() == late.keys()
    for key in list(late)[::5]:
        whitening = whitening_for(early[key], target.encoding, noise)
        assert np.array_equal(
            prepare_acs(early[key], target.encoding, whitening), prepare(late[key], target.encoding, whitening).acs
        )


def test_phantom16_keeps_its_calibration_apart() -> None:
    problem, _, _ = problem_of("phantom16ch_grappa")
    assert problem.acs is not None
    assert problem.acs.shape == (16, 24, 64)
    assert int(problem.mask.sum()) == 31
    assert problem.notes["noise"] == "estimated"
    assert np.isfinite(problem.kspace).all()


def test_poisson_volume_is_a_batch_of_one() -> None:
    problem, data, _ = problem_of("brain8ch_poisson_r8")
    assert problem.volume
    assert problem.kspace.shape == (1, 8, 180, 230)
    assert problem.mask.shape == (180, 230)
    assert int(problem.mask.sum()) == 5148
    assert problem.acs is not None
    assert problem.acs.shape == (1, 8, 24, 24)
    assert np.array_equal(problem.mask, data.counts > 0)
    assert problem.notes["effective_r"] == pytest.approx(8.04, abs=0.01)


def volume_scan(size_x: int, size_y: int, size_z: int) -> tuple[np.ndarray, Problem]:
    """A separable volume (z, y, x) times coils, oversampled twofold along x, every other ky outside the centre."""
    flat = smooth_object(size_y, size_x)
    image = np.zeros((4, size_z, size_y, size_x), np.complex64)
    image[:] = flat[:, None] * np.hanning(size_z + 2)[None, 1:-1, None, None]
    kspace = fft(np.pad(image, ((0, 0), (0, 0), (0, 0), (size_x // 2, size_x // 2))), (1, 2, 3))
    encoding = Encoding.from_header(
        header_xml((2 * size_x, size_y, size_z), (size_x, size_y, size_z), (480, 240, 100), (240, 240, 100))
    )
    target = Sorter(encoding)
    for kz in range(size_z):
        for ky in range(size_y):
            centre = abs(ky - size_y // 2) <= 4 and abs(kz - size_z // 2) <= 3
            if centre or ky % 2 == 0:
                flags = (BOTH,) if centre else ()
                target.add(acquisition(kspace[:, kz, ky], ky, *flags, kspace_encode_step_2=kz))
    return image, prepare(target.flush()[0].slice_data, encoding, Whitening.upstream(4))


def test_volume_is_decoupled_along_the_readout() -> None:
    image, problem = volume_scan(16, 24, 12)
    assert problem.kspace.shape == (16, 4, 12, 24)
    assert problem.mask.shape == (12, 24)
    assert problem.acs is not None
    assert problem.acs.shape == (16, 4, 7, 9)
    # each x is a 2-D problem of its own: (z, y) of the coil images there
    for x in range(16):
        expected = fft(image[..., x], (-2, -1)) * problem.mask
        assert np.allclose(problem.kspace[x], expected, atol=1e-5)


@pytest.mark.parametrize("oversampled", [False, True])
@pytest.mark.parametrize("late", [False, True])
def test_asymmetric_echo_is_placed_and_masked(oversampled: bool, late: bool) -> None:
    size = 64
    factor = 2 if oversampled else 1
    image = smooth_object(size, size)
    padded = np.pad(image, ((0, 0), (0, 0), (size // 2, size // 2))) if oversampled else image
    kspace = fft(padded, (-2, -1))
    encoding = Encoding.from_header(
        header_xml((factor * size, size, 1), (size, size, 1), (factor * 240.0, 240, 5), (240, 240, 5))
    )
    cut = 16 * factor
    keep = slice(cut, None) if late else slice(0, factor * size - cut)
    centre = factor * size // 2 - (cut if late else 0)
    target = Sorter(encoding)
    for number in range(size):
        target.add(acquisition(kspace[:, number, keep], number, center=centre))
    problem = prepare(target.flush()[0].slice_data, encoding, Whitening.upstream(4))
    assert problem.mask.shape == (size, size)
    expected = np.zeros(size, bool)
    expected[16 if late else 0 : size if late else size - 16] = True
    assert (problem.mask == expected).all()
    assert not problem.kspace[:, :, ~expected].any()
    full = fft(image, (-2, -1))
    inner = expected & np.roll(expected, 3) & np.roll(expected, -3)
    tolerance = 2e-2 if oversampled else 1e-6  # the crop of a truncated readout leaks at the cut
    assert nrmse(problem.kspace[:, :, inner], full[:, :, inner]) < tolerance
    assert problem.notes["partial_echo"] == 0.75


def test_partial_fourier_lines_go_where_the_centre_says() -> None:
    size, missing = 64, 16
    image = smooth_object(size, size)
    kspace = fft(image, (-2, -1))
    limits = {"kspace_encoding_step_1": (0, size - missing - 1, size // 2 - missing)}
    encoding = Encoding.from_header(header_xml((size, size, 1), limits=limits))
    target = Sorter(encoding)
    for step in range(size - missing):
        target.add(acquisition(kspace[:, step + missing], step))
    problem = prepare(target.flush()[0].slice_data, encoding, Whitening.upstream(4))
    assert np.array_equal(np.flatnonzero(problem.mask), np.arange(missing, size))
    assert np.array_equal(problem.kspace[:, missing:], kspace[:, missing:])
    assert problem.notes["partial_fourier"] == 0.75


def test_averages_lower_the_noise() -> None:
    generator = np.random.default_rng(0)
    encoding = Encoding.from_header(header_xml((64, 64, 1)))
    target = Sorter(encoding)
    for average in range(4):
        for number in range(64):
            noise = generator.standard_normal((2, 4, 64))
            target.add(acquisition(noise[0] + 1j * noise[1], number, average=average))
    problem = prepare(target.flush()[0].slice_data, encoding, Whitening.upstream(4))
    assert problem.sigma == pytest.approx(np.sqrt(2) / 2)
    assert np.mean(np.abs(problem.kspace) ** 2) == pytest.approx(problem.sigma**2, rel=0.05)
    assert problem.notes["averages"] == 4


def test_sigma_of_a_volume_with_asymmetric_echo() -> None:
    generator = np.random.default_rng(0)
    encoding = Encoding.from_header(header_xml((32, 24, 16)))
    target = Sorter(encoding)
    for kz in range(16):
        for ky in range(24):
            noise = generator.standard_normal((2, 4, 24))
            target.add(acquisition(noise[0] + 1j * noise[1], ky, center=8, kspace_encode_step_2=kz))
    problem = prepare(target.flush()[0].slice_data, encoding, Whitening.upstream(4))
    assert problem.sigma**2 == pytest.approx(2 * 24 / 32)
    assert np.mean(np.abs(problem.kspace) ** 2) == pytest.approx(problem.sigma**2, rel=0.03)


def test_fully_sampled_scan_without_flags_has_a_centre_to_calibrate_on() -> None:
    problem, data, _ = problem_of("siemens_gre_phantom")
    assert data.acs is None
    assert problem.acs is not None
    assert problem.acs.shape == (2, 48, 160)


def test_undersampled_scan_without_calibration_has_none() -> None:
    encoding = Encoding.from_header(header_xml((32, 32, 1)))
    target = Sorter(encoding)
    for number in range(0, 32, 2):
        target.add(acquisition(np.ones((4, 32)), number))
    data = target.flush()[0].slice_data
    assert prepare(data, encoding, Whitening.upstream(4)).acs is None
    assert calibration_kspace(data, encoding).shape == (4, 16, 32)


def test_all_zero_slice_is_refused() -> None:
    encoding = Encoding.from_header(header_xml((32, 32, 1)))
    target = Sorter(encoding)
    target.add(acquisition(np.zeros((4, 32)), 3))
    with pytest.raises(ScanError, match="has only zeros in its 1 lines"):
        prepare(target.flush()[0].slice_data, encoding, Whitening.upstream(4))


@pytest.mark.parametrize("coils", [3, 0.9])
def test_compression_keeps_noise_white_and_the_strongest_channels(coils: int | float) -> None:
    problem, data, target = problem_of("brain_t2_8ch_r4")
    whitening = whitening_for(data, target.encoding, target.noise.noise())
    compression = Compression.from_calibration(whitening(calibration_kspace(data, target.encoding)), coils)
    rows = compression.matrix
    assert np.allclose(rows @ rows.conj().T, np.eye(len(rows)), atol=1e-6)
    singular = np.linalg.svd(whitening(calibration_kspace(data, target.encoding)).reshape(8, -1), compute_uv=False)
    energy = np.cumsum(singular**2) / np.sum(singular**2)
    expected = 3 if coils == 3 else int(np.flatnonzero(energy >= 0.9)[0]) + 1
    assert len(rows) == expected
    assert compression.energy == pytest.approx(energy[expected - 1], abs=1e-5)
    compressed = prepare(data, target.encoding, whitening, compression)
    assert compressed.kspace.shape == (expected, 320, 320)
    assert compressed.acs is not None
    assert np.allclose(compressed.acs, np.einsum("vc,cyx->vyx", rows, problem.acs), atol=1e-2)
    assert compressed.notes["coils"] == expected


@pytest.mark.parametrize("coils", [0, -1, 2.5])
def test_senseless_compression_is_refused(coils: float) -> None:
    with pytest.raises(ValueError, match="expected a whole number from 1 or an energy fraction"):
        Compression.from_calibration(np.ones((4, 10), np.complex64), coils)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(1, 8), st.integers(0, 2**32 - 1), st.floats(0.3, 1.0))
def test_largest_rectangle_by_brute_force(rows: int, columns: int, seed: int, density: float) -> None:
    mask = np.random.default_rng(seed).random((rows, columns)) < density
    best = 0
    for top in range(rows):
        for bottom in range(top + 1, rows + 1):
            for left in range(columns):
                for right in range(left + 1, columns + 1):
                    if mask[top:bottom, left:right].all():
                        best = max(best, (bottom - top) * (right - left))
    z, y = largest_rectangle(mask)
    assert mask[z, y].all()
    assert (z.stop - z.start) * (y.stop - y.start) == best
