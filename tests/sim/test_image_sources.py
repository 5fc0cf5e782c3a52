"""What gives training images: each layout read back to what was written, and each file that cannot be used told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scanprior.sim.anatomy import resize, to_kspace
from scanprior.sim.augmentation import fourier_resize, random_contrast, random_image
from scanprior.sim.bank_data import split_by_subject
from scanprior.sim.coils import coil_maps
from scanprior.sim.image_sources import find_images, load_images, load_sources
from scanprior.sim.image_stack import ImageStack, SourceError, stack_of
from scanprior.sim.phantoms import brain, slice_positions
from scanprior.sim.scan import simulate
from scanprior.sim.source_hdf5 import hdf5_layout, load_fastmri

HEADS = brain((80, 72), 3, seed=3).image
RNG = np.random.default_rng(5)
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def as_scaled(slices: np.ndarray) -> np.ndarray:
    """The definition of the scale, by another way: the 99.5th percentile of what is not air lies at 1."""
    magnitude = np.sort(np.abs(slices).ravel())
    return slices / np.quantile(magnitude[magnitude > 0.02 * magnitude[-1]], 0.995)


# -- stacks, files, folders --------------------------------------------------------------------------------------------


def test_complex_npz_keeps_its_phase_and_magnitudes_stay_magnitudes(tmp_path: Path) -> None:
    np.savez(tmp_path / "complex.npz", slices=(7 * HEADS).astype(np.complex128))
    np.savez(tmp_path / "signed.npz", slices=-np.abs(HEADS))
    stack = load_images(tmp_path / "complex.npz")
    assert {one.dtype for one in stack.slices} == {np.dtype(np.complex64)}
    np.testing.assert_allclose(stack.slices, as_scaled(HEADS), rtol=1e-5, atol=1e-6)
    signed = load_images(tmp_path / "signed.npz")
    assert signed.slices[0].dtype == np.float32
    np.testing.assert_allclose(signed.slices, as_scaled(np.abs(HEADS)), rtol=1e-5, atol=1e-6)
    assert str(stack) == "complex.npz: 3 slices, 1 subjects, 80x72, complex"


def test_slices_of_a_stack_may_differ_in_size() -> None:
    stack = stack_of("mixed", [np.ones((80, 72)), 2 * np.ones((64, 90))], ["a", "b"])
    assert [float(one.max()) for one in stack.slices] == [0.5, 1.0]
    assert str(stack) == "mixed: 2 slices, 2 subjects, 64x90 to 80x72, magnitude"


@pytest.mark.parametrize(
    ("slices", "complaint"),
    [
        (np.zeros((2, 8, 8)), "nothing but zeros"),
        (np.full((1, 8, 8), np.nan), "not finite"),
        (np.zeros((0, 8, 8)), "at least one slice"),
        (np.array([[["a"]]]), r"got shape \(1, 1, 1\) of <U1"),
    ],
)
def test_arrays_that_are_no_images(tmp_path: Path, slices: np.ndarray, complaint: str) -> None:
    np.savez(tmp_path / "odd.npz", slices=slices)
    with pytest.raises(SourceError, match=f"odd.npz: .*{complaint}"):
        load_images(tmp_path / "odd.npz")


def test_what_cannot_be_used_is_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    np.savez(tmp_path / "good.npz", slices=np.abs(HEADS))
    np.savez(tmp_path / "short.npz", slices=np.abs(HEADS), subject=["a"])
    (tmp_path / "torn.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:3000])
    (tmp_path / "torn.nii.gz").write_bytes(b"\x1f\x8b nothing")
    (tmp_path / "torn.h5").write_bytes(b"\x89HDF")
    (tmp_path / "read.me").write_text("not an image")
    files = find_images([tmp_path, tmp_path / "read.me", tmp_path / "good.npz"])
    assert [path.name for path in files].count("good.npz") == 1
    stacks, left_out = load_sources(files)
    assert [stack.name for stack in stacks] == ["good.npz"]
    for name, complaint in {
        "short.npz": "expected a subject for each of 3 slices, found 1",
        "torn.npz": "not an npz file that can be read",
        "torn.nii.gz": "not a NIfTI volume that can be read",
        "torn.h5": "not an HDF5 file that can be read",
        "read.me": "expected .npz, .nii, .nii.gz, .h5, .hdf5, or DICOM, found a file that is none of these",
    }.items():
        assert any(f"{tmp_path / name}: {complaint}" in reason for reason in left_out), name
        assert f"left out of the training data: {tmp_path / name}" in caplog.text
    assert len(left_out) == 5
    with pytest.raises(
        SourceError, match=r"none of 2 files can be used: .*read.me: expected .*; .*torn.h5: not an HDF5"
    ):
        load_sources([tmp_path / "read.me", tmp_path / "torn.h5"])


def test_a_subject_never_trains_and_validates() -> None:
    """Several files may show one person; where each file shows one, the last person is held back."""

    def stack(*subjects: str) -> ImageStack:
        return ImageStack("x", [np.ones((4, 4), np.float32)] * len(subjects), list(subjects))

    train, held = split_by_subject([stack("a", "a"), stack("b"), stack("b"), stack("a")])
    assert {s for one in train for s in one.subjects} == {"a"}
    assert [one.subjects for one in held] == [["b"], ["b"]]
    train, held = split_by_subject([stack("a", "b", "c"), stack("c", "c"), stack("z")])
    assert {s for one in train for s in one.subjects} == {"a", "b", "z"}
    assert [one.subjects for one in held] == [["c"], ["c", "c"]]
    train, held = split_by_subject([stack("a"), stack("a")])
    assert [one.subjects for one in train] == [one.subjects for one in held] == [["a"], ["a"]]


# -- augmentation of complex slices ------------------------------------------------------------------------------------


def test_a_measured_phase_stays_beneath_the_random_one() -> None:
    """All of the augmentation commutes with a constant phase, and the contrast changes no phase at all."""
    head = np.abs(HEADS[1]).astype(np.float32)
    head /= head.max()
    turned = (head * np.exp(0.7j)).astype(np.complex64)
    for seed in range(5):
        plain, phased = (random_image(image, np.random.default_rng(seed)) for image in (head, turned))
        np.testing.assert_allclose(phased, plain * np.exp(0.7j), atol=2e-4)
    image = as_scaled(HEADS[1]).astype(np.complex64)
    mapped = random_contrast(image, np.random.default_rng(1))
    seen = (np.abs(image) > 0.05) & (np.abs(mapped) > 1e-3)
    assert seen.sum() > 500
    assert np.abs(np.angle(mapped[seen] * image[seen].conj())).max() < 1e-3
    np.testing.assert_allclose(np.abs(mapped), random_contrast(np.abs(image), np.random.default_rng(1)), atol=1e-5)
    parts = fourier_resize(image.real, 0.6) + 1j * fourier_resize(image.imag, 0.6)
    np.testing.assert_allclose(fourier_resize(image, 0.6), parts, atol=1e-5)


# -- fastMRI's layout --------------------------------------------------------------------------------------------------

HEADER = (
    '<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding><reconSpace><matrixSize>'
    "<x>{}</x><y>{}</y><z>1</z></matrixSize></reconSpace></encoding></ismrmrdHeader>"
)


def fastmri(path: Path, kspace: np.ndarray | None, matrix: tuple[int, int] | None = None, **more: Any) -> Path:
    """A file of fastMRI's layout; `matrix` (y, x) goes into the header."""
    with h5py.File(path, "w") as file:
        if kspace is not None:
            file["kspace"] = kspace
        if matrix is not None:
            file["ismrmrd_header"] = HEADER.format(*matrix)
        for name, value in more.items():
            if isinstance(value, str):
                file.attrs[name] = value
            else:
                file[name] = value
    return path


