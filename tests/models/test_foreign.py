"""Weights of others: renamed and rearranged as public code keeps them, mapped back, and the same images come out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from networks import SMALL, small_network
from safetensors.torch import save_file
from scanprior.models.magnitude_prior import MagnitudePrior
from scanprior.models.preconditioning import DENOISERS
from scanprior.models.prior import PriorError, load_prior, prior_description, save_prior
from support import random_complex
from torch import nn

BASE = {"sigma_min": 0.01, "sigma_max": 378.0, "sigma_data": 0.3, "scale": [99.0, 1.0], "weights": "theirs.safetensors"}

# what docs/priors.md gives for weights of score_sde_pytorch
NCSNPP_RULES: list[dict[str, Any]] = [
    {"ours": r"layers\.0\.frequencies", "theirs": "all_modules.0.W"},
    {"ours": r"layers\.(\d+)\.first_norm\.(\w+)", "theirs": r"all_modules.\1.GroupNorm_0.\2"},
    {"ours": r"layers\.(\d+)\.first\.(\w+)", "theirs": r"all_modules.\1.Conv_0.\2"},
    {"ours": r"layers\.(\d+)\.shift\.(\w+)", "theirs": r"all_modules.\1.Dense_0.\2"},
    {"ours": r"layers\.(\d+)\.second_norm\.(\w+)", "theirs": r"all_modules.\1.GroupNorm_1.\2"},
    {"ours": r"layers\.(\d+)\.second\.(\w+)", "theirs": r"all_modules.\1.Conv_1.\2"},
    {"ours": r"layers\.(\d+)\.skip\.(\w+)", "theirs": r"all_modules.\1.Conv_2.\2"},
    {"ours": r"layers\.(\d+)\.norm\.(\w+)", "theirs": r"all_modules.\1.GroupNorm_0.\2"},
    {"ours": r"layers\.(\d+)\.query\.weight", "theirs": r"all_modules.\1.NIN_0.W", "permute": [1, 0]},
    {"ours": r"layers\.(\d+)\.key\.weight", "theirs": r"all_modules.\1.NIN_1.W", "permute": [1, 0]},
    {"ours": r"layers\.(\d+)\.value\.weight", "theirs": r"all_modules.\1.NIN_2.W", "permute": [1, 0]},
    {"ours": r"layers\.(\d+)\.leave\.weight", "theirs": r"all_modules.\1.NIN_3.W", "permute": [1, 0]},
    {"ours": r"layers\.(\d+)\.query\.bias", "theirs": r"all_modules.\1.NIN_0.b"},
    {"ours": r"layers\.(\d+)\.key\.bias", "theirs": r"all_modules.\1.NIN_1.b"},
    {"ours": r"layers\.(\d+)\.value\.bias", "theirs": r"all_modules.\1.NIN_2.b"},
    {"ours": r"layers\.(\d+)\.leave\.bias", "theirs": r"all_modules.\1.NIN_3.b"},
    {"ours": r"layers\.(\d+)\.conv\.(\w+)", "theirs": r"all_modules.\1.Conv2d_0.\2"},
    {"ours": r"layers\.(\d+)\.(\w+)", "theirs": r"all_modules.\1.\2"},
]


def as_score_sde(network: nn.Module) -> dict[str, torch.Tensor]:
    """Our NCSN++ in the names and shapes of score_sde_pytorch, written without the rules above."""
    blocks = {"first_norm": "GroupNorm_0", "first": "Conv_0", "shift": "Dense_0", "second_norm": "GroupNorm_1",
              "second": "Conv_1", "skip": "Conv_2", "norm": "GroupNorm_0", "conv": "Conv2d_0"}  # fmt: skip
    attention = {"query": 0, "key": 1, "value": 2, "leave": 3}
    theirs = {}
    for name, tensor in network.state_dict().items():
        parts = name.split(".")
        if parts[-1] == "frequencies":
            theirs["all_modules.0.W"] = tensor
        elif parts[2] in attention:
            matrix = parts[3] == "weight"
            new = tensor[:, :, 0, 0].T if matrix else tensor
            theirs[f"all_modules.{parts[1]}.NIN_{attention[parts[2]]}.{'W' if matrix else 'b'}"] = new.contiguous()
        elif parts[2] in blocks:
            theirs[f"all_modules.{parts[1]}.{blocks[parts[2]]}.{parts[3]}"] = tensor
        else:
            theirs[f"all_modules.{parts[1]}.{parts[2]}"] = tensor
    return theirs


def written(folder: Path, tensors: dict[str, torch.Tensor], mapping: dict[str, Any], suffix: str = "yaml") -> str:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "theirs.safetensors")
    path = folder / f"mapping.{suffix}"
    path.write_text(json.dumps(mapping) if suffix == "json" else yaml.safe_dump(mapping))
    return str(path)


def test_ncsnpp_of_score_sde(tmp_path: Path) -> None:
    network = small_network("ncsnpp", centre=True)
    mapping = BASE | {
        "kind": "ve",
        "network": SMALL["ncsnpp"] | {"centre": True},
        "tensors": NCSNPP_RULES,
        "ignore": ["sigmas"],
    }
    path = written(tmp_path, as_score_sde(network) | {"sigmas": torch.ones(3)}, mapping)
    prior = load_prior(path)
    x = random_complex(2, 16, 20)
    with torch.no_grad():
        wanted = DENOISERS["ve"](network, 0.3)(torch.stack([x.real, x.imag], 1), torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(prior.denoise(x, 0.5), torch.complex(wanted[:, 0], wanted[:, 1]), rtol=1e-4, atol=1e-5)
    assert (prior.name, prior.kind, prior.sigma_max, prior.scale) == ("mapping", "ve", 378.0, (99.0, 1.0))
    # and once more as a file of our own
    save_prior(tmp_path / "own.safetensors", prior.denoiser, prior_description(prior))
    own = load_prior(str(tmp_path / "own.safetensors"))
    assert torch.equal(own.denoise(x, 0.5), prior.denoise(x, 0.5))
    assert own.scale == (99.0, 1.0)


def test_fused_and_scaled_tensors_of_edm(tmp_path: Path) -> None:
    """EDM's networks keep q, k, v row by row in one tensor, and another unit of noise."""
    network = small_network("ncsnpp", channels=1)
    theirs = {name: tensor for name, tensor in network.state_dict().items() if ".query." not in name}
    for name in [name for name in theirs if ".key." in name]:
        stem, kind = name.split("key.")
        three = [network.state_dict()[f"{stem}{part}.{kind}"] for part in ("query", "key", "value")]
        theirs[f"{stem}qkv.{kind}"] = torch.stack(three, dim=1).flatten(0, 1)
        del theirs[name], theirs[f"{stem}value.{kind}"]
    theirs["layers.0.frequencies"] = theirs["layers.0.frequencies"] * 4
    rules = [
        {"ours": rf"(.*)\.{part}\.(\w+)", "theirs": r"\1.qkv.\2", "take": [first, 3]}
        for first, part in enumerate(("query", "key", "value"))
    ]
    rules += [{"ours": "(.*frequencies)", "theirs": r"\1", "scale": 0.25}, {"ours": "(.*)", "theirs": r"\1"}]
    mapping = BASE | {"kind": "edm", "network": SMALL["ncsnpp"] | {"image_channels": 1}, "tensors": rules}
    prior = load_prior(written(tmp_path, theirs, mapping, "json"))
    assert isinstance(prior, MagnitudePrior)
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(prior.denoiser.network.state_dict()[name], tensor)


