"""Search in a generator's range against the closed form of a linear generator, and the tuning of its weights."""

from __future__ import annotations

import copy
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from linear_vae import LATENTS, LinearVAE
from pydantic import ValidationError
from scanprior.models.forward import SenseModel
from scanprior.models.magnitude_prior import smooth_phase
from scanprior.models.methods import METHODS, reconstruct
from scanprior.models.narnhofer import NarnhoferSettings, tune_weights
from scanprior.models.range_search import Found, Search
from scanprior.models.scan import Reconstruction, Scan
from scanprior.models.vae_objective import VAEObjective
from scanprior.models.vae_prior import VAEPrior, build_vae
from support import random_complex

SHAPE = (12, 14)


class Generator(LinearVAE):
    """A `LinearVAE` whose mean decoder is a module; `bend` makes it G(z) = W tanh(bend z) / bend + b."""

    name = "generator"

    def __init__(self, *arguments: Any, bend: float = 0.0, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        linear = torch.nn.Linear(*reversed(self.weight.shape), dtype=self.dtype)
        with torch.no_grad():
            linear.weight.copy_(self.weight)
            linear.bias.copy_(self.offset)
        self.vae = SimpleNamespace(mean_decoder=linear.requires_grad_(False))
        self.bend = bend

    def for_shape(self, shape: tuple[int, int]) -> Generator:
        return self

    def mean(self, z: torch.Tensor) -> torch.Tensor:
        self.decodings += 1
        bent = torch.tanh(self.bend * z) / self.bend if self.bend else z
        return self.vae.mean_decoder(bent).reshape(-1, *self.image_shape)


def scan_of(prior: Generator, sigma: float = 0.1, outside: float = 0.0, seed: int = 5, coils: int = 3) -> Scan:
    """A scan of an image that the prior makes, with a smooth phase, and `outside` of white image beside it."""
    generator = torch.Generator().manual_seed(seed)
    e = prior.mean(torch.randn(1, LATENTS, generator=generator, dtype=prior.dtype))[0]
    e = e + outside * torch.randn(e.shape, generator=generator, dtype=e.dtype)
    dtype = torch.complex128 if prior.dtype == torch.float64 else torch.complex64
    image = (e[0] if prior.parts == 1 else torch.complex(e[0], e[1])).to(dtype)
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n, dtype=prior.dtype) for n in SHAPE), indexing="ij")
    image = image * torch.polar(torch.ones_like(x), 0.5 * x - 0.8 * y)
    maps = random_complex(coils, *SHAPE, seed=1, dtype=dtype)
    maps = maps / maps.abs().square().sum(0).sqrt()
    mask = torch.rand(SHAPE, generator=generator) < 0.6
    mask[5:8, 5:9] = True
    kspace = SenseModel(maps, mask)(image)
    return Scan(kspace + sigma * random_complex(*kspace.shape, seed=seed, dtype=dtype) * mask, mask, maps, sigma)


def run(method: str, scan: Scan, prior: Generator, **settings: Any) -> Reconstruction:
    return reconstruct(method, scan, prior, METHODS[method].settings.model_validate(settings))


def closed_form(scan: Scan, prior: Generator, info: dict[str, Any]) -> tuple[torch.Tensor, float]:
    """The image and the objective of the best z, by dense algebra in the prior's scale."""
    model, scale, gamma, mu = SenseModel.of(scan), info["scale"], info["gamma"], info["mu"]
    rough = model.solve(model.H(scan.kspace), 0.01, iterations=15)
    phase = smooth_phase(rough) if prior.parts == 1 or prior.demodulated else torch.ones_like(rough)

    def measured(e: torch.Tensor) -> torch.Tensor:
        e = e.reshape(-1, *prior.image_shape)
        images = e[:, 0].to(phase.dtype) if prior.parts == 1 else torch.complex(e[:, 0], e[:, 1])
        return torch.view_as_real(model(images * phase)).reshape(len(e), -1)

    columns = measured(prior.weight.mT).mT
    goal = torch.view_as_real(scan.kspace / scale).flatten() - measured(prior.offset)[0]
    eye = torch.eye(LATENTS, dtype=prior.dtype)
    z = torch.linalg.solve(columns.mT @ columns / gamma**2 + mu * eye, columns.mT @ goal / gamma**2)
    objective = (columns @ z - goal).square().sum() / (2 * gamma**2) + mu * z.square().sum() / 2
    e = (prior.weight @ z + prior.offset).reshape(prior.image_shape)
    return scale * phase * (e[0] if prior.parts == 1 else torch.complex(e[0], e[1])), float(objective)


