"""The commands that make priors, and what a recipe asks of the one that it loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from networks import SMALL, small_network
from safetensors.torch import save_file
from scanprior.gadgets import engine as engine_module
from scanprior.gadgets.engine import Engine
from scanprior.models.prior import load_prior
from scanprior.models.recipe import recipe_from
from scanprior.pipelines.cli import app
from typer.testing import CliRunner

RUNNER = CliRunner()


def mapping(folder: Path) -> Path:
    save_file({f"net.{n}": t for n, t in small_network("ncsnv2").state_dict().items()}, folder / "w.safetensors")
    path = folder / "theirs.yaml"
    description = {"weights": "w.safetensors", "kind": "ncsnv2", "network": SMALL["ncsnv2"], "sigma_min": 0.01}
    description |= {"sigma_max": 50.0, "sigma_data": 0.3, "scale": [99, 1], "rename": [["^", "net."]]}
    path.write_text(yaml.safe_dump(description))
    return path


def test_foreign_weights_are_converted(tmp_path: Path) -> None:
    path = mapping(tmp_path)
    result = RUNNER.invoke(app, ["convert-prior", str(path), str(tmp_path / "own.safetensors")])
    assert result.exit_code == 0, result.output
    assert "(ncsnv2, ncsnv2, sigma 0.01 to 50)" in " ".join(result.output.split())
    x = torch.ones(16, 16, dtype=torch.complex64)
    assert torch.equal(
        load_prior(str(tmp_path / "own.safetensors")).denoise(x, 0.1), load_prior(str(path)).denoise(x, 0.1)
    )
    (tmp_path / "w.safetensors").unlink()
    result = RUNNER.invoke(app, ["convert-prior", str(path), str(tmp_path / "own.safetensors")])
    assert result.exit_code == 1
    assert "not a safetensors file that can be read" in result.output


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--network", "ncsnpp", "--loss", "ve", "--widths", "8,16", "--blocks", "1"], "kind='ve'"),
        (["--network", "ncsnpp", "--network-option", "attention=[4]", "--channels", "1"], "'attention': [4]"),
        (["--loss", "vp"], "loss 'vp' is not known"),
        (["--loss", "ve"], "loss 've' with network 'unet'"),
        (["--network-option", "depth=3"], "has no argument 'depth'"),
        (["--network-option", "depth"], "expected name=value"),
        (["--sigma-min", "100"], "expected 0 < sigma_min < sigma_max"),
        (["--widths", "8,16"], "widths and blocks must be equally long, got 2 and 4"),
        (["--loss", "vae", "--channels", "1", "--size", "128", "--widths", "8,8,8,8"], "parts=1, size=128"),
        (["--loss", "vae", "--covariance", "diagonal", "--mean-steps", "9"], "mean_steps=9"),
        (["--loss", "vae", "--covariance", "full"], "covariance 'full' is not known"),
        (["--loss", "vae", "--network", "unet"], "--network is not for loss 'vae'"),
        (["--size", "128"], "--size is not for loss 'edm'"),
    ],
)
def test_training_options_are_checked_before_anything_is_made(tmp_path: Path, options: list[str], told: str) -> None:
    pytest.importorskip("lightning")
    np.savez(tmp_path / "a.npz", slices=np.ones((2, 32, 32), np.float32))
    arguments = ["train", "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--dry-run", *options]
    result = RUNNER.invoke(app, arguments, env={"COLUMNS": "400", "TERM": "dumb"})
    assert told in " ".join(result.output.split())
    assert (result.exit_code == 0) == ("million parameters" in result.output)
    assert not (tmp_path / "run").exists()


def test_a_recipe_may_name_a_mapping_and_ask_for_compiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def load(name: str, device: torch.device, autocast: torch.dtype | None, compile: bool) -> Any:
        asked.append((autocast, compile))
        return load_prior(name)

    monkeypatch.setattr(engine_module, "load_any_prior", load)
    data = {"method": "dds", "prior": str(mapping(tmp_path)), "device": "cpu"}
    engine = Engine(recipe_from(data, "plain"))
    compiled = recipe_from(data | {"compile": True, "precision": "bfloat16"}, "compiled")
    for recipe in (engine.default, compiled, engine.default):
        prior = engine.prior(recipe)
        assert prior is not None
        assert prior.kind == "ncsnv2"
    engine.close()
    assert asked == [(None, False), (torch.bfloat16, True)], "each way is loaded once"
