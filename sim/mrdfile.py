"""Simulated scans as ISMRMRD files: the XML header, acquisition headers in bulk, one HDF5 write."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from xsdata.formats.dataclass.serializers import XmlSerializer
from xsdata.formats.dataclass.serializers.config import SerializerConfig

# importing ismrmrd resets the warnings filter of the process; put it back
with warnings.catch_warnings():
    import ismrmrd
    import ismrmrd.hdf5 as layout
    from ismrmrd import xsd

TICK_MS = 2.5
"""Unit of the time stamps, as Siemens scanners count."""


@dataclass(frozen=True)
class Protocol:
    """What the header of a scan says.

    Attributes
    ----------
    encoded, recon
        Matrix (x, y, z).
    encoded_fov, recon_fov
        Field of view (x, y, z) in mm.
    slices, repetitions, averages, coils
        Counts.
    first
        First line (y) of the encoded matrix that is measured: step_1 counts from it.
    dropped
        Samples missing at the start of each readout (asymmetric echo).
    acceleration
        Nominal acceleration along y and z.
    calibration
        calibrationMode: `embedded`, `separate` or `other`.
    noise_bandwidth
        relativeReceiverNoiseBandwidth.
    timing
        TR, TE, TI in ms (TI 0: none).
    echo_train
        Echoes after one excitation.
    waveforms
        Whether an ECG is recorded.
    segments
        Values of the counter `segment`.
    """

    encoded: tuple[int, int, int]
    recon: tuple[int, int, int]
    encoded_fov: tuple[float, float, float]
    recon_fov: tuple[float, float, float]
    slices: int
    repetitions: int
    averages: int
    coils: int
    first: int
    dropped: int
    acceleration: tuple[int, int]
    calibration: str
    noise_bandwidth: float
    timing: tuple[float, float, float]
    echo_train: int
    waveforms: bool
    segments: int = 1


def acceleration_factors(r: float, volume: bool) -> tuple[int, int]:
    """Nominal factors along y and z, whole numbers as the schema has them, whose product is nearest to R."""
    if not volume:
        return max(1, round(r)), 1
    rows = range(1, math.isqrt(math.ceil(r)) + 1)
    pairs = [(y, z) for y in rows for z in (math.floor(r / y), math.ceil(r / y))]
    return min(pairs, key=lambda pair: (abs(pair[0] * pair[1] - r), pair[1] - pair[0]))


def _space(matrix: tuple[int, int, int], fov: tuple[float, float, float]) -> xsd.encodingSpaceType:
    return xsd.encodingSpaceType(
        matrixSize=xsd.matrixSizeType(x=matrix[0], y=matrix[1], z=matrix[2]),
        fieldOfView_mm=xsd.fieldOfViewMm(x=fov[0], y=fov[1], z=fov[2]),
    )


def _limit(count: int, center: int = 0) -> xsd.limitType:
    return xsd.limitType(minimum=0, maximum=count - 1, center=center)


def header_xml(protocol: Protocol) -> bytes:
    """The scan's XML header, of the schema that the ismrmrd package carries."""
    x, y, z = protocol.encoded
    limits = xsd.encodingLimitsType(
        kspace_encoding_step_0=_limit(x - protocol.dropped, x // 2 - protocol.dropped),
        kspace_encoding_step_1=_limit(y - protocol.first, y // 2 - protocol.first),
        kspace_encoding_step_2=_limit(z, z // 2),
        average=_limit(protocol.averages),
        slice=_limit(protocol.slices),
        contrast=_limit(1),
        phase=_limit(1),
        repetition=_limit(protocol.repetitions),
        set=_limit(1),
        segment=_limit(protocol.segments),
    )
    encoding = xsd.encodingType(
        encodedSpace=_space(protocol.encoded, protocol.encoded_fov),
        reconSpace=_space(protocol.recon, protocol.recon_fov),
        encodingLimits=limits,
        trajectory=xsd.trajectoryType.CARTESIAN,
        parallelImaging=xsd.parallelImagingType(
            accelerationFactor=xsd.accelerationFactorType(
                kspace_encoding_step_1=protocol.acceleration[0], kspace_encoding_step_2=protocol.acceleration[1]
            ),
            calibrationMode=xsd.calibrationModeType(protocol.calibration),
        ),
        echoTrainLength=protocol.echo_train,
    )
    tr, te, ti = protocol.timing
    header = xsd.ismrmrdHeader(
        measurementInformation=xsd.measurementInformationType(
            measurementID="simulated", patientPosition=xsd.patientPositionType.HFS, protocolName="simulated head"
        ),
        acquisitionSystemInformation=xsd.acquisitionSystemInformationType(
            systemVendor="simulated",
            systemModel="none",
            systemFieldStrength_T=3.0,
            relativeReceiverNoiseBandwidth=protocol.noise_bandwidth,
            receiverChannels=protocol.coils,
        ),
        experimentalConditions=xsd.experimentalConditionsType(H1resonanceFrequency_Hz=123_200_000),
        encoding=[encoding],
        sequenceParameters=xsd.sequenceParametersType(TR=[tr], TE=[te], TI=[ti] if ti else []),
    )
    if protocol.waveforms:
        # the python schema classes refuse a waveform without userParameters
        header.waveformInformation.append(
            xsd.waveformInformationType(
                waveformName="ECG",
                waveformType=xsd.waveformInformationTypeWaveformType.ECG,
                userParameters=xsd.userParametersType(),
            )
        )
    # not ismrmrd's ToXML: that of ismrmrd 1.14.0, which Gadgetron 4.7 has, fails with the xsdata beside it
    serializer = XmlSerializer(config=SerializerConfig(encoding="ascii"))
    return serializer.render(header, ns_map={None: "http://www.ismrm.org/ISMRMRD"}).encode("ascii")


def orientation(tilt: float) -> np.ndarray:
    """Read, phase and slice direction (3, 3), right-handed, the slices tilted about x by `tilt` radians."""
    c, s = np.cos(tilt), np.sin(tilt)
    return np.array([[1.0, 0.0, 0.0], [0.0, c, s], [0.0, -s, c]])


def acquisition_headers(
    readouts: np.ndarray,
    protocol: Protocol,
    *,
    dwell: float,
    centre: tuple[float, float, float],
    tilt: float,
    slice_distance: float,
) -> np.ndarray:
    """Acquisition headers of the readouts that `sequence.order` laid out.

    Parameters
    ----------
    readouts
        (readout,) of `sequence.READOUT`.
    dwell
        Time per sample in microseconds.
    centre
        Position of the middle of the slices, in mm.
    slice_distance
        From one slice centre to the next, in mm.
    """
    head = np.zeros(len(readouts), layout.acquisition_header_dtype)
    head["version"] = 1
    head["measurement_uid"] = 1
    head["flags"] = readouts["flags"]
    head["acquisition_time_stamp"] = np.round(readouts["time_ms"] / TICK_MS)
    head["physiology_time_stamp"][:, 0] = np.round(readouts["time_ms"] % 900.0 / TICK_MS)
    head["number_of_samples"] = protocol.encoded[0] - protocol.dropped
    head["center_sample"] = protocol.encoded[0] // 2 - protocol.dropped
    head["available_channels"] = head["active_channels"] = protocol.coils
    for word in range(-(-protocol.coils // 64)):
        head["channel_mask"][:, word] = (1 << min(protocol.coils - 64 * word, 64)) - 1
    head["sample_time_us"] = dwell
    read, phase, through = orientation(tilt)
    head["read_dir"], head["phase_dir"], head["slice_dir"] = read, phase, through
    offset = (readouts["slice"] - (protocol.slices - 1) / 2) * slice_distance
    head["position"] = np.asarray(centre) + offset[:, None] * through
    head["idx"]["kspace_encode_step_1"] = readouts["step_1"] - protocol.first
    head["idx"]["kspace_encode_step_2"] = readouts["step_2"]
    for name in ("average", "slice", "repetition"):
        head["idx"][name] = readouts[name]
    return head


def noise_headers(count: int, samples: int, protocol: Protocol, dwell: float) -> np.ndarray:
    """Headers of `count` noise readouts of `samples` samples."""
    head = np.zeros(count, layout.acquisition_header_dtype)
    head["version"] = 1
    head["measurement_uid"] = 1
    head["flags"] = 1 << (ismrmrd.ACQ_IS_NOISE_MEASUREMENT - 1)
    head["number_of_samples"] = samples
    head["available_channels"] = head["active_channels"] = protocol.coils
    for word in range(-(-protocol.coils // 64)):
        head["channel_mask"][:, word] = (1 << min(protocol.coils - 64 * word, 64)) - 1
    head["sample_time_us"] = dwell
    head["read_dir"], head["phase_dir"], head["slice_dir"] = np.eye(3)
    return head


def ecg(duration_ms: float, samples: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """A made-up ECG of 67 beats a minute: waveform headers and (waveform, channel, sample) uint32."""
    count = max(1, int(duration_ms / (samples * TICK_MS)))
    time = (np.arange(count * samples) * TICK_MS).reshape(count, samples)
    beat = np.exp(-((((time % 900.0) - 200.0) / 12.0) ** 2))
    gains = np.array([900.0, 600.0, -300.0, 450.0, 0.0])
    data = np.round(2048.0 + gains[None, :, None] * beat[:, None, :])
    data[:, 4] = (time % 900.0) < TICK_MS  # the fifth channel is the trigger
    head = np.zeros(count, layout.waveform_header_dtype)
    head["version"] = 1
    head["measurement_uid"] = 1
    head["scan_counter"] = np.arange(1, count + 1)
    head["time_stamp"] = np.round(time[:, 0] / TICK_MS)
    head["number_of_samples"] = samples
    head["channels"] = len(gains)
    head["sample_time_us"] = TICK_MS * 1000.0
    return head, data.astype(np.uint32)


def write(
    path: Path,
    xml: bytes,
    acquisitions: list[tuple[np.ndarray, np.ndarray]],
    waveforms: tuple[np.ndarray, np.ndarray] | None = None,
) -> int:
    """Write an ISMRMRD file (group `dataset`), replacing one that is there.

    Parameters
    ----------
    xml
        The header.
    acquisitions
        Blocks of acquisition headers (n,) and their data (n, coil, sample) complex64, in order; the scan counter is
        numbered through from 1.
    waveforms
        Waveform headers (n,) and data (n, channel, sample) uint32.

    Returns
    -------
    int
        Number of acquisitions written.
    """
    total = sum(len(head) for head, _ in acquisitions)
    rows = np.empty(total, layout.acquisition_dtype)
    empty = np.zeros(0, np.float32)
    at = 0
    for head, data in acquisitions:
        rows["head"][at : at + len(head)] = head
        flat = np.ascontiguousarray(data, np.complex64).reshape(len(head), -1).view(np.float32)
        for i in range(len(head)):
            rows["traj"][at + i], rows["data"][at + i] = empty, flat[i]
        at += len(head)
    rows["head"]["scan_counter"] = np.arange(1, total + 1)
    with h5py.File(path, "w") as file:
        group = file.create_group("dataset")
        group.create_dataset("xml", (1,), h5py.special_dtype(vlen=bytes))[0] = xml
        group.create_dataset("data", data=rows, maxshape=(None,), chunks=(min(total, 64),))
        if waveforms is not None:
            head, samples = waveforms
            pulses = np.empty(len(head), layout.waveform_dtype)
            pulses["head"] = head
            for i in range(len(head)):
                pulses["data"][i] = samples[i].ravel()
            group.create_dataset("waveforms", data=pulses, maxshape=(None,), chunks=(min(len(head), 64),))
    return total
