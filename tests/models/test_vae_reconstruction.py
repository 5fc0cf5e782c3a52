"""The VAE reconstruction against the closed form of a linear-Gaussian decoder, and against itself on a curved one."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from linear_vae import LATENTS, CurvedVAE, DenseFactor, LinearVAE
from pydantic import ValidationError
from scanprior.models.forward import SenseModel
from scanprior.models.magnitude_prior import smooth_phase
from scanprior.models.methods import METHODS
from scanprior.models.scan import Reconstruction, Scan
from scanprior.models.vae_objective import VAEObjective
from scanprior.models.vae_prior import VAEPrior, build_vae
from scanprior.models.vae_problem import GAMMA_FLOOR
from scanprior.models.vae_reconstruction import VAESettings, vae
from support import random_complex

SHAPE = (10, 12)
EXACT = {"tolerance": 1e-12, "cg_tolerance": 1e-8, "cg_iterations": 200}


def scan_of(
    prior: LinearVAE, coils: int = 3, lines: bool = True, sigma: float = 0.1, seed: int = 5, gain: float = 1.0
) -> tuple[Scan, torch.Tensor]:
    """A scan of an image that the prior draws, with a smooth phase; and the image."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(1, LATENTS, generator=generator, dtype=prior.dtype)
    mean, factor = prior.decode(z)
    white = torch.randn(mean.numel(), 1, generator=generator, dtype=prior.dtype)
    e = mean[0] + torch.linalg.solve_triangular(factor.lower[0].mT, white, upper=True).reshape(mean.shape[1:])
    image = e[0] if prior.parts == 1 else torch.complex(e[0], e[1])
    dtype = torch.complex128 if prior.dtype == torch.float64 else torch.complex64
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n, dtype=prior.dtype) for n in SHAPE), indexing="ij")
    image = image.to(dtype) * torch.polar(torch.ones_like(x), 0.5 * x - 0.8 * y)
    maps = random_complex(coils, *SHAPE, seed=1, dtype=dtype) if coils > 1 else torch.ones(1, *SHAPE, dtype=dtype)
    maps = maps / maps.abs().square().sum(0).sqrt()
    mask = torch.rand(SHAPE[0], 1 if lines else SHAPE[1], generator=generator) < 0.5
    mask[4:7] = True
    kspace = SenseModel(maps, mask)(image)
    kspace = kspace + sigma * random_complex(*kspace.shape, seed=seed, dtype=dtype) * mask
    return Scan(gain * kspace, mask, maps, gain * sigma), gain * image


def run(scan: Scan, prior: LinearVAE, **settings: Any) -> Reconstruction:
    quick = {"samples": 0, "tolerance": 1e-4, "cg_iterations": 10}
    return vae(scan, prior, VAESettings.model_validate(quick | settings))


class Dense:
    """The problem of a scan with a `LinearVAE` as dense real matrices, in the prior's scale."""

    def __init__(self, scan: Scan, prior: LinearVAE, scale: float, lam: float = 1.0, mu: float = 1.0) -> None:
        model = SenseModel.of(scan)
        rough = model.solve(model.H(scan.kspace), 0.01, iterations=15)
        self.phase = smooth_phase(rough) if prior.parts == 1 or prior.demodulated else torch.ones_like(rough)
        pixels = rough.numel()
        basis = torch.eye(pixels, dtype=rough.dtype).reshape(pixels, *SHAPE)
        if prior.parts == 2:
            basis = torch.cat([basis, 1j * basis])
        columns = model(self.phase * basis).reshape(len(basis), -1).mT
        a = torch.cat([columns.real, columns.imag])
        y = torch.cat([scan.kspace.real.flatten(), scan.kspace.imag.flatten()]) / scale
        self.gamma = scan.sigma / 2**0.5 / scale
        p, w = prior.lower @ prior.lower.mT, prior.weight
        eye = torch.eye(LATENTS, dtype=w.dtype)
        self.of_image = a.mT @ a / self.gamma**2 + lam * p  # of the image, its latents known
        full = torch.cat(
            [
                torch.cat([self.of_image, -lam * p @ w], 1),
                torch.cat([-lam * w.mT @ p, lam * (w.mT @ p @ w + mu * eye)], 1),
            ]
        )
        pull = lam * p @ prior.offset
        solution = torch.linalg.solve(full, torch.cat([a.mT @ y / self.gamma**2 + pull, -w.mT @ pull]))
        self.solution, z = solution[: len(basis)], solution[len(basis) :]
        residual = self.solution - w @ z - prior.offset
        self.objective = float(
            (a @ self.solution - y).square().sum() / (2 * self.gamma**2)
            + lam * ((prior.lower.mT @ residual).square().sum() / 2 - prior.lower.diagonal().log().sum())
            + lam * mu * z.square().sum() / 2
        )
        self.image = scale * self.phase * self.complex(self.solution)

    def complex(self, e: torch.Tensor) -> torch.Tensor:
        half = e.unflatten(-1, (-1, *SHAPE))
        return half[..., 0, :, :] + (1j * half[..., 1, :, :] if half.shape[-3] == 2 else 0)