def multicoil(coils: int = 4, oversampling: int = 2) -> np.ndarray:
    """K-space (slice, coil, y, x) of the heads, readout along y oversampled."""
    maps = coil_maps((80, 72), coils, slice_positions(3), seed=1)
    return to_kspace(resize(HEADS[:, None] * maps, (oversampling * 80, 72)), (-2, -1)).astype(np.complex64)


def test_fastmri_single_coil_is_the_cropped_transform(tmp_path: Path) -> None:
    kspace = to_kspace(resize(HEADS, (160, 72)), (-2, -1))
    stack = load_images(fastmri(tmp_path / "knee.h5", kspace, (80, 72), patient_id="0123abcd"))
    np.testing.assert_allclose(stack.slices, as_scaled(HEADS), atol=1e-5)
    assert len(set(stack.subjects)) == 1
    assert "0123abcd" not in repr(stack) + "".join(stack.subjects)
    other = load_images(fastmri(tmp_path / "other.h5", kspace, (80, 72), patient_id="0123abcd"))
    assert other.subjects == stack.subjects, "the patient counts, not the file"
    whole = load_images(fastmri(tmp_path / "plain.h5", kspace))
    assert whole.slices[0].shape == (160, 72), "without a header the matrix of k-space"
    assert whole.subjects != stack.subjects


