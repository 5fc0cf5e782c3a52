"""`scanprior inspect-prior`, end to end on small priors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from networks import SMALL, small_network
from scanprior.models.preconditioning import EDMDenoiser
from scanprior.models.prior import save_prior
from scanprior.models.vae_prior import build_vae, save_vae
from scanprior.pipelines.cli import app
from scanprior.pipelines.prior_figure import overlay
from typer.testing import CliRunner

RUNNER = CliRunner()


def vae_file(folder: Path, **arguments: object) -> Path:
    network = {"latent": 4, "widths": [8, 8], "middle": 8} | arguments
    torch.manual_seed(0)
    vae = build_vae(network)
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    path = folder / "vae.safetensors"
    save_vae(path, vae, {"network": network})
    return path


def diffusion_file(folder: Path) -> Path:
    path = folder / "diffusion.safetensors"
    denoiser = EDMDenoiser(small_network("unet"), 0.3)
    description = {"network": SMALL["unet"] | {"image_channels": 2}, "sigma_min": 0.01, "sigma_max": 10.0}
    save_prior(path, denoiser, description)
    return path


def image_file(folder: Path, shape: tuple[int, int]) -> Path:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    disc = (np.hypot(rows - shape[0] / 2, columns - shape[1] / 2) < min(shape) / 3).astype(np.float32)
    np.savez(folder / "image.npz", slices=np.stack([disc, disc + 0.1]))
    return folder / "image.npz"


def run(*arguments: object) -> tuple[int, str]:
    result = RUNNER.invoke(app, ["inspect-prior", *map(str, arguments)], env={"COLUMNS": "400", "TERM": "dumb"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())


def picture(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return imread(path)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ({"parts": 1, "size": 32, "neighbourhood": 3}, []),
        ({"parts": 2, "size": None, "neighbourhood": 5}, ["--pixel", "5,6", "--pixel", "20,21"]),
        ({"parts": 1, "size": None, "covariance": "diagonal"}, ["--size", "24"]),
    ],
)
def test_a_vae_prior_in_one_picture(tmp_path: Path, arguments: dict[str, object], options: list[str]) -> None:
    path, out = vae_file(tmp_path, **arguments), tmp_path / "a.png"
    code, told = run(path, "--image", image_file(tmp_path, (40, 36)), "--out", out, *options)
    assert code == 0, told
    shown = picture(out)[..., :3]
    assert shown.shape[0] > shown.shape[1] > 500
    red = (shown[..., 0] > shown[..., 2] + 0.3).mean()
    blue = (shown[..., 2] > shown[..., 0] + 0.3).mean()
    assert red > 0.01  # residuals have both signs
    assert blue > 0.01


def test_the_seed_decides_the_draws(tmp_path: Path) -> None:
    path = vae_file(tmp_path, parts=1, size=32)
    found = []
    for seed in (1, 1, 2):
        code, told = run(path, "--seed", seed, "--out", tmp_path / "a.png")
        assert code == 0, told
        found.append(picture(tmp_path / "a.png"))
    assert np.array_equal(found[0], found[1])
    assert not (found[0].shape == found[2].shape and np.array_equal(found[0], found[2]))


def test_a_diffusion_prior_in_one_picture(tmp_path: Path) -> None:
    path = diffusion_file(tmp_path)
    code, told = run(path, "--size", 16, "--out", tmp_path / "draws.png")
    assert code == 0, told
    code, told = run(path, "--size", 16, "--image", image_file(tmp_path, (20, 16)), "--out", tmp_path / "both.png")
    assert code == 0, told
    assert len(picture(tmp_path / "both.png")) > len(picture(tmp_path / "draws.png"))
    code, told = run(path, "--size", 16, "--pixel", "3,3", "--out", tmp_path / "no.png")
    assert code == 1
    assert "--pixel is for covariances of VAE priors" in told


def test_what_cannot_be_shown_is_said(tmp_path: Path) -> None:
    path, image, out = vae_file(tmp_path, parts=1, size=32), image_file(tmp_path, (32, 32)), tmp_path / "a.png"
    for options, told in (
        (["--pixel", "32,0"], "pixel y,x = 32,0 is not in images of (y, x) = (32, 32)"),
        (["--pixel", "3"], "expected y,x as two whole numbers, got '3'"),
        (["--size", "64"], "is for images of 32x32, found --size 64"),
        (["--slice", "0"], "--slice is of an --image"),
        (["--image", str(image), "--slice", "2"], "has the slices 0 to 1"),
        (["--image", str(path)], "found a file that is none of these"),
        (["--image", str(tmp_path / "none.npz")], "none.npz"),
        (["--out", str(tmp_path / "a.jpg")], "ends in .png"),
    ):
        code, found = run(path, "--out", out, *options)
        assert code != 0
        assert told in found
    code, found = run("no-such-prior", "--out", out)
    assert code == 1
    assert "prior 'no-such-prior' not found" in found
    assert not out.exists()


def test_help_shows_an_example() -> None:
    code, told = run("--help")
    assert code == 0
    assert "Example: scanprior inspect-prior" in told


def test_red_is_positive_and_blue_negative() -> None:
    colours = overlay(np.array([[1.0, -2.0, 0.0]]), 1.0, None)
    assert colours[0, 0, 0] > 0.8 > colours[0, 0, 2]
    assert colours[0, 1, 2] > 0.8 > colours[0, 1, 0]
    assert (colours[0, 2] == 1).all()
    assert overlay(np.zeros((1, 1)), 1.0, np.full((1, 1), 0.5))[0, 0, 0] == pytest.approx(0.425)