@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize("coils", [1, 3])
@pytest.mark.parametrize(("parts", "demodulated"), [(1, False), (2, False), (2, True)])
def test_a_linear_decoder_gives_the_closed_form(parts: int, demodulated: bool, coils: int, lines: bool) -> None:
    prior = LinearVAE(SHAPE, parts, dtype=torch.float64, demodulated=demodulated)
    scan, _ = scan_of(prior, coils, lines)
    found = run(scan, prior, lam=0.7, mu=1.8, **EXACT)
    exact = Dense(scan, prior, found.info["scale"], 0.7, 1.8)
    assert found.info["gamma"] == pytest.approx(exact.gamma)
    assert found.info["objective"][-1] == pytest.approx(exact.objective, rel=1e-9)
    torch.testing.assert_close(found.image, exact.image, rtol=0, atol=1e-5)


def test_the_published_form_finds_it_too() -> None:
    prior = LinearVAE(SHAPE, dtype=torch.float64)
    scan, _ = scan_of(prior)
    found = run(scan, prior, form="published", tolerance=1e-7)
    exact = Dense(scan, prior, found.info["scale"])
    assert found.info["iterations"] < 5000, "it stopped by itself"
    assert found.info["objective"][-1] == pytest.approx(exact.objective, rel=1e-5)
    torch.testing.assert_close(found.image, exact.image, rtol=0, atol=5e-3)