def test_fastmri_coils_are_combined_by_maps(tmp_path: Path) -> None:
    stack = load_images(fastmri(tmp_path / "brain.h5", multicoil(), (80, 72)))
    for found, truth in zip(stack.slices, HEADS, strict=True):
        assert found.dtype == np.complex64
        inside = np.abs(truth) > 0.2 * np.abs(truth).max()
        a, b = np.abs(found[inside]), np.abs(truth[inside])
        # the phantom's maps have root-sum-of-squares 1, as ESPIRiT's have, so that magnitudes agree up to one scale
        error = a / np.linalg.norm(a) - b / np.linalg.norm(b)
        assert np.linalg.norm(error) < 0.03
        # the phase is the image's up to the smooth one of the virtual coil: neighbours differ as in the truth
        step = found[:, 1:] * found[:, :-1].conj() * (truth[:, 1:] * truth[:, :-1].conj()).conj()
        both = inside[:, 1:] & inside[:, :-1]
        assert np.median(np.abs(np.angle(step[both]))) < 0.1


def test_fastmri_magnitudes_where_kspace_is_of_no_use(tmp_path: Path) -> None:
    rss = np.abs(HEADS).astype(np.float32)
    kspace = multicoil(2)
    kspace[..., 1::2] = 0
    for path in (
        fastmri(tmp_path / "test.h5", kspace, (80, 72), reconstruction_rss=rss),
        fastmri(tmp_path / "old.h5", None, reconstruction_esc=rss),
    ):
        stack = load_images(path)
        assert stack.slices[0].dtype == np.float32
        np.testing.assert_allclose(stack.slices, as_scaled(rss), rtol=1e-5, atol=1e-6)
    full = load_images(fastmri(tmp_path / "full.h5", multicoil(2), reconstruction_rss=rss))
    assert full.slices[0].dtype == np.complex64
    assert full.slices[0].shape == (80, 72), "cropped as the reconstruction is"


def _drop(columns: Any) -> Callable[[np.ndarray], np.ndarray]:
    def apply(kspace: np.ndarray) -> np.ndarray:
        kspace[..., columns] = 0
        return kspace

    return apply


