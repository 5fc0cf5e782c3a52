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
from scanprior.models.ncsnpp import Attention
from scanprior.models.networks import build_network
from scanprior.models.preconditioning import DENOISERS
from scanprior.models.prior import PriorError, load_prior, prior_description, save_prior
from support import random_complex
from torch import nn

BASE = {"sigma_min": 0.01, "sigma_max": 378.0, "sigma_data": 0.3, "scale": [99.0, 1.0], "weights": "theirs.safetensors"}

MAPPINGS = Path(__file__).resolve().parents[2] / "docs" / "mappings"


def shipped(name: str, **change: Any) -> dict[str, Any]:
    """A mapping of docs/mappings, for a smaller network."""
    mapping = yaml.safe_load((MAPPINGS / f"{name}.yaml").read_text())
    return mapping | {"weights": "theirs.safetensors"} | change


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
    mapping = shipped("score_sde_ncsnpp", network=SMALL["ncsnpp"] | {"centre": True}, sigma_data=0.3)
    path = written(tmp_path, as_score_sde(network) | {"sigmas": torch.ones(3)}, mapping)
    prior = load_prior(path)
    x = random_complex(2, 16, 20)
    with torch.no_grad():
        wanted = DENOISERS["ve"](network, 0.3)(torch.stack([x.real, x.imag], 1), torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(prior.denoise(x, 0.5), torch.complex(wanted[:, 0], wanted[:, 1]), rtol=1e-4, atol=1e-5)
    assert (prior.name, prior.kind, prior.sigma_max, prior.scale) == ("mapping", "ve", 378.0, (100.0, 1.0))
    # and once more as a file of our own
    save_prior(tmp_path / "own.safetensors", prior.denoiser, prior_description(prior))
    own = load_prior(str(tmp_path / "own.safetensors"))
    assert torch.equal(own.denoise(x, 0.5), prior.denoise(x, 0.5))
    assert own.scale == (100.0, 1.0)


def as_edm(network: nn.Module) -> dict[str, torch.Tensor]:
    """Our NCSN++ as EDM's SongUNet for 64x64, attention at 16x16: its modules in order, each given its tensors."""
    modules = ["map_noise", "map_layer0", "map_layer1", "enc.64x64_conv"]
    for size in (64, 32, 16, 8):
        modules += [f"enc.{size}x{size}_{part}" for part in ("down", "aux_residual") if size < 64]
        modules += [f"enc.{size}x{size}_block{number}" for number in range(4)]
    modules += ["dec.8x8_in0", "dec.8x8_in1"]
    for size in (8, 16, 32, 64):
        modules += [f"dec.{size}x{size}_up"] if size > 8 else []
        modules += [f"dec.{size}x{size}_block{number}" for number in range(5)]
    modules += ["dec.64x64_aux_norm", "dec.64x64_aux_conv"]
    names = {"first_norm": "norm0", "first": "conv0", "shift": "affine", "second_norm": "norm1", "second": "conv1"}
    theirs: dict[str, torch.Tensor] = {}
    waiting = iter(modules)
    module = ""
    for layer in network.layers:
        own = layer.state_dict()
        if isinstance(layer, Attention):  # a part of the block before
            for kind in ("weight", "bias"):
                theirs[f"model.{module}.norm2.{kind}"] = own[f"norm.{kind}"]
                theirs[f"model.{module}.proj.{kind}"] = own[f"leave.{kind}"]
                three = [own[f"{part}.{kind}"] for part in ("query", "key", "value")]
                theirs[f"model.{module}.qkv.{kind}"] = torch.stack(three, dim=1).flatten(0, 1)
            continue
        module = next(waiting)
        for name, tensor in own.items():
            parts = [names.get(part, part) for part in name.split(".") if part != "conv"]
            theirs[".".join(["model", module, *("freqs" if part == "frequencies" else part for part in parts)])] = (
                tensor
            )
    assert next(waiting, None) is None
    return theirs


def test_ncsnpp_of_edm(tmp_path: Path) -> None:
    """Query, key and value are fused there, row by row."""
    smaller = shipped("edm_ncsnpp")["network"] | {"image_channels": 1, "widths": [8, 16, 16, 16]}
    network = small_network("ncsnpp", **{key: value for key, value in smaller.items() if key != "name"})
    theirs = as_edm(network)
    theirs["model.enc.32x32_down.conv0.resample_filter"] = torch.ones(1, 1, 4, 4)
    prior = load_prior(written(tmp_path, theirs, shipped("edm_ncsnpp", network=smaller), "json"))
    assert isinstance(prior, MagnitudePrior)
    assert prior.kind == "edm"
    for name, tensor in network.state_dict().items():
        assert torch.equal(prior.denoiser.network.state_dict()[name], tensor)


def test_tensors_are_scaled(tmp_path: Path) -> None:
    """Fourier features of another unit of noise, for one."""
    network = small_network("ncsnpp")
    theirs = dict(network.state_dict())
    theirs["layers.0.frequencies"] = 4 * theirs["layers.0.frequencies"]
    rules = [{"ours": "(.*frequencies)", "theirs": r"\1", "scale": 0.25}]
    mapping = BASE | {"kind": "edm", "network": SMALL["ncsnpp"], "tensors": rules}
    prior = load_prior(written(tmp_path, theirs, mapping))
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(prior.denoiser.network.state_dict()[name], tensor)


def as_ncsnv2(network: nn.Module) -> dict[str, torch.Tensor]:
    """Our NCSNv2 in the names of NCSNv2Deepest, written without the mapping."""
    stages = ["1", "2", "3", "31", "4", "5"]
    refines = ["1", "2", "31", "3", "4", "5"]
    blocks = {"first_norm": "normalize1", "second_norm": "normalize2", "first": "conv1", "second": "conv2",
              "skip": "shortcut", "fuse": "msf.convs", "pool": "crp.convs"}  # fmt: skip
    ends = {"enter": "begin_conv", "norm": "normalizer", "leave": "end_conv"}
    theirs = {}
    for name, tensor in network.state_dict().items():
        part, *rest = name.split(".")
        if part == "stages":
            new = [f"res{stages[int(rest[0])]}", rest[1], blocks[rest[2]], *rest[3:]]
        elif part == "refine" and "convs" in rest:  # residual convolution units
            unit = int(rest[-2])
            where = ["adapt_convs", rest[2]] if rest[1] == "adapt" else ["output_convs"]
            new = [f"refine{refines[int(rest[0])]}", *where, f"{unit // 2 + 1}_{unit % 2 + 1}_conv", "weight"]
        elif part == "refine":
            new = [f"refine{refines[int(rest[0])]}", blocks[rest[1]], *rest[2:]]
        else:
            new = [ends[part], *rest]
        theirs[".".join(new)] = tensor
    return theirs


def test_ncsnv2_of_paper_1(tmp_path: Path) -> None:
    smaller = {"widths": [8, 16, 16, 16, 32, 32], "dilations": [1, 1, 1, 1, 2, 4]}
    network = small_network("ncsnv2", **smaller)
    theirs = as_ncsnv2(network)
    assert len(theirs) == len(network.state_dict())
    assert {"res31.0.shortcut.conv.weight", "refine5.output_convs.3_2_conv.weight"} < theirs.keys()
    mapping = shipped("ncsnv2_deepest", network=SMALL["ncsnv2"] | smaller)
    prior = load_prior(written(tmp_path, theirs | {"sigmas": torch.ones(3)}, mapping))
    for name, tensor in network.state_dict().items():
        assert torch.equal(prior.denoiser.network.state_dict()[name], tensor)


@pytest.mark.parametrize("name", ["score_sde_ncsnpp", "ncsnv2_deepest", "edm_ncsnpp"])
def test_shipped_mappings_describe_networks_that_exist(name: str) -> None:
    with torch.device("meta"):
        network = build_network(shipped(name)["network"])
    assert 50e6 < sum(weight.numel() for weight in network.parameters()) < 150e6


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    theirs = as_score_sde(small_network("ncsnpp"))
    del theirs["all_modules.3.bias"]
    theirs["all_modules.4.Conv_0.weight"] = torch.zeros(8, 9, 3, 3)
    theirs["optimizer"] = torch.zeros(1)
    mapping = shipped("score_sde_ncsnpp", network=SMALL["ncsnpp"])
    mapping["rename"] = [pair for pair in mapping["rename"] if "Dense_0" not in pair[1]]
    mapping["ignore"] = [r".*Dense_0.*"]
    with pytest.raises(PriorError) as caught:
        load_prior(written(tmp_path, theirs, mapping))
    message = str(caught.value)
    assert "tensors that their file lacks: all_modules.3.bias (for our layers.3.bias), all_modules.4.shift.w" in message
    assert re.search(r"\(for our layers\.[\d.]+shift\.\w+\) and \d+ more; ", message), "ten of a kind are enough"
    assert (
        "all_modules.4.Conv_0.weight (for our layers.4.first.weight): expected shape (8, 8, 3, 3), found (8, 9, 3, 3)"
        in message
    )
    assert message.endswith("their tensors that none of ours is made of and `ignore` does not name: optimizer")


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
        ({"nonsense": 1}, "nonsense: Extra inputs are not permitted"),
        ({"weights": "other.safetensors"}, "not a safetensors file that can be read"),
        ({"ignore": ["("]}, "is no regular expression"),
        ({"rename": [["(.*)", r"\2"]]}, "invalid group reference"),
        ({"tensors": [{"ours": ".*", "theirs": "x", "permute": [0, 2]}]}, r"permute \[0, 2\] does not fit theirs"),
    ],
)
def test_wrong_mappings_are_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    mapping = BASE | {"kind": "ve", "network": SMALL["ncsnpp"]} | change
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
