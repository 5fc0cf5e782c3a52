"""Play a Pulseq sequence on a simulated object, and write what a converter makes of it: an ISMRMRD file and its truth.

Nothing here reads the mask: what is measured follows from the sequence's own gradients and pulses, and what the
file says of it from its labels and definitions.
"""

from __future__ import annotations

import math
from pathlib import Path

import finufft
import numpy as np
from scanprior.sim.anatomy import anatomy
from scanprior.sim.coils import coil_maps
from scanprior.sim.mrdfile import (
    Protocol,
    acceleration_factors,
    acquisition_headers,
    header_xml,
    noise_headers,
    write,
)
from scanprior.sim.phantoms import CONTRASTS, slice_positions
from scanprior.sim.receiver_noise import ReceiverNoise
from scanprior.sim.scan import Simulated, check_finite
from scanprior.sim.sequence import READOUT, mark_order, parallel_flags
from scanprior.sim.sequence_file import SequenceFileError, check_encoding
from scanprior.sim.sequence_playback import Playback, PlaybackError, play_back
from scanprior.sim.whole_files import whole_files

LARGEST_MATRIX = 2048
"""Of one axis, and slices: a file cannot ask for memory at will."""

LARGEST_SCAN = 2**30
"""Pixels of all slices and coils, for the same reason."""

RAGGED = 1e-3
"""How far the steps of k_x may be from what the field of view asks for, as a fraction."""