@pytest.mark.parametrize("parts", [1, 2])
def test_std_is_that_of_the_gaussian(parts: int) -> None:
    prior = LinearVAE(SHAPE, parts, dtype=torch.float64)
    scan, _ = scan_of(prior)
    draws = 20000
    found = run(scan, prior, samples=256, **EXACT)
    exact = Dense(scan, prior, found.info["scale"])
    lower = torch.linalg.cholesky(torch.linalg.inv(exact.of_image))
    white = torch.randn(len(lower), draws, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    samples = exact.complex((exact.solution[:, None] + lower @ white).mT)
    wanted = found.info["scale"] * samples.abs().std(0)
    assert found.std is not None
    # each standard deviation is known to 1 / sqrt(2 * 256) = 4.4 %
    torch.testing.assert_close(found.std, wanted, rtol=0.2, atol=0)
    assert float((found.std / wanted).mean()) == pytest.approx(1, abs=0.015)


@pytest.mark.parametrize("form", ["fast", "published"])
@pytest.mark.parametrize("latents", ["joint", "marginal"])
@pytest.mark.parametrize("prior", [LinearVAE(SHAPE), CurvedVAE(SHAPE, 2)], ids=["linear", "curved"])
def test_the_objective_never_rises(form: str, latents: str, prior: LinearVAE) -> None:
    scan, _ = scan_of(prior)
    steps: list[tuple[int, int]] = []
    settings = VAESettings.model_validate(
        {"form": form, "latents": latents, "samples": 0, "starts": 3, "iterations": 40}
    )
    found = vae(scan, prior, settings, lambda step, total: steps.append((step, total)))
    history = found.info["objective"]
    assert all(after <= before for before, after in itertools.pairwise(history))
    assert history[-1] < history[0]
    assert found.info["iterations"] == len(history) - 1 >= len(steps)
    assert steps == [(n + 1, 40) for n in range(len(steps))]
    assert steps


def test_the_fast_form_is_lower_with_far_fewer_evaluations() -> None:
    prior = CurvedVAE(SHAPE)
    scan, _ = scan_of(prior)
    slow = run(scan, prior, form="published", iterations=250)
    before = prior.decodings
    quick = run(scan, prior, form="fast")
    assert quick.info["objective"][-1] <= slow.info["objective"][-1] + 1e-3
    assert quick.info["nfe"] == prior.decodings - before
    assert 5 * quick.info["nfe"] < slow.info["nfe"]


@pytest.mark.parametrize("form", ["fast", "published"])
@pytest.mark.parametrize("latents", ["joint", "marginal"])
@pytest.mark.parametrize("pieces", [1, 2])
def test_evaluations_are_those_of_one_slice_from_all_starts(
    form: str, latents: str, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted where the images are made: all that the decoder made, over the number of slices."""
    prior = CurvedVAE(SHAPE)
    scan, _ = scan_of(prior)
    made = 0
    decode = prior.decode

    def counted(z: torch.Tensor) -> tuple[torch.Tensor, DenseFactor]:
        nonlocal made
        made += len(z)
        return decode(z)

    prior.decode = counted  # type: ignore[method-assign]
    starts, slices = 3, 2
    pixels = SHAPE[0] * SHAPE[1] * starts
    monkeypatch.setattr("scanprior.models.vae_reconstruction.GRADIENT_PIXELS", pixels * slices // pieces)
    stack = replace(scan, kspace=torch.stack([scan.kspace] * slices))
    found = run(stack, prior, form=form, latents=latents, starts=starts, iterations=7, samples=2)
    assert found.info["nfe"] == made // slices


def test_of_several_starts_the_lowest_wins() -> None:
    """From far away L-BFGS finds a minimum of a decoder that repeats itself, not the lowest one."""
    prior = CurvedVAE(SHAPE, curve=torch.sin)
    scan, _ = scan_of(prior, seed=3)
    prior.encode = lambda e: (torch.full((len(e), LATENTS), 6.0), torch.zeros(len(e), LATENTS))  # type: ignore[method-assign]
    one = run(scan, prior)
    several = run(scan, prior, starts=8)
    assert one.info["winner"] == [0]
    assert several.info["winner"] != [0]
    assert several.info["objective"][-1] < one.info["objective"][-1] - 1
    assert several.info["nfe"] > one.info["nfe"]


@pytest.mark.parametrize("latents", ["joint", "marginal"])
def test_slices_of_a_batch_are_not_mixed(latents: str) -> None:
    """The first slice is by far the brightest, so that it alone sets the intensity scale that all share."""
    prior = CurvedVAE(SHAPE, dtype=torch.float64)
    a, b, c, d = (scan_of(prior, seed=seed)[0] for seed in (5, 6, 7, 8))
    first = replace(a, kspace=torch.stack([3 * a.kspace, b.kspace * a.mask, c.kspace * a.mask]))
    second = replace(a, kspace=torch.stack([3 * a.kspace, b.kspace * a.mask, d.kspace * a.mask]))
    found, other = (run(scan, prior, samples=2, starts=2, latents=latents) for scan in (first, second))
    assert found.std is not None
    assert found.image.shape == found.std.shape == (3, *SHAPE)
    assert found.info["scale"] == other.info["scale"]
    torch.testing.assert_close(found.image[:2], other.image[:2], rtol=0, atol=1e-2)
    assert float((found.image[2] - other.image[2]).abs().max()) > 0.1


def test_a_volume_in_pieces_is_the_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = LinearVAE(SHAPE, dtype=torch.float64)
    scan, _ = scan_of(prior)
    stack = replace(scan, kspace=torch.stack([scan.kspace, 0.5 * scan.kspace, scan.kspace.flip(-1)]))
    whole = run(stack, prior, **EXACT)
    monkeypatch.setattr("scanprior.models.vae_reconstruction.GRADIENT_PIXELS", 2 * SHAPE[0] * SHAPE[1])
    calls: list[tuple[int, int]] = []
    settings = VAESettings.model_validate(EXACT | {"samples": 2})
    parts = vae(stack, prior, settings, lambda step, total: calls.append((step, total)))
    torch.testing.assert_close(parts.image, whole.image, rtol=0, atol=1e-6)
    assert parts.info["objective"][-1] == pytest.approx(whole.info["objective"][-1], rel=1e-9)
    assert parts.std is not None
    assert parts.std.shape == (3, *SHAPE)
    assert calls[-1][1] == 200
    assert calls == sorted(calls)


def test_gain_and_seed() -> None:
    prior = CurvedVAE(SHAPE, dtype=torch.float64)
    scan, _ = scan_of(prior)
    quiet, _ = scan_of(prior, gain=1e-5)
    first, again, small = (run(s, prior, samples=4, starts=2) for s in (scan, scan, quiet))
    assert first.std is not None
    assert again.std is not None
    assert small.std is not None
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.std, again.std)
    torch.testing.assert_close(small.image * 1e5, first.image, rtol=0, atol=1e-3)
    torch.testing.assert_close(small.std * 1e5, first.std, rtol=1e-2, atol=0)
    other = run(scan, prior, samples=4, starts=2, seed=1)
    assert other.std is not None
    assert not torch.equal(first.std, other.std)


def test_more_noise_follows_the_prior_more() -> None:
    """With next to no noise the scan decides, with very much the prior's mean does."""
    prior = LinearVAE(SHAPE, dtype=torch.float64)
    scan, image = scan_of(prior, sigma=0.0)
    full = replace(scan, kspace=SenseModel.of(scan)(image), mask=torch.ones(SHAPE[0], 1, dtype=torch.bool))
    full = replace(full, kspace=SenseModel.of(full)(image))
    exact = run(full, prior, gamma=1e-4, tolerance=0)
    real = (smooth_phase(image).conj() * image).real * smooth_phase(image)
    assert float((exact.image - real).norm() / real.norm()) < 0.02
    floor = run(full, prior)
    assert floor.info["gamma"] == GAMMA_FLOOR
    blind = run(full, prior, gamma=1e4, **EXACT)
    mean = blind.info["scale"] * prior.offset.reshape(SHAPE).abs()
    torch.testing.assert_close(blind.image.abs(), mean, rtol=0, atol=1e-4)


def test_two_sets_of_maps() -> None:
    """Two sets that see a half of the field of view each: together they make the whole image."""
    prior = LinearVAE(SHAPE, 2)
    scan, image = scan_of(prior, sigma=0.002)
    assert scan.maps is not None
    left = (torch.arange(SHAPE[1]) < 6).to(torch.complex64)
    sets = torch.stack([scan.maps * left, scan.maps * (1 - left)])
    mask = torch.ones(SHAPE[0], 1, dtype=torch.bool)
    kspace = SenseModel(sets, mask, sets=True)(torch.stack([image * left, image * (1 - left)]))
    found = run(Scan(kspace, mask, sets, 0.002), prior, samples=2)
    assert float((found.image - image).norm() / image.norm()) < 0.05
    assert found.std is not None
    assert found.std.shape == SHAPE
    stack = run(Scan(torch.stack([kspace, kspace]), mask, torch.stack([sets, sets]), 0.002), prior, starts=2)
    torch.testing.assert_close(stack.image[1], found.image, rtol=0, atol=1e-2)


def test_outside_the_maps_there_is_nothing() -> None:
    prior = LinearVAE(SHAPE)
    scan, _ = scan_of(prior)
    assert scan.maps is not None
    maps = scan.maps.clone()
    maps[:, :3] = 0
    found = run(replace(scan, maps=maps), prior, samples=3)
    assert found.std is not None
    assert not found.image[:3].any()
    assert not found.std[:3].any()
    assert found.image[3:].abs().min() > 0


@pytest.mark.parametrize(
    "settings",
    [{"lam": 0.0}, {"lam": -1}, {"mu": 0}, {"gamma": 0.0}, {"gamma": -0.1}, {"lam": float("nan")}, {"mu": float("inf")},
     {"starts": 0}, {"form": "faster"}, {"samples": -1}, {"steps": 3}],
)  # fmt: skip
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        VAESettings.model_validate(settings)


def test_an_image_of_another_size_is_refused() -> None:
    prior = LinearVAE(SHAPE, size=16)
    scan, _ = scan_of(LinearVAE(SHAPE))
    with pytest.raises(ValueError, match="16 x 16 only, and this scan is of 10 x 12"):
        run(scan, prior)
    other = LinearVAE((10, 11))
    other.encode = lambda e: (torch.zeros(len(e), LATENTS), torch.zeros(len(e), LATENTS))  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"expected an image \(1, 1, 10, 12\), got \(1, 1, 10, 11\)"):
        run(scan, other)
    other.encode = lambda e: (torch.zeros(len(e), 3), torch.zeros(len(e), 3))  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"expected latents \(1, 5\) of its encoder, got \(1, 3\)"):
        run(scan, other)


