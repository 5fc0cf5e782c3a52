"""The engine: which recipe a scan gets, and that priors go to the methods that they are for and are warmed up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scanprior.gadgets.engine import Engine
from scanprior.models.prior import PriorError
from scanprior.models.recipe import Recipe, RecipeError, load_recipe, recipe_from
from scanprior.models.vae_prior import build_vae, save_vae


@pytest.fixture
def fixed_size(tmp_path: Path) -> str:
    """A VAE prior of 32 x 32 images."""
    network = {"parts": 1, "size": 32, "latent": 3, "widths": [4, 4], "middle": 4, "covariance": "diagonal"}
    torch.manual_seed(0)
    save_vae(tmp_path / "fixed.safetensors", build_vae(network), {"network": network})
    return str(tmp_path / "fixed.safetensors")


def recipe(method: str, prior: str) -> Recipe:
    return recipe_from({"method": method, "prior": prior, "device": "cpu"}, f"{method} of the test")


@pytest.mark.filterwarnings("error")
def test_a_prior_of_one_size_is_warmed_up_on_it(engine: Engine, fixed_size: str) -> None:
    assert engine.warm_up(recipe("vae", fixed_size)) > 0


def test_a_prior_of_another_family_is_refused(engine: Engine, fixed_size: str) -> None:
    for method, prior, found, wanted in (("dds", fixed_size, "vae", "diffusion"), ("vae", "small", "diffusion", "vae")):
        with pytest.raises(PriorError, match=rf"is of the family '{found}'; the method '{method}' .* wants '{wanted}'"):
            engine.prior(recipe(method, prior))


def test_which_recipe_a_scan_gets(engine: Engine) -> None:
    told: list[tuple[str, str]] = []

    def recipe(**parameters: str) -> Recipe:
        return engine.recipe(parameters, lambda level, text: told.append((level, text)))

    assert recipe().name == "sense"
    assert recipe(recipe="tv", config="zero-filled").name == "tv"
    assert recipe(config="zero-filled").name == "zero-filled"
    assert not told
    assert recipe(config="default.xml").name == "sense"
    assert told == [("warning", "configuration 'default.xml' is no recipe of ours: recipe 'sense' is used")]
    assert recipe(recipe="dds", device="auto").device == "auto", "the scan's word is the last"
    assert recipe(recipe="dds").device == "cpu", "the engine's before the recipe's"


def test_parameters_that_nobody_knows_are_logged(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    engine.recipe({"sampels": "3", "std": "true"})
    assert "parameters that are not ours are left alone: 'sampels'" in caplog.text


def test_a_prior_is_loaded_once(engine: Engine) -> None:
    recipe = engine.recipe({"recipe": "dds"})
    assert engine.prior(recipe) is engine.prior(recipe)
    assert engine.prior(engine.recipe({})) is None


@pytest.mark.parametrize("name", ["sense", "zero-filled", "tv", "l1-wavelet"])
def test_warm_up_runs_every_method(name: str) -> None:
    running = Engine(name, device="cpu")
    try:
        assert running.warm_up() > 0
    finally:
        running.close()


def test_the_engines_device_is_checked_at_once() -> None:
    with pytest.raises(RecipeError, match=r"device: expected auto, cpu, cuda or cuda:<number> .*, found 'gpu0'"):
        Engine("sense", device="gpu0")


def test_warm_up_runs_where_the_scans_will(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server told to use a device warmed up on that of its recipe, and the first scan loaded the prior anew."""
    running = Engine(load_recipe("sense").on("cuda:7"), device="cpu")
    try:
        running.warm_up()
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        with pytest.raises(RuntimeError, match="asks for device 'cuda:7', and there are only 2 here"):
            running.device(running.default.on("cuda:7"))
    finally:
        running.close()
