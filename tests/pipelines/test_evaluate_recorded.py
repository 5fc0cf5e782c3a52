"""`scanprior evaluate` of a recorded scan and its truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from evaluations import cases, cli, words
from scanprior.gadgets.engine import Engine
from scanprior.pipelines import evaluate_recorded as recorded
from scanprior.pipelines.cli import app
from scanprior.pipelines.replay import replay
from scanprior.sim.scan import simulate
from support import data_dir


def test_a_recorded_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = simulate(
        tmp_path / "scan.h5", matrix=48, slices=2, repetitions=2, coils=4, mask="uniform", r=2, acs=16, snr_db=30.0
    )
    out = tmp_path / "out"
    given = ["evaluate", "--data", str(made.path), "--truth", str(made.truth), "--out", str(out), "--show", "2"]
    result = cli.invoke(app, [*given, "--methods", "zero-filled,sense,dds:steps=2,samples=2", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    rows = cases(out)
    assert len(rows) == 3 * 4
    sense = [row for row in rows if row["method"] == "sense"]
    assert {row["image"] for row in sense} == {f"scan.h5 repetition {n} slice {m}" for n in (0, 1) for m in (0, 1)}
    assert all(float(row["psnr"]) > 25 for row in sense), "in the truth's units: nothing is fitted"
    assert float(sense[0]["effective_r"]) == pytest.approx(made.effective_r)
    assert sense[0]["cover50"] == ""
    assert all(row["cover50"] for row in rows if row["method"].startswith("dds"))
    assert len(list((out / "figures").glob("images_*"))) == 2
    # again, and wider: what is there is not computed again
    ran: list[str] = []

    def counting(path: Path, engine: Engine, *rest: object) -> object:
        ran.append(engine.default.method)
        return replay(path, engine, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(recorded, "replay", counting)
    result = cli.invoke(app, [*given, "--methods", "sense,sense:lam=1,zero-filled", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert ran == ["sense"]
    assert [row for row in cases(out) if row["method"] == "sense"] == sense
    assert {row["method"] for row in cases(out)} == {"sense", "sense:lam=1", "zero-filled"}
    # wrong things
    for options, complaint in (
        ([*given, "--masks", "uniform-1d"], "--masks: not for a recorded scan"),
        ([*given, "--tune-on", str(made.truth)], "--tune-on: not for a recorded scan"),
        ([*given[:3], "--out", str(out)], "expected one --data, an MRD file, and its --truth"),
        ([*given[:4], str(made.path), *given[5:]], "not a truth (npz) that can be read"),
        ([given[0], "--data", str(made.truth), *given[3:]], "expected one --data, an MRD file, and its --truth"),
    ):
        refused = cli.invoke(app, options)
        assert refused.exit_code == 2, refused.output
        assert complaint in words(refused)


def test_the_score_of_the_recorded_brain_is_that_of_the_benchmark(tmp_path: Path) -> None:
    folder = data_dir() / "recorded"
    out = tmp_path / "out"
    result = cli.invoke(
        app,
        ["evaluate", "--data", str(folder / "brain_t2_multislice_r3.h5"), "--methods", "sense", "--device", "cpu",
         "--truth", str(folder / "brain_t2_multislice_r3_truth.npz"), "--out", str(out)],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = cases(out)
    assert len(rows) == 12
    assert np.mean([float(row["psnr"]) for row in rows]) == pytest.approx(32.46, abs=0.02)
    assert np.mean([float(row["ssim"]) for row in rows]) == pytest.approx(0.7950, abs=0.001)
