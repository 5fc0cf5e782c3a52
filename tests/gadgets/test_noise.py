"""Noise: covariance and whitening, from the noise scan and from the edge of k-space."""

from __future__ import annotations

import numpy as np
import pytest
from acquisitions import NOISE, acquisition, header_xml, noise_readouts, recorded, smooth_object, truth
from scanprior.gadgets.encoding import Encoding
from scanprior.gadgets.errors import ScanError
from scanprior.gadgets.fourier import fft
from scanprior.gadgets.noise import NoiseScan, Whitening, estimate_noise
from scanprior.gadgets.preparation import whitening_for
from scanprior.gadgets.slices import SliceData, SliceReady
from scanprior.gadgets.sorting import Sorter

COILS = 4


def covariance(coils: int = COILS, seed: int = 3) -> np.ndarray:
    generator = np.random.default_rng(seed)
    mixing = generator.standard_normal((coils, coils)) + 1j * generator.standard_normal((coils, coils))
    return mixing @ mixing.conj().T + coils * np.eye(coils)


def sorted_scan(name: str) -> tuple[Sorter, list[SliceData]]:
    scan = recorded(name)
    target = Sorter(scan.encoding)
    events = [event for one in scan.acquisitions for event in target.add(one)]
    return target, [event.slice_data for event in events if isinstance(event, SliceReady)]


def off_diagonal(matrix: np.ndarray) -> float:
    return float(np.abs(matrix - np.diag(matrix.diagonal())).max())


@pytest.mark.parametrize(("name", "scale"), [("brain_t2_8ch_r4", None), ("brain_t2_multislice_r3", "scale")])
def test_whitened_image_noise_of_recorded_scans_is_two(name: str, scale: str | None) -> None:
    """The true covariance of the image samples, whitened by the noise scan, must be 2 * identity: the noise scan has
    4096 samples, so its covariance is off by 1 / sqrt(4096) per entry; the multislice one has half the dwell time."""
    target, slices = sorted_scan(name)
    archive = truth("brain_t2_8ch" if name.startswith("brain_t2_8ch") else name)
    of_image = archive["noise_cov"].astype(np.complex128) * (float(archive[scale]) ** 2 if scale else 1.0)
    noise = target.noise.noise()
    assert noise is not None
    assert noise.samples == 4096
    whitening = whitening_for(slices[0], target.encoding, noise)
    whitened = whitening.matrix @ of_image @ whitening.matrix.conj().T
    assert np.abs(whitened.diagonal() - 2).max() < 5 * 2 / 64
    assert off_diagonal(whitened) < 5 * 2 / 64
    assert (whitening.sigma**2, whitening.source) == (pytest.approx(2), "scan")


def test_whitening_is_gadgetrons_formula() -> None:
    scan = NoiseScan()
    for readout in noise_readouts(covariance(), 16, 256, seed=1, dwell=5.0):
        scan.add(readout)
    noise = scan.noise()
    assert noise is not None
    expected = np.linalg.inv(np.linalg.cholesky(noise.covariance)) * np.sqrt(2 * 10.0 * 0.793 / 5.0)
    assert np.allclose(noise.whitening(10.0, 0.793).matrix, expected, rtol=1e-5, atol=1e-7)


def test_whitening_applied_to_noise_gives_two_times_identity() -> None:
    scan = NoiseScan()
    for readout in noise_readouts(covariance(), 32, 512, seed=1):
        scan.add(readout)
    noise = scan.noise()
    assert noise is not None
    fresh = np.concatenate([one.data for one in noise_readouts(covariance(), 32, 512, seed=2)], 1)
    white = noise.whitening(5.0, 1.0)(fresh.reshape(COILS, 128, 128))
    assert white.dtype == np.complex64
    flat = white.reshape(COILS, -1)
    measured = flat @ flat.conj().T / flat.shape[1]
    assert np.abs(measured - 2 * np.eye(COILS)).max() < 0.1


def test_estimate_agrees_with_the_noise_scan_to_a_fifth() -> None:
    target, slices = sorted_scan("brain_t2_8ch_r4")
    noise, data = target.noise.noise(), slices[0]
    assert noise is not None
    estimate = estimate_noise(data)
    assert estimate.source == "estimated"
    whitened = estimate.whitening(data.dwell_us, target.encoding.noise_bandwidth).matrix
    measured = whitened @ noise.covariance @ whitened.conj().T
    # signal that is left in the corners makes the estimate larger, never smaller, beyond statistics
    assert (measured.diagonal().real > 2 * 0.8).all()
    assert (measured.diagonal().real < 2 * 1.15).all()


