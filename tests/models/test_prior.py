"""The network, its preconditioning, and the file that a prior is kept in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from scanprior.models import diffusion_prior
from scanprior.models.preconditioning import EDMDenoiser
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
    with pytest.raises(PriorError, match="expected format 'scanprior-edm-1' in its metadata, found None"):
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
    with pytest.raises(PriorError, match=r"its description lacks something or is wrong: KeyError.*sigma_max"):
        load_prior(str(tmp_path / "poor.safetensors"))
