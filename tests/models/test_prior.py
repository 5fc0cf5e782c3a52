"""The network, its preconditioning, and the file that a prior is kept in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from networks import SMALL, small_network
from safetensors.torch import save_file
from scanprior.models import diffusion_prior
from scanprior.models.magnitude_prior import MagnitudePrior
from scanprior.models.preconditioning import DENOISERS, EDMDenoiser
from scanprior.models.prior import PriorError, load_prior, save_prior
from scanprior.models.unet import UNet
from support import random_complex

NETWORK = {"image_channels": 2, "widths": (8, 16), "blocks": (1, 1)}


def small_denoiser() -> EDMDenoiser:
    torch.manual_seed(0)
    network = UNet(**NETWORK)  # type: ignore[arg-type]
    for parameter in network.parameters():  # the zero-initialised layers would hide mistakes
        torch.nn.init.normal_(parameter, std=0.1)
    return EDMDenoiser(network, 0.3)


def saved(path: Path) -> Path:
    save_prior(path, small_denoiser(), {"network": NETWORK, "sigma_min": 0.002, "sigma_max": 80.0})
    return path


def test_file_round_trip_and_complex_interface(tmp_path: Path) -> None:
    prior = load_prior(str(saved(tmp_path / "p.safetensors")))
    denoiser = small_denoiser()
    x = random_complex(3, 20, 22)
    sigma = torch.tensor([0.1, 0.5, 2.0])
    with torch.no_grad():
        wanted = denoiser(torch.stack([x.real, x.imag], 1), sigma)
    found = prior.denoise(x, sigma)
    torch.testing.assert_close(found, torch.complex(wanted[:, 0], wanted[:, 1]), rtol=1e-4, atol=1e-5)
    assert prior.denoise(x[0], 0.1).shape == (20, 22)
    assert prior.denoise(x.reshape(1, 3, 20, 22), 0.1).shape == (1, 3, 20, 22)


def test_large_batches_go_through_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = load_prior(str(saved(tmp_path / "p.safetensors")))
    x = random_complex(5, 16, 16)
    whole = prior.denoise(x, 0.3)
    monkeypatch.setattr(diffusion_prior, "MAX_PIXELS", 2 * 16 * 16)
    torch.testing.assert_close(prior.denoise(x, 0.3), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(16, 16), (17, 23), (5, 40), (3, 2)])
def test_any_size(shape: tuple[int, int]) -> None:
    network = small_denoiser().network
    assert network(torch.randn(2, 2, *shape), torch.zeros(2)).shape == (2, 2, *shape)


def test_no_statistics_over_the_image() -> None:
    """Far away air must not change the answer: the network is local."""
    denoiser = small_denoiser()
    patch = torch.randn(1, 2, 32, 32)
    wide = torch.zeros(1, 2, 32, 256)
    wide[..., :32] = patch
    sigma = torch.tensor([0.2])
    with torch.no_grad():
        inside = denoiser(torch.nn.functional.pad(patch, (0, 64)), sigma)[..., :32]
        torch.testing.assert_close(denoiser(wide, sigma)[..., :32], inside, rtol=1e-4, atol=1e-5)


def test_preconditioning_limits_and_loss() -> None:
    denoiser = EDMDenoiser(UNet(2, (8,), (1,)), 0.3)  # its last layer starts at zero: F = 0
    x = torch.randn(2, 2, 8, 8)
    small, large = torch.tensor([1e-4, 1e-4]), torch.tensor([100.0, 100.0])
    torch.testing.assert_close(denoiser(x, small), x, rtol=1e-5, atol=1e-5)
    assert denoiser(x, large).abs().max() < 1e-4
    # with F = 0 the expected loss is 1 by construction of the weights
    clean, noise = 0.3 * torch.randn(64, 2, 32, 32), torch.randn(64, 2, 32, 32)
    assert float(denoiser.loss(clean, torch.full((64,), 0.5), noise).mean()) == pytest.approx(1.0, abs=0.03)


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PriorError, match=r"prior 'nothing' not found: expected one of"):
        load_prior("nothing")
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(1)}, foreign)
    with pytest.raises(
        PriorError, match=r"expected format 'scanprior-prior-2' or 'scanprior-edm-1' .*found None; weights of others"
    ):
        load_prior(str(foreign))
    save_prior(
        tmp_path / "other.safetensors", small_denoiser(),
        {"network": NETWORK | {"widths": (8, 8)}, "sigma_min": 0.1, "sigma_max": 1.0},
    )  # fmt: skip
    with pytest.raises(PriorError, match="do not fit the network"):
        load_prior(str(tmp_path / "other.safetensors"))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(saved(tmp_path / "p.safetensors").read_bytes()[:100])
    with pytest.raises(PriorError, match="not a safetensors file that can be read"):
        load_prior(str(damaged))
    save_prior(tmp_path / "poor.safetensors", small_denoiser(), {"network": NETWORK, "sigma_min": 0.1})
    with pytest.raises(PriorError, match=r"its description lacks something or is wrong: sigma_max: Field required"):
        load_prior(str(tmp_path / "poor.safetensors"))


@pytest.mark.parametrize("channels", [2, 1])
@pytest.mark.parametrize(("kind", "name"), [("edm", "unet"), ("edm", "ncsnpp"), ("ve", "ncsnpp"), ("ncsnv2", "ncsnv2")])
def test_every_kind_is_kept_with_its_description(tmp_path: Path, kind: str, name: str, channels: int) -> None:
    denoiser = DENOISERS[kind](small_network(name, channels), 0.4)
    network = SMALL[name] | {"image_channels": channels}
    description = {"network": network, "sigma_min": 0.01, "sigma_max": 50.0, "scale": (99.0, 2.0), "step": 7}
    save_prior(tmp_path / "p.safetensors", denoiser, description)
    prior = load_prior(str(tmp_path / "p.safetensors"))
    assert (prior.kind, prior.network["name"], prior.scale, prior.sigma_data) == (kind, name, (99.0, 2.0), 0.4)
    assert (prior.sigma_min, prior.sigma_max, prior.name) == (0.01, 50.0, "p")
    assert isinstance(prior, MagnitudePrior) == (channels == 1)
    assert not any(weight.requires_grad for weight in prior.denoiser.parameters())
    before, after = denoiser.state_dict(), prior.denoiser.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    convolutions = [weight for weight in prior.denoiser.parameters() if weight.ndim == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in convolutions)


def test_files_of_the_first_format_load(tmp_path: Path) -> None:
    """They say neither kind nor name nor scale: EDM, U-Net, 99.5th percentile at 1."""
    denoiser = small_denoiser()
    description = {"network": NETWORK, "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.3, "step": 1}
    metadata = {"format": "scanprior-edm-1", "description": json.dumps(description)}
    save_file(dict(denoiser.state_dict()), tmp_path / "old.safetensors", metadata)
    prior = load_prior(str(tmp_path / "old.safetensors"))
    assert (prior.kind, prior.scale, type(prior.denoiser.network)) == ("edm", (99.5, 1.0), UNet)
    x = random_complex(16, 16)
    with torch.no_grad():
        wanted = denoiser(torch.view_as_real(x).movedim(-1, 0)[None], torch.tensor([0.2]))[0]
    torch.testing.assert_close(prior.denoise(x, 0.2), torch.complex(*wanted), rtol=1e-4, atol=1e-5)
    assert load_prior("small").scale == (99.5, 1.0)


@pytest.mark.parametrize("name", SMALL)
def test_half_precision_is_close(tmp_path: Path, name: str) -> None:
    denoiser = DENOISERS["edm"](small_network(name), 0.3)
    description = {"network": SMALL[name], "sigma_min": 0.01, "sigma_max": 50.0}
    save_prior(tmp_path / "p.safetensors", denoiser, description)
    x = random_complex(2, 16, 20)
    exact = load_prior(str(tmp_path / "p.safetensors")).denoise(x, 0.3)
    rough = load_prior(str(tmp_path / "p.safetensors"), autocast=torch.bfloat16).denoise(x, 0.3)
    assert rough.dtype == torch.complex64
    assert 0 < float((rough - exact).norm() / exact.norm()) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_compiling_is_by_choice_and_traces_the_whole_network(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backend is torch's own check of what it traced; a real one takes a minute of compiling."""
    monkeypatch.setattr(
        torch.nn.Module, "compile",
        lambda self: setattr(self, "_compiled_call_impl", torch.compile(self._call_impl, backend="aot_eager")),
    )  # fmt: skip
    denoiser = DENOISERS["edm"](small_network(name), 0.3)
    save_prior(tmp_path / "p.safetensors", denoiser, {"network": SMALL[name], "sigma_min": 0.01, "sigma_max": 50.0})
    plain, compiled = (load_prior(str(tmp_path / "p.safetensors"), compile=choice) for choice in (False, True))
    assert plain.denoiser._compiled_call_impl is None
    assert compiled.denoiser._compiled_call_impl is not None
    assert compiled.denoiser.state_dict().keys() == denoiser.state_dict().keys()
    x = random_complex(2, 16, 20)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch.testing.assert_close(compiled.denoise(x, 0.3), plain.denoise(x, 0.3), rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kind": "vp"}, "kind: 'vp' is not known; there are: edm, ve, ncsnv2"),
        ({"network": {"name": "vit"}}, "network 'vit' is not known; there are: unet, ncsnv2, ncsnpp"),
        ({"network": {"widths": [8], "blocks": [1, 1]}}, "widths and blocks must be equally long, got 1 and 2"),
        ({"scale": [101, 1]}, "scale: expected"),
        ({"scale": None}, "scale: Input should be a valid tuple, found None"),
        ({"sigma_min": 90.0}, r"sigma_min \(90.0\) must be below sigma_max \(80.0\)"),
    ],
)
def test_wrong_descriptions_are_refused(tmp_path: Path, change: dict[str, object], told: str) -> None:
    description = {"kind": "edm", "network": NETWORK, "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.3}
    description |= {"scale": [99.5, 1.0]} | change
    metadata = {"format": "scanprior-prior-2", "description": json.dumps(description)}
    save_file(dict(small_denoiser().state_dict()), tmp_path / "p.safetensors", metadata)
    with pytest.raises(PriorError, match=told):
        load_prior(str(tmp_path / "p.safetensors"))


def test_priors_have_one_channel_or_two(tmp_path: Path) -> None:
    network = {**NETWORK, "image_channels": 3}
    save_prior(
        tmp_path / "p.safetensors", EDMDenoiser(UNet(**network), 0.3),  # type: ignore[arg-type]
        {"network": network, "sigma_min": 0.1, "sigma_max": 1.0},
    )  # fmt: skip
    with pytest.raises(PriorError, match="expected a network of 1 or 2 image_channels, found 3"):
        load_prior(str(tmp_path / "p.safetensors"))
