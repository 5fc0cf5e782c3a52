"""Replay of files: what is refused, what is written, and the commands around it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import h5py
import ismrmrd
import numpy as np
import pytest
from acquisitions import BOTH, LAST_IN_SLICE, acquisition, header_xml, noise_readouts, smooth_object
from scanprior.gadgets.engine import Engine
from scanprior.gadgets.errors import ScanError
from scanprior.gadgets.mrd import Acquisition
from scanprior.pipelines.cli import app
from scanprior.pipelines.replay import ScanFile, ScanFileError, replay
from typer.testing import CliRunner

SIZE, COILS = 32, 3


@pytest.fixture
def engine() -> Iterator[Engine]:
    running = Engine("sense", device="cpu")
    yield running
    running.close()


def scan_lines() -> list[Acquisition]:
    kspace = np.fft.fftshift(
        np.fft.fft2(np.fft.ifftshift(smooth_object(SIZE, SIZE, COILS), (1, 2)), norm="ortho"), (1, 2)
    )
    lines = noise_readouts(1e-6 * np.eye(COILS), 8, 64, seed=1)
    for number in range(2):
        for n in range(SIZE):
            flags = [BOTH] * (8 <= n < 24) + [LAST_IN_SLICE] * (n == SIZE - 1)
            lines.append(acquisition(kspace[:, n], n, *flags, slice=number))
    return lines


def write(path: Path, lines: list[Acquisition], group: str = "dataset") -> Path:
    """An MRD file, written by ismrmrd."""
    dataset = ismrmrd.Dataset(str(path), group)
    dataset.write_xml_header(header_xml((SIZE, SIZE, 1), channels=COILS).encode())
    for line in lines:
        head = ismrmrd.AcquisitionHeader.from_buffer_copy(line.head.tobytes())
        one = ismrmrd.Acquisition(head)
        one.data[:] = line.data
        dataset.append_acquisition(one)
    dataset.close()
    return path


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return write(tmp_path / "scan.h5", scan_lines())


def test_what_is_written(engine: Engine, scan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    seen: list[tuple[int, int]] = []
    images, report = replay(scan, engine, out, parameters={"steps": "3"}, progress=lambda *at: seen.append(at))
    assert seen == [(n + 1, 72) for n in range(72)]
    assert {path.name for path in out.iterdir()} == {
        "images.h5", "report.json", "magnitude_slice000.png", "magnitude_slice001.png",
    }  # fmt: skip
    # by ismrmrd's own reader
    dataset = ismrmrd.Dataset(str(out / "images.h5"), "dataset", False)
    assert dataset.number_of_images("image_1") == 2
    for number, image in enumerate(images):
        written = dataset.read_image("image_1", number)
        np.testing.assert_array_equal(written.data, image.data)
        assert bytes(written.getHead()) == image.head.tobytes()
        assert written.meta["DataRole"] == "Image"
        assert "method sense" in written.meta["ImageProcessingHistory"]
    dataset.close()
    kept = json.loads((out / "report.json").read_text())
    assert kept == json.loads(json.dumps(report, default=lambda value: value.item()))
    assert (kept["scan"], kept["recipe"]["name"], kept["device"], kept["failures"]) == ("scan.h5", "sense", "cpu", [])
    assert kept["recipe"]["settings"]["iterations"] == 3
    assert 0 < kept["first_image_seconds"] < kept["seconds"]
    for number, (told, latency) in enumerate(zip(kept["images"], kept["latency"], strict=True)):
        assert told["key"]["slice"] == number
        assert (told["method"], told["noise"], told["effective_r"]) == ("sense", "scan", 1.0)
        assert latency["seconds"] > 0
    # once more into the same folder: nothing of before is left over
    replay(scan, engine, out, parameters={"steps": "3"})
    with h5py.File(out / "images.h5") as file:
        assert len(file["dataset/image_1/data"]) == 2


def test_complex_images_and_maps_of_standard_deviation(engine: Engine, scan: Path, tmp_path: Path) -> None:
    images, _ = replay(
        scan, engine, tmp_path / "out", parameters={"recipe": "dds", "steps": "2", "samples": "2", "output": "complex"}
    )
    assert [image.data.dtype.name for image in images] == ["complex64", "float32"] * 2
    dataset = ismrmrd.Dataset(str(tmp_path / "out" / "images.h5"), "dataset", False)
    assert dataset.number_of_images("image_1") == dataset.number_of_images("image_2") == 2
    np.testing.assert_array_equal(dataset.read_image("image_1", 1).data, images[2].data)
    assert dataset.read_image("image_2", 0).meta["DataRole"] == "Quantitative"
    dataset.close()
    assert len(list((tmp_path / "out").glob("*.png"))) == 4


def test_files_that_are_no_scans(engine: Engine, tmp_path: Path) -> None:
    text = tmp_path / "text.h5"
    text.write_text("no HDF5")
    empty = tmp_path / "empty.h5"
    h5py.File(empty, "w").close()
    numbers = tmp_path / "numbers.h5"
    with h5py.File(numbers, "w") as file:
        file["dataset/data"], file["dataset/xml"] = np.zeros(3), [b"<a/>"]
    for path, complaint in (
        (text, "text.h5: not an HDF5 file that can be read"),
        (empty, "empty.h5: expected a group with 'xml' and 'data', found groups none"),
        (numbers, "numbers.h5: dataset/data does not hold acquisitions"),
    ):
        with pytest.raises(ScanFileError, match=complaint):
            replay(path, engine, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_groups(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.h5", scan_lines()[:3], "measurement")
    assert len(ScanFile(path)) == 3, "the only one"
    with pytest.raises(ScanFileError, match=r"found groups \['measurement'\]"):
        ScanFile(path, "dataset")
    write(path, scan_lines()[:4], "other")
    with pytest.raises(ScanFileError, match=r"found groups \['measurement', 'other'\]"):
        ScanFile(path)
    assert len(ScanFile(path, "other")) == 4


def test_a_readout_that_does_not_fit_its_header_is_left_out(engine: Engine, tmp_path: Path) -> None:
    lines = scan_lines()
    scan = write(tmp_path / "scan.h5", lines)
    with h5py.File(scan, "r+") as file:
        rows = file["dataset/data"][:]
        rows[20]["data"] = rows[20]["data"][:-6]
        file["dataset/data"][:] = rows
    with pytest.raises(ScanError, match=r"has data \(1, 93\), its header says \(3, 32\); 1 readouts were left out"):
        replay(scan, engine, tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(report["failures"]) == 1
    assert [image.get("refused_readouts") for image in report["images"]] == [1, None]


COMMANDS = sorted(
    str(command.name or command.callback.__name__.replace("_", "-"))
    for command in app.registered_commands
    if command.callback
)
run = CliRunner()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str) -> None:
    result = run.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    text = " ".join(result.output.split())
    assert "Example: " in text, result.output
    assert f"scanprior {command} " in text[text.index("Example: ") :]


def test_the_commands_are_all_there() -> None:
    assert {"replay", "serve", "stdio", "recipes", "train"} <= set(COMMANDS)


def test_replay_command(scan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run.invoke(
        app, ["replay", str(scan), "--recipe", "sense", "--steps", "2", "--device", "cpu", "--out", str(out)]
    )
    assert result.exit_code == 0, result.output
    assert "2 images in" in result.output
    assert (out / "images.h5").exists()


@pytest.mark.parametrize(
    ("options", "status", "complaint"),
    [
        (["--recipe", "grappa"], 2, "is not known"),
        (["--recipe", "nothing.yaml"], 2, "cannot be read"),
        (["--recipe", "sense", "--samples", "2"], 1, "has no such setting"),
        (["--recipe", "sense", "--samples", "-1"], 2, "--samples"),
        (["--recipe", "sense", "--device", "gpu0"], 2, "cuda:<number>"),
    ],
)
def test_replay_command_refuses(scan: Path, tmp_path: Path, options: list[str], status: int, complaint: str) -> None:
    result = run.invoke(app, ["replay", str(scan), "--out", str(tmp_path / "out"), *options])
    assert result.exit_code == status, result.output
    assert complaint in result.output
    assert "Traceback" not in result.output


def test_a_prior_that_cannot_be_loaded_is_told(scan: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("method: dds\nprior: nowhere.safetensors\n")
    options = ["--recipe", str(tmp_path / "mine.yaml"), "--device", "cpu"]
    for command in (["replay", str(scan), "--out", str(tmp_path / "out")], ["serve", "--port", "0"]):
        result = run.invoke(app, [*command, *options])
        assert result.exit_code == 1, result.output
        assert "prior 'nowhere.safetensors' not found: expected one of ['magnitude', 'small'" in result.output


def test_training_data_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    result = run.invoke(app, ["train", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "run")])
    assert result.exit_code == 1
    assert "none does not exist" in result.output


def test_recipes_command() -> None:
    listed = run.invoke(app, ["recipes"])
    assert listed.exit_code == 0
    for name in ("dds", "sense", "zero-filled"):
        assert f"\n{name}" in "\n" + listed.output
    shown = run.invoke(app, ["recipes", "dds"])
    assert "samples: 8    # posterior samples" in shown.output
    assert run.invoke(app, ["recipes", "nobody"]).exit_code == 2


def test_a_header_that_is_not_text_is_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["dataset/xml"] = np.array([np.bytes_(b"<\xff\xfe>")])
        file["dataset/data"] = np.zeros(0, np.dtype([("head", "i4"), ("data", "f4")]))
    with pytest.raises(ScanFileError, match=r"scan\.h5: the MRD header is not UTF-8 text"):
        _ = ScanFile(tmp_path / "scan.h5").header
