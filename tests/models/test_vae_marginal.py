"""Latents by their marginal probability: the share that the data decide, and what it saves the latents from."""

from __future__ import annotations

import pytest
import torch
from linear_vae import DenseFactor, LinearVAE
from scanprior.models.forward import SenseModel
from scanprior.models.scan import Scan
from scanprior.models.vae_objective import VAEObjective
from scanprior.models.vae_reconstruction import VAESettings, vae

SHAPE = (12, 12)
PIXELS = SHAPE[0] * SHAPE[1]


class OneWidth:
    """Images around a known one, whose residuals are white, of the standard deviation exp(z): z is to be found."""

    name, family, scale, parts, size, demodulated = "one width", "vae", (99.5, 1.0), 1, None, False

    def for_shape(self, shape: tuple[int, int]) -> OneWidth:
        return self

    def latent_shape(self, shape: tuple[int, int]) -> tuple[int, ...]:
        return (1,)

    def encode(self, e: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((len(e), 1), -2.0, dtype=e.dtype), torch.zeros(len(e), 1, dtype=e.dtype)

    def decode(self, z: torch.Tensor) -> tuple[torch.Tensor, DenseFactor]:
        mean = torch.ones(len(z), 1, *SHAPE, dtype=z.dtype)
        return mean, DenseFactor(torch.diag_embed(torch.exp(-z).expand(-1, PIXELS)), (1, *SHAPE))


def one_coil(image: torch.Tensor, sigma: float, seed: int) -> Scan:
    """A single-coil scan of a third of all points or so."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(SHAPE, generator=generator) < 0.3
    mask[5:8, 5:8] = True
    maps = torch.ones(1, *SHAPE, dtype=torch.complex128)
    noise = torch.randn(*SHAPE, 2, generator=generator, dtype=torch.float64)
    kspace = SenseModel(maps, mask)(image.to(torch.complex128)) + sigma * torch.view_as_complex(noise) * mask
    return Scan(kspace, mask, maps, sigma * 2**0.5)


@pytest.mark.parametrize("gamma", [0.02, 0.1, 1.0])
def test_share_is_how_the_evidence_grows_with_the_covariance(gamma: float) -> None:
    """d/dlog s of 1/2 log det (s A Sigma A^T + gamma^2 I) is n share / 2 at s = 1, by finite differences."""
    prior = LinearVAE(SHAPE, dtype=torch.float64)
    scan = one_coil(torch.ones(SHAPE), gamma, seed=1)
    model = SenseModel.of(scan)
    problem = VAEObjective(prior, model, scan.kspace, None, gamma, 1.0, 1.0)
    decoded = problem.decode(torch.zeros(1, 1, 5, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    drawn = [problem.measured_share(decoded, generator, 500, 1e-10) for _ in range(200)]

    columns = model(torch.eye(PIXELS, dtype=torch.complex128).reshape(PIXELS, *SHAPE)).reshape(PIXELS, -1).mT
    a = torch.cat([columns.real, columns.imag])
    sigma = torch.linalg.inv(prior.lower @ prior.lower.mT)

    def evidence(log_s: float) -> torch.Tensor:
        s = torch.tensor(log_s, dtype=torch.float64).exp()
        return 0.5 * torch.logdet(s * a @ sigma @ a.mT + gamma**2 * torch.eye(len(a), dtype=torch.float64))

    slope = float(evidence(1e-4) - evidence(-1e-4)) / 2e-4
    assert float(torch.stack(drawn).mean()) == pytest.approx(2 * slope / PIXELS, rel=0.02)
    assert 0 < slope < PIXELS / 2


def test_unmeasured_pixels_do_not_make_the_prior_sure_of_itself() -> None:
    """Residuals of width 0.2 at a third of k-space: the joint optimum holds them for smaller, the marginal one not."""
    generator = torch.Generator().manual_seed(4)
    image = 1 + 0.2 * torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    scan = one_coil(image, 0.01, seed=2)
    grid = torch.linspace(-5, 0, 101, dtype=torch.float64)
    found = {}
    for latents in ("joint", "marginal"):
        problem = VAEObjective(OneWidth(), SenseModel.of(scan), scan.kspace, None, 0.01, 1.0, 0.0)
        if latents == "marginal":
            at = problem.decode(torch.full((1, 1, 1), -2.0, dtype=torch.float64))
            problem.share = problem.measured_share(at, torch.Generator().manual_seed(0), 200, 1e-9)
        values = []
        for z in grid:
            decoded = problem.decode(z.reshape(1, 1, 1))
            x = problem.image(problem.adjoint, decoded, 200, 1e-10)
            values.append(float(problem.value(x, decoded)))
        found[latents] = float(grid[torch.tensor(values).argmin()].exp())
    assert found["marginal"] == pytest.approx(0.2, rel=0.15)
    # n exp(-2 z) times the mean square of what was measured, spread over all n, is n
    assert problem.share is not None
    assert found["joint"] == pytest.approx(0.2 * float(problem.share) ** 0.5, rel=0.15)


def test_share_is_told_and_random_starts_have_that_of_the_first() -> None:
    prior = LinearVAE(SHAPE, dtype=torch.float64)
    scan = one_coil(torch.ones(SHAPE), 0.05, seed=3)
    found = vae(scan, prior, VAESettings(latents="marginal", samples=0, starts=3))
    (share,) = found.info["share"]
    assert 0 < share < 1
    assert vae(scan, prior, VAESettings(samples=0)).info["share"] is None
    # log det L is the same for all z here, so both find one image
    joint = vae(scan, prior, VAESettings(samples=0, tolerance=1e-9, cg_tolerance=1e-8, cg_iterations=200))
    marginal = vae(
        scan, prior, VAESettings(latents="marginal", samples=0, tolerance=1e-9, cg_tolerance=1e-8, cg_iterations=200)
    )
    torch.testing.assert_close(joint.image, marginal.image, rtol=0, atol=1e-5)