@pytest.mark.parametrize(("parts", "demodulated"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("mu", [1.0, 50.0])
def test_a_linear_generator_gives_the_closed_form(parts: int, demodulated: bool, mu: float) -> None:
    prior = Generator(SHAPE, parts, dtype=torch.float64, demodulated=demodulated)
    scan = scan_of(prior, outside=0.05)
    found = run("range", scan, prior, mu=mu, tolerance=1e-14)
    wanted, objective = closed_form(scan, prior, found.info)
    assert found.info["objective"][-1] == pytest.approx(objective, rel=1e-9)
    torch.testing.assert_close(found.image, wanted, rtol=0, atol=1e-6)
    assert found.std is None


def test_objective_never_rises_and_evaluations_are_counted() -> None:
    prior = Generator(SHAPE, bend=1.0)
    scan = scan_of(prior)
    prior.decodings = 0
    steps: list[tuple[int, int]] = []
    settings = METHODS["range"].settings.model_validate({"starts": 3, "iterations": 12, "tolerance": 0})
    found = reconstruct("range", scan, prior, settings, lambda *at: steps.append(at))
    assert found.info["nfe"] == prior.decodings
    assert found.info["objective"] == sorted(found.info["objective"], reverse=True)
    assert found.info["iterations"] == 12
    assert len(found.info["objective"]) == 3
    assert steps[-1] == (36, 36)
    assert steps == sorted(steps)
    assert run("range", scan, prior).info["stopped"] == "tolerance"


class Lost(Generator):
    """An encoder that is far off, to where the generator does not depend on z: no gradient leads back."""

    def encode(self, e: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = torch.full((len(e), LATENTS), 9.0, dtype=self.dtype)
        return z, torch.zeros_like(z)

    def mean(self, z: torch.Tensor) -> torch.Tensor:
        return super().mean(torch.where(z > 8, torch.zeros_like(z), z))


def test_the_lowest_objective_wins() -> None:
    prior = Lost(SHAPE, 2, dtype=torch.float64)
    scan = scan_of(Generator(SHAPE, 2, dtype=torch.float64), sigma=0.02)
    one, two = (run("range", scan, prior, starts=starts, mu=0.0) for starts in (1, 2))
    assert two.info["winner"] == [1]
    _, objective = closed_form(scan, prior, two.info)
    assert two.info["objective"][-1] == pytest.approx(objective, rel=1e-4)
    assert one.info["objective"][-1] > 1.1 * objective


def test_tuning_goes_below_the_range_and_stops_at_the_noise() -> None:
    prior = Generator(SHAPE, 2, dtype=torch.float64)
    scan = scan_of(prior, sigma=0.05, outside=0.3)
    before = {name: value.clone() for name, value in prior.vae.mean_decoder.state_dict().items()}
    only = run("range", scan, prior)
    tuned = run("narnhofer", scan, prior, weight_rate=1e-2)
    assert tuned.info["residual"] <= 1 < 1.5 < only.info["residual"]
    assert tuned.info["stopped"] == "discrepancy"
    # it is the residual of what came out, in the scan's own units
    model = SenseModel.of(scan)
    count = scan.mask.sum() * 3
    residual = float(((model(tuned.image) - scan.kspace).abs().square().sum() / count).sqrt()) / scan.sigma
    assert residual == pytest.approx(tuned.info["residual"], rel=1e-3)
    # one step earlier it was not there yet
    early = run("narnhofer", scan, prior, weight_rate=1e-2, weight_iterations=tuned.info["iterations"] - 1)
    assert early.info["stopped"] == "iterations"
    assert early.info["residual"] > 1
    after = prior.vae.mean_decoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(weight.requires_grad for weight in prior.vae.mean_decoder.parameters())
    assert torch.equal(run("range", scan, prior).image, only.image)


class EarlyGoal(Search):
    """Says that the noise is reached after the first step."""

    looks = 0

    def misfit(self, image: torch.Tensor) -> float:
        self.looks += 1
        return 0.0 if self.looks == 2 else float("inf")


def test_the_last_objective_is_that_of_the_image() -> None:
    """Steps so long that Adam goes up: where the discrepancy principle stops it, the lowest so far is of another."""
    prior = Generator(SHAPE, dtype=torch.float64)
    scan = scan_of(prior, outside=0.3)
    problem = VAEObjective(prior, SenseModel.of(scan), scan.kspace, None, 0.1, 1.0, 1.0)
    search = EarlyGoal(problem, prior, 1.0, "narnhofer")
    z = torch.zeros(1, 1, LATENTS, dtype=torch.float64)
    with torch.no_grad():
        image = search.generate(z)
        before = float(search.value(z, image))
    begin = Found(z, image, [before], 0, "iterations")
    settings = NarnhoferSettings(weight_rate=1.0, weight_iterations=10)
    found = tune_weights(search, begin, 1.0, settings, lambda step: None)
    assert (found.stopped, found.iterations) == ("discrepancy", 1)
    with torch.no_grad():
        assert found.history == [before, pytest.approx(float(search.value(found.z, found.image)), rel=1e-12)]
    assert found.history[-1] > 1.1 * before


def test_tuning_in_two_threads_at_once() -> None:
    prior = Generator(SHAPE, dtype=torch.float64)
    scans = [scan_of(prior, outside=0.3, seed=seed) for seed in (5, 6)]
    settings = {"tolerance": 1e-12, "weight_iterations": 15, "starts": 1}
    alone = [run("narnhofer", scan, prior, **settings).image for scan in scans]
    found: dict[int, torch.Tensor] = {}

    def work(which: int) -> None:
        found[which] = run("narnhofer", scans[which], prior, **settings).image

    threads = [threading.Thread(target=work, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for which in range(2):
        torch.testing.assert_close(found[which], alone[which], rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["range", "narnhofer"])
def test_slices_sets_and_gain(method: str) -> None:
    prior = Generator(SHAPE, 2, dtype=torch.float64)
    scan = scan_of(prior)
    assert scan.maps is not None
    settings = {"tolerance": 1e-14} | ({"weight_iterations": 3} if method == "narnhofer" else {})
    alone = run(method, scan, prior, **settings).image
    other = replace(scan, kspace=scan.kspace.roll(1, 0))
    stack = Scan(torch.stack([scan.kspace, other.kspace, scan.kspace]), scan.mask, scan.maps, scan.sigma)
    together = run(method, stack, prior, **settings)
    assert together.image.shape == (3, *SHAPE)
    torch.testing.assert_close(together.image[0], together.image[2], rtol=0, atol=1e-6)
    assert len(together.info["winner"]) == 3
    if method == "range":
        wanted, _ = closed_form(scan, prior, together.info)
        torch.testing.assert_close(together.image[0], wanted, rtol=0, atol=1e-6)
    quiet = replace(scan, kspace=scan.kspace * 1e-5, sigma=scan.sigma * 1e-5)
    torch.testing.assert_close(run(method, quiet, prior, **settings).image * 1e5, alone, rtol=1e-5, atol=1e-6)
    left = (torch.arange(SHAPE[1]) < 7).to(scan.maps.dtype)
    sets = replace(scan, maps=torch.stack([scan.maps * left, scan.maps * (1 - left)]))
    image = run(method, sets, prior, **settings).image
    assert image.shape == SHAPE
    # the halves have latents and a scale of their own, and still it is one image
    assert float((image - alone).norm()) < 0.2 * float(alone.norm())


def test_a_network_of_any_size_stays_as_it_is() -> None:
    """The decoder makes 12 x 16, a multiple of its coarsest pixel; the scan is of 12 x 14."""
    torch.manual_seed(0)
    vae = build_vae({"size": None, "latent": 4, "widths": [4, 8], "middle": 8, "covariance": "identity"}).eval()
    prior = VAEPrior(vae.requires_grad_(False), "tiny")
    scan = scan_of(Generator(SHAPE))
    before = {name: value.clone() for name, value in prior.weights().items()}
    settings = METHODS["narnhofer"].settings.model_validate({"iterations": 5, "weight_iterations": 20})
    found = reconstruct("narnhofer", scan, prior, settings)
    assert found.image.shape == SHAPE
    assert all(torch.equal(before[name], value) for name, value in prior.weights().items())
    assert not any(weight.requires_grad for weight in vae.parameters())
    # entry 1 is where the search in the range ended
    assert found.info["objective"][-1] < found.info["objective"][1]


class Broken(Generator):
    def mean(self, z: torch.Tensor) -> torch.Tensor:
        return super().mean(z) * float("nan")


@pytest.mark.parametrize("method", ["range", "narnhofer"])
def test_what_cannot_be_done_is_refused(method: str) -> None:
    prior = Generator(SHAPE)
    scan = scan_of(prior)
    with pytest.raises(ValueError, match=rf"{method}: the objective is not finite"):
        run(method, scan, Broken(SHAPE))
    with pytest.raises(ValueError, match=r"for images of 16 x 16 only, and this scan is of 12 x 14"):
        run(method, scan, Generator(SHAPE, size=16))
    with pytest.raises(ValueError, match=r"expected an image \(1, 1, 12, 14\), got \(1, 1, 14, 12\)"):
        run(method, scan, _turned(prior))
    with pytest.raises(ValueError, match="no signal"):
        run(method, replace(scan, kspace=0 * scan.kspace), prior)
    with pytest.raises(ValueError, match="needs coil maps"):
        run(method, replace(scan, maps=None), prior)
    for wrong in ({"mu": -1}, {"gamma": 0}, {"gamma": float("nan")}, {"starts": 0}):
        with pytest.raises(ValidationError):
            run(method, scan, prior, **wrong)


def _turned(prior: Generator) -> Generator:
    other = copy.deepcopy(prior)
    other.image_shape = (1, *reversed(SHAPE))
    return other


def test_a_warm_up_is_short() -> None:
    settings = METHODS["narnhofer"].settings.model_validate({}).brief()
    assert settings.iterations == settings.weight_iterations == 2  # type: ignore[attr-defined]