def test_estimate_ignores_zero_filled_samples_and_averages() -> None:
    scans = []
    image = smooth_object(64, 64)
    for averages in (1, 4):
        generator = np.random.default_rng(averages)
        target = Sorter(Encoding.from_header(header_xml(encoded=(64, 64, 1), calibration="other")))
        kspace = fft(image, (-2, -1))
        for number in range(64):
            for average in range(averages):
                noise = generator.standard_normal((2, COILS, 64)) * 0.01 / np.sqrt(2)
                row = kspace[:, number] + noise[0] + 1j * noise[1]
                row[:, :3] = row[:, -3:] = 0
                target.add(acquisition(row, number, average=average))
        scans.append(estimate_noise(target.flush()[0].slice_data))
    for noise in scans:
        assert np.allclose(noise.covariance.diagonal().real, 1e-4, rtol=0.2)


def test_dead_coil_is_dropped() -> None:
    scan = NoiseScan()
    for readout in noise_readouts(covariance(), 16, 256, seed=1):
        readout.data[2] = 0
        scan.add(readout)
    noise = scan.noise()
    assert noise is not None
    whitening = noise.whitening(5.0, 1.0)
    assert whitening.dropped == (2,)
    assert whitening.matrix.shape == (3, 4)
    assert not whitening.matrix[:, 2].any()
    assert not whitening.regularised


@pytest.mark.parametrize("cause", ["copied coil", "few samples"])
def test_singular_covariance_is_regularised_and_says_so(cause: str, caplog: pytest.LogCaptureFixture) -> None:
    scan = NoiseScan()
    for readout in noise_readouts(covariance(), 1, 3 if cause == "few samples" else 4096, seed=1):
        if cause == "copied coil":
            readout.data[1] = readout.data[0]
        scan.add(readout)
    noise = scan.noise()
    assert noise is not None
    whitening = noise.whitening(5.0, 1.0)
    assert whitening.regularised
    assert np.isfinite(whitening.matrix).all()
    assert "regularised" in caplog.text


def test_corrupt_noise_scans_are_named() -> None:
    scan = NoiseScan()
    scan.add(acquisition(np.zeros((COILS, 64)), 0, NOISE))
    with pytest.raises(ScanError, match=r"noise scan is corrupt: all samples of its 1 readouts are zero"):
        scan.noise()
    with pytest.raises(ScanError, match=r"dwell time of 10\.0 us, those before it 5\.0 us"):
        scan.add(acquisition(np.ones((COILS, 64)), 0, NOISE, dwell=10.0))
    with pytest.raises(ScanError, match="3 channels, those before it 4"):
        scan.add(acquisition(np.ones((3, 64)), 0, NOISE))
    assert NoiseScan().noise() is None


def test_noise_of_other_channels_than_the_image_is_refused() -> None:
    _, slices = sorted_scan("brain_t2_8ch_r4")
    scan = NoiseScan()
    for readout in noise_readouts(covariance(), 16, 256, seed=1):
        scan.add(readout)
    encoding = Encoding.from_header(header_xml())
    with pytest.raises(ScanError, match="the noise scan has 4 channels, the image 8"):
        whitening_for(slices[0], encoding, scan.noise())


def test_too_little_for_an_estimate_is_refused() -> None:
    target = Sorter(Encoding.from_header(header_xml(calibration="other")))
    target.add(acquisition(np.pad(np.ones((COILS, 2)), ((0, 0), (15, 15))), 12))
    with pytest.raises(ScanError, match="2 non-zero samples of 4 coils: too few"):
        estimate_noise(target.flush()[0].slice_data)


def test_upstream_whitening_leaves_the_data() -> None:
    data = np.ones((COILS, 3), np.complex64)
    whitening = Whitening.upstream(COILS)
    assert whitening(data) is data
    assert whitening.sigma**2 == pytest.approx(2)
    with pytest.raises(ScanError, match="4 coils, the k-space 2"):
        whitening(data[:2])
