"""Score-MRI on a Gaussian prior: what it claims, which with noise in the data is not the posterior."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gaussian import SD, GaussianPrior, gaussian_scan, problem_of
from scanprior.models.forward import SenseModel
from scanprior.models.fourier import fft2c
from scanprior.models.posterior import Problem
from scanprior.models.recipe import RecipeError, recipe_from
from scanprior.models.scan import Scan
from scanprior.models.score_mri import (
    PCSettings,
    pc,
    predictor_corrector,
    root_sum_of_squares,
    sample_pc,
    sense_correction,
)
from support import random_complex

ALGORITHMS = ("real", "complex", "coils", "hybrid")


def sample(problem: Problem, prior: Any = None, **settings: Any) -> torch.Tensor:
    return sample_pc(problem, prior or GaussianPrior(), PCSettings(**settings), lambda *_: None)


def noiseless(mask: torch.Tensor, coils: int = 4, real: bool = False) -> tuple[Scan, torch.Tensor]:
    scan, image = gaussian_scan(real=real)
    assert scan.maps is not None
    maps = scan.maps if coils > 1 else torch.ones(1, 16, 18, dtype=torch.complex64)
    return Scan(SenseModel(maps, mask)(image), mask, maps, 0.0), image


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("coils", [1, 4])
def test_full_data_without_noise_give_the_image(algorithm: str, coils: int) -> None:
    scan, image = noiseless(torch.ones(16, 1, dtype=torch.bool), coils, real=algorithm == "real")
    drawn = sample(problem_of(scan, 2), algorithm=algorithm, steps=5, sense_every=2)
    torch.testing.assert_close(drawn, image.expand(2, -1, -1), rtol=1e-4, atol=1e-4)


class Correlated(GaussianPrior):
    """x0 of variance SD^2 in each real channel and of independent k-space rows, the means of which are not zero."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = random_complex(16, 18, seed=11)

    def denoise(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        return self.mean + super().denoise(x - self.mean, sigma)


@pytest.mark.parametrize("algorithm", ["complex", "coils", "hybrid"])
@pytest.mark.parametrize("line_mask", [True, False])
def test_what_is_measured_is_the_data_and_what_is_not_is_the_priors(algorithm: str, line_mask: bool) -> None:
    """One coil, no noise: samples of k-space are independent, and those unmeasured are distributed as in the prior."""
    scan, image = noiseless(gaussian_scan(line_mask)[0].mask, coils=1)
    prior = Correlated()
    drawn = sample(
        problem_of(scan, 64), prior, algorithm=algorithm, steps=250, sigma_start=20.0, sigma_end=0.01, snr=0.1
    )
    spectrum = fft2c(drawn)
    measured = scan.mask.expand(16, 18)
    torch.testing.assert_close(spectrum[:, measured], fft2c(image)[measured].expand(64, -1), rtol=1e-4, atol=1e-4)
    free = torch.view_as_real(spectrum[:, ~measured] - fft2c(prior.mean)[~measured])
    count = free[0].numel()
    assert float(free.mean(0).square().mean()) * 64 / SD**2 == pytest.approx(1, abs=4 * (2 / count) ** 0.5)
    # a step of the corrector makes the variance 1 + snr^2 too large
    assert float(free.var(0).mean()) / SD**2 == pytest.approx(1.01, abs=0.02 + 4 * (2 / (64 * count)) ** 0.5)


def test_a_real_image_has_the_priors_variance_in_its_one_channel() -> None:
    scan, _ = noiseless(torch.zeros(16, 1, dtype=torch.bool), coils=1, real=True)
    seen: list[torch.Tensor] = []

    class Looking(GaussianPrior):
        def denoise(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
            seen.append(x.imag / sigma)
            return super().denoise(x, sigma)

    drawn = sample(problem_of(scan, 64), Looking(), algorithm="real", steps=150, sigma_start=20.0, snr=0.1)
    assert not drawn.imag.any()
    assert float(drawn.real.mean()) == pytest.approx(0, abs=4 * SD / (64 * 288) ** 0.5)
    assert float(drawn.real.var()) / SD**2 == pytest.approx(1.01, abs=0.02 + 4 * (2 / (64 * 288)) ** 0.5)
    # a prior of complex images sees noise of the level in both channels
    assert all(float(imaginary.std()) == pytest.approx(1, abs=0.03) for imaginary in seen)


def test_predictor_and_corrector_are_the_papers() -> None:
    """Two levels, by hand; the corrector's step has the square that eq. 18 lacks, and each image has its own."""
    begin = random_complex(2, 16, 18, seed=5) * torch.tensor([1.0, 3.0])[:, None, None]
    draws = [random_complex(2, 16, 18, seed=seed) * 2**0.5 for seed in (6, 7)]
    settings = PCSettings(steps=2, sigma_start=1.0, sigma_end=0.5, snr=0.3)
    prior = GaussianPrior()
    given = iter(draws)
    found = predictor_corrector(begin, prior.denoise, lambda: next(given), lambda x: x, settings, lambda *_: None)
    x = begin - 0.75 * begin / (SD**2 + 1) + 0.75**0.5 * draws[0]
    for index in range(2):
        score = -x[index] / (SD**2 + 0.25)
        size = 2 * (0.3 * draws[1][index].norm() / score.norm()) ** 2
        x[index] += size * score + (2 * size) ** 0.5 * draws[1][index]
    torch.testing.assert_close(found, prior.denoise(x, 0.5), rtol=1e-4, atol=1e-4)
    assert prior.calls == 3 + 1


@pytest.mark.parametrize("line_mask", [True, False])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_data_consistency_lowers_the_misfit(line_mask: bool, algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whatever images, far from the data or near; the coil images' own projection makes it zero."""
    scan, image = gaussian_scan(line_mask, sigma=0.05)
    problem = problem_of(scan, 2, image)
    caught: list[Any] = []
    monkeypatch.setattr(
        "scanprior.models.score_mri.predictor_corrector",
        lambda x, denoise, draw, consistent, *rest: caught.append((x, consistent)) or x,
    )
    for lam in (1.0, 0.5):
        sample(problem, algorithm=algorithm, sigma_start=1.0, lam=lam)
    (x, consistent), (_, halfway) = caught

    def misfit(x: torch.Tensor) -> torch.Tensor:
        through = scan.mask * fft2c(x) if algorithm in ("coils", "hybrid") else problem.model(x)
        return (scan.kspace - through).abs().square().sum((-3, -2, -1))

    for scale in (0.1, 1.0, 10.0):
        after = misfit(consistent(scale * x))
        assert (after < misfit(scale * x)).all()
        torch.testing.assert_close(halfway(scale * x), 0.5 * (scale * x + consistent(scale * x)))
        if algorithm in ("coils", "hybrid"):
            assert (after < 1e-8 * scan.kspace.abs().square().sum() * (1 + scale)).all()


def test_the_sense_correction_is_the_formula_coil_by_coil() -> None:
    scan, _ = gaussian_scan(False)
    assert scan.maps is not None
    problem = problem_of(scan, 2)
    coil_images = random_complex(2, 4, 16, 18, seed=9)
    found = sense_correction(problem, coil_images, 0.7)
    combined = sum(scan.maps[c].conj() * coil_images[:, c] for c in range(4))
    residual = problem.model.H(scan.kspace - problem.model(combined))
    for c in range(4):
        torch.testing.assert_close(found[:, c], coil_images[:, c] + 0.7 * scan.maps[c] * residual)


def test_hybrid_corrects_every_few_steps_with_a_falling_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    scan, _ = gaussian_scan()
    weights: list[float] = []

    def watch(problem: Problem, coil_images: torch.Tensor, lam: float) -> torch.Tensor:
        weights.append(lam)
        return coil_images

    monkeypatch.setattr("scanprior.models.score_mri.sense_correction", watch)
    sample(problem_of(scan, 1), algorithm="hybrid", steps=9, sense_every=2)
    assert weights == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    weights.clear()
    sample(problem_of(scan, 1), algorithm="coils", steps=9, sense_every=2)
    assert not weights


def test_coil_images_of_an_image_combine_to_it() -> None:
    scan, image = gaussian_scan()
    assert scan.maps is not None
    model = SenseModel.of(scan)
    torch.testing.assert_close(root_sum_of_squares(model, scan.maps * image), image)
    other = random_complex(3, 4, 16, 18)
    torch.testing.assert_close(root_sum_of_squares(model, other).abs(), other.abs().square().sum(1).sqrt())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_ccdf_begins_with_the_image_and_noise(algorithm: str) -> None:
    """With a tiny sigma_start and no data the image to begin with is what comes back."""
    scan, image = noiseless(torch.zeros(16, 1, dtype=torch.bool), real=algorithm == "real")
    problem = problem_of(scan, 2, image)
    few: dict[str, Any] = {"steps": 3, "sigma_start": 0.01, "sigma_end": 0.002, "corrector_steps": 0, "start": "sense"}
    drawn = sample(problem, algorithm=algorithm, **few)
    assert 1e-4 < float((drawn - image).abs().mean()) < 0.03


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_seed_decides_nfe_is_counted_and_progress_told(algorithm: str) -> None:
    scan, _ = gaussian_scan()
    settings = PCSettings(steps=4, corrector_steps=2, samples=2, algorithm=algorithm)  # type: ignore[arg-type]
    calls: list[tuple[int, int]] = []
    first = pc(scan, GaussianPrior(), settings, lambda *at: calls.append(at))  # type: ignore[arg-type]
    assert first.info["nfe"] == 4 + 3 * 2
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert first.image.shape == (16, 18)
    assert torch.equal(first.image, pc(scan, GaussianPrior(), settings).image)  # type: ignore[arg-type]
    other = pc(scan, GaussianPrior(), settings.model_copy(update={"seed": 1}))  # type: ignore[arg-type]
    assert not torch.equal(first.image, other.image)


def test_volumes_and_sets_of_maps() -> None:
    scan, _ = gaussian_scan()
    assert scan.maps is not None
    two = Scan(scan.kspace, scan.mask, torch.stack([scan.maps, scan.maps.flip(-1) * 0.1]), scan.sigma)
    several = Scan(scan.kspace.expand(3, -1, -1, -1), scan.mask, scan.maps.expand(3, -1, -1, -1), scan.sigma)
    for algorithm in ALGORITHMS:
        settings = PCSettings(steps=3, samples=2, algorithm=algorithm)  # type: ignore[arg-type]
        assert pc(several, GaussianPrior(), settings).image.shape == (3, 16, 18)  # type: ignore[arg-type]
        if algorithm in ("coils", "hybrid"):
            with pytest.raises(ValueError, match=f"algorithm '{algorithm}': for one set of maps only"):
                pc(two, GaussianPrior(), settings)  # type: ignore[arg-type]
        else:
            assert pc(two, GaussianPrior(), settings).image.shape == (16, 18)  # type: ignore[arg-type]


def test_a_volume_is_cut_by_its_coil_images_too(monkeypatch: pytest.MonkeyPatch) -> None:
    scan, _ = gaussian_scan()
    assert scan.maps is not None
    volume = Scan(scan.kspace.expand(4, -1, -1, -1), scan.mask, scan.maps, scan.sigma)
    monkeypatch.setattr("scanprior.models.posterior.MAX_PIXELS", 4 * 2 * 16 * 18)
    calls: list[tuple[int, int]] = []
    for algorithm, pieces in (("complex", 1), ("coils", 4)):
        settings = PCSettings(steps=2, samples=2, algorithm=algorithm)  # type: ignore[arg-type]
        pc(volume, GaussianPrior(), settings, lambda *at: calls.append(at))  # type: ignore[arg-type]
        assert calls[-1] == (2 * pieces, 2 * pieces)


def test_each_coil_image_has_a_prior_of_its_own() -> None:
    """A prior that is bound to a phase is bound to that of the coil images, and its evaluations are still counted."""

    images: list[torch.Tensor] = []

    class Bound(GaussianPrior):
        def for_image(self, image: torch.Tensor) -> Bound:
            images.append(image)
            return self

    scan, _ = gaussian_scan(sigma=0.001)
    assert scan.maps is not None
    result = pc(scan, Bound(), PCSettings(steps=3, samples=2, algorithm="coils"))  # type: ignore[arg-type]
    whole, of_coils = images
    torch.testing.assert_close(of_coils, scan.maps * whole, rtol=1e-3, atol=1e-3)
    assert result.info["nfe"] == 5


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"steps": 1}, "settings.steps: Input should be greater than or equal to 2, found 1"),
        ({"snr": 0}, "settings.snr: Input should be greater than 0, found 0"),
        ({"algorithm": "ssos"}, "settings.algorithm: Input should be 'real', 'complex', 'coils' or 'hybrid'"),
        ({"sense_every": 0}, "settings.sense_every: Input should be greater than or equal to 1, found 0"),
        ({"sigma_start": 0.01}, "sigma_end (0.025) must be below sigma_start (0.01)"),
        ({"n": 1}, "unknown key 'settings.n'; there are: "),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        recipe_from({"method": "pc", "prior": "small", "settings": settings}, "mine")
    assert expected in str(refusal.value)


def test_a_scan_may_change_the_steps() -> None:
    recipe = recipe_from({"method": "pc", "prior": "small"}, "mine").with_parameters({"steps": 40, "samples": 2})
    assert (recipe.method_settings.steps, recipe.method_settings.samples) == (40, 2)  # type: ignore[attr-defined]