def play(
    sequence: str | Path,
    path: str | Path,
    *,
    images: str | Path | None = None,
    first_slice: int = 0,
    contrast: str = "t2",
    phase: float = 1.0,
    coils: int = 8,
    snr_db: float = 25.0,
    noise_correlation: float = 0.3,
    t2_ms: float | None = None,
    scale: float = 1e-5,
    seed: int = 0,
) -> Simulated:
    """Write the scan that a sequence of `export-mask` makes of an object as an ISMRMRD file, its truth beside it.

    The signal is the sum over all pixels of image times coil map, turned by the phase of k at each sample, as pypulseq
    integrates the gradients (a non-uniform Fourier transform); by the phase between pulses and receiver; and weighed by
    what an incomplete rephasing of the slice leaves. Which slice answers follows from the pulse's frequency. Labels and
    definitions alone say what is written: LIN, PAR and SLC are the counters; NOISE is flag 19; REF with IMA is flag 21,
    REF alone flag 20, never both. What `simulate` takes from the same seed, this does too: object, coils, noise
    covariance (not its draw), and units. Neither relaxation nor a slice's or slab's profile is simulated.

    Parameters
    ----------
    sequence
        Pulseq file.
    path
        File to write, and `<name>_truth.npz` beside it, as those of `simulate`. Where PhaseSign is -1 the truth is
        mirrored as the image of the scan is.
    images, first_slice, contrast, phase, coils, snr_db, noise_correlation, scale, seed
        As of `simulate`; the matrix is the sequence's, and images of another size are resampled to it.
    t2_ms
        Of the whole object, in ms: echoes earlier and later than TE are stronger and weaker. None: no decay.

    Raises
    ------
    PlaybackError
        If the file is no sequence that can be played back, or its readouts excite what its labels do not say.
    ValueError
        For an option out of range, or images that do not have the slices.
    """
    sequence, path = Path(sequence), Path(path)
    check_finite(snr_db=snr_db, scale=scale)
    if not scale > 0:
        raise ValueError(f"scale: expected more than 0, got {scale}")
    if contrast not in CONTRASTS:
        raise ValueError(f"contrast: expected one of {', '.join(CONTRASTS)}, got {contrast!r}")
    if t2_ms is not None and not t2_ms > 0:
        raise ValueError(f"t2_ms: expected more than 0, got {t2_ms}")
    played = play_back(sequence)
    nx, ny, nz = _matrix(played)
    volume = nz > 1
    positions = played.lengths("SlicePositions")
    slices = nz if volume else len(positions)
    if len(positions) > (1 if volume else LARGEST_MATRIX) or slices * ny * nx * coils > LARGEST_SCAN:
        raise PlaybackError(
            f"{sequence}: {len(positions)} slices of {nx} x {ny} x {nz} for {coils} coils are too much: expected at "
            f"most {1 if volume else LARGEST_MATRIX} slices and 2^30 pixels in all"
        )
    imaging = np.flatnonzero(played.labels["NOISE"] == 0)
    _check(played, imaging, positions, sequence)

    rng = np.random.default_rng([seed, 1])
    still, head = anatomy(images, slices, first_slice, (ny, nx), contrast, phase, seed)
    image = scale * still
    maps = coil_maps((ny, nx), coils, slice_positions(slices), seed=seed)
    noise = ReceiverNoise.of(image, maps, head, snr_db, noise_correlation, rng)
    rng = np.random.default_rng([seed, 3])  # of the same state `simulate` draws its noise

    samples = played.trajectory.shape[1]
    data = noise.draw(len(imaging), samples, rng)
    if volume:
        data += _signal(played, imaging, image, maps.swapaxes(0, 1), t2_ms)
    else:
        for number in range(slices):
            own = np.flatnonzero(played.labels["SLC"][imaging] == number)
            data[own] += _signal(played, imaging[own], image[number], maps[number], t2_ms)
    noise_rows = np.flatnonzero(played.labels["NOISE"] != 0)

    fov, sign = played.lengths("FOV", 3) * 1e3, float(played.lengths("PhaseSign", 1)[0])
    thickness, gap = played.positive("SliceThickness") * 1e3, float(played.lengths("SliceGap", 1)[0]) * 1e3
    mask = np.zeros((nz, ny) if volume else (ny,), bool)
    acs = mask.copy()
    first = imaging if volume else imaging[played.labels["SLC"][imaging] == played.labels["SLC"][imaging[0]]]
    place = (played.labels["PAR"][first], played.labels["LIN"][first])[0 if volume else 1 :]
    mask[place], acs[place] = True, played.labels["REF"][first] > 0
    protocol = Protocol(
        encoded=(samples, ny, nz),
        recon=(nx, ny, nz),
        encoded_fov=(float(fov[0]) * samples / nx, float(fov[1]), float(fov[2]) if volume else thickness),
        recon_fov=(float(fov[0]), float(fov[1]), float(fov[2]) if volume else thickness),
        slices=1 if volume else slices,
        repetitions=1,
        averages=1,
        coils=coils,
        first=0,
        dropped=0,
        acceleration=acceleration_factors(mask.size / mask.sum(), volume),
        calibration="embedded" if acs.any() and not mask.all() else "other",
        noise_bandwidth=1.0,
        timing=(played.positive("TR") * 1e3, played.positive("TE") * 1e3, 0.0),
        echo_train=int(played.labels["SEG"].max()) + 1,
        waveforms=False,
        segments=int(played.labels["SEG"].max()) + 1,
    )
    dwell = played.dwell * 1e6
    headers = acquisition_headers(
        _readouts(played, imaging, volume), protocol, dwell=dwell, centre=(0.0, 0.0, 0.0), tilt=0.0,
        slice_distance=thickness + gap,
    )  # fmt: skip
    headers["position"][:, 2] = positions[played.labels["SLC"][imaging]] * 1e3
    headers["idx"]["segment"] = played.labels["SEG"][imaging]
    # k runs the other way, so the image's rows do
    headers["phase_dir"] *= sign
    headers["slice_dir"] *= sign if volume else 1.0
    blocks = [(headers, data)]
    if len(noise_rows):
        quiet = noise_headers(len(noise_rows), samples, protocol, dwell)
        blocks.insert(0, (quiet, noise.draw(len(noise_rows), samples, rng)))
    truth = path.with_name(path.stem + "_truth.npz")
    effective_r = mask.size / mask.sum()
    image, maps, head = (_as_labelled(array, sign, volume) for array in (image, maps, head))
    with whole_files(path.parent) as folder:
        count = write(folder / path.name, header_xml(protocol), blocks)
        np.savez(
            folder / truth.name, image=image[None], maps=maps, noise_cov=noise.covariance.astype(np.complex64),
            mask=mask, acs=acs, object=head, asked_r=effective_r, effective_r=effective_r, snr_db=snr_db,
        )  # fmt: skip
    return Simulated(path, truth, count, effective_r, effective_r)


