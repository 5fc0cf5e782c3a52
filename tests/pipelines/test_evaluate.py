"""`scanprior evaluate`: what it writes equals a direct computation, goes on where it was cut, and refuses clearly."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scanprior.gadgets.engine import Engine
from scanprior.models.recipe import RecipeError, load_recipe
from scanprior.pipelines import evaluate as running
from scanprior.pipelines import evaluate_recorded as recorded
from scanprior.pipelines.cli import app
from scanprior.pipelines.evaluate import Evaluation
from scanprior.pipelines.evaluate_methods import parse_methods
from scanprior.pipelines.evaluate_plan import Plan, conditions_of, pick_images
from scanprior.pipelines.evaluate_tables import summarise
from scanprior.pipelines.replay import replay
from scanprior.sim.evaluation import Condition, run_recipe, simulate_scan
from scanprior.sim.image_sources import load_images
from scanprior.sim.metrics import nmse, psnr, ssim
from scanprior.sim.phantoms import brain
from scanprior.sim.scan import simulate
from typer.testing import CliRunner, Result

cli = CliRunner()


def stack(path: Path, seed: int, count: int = 3) -> Path:
    np.savez(path, slices=np.abs(brain((48, 48), count, seed=seed).image))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return stack(tmp_path / "test.npz", 1)


def call(
    data: Path, out: Path, *options: str, methods: str = "zero-filled,sense",
    masks: str = "uniform-1d,gaussian-2d", r: str = "2",
) -> Result:  # fmt: skip
    fixed = ["--methods", methods, "--masks", masks, "--r", r, "--coils", "3", "--device", "cpu"]
    return cli.invoke(app, ["evaluate", "--data", str(data), "--out", str(out), *fixed, *options])


def cases(out: Path) -> list[dict[str, str]]:
    with (out / "cases.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the methods that really ran."""
    ran: list[str] = []

    def counting(scan: object, recipe: object, *rest: object) -> object:
        ran.append(recipe.method)  # type: ignore[attr-defined]
        return run_recipe(scan, recipe, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(running, "run_recipe", counting)
    return ran


class Page(HTMLParser):
    """Checks that tags nest, and keeps the images and the tables' cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[bytes] = []
        self.cells: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        if tag == "img":
            kind, _, content = str(known["src"]).partition(",")
            assert kind == "data:image/png;base64"
            self.images.append(base64.b64decode(content, validate=True))
        self.links += [str(known[name]) for name in ("href", "src") if name in known]
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


def test_what_is_written_equals_a_direct_computation(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = call(data, out, "--snr", "20,none", "--images", "2", "--seed", "3")
    assert result.exit_code == 0, result.output
    found = cases(out)
    assert len(found) == 2 * 2 * 2 * 2
    slices = load_images(data).slices
    for name, image in (("test.npz[0]", slices[0]), ("test.npz[2]", slices[2])):
        for mask in ("uniform-1d", "gaussian-2d"):
            for snr in (20.0, None):
                scan = simulate_scan(image, Condition(mask, 2.0, snr, coils=3), seed=3)
                for method in ("zero-filled", "sense"):
                    (row,) = [
                        row for row in found
                        if (row["image"], row["mask"], row["method"]) == (name, mask, method)
                        and row["snr_db"] == ("" if snr is None else "20.0")
                    ]  # fmt: skip
                    wanted = run_recipe(scan, load_recipe(method)).image.numpy()
                    for key, measure in (("psnr", psnr), ("ssim", ssim), ("nmse", nmse)):
                        assert float(row[key]) == pytest.approx(measure(wanted, scan.truth), rel=1e-5)
                    assert float(row["effective_r"]) == scan.sampling.effective_r == 2.0
                    assert row["cover50"] == row["nfe"] == ""
    with (out / "summary.csv").open(newline="") as file:
        summary = list(csv.DictReader(file))
    assert len(summary) == 8
    row = summary[0]
    mine = [float(c["psnr"]) for c in found if all(c[k] == row[k] for k in ("mask", "snr_db", "r", "method"))]
    assert len(mine) == int(row["images"]) == 2
    assert float(row["psnr"]) == pytest.approx(np.mean(mine))
    assert float(row["psnr_sd"]) == pytest.approx(np.std(mine, ddof=1))
    kept = json.loads((out / "summary.json").read_text())
    assert [float(r["psnr"]) for r in summary] == pytest.approx([r["psnr"] for r in kept["summary"]])
    assert len(kept["cases"]) == 16
    text = (out / "summary.md").read_text()
    assert f"{np.mean(mine):.2f} ± {np.std(mine, ddof=1):.2f}" in text
    assert "weights of l1-wavelet and tv tuned: no: shipped weights" in text


def test_the_page_holds_the_figures_and_loads_nothing(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--images", "1", "--snr", "30"]
    result = call(data, out, *options, methods="sense,sense:lam=1,dds:steps=2,samples=3", r="2,3", masks="gaussian-2d")
    assert result.exit_code == 0, result.output
    page = Page((out / "report.html").read_text())
    files = {path.read_bytes() for path in (out / "figures").glob("*.png")}
    assert len(page.images) == len(files) == 3 + 2, "PSNR, SSIM, calibration, a grid for each R"
    assert set(page.images) == files
    assert all(image.startswith(b"\x89PNG") for image in page.images)
    assert all(link.startswith("data:") for link in page.links)
    assert page.cells.count("dds:steps=2,samples=3") == 2
    assert page.cells.count("sense:lam=1") == 2
    (row,) = [row for row in cases(out) if row["method"].startswith("dds") and row["r"] == "2.0"]
    assert (row["nfe"], row["samples"]) == ("2", "3")
    cover = [float(row[f"cover{percent}"]) for percent in (50, 80, 95)]
    assert 0 < cover[0] < cover[1] < cover[2] <= 1
    assert float(row["error_over_std"]) == pytest.approx(float(row["error_rms"]) / float(row["std_rms"]))
    assert " / ".join(f"{100 * share:.0f}" for share in cover) in page.cells


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


def test_one_seed_is_one_result(data: Path, tmp_path: Path) -> None:
    def numbers(out: Path) -> list[list[str]]:
        return [[v for k, v in row.items() if "seconds" not in k] for row in cases(out)]

    methods = "sense,dds:steps=2,samples=2"
    for name in ("a", "b"):
        assert call(data, tmp_path / name, "--images", "1", methods=methods, masks="poisson-2d").exit_code == 0
    assert numbers(tmp_path / "a") == numbers(tmp_path / "b")


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
    assert "80 images through the network a case" in text
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
    from support import data_dir

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


def test_methods_and_their_changes() -> None:
    found = parse_methods(
        ["sense,tv:lam=0.5,dds:steps=20,samples=4,maps.crop=0.5", "dds:eta=0.5,device=cuda:1"], "bfloat16"
    )
    assert [c.label for c in found] == [
        "sense", "tv:lam=0.5", "dds:steps=20,samples=4,maps.crop=0.5", "dds:eta=0.5,device=cuda:1"
    ]  # fmt: skip
    dds = found[2].recipe
    assert (dds.settings["steps"], dds.settings["samples"], dds.maps.crop) == (20, 4, 0.5)
    assert [c.recipe.precision for c in found] == ["float32", "float32", "bfloat16", "bfloat16"]
    assert found[3].recipe.device == "cuda:1"
    assert [c.tunable for c in found] == [False, False, False, False]
    assert [c.tunable for c in parse_methods(["tv,l1-wavelet:levels=3,sense"])] == [True, True, False]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("grappa", "'grappa' is not known; there are: "),
        ("dds:stepz=3", r"unknown key 'settings.stepz'; there are: samples"),
        ("dds:steps=many", r"settings.steps: .*found 'many'"),
        ("dds:steps=[1", "the value of 'steps' is not YAML"),
        ("dds:maps.crop=2", r"maps\.crop: .*found 2"),
        ("dds:map.crop=2", "'map' is no section of a recipe"),
        ("dds:steps", "expected key=value, found 'steps'"),
        ("steps=3,dds", "expected a recipe before the first change"),
        ("tv,sense,tv", "'tv' is given twice"),
        ("nothing.yaml", "nothing.yaml: cannot be read"),
        (",", "no methods given"),
    ],
)
def test_methods_that_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        parse_methods([text])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--masks", "spiral"], "--masks: 'spiral' is not known; there are: uniform-1d, gaussian-1d"),
        (["--masks", "uniform-1d,uniform-1d"], "--masks: expected one value or several different ones"),
        (["--r", "2,x"], "--r: expected numbers with commas between, found '2,x'"),
        (["--r", "9", "--acs", "12"], "expected 1 to 4.00, got 9"),
        (["--r", "0.5"], "got 0.5"),
        (["--snr", "loud"], "--snr: expected numbers (dB) or none with commas between, found 'loud'"),
        (["--acs", "4"], "the coil maps' kernel needs at least 6"),
        (["--images", "4"], "4 images asked for"),
        (["--precision", "fp8"], "precision: Input should be 'float32', 'bfloat16' or 'float16', found 'fp8'"),
        (["--methods", "dds:prior=nowhere"], "prior 'nowhere' not found"),
        (["--tune-on", "train.npz"], "train.npz does not exist"),
        (["--data", "missing.npz"], "missing.npz does not exist"),
        (["--device", "gpu"], "expected auto, cpu, cuda"),
    ],
)
def test_bad_options_are_named(data: Path, tmp_path: Path, options: list[str], complaint: str) -> None:
    result = call(data, tmp_path / "out", "--methods", "dds:steps=2", *options)
    assert result.exit_code == 2, result.output
    assert complaint in words(result)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"no image", b"PK\x03\x04 cut short"])
def test_damaged_images_are_named(tmp_path: Path, content: bytes) -> None:
    for name in ("broken.npz", "broken.nii"):
        (tmp_path / name).write_bytes(content)
        result = call(tmp_path / name, tmp_path / "out")
        assert result.exit_code == 2, result.output
        assert name in words(result).replace(" ", "")


def test_spread_of_images_and_their_size(tmp_path: Path) -> None:
    path = tmp_path / "many.npz"
    np.savez(path, slices=np.random.default_rng(0).random((10, 64, 48)))
    assert [image.name for image in pick_images([path], 2)] == ["many.npz[2]", "many.npz[7]"]
    assert len(pick_images([path], None)) == 10
    assert {image.pixels.shape for image in pick_images([path], 3, 32)} == {(32, 24)}
    assert pick_images([path], 1, 100)[0].pixels.shape == (64, 48)


def test_the_summary_keeps_methods_of_a_condition_together() -> None:
    base = dict.fromkeys(("acs", "lam", "tuned", "nfe", "samples", "cover50", "cover80", "cover95", "error_rms"))
    base |= dict.fromkeys(("std_rms", "error_over_std", "error_std_corr"))
    records = [
        base | {"mask": mask, "snr_db": snr, "r": r, "method": method, "psnr": p, "ssim": 0.5, "nmse": 0.1,
                "seconds": 1.0, "effective_r": r}
        for mask in "ba" for r in (8.0, 4.0) for snr in (20.0, None) for method in ("y", "x") for p in (20.0, 24.0)
    ]  # fmt: skip
    rows = summarise(records)
    assert [(row["mask"], row["snr_db"], row["r"], row["method"]) for row in rows] == [
        (mask, snr, r, method) for mask in "ba" for snr in (20.0, None) for r in (4.0, 8.0) for method in ("y", "x")
    ]
    assert {(row["psnr"], row["psnr_sd"], row["images"]) for row in rows} == {(22.0, 8**0.5, 2)}


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
    assert [record["nfe"] for record in records] == [2, 3] * 2
    assert loaded == ["small"]


def words(result: Result) -> str:
    """Output without the frame that typer draws around an error, on one line."""
    return " ".join(result.output.replace("│", " ").split())


def test_spokes_probability_and_noise_in_place_of_r_and_snr(data: Path, tmp_path: Path) -> None:
    fixed = ["evaluate", "--data", str(data), "--methods", "zero-filled", "--device", "cpu", "--out"]
    options = ["--masks", "radial,horizontal,gaussian-1d", "--r", "2", "--spokes", "9,20", "--probability", "0.3"]
    options += ["--noise", "0.01,0.05", "--phase", "0", "--coils", "1", "--images", "1"]
    result = cli.invoke(app, [*fixed, str(tmp_path / "out"), *options])
    assert result.exit_code == 0, result.output
    found = cases(tmp_path / "out")
    every = (("radial", 9.0), ("radial", 20.0), ("horizontal", 0.3), ("gaussian-1d", 2.0))
    assert {(case["mask"], float(case["r"]), float(case["noise"])) for case in found} == {
        (mask, amount, noise) for mask, amount in every for noise in (0.01, 0.05)
    }
    largest = pick_images([data], 1)[0].pixels.max()
    for case in found:
        assert float(case["sigma"]) == pytest.approx(2**0.5 * float(case["noise"]) * largest, rel=1e-4)
    text = (tmp_path / "out" / "summary.md").read_text()
    assert "## radial, noise 0.05" in text
    assert "| 20 spokes (" in text
    for wrong, message in (
        (["--snr", "20", "--noise", "0.1"], "give one of them"),
        (["--spokes", "5"], "none of the masks uniform-1d, gaussian-2d goes by it"),
        (["--masks", "radial", "--r", "4"], "--r: none of the masks radial goes by it"),
    ):
        refused = cli.invoke(app, [*fixed, str(tmp_path / "no"), *wrong])
        assert refused.exit_code == 2
        assert message in words(refused)
