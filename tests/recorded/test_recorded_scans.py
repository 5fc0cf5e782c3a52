"""What the recorded scans become, against truths and rules that are not ours."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from acquisitions import truth
from scanprior.gadgets.engine import Engine
from scanprior.gadgets.errors import HeaderError
from scanprior.gadgets.mrd import Image
from scanprior.gadgets.session import ScanSession
from scanprior.models.recipe import Recipe
from scanprior.pipelines.replay import ScanFile, replay
from support import data_dir

NOISE, CALIBRATION = 1 << 18, 1 << 19


def reconstruct(name: str, recipe: str | Recipe, **parameters: object) -> list[Image]:
    engine = Engine(recipe, device="cpu")
    try:
        given = {key: str(value) for key, value in parameters.items()}
        return replay(data_dir() / "recorded" / f"{name}.h5", engine, None, parameters=given)[0]
    finally:
        engine.close()


def rows(name: str) -> np.ndarray:
    with h5py.File(data_dir() / "recorded" / f"{name}.h5") as file:
        return file["dataset/data"][:]


def test_siemens_gre_is_the_manifests_rule() -> None:
    """Image = fftshift(ifft(ifftshift(k))), orthonormal, rows = step 1, columns = readout, central half of it."""
    (image,) = reconstruct("siemens_gre_phantom", "zero-filled")
    kspace = np.zeros((2, 160, 320), np.complex128)
    for row in rows("siemens_gre_phantom"):
        kspace[:, row["head"]["idx"]["kspace_encode_step_1"]] = row["data"].view(np.complex64).reshape(2, 320)
    coils = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, (1, 2)), norm="ortho"), (1, 2))[..., 80:240]
    rule = np.sqrt((np.abs(coils) ** 2).sum(0))
    assert np.linalg.norm(image.data[0, 0] - rule) / np.linalg.norm(rule) < 1e-5
    head = image.head
    assert np.cross(head["read_dir"], head["phase_dir"]) @ head["slice_dir"] < 0, "left-handed, as it came"
    assert head["patient_table_position"][2] == -1040015


def test_siemens_epi_is_refused_before_its_first_readout() -> None:
    path = data_dir() / "recorded" / "siemens_epi_phantom.h5"
    engine = Engine("zero-filled")
    try:
        with pytest.raises(HeaderError, match="trajectory 'epi' is not supported; supported: Cartesian 2-D and 3-D"):
            engine.open_session(ScanFile(path).header, {}, lambda image: None)
    finally:
        engine.close()


def whitened_profile(name: str, coils: np.ndarray) -> np.ndarray:
    """|W C| (y, x) of coils C (coil, y, x), W from the noise scan by the formula of the manifest."""
    recorded = rows(name)
    noise = [row for row in recorded if row["head"]["flags"] & NOISE]
    samples = np.concatenate([r["data"].view(np.complex64).reshape(len(coils), -1) for r in noise], 1)
    covariance = samples.astype(complex) @ samples.conj().T / samples.shape[1]
    dwell = recorded[-1]["head"]["sample_time_us"] / noise[0]["head"]["sample_time_us"]
    whitening = np.linalg.inv(np.linalg.cholesky(covariance)) * np.sqrt(2 * dwell)  # bandwidth 1 in these files
    return np.sqrt((np.abs(np.einsum("dc,cyx->dyx", whitening, coils)) ** 2).sum(0))


def psnr(image: np.ndarray, wanted: np.ndarray) -> float:
    return float(20 * np.log10(wanted.max() / np.sqrt(np.mean((image - wanted) ** 2))))


def test_sense_of_r4_is_near_the_truth_in_its_own_units() -> None:
    """Nothing is fitted: units follow from whitening and maps alone. (The benchmark has the figures.)"""
    data = truth("brain_t2_8ch")
    maps = data["maps"].astype(np.float32)
    profile = whitened_profile("brain_t2_8ch_r4", maps[..., 0] + 1j * maps[..., 1])
    (image,) = reconstruct("brain_t2_8ch_r4", "sense")
    wanted = np.abs(data["image"])
    (zero_filled,) = reconstruct("brain_t2_8ch_r4", "zero-filled")
    reached = psnr(image.data[0, 0] / profile, wanted)
    assert reached > 30
    assert reached > psnr(zero_filled.data[0, 0] / profile, wanted) + 1.5
    assert image.head["field_of_view"][0] == pytest.approx(240, rel=0.1)
    np.testing.assert_allclose(image.head["position"], (2.5, -11, 14), atol=1e-4)
    assert "effective R 4.00" in image.meta
    assert "noise from the noise scan" in image.meta


def test_separate_calibration_lines_are_for_the_maps_alone(tmp_path: Path) -> None:
    """Scaling them, and changing their phase, leaves the zero-filled image bit for bit, and the maps as they are."""
    source = data_dir() / "recorded" / "phantom16ch_grappa.h5"
    changed = tmp_path / "changed.h5"
    changed.write_bytes(source.read_bytes())
    with h5py.File(changed, "r+") as file:
        lines = file["dataset/data"][:]
        for line in lines:
            if line["head"]["flags"] & CALIBRATION:
                line["data"] = (line["data"].view(np.complex64) * np.complex64(3j)).view(np.float32)
        file["dataset/data"][:] = lines
    engine = Engine("zero-filled", device="cpu")
    try:
        for recipe, exact in (("zero-filled", True), ("sense", False)):
            (before,), _ = replay(source, engine, None, parameters={"recipe": recipe})
            (after,), _ = replay(changed, engine, None, parameters={"recipe": recipe})
            if exact:
                np.testing.assert_array_equal(after.data, before.data)
                assert before.meta == after.meta
            else:
                np.testing.assert_allclose(after.data, before.data, atol=1e-3 * before.data.max())
            assert "lines 31" in before.meta, "of the image, without the 24 of the calibration"
    finally:
        engine.close()


def test_separate_calibration_lines_unfold_the_phantom() -> None:
    """Of 2-fold undersampling a ghost remains in the zero-filled image, half a field of view away; not with maps."""
    (folded,) = reconstruct("phantom16ch_grappa", "zero-filled")
    (unfolded,) = reconstruct("phantom16ch_grappa", "sense")

    def ghost(image: Image) -> float:
        """Energy in the corners, where the disc is not, over that of the middle."""
        picture = image.data[0, 0] ** 2
        y, x = np.mgrid[-32:32, -32:32]
        disc = unfolded.data[0, 0] > 0.25 * np.percentile(unfolded.data[0, 0], 99)
        away = ~disc & np.roll(disc, 32, axis=0) & (np.hypot(x, y) > 20)
        assert away.sum() > 50
        return float(picture[away].mean() / picture[disc].mean())

    assert ghost(unfolded) < 0.2 * ghost(folded)


def test_poisson_scan_becomes_one_volume() -> None:
    images = reconstruct("brain8ch_poisson_r8", "sense", steps=8)
    assert len(images) == 1
    (image,) = images
    # readout 1, ky 230, kz 180: one sample a readout
    assert image.data.shape == (1, 180, 230, 1)
    assert tuple(image.head["matrix_size"]) == (1, 230, 180)
    assert "effective R 8.04" in image.meta
    brain = image.data[0, :, :, 0]
    assert np.median(brain[60:120, 80:150]) > 5 * np.median(brain[:10, :10])


def test_the_same_scan_in_another_order_is_the_same_image() -> None:
    """Lines of a slice may come in any order, and slices interleaved in any way."""
    path = data_dir() / "recorded" / "phantom16ch_grappa.h5"
    scan = ScanFile(path)
    acquisitions = list(scan.acquisitions())
    reference, image = acquisitions[:24], acquisitions[24:]
    order = [*reversed(reference), *[image[i] for i in np.random.default_rng(1).permutation(30)], image[30]]
    engine = Engine("sense", device="cpu")
    found = []
    for sent in (acquisitions, order):
        images: list[Image] = []
        session = engine.open_session(scan.header, {}, images.append)
        assert isinstance(session, ScanSession)
        for acquisition in sent:
            session.feed(acquisition)
        session.close()
        found.append(images)
    engine.close()
    ((first,), (second,)) = found
    np.testing.assert_allclose(first.data, second.data, atol=1e-4 * first.data.max())
    assert first.head.tobytes() == second.head.tobytes()
