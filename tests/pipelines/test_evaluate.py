"""`scanprior evaluate`: what it writes equals a direct computation."""

from __future__ import annotations

import base64
import csv
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from evaluations import call, cases, cli, words
from scanprior.models.recipe import load_recipe
from scanprior.pipelines.cli import app
from scanprior.pipelines.evaluate_plan import pick_images
from scanprior.pipelines.evaluate_tables import summarise
from scanprior.sim.evaluation import Condition, run_recipe, simulate_scan
from scanprior.sim.image_sources import load_images
from scanprior.sim.metrics import nmse, psnr, ssim


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
    assert "weights of l1-wavelet, tv and vae tuned: no: shipped weights" in text


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
    assert (row["nfe"], row["samples"], row["evaluations"]) == ("22", "3", "20 + 2 x 3")
    cover = [float(row[f"cover{percent}"]) for percent in (50, 80, 95)]
    assert 0 < cover[0] < cover[1] < cover[2] <= 1
    assert float(row["error_over_std"]) == pytest.approx(float(row["error_rms"]) / float(row["std_rms"]))
    assert " / ".join(f"{100 * share:.0f}" for share in cover) in page.cells


def test_one_seed_is_one_result(data: Path, tmp_path: Path) -> None:
    def numbers(out: Path) -> list[list[str]]:
        return [[v for k, v in row.items() if "seconds" not in k] for row in cases(out)]

    methods = "sense,dds:steps=2,samples=2"
    for name in ("a", "b"):
        assert call(data, tmp_path / name, "--images", "1", methods=methods, masks="poisson-2d").exit_code == 0
    assert numbers(tmp_path / "a") == numbers(tmp_path / "b")


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
