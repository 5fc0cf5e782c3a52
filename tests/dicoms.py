"""DICOM files as a scanner's archive has them, written for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

MR, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"
AXIAL = [1, 0, 0, 0, 1, 0]
FIRST_SERIES, STUDY = generate_uid(entropy_srcs=["series"]), generate_uid(entropy_srcs=["study"])


def dicom(pixels: np.ndarray, z: float = 0.0, **attributes: Any) -> Dataset:
    """An axial MR magnitude image of uint16 `pixels` (y, x) at height `z`; None leaves an attribute out."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = MR
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
    defaults: dict[str, Any] = {
        "Modality": "MR", "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"], "PatientID": "DOE-1234", "InstanceNumber": 1,
        "SeriesInstanceUID": FIRST_SERIES, "StudyInstanceUID": STUDY, "ImageOrientationPatient": AXIAL,
        "ImagePositionPatient": [-100, -100, z], "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[-2], "Columns": pixels.shape[-1], "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15,
        "PixelRepresentation": 0,
    }  # fmt: skip
    for name, value in (defaults | attributes).items():
        if value is not None:
            setattr(ds, name, value)
    ds.PixelData = pixels.astype("<u2" if ds.PixelRepresentation == 0 else "<i2").tobytes()
    return ds


def enhanced(pixels: np.ndarray, heights: Sequence[float], slopes: Sequence[float], kinds: Sequence[str]) -> Dataset:
    """An enhanced MR image of uint16 `pixels` (frame, y, x)."""
    ds = dicom(pixels, ImageOrientationPatient=None, ImagePositionPatient=None, NumberOfFrames=len(pixels))
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = ENHANCED_MR
    ds.ImageType = ["ORIGINAL", "PRIMARY", "MIXED", "NONE"]
    shared, orientation = Dataset(), Dataset()
    orientation.ImageOrientationPatient = AXIAL
    shared.PlaneOrientationSequence = [orientation]
    ds.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for z, slope, kind in zip(heights, slopes, kinds, strict=True):
        group, position, values, frame = Dataset(), Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, z]
        values.RescaleSlope, values.RescaleIntercept = slope, 0
        frame.FrameType = ["ORIGINAL", "PRIMARY", "T1", "NONE"]
        frame.ComplexImageComponent = kind
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [position], [values]
        group.MRImageFrameTypeSequence = [frame]
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = groups
    return ds


def save(ds: Dataset, path: Path) -> Path:
    """Write with preamble and file meta."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, ds, enforce_file_format=True)
    return path