def test_ncsnv2_by_names_alone(tmp_path: Path) -> None:
    network = small_network("ncsnv2")
    names = {name: f"module.{number}" for number, name in enumerate(network.state_dict())}
    theirs = {names[name]: tensor for name, tensor in network.state_dict().items()}
    tensors = {re.escape(name): their for name, their in names.items()}
    mapping = BASE | {"kind": "ncsnv2", "network": SMALL["ncsnv2"], "tensors": tensors}
    prior = load_prior(written(tmp_path, theirs, mapping))
    for name, tensor in network.state_dict().items():
        assert torch.equal(prior.denoiser.network.state_dict()[name], tensor)


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    theirs = as_score_sde(small_network("ncsnpp"))
    del theirs["all_modules.3.bias"]
    theirs["all_modules.4.Conv_0.weight"] = torch.zeros(8, 9, 3, 3)
    theirs["optimizer"] = torch.zeros(1)
    rules = [rule for rule in NCSNPP_RULES if "Dense_0" not in rule["theirs"]]
    mapping = BASE | {"kind": "ve", "network": SMALL["ncsnpp"], "tensors": rules}
    with pytest.raises(PriorError) as caught:
        load_prior(written(tmp_path, theirs, mapping))
    message = str(caught.value)
    assert "our tensors without a rule: layers.4.shift.weight, layers.4.shift.bias" in message
    assert re.search(r"layers\.8\.shift\.bias and \d+ more; ", message), "ten of a kind are enough"
    assert "tensors that their file lacks: all_modules.3.bias (for our layers.3.bias)" in message
    assert (
        "all_modules.4.Conv_0.weight (for our layers.4.first.weight): expected shape (8, 8, 3, 3), found (8, 9, 3, 3)"
        in message
    )
    assert "`ignore` does not name: " in message
    assert "optimizer" in message.split("does not name: ")[1]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kind": "ddpm"}, "kind: 'ddpm' is not known; there are: edm, ve, ncsnv2"),
        (
            {"scale": None},
            "scale: Field required; the keys are: kind, network, sigma_min, sigma_max, sigma_data, scale",
        ),
        ({"scale": [0, 1]}, r"scale: expected \[percentile up to 100, value above 0\]"),
        ({"network": {"name": "resnet"}}, "network 'resnet' is not known; there are: unet, ncsnv2, ncsnpp"),
        (
            {"network": {"name": "unet", "depth": 3}},
            "network 'unet' has no argument 'depth'; there are: image_channels",
        ),
        ({"sigma_min": 400.0}, r"sigma_min \(400.0\) must be below sigma_max \(378.0\)"),
        ({"network": {"name": "unet", "image_channels": 3}}, "without a rule"),
        ({"nonsense": 1}, "nonsense: Extra inputs are not permitted"),
        ({"weights": "other.safetensors"}, "not a safetensors file that can be read"),
        ({"tensors": {"(": "x"}}, "is no regular expression"),
        ({"tensors": {"(.*)": r"\2"}}, "invalid group reference"),
        ({"tensors": [{"ours": ".*", "theirs": "x", "permute": [0, 2]}]}, r"permute \[0, 2\] does not fit theirs"),
    ],
)
def test_wrong_mappings_are_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    mapping = BASE | {"kind": "ve", "network": SMALL["ncsnpp"], "tensors": {"x": "x"}} | change
    mapping = {key: value for key, value in mapping.items() if value is not None}
    with pytest.raises(PriorError, match=told):
        load_prior(written(tmp_path, {"x": torch.zeros(1)}, mapping))


def test_files_that_are_no_mappings(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(PriorError, match="expected a mapping of keys to values, found list"):
        load_prior(str(tmp_path / "list.yaml"))
    (tmp_path / "odd.json").write_text("{")
    with pytest.raises(PriorError, match="a mapping file that cannot be read"):
        load_prior(str(tmp_path / "odd.json"))
