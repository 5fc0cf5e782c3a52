"""MRD acquisitions for tests: from recorded files, and simulated from an image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from scanprior.gadgets.encoding import Encoding
from scanprior.gadgets.mrd import ACQUISITION_HEADER, Acquisition
from support import data_dir

FIRST_IN_SLICE, LAST_IN_SLICE, LAST_IN_REPETITION, NOISE, CALIBRATION, BOTH, REVERSE, LAST = (
    7, 8, 14, 19, 20, 21, 22, 25,
)  # fmt: skip


@dataclass
class Recorded:
    """A recorded scan: header and acquisitions."""

    xml: bytes
    encoding: Encoding
    acquisitions: list[Acquisition]


def read_file(path: Path) -> tuple[bytes, list[Acquisition]]:
    """Header and acquisitions of an MRD file."""
    with h5py.File(path) as file:
        xml, rows = file["dataset/xml"][0], file["dataset/data"][:]
    return xml, [
        Acquisition(row["head"], row["data"].view(np.complex64).reshape(int(row["head"]["active_channels"]), -1))
        for row in rows
    ]


def recorded(name: str) -> Recorded:
    """A recorded scan by its name, as in the manifest."""
    xml, acquisitions = read_file(data_dir() / "recorded" / f"{name}.h5")
    return Recorded(xml, Encoding.from_header(xml), acquisitions)


def truth(name: str) -> dict[str, np.ndarray]:
    """What the manifest says of `<name>_truth.npz`."""
    with np.load(data_dir() / "recorded" / f"{name}_truth.npz") as archive:
        return dict(archive)


def header_xml(
    encoded: tuple[int, int, int] = (32, 24, 1),
    recon: tuple[int, int, int] | None = None,
    fov: tuple[float, float, float] = (240.0, 240.0, 5.0),
    recon_fov: tuple[float, float, float] | None = None,
    *,
    limits: dict[str, tuple[int, int, int]] | None = None,
    calibration: str | None = "embedded",
    trajectory: str = "cartesian",
    channels: int | None = 4,
    reference_lines: int | None = None,
    extra: str = "",
) -> str:
    """An MRD header. `limits` maps names to (minimum, maximum, center)."""

    def space(name: str, matrix: tuple[int, int, int], size: tuple[float, float, float]) -> str:
        cells = [f"<{a}>{n}</{a}>" for a, n in zip("xyz", matrix, strict=True)]
        lengths = [f"<{a}>{n}</{a}>" for a, n in zip("xyz", size, strict=True)]
        return (
            f"<{name}><matrixSize>{''.join(cells)}</matrixSize>"
            f"<fieldOfView_mm>{''.join(lengths)}</fieldOfView_mm></{name}>"
        )

    bounds = "".join(
        f"<{name}><minimum>{low}</minimum><maximum>{high}</maximum><center>{center}</center></{name}>"
        for name, (low, high, center) in (limits or {}).items()
    )
    parallel = (
        "<parallelImaging><accelerationFactor><kspace_encoding_step_1>2</kspace_encoding_step_1>"
        "<kspace_encoding_step_2>1</kspace_encoding_step_2></accelerationFactor>"
        f"<calibrationMode>{calibration}</calibrationMode></parallelImaging>"
    )
    system = f"<receiverChannels>{channels}</receiverChannels>" if channels else ""
    user = (
        "<userParameters><userParameterLong><name>EmbeddedRefLinesE1</name>"
        f"<value>{reference_lines}</value></userParameterLong></userParameters>"
    )
    return (
        '<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">'
        "<measurementInformation><patientPosition>HFS</patientPosition><protocolName>test</protocolName>"
        "</measurementInformation>"
        f"<acquisitionSystemInformation>{system}</acquisitionSystemInformation>"
        "<encoding>"
        + space("encodedSpace", encoded, fov)
        + space("reconSpace", recon or encoded, recon_fov or fov)
        + f"<encodingLimits>{bounds}</encodingLimits><trajectory>{trajectory}</trajectory>"
        + (parallel if calibration else "")
        + f"</encoding>{extra}"
        + (user if reference_lines else "")
        + "</ismrmrdHeader>"
    )


def acquisition(
    data: np.ndarray,
    line: int = 0,
    *flags: int,
    center: int | None = None,
    discard: tuple[int, int] = (0, 0),
    dwell: float = 5.0,
    **idx: int,
) -> Acquisition:
    """A readout (coil, sample) at step 1 `line`, with MRD flags by their numbers; `idx` names other counters."""
    head = np.zeros(1, ACQUISITION_HEADER)[0]
    head["version"] = 1
    head["active_channels"], head["number_of_samples"] = data.shape
    head["center_sample"] = data.shape[1] // 2 if center is None else center
    head["discard_pre"], head["discard_post"] = discard
    head["sample_time_us"] = dwell
    head["flags"] = sum(1 << (flag - 1) for flag in flags)
    head["idx"]["kspace_encode_step_1"] = line
    for name, value in idx.items():
        head["idx"][name] = value
    head["scan_counter"] = line + 1
    head["acquisition_time_stamp"] = 1000 + line
    head["read_dir"], head["phase_dir"], head["slice_dir"] = (1, 0, 0), (0, 1, 0), (0, 0, 1)
    return Acquisition(head, np.ascontiguousarray(data, np.complex64))


def noise_readouts(
    covariance: np.ndarray, readouts: int, samples: int, seed: int, dwell: float = 5.0
) -> list[Acquisition]:
    """Noise readouts with E[n n^H] = covariance."""
    generator = np.random.default_rng(seed)
    shape = (len(covariance), readouts * samples)
    white = (generator.standard_normal(shape) + 1j * generator.standard_normal(shape)) / np.sqrt(2)
    noise = (np.linalg.cholesky(covariance) @ white).reshape(len(covariance), readouts, samples)
    return [acquisition(noise[:, index], 0, NOISE, dwell=dwell) for index in range(readouts)]


def smooth_object(size_y: int, size_x: int, coils: int = 4) -> np.ndarray:
    """Coil images (coil, y, x) complex64 of a disc with a hole and smooth phase, in the middle of the field of view."""
    y, x = np.meshgrid(np.linspace(-1, 1, size_y), np.linspace(-1, 1, size_x), indexing="ij")
    disc = 1 / (1 + np.exp(40 * (np.hypot(x / 0.7, y / 0.8) - 1)))
    hole = 1 / (1 + np.exp(-40 * (np.hypot(x - 0.2, y + 0.1) - 0.2)))
    image = disc * hole * np.exp(1j * (0.8 * x + 0.5 * y**2))
    angles = 2 * np.pi * np.arange(coils) / coils
    maps = [np.exp(-((x - np.cos(a)) ** 2 + (y - np.sin(a)) ** 2) / 2 + 1j * a) for a in angles]
    return (np.stack(maps) * image).astype(np.complex64)
