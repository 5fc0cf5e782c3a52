"""Table as an MRD template: a scan of acquisition headers without data, one a point, in order of acquisition.

A simulator or a server takes counters, flags and geometry from it and adds the samples. Each header says how many
samples its readout has, and no channel.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import h5py
import numpy as np
from scanprior.sim.mask_file import SamplingMask
from scanprior.sim.mrdfile import acceleration_factors, write
from scanprior.sim.sampling_table import Measured, SamplingTable, TableError
from xsdata.formats.dataclass.serializers import XmlSerializer
from xsdata.formats.dataclass.serializers.config import SerializerConfig

# importing ismrmrd resets the warnings filter of the process; put it back
with warnings.catch_warnings():
    import ismrmrd
    import ismrmrd.hdf5 as layout
    from ismrmrd import xsd


def write_mrd(path: Path, table: SamplingTable) -> None:
    """Write the template of one slice, or of one volume: step_1 is ky, step_2 kz, segment the echo of the train.

    A point of the ACS carries flag 21 (ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING), never 20: in a learned mask every
    line is imaging data.
    """
    matrix, points = table.mask.matrix, table.order.points
    head = np.zeros(len(points), layout.acquisition_header_dtype)
    head["version"] = head["measurement_uid"] = 1
    head["number_of_samples"], head["center_sample"] = matrix[0], matrix[0] // 2
    head["read_dir"], head["phase_dir"], head["slice_dir"] = np.eye(3)
    head["idx"]["kspace_encode_step_1"], head["idx"]["kspace_encode_step_2"] = points.T
    head["idx"]["segment"] = table.order.echo
    head["flags"][table.in_acs] |= _bit(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)
    head["flags"][0] |= _bit(ismrmrd.ACQ_FIRST_IN_SLICE) | _bit(ismrmrd.ACQ_FIRST_IN_REPETITION)
    head["flags"][-1] |= _bit(ismrmrd.ACQ_LAST_IN_SLICE) | _bit(ismrmrd.ACQ_LAST_IN_REPETITION)
    head["flags"][-1] |= _bit(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
    write(path, _xml(table), [(head, np.zeros((len(points), 0, matrix[0]), np.complex64))])


def read_mrd(path: Path, shape: tuple[int, int]) -> Measured:
    """Read the acquisition headers of a template, for a matrix (y, z); a noise scan is passed over.

    Raises
    ------
    TableError
        If it is no MRD file, or an ACS line carries both flags 20 and 21.
    """
    try:
        with h5py.File(path, "r") as file:
            data = file["dataset/data"]
            if data.dtype.names is None or "head" not in data.dtype.names:
                raise TableError(f"{path}: expected acquisitions under dataset/data, found {data.dtype}")
            if data.shape != (data.size,) or data.size > 2 * shape[0] * shape[1] + 65536:
                raise TableError(f"{path}: {data.shape} acquisitions are more than a matrix of {shape} can have")
            head = data.fields("head")[:]
            if head.dtype != layout.acquisition_header_dtype:
                raise TableError(f"{path}: its acquisition headers are not of this version of MRD")
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise error if isinstance(error, TableError) else TableError(f"{path}: not an MRD file: {error}") from None
    head = head[(head["flags"] & _bit(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)) == 0]
    both = (head["flags"] & _bit(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)) != 0
    only = (head["flags"] & _bit(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)) != 0
    if only.any():
        row = int(np.flatnonzero(only)[0])
        raise TableError(f"{path}: acquisition {row} carries flag 20; a line that is imaging data too carries 21 only")
    steps = [head["idx"][name].astype(np.int64) for name in ("kspace_encode_step_1", "kspace_encode_step_2")]
    return Measured(np.stack(steps, 1), echo=head["idx"]["segment"].astype(np.int64), acs=both)


def _bit(flag: int) -> np.uint64:
    """Mask of an MRD flag; flags are numbered from 1."""
    return np.uint64(1 << (flag - 1))


def _parallel_imaging(mask: SamplingMask) -> xsd.parallelImagingType | None:
    """Nominal factors, and the mode of the ACS.

    Points without an ACS have neither: what the schema does not demand is left out.
    """
    if mask.kind == "points" and not mask.acs.any():
        return None
    factors = acceleration_factors(mask.effective_r, mask.kind == "points")
    return xsd.parallelImagingType(
        accelerationFactor=xsd.accelerationFactorType(
            kspace_encoding_step_1=factors[0], kspace_encoding_step_2=factors[1]
        ),
        calibrationMode=xsd.calibrationModeType("embedded" if mask.acs.any() else "other"),
    )


def _xml(table: SamplingTable) -> bytes:
    """The scan's XML header."""
    mask = table.mask
    x, y, z = mask.matrix
    size, fov = xsd.matrixSizeType(x=x, y=y, z=z), xsd.fieldOfViewMm(**dict(zip("xyz", mask.fov_mm, strict=True)))
    space = xsd.encodingSpaceType(matrixSize=size, fieldOfView_mm=fov)
    single = {
        name: xsd.limitType(minimum=0, maximum=0, center=0)
        for name in ("average", "slice", "contrast", "phase", "repetition", "set")
    }
    limits = xsd.encodingLimitsType(
        kspace_encoding_step_0=xsd.limitType(minimum=0, maximum=x - 1, center=x // 2),
        kspace_encoding_step_1=xsd.limitType(minimum=0, maximum=y - 1, center=y // 2),
        kspace_encoding_step_2=xsd.limitType(minimum=0, maximum=z - 1, center=z // 2),
        segment=xsd.limitType(minimum=0, maximum=table.settings.echo_train - 1, center=0),
        **single,
    )
    encoding = xsd.encodingType(
        encodedSpace=space,
        reconSpace=space,
        encodingLimits=limits,
        trajectory=xsd.trajectoryType.CARTESIAN,
        parallelImaging=_parallel_imaging(mask),
        echoTrainLength=table.settings.echo_train,
    )
    header = xsd.ismrmrdHeader(
        # demanded by the schema; 0 is no frequency of a scanner. What it does not demand and a mask does not know
        # (patient position, scanner, coils, TE, TR) is left out, for whoever makes a scan of the template
        experimentalConditions=xsd.experimentalConditionsType(H1resonanceFrequency_Hz=0),
        encoding=[encoding],
        userParameters=xsd.userParametersType(
            userParameterDouble=[xsd.userParameterDoubleType(name="EffectiveR", value=mask.effective_r)],
            userParameterString=[xsd.userParameterStringType(name="MaskHash", value=mask.sha256)],
        ),
    )
    serializer = XmlSerializer(config=SerializerConfig(encoding="ascii"))
    return serializer.render(header, ns_map={None: "http://www.ismrm.org/ISMRMRD"}).encode("ascii")
