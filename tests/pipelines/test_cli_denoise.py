"""`scanprior denoise` from the file to the images: SNR units, what the residual says, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
import pytest
from scanprior.gadgets.engine import Engine
from scanprior.models.recipe import recipe_from
from scanprior.pipelines.cli import app
from scanprior.pipelines.replay import replay
from scanprior.pipelines.training_data import RECIPE
from scanprior.sim.scan import simulate
from typer.testing import CliRunner

SIZE = 96


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scans") / "full.h5"
    simulate(path, matrix=SIZE, coils=4, mask="full", snr_db=18, seed=1)
    return path


def denoise(scan: Path, out: Path, *options: str) -> Any:
    return CliRunner().invoke(app, ["denoise", str(scan), "--out", str(out), "--threads", "1", *options])


def noisy_image(scan: Path) -> np.ndarray:
    """Magnitude (y, x) of the least-squares image, by the recipe that makes training images."""
    engine = Engine(recipe_from(RECIPE, "noisy"), threads=1)
    try:
        images, _ = replay(scan, engine, None)
    finally:
        engine.close()
    return np.abs(images[0].data[0, 0])


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def test_images_are_nearer_to_the_truth_and_in_snr_units(scan: Path, tmp_path: Path) -> None:
    done = denoise(scan, tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "noise 1 (noise scan)" in done.output
    told = json.loads((tmp_path / "out" / "report.json").read_text())["images"][0]
    assert told["sigma"] == pytest.approx(1.0, rel=1e-6)
    assert told["noise_found"] == pytest.approx(1.0, abs=0.1)
    assert "warning" not in told
    dataset = ismrmrd.Dataset(str(tmp_path / "out" / "images.h5"), "dataset", False)
    image, std = dataset.read_image("image_1", 0), dataset.read_image("image_2", 0)
    dataset.close()
    assert "method tweedie" in image.meta["ImageProcessingHistory"]
    with np.load(scan.with_name("full_truth.npz")) as truth:
        inverse = np.linalg.inv(truth["noise_cov"].astype(np.complex128))
        weight = np.einsum("cyx,cd,dyx->yx", truth["maps"][0].conj(), inverse, truth["maps"][0], optimize=True)
        wanted = np.abs(truth["image"][0, 0]) * np.sqrt(2 * weight.real)
        inside = truth["object"][0]
    noisy = noisy_image(scan)
    assert rms((noisy - wanted)[inside]) == pytest.approx(1.0, abs=0.05), "SNR units"
    rmse = rms((np.abs(image.data[0, 0]) - wanted)[inside])
    assert rmse < 0.75
    assert rms(std.data[0, 0][inside]) == pytest.approx(rmse, rel=0.3)


@pytest.mark.parametrize(("sigma", "complaint"), [("0.5", "too low"), ("2", "too high")])
def test_a_wrong_noise_level_is_told(scan: Path, tmp_path: Path, sigma: str, complaint: str) -> None:
    done = denoise(scan, tmp_path / "out", "--sigma", sigma)
    assert done.exit_code == 0, done.output
    assert "WARNING" in done.output
    assert complaint in done.output
    told = json.loads((tmp_path / "out" / "report.json").read_text())["images"][0]
    assert complaint in told["warning"]
    dataset = ismrmrd.Dataset(str(tmp_path / "out" / "images.h5"), "dataset", False)
    assert complaint in dataset.read_image("image_1", 0).meta["ImageComments"]
    dataset.close()


def test_what_is_refused(scan: Path, tmp_path: Path) -> None:
    simulate(tmp_path / "r2.h5", matrix=SIZE, coils=4, mask="uniform", r=2, acs=24, seed=1)
    done = denoise(tmp_path / "r2.h5", tmp_path / "out")
    assert done.exit_code == 1
    assert "this one has R = 1.6" in done.output
    done = denoise(scan, tmp_path / "out", "--prior", "none")
    assert done.exit_code == 1
    assert "prior 'none' not found" in done.output
    done = denoise(scan, tmp_path / "out", "--prior", "vae")
    assert done.exit_code == 1
    assert "diffusion" in done.output
    assert denoise(scan, tmp_path / "out", "--sigma", "-1").exit_code == 2


@pytest.mark.parametrize(
    ("options", "sigma"),
    [({"averages": 2}, 0.5**0.5), ({"three_d": True, "slices": 24, "matrix": 48}, 1.0), ({"noise_dwell": 2.5}, 1.0)],
)
def test_the_noise_of_other_full_scans_is_known(tmp_path: Path, options: dict[str, Any], sigma: float) -> None:
    """Averages make it less; volumes and noise scans of another bandwidth do not change it."""
    simulate(tmp_path / "scan.h5", **{"matrix": SIZE, "coils": 4, "mask": "full", "snr_db": 18, "seed": 2, **options})
    done = denoise(tmp_path / "scan.h5", tmp_path / "out")
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "out" / "report.json").read_text())["images"][0]
    assert told["sigma"] == pytest.approx(sigma, rel=1e-5)
    assert told["noise_found"] == pytest.approx(1.0, abs=0.15)
    assert "warning" not in told
