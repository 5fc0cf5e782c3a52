"""`scanprior make-mask`, `learn-mask`, and `evaluate` with a mask file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from evaluations import cases, cli, stack, words
from networks import SMALL, small_network
from scanprior.models.preconditioning import EDMDenoiser
from scanprior.models.prior import load_prior, save_prior
from scanprior.pipelines.cli import app
from scanprior.sim.mask_comparison import Interval, difference, scores, weights_hash
from scanprior.sim.mask_families import FAMILIES
from scanprior.sim.mask_file import load_mask
from scanprior.sim.mask_objectives import judge


@pytest.fixture
def prior(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    description = {"network": SMALL["unet"], "sigma_min": 0.002, "sigma_max": 80.0}
    save_prior(path, EDMDenoiser(small_network("unet"), 0.3), description)
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mask_of_each_family(family: str, tmp_path: Path) -> None:
    out = tmp_path / "m.npz"
    amount = {"spokes": "12", "probability": "0.3"}.get(FAMILIES[family].amount, "4")
    result = cli.invoke(
        app, ["make-mask", family, str(out), "--matrix", "48,40", "--r", amount, "--fov", "240,200,150"]
    )
    assert result.exit_code == 0, result.output
    mask = load_mask(out)
    lines = FAMILIES[family].dimensions == 1
    assert mask.matrix == ((48, 48, 1) if lines else (48, 48, 40))
    assert mask.fov_mm == (240, 200, 150)
    assert mask.made_by == family
    if FAMILIES[family].amount == "R":
        assert mask.samples == round(mask.mask.size / 4)
    assert (tmp_path / "m.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["spiral"], "'spiral' is not known; there are: uniform-1d"),
        (["poisson-2d", "--matrix", "48"], "of points, expected y,z, found '48'"),
        (["uniform-1d", "--matrix", "48", "--r", "0.5"], "got 0.5"),
        (["uniform-1d", "--matrix", "48", "--r", "9", "--acs", "12"], "expected 1 to 4.00, got 9"),
        (["uniform-1d", "--matrix", "x"], "--matrix: expected whole numbers from 1 with commas between, found 'x'"),
        (["uniform-1d", "--matrix", "inf"], "--matrix: expected whole numbers from 1 with commas between, found 'inf'"),
        (["poisson-2d", "--matrix", "nan,32"], "--matrix: expected whole numbers"),
        (["poisson-2d", "--matrix", "32.7,99"], "--matrix: expected whole numbers"),
        (["poisson-2d", "--matrix", "32,-99"], "--matrix: expected whole numbers"),
        (["poisson-2d", "--matrix", "32,99,1"], "of points, expected y,z, found '32,99,1'"),
        (["uniform-1d", "--matrix", "32,99,1"], "of lines, expected y, found '32,99,1'"),
        (["uniform-1d", "--matrix", "7"], "--matrix: expected sizes from 8 to 65535, found '7'"),
        (["uniform-1d", "--matrix", "70000"], "--matrix: expected sizes from 8 to 65535, found '70000'"),
        (["uniform-1d", "--matrix", "48", "--r", "inf"], "R: expected a finite number from 1, got inf"),
        (["poisson-2d", "--matrix", "48,48", "--r", "nan"], "R: expected a finite number from 1, got nan"),
        (["uniform-1d", "--matrix", "48", "--r", "0"], "R: expected a finite number from 1, got 0"),
        (["uniform-1d", "--matrix", "48", "--r", "0", "--acs", "8"], "got 0"),
        (["uniform-1d", "--matrix", "48", "--r", "nan", "--acs", "8"], "got nan"),
        (["radial", "--matrix", "48,48", "--r", "inf"], "spokes: expected a whole number from 1, got inf"),
        (["uniform-1d", "--fov", "1,2"], "--fov: expected three lengths x,y,z"),
        (["uniform-1d", "--fov", "230,inf,4"], "fov_mm: expected three lengths"),
    ],
)
def test_masks_that_are_refused(arguments: list[str], complaint: str, tmp_path: Path) -> None:
    out = tmp_path / "m.npz"
    result = cli.invoke(app, ["make-mask", arguments[0], str(out), *arguments[1:]])
    assert result.exit_code == 1
    assert complaint in words(result)
    assert not out.exists()


def test_an_unrelated_json_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "h.json").write_text('{"mine": 1}')
    result = cli.invoke(app, ["make-mask", "uniform-1d", str(tmp_path / "h.npz"), "--matrix", "48"])
    assert result.exit_code == 1
    assert "h.json: is there already and is no description of ours" in words(result)
    assert [path.name for path in tmp_path.iterdir()] == ["h.json"]
    assert (tmp_path / "h.json").read_text() == '{"mine": 1}'


@pytest.mark.parametrize(
    ("arguments", "fov"),
    [(["uniform-1d", "--matrix", "48"], (230, 230, 4)), (["poisson-2d", "--matrix", "48,24"], (230, 230, 115))],
)
def test_the_usual_field_of_view_has_voxels_that_can_be_meant(
    arguments: list[str], fov: tuple[float, ...], tmp_path: Path
) -> None:
    result = cli.invoke(app, ["make-mask", arguments[0], str(tmp_path / "m.npz"), *arguments[1:]])
    assert result.exit_code == 0, result.output
    assert load_mask(tmp_path / "m.npz").fov_mm == fov


@pytest.mark.parametrize(
    ("learner", "kind", "coils", "objective"),
    [("gumbel", "lines", 3, "posterior-mean"), ("greedy", "points", 1, "reconstruction")],
)
def test_learning_writes_mask_pictures_and_report(
    learner: str, kind: str, coils: int, objective: str, tmp_path: Path, prior: Path
) -> None:
    train, test, out = stack(tmp_path / "train.npz", 1), stack(tmp_path / "test.npz", 2), tmp_path / "out"
    options = [
        "--learner",
        learner,
        "--kind",
        kind,
        "--objective",
        objective,
        "--coils",
        str(coils),
        "--prior",
        str(prior),
        "--r",
        "4",
    ]
    options += ["--acs", "8", "--images", "2", "--steps", "6", "--together", "100", "--evaluations", "2"]
    options += ["--method", "pnp-admm:samples=0,iterations=2,sigma_start=0.5,sigma=0.3,penalty=3", "--best-of", "2"]
    options += ["--device", "cpu", "--seed", "3", "--fov", "220,200,4"]
    call = ["learn-mask", "--data", str(train), "--test", str(test), "--out", str(out), *options]
    result = cli.invoke(app, call)
    assert result.exit_code == 0, result.output
    mask = load_mask(out / "mask.npz")
    assert mask.kind == kind
    assert mask.samples == (12 if kind == "lines" else 576)
    assert mask.made_by == f"learned-{learner}"
    assert mask.prior == "tiny"
    assert mask.prior_sha256 == weights_hash(load_prior(str(prior)).weights())
    assert (mask.seed, mask.asked_r, mask.fov_mm) == (3, 4.0, (220.0, 200.0, 4.0))
    assert mask.settings["learning"]["learner"] == learner
    assert mask.settings["scans"]["coils"] == coils
    assert "2 images: train" in mask.data
    report = (out / "report.md").read_text()
    assert f"{mask.samples} {kind}" in report
    assert "On 3 test images" in report
    assert ("| best of 2 gaussian-1d |" if kind == "lines" else "| best of 2 poisson-2d |") in report
    assert len(json.loads((out / "learning.json").read_text())["losses"]) == 6, "steps, or hundreds of 576 - 64 points"
    assert (out / "mask.png").is_file()
    assert (out / "learning.png").is_file()
    assert not list(out.glob("*partial*"))
    # the same seed, the same mask; and the mask is one to evaluate with
    again = cli.invoke(app, ["learn-mask", "--data", str(train), "--out", str(tmp_path / "again"), *options])
    assert again.exit_code == 0, again.output
    assert load_mask(tmp_path / "again" / "mask.npz").sha256 == mask.sha256
    assert "Not compared" in (tmp_path / "again" / "report.md").read_text()


@pytest.mark.parametrize("learner", ["gumbel", "greedy"])
def test_a_cut_run_goes_on(learner: str, tmp_path: Path, prior: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = stack(tmp_path / "train.npz", 1)
    fixed = ["learn-mask", "--data", str(train), "--images", "2", "--prior", str(prior), "--coils", "1", "--acs", "8"]
    fixed += ["--learner", learner, "--steps", "6", "--together", "1", "--shortlist", "2", "--device", "cpu"]
    fixed += ["--objective", "data-consistency", "--best-of", "0", "--exchanges", "2"]
    fixed += ["--method", "pnp-admm:samples=0,iterations=2,sigma_start=0.5,sigma=0.3,penalty=3"]
    out = tmp_path / "out"
    assert cli.invoke(app, [*fixed, "--r", "4", "--out", str(tmp_path / "whole")]).exit_code == 0
    expected = load_mask(tmp_path / "whole" / "mask.npz")
    assert not (tmp_path / "whole" / "learning.safetensors").exists()

    monkeypatch.setattr("scanprior.sim.mask_checkpoint.Checkpoint.due", lambda self: True)
    calls = []

    def counted(*arguments: object) -> object:
        calls.append(len(calls))
        if len(calls) == 5:
            raise RuntimeError("the machine is gone")
        return judge(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("scanprior.sim.mask_learning.judge", counted)
        result = cli.invoke(app, [*fixed, "--r", "4", "--out", str(out)])
    assert result.exit_code == 1
    assert "the machine is gone" in words(result)
    assert [path.name for path in out.iterdir()] == ["learning.safetensors"]
    refused = cli.invoke(app, [*fixed, "--r", "3", "--out", str(out)])
    assert refused.exit_code == 1
    assert "learning.safetensors: an unfinished learning with other settings, images or prior" in words(refused)
    assert [path.name for path in out.iterdir()] == ["learning.safetensors"]

    with monkeypatch.context() as patch:
        patch.setattr("scanprior.pipelines.mask_learning.own_version", lambda: "another")
        refused = cli.invoke(app, [*fixed, "--r", "4", "--out", str(out)])
    assert refused.exit_code == 1
    assert "or of another device or version" in words(refused)

    before = len(calls)
    with monkeypatch.context() as patch:
        patch.setattr("scanprior.sim.mask_learning.judge", counted)
        result = cli.invoke(app, [*fixed, "--r", "4", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert load_mask(out / "mask.npz").sha256 == expected.sha256
    assert not (out / "learning.safetensors").exists()
    # 6 steps of one image; or of two images 4 steps, the pattern to exchange in, 2 exchanges: four judges were made
    # before the cut, the rest after it
    assert len(calls) - before == (2 if learner == "gumbel" else 4 + 2 + 4)
    losses = [json.loads((folder / "learning.json").read_text())["losses"] for folder in (out, tmp_path / "whole")]
    assert losses[0] == losses[1]


def test_a_cut_comparison_goes_on(tmp_path: Path, prior: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = stack(tmp_path / "train.npz", 1), stack(tmp_path / "test.npz", 2)
    fixed = ["learn-mask", "--data", str(train), "--images", "1", "--prior", str(prior), "--coils", "1", "--acs", "8"]
    fixed += ["--together", "9", "--objective", "data-consistency", "--device", "cpu", "--best-of", "2"]
    fixed += ["--method", "pnp-admm:samples=0,iterations=2,sigma_start=0.5,sigma=0.3,penalty=3", "--r", "4"]
    out, whole = tmp_path / "out", tmp_path / "whole"
    with_test = [*fixed, "--test", str(test)]
    calls = []
    assert cli.invoke(app, [*with_test, "--out", str(whole)]).exit_code == 0

    def counted(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == cut:
            raise RuntimeError("the machine is gone")
        return scores(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("scanprior.pipelines.mask_learning.scores", counted)
    # the mask, two draws, learned, uniform-1d, gaussian-1d, the best of the draws
    cut = 6
    result = cli.invoke(app, [*with_test, "--out", str(out)])
    assert result.exit_code == 1
    assert "the machine is gone" in words(result)
    assert {"mask.npz", "learning.safetensors", "comparison.json"} < {path.name for path in out.iterdir()}
    calls.clear()
    cut = 0
    assert cli.invoke(app, [*with_test, "--out", str(out)]).exit_code == 0
    assert len(calls) == 3, "validation of the mask, gaussian-1d, the best of the draws"
    reports = [(folder / "report.md").read_text().split("On 3 test images")[1] for folder in (out, whole)]
    assert reports[0] == reports[1]
    assert not {"learning.safetensors", "comparison.json"} & {path.name for path in out.iterdir()}


def test_learning_that_is_refused(tmp_path: Path, prior: Path) -> None:
    train, other = stack(tmp_path / "train.npz", 1), stack(tmp_path / "other.npz", 2)
    fixed = ["learn-mask", "--data", str(train), "--images", "2", "--out", str(tmp_path / "out"), "--prior", str(prior)]
    for options, complaint in (
        (["--r", "9", "--acs", "12"], "R 9: with 12 ACS lines of 48 expected 1 to 4.00"),
        (["--acs", "4"], "coil maps' kernel needs at least 6"),
        (["--kind", "spirals"], "expected lines or points"),
        (["--learner", "luck"], "learner"),
        (["--objective", "luck"], "kind"),
        (["--sigma", "1"], "sigma: not of the objective reconstruction"),
        (["--prior", "nothing"], "'nothing' not found"),
        (["--test", str(train)], "is of the training images too: test on others"),
        (["--validation", str(train), "--validation-images", "2"], "is of the training images too: validate on others"),
        (
            ["--validation", str(other), "--validation-images", "2", "--test", str(other)],
            "is of the validation images too: test on others",
        ),
        (["--images", "9"], "9 images asked for"),
    ):
        result = cli.invoke(app, [*fixed, *options])
        assert result.exit_code == 2, result.output
        assert complaint in words(result)
    assert not (tmp_path / "out").exists()


def test_a_mask_file_in_an_evaluation(tmp_path: Path) -> None:
    data = stack(tmp_path / "test.npz", 1, 2)
    path = tmp_path / "mine.npz"
    made = ["make-mask", "gaussian-1d", str(path), "--matrix", "48", "--r", "3", "--acs", "8", "--seed"]
    assert cli.invoke(app, [*made, "1"]).exit_code == 0
    fixed = ["evaluate", "--data", str(data), "--methods", "sense", "--coils", "3", "--device", "cpu"]
    both = [*fixed, "--masks", f"uniform-1d,{path}", "--r", "2", "--out", str(tmp_path / "out")]
    result = cli.invoke(app, both)
    assert result.exit_code == 0, result.output
    found = [case for case in cases(tmp_path / "out") if case["mask"] == "mine.npz"]
    assert [(float(case["effective_r"]), case["acs"]) for case in found] == [(3.0, "8")] * 2
    assert "## mine.npz" in (tmp_path / "out" / "summary.md").read_text()
    # another pattern under the same name is another case; the same pattern is not
    assert "of these are done: 4" in words(cli.invoke(app, [*both, "--dry-run"]))
    assert cli.invoke(app, [*made, "2"]).exit_code == 0
    assert "of these are done: 2" in words(cli.invoke(app, [*both, "--dry-run"]))
    for masks, options, complaint in (
        (str(path), ["--r", "2"], "--r: none of the masks"),
        (str(path), ["--acs", "8"], "--acs: mask files have their own"),
        (str(tmp_path / "none.npz"), [], "no such file"),
        (f"{path},{tmp_path / 'other' / 'mine.npz'}", [], "two files are called mine.npz"),
    ):
        refused = cli.invoke(app, [*fixed, "--masks", masks, "--out", str(tmp_path / "no"), *options])
        assert refused.exit_code == 2, refused.output
        assert complaint in words(refused)
    wide = tmp_path / "wide.npz"
    np.savez(wide, slices=np.ones((1, 64, 48), np.float32))
    refused = cli.invoke(
        app,
        ["evaluate", "--data", str(wide), "--methods", "sense", "--masks", str(path), "--out", str(tmp_path / "no")],
    )
    assert refused.exit_code == 2
    assert "its matrix (y, z) is (48, 1), an image of 64 x 48 needs (64, 1)" in words(refused)


def test_intervals() -> None:
    found = Interval.of([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert found.half == pytest.approx(4.302653 / 3**0.5, rel=1e-6)  # Student's t, two degrees of freedom
    assert np.isnan(Interval.of([1.0]).half)
    paired = difference([2.0, 12.0, 22.0], [1.0, 11.0, 21.0])
    assert (paired.mean, paired.half) == (1.0, 0.0)
