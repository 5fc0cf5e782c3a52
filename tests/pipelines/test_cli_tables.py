"""`scanprior export-mask` and `scanprior read-table`, end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pypulseq as pp
import pytest
from masks import lines_mask, points_mask
from matplotlib.image import imread
from scanprior.pipelines import cli_tables
from scanprior.pipelines.cli import app
from scanprior.pipelines.order_figure import write_order_figure
from scanprior.sim.acquisition_order import OrderSettings
from scanprior.sim.mask_file import SamplingMask, load_mask, save_mask
from scanprior.sim.sampling_table import SamplingTable
from scanprior.sim.tables import TABLE_FORMATS
from typer.testing import CliRunner

RUNNER = CliRunner()


def run(*arguments: object) -> tuple[int, str]:
    result = RUNNER.invoke(app, list(map(str, arguments)), env={"COLUMNS": "400", "TERM": "dumb"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def saved(folder: Path, mask: SamplingMask) -> Path:
    save_mask(folder / "mask.npz", mask)
    return folder / "mask.npz"


@pytest.mark.parametrize("format_", TABLE_FORMATS)
def test_a_mask_goes_out_and_comes_back(tmp_path: Path, format_: str) -> None:
    mask = lines_mask()
    path = saved(tmp_path, mask)
    code, output = run("export-mask", path, "--format", format_, "--order", "centre-out")
    assert code == 0, output
    table = path.with_suffix(TABLE_FORMATS[format_].suffix)
    assert f"{table}: {format_}, {mask.samples} lines of 32 x 1, R {mask.effective_r:.2f}" in output
    assert f"status: {TABLE_FORMATS[format_].status}" in output
    assert load_mask(path).sha256 == mask.sha256  # the sidecar did not overwrite the mask's own
    code, output = run("read-table", table, "--out", tmp_path / "again.npz", "--points")
    assert code == 0, output
    again = load_mask(tmp_path / "again.npz")
    assert again.sha256 == mask.sha256
    assert (again.matrix, again.fov_mm, again.prior, again.settings) == (
        mask.matrix, mask.fov_mm, mask.prior, mask.settings,
    )  # fmt: skip
    listed = [list(map(int, line.split())) for line in output.splitlines() if line[0].isdigit()]
    table_ = SamplingTable(mask, OrderSettings("centre-out"))
    assert [row[3:] for row in listed] == table_.order.points.tolist()


@pytest.mark.parametrize("format_", [name for name in TABLE_FORMATS if name != "bruker"])
def test_a_plane_goes_out_and_comes_back(tmp_path: Path, format_: str) -> None:
    path = saved(tmp_path, points_mask())
    out = tmp_path / f"plane{TABLE_FORMATS[format_].suffix}"
    code, output = run("export-mask", path, "--format", format_, "--out", out, "--plot", tmp_path / "order.png")
    assert code == 0, output
    assert imread(tmp_path / "order.png").std() > 0.01
    code, output = run("read-table", out, "--plot", tmp_path / "again.png")
    assert code == 0, output
    assert np.array_equal(imread(tmp_path / "again.png"), imread(tmp_path / "order.png"))


def test_points_by_the_defaults_of_make_mask_are_played_in_3d(tmp_path: Path) -> None:
    path = tmp_path / "points.npz"
    code, output = run("make-mask", "poisson-2d", path, "--matrix", "24,16")
    assert code == 0, output
    code, output = run("export-mask", path, "--format", "pulseq")
    assert code == 0, output
    assert "scanprior_gre3d" in output
    text = path.with_suffix(".seq").read_text()
    thickness = 230e-3 * 16 / 24
    definitions = dict(line.split(" ", 1) for line in text.split("[BLOCKS]")[0].splitlines() if " " in line)
    assert [float(length) for length in definitions["FOV"].split()] == pytest.approx([0.23, 0.23, thickness], rel=1e-6)
    assert float(definitions["SliceThickness"]) == pytest.approx(0.8 * thickness, rel=1e-6)
    code, output = run("read-table", path.with_suffix(".seq"), "--out", tmp_path / "again.npz")
    assert code == 0, output
    mask = load_mask(path)
    assert load_mask(tmp_path / "again.npz").sha256 == mask.sha256
    assert mask.samples == 24 * 16 // 4
    # the files' own gradients against the mask, by pypulseq alone
    sequence = pp.Sequence()
    sequence.read(str(path.with_suffix(".seq")))
    trajectory = sequence.calculate_kspace()[0].reshape(3, -1, 48)[:, 16:, 24]  # 16 of noise; the middle of readouts
    assert np.abs(trajectory[0]).max() * 0.23 < 1e-3
    lines = np.rint(trajectory[1:].T * [0.23, thickness]).astype(int) + np.array([12, 8])
    assert sorted(map(tuple, lines)) == sorted(map(tuple, np.argwhere(mask.mask)))
    code, output = run("export-mask", path, "--format", "pulseq", "--fov", "230,230,1")
    assert code == 1
    assert "fov_mm: 1 mm along z are 16 partitions of 0.0625 mm" in " ".join(output.split())


def test_pulseq_protocol_reaches_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path, lines_mask())
    code, output = run(
        "export-mask", path, "--format", "pulseq", "--sequence", "tse", "--echo-train", 5, "--echo-spacing", 11, "--te",
        33, "--tr", 300, "--slices", 2, "--gap", 1.5, "--dummies", 1, "--noise-readouts", 3, "--negate-phase",
        "--pulseq-version", "1.4.1", "--fov", "240,210,4", "--oversampling", 1, "--dwell", 12, "--max-grad", 25,
        "--max-slew", 100, "--refocusing", 150, "--flip", 80, "--spoil-cycles", 3,
    )  # fmt: skip
    assert code == 0, output
    assert "scanprior_tse2d: TE 33.00 ms, TR 300.00 ms" in output
    text = path.with_suffix(".seq").read_text()
    for line in ("minor 4", "PhaseSign -1", "SliceThickness 0.004", "SliceGap 0.0015", "FOV 0.24 0.21 0.0095"):
        assert line in text
    sidecar = json.loads(path.with_suffix(".seq.json").read_text())
    assert sidecar["order"] == {"name": "interleaved", "echo_train": 5, "effective_echo": 2}
    assert sidecar["fov_mm"] == [240, 210, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "excel"), "expected one of pulseq, csv"),
        (("--format", "csv", "--te", 5), "te_ms: only --format pulseq has that"),
        (("--format", "csv", "--out", "table.txt"), "a csv table ends in .csv"),
        (("--format", "csv", "--order", "spiral"), "expected one of linear, centre-out, interleaved"),
        (("--format", "csv", "--fov", "1,2"), "expected three lengths"),
        (("--format", "csv", "--fov", "1,2,0"), "lengths"),
        (("--format", "csv", "--plot", "order.pdf"), "ends in .png"),
        (("--format", "pulseq", "--te", 1), "te_ms: expected at least"),
        (("--format", "pulseq", "--echo-spacing", 9), "only the sequence tse has it"),
        (("--format", "pulseq", "--sequence", "tse", "--te", 25, "--echo-train", 4), "multiple of the echo spacing 10"),
        (
            ("--format", "pulseq", "--sequence", "tse", "--te", 20, "--echo-train", 4, "--effective-echo", 3),
            "te_ms 20 is echo 1, got --effective-echo 3",
        ),
        (
            ("--format", "pulseq", "--sequence", "tse", "--te", 20, "--echo-train", 4, "--order", "linear"),
            "needs inter",
        ),
    ],
)
def test_bad_options(tmp_path: Path, arguments: tuple, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = run("export-mask", saved(tmp_path, lines_mask()), *arguments)
    assert code
    assert message in " ".join(output.split())
    assert "Traceback" not in output


def test_a_plane_does_not_fit_a_table_of_lines(tmp_path: Path) -> None:
    path = saved(tmp_path, points_mask())
    for arguments, message in (
        (("--format", "bruker"), "no such product"),
        (("--format", "pulseq", "--sequence", "tse"), "expected a mask of lines"),
    ):
        code, output = run("export-mask", path, *arguments)
        assert code == 1
        assert message in " ".join(output.split())
        assert not path.with_suffix(TABLE_FORMATS[arguments[1]].suffix).exists()


def test_a_broken_table_and_a_broken_mask(tmp_path: Path) -> None:
    path = saved(tmp_path, lines_mask())
    assert run("export-mask", path, "--format", "csv")[0] == 0
    table = path.with_suffix(".csv")
    table.write_text(table.read_text()[:-20])
    code, output = run("read-table", table)
    assert code == 1
    assert f"read-table: {table}: " in output
    path.with_suffix(".json").unlink()
    code, output = run("export-mask", path, "--format", "csv")
    assert code == 1
    assert "mask.json: no such file" in output


def test_without_pypulseq_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scanprior.sim.tables.find_spec", lambda name: None)
    monkeypatch.setattr(cli_tables, "_pulseq_writer", lambda protocol: None)
    code, output = run("export-mask", saved(tmp_path, lines_mask()), "--format", "pulseq")
    assert code == 1
    assert "pip install 'scanprior[seq]'" in output


def test_the_figure_shows_the_order(tmp_path: Path) -> None:
    pictures = []
    for settings in (OrderSettings(), OrderSettings("centre-out"), OrderSettings("interleaved", 4, 1)):
        write_order_figure(tmp_path / "order.png", SamplingTable(lines_mask(), settings))
        pictures.append(imread(tmp_path / "order.png"))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert pictures[one].shape == pictures[other].shape
        assert (pictures[one] != pictures[other]).any(-1).mean() > 0.005
