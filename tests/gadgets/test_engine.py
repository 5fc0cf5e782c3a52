"""The engine: priors go to the methods that they are for, and are warmed up on a size that they take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from scanprior.gadgets.engine import Engine
from scanprior.models.prior import PriorError
from scanprior.models.recipe import Recipe, recipe_from
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


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(recipe_from({"method": "sense"}, "sense"), threads=1)
    yield engine
    engine.close()


@pytest.mark.filterwarnings("error")
def test_a_prior_of_one_size_is_warmed_up_on_it(engine: Engine, fixed_size: str) -> None:
    assert engine.warm_up(recipe("vae", fixed_size)) > 0


def test_a_prior_of_another_family_is_refused(engine: Engine, fixed_size: str) -> None:
    for method, prior, found, wanted in (("dds", fixed_size, "vae", "diffusion"), ("vae", "small", "diffusion", "vae")):
        with pytest.raises(PriorError, match=rf"is of the family '{found}'; the method '{method}' .* wants '{wanted}'"):
            engine.prior(recipe(method, prior))