def _matrix(played: Playback) -> tuple[int, int, int]:
    """(x, y, z) of the image that the sequence is for."""
    found = played.lengths("Matrix", 3)
    if (found != np.round(found)).any() or found.min() < 1 or found.max() > LARGEST_MATRIX:
        raise PlaybackError(
            f"definition Matrix: expected whole numbers from 1 to {LARGEST_MATRIX}, found {found.tolist()}"
        )
    x, y, z = (int(size) for size in found)
    return x, y, z


def _check(played: Playback, imaging: np.ndarray, positions: np.ndarray, name: Path) -> None:
    """Refuse definitions, labels, gradients and pulses that do not go together."""
    _, ny, nz = _matrix(played)
    for label, size in (("LIN", ny), ("PAR", nz), ("SLC", len(positions))):
        values = played.labels[label][imaging]
        if not len(values) or values.min() < 0 or values.max() >= size:
            raise PlaybackError(f"{name}: label {label}: expected 0 to {size - 1} on at least one readout")
    if played.labels["SEG"][imaging].min() < 0:
        raise PlaybackError(f"{name}: label SEG: expected at least 0")
    _check_sets(played, imaging, len(positions), name)
    _check_gradients(played, imaging, name)
    for definition in ("SliceThickness", "TE", "TR"):
        played.positive(definition)
    if played.lengths("SliceGap", 1)[0] < 0:
        raise PlaybackError(f"definition SliceGap: expected at least 0, found {played.lengths('SliceGap', 1)[0]:g}")
    if not np.isnan(played.position[played.labels["NOISE"] != 0]).all():
        raise PlaybackError(f"{name}: a readout with the label NOISE comes after an excitation")
    off = np.abs(played.position[imaging] - positions[played.labels["SLC"][imaging]])
    wrong = np.flatnonzero(~(off < 1e-5))
    if len(wrong):
        row = imaging[wrong[0]]
        raise PlaybackError(
            f"{name}: readout {row} is labelled slice {played.labels['SLC'][row]} at "
            f"{positions[played.labels['SLC'][row]] * 1e3:g} mm, its pulses refocus "
            f"{played.position[row] * 1e3:g} mm (nan: nothing)"
        )


def _check_sets(played: Playback, imaging: np.ndarray, slices: int, name: Path) -> None:
    """Each slice is to measure the same points, each of them once."""
    keys = np.stack([played.labels[label][imaging] for label in ("SLC", "LIN", "PAR")], 1)
    found, counts = np.unique(keys, axis=0, return_counts=True)
    if counts.max() > 1:
        slice_, line, partition = found[np.argmax(counts)]
        raise PlaybackError(
            f"{name}: slice {slice_}, LIN {line}, PAR {partition} is measured {counts.max()} times; repetitions and "
            "averages are not simulated"
        )
    first = found[found[:, 0] == found[0, 0], 1:]
    for number in range(slices):
        if not np.array_equal(found[found[:, 0] == number, 1:], first):
            raise PlaybackError(f"{name}: slice {number} does not measure what slice {found[0, 0]} does")


