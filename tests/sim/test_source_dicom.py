"""DICOM series read to the magnitudes that were written, and everything else that an archive holds left out."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scanprior.sim.image_sources import find_images, load_images, load_sources
from scanprior.sim.image_stack import SourceError
from scanprior.sim.phantoms import brain
from scanprior.sim.source_dicom import load_dicom

pytest.importorskip("pydicom")
from dicoms import dicom, enhanced, save
from pydicom.dataset import Dataset
from pydicom.uid import MPEG2MPML, JPEGLSLossless, RLELossless, generate_uid

PIXELS = np.round(np.abs(brain((80, 72), 4, seed=4).image) * 1000).astype(np.uint16)
SLICES = PIXELS / np.percentile(PIXELS[PIXELS > 0.02 * PIXELS.max()], 99.5)


def test_a_folder_of_patients(tmp_path: Path) -> None:
    """Two patients, three series, in folders below folders, in an order that is not that of the slices."""
    series = [generate_uid() for _ in range(3)]
    for number, (patient, uid) in enumerate(zip(("ANNA-77", "ANNA-77", "BERT-88"), series, strict=True)):
        for n in (2, 0, 3, 1):
            image = dicom(PIXELS[n], 5.0 * n - 40, PatientID=patient, SeriesInstanceUID=uid, InstanceNumber=9 - n)
            name = f"{n}.dcm" if number == 0 else f"IM{n}" if number == 1 else f"1.2.840.{n}"
            save(image, tmp_path / f"p{number}" / "study" / name)
    save(dicom(PIXELS[0]), tmp_path / "DICOMDIR")
    (tmp_path / "p0" / "README").write_text("no DICOM" * 40)
    files = find_images([tmp_path])
    assert len(files) == 12
    stacks, left_out = load_sources(files)
    assert not left_out
    assert [str(stack) for stack in stacks] == [
        f"study/{name}: 4 slices, 1 subjects, 80x72, magnitude" for name in ("0.dcm", "IM0", "1.2.840.0")
    ]
    for stack in stacks:
        np.testing.assert_allclose(stack.slices, SLICES, rtol=1e-5)
    assert stacks[0].subjects == stacks[1].subjects != stacks[2].subjects
    assert not any(name in "".join(stack.subjects) for stack in stacks for name in ("ANNA", "BERT"))


def test_tilted_slices_are_sorted_along_their_normal(tmp_path: Path) -> None:
    """Coronal slices: the normal is the row times the column, which points backwards here."""
    for n, y in enumerate((30, -10, 10)):
        save(
            dicom(PIXELS[n], ImageOrientationPatient=[1, 0, 0, 0, 0, -1], ImagePositionPatient=[0, y, 0]),
            tmp_path / f"{n}.dcm",
        )
    ((stack,), _) = load_dicom(sorted(tmp_path.iterdir()))
    order = [int(np.argmin([np.abs(one / one.max() - p / p.max()).sum() for p in PIXELS])) for one in stack.slices]
    assert order == [1, 2, 0]


def test_values_are_rescaled_before_they_are_compared(tmp_path: Path) -> None:
    for n, slope in enumerate((1.0, 0.25)):
        stored = np.round((PIXELS[n] + 40) / slope)
        save(dicom(stored, n, RescaleSlope=slope, RescaleIntercept=-40), tmp_path / f"{n}.dcm")
    ((stack,), _) = load_dicom(sorted(tmp_path.iterdir()))
    for found, pixels in zip(stack.slices, PIXELS, strict=False):
        np.testing.assert_allclose(found / found.max(), pixels / pixels.max(), atol=1e-3)
    assert stack.slices[0].max() / stack.slices[1].max() == pytest.approx(PIXELS[0].max() / PIXELS[1].max(), rel=1e-3)


def test_monochrome1_is_turned_and_rle_unpacked(tmp_path: Path) -> None:
    save(
        dicom(4095 - PIXELS[0], PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11), tmp_path / "a.dcm"
    )
    packed = dicom(PIXELS[0])
    packed.compress(RLELossless)
    save(packed, tmp_path / "b.dcm")
    expected = PIXELS[0] / PIXELS[0].max()
    for name in "ab":
        stack = load_images(tmp_path / f"{name}.dcm")
        np.testing.assert_allclose(stack.slices[0] / stack.slices[0].max(), expected, atol=1e-6)


def test_enhanced_images_are_taken_frame_by_frame(tmp_path: Path) -> None:
    """Slope, position and kind are each frame's own; the phase among them is left out."""
    slopes = [1.0, 2.0, 0.5, 1.0]
    stored = np.round(PIXELS / np.array(slopes)[:, None, None])
    kinds = ["MAGNITUDE", "MAGNITUDE", "PHASE", "MAGNITUDE"]
    save(enhanced(stored, [9, 3, 0, 6], slopes, kinds), tmp_path / "multi.dcm")
    ((stack,), left_out) = load_dicom([tmp_path / "multi.dcm"])
    assert len(stack.slices) == 3
    for found, n in zip(stack.slices, (1, 3, 0), strict=True):
        np.testing.assert_allclose(found / found.max(), PIXELS[n] / PIXELS[n].max(), atol=3e-3)
    assert len(left_out) == 1
    assert "phase, real or imaginary image" in left_out[0]


