"""`scanprior evaluate`: what it computes and what it does not: cut and planned runs, tuning, cases that fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from evaluations import call, cases, stack, words
from scanprior.gadgets.engine import Engine
from scanprior.pipelines import evaluate as running
from scanprior.pipelines.evaluate import Evaluation
from scanprior.pipelines.evaluate_methods import parse_methods
from scanprior.pipelines.evaluate_plan import Plan, conditions_of, pick_images
from scanprior.sim.evaluation import Condition, run_recipe, simulate_scan
from scanprior.sim.metrics import psnr


def test_a_cut_run_goes_on_and_a_wider_one_adds(data: Path, tmp_path: Path, counted: list[str]) -> None:
    out = tmp_path / "out"
    assert call(data, out).exit_code == 0
    assert len(counted) == 3 * 2 * 2
    before = cases(out)
    assert call(data, out).exit_code == 0
    assert len(counted) == 12, "nothing is computed again"
    assert cases(out) == before
    # cut in the middle of a line, as by a lost power supply
    kept = out / "cases.jsonl"
    kept.write_bytes(kept.read_bytes()[:-40])
    assert call(data, out).exit_code == 0
    assert len(counted) == 13
    assert [row["psnr"] for row in cases(out)] == [row["psnr"] for row in before]
    assert call(data, out, methods="sense,sense:lam=1,zero-filled").exit_code == 0
    assert counted[13:] == ["sense"] * 6, "only the new method"
    assert call(data, out, "--seed", "1").exit_code == 0
    assert len(counted) == 19 + 12, "another seed is another scan"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "cases.jsonl").write_text("mine\n")
    refused = call(data, tmp_path / "other")
    assert refused.exit_code == 2
    assert "not a file of finished cases" in words(refused)


def test_pictures_that_are_shown_only_now_are_made(data: Path, tmp_path: Path, counted: list[str]) -> None:
    out = tmp_path / "out"
    assert call(data, out, "--show", "0", masks="uniform-1d").exit_code == 0
    assert len(list((out / "figures").glob("images_*"))) == 0
    assert call(data, out, "--show", "1", masks="uniform-1d").exit_code == 0
    assert len(list((out / "figures").glob("images_*"))) == 1
    assert len(counted) == 6 + 2


def test_the_dry_run_prints_the_plan_and_writes_nothing(data: Path, tmp_path: Path, counted: list[str]) -> None:
    out = tmp_path / "out"
    train = stack(tmp_path / "train.npz", 2)
    result = call(
        data, out, "--dry-run", "--tune-on", str(train), "--tune-images", "2", "--snr", "20,none", r="2,3",
        methods="tv,dds:steps=20,samples=4",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    text = words(result)
    assert "images: 3 (48 x 48)" in text
    assert "gaussian-2d R 3, no noise, 3 coils: effective R 3.00, ACS 16 x 16" in text
    assert "method tv: tv, lam tuned" in text
    assert "100 images through the network a case" in text
    assert f"cases: {3 * 2 * 2 * 2 * 2}" in text
    assert f"at least {2 * 2 * 2 * 2 * 5} cases on 2 training images" in text
    assert not out.exists()
    assert not counted


def test_weights_are_tuned_on_training_images_alone(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train = stack(tmp_path / "train.npz", 9)
    result = call(
        data, out, "--images", "1", "--tune-on", str(train), "--tune-images", "2", "--snr", "15",
        methods="tv,tv:lam=0.15,sense", masks="gaussian-2d",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    tuned, given, sense = cases(out)
    tried = [json.loads(line) for line in (out / "tuning.jsonl").read_text().splitlines()]
    assert {record["image"].split("[")[0] for record in tried} == {"train.npz"}
    quality: dict[float, list[float]] = {}
    for record in tried:
        quality.setdefault(record["lam"], []).append(record["psnr"])
    assert all(len(values) == 2 for values in quality.values())
    best = max(quality, key=lambda lam: np.mean(quality[lam]))
    assert float(tuned["lam"]) == pytest.approx(best)
    assert min(quality) < best < max(quality), "the grid went on until its best lay inside"
    assert (tuned["tuned"], given["tuned"], sense["tuned"]) == ("True", "", "")
    assert float(given["lam"]) == 0.15
    # as computed by itself
    scan = simulate_scan(pick_images([data], 1)[0].pixels, Condition("gaussian-2d", 2.0, 15.0, coils=3))
    (candidate,) = parse_methods([f"tv:lam={best}"])
    assert psnr(run_recipe(scan, candidate.recipe).image.numpy(), scan.truth) == pytest.approx(float(tuned["psnr"]))
    assert f"tv (lam {best:.3g}, tuned)" in (out / "summary.md").read_text()
    refused = call(data, out, "--tune-on", str(data), methods="tv")
    assert refused.exit_code == 2
    assert "is of the test images" in words(refused)


def test_a_case_that_fails_is_told_and_the_others_are_there(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(scan: object, recipe: object, *rest: object) -> object:
        if recipe.method == "sense":  # type: ignore[attr-defined]
            raise ValueError("sense: it diverged <here>")
        return run_recipe(scan, recipe, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(running, "run_recipe", failing)
    out = tmp_path / "out"
    result = call(data, out, "--images", "2", masks="uniform-1d")
    assert result.exit_code == 1
    assert "test.npz[0], uniform-1d R 2, SNR 25 dB, 3 coils, sense: sense: it diverged <here>" in words(result)
    assert {row["method"] for row in cases(out)} == {"zero-filled"}
    text = (out / "report.html").read_text()
    assert "2 cases failed" in text
    assert "diverged &lt;here&gt;" in text
    monkeypatch.undo()
    assert call(data, out, "--images", "2", masks="uniform-1d").exit_code == 0, "what failed is tried again"
    assert len(cases(out)) == 4


def test_priors_are_loaded_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scanprior.gadgets import engine as engines

    loaded: list[str] = []

    def loading(name: str, *rest: object) -> object:
        loaded.append(name)
        return original(name, *rest)

    original: Callable[..., object] = engines.load_any_prior
    monkeypatch.setattr(engines, "load_any_prior", loading)
    candidates = parse_methods(["dds:steps=2,samples=1", "dds:steps=3,samples=1"], device="cpu")
    plan = Plan(pick_images([data], 2), candidates, conditions_of({"gaussian-1d": [2.0]}, [None], [], 1, None))
    engine = Engine(candidates[0].recipe)
    try:
        records = Evaluation(plan, tmp_path / "out", engine).run()
    finally:
        engine.close()
    assert [record["nfe"] for record in records] == [22, 23] * 2
    assert loaded == ["small"]
