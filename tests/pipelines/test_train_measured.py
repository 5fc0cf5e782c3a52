"""`scanprior train --method` on a folder of recorded scans, as its user runs it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scanprior.models.prior import load_prior
from scanprior.pipelines.cli import app
from scanprior.sim.scan import simulate
from support import multiply_noise_scan
from typer.testing import CliRunner

TINY = ["--steps", "2", "--batch", "2", "--patch", "32", "--widths", "8,8", "--blocks", "1,1", "--save-every", "2"]
CPU = ["--accelerator", "cpu", "--threads", "1"]


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    for number in range(3):
        simulate(folder / f"s{number}.h5", matrix=48, slices=2, coils=4, r=2, acs=16, seed=number)
    simulate(folder / "full.h5", matrix=48, coils=4, mask="full", seed=7)
    simulate(folder / "silent.h5", matrix=48, coils=4, r=2, acs=16, noise_readouts=0, seed=8)
    (folder / "a-torn.h5").write_bytes((folder / "s0.h5").read_bytes()[:5000])
    return folder


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in ["train", *arguments, *TINY, *CPU]])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("method", ["gsure", "split", "em"])
def test_a_folder_of_scans_makes_a_prior(method: str, scans: Path, tmp_path: Path) -> None:
    more = ["--rounds", "1"] if method == "em" else []
    out = tmp_path / "run"
    said = run("--data", scans, "--method", method, "--out", out, *more)
    assert "7 slices of 4 scans of 4 subjects are used, of 6 files looked at" in said
    report = (out / "found/found.txt").read_text()
    assert "silent.h5: left out" in report
    assert "a-torn.h5: left out" in report
    card = (out / "prior.md").read_text()
    assert "recorded slices" in card
    assert "none: neither by the loss" in card
    assert "of the noise scans" in card
    assert load_prior(str(out / "prior.safetensors")).name
    # the same command again reads no scan again
    slices = {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}
    run("--data", scans, "--method", method, "--out", out, *more)
    assert slices == {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}
    assert len(slices) == 7


def test_a_run_is_of_its_scans(tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(2):
        simulate(folder / f"s{number}.mrd", matrix=48, coils=4, r=2, acs=16, seed=number)
    run("--data", folder, "--method", "gsure", "--out", tmp_path / "run")
    simulate(folder / "s1.mrd", matrix=48, coils=4, r=2, acs=18, seed=5)
    again = ["train", "--data", folder, "--method", "gsure", "--out", tmp_path / "run", *TINY, *CPU]
    result = CliRunner().invoke(app, [str(argument) for argument in again])
    assert result.exit_code == 1
    assert "holds a run on other scans" in result.output


@pytest.mark.parametrize("gain", [0.5, 2.0])
def test_a_noise_level_that_k_space_contradicts_stands_in_the_card(gain: float, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(2):
        simulate(folder / f"s{number}.h5", matrix=48, coils=4, r=2, acs=16, seed=number)
    multiply_noise_scan(folder / "s1.h5", gain)
    said = run("--data", folder, "--method", "em", "--rounds", "1", "--out", tmp_path / "run")
    card = (tmp_path / "run" / "prior.md").read_text()
    assert "| doubtful | 1 of 2 scans: CAUTION: the noise at the edge of k-space is" in card
    assert "CAUTION" in said
    # the masks of both are the same
    assert re.search(r"; \d\d% of k-space is in no scan's mask", card)
    told = (tmp_path / "run" / "settings.txt").read_text()
    assert "recorded: True" in told
    assert not [name for name in ("mask", "amount", "noise", "size", "held") if f"\n{name}: " in told]


def test_sure_takes_the_full_scans_alone(scans: Path, tmp_path: Path) -> None:
    said = run("--data", scans, "--method", "sure", "--out", tmp_path / "run")
    assert "1 slices of 1 scans" in said
    assert "this method needs fully sampled scans" in said


def test_what_does_not_fit_is_told(scans: Path, tmp_path: Path) -> None:
    def refused(*arguments: object) -> str:
        result = CliRunner().invoke(app, [str(part) for part in ["train", *arguments, *CPU]])
        assert result.exit_code != 0
        return " ".join(result.output.replace("│", " ").split())

    usual = ["--data", scans, "--method", "split", "--out", tmp_path / "run"]
    assert "--r: of simulated scans; recorded ones tell that themselves" in refused(*usual, "--r", "4", "--patch", "32")
    noisy = ["--data", scans, "--method", "sure", "--out", tmp_path / "noisy"]
    assert "scans of 48 x 48: expected --patch of at most 48, found 64" in refused(*noisy, "--patch", "64")
    only = tmp_path / "only"
    only.mkdir()
    (only / "silent.h5").write_bytes((scans / "silent.h5").read_bytes())
    assert "none of 1 scans can be used" in refused("--data", only, "--method", "split", "--out", tmp_path / "b")