def _ge_phase() -> Dataset:
    ds = dicom(PIXELS[0])
    ds.private_block(0x43, "GEMS_PARM_01", create=True).add_new(0x2F, "SS", 1)
    return ds


def _packed(syntax: str) -> Dataset:
    ds = dicom(PIXELS[0])
    ds.compress(RLELossless)
    ds.file_meta.TransferSyntaxUID = syntax
    return ds


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        (dicom(PIXELS[0], Modality="CT"), "modality 'CT', expected 'MR'"),
        (dicom(PIXELS[0], ImageType=["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]), "a derived image .*/ADC"),
        (dicom(PIXELS[0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "a localizer, projection or mosaic"),
        (dicom(PIXELS[0], ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]), "a localizer, projection or mosaic"),
        (dicom(PIXELS[0], ImageType=["ORIGINAL", "PRIMARY", "P", "ND"]), "a phase, real or imaginary image"),
        (dicom(PIXELS[0], ImageType=["ORIGINAL", "PRIMARY", "PHASE MAP", "P", "FFE"]), "a phase, real or imaginary"),
        (_ge_phase(), "a phase, real or imaginary image"),
        (dicom(PIXELS[0], PhotometricInterpretation="PALETTE COLOR"), "photometric interpretation 'PALETTE COLOR'"),
        (dicom(PIXELS[0, :48, :48]), "an image of 48x48 pixels, expected at least 64"),
        (dicom(PIXELS[0], Rows=None, Columns=None), "an image of 0x0 pixels"),
        (dicom(PIXELS[:2], NumberOfFrames=2), "it has 2 frames, expected one, or an enhanced MR image"),
        (dicom(-PIXELS[0].astype(int), PixelRepresentation=1), "values of its series go from .* expected a magnitude"),
        (dicom(0 * PIXELS[0]), "nothing but zeros"),
        (_packed(JPEGLSLossless), r"compressed by 'JPEG-LS Lossless.*1\.2\.840\.10008\.1\.2\.4\.80.* no decoder here"),
        (_packed(MPEG2MPML), "compressed by 'MPEG2 Main Profile"),
    ],
)
def test_what_is_left_out(tmp_path: Path, image: Dataset, complaint: str) -> None:
    image.SeriesInstanceUID = generate_uid()
    save(image, tmp_path / "bad.dcm")
    save(dicom(PIXELS[1]), tmp_path / "good.dcm")
    ((stack,), left_out) = load_dicom([tmp_path / "bad.dcm", tmp_path / "good.dcm"])
    assert len(stack.slices) == 1
    assert len(left_out) == 1
    with pytest.raises(SourceError, match=f"bad.dcm: .*({complaint})"):
        load_images(tmp_path / "bad.dcm")


def test_a_reason_is_told_once_for_many_files(tmp_path: Path) -> None:
    for n in range(5):
        save(dicom(PIXELS[0], Modality="CT"), tmp_path / f"{n}.dcm")
    save(dicom(PIXELS[0]), tmp_path / "mr.dcm")
    _, left_out = load_dicom(sorted(tmp_path.iterdir()))
    assert left_out == [f"5 DICOM images such as {tmp_path / '0.dcm'}: modality 'CT', expected 'MR'"]


def test_files_without_patient_or_geometry(tmp_path: Path) -> None:
    """The study stands for the patient; the instance number for the place."""
    for n in (0, 1):
        image = dicom(PIXELS[n], PatientID="", ImageOrientationPatient=None, ImagePositionPatient=None)
        image.InstanceNumber = 5 - n
        save(image, tmp_path / f"{n}.dcm")
    other = dicom(PIXELS[2], PatientID=None, StudyInstanceUID=generate_uid(), SeriesInstanceUID=generate_uid())
    stacks, _ = load_dicom([tmp_path / "0.dcm", tmp_path / "1.dcm", save(other, tmp_path / "2.dcm")])
    first = stacks[0].slices[0]
    np.testing.assert_allclose(first / first.max(), PIXELS[1] / PIXELS[1].max(), atol=1e-6)
    assert len(set(stacks[0].subjects)) == 1
    assert stacks[0].subjects[0] != stacks[1].subjects[0]


def test_without_pydicom_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(dicom(PIXELS[0]), tmp_path / "a.dcm")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImportError, match=r"scanprior\[dicom\]"):
        load_sources([path])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 1400), values=st.binary(min_size=1, max_size=4), cut=st.integers(0, 12000))
def test_a_damaged_file_is_read_or_told(tmp_path: Path, at: int, values: bytes, cut: int) -> None:
    path = tmp_path / "a.dcm"
    if not (tmp_path / "whole").exists():
        save(dicom(PIXELS[0]), tmp_path / "whole")
    content = bytearray((tmp_path / "whole").read_bytes())
    content[at : at + len(values)] = values
    path.write_bytes(bytes(content[:cut] if cut < 2000 else content))
    stacks, left_out = load_dicom([path])
    assert stacks or all(str(path) in reason for reason in left_out)
    assert stacks or left_out
