"""Latents by their marginal probability: the share that the data decide, and what it saves the latents from."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from linear_vae import CurvedVAE, DenseFactor, LinearVAE
from scanprior.models import vae_reconstruction
from scanprior.models.forward import SenseModel
from scanprior.models.scan import Scan
from scanprior.models.vae_descent import Descent
from scanprior.models.vae_objective import VAEObjective
from scanprior.models.vae_problem import VAESetup
from scanprior.models.vae_reconstruction import VAESettings, vae

SHAPE = (12, 12)
PIXELS = SHAPE[0] * SHAPE[1]


class OneWidth:
    """Images around a known one, whose residuals are white, of the standard deviation exp(z): z is to be found.

    `last` is the z that was decoded last; of `vae` the one that was found.
    """

    name, family, scale, parts, size, demodulated = "one width", "vae", (99.5, 1.0), 1, None, False

    def for_shape(self, shape: tuple[int, int]) -> OneWidth:
        return self

    def latent_shape(self, shape: tuple[int, int]) -> tuple[int, ...]:
        return (1,)

    def encode(self, e: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((len(e), 1), -2.0, dtype=e.dtype), torch.zeros(len(e), 1, dtype=e.dtype)

    def decode(self, z: torch.Tensor) -> tuple[torch.Tensor, DenseFactor]:
        self.last = z[0, 0].detach()
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


def dense_columns(model: SenseModel, phase: torch.Tensor) -> torch.Tensor:
    """A with this phase as a real matrix (2 samples, pixels)."""
    columns = model(phase * torch.eye(PIXELS, dtype=phase.dtype).reshape(PIXELS, *SHAPE)).reshape(PIXELS, -1).mT
    return torch.cat([columns.real, columns.imag])


def test_vae_finds_the_latents_of_either_objective() -> None:
    """By dense algebra in the prior's scale; mu is so small that the latents' own prior counts for nothing."""
    generator = torch.Generator().manual_seed(4)
    scan = one_coil(1 + 0.2 * torch.randn(SHAPE, generator=generator, dtype=torch.float64), 0.01, seed=2)
    exact = {"mu": 1e-6, "tolerance": 1e-9, "cg_tolerance": 1e-9, "cg_iterations": 300, "samples": 256}
    setup = VAESetup.of(scan, OneWidth(), VAESettings())
    assert setup.phase is not None
    a = dense_columns(setup.model, setup.phase)
    y = torch.view_as_real(scan.kspace / setup.scale).reshape(-1, 2).mT.flatten()
    # the data's variance is s^2 d + gamma^2 in each direction of A; what of y no image makes costs the same for all s
    d, axes = torch.linalg.eigh(a.mT @ a)
    measured = d > 1e-9
    of_axis = (axes.mT @ a.mT @ (y - a.sum(1)))[measured] / d[measured].sqrt()
    share = float((d / (d + setup.gamma**2 * math.exp(4.0))).sum()) / PIXELS  # where the encoder says: z = -2
    grid = torch.linspace(-5, 0, 5001, dtype=torch.float64)
    variance = (2 * grid).exp()[:, None] * d[measured] + setup.gamma**2
    misfit = (of_axis.square() / variance).sum(1) / 2
    width = {}
    for latents in ("joint", "marginal"):
        prior = OneWidth()
        found = vae(scan, prior, VAESettings.model_validate(exact | {"latents": latents}))
        if latents == "marginal":
            (told,) = found.info["share"]
            assert told == pytest.approx(share, rel=0.2)  # of one random vector: a mean over 144 numbers
        else:
            told = 1.0
            assert found.info["share"] is None
        wanted = float(grid[(misfit + told * PIXELS * grid).argmin()])
        assert float(prior.last) == pytest.approx(wanted, abs=0.01)
        # and the standard deviation is of this width: s in all directions that no sample measures
        s = (2 * prior.last).exp()
        spread = (1 / (d / setup.gamma**2 + 1 / s)).sum() / PIXELS
        assert found.std is not None
        assert float(found.std.square().mean()) == pytest.approx(setup.scale**2 * float(spread), rel=0.05)
        width[latents] = float(prior.last.exp())
    # n exp(-2 z) times the mean square of what was measured, spread over all n, is n: the joint width is too small
    assert width["joint"] / width["marginal"] == pytest.approx(told**0.5, rel=0.03)
    assert told < 0.7


def test_each_slice_has_its_own_share_from_all_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two slices from two starts: the elements are both slices from the first start, then from the second."""
    prior = CurvedVAE(SHAPE, dtype=torch.float64)
    bright, dim = (one_coil(level * torch.ones(SHAPE), 0.05, seed=3) for level in (1.0, 0.3))
    scan = replace(bright, kspace=torch.stack([bright.kspace, dim.kspace]))
    seen: list[torch.Tensor | None] = []
    descend = vae_reconstruction._descend

    def spied(problem: VAEObjective, *rest: Any) -> Descent:
        seen.append(problem.share)
        return descend(problem, *rest)

    monkeypatch.setattr(vae_reconstruction, "_descend", spied)
    found = vae(scan, prior, VAESettings(latents="marginal", samples=0, starts=2, iterations=3))
    first, second = found.info["share"]
    assert abs(first - second) > 0.01, "else this would show nothing"
    (share,) = seen
    assert share is not None
    assert share.tolist() == [first, second, first, second]
