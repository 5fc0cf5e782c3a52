"""A prior of magnitudes on complex images: what happens to the phase."""

from __future__ import annotations

import math

import pytest
import torch
from gaussian import SD, GaussianPrior, gaussian_scan
from networks import small_network
from scanprior.models import diffusion_prior
from scanprior.models.dds import DDSSettings, dds
from scanprior.models.denoiser_prior import Prior
from scanprior.models.magnitude_prior import MagnitudePrior, smooth_phase
from scanprior.models.preconditioning import EDMDenoiser
from scanprior.models.unet import UNet
from support import random_complex

ROWS, COLUMNS = 24, 28


def prior() -> MagnitudePrior:
    return MagnitudePrior(EDMDenoiser(small_network("unet", 1), 0.42), "m", 0.002, 80.0)


def disc() -> torch.Tensor:
    """A magnitude with an edge and some texture."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, ROWS), torch.linspace(-1, 1, COLUMNS), indexing="ij")
    return (y**2 + x**2 < 0.7) * (1 + 0.3 * torch.sin(9 * y))


def bent_phase(cycles: float = 1.0) -> torch.Tensor:
    y, x = torch.meshgrid(torch.linspace(-1, 1, ROWS), torch.linspace(-1, 1, COLUMNS), indexing="ij")
    return torch.exp(1j * cycles * math.pi * (0.4 + 0.7 * y - 0.5 * x**2))


def real(prior: MagnitudePrior, image: torch.Tensor, sigma: float) -> torch.Tensor:
    """The network's own denoiser on a real image (y, x)."""
    with torch.no_grad():
        return prior.denoiser(image[None, None], torch.tensor([sigma]))[0, 0]


def test_real_and_imaginary_part_go_through_the_same_denoiser() -> None:
    unbound, x = prior(), random_complex(3, 2, ROWS, COLUMNS)
    sigma = torch.tensor([[0.1], [0.5], [2.0]])
    found = unbound.denoise(x, sigma)
    for number, level in enumerate((0.1, 0.5, 2.0)):
        part = x[number, 1]
        wanted = torch.complex(real(unbound, part.real, level), real(unbound, part.imag, level))
        torch.testing.assert_close(found[number, 1], wanted, rtol=1e-4, atol=1e-5)


def test_constant_phase_is_as_real_denoising() -> None:
    turn = complex(math.cos(2.1), math.sin(2.1))
    bound = prior().for_image(disc() * turn)
    noisy = disc() + 0.2 * torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    found = bound.denoise(noisy * turn, 0.2)
    wanted = torch.complex(real(bound, noisy, 0.2), real(bound, torch.zeros_like(noisy), 0.2)) * turn
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_equivariance_to_global_phase() -> None:
    turn = complex(math.cos(-0.9), math.sin(-0.9))
    rough, x = random_complex(ROWS, COLUMNS, seed=1), random_complex(4, ROWS, COLUMNS)
    plain = prior().for_image(rough).denoise(x, 0.3)
    turned = prior().for_image(turn * rough).denoise(turn * x, 0.3)
    torch.testing.assert_close(turned, turn * plain, rtol=1e-3, atol=1e-4)
    # and it is the phase of the scan that does it
    assert (prior().denoise(turn * x, 0.3) - turn * prior().denoise(x, 0.3)).abs().max() > 0.1


def test_a_smooth_phase_is_found_through_noise_and_taken_out() -> None:
    image = disc() * bent_phase()
    noisy = image + 0.1 * random_complex(ROWS, COLUMNS)
    phase = smooth_phase(noisy, band=0.4)
    torch.testing.assert_close(phase.abs(), torch.ones(ROWS, COLUMNS))
    inside = disc() > 0.5
    left = (image * phase.conj())[inside]
    assert float(left.imag.square().sum() / left.real.square().sum()) < 0.02
    assert (left.real > 0).all()
    # the real part alone, without turning, is nothing like the magnitude
    assert float(image[inside].imag.square().sum() / image[inside].real.square().sum()) > 0.3


def test_the_window_is_a_band_of_kspace() -> None:
    wave = torch.exp(2j * math.pi * 3 * torch.arange(32) / 32).expand(32, 32)
    # 3 of 32 cycles lie within a band of 0.2 (up to 3.2), not within one of 0.18 (up to 2.88)
    torch.testing.assert_close(smooth_phase(wave, band=0.2), wave, atol=1e-4, rtol=0)
    inside = wave + 1e-3
    torch.testing.assert_close(
        smooth_phase(inside, band=0.18), torch.ones(32, 32, dtype=torch.complex64), atol=1e-3, rtol=0
    )
    nothing = torch.zeros(4, 4, dtype=torch.complex64)
    assert torch.equal(smooth_phase(nothing), torch.ones(4, 4, dtype=torch.complex64))


def test_a_sampler_is_not_disturbed_by_the_phase() -> None:
    """Of a linear denoiser turning there and back is nothing, so DDS must give the complex prior's very samples."""
    real_gaussian = MagnitudePrior(EDMDenoiser(UNet(1, (8,), (1,)), SD), "m", 0.002, 80.0)  # F is zero: Wiener
    scan, _ = gaussian_scan()
    settings = DDSSettings.model_validate({"steps": 5, "samples": 3, "start_iterations": 4})
    found, wanted = (dds(scan, prior, settings) for prior in (real_gaussian, GaussianPrior()))
    torch.testing.assert_close(found.image, wanted.image, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.std, wanted.std, rtol=1e-3, atol=1e-4)


def test_binding_copies_and_samples_share_a_phase() -> None:
    unbound = prior()
    bound = unbound.for_image(random_complex(2, ROWS, COLUMNS))
    assert unbound.phase is None
    assert bound.denoiser is unbound.denoiser
    x = random_complex(3, 2, ROWS, COLUMNS)
    all_at_once = bound.denoise(x, 0.3)
    for sample in range(3):
        torch.testing.assert_close(all_at_once[sample], bound.denoise(x[sample], 0.3), rtol=1e-4, atol=1e-5)
    of_sampler: Prior = bound
    assert of_sampler.sigma_data == 0.42


def test_it_is_differentiable_and_goes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    bound = prior().for_image(random_complex(ROWS, COLUMNS))
    x = random_complex(3, ROWS, COLUMNS)
    whole = bound.denoise(x, 0.3)
    monkeypatch.setattr(diffusion_prior, "MAX_PIXELS", ROWS * COLUMNS)
    torch.testing.assert_close(bound.denoise(x, 0.3), whole, rtol=1e-4, atol=1e-5)
    asked = x.clone().requires_grad_(True)
    bound.denoise(asked, 0.3).abs().square().sum().backward()
    assert asked.grad is not None
    assert asked.grad.abs().min() > 0
