"""A folder of simulated scans of many kinds: what is used, in what form, and what is left out in which words."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from scanprior.models.forward import SenseModel
from scanprior.models.scan import Scan
from scanprior.pipelines import scan_folder
from scanprior.pipelines.measured_slices import read_slices
from scanprior.pipelines.scan_folder import FolderFound, collect_scans, hand_over
from scanprior.sim.image_stack import SourceError
from scanprior.sim.measured_file import MeasuredSlice, read_measured, write_measured
from scanprior.sim.scan import Simulated, simulate
from support import multiply_noise_scan, random_complex


def scan(path: Path, **options: Any) -> Simulated:
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {"matrix": 48, "slices": 2, "coils": 3, "mask": "random", "r": 2.0, "acs": 16, "snr_db": 20, "seed": 1}
    return simulate(path, **(settings | options))


def cut_acquisitions(path: Path, share: float) -> None:
    """Leave the last readouts out, as of a scan that was stopped."""
    with h5py.File(path, "r+") as file:
        rows = file["dataset/data"][:]
        kind = file["dataset/data"].dtype
        del file["dataset/data"]
        file["dataset"].create_dataset("data", data=rows[: int(share * len(rows))], dtype=kind)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of every kind one."""
    data = tmp_path_factory.mktemp("site")
    scan(data / "good.h5")
    scan(data / "deeper" / "full.h5", mask="full", seed=2)
    scan(data / "deeper" / "good.h5", seed=3, r=3.0, coils=4)
    scan(data / "silent.h5", noise_readouts=0)
    scan(data / "small.h5", matrix=40, slices=1)
    scan(data / "partial.h5", partial_fourier=0.75)
    scan(data / "echo.h5", asymmetric_echo=0.7)
    scan(data / "blind.h5", acs=0, mask="uniform")
    scan(data / "stopped.h5", mask="full", slices=1)
    cut_acquisitions(data / "stopped.h5", 0.7)
    whole = scan(data / "torn.h5").path
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (data / "words.h5").write_text("not a scan")
    with h5py.File(data / "other.hdf5", "w") as file:
        file["kspace"] = np.zeros(3)
    (data / "notes.txt").write_text("of another kind")
    for truth in data.rglob("*_truth.npz"):
        if truth.name != "good_truth.npz":
            truth.unlink()
    return data