@pytest.mark.parametrize("form", ["fast", "published"])
def test_no_nan_leaves_as_an_image(form: str) -> None:
    prior = LinearVAE(SHAPE)
    scan, _ = scan_of(prior)
    prior.offset[3] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        run(scan, prior, form=form)
    broken = replace(scan, kspace=scan.kspace.index_fill(-2, torch.tensor([6]), float("inf")))
    with pytest.raises(ValueError, match="k-space or the coil maps are not finite"):
        run(broken, LinearVAE(SHAPE), form=form)
    with pytest.raises(ValueError, match="finite noise level"):
        run(replace(scan, sigma=float("nan")), LinearVAE(SHAPE), form=form)
    with pytest.raises(ValueError, match="no signal"):
        run(replace(scan, kspace=0 * scan.kspace), LinearVAE(SHAPE), form=form)


def test_the_registry_and_the_warm_up() -> None:
    method = METHODS["vae"]
    assert (method.run, method.settings, method.prior) == (vae, VAESettings, "vae")
    prior = LinearVAE(SHAPE)
    scan, _ = scan_of(prior)
    found = method.run(scan, prior, VAESettings(starts=2).brief())
    assert found.info["iterations"] <= 3


@pytest.mark.parametrize(("parts", "size", "shape"), [(1, 16, (16, 16)), (2, None, (14, 19))])
def test_networks_serve_as_the_prior(parts: int, size: int | None, shape: tuple[int, int]) -> None:
    """With networks and a sparse factor, a dense latent and a latent map: the same objective, and a lower one."""
    torch.manual_seed(2)
    network = {"parts": parts, "size": size, "latent": 4, "widths": (8, 8), "middle": 8, "neighbourhood": 3}
    network_vae = build_vae(network)
    with torch.no_grad():
        for parameter in network_vae.parameters():
            parameter += 0.1 * torch.randn_like(parameter) * (parameter.ndim > 0)
    prior = VAEPrior(network_vae.eval().requires_grad_(False), "small")
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(shape, generator=generator).to(torch.complex64)
    maps = random_complex(3, *shape, seed=1)
    maps = maps / maps.abs().square().sum(0).sqrt()
    mask = torch.rand(shape[0], 1, generator=generator) < 0.6
    kspace = SenseModel(maps, mask)(image)
    found = vae(Scan(kspace, mask, maps, 0.05), prior, VAESettings(iterations=20, samples=2, starts=2))
    assert found.std is not None
    assert found.image.shape == found.std.shape == shape
    history = found.info["objective"]
    assert history[-1] < history[0]
    assert all(after <= before for before, after in itertools.pairwise(history))
    # the gradient is that of the objective, and CG ends where it is zero
    model = SenseModel(maps, mask)
    phase = smooth_phase(model.solve(model.H(kspace), 0.01, iterations=15))
    problem = VAEObjective(prior, model, kspace / found.info["scale"], phase, found.info["gamma"], 1.0, 1.0)
    x = problem.to_real(found.image / found.info["scale"])
    decoded = problem.decode(problem.encode(x))
    best = problem.image(x, decoded, 300, 1e-6)
    value = float(problem.value(best, decoded))
    assert value <= float(problem.value(x, decoded))
    nudged = best + 0.05 * torch.randn(best.shape, generator=generator)
    assert value < float(problem.value(nudged, decoded))
    gap = problem.image_gradient(best, decoded).norm() / problem.image_gradient(nudged, decoded).norm()
    assert float(gap) < 1e-3
