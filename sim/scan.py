"""Simulate a scan from head to file: image, coils, k-space, noise, sampling, an ISMRMRD file and its truth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scanprior.sim import masks
from scanprior.sim.anatomy import anatomy, resize, to_kspace, with_spots
from scanprior.sim.coils import coil_maps
from scanprior.sim.mask_file import SamplingMask
from scanprior.sim.mrdfile import (
    Protocol,
    acceleration_factors,
    acquisition_headers,
    ecg,
    header_xml,
    noise_headers,
    write,
)
from scanprior.sim.phantoms import CONTRASTS, slice_positions
from scanprior.sim.receiver_noise import ReceiverNoise
from scanprior.sim.sequence import order
from scanprior.sim.whole_files import whole_files

MASKS = ("full", "uniform", "random")
CALIBRATIONS = ("embedded", "separate")


@dataclass(frozen=True)
class Simulated:
    """Where a simulated scan lies and what it is.

    Attributes
    ----------
    path, truth
        The ISMRMRD file and the npz with the truth.
    acquisitions
        Readouts in the file, the noise scan included.
    asked_r, effective_r
        The undersampling asked for and the one that the lines really give, calibration lines included.
    """

    path: Path
    truth: Path
    acquisitions: int
    asked_r: float
    effective_r: float


def check_finite(**options: float) -> None:
    """Refuse nan and infinity.

    Raises
    ------
    ValueError
        Naming the option.
    """
    for name, value in options.items():
        if not math.isfinite(value):
            raise ValueError(f"{name}: expected a finite number, got {value}")


def _sampling(
    mask: str | SamplingMask,
    r: float,
    acs: int,
    calibration: str,
    partial_fourier: float,
    shape: tuple[int, ...],
    rng: np.random.Generator,
) -> tuple[masks.Sampling, np.ndarray | None]:
    """What each pass measures, and the calibration points measured before it (None: none)."""
    if isinstance(mask, SamplingMask):
        pattern = mask.sampling()
        if pattern.mask.T.shape != shape:
            raise ValueError(
                f"mask: it is for {' x '.join(map(str, mask.mask.shape))} phase encodings (y, z), the scan has "
                f"{' x '.join(map(str, shape[::-1]))}"
            )
        return masks.Sampling(pattern.mask.T.copy(), pattern.acs.T.copy(), pattern.asked_r), None
    lines = shape[-1]
    inside = acs if calibration == "embedded" else 0
    if mask == "random" and len(shape) == 2:
        sampling = masks.random_2d((shape[0], lines), r, inside, rng, partial_fourier)
    elif mask == "random":
        sampling = masks.random(lines, r, inside, rng, partial_fourier)
    else:
        line = (
            masks.full(lines, partial_fourier) if mask == "full" else masks.uniform(lines, r, inside, partial_fourier)
        )
        imaging, centre = np.broadcast_to(line.imaging, shape), np.broadcast_to(line.acs, shape)
        sampling = masks.Sampling(imaging.copy(), centre.copy(), line.asked_r)
    if calibration == "embedded" or mask == "full" or not acs:
        return sampling, None
    kept = np.arange(lines) >= masks.first_line(lines, partial_fourier)
    separate = np.broadcast_to(masks.acs_lines(lines, acs) & kept, shape).copy()
    if len(shape) == 2:
        separate &= masks.acs_lines(shape[0], min(acs, shape[0]))[:, None]
    return sampling, separate


def simulate(
    path: str | Path,
    *,
    images: str | Path | None = None,
    first_slice: int = 0,
    matrix: int | None = None,
    columns: int | None = None,
    slices: int = 1,
    three_d: bool = False,
    contrast: str = "t2",
    phase: float = 1.0,
    coils: int = 8,
    mask: str | SamplingMask = "random",
    r: float = 4.0,
    acs: int = 24,
    calibration: str = "embedded",
    partial_fourier: float = 1.0,
    asymmetric_echo: float = 1.0,
    oversampling: float = 2.0,
    phase_oversampling: float = 0.0,
    repetitions: int = 1,
    averages: int = 1,
    echo_train: int = 1,
    spot: float = 0.3,
    snr_db: float = 25.0,
    noise_correlation: float = 0.3,
    noise_readouts: int = 16,
    noise_samples: int = 256,
    noise_dwell: float = 5.0,
    noise_bandwidth: float = 1.0,
    dwell: float = 10.0,
    scale: float = 1e-5,
    fov: float | None = None,
    thickness: float | None = None,
    waveforms: bool = False,
    seed: int = 0,
    noise_seed: int | None = None,
) -> Simulated:
    """Write a simulated scan as an ISMRMRD file, and the truth beside it as `<name>_truth.npz`.

    The truth holds `image` (repetition, slice, y, x) and `maps` (slice, coil, y, x), both complex64 (in 3-D the
    slices are the partitions), `noise_cov` (coil, coil) = E[n n^H] of a k-space sample, `mask` and `acs` (y,) or
    (z, y) bool over the encoded matrix, `object` (slice, y, x) bool, `asked_r`, `effective_r`, `snr_db`. Everything
    is in the units of the file: an orthonormal transform of a full scan, cropped to the recon matrix, is
    `image * maps` plus noise of covariance `noise_cov`.

    Parameters
    ----------
    path
        File to write; one that is there is replaced.
    images
        An npz with images (slice, y, x) to scan instead of the phantom; real ones get a smooth phase.
    first_slice
        First slice taken from `images`.
    matrix, columns
        Rows (phase encode) and columns (readout) of the image; 256 square, or the size of `images`, if not given.
    slices
        Slices, measured interleaved, or partitions if `three_d`.
    contrast
        Of the phantom: t1, t2, pd or flair.
    phase
        Spread of the image's smooth phase in radians.
    mask
        `full`, `uniform` (every r-th line plus ACS lines; those between carry flag 20 only) or `random` (denser towards
        the centre, round(lines / r) lines in all, ACS lines included; in 3-D points of the (z, y) plane). Or the
        pattern of a mask file, which brings its ACS, R and field of view; `calibration` is embedded and nothing else.
    r, acs
        Undersampling factor asked for, and number of ACS lines (0: none).
    calibration
        `embedded`, or `separate`: the ACS lines are a scan of their own before the imaging lines.
    partial_fourier
        Fraction of the phase-encode lines kept, above 0.5 and at most 1; step_1 then counts from the first line kept.
    asymmetric_echo
        Fraction of the readout kept, above 0.5 and at most 1.
    oversampling
        Of the readout; the encoded field of view grows with it.
    phase_oversampling
        Fraction by which matrix and field of view grow along y; the recon matrix stays.
    echo_train
        Lines measured after one excitation.
    spot
        Brightness of a spot in every second repetition, as a fraction of the image's maximum.
    snr_db
        Mean magnitude in the object over the noise of the optimally combined, fully sampled image, in dB.
    noise_correlation
        How much of a coil's noise its neighbour shares; gains are unequal in any case.
    noise_readouts, noise_samples, noise_dwell
        The noise scan in front: readouts (0: none), samples, microseconds per sample. Its covariance is `noise_cov`
        times `dwell / noise_dwell * noise_bandwidth`.
    noise_bandwidth
        relativeReceiverNoiseBandwidth of the header.
    dwell
        Microseconds per (oversampled) image sample.
    scale
        Largest magnitude of the image in the file; real scanners are of the order 1e-5.
    fov, thickness
        Field of view along y, and slice thickness, in mm; 230 and 4. A mask file brings its own.
    waveforms
        Write an ECG too.
    seed
        Of anatomy, coils, noise and mask.
    noise_seed
        Of the noise alone: another draw of the same covariance in the same scan. None: `seed` gives it.

    Raises
    ------
    ValueError
        For an option out of range; the message names it, its value and what is allowed.
    """
    if isinstance(mask, SamplingMask) and (partial_fourier != 1.0 or calibration != "embedded"):
        raise ValueError("mask: the pattern of a mask file goes without partial Fourier and separate calibration")
    if isinstance(mask, SamplingMask):
        if fov is not None or thickness is not None:
            raise ValueError("fov, thickness: the mask file brings them")
        fov, thickness = mask.fov_mm[1], mask.fov_mm[2] / mask.matrix[2]
    fov, thickness = 230.0 if fov is None else fov, 4.0 if thickness is None else thickness
    check_finite(snr_db=snr_db, scale=scale, fov=fov, thickness=thickness)
    for name, value, allowed in (
        ("mask", MASKS[0] if isinstance(mask, SamplingMask) else mask, MASKS),
        ("calibration", calibration, CALIBRATIONS),
        ("contrast", contrast, tuple(CONTRASTS)),
    ):
        if value not in allowed:
            raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
    if not 0.5 < asymmetric_echo <= 1.0:
        raise ValueError(f"asymmetric echo fraction: expected above 0.5 and at most 1, got {asymmetric_echo}")
    for name, number, least in (
        ("slices", slices, 2 if three_d else 1),
        ("repetitions", repetitions, 1),
        ("averages", averages, 1),
        ("oversampling", oversampling, 1),
        ("phase oversampling", phase_oversampling, 0),
        ("noise readouts", noise_readouts, 0),
    ):
        if number < least:
            raise ValueError(f"{name}: expected at least {least}, got {number}")
    for name, number in (
        ("dwell", dwell),
        ("noise dwell", noise_dwell),
        ("noise bandwidth", noise_bandwidth),
        ("scale", scale),
        ("field of view", fov),
        ("thickness", thickness),
    ):
        if not number > 0:
            raise ValueError(f"{name}: expected more than 0, got {number}")

    path = Path(path)
    rng = np.random.default_rng([seed, 1])  # not the phantom's stream
    still, head = anatomy(images, slices, first_slice, (matrix, columns), contrast, phase, seed)
    image = scale * with_spots(still, head, repetitions, spot)
    ny, nx = image.shape[-2:]
    maps = coil_maps((ny, nx), coils, slice_positions(slices), seed=seed)
    rows, samples = ny + round(ny * phase_oversampling), round(nx * oversampling)
    dropped = samples - round(samples * asymmetric_echo)

    sampling, separate = _sampling(
        mask, r, acs, calibration, partial_fourier, (slices, rows) if three_d else (rows,), rng
    )
    tr, te, ti = CONTRASTS[contrast]
    readouts = order(
        sampling,
        1 if three_d else slices,
        repetitions=repetitions,
        averages=averages,
        echo_train=echo_train,
        repetition_time=10.0 if three_d else tr,
        separate_acs=separate,
    )

    noise = ReceiverNoise.of(image[0], maps, head, snr_db, noise_correlation, rng)
    rng = rng if noise_seed is None else np.random.default_rng([noise_seed, 2])
    data = noise.draw(len(readouts), samples - dropped, rng)
    axes = (0, -2, -1) if three_d else (-2, -1)
    for repetition in range(repetitions):
        chosen = np.flatnonzero(readouts["repetition"] == repetition)
        # slice by slice, to keep only one slice of k-space in memory; a 3-D scan is one block
        for block in [slice(None)] if three_d else range(slices):
            kspace = to_kspace(resize(maps[block] * image[repetition, block][..., None, :, :], (rows, samples)), axes)
            here = chosen if three_d else chosen[readouts["slice"][chosen] == block]
            lines = readouts["step_1"][here]
            if three_d:
                data[here] += kspace[readouts["step_2"][here], :, lines, dropped:]
            else:
                data[here] += kspace[:, lines, dropped:].swapaxes(0, 1)

    pixel = fov / ny
    width = mask.fov_mm[0] if isinstance(mask, SamplingMask) else pixel * nx
    depth = thickness * slices if three_d else thickness
    partitions = slices if three_d else 1
    if isinstance(mask, SamplingMask):
        acceleration = acceleration_factors(mask.effective_r, three_d)
    else:
        acceleration = (1 if mask == "full" else max(1, round(sampling.asked_r))), 1
    protocol = Protocol(
        encoded=(samples, rows, partitions),
        recon=(nx, ny, partitions),
        encoded_fov=(width * samples / nx, pixel * rows, depth),
        recon_fov=(width, fov, depth),
        slices=1 if three_d else slices,
        repetitions=repetitions,
        averages=averages,
        coils=coils,
        first=masks.first_line(rows, partial_fourier),
        dropped=dropped,
        acceleration=acceleration,
        calibration=calibration if (separate is not None or sampling.acs.any()) and mask != "full" else "other",
        noise_bandwidth=noise_bandwidth,
        timing=(tr, te, ti),
        echo_train=echo_train,
        waveforms=waveforms,
    )
    blocks = []
    if noise_readouts:
        blocks.append(
            (
                noise_headers(noise_readouts, noise_samples, protocol, noise_dwell),
                noise.draw(noise_readouts, noise_samples, rng, dwell / noise_dwell * noise_bandwidth),
            )
        )
    blocks.append(
        (
            acquisition_headers(
                readouts, protocol, dwell=dwell, centre=(2.5, -11.0, 14.0), tilt=0.2, slice_distance=1.25 * thickness
            ),
            data,
        )
    )
    duration = float(readouts["time_ms"][-1])
    truth = path.with_name(path.stem + "_truth.npz")
    with whole_files(path.parent) as folder:
        count = write(folder / path.name, header_xml(protocol), blocks, ecg(duration) if waveforms else None)
        np.savez(
            folder / truth.name,
            image=image,
            maps=maps,
            noise_cov=noise.covariance.astype(np.complex64),
            mask=sampling.mask,
            acs=sampling.acs if separate is None else separate,
            object=head,
            asked_r=sampling.asked_r,
            effective_r=sampling.effective_r,
            snr_db=snr_db,
        )
    return Simulated(path, truth, count, float(sampling.asked_r), sampling.effective_r)