@pytest.fixture(scope="module")
def found(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[FolderFound, Path]:
    run = tmp_path_factory.mktemp("run") / "scans"
    return collect_scans([folder], run), run


def test_what_is_used(found: tuple[FolderFound, Path]) -> None:
    result, run = found
    used = {Path(one.path).relative_to(Path(one.path).parents[1]).as_posix(): one for one in result.scans if one.slices}
    assert [Path(name).name for name in used] == ["full.h5", "good.h5", "good.h5"]
    assert len(result.files) == 6
    assert result.matrix == (48, 48)
    assert {one.name for one in used.values()} == {"full", "good", "good-2"}
    assert sorted({path.parent for path in result.files}) == [run / "full", run / "good", run / "good-2"]
    assert [one.coils for scan in result.scans for one in scan.slices] == [3, 3, 4, 4, 3, 3]
    training, validation = result.split()
    assert sorted(training + validation) == sorted(result.files)
    whose = [{read_measured(path).subject for path in files} for files in (training, validation)]
    assert not whose[0] & whose[1]
    assert whose[0] | whose[1] == set(result.subjects)


def test_what_is_left_out_and_why(found: tuple[FolderFound, Path]) -> None:
    result, run = found
    reasons = {
        Path(one.path).name: "; ".join(f"{count} {reason}" for reason, count in one.left_out.items())
        for one in result.scans
        if one.left_out
    }
    for name, complaint in {
        "silent.h5": "0 no noise readouts before the image",
        "small.h5": "1 matrix 40 x 40, kept is 48 x 48 with 6 of 7 slices",
        "partial.h5": "2 its lines cover 75% of k-space along ky (partial Fourier)",
        "echo.h5": "2 its readouts cover 70% of k-space (asymmetric echo)",
        "blind.h5": "acquire ACS lines",
        "stopped.h5": "1 it ends without a last line, and its lines go from -24 to",
        "torn.h5": "not an HDF5 file that can be read",
        "words.h5": "not an HDF5 file that can be read",
        "other.hdf5": "expected a group with 'xml' and 'data'",
    }.items():
        assert complaint in reasons.pop(name), name
    assert not reasons
    text = (run / "found.txt").read_text()
    assert text == str(result)
    assert text.startswith("6 slices of 3 scans of 2 subjects are used, of 12 files looked at\nmatrix 48 x 48, R 1 to ")
    assert "3 files of other kinds were not looked at" in text
    assert "silent.h5: left out\n  left out: no noise readouts" in text
    report = json.loads((run / "found.json").read_text())
    assert len(report["scans"]) == 12
    assert report["matrix"] == [48, 48]


def test_a_slice_is_what_the_scanner_measured(folder: Path, found: tuple[FolderFound, Path]) -> None:
    """y = A x + n with unit complex noise, x the truth as the whitened coils shade it: the misfit is the noise's."""
    result, _ = found
    at = next(one for one in result.scans if one.path == str(folder / "good.h5"))
    with np.load(folder / "good_truth.npz") as truth:
        images, raw, covariance = truth["image"][0], truth["maps"], truth["noise_cov"].astype(np.complex128)
        lines = truth["mask"]
    whitening = np.linalg.inv(np.linalg.cholesky(covariance))
    for one in at.slices:
        measured = read_measured(result.folder / one.file)
        number = int(measured.source.split("slice ")[1].split(",")[0])
        kspace, maps = measured.scan.kspace, measured.scan.maps
        assert maps is not None
        assert measured.scan.sigma == 1
        assert (measured.scan.mask[:, 0].numpy() == lines).all()
        assert one.r == pytest.approx(measured.scan.effective_r)
        shaded = torch.from_numpy(np.einsum("dc,cyx->dyx", whitening, raw[number]).astype(np.complex64))
        wanted = SenseModel(torch.ones_like(shaded[:1]), measured.scan.mask)
        clean = torch.cat([wanted(coil * torch.from_numpy(images[number])) for coil in shaded])
        # whitenings by two factors of one covariance differ by a unitary matrix, which keeps energy at every sample
        energy = (kspace.abs().square().sum(0) - clean.abs().square().sum(0))[measured.scan.mask.expand(48, 48)]
        assert float(energy.mean()) == pytest.approx(3.0, abs=6 * float(energy.std()) / len(energy) ** 0.5)
        # the maps explain the data up to the noise: a few unknowns in each pixel's three samples
        model = SenseModel.of(measured.scan)
        image = model.solve(model.H(kspace), 1e-4, iterations=60)
        misfit = (model(image) - kspace)[:, measured.scan.mask.expand(48, 48)]
        assert float(misfit.abs().square().mean()) < 1.3


def test_nothing_is_read_twice_and_what_changed_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = folder / "good.h5", tmp_path / "two.h5"
    scan(two, slices=1)
    first = collect_scans([one, two], tmp_path / "run")
    seen: list[str] = []

    def counting(path: Path, *rest: Any) -> Any:
        seen.append(path.name)
        return read_slices(path, *rest)

    monkeypatch.setattr(scan_folder, "read_slices", counting)
    assert str(collect_scans([one, two], tmp_path / "run")) == str(first)
    assert not seen
    scan(two, slices=2, seed=9)
    assert len(collect_scans([one, two], tmp_path / "run").files) == 4
    assert seen == ["two.h5"]
    assert {path.name for path in (tmp_path / "run").iterdir() if path.is_dir()} == {"good", "two"}


def test_a_training_gets_its_slices_in_a_form_of_its_own(found: tuple[FolderFound, Path], tmp_path: Path) -> None:
    result = found[0]
    written: list[Path] = []

    def write(path: Path, scan: Scan) -> None:
        if not scan.mask.all() and path.name == "000000":
            raise SourceError("not this one")
        written.append(path)
        path.with_suffix(".txt").write_text(str(scan.kspace.shape))

    training, validation = tmp_path / "bank", tmp_path / "bank-validation"
    refused = hand_over(result, training, validation, write, most=1 + len(result.files))
    assert len(written) + len(refused) == len(result.files)
    assert 0 < len(refused) <= 2
    assert all(one.endswith("not this one") for one in refused)
    assert len(list(training.iterdir())) + len(list(validation.iterdir())) == len(written)
    written.clear()
    assert not hand_over(result, training, validation, write)
    assert not written, "finished before"

    def refuse(path: Path, scan: Scan) -> None:
        raise SourceError("none of these")

    with pytest.raises(SourceError, match=r"other: none of \d slices can be used: .*none of these"):
        hand_over(result, tmp_path / "other", validation, refuse)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_full_scans_alone_and_a_chosen_matrix(folder: Path, found: tuple[FolderFound, Path]) -> None:
    run = found[1]
    full = collect_scans([folder], run, full=True)
    assert {scan.name for scan in full.scans if scan.slices} == {"full"}
    assert all(read_measured(path).scan.mask.all() for path in full.files)
    assert full.split() == (full.files, full.files), "one subject does both"
    small = collect_scans([folder], run, matrix=(40, 40))
    assert {scan.name for scan in small.scans if scan.slices} == {"small"}
    with pytest.raises(SourceError, match="no slice has the matrix 64 x 64; there are: 48 x 48, 40 x 40"):
        collect_scans([folder], run, matrix=(64, 64))


def test_folders_without_scans(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        collect_scans([tmp_path / "nowhere"], tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"expected MRD scans \(.h5, .hdf5, .mrd\) in .*, found none among 0"):
        collect_scans([tmp_path / "empty"], tmp_path / "run")
    with pytest.raises(
        SourceError, match=r"none of 2 scans can be used: .*silent.h5: no noise .*words.h5: .*not an HDF5"
    ):
        collect_scans([folder / "silent.h5", folder / "words.h5"], tmp_path / "run")


@pytest.mark.parametrize(("gain", "said"), [(0.5, "2\\.\\d\\d"), (1.0, None), (2.0, "0\\.(4|5)\\d")])
def test_a_noise_scan_of_another_gain_is_told(tmp_path: Path, gain: float, said: str | None) -> None:
    made = scan(tmp_path / "one.h5", slices=1)
    multiply_noise_scan(made.path, gain)
    notes = read_slices(made.path).notes
    if said is None:
        assert not notes
    else:
        (note,) = notes
        assert re.fullmatch(rf"CAUTION: the noise at the edge of k-space is {said} times that of the noise scan", note)


def test_a_volume_gives_its_planes(tmp_path: Path) -> None:
    made = scan(tmp_path / "volume.h5", three_d=True, slices=20, matrix=32, mask="full", acs=0)
    read = read_slices(made.path)
    assert {tuple(one.scan.kspace.shape) for one in read.slices} == {(3, 20, 32)}
    assert read.left_out.keys() <= {"no signal, mere noise"}
    assert len(read.slices) + sum(read.left_out.values()) == 32
    assert read.left_out.total() > 0, "the edges of the readout are air"
    assert len({one.source for one in read.slices}) == len(read.slices)


def test_files_of_slices(tmp_path: Path) -> None:
    mask = torch.arange(8)[:, None] % 2 == 0
    maps = random_complex(2, 8, 6)
    kspace = random_complex(2, 8, 6, seed=1) * mask
    written = MeasuredSlice(Scan(kspace, mask, maps, 0.5), "someone", "a.h5")
    write_measured(tmp_path / "one.npz", written)
    again = read_measured(tmp_path / "one.npz")
    assert (again.subject, again.source, again.scan.sigma) == ("someone", "a.h5", 1.0)
    torch.testing.assert_close(again.scan.kspace, 2 * kspace)
    assert torch.equal(again.scan.mask, mask)
    for wrong, complaint in (
        (Scan(kspace, mask, None, 1.0), "maps"),
        (Scan(kspace, mask, maps, 0.0), "noise level"),
        (Scan(kspace[None], mask, maps[None], 1.0), "maps"),
    ):
        with pytest.raises(ValueError, match=complaint):
            write_measured(tmp_path / "two.npz", MeasuredSlice(wrong, "", ""))
    (tmp_path / "three.npz").write_bytes((tmp_path / "one.npz").read_bytes()[:100])
    with pytest.raises(SourceError, match="not a measured slice"):
        read_measured(tmp_path / "three.npz")