def _check_gradients(played: Playback, imaging: np.ndarray, name: Path) -> None:
    """Readouts are to lie on the grid that definitions and labels say."""
    nx, ny, nz = _matrix(played)
    fov, sign = played.lengths("FOV", 3), float(played.lengths("PhaseSign", 1)[0])
    if not (fov > 0).all():
        raise PlaybackError(f"definition FOV: expected lengths above 0, found {fov.tolist()}")
    if abs(sign) != 1:
        raise PlaybackError(f"definition PhaseSign: expected 1 or -1, found {sign:g}")
    k = played.trajectory[imaging]
    samples = k.shape[1]
    points = np.stack([played.labels["LIN"][imaging], played.labels["PAR"][imaging]], 1)
    try:
        check_encoding(name, k[:, samples // 2], points, (ny, nz), fov, sign)
    except SequenceFileError as error:
        raise PlaybackError(str(error)) from None
    steps = np.diff(k[..., 0], axis=1) * fov[0] * samples / nx
    if not (np.abs(steps - 1) <= RAGGED).all():
        raise PlaybackError(
            f"{name}: samples lie {steps.min():.4f} to {steps.max():.4f} steps of 1 / (encoded field of view) apart, "
            f"expected 1: Matrix {nx}, FOV {fov[0]:g} m and {samples} samples do not go with the readout gradient"
        )


def _signal(played: Playback, rows: np.ndarray, image: np.ndarray, maps: np.ndarray, t2_ms: float | None) -> np.ndarray:
    """(row, coil, sample) complex64 that an image (y, x), or volume (z, y, x), with maps (coil, ...) gives."""
    k = played.trajectory[rows]
    fov = played.lengths("FOV", 3)
    sizes = image.shape[::-1]
    # pixel n lies at (n - N // 2) pixels from the middle, which is finufft's own order of modes
    turns = [2 * math.pi * k[..., axis].ravel() * fov[axis] / size for axis, size in enumerate(sizes)][::-1]
    objects = np.ascontiguousarray(maps * image, np.complex128)
    transform = finufft.nufft3d2 if image.ndim == 3 else finufft.nufft2d2
    values = transform(*turns, objects, eps=1e-9, isign=-1).reshape(len(maps), *k.shape[:2])
    # orthonormal over the encoded matrix, as `simulate` writes it
    values /= math.sqrt(image.size / sizes[0] * k.shape[1])
    factor = np.exp(1j * played.phase[rows])[:, None] * np.ones(k.shape[:2])
    if image.ndim == 2:
        # what is left of k_z, over a rectangular slice about its own middle
        factor = factor * np.sinc(k[..., 2] * played.positive("SliceThickness"))
        factor = factor * np.exp(-2j * math.pi * k[..., 2] * played.position[rows][:, None])
    if t2_ms is not None:
        factor = factor * np.exp((played.positive("TE") - played.age[rows]) / (t2_ms * 1e-3))
    return (values * factor).swapaxes(0, 1).astype(np.complex64)


def _as_labelled(array: np.ndarray, sign: float, volume: bool) -> np.ndarray:
    """An object (slice, ..., y, x) as a transform over the labels shows it.

    Where k runs against the labels, row n is row -n about the middle N // 2; of a volume the partition too.
    """
    if sign > 0:
        return array
    for axis in (0, -2) if volume else (-2,):
        size = array.shape[axis]
        array = np.take(array, (2 * (size // 2) - np.arange(size)) % size, axis)
    return array


def _readouts(played: Playback, imaging: np.ndarray, volume: bool) -> np.ndarray:
    """Counters, flags and clock of the imaging readouts, as a converter takes them from the labels."""
    rows = np.zeros(len(imaging), READOUT)
    rows["step_1"] = played.labels["LIN"][imaging]
    rows["step_2"] = played.labels["PAR"][imaging]
    rows["slice"] = played.labels["SLC"][imaging]
    rows["time_ms"] = played.start[imaging] * 1e3
    rows["flags"] = parallel_flags(played.labels["REF"][imaging] > 0, played.labels["IMA"][imaging] > 0)
    mark_order(rows, volume)
    return rows
