"""The kinds of denoisers: what they are, what their losses are smallest for, and that they can be differentiated."""

from __future__ import annotations

import pytest
import torch
from networks import SMALL, small_network
from scanprior.models.diffusion_prior import DiffusionPrior
from scanprior.models.preconditioning import DENOISERS, EDMDenoiser, NCSNv2Denoiser, VEDenoiser, geometric_levels
from support import random_complex
from torch import nn

PAIRS = [("edm", "unet"), ("edm", "ncsnpp"), ("ve", "ncsnpp"), ("ve", "ncsnv2"), ("ncsnv2", "ncsnv2")]


class Gain(nn.Module):
    """F(x) = gain x."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return self.gain * x


@pytest.mark.parametrize("kind", DENOISERS)
@pytest.mark.parametrize("sigma", [0.1, 0.6])
def test_the_best_linear_denoiser_is_wieners(kind: str, sigma: float) -> None:
    """The minimum of every loss over linear networks, on Gaussian images; also where sigma_data is wrong."""
    generator = torch.Generator().manual_seed(0)
    clean = 0.3 * torch.randn(64, 2, 32, 32, generator=generator)
    noise = torch.randn(clean.shape, generator=generator)
    denoiser = DENOISERS[kind](Gain(), 0.5)
    level = torch.full((64,), sigma)
    optimizer = torch.optim.LBFGS(denoiser.parameters(), tolerance_grad=1e-9)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = denoiser.loss(clean, level, noise).mean()
        value.backward()
        return value

    for _ in range(3):
        optimizer.step(loss)
    x = clean + sigma * noise
    with torch.no_grad():
        wiener = 0.3**2 / (0.3**2 + sigma**2)
        torch.testing.assert_close(denoiser(x, level), wiener * x, atol=0.01, rtol=0)
        torch.testing.assert_close(denoiser.score(x, level), (wiener - 1) / sigma**2 * x, atol=0.03 / sigma, rtol=0)


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_score_and_denoiser_agree(kind: str, name: str) -> None:
    denoiser = DENOISERS[kind](small_network(name), 0.3)
    x, sigma = torch.randn(3, 2, 12, 16), torch.tensor([0.05, 0.4, 3.0])
    with torch.no_grad():
        back = x + sigma[:, None, None, None] ** 2 * denoiser.score(x, sigma)
        torch.testing.assert_close(denoiser(x, sigma), back, rtol=1e-4, atol=1e-5)
        # each image has its own level
        torch.testing.assert_close(denoiser(x, sigma)[1:2], denoiser(x[1:2], sigma[1:2]), rtol=1e-4, atol=1e-5)


def test_score_matching_weighs_by_the_variance() -> None:
    denoiser = VEDenoiser(small_network("ncsnpp"), 0.3)
    clean, noise, sigma = torch.randn(2, 2, 16, 16), torch.randn(2, 2, 16, 16), torch.tensor([0.1, 2.0])
    level = sigma[:, None, None, None]
    with torch.no_grad():
        score = denoiser.score(clean + level * noise, sigma)
        error = denoiser(clean + level * noise, sigma) - clean
        wanted = (level * score + noise).square().mean((1, 2, 3))
        torch.testing.assert_close(denoiser.loss(clean, sigma, noise), wanted)
        torch.testing.assert_close(wanted, (error / level).square().mean((1, 2, 3)), rtol=1e-3, atol=1e-4)


def test_edm_skips_at_small_noise_and_forgets_at_large() -> None:
    denoiser = EDMDenoiser(small_network("unet"), 0.3)
    x = torch.randn(1, 2, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(denoiser(x, torch.tensor([1e-5])), x, atol=1e-3, rtol=0)
        # c_skip is 9e-6 there, and c_out sigma_data
        far = denoiser(x, torch.tensor([100.0]))
        network = denoiser.network(x / 100, torch.tensor([100.0]).log() / 4)
        torch.testing.assert_close(far, 0.3 * network, atol=1e-4, rtol=1e-3)


def test_a_network_without_noise_level_is_scaled_by_it() -> None:
    denoiser = NCSNv2Denoiser(small_network("ncsnv2"), 0.3)
    x = torch.randn(1, 2, 16, 16)
    with torch.no_grad():
        once, twice = (denoiser(x, torch.tensor([sigma])) - x for sigma in (0.5, 1.0))
    torch.testing.assert_close(2 * once, twice, rtol=1e-3, atol=1e-5)


def test_levels_are_geometric() -> None:
    levels = geometric_levels(232.0, 0.0066, 2311)
    assert len(levels) == 2311
    assert float(levels[0]) == pytest.approx(232)
    assert float(levels[-1]) == pytest.approx(0.0066, rel=1e-4)
    ratio = levels[1:] / levels[:-1]
    torch.testing.assert_close(ratio, ratio[:1].expand(2310), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_gradient_samplers_get_the_jacobian(kind: str, name: str) -> None:
    """v^T J u by automatic differentiation and by central differences, in double precision."""
    prior = DiffusionPrior(DENOISERS[kind](small_network(name).double(), 0.3), "p", 0.01, 10.0)
    denoiser = prior.denoiser
    x = torch.randn(1, 2, 12, 12, dtype=torch.float64, requires_grad=True)
    u, v = torch.randn(2, 1, 2, 12, 12, dtype=torch.float64)
    sigma = torch.tensor([0.5], dtype=torch.float64)
    (gradient,) = torch.autograd.grad((denoiser(x, sigma) * v).sum(), x)
    with torch.no_grad():
        step = 1e-6
        difference = ((denoiser(x + step * u, sigma) - denoiser(x - step * u, sigma)) * v).sum() / (2 * step)
    assert float((gradient * u).sum()) == pytest.approx(float(difference), rel=1e-3)


@pytest.mark.parametrize("name", SMALL)
def test_complex_images_have_gradients_only_where_asked(name: str) -> None:
    prior = DiffusionPrior(DENOISERS["edm"](small_network(name), 0.3), "p", 0.01, 10.0)
    x = random_complex(2, 12, 12).requires_grad_(True)
    prior.denoise(x, 0.5).abs().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().min() > 0
    assert not prior.denoise(x.detach(), 0.5).requires_grad
