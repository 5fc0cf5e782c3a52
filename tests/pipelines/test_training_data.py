"""Raw scans on their way into a training: complex images of full scans, and a refusal of all others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scanprior.pipelines.cli import app
from scanprior.pipelines.training_data import images_for_training
from scanprior.sim.image_sources import load_images, load_sources
from scanprior.sim.image_stack import ImageStack, SourceError
from scanprior.sim.phantoms import brain
from scanprior.sim.scan import Simulated, simulate
from support import data_dir
from typer.testing import CliRunner


def full_scan(path: Path, **options: Any) -> Simulated:
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {"matrix": 64, "slices": 2, "coils": 4, "mask": "full", "snr_db": 40, "seed": 1}
    return simulate(path, **(settings | options))


def whitened(image: np.ndarray, maps: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """The image that whitened data show: coils of unequal noise shade it by sqrt(s^H C^-1 s), their SNR."""
    weight = np.einsum("...cyx,cd,...dyx->...yx", maps.conj(), np.linalg.inv(covariance), maps, optimize=True)
    return image * np.sqrt(weight.real)


def truth_of(scan: Simulated) -> np.ndarray:
    """(repetition, slice, y, x), whitened."""
    with np.load(scan.truth) as truth:
        return whitened(truth["image"], truth["maps"], truth["noise_cov"].astype(np.complex128))


def check_against(stack: ImageStack, truth: np.ndarray, tolerance: float) -> None:
    """Each slice equals the truth (slice, y, x) in magnitude where it is bright, up to one scale for all."""
    found = np.stack(stack.slices)
    assert found.shape == truth.shape
    assert found.dtype == np.complex64
    inside = np.abs(truth) > 0.2 * np.abs(truth).max()
    a, b = np.abs(found[inside]), np.abs(truth[inside])
    assert np.linalg.norm(a * (a @ b) / (a @ a) - b) < tolerance * np.linalg.norm(b)


def test_a_full_scan_becomes_complex_images(tmp_path: Path) -> None:
    scan = full_scan(tmp_path / "scan.h5")
    files, left_out = images_for_training([scan.path], tmp_path / "scans")
    assert not left_out
    assert files == [tmp_path / "scans" / "scan.npz"]
    stack = load_images(files[0])
    truth = truth_of(scan)[0]
    check_against(stack, truth, 0.03)
    # phases are the truth's up to the smooth one of the virtual coil: neighbours differ as in the truth
    image = np.stack(stack.slices)
    step = image[..., 1:] * image[..., :-1].conj() * (truth[..., 1:] * truth[..., :-1].conj()).conj()
    bright = np.abs(truth) > 0.2 * np.abs(truth).max()
    assert np.median(np.abs(np.angle(step[bright[..., 1:] & bright[..., :-1]]))) < 0.1


@pytest.mark.parametrize("options", [{"coils": 1}, {"three_d": True, "slices": 12}, {"repetitions": 2, "spot": 0.0}])
def test_other_full_scans(tmp_path: Path, options: dict[str, Any]) -> None:
    scan = full_scan(tmp_path / "scan.h5", **options)
    files, _ = images_for_training([scan.path], tmp_path / "scans")
    truth = truth_of(scan)
    stack = load_images(files[0])
    if "repetitions" in options:
        truth = truth.reshape(-1, *truth.shape[2:])
    else:
        truth = truth[0]
    check_against(stack, truth, 0.05)


def test_images_are_made_once_and_again_when_the_scan_changes(tmp_path: Path) -> None:
    scan = full_scan(tmp_path / "a" / "scan.h5")
    other = full_scan(tmp_path / "b" / "scan.h5", seed=2)
    np.savez(tmp_path / "plain.npz", slices=np.abs(brain((64, 64), 2, seed=5).image))
    data = [scan.path, tmp_path / "plain.npz", other.path]
    files, _ = images_for_training(data, tmp_path / "scans")
    assert [path.name for path in files] == ["scan.npz", "plain.npz", "scan-2.npz"]
    made = [path.stat().st_mtime_ns for path in files]
    assert images_for_training(data, tmp_path / "scans")[0] == files
    assert [path.stat().st_mtime_ns for path in files] == made
    full_scan(tmp_path / "a" / "scan.h5", seed=3)
    images_for_training(data, tmp_path / "scans")
    assert [path.stat().st_mtime_ns == before for path, before in zip(files, made, strict=True)] == [False, True, True]
    subjects = [set(stack.subjects) for stack in load_sources(files).stacks]
    assert subjects[0] == subjects[2], "two files of one name and no patient: taken as one, never split"


def test_the_patient_of_the_header_is_the_subject(tmp_path: Path) -> None:
    for name, patient in (("one", "ANNA-77"), ("two", "ANNA-77"), ("three", "BERT-88")):
        scan = full_scan(tmp_path / f"{name}.h5", slices=1)
        with h5py.File(scan.path, "r+") as file:
            xml = file["dataset/xml"][0].decode()
            start = re.search(r"<ismrmrdHeader[^>]*>", xml)
            assert start is not None
            patched = f"{start[0]}<subjectInformation><patientID>{patient}</patientID></subjectInformation>"
            file["dataset/xml"][0] = xml.replace(start[0], patched)
    files, _ = images_for_training([tmp_path / f"{name}.h5" for name in ("one", "two", "three")], tmp_path / "scans")
    one, two, three = (stack.subjects for stack in load_sources(files).stacks)
    assert one == two != three
    assert b"ANNA" not in (tmp_path / "scans" / "one.npz").read_bytes()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            {"mask": "uniform", "r": 4, "acs": 8},
            r"this scan has R = 2\.9; only fully sampled scans can train this prior",
        ),
        ({"mask": "uniform", "r": 2, "acs": 0}, r"this scan has R = 2\.0; only"),
        ({"partial_fourier": 0.75}, r"this scan has R = 1\.3, with 75% of k-space along ky \(partial Fourier\); only"),
        ({"asymmetric_echo": 0.75}, r"its readouts cover 75% of k-space \(asymmetric echo\); only fully sampled"),
    ],
)
def test_scans_that_are_not_full_are_refused(tmp_path: Path, options: dict[str, Any], complaint: str) -> None:
    scan = full_scan(tmp_path / "under.h5", **options)
    with pytest.raises(SourceError, match=f"none of 1 scans can be used: .*under.h5: {complaint}"):
        images_for_training([scan.path], tmp_path / "scans")
    assert not (tmp_path / "scans").exists()
    good = full_scan(tmp_path / "good.h5", slices=1)
    files, left_out = images_for_training([scan.path, good.path], tmp_path / "scans")
    assert [path.name for path in files] == ["good.npz"]
    assert len(left_out) == 1
    assert re.search(complaint, left_out[0])


def test_a_scan_that_lost_readouts_is_refused(tmp_path: Path) -> None:
    scan = full_scan(tmp_path / "scan.h5", slices=1, noise_readouts=0)
    with h5py.File(scan.path, "r+") as file:
        rows = file["dataset/data"][:]
        del file["dataset/data"]
        file["dataset/data"] = rows[:40]
    with pytest.raises(SourceError, match=r"scan.h5: this scan has R = 1\.6"):
        images_for_training([scan.path], tmp_path / "scans")
    rows["data"][3][5] = np.nan
    with h5py.File(scan.path, "r+") as file:
        del file["dataset/data"]
        file["dataset/data"] = rows
    with pytest.raises(SourceError, match=r"scan.h5: acquisition .* not finite"):
        images_for_training([scan.path], tmp_path / "scans")


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.binary(max_size=100).map(lambda text: text.replace(b"\0", b"")), cut=st.integers(0, 3000))
def test_a_damaged_header_is_told(tmp_path: Path, header: bytes, cut: int) -> None:
    path = tmp_path / "scan.h5"
    if not (tmp_path / "whole.h5").exists():
        full_scan(tmp_path / "whole.h5", matrix=32, slices=1, noise_readouts=0)
    path.write_bytes((tmp_path / "whole.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        xml = file["dataset/xml"][0]
        file["dataset/xml"][0] = header + xml[:cut] if cut < len(xml) - 1 else header + b"<" + xml
    with pytest.raises(SourceError, match=r"scan\.h5"):
        images_for_training([path], tmp_path / "scans")


def test_the_dry_run_lists_what_is_used_and_what_is_not(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    data = tmp_path / "data"
    full_scan(data / "full.h5")
    full_scan(data / "under.h5", mask="uniform", r=2)
    np.savez(data / "heads.npz", slices=np.abs(brain((80, 72), 3, seed=5).image), subject=["a", "a", "b"])
    np.savez(data / "odd.npz", pictures=np.zeros(3))
    run = CliRunner().invoke
    result = run(app, ["train", "--data", str(data), "--out", str(tmp_path / "run"), "--dry-run"])
    assert result.exit_code == 0, result.output
    for line in (
        "full.npz: 2 slices, 1 subjects, 64x64, complex",
        "heads.npz: 3 slices, 2 subjects, 80x72, magnitude",
        f"left out: {data / 'under.h5'}: this scan has R = 1.",
        f"left out: {data / 'odd.npz'}: expected the key 'slices'",
    ):
        assert line in result.output
    assert not (tmp_path / "run").exists()
    for name in ("odd.npz", "under.h5"):
        result = run(app, ["train", "--data", str(data / name), "--out", str(tmp_path / "run"), "--dry-run"])
        assert result.exit_code == 1
        assert "train: training data: none of 1" in result.output
        assert "Traceback" not in result.output


@pytest.mark.parametrize("name", ["brain_t2_1ch_full", "brain_t2_8ch_full"])
def test_recorded_scans_read_to_a_brain(tmp_path: Path, name: str) -> None:
    """A check of the reader alone: recorded scans train nothing."""
    recorded = data_dir() / "recorded"
    files, left_out = images_for_training([recorded / f"{name}.h5"], tmp_path)
    assert not left_out
    (image,) = load_images(files[0]).slices
    if name == "brain_t2_8ch_full":
        with np.load(recorded / "brain_t2_8ch_truth.npz") as truth:
            maps = truth["maps"].astype(np.float32) @ np.array([1, 1j], np.complex64)
            expected = whitened(truth["image"], maps, truth["noise_cov"].astype(np.complex128))
        check_against(load_images(files[0]), expected[None], 0.06)
    magnitude = np.abs(image)
    rows, columns = image.shape
    head = magnitude[rows // 4 : 3 * rows // 4, columns // 4 : 3 * columns // 4]
    edge = np.concatenate([magnitude[:8].ravel(), magnitude[-8:].ravel(), magnitude[:, :8].ravel()])
    assert head.mean() > 10 * edge.mean()


def test_processes_that_make_the_same_file_at_once_do_not_spoil_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process writes its own copy while this one does: each is whole, one of them stays."""
    scan = full_scan(tmp_path / "scan.h5").path
    save = np.savez
    others: list[Path] = []

    def saving(path: Path, **kept: object) -> None:
        save(path, **kept)  # type: ignore[arg-type]
        others.append(path)
        if len(others) == 1:  # the other process starts and ends between this one's writing and its renaming
            images_for_training([scan], tmp_path / "scans")
        assert path.exists()

    monkeypatch.setattr(np, "savez", saving)
    files, _ = images_for_training([scan], tmp_path / "scans")
    assert len(set(others)) == 2
    assert [path.name for path in (tmp_path / "scans").iterdir()] == [files[0].name]
    assert len(np.load(files[0])["slices"]) == 2
