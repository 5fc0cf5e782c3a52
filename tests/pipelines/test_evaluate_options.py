"""`scanprior evaluate`: methods, images and options, and how wrong ones are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from evaluations import call, words
from scanprior.models.recipe import RecipeError
from scanprior.pipelines.evaluate_methods import parse_methods
from scanprior.pipelines.evaluate_plan import pick_images


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
    weights = parse_methods(["tv,l1-wavelet:levels=3,sense,vae,vae:lam=2"])
    assert [c.tunable for c in weights] == [True, True, False, True, False]


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
        (["--masks", "spiral"], "--masks: 'spiral' is not known; there are: uniform-1d, random-1d"),
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