@pytest.mark.parametrize(
    ("change", "more", "complaint"),
    [
        (_drop(slice(1, None, 2)), {}, r"has R = 2.0 along its columns; only fully sampled"),
        (_drop(np.r_[3:24, 48:70]), {}, r"has R = 2.5 along its columns"),
        (_drop(slice(0, 18)), {}, r"has the columns 18 to 71 of 72 alone \(partial Fourier\)"),
        (lambda k: k * (np.random.default_rng(0).random(k.shape[-2:]) < 0.4), {}, "has R = 2.5 in its plane"),
        (_drop(slice(0, 0)), {"mask": np.arange(72) % 4 == 0}, r"has a mask of R = 4.0; only fully sampled"),
        (_drop(slice(None)), {}, "slice 0 of 'kspace' holds nothing but zeros"),
        (lambda k: k[0, 0], {}, r"expected complex 'kspace' .* found complex64 \(160, 72\)"),
        (lambda k: np.abs(k), {}, r"expected complex 'kspace' .* found float32"),
        (lambda k: np.full_like(k, np.nan), {}, "not finite|NaN"),
        (lambda k: None, {"reconstruction_rss": np.ones((3, 3))}, r"'reconstruction_rss', found float64 \(3, 3\)"),
        (lambda k: k, {"ismrmrd_header": b"<ismrmrdHeader"}, "'ismrmrd_header' is no XML"),
        (lambda k: k, {"ismrmrd_header": b"<ismrmrdHeader/>"}, r"matrixSize of \[None, None\]"),
        (lambda k: k, {"ismrmrd_header": HEADER.format(0, 5).encode()}, r"matrixSize of \['0', '5'\]"),
    ],
)
def test_fastmri_files_that_are_refused(
    tmp_path: Path, change: Callable[[np.ndarray], Any], more: dict[str, Any], complaint: str
) -> None:
    path = fastmri(tmp_path / "scan.h5", change(multicoil(2)), **more)
    with pytest.raises(SourceError, match=f"scan.h5: .*({complaint})"):
        load_images(path)


def test_fastmri_lower_resolution_is_no_undersampling(tmp_path: Path) -> None:
    kspace = multicoil(1)
    kspace[..., :10] = kspace[..., 62:] = 0
    assert load_images(fastmri(tmp_path / "scan.h5", kspace, (80, 72))).slices[0].shape == (80, 72)


def refusal(path: Path) -> str | None:
    """What a file is refused with; None where it is read. Any other error is a failure of the test."""
    try:
        load_fastmri(path)
    except SourceError as error:
        return str(error)
    return None


@QUICK
@given(header=st.binary(max_size=200) | st.text(max_size=60).map(lambda t: HEADER.format(t, t).encode()))
def test_any_header_is_read_or_refused(tmp_path: Path, header: bytes) -> None:
    kspace = to_kspace(HEADS[:1, :20, :20], (-2, -1)).astype(np.complex64)
    path = fastmri(tmp_path / "scan.h5", kspace, ismrmrd_header=np.void(header or b"\0"))
    assert "ismrmrd_header" in (refusal(path) or "ismrmrd_header")


@pytest.mark.slow
@QUICK
@given(cut=st.integers(0, 2000), at=st.integers(0, 2500), value=st.integers(0, 255))
def test_a_damaged_hdf5_is_read_or_refused(tmp_path: Path, cut: int, at: int, value: int) -> None:
    kspace = to_kspace(HEADS[:1, :16, :16], (-2, -1)).astype(np.complex64)
    path = fastmri(tmp_path / "scan.h5", kspace, (16, 16), patient_id="x")
    content = bytearray(path.read_bytes())
    content[at] = value
    path.write_bytes(bytes(content[: len(content) - (cut if cut > 1000 else 0)]))
    assert str(path) in (refusal(path) or str(path))


def test_layouts_are_told_by_content(tmp_path: Path) -> None:
    scan = simulate(tmp_path / "scan.h5", matrix=32, coils=2, mask="full", noise_readouts=0)
    assert hdf5_layout(scan.path) == "mrd"
    assert hdf5_layout(fastmri(tmp_path / "fast.h5", multicoil(1))) == "fastmri"
    with pytest.raises(SourceError, match="a raw MRD scan, expected images"):
        load_images(scan.path)
    with h5py.File(tmp_path / "odd.h5", "w") as file:
        file["weights"] = [1.0]
        file["nowhere"] = h5py.SoftLink("/gone")
    with pytest.raises(SourceError, match=r"found \['nowhere', 'weights'\]"):
        load_images(tmp_path / "odd.h5")
