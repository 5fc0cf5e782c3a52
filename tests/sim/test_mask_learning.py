"""Mask learning: the gradient of every objective, the exact mean and count, and optima that are known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scanprior.models.fourier import fft2c
from scanprior.sim.evaluation import Condition, scan_fully
from scanprior.sim.mask_learning import (
    Learned,
    LearningSettings,
    drawn,
    learn,
    most_probable,
    rescaled,
    straight_through,
)
from scanprior.sim.mask_objectives import Example, ObjectiveSettings, judge
from scanprior.sim.masks import acs_lines, acs_square

KINDS = ("posterior-mean", "data-consistency", "reconstruction")


class SmoothPrior:
    """A small random network in float64, smooth, so that finite differences are exact enough."""

    name, sigma_min, sigma_max, sigma_data, scale = "smooth", 0.01, 10.0, 0.3, (99.5, 1.0)

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.network = torch.nn.Sequential(
            torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(4, 2, 3, padding=1)
        ).double()

    def for_image(self, image: torch.Tensor) -> SmoothPrior:
        return self

    def denoise(self, x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        channels = torch.view_as_real(x).movedim(-1, 0)[None]
        found = channels / (1 + float(sigma)) + 0.3 * self.network(channels)
        return torch.view_as_complex(found[0].movedim(0, -1).contiguous())


class FlatPrior(SmoothPrior):
    """Knows nothing: its image is always zero."""

    def denoise(self, x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        return 0 * x


def example_of(coils: int, shape: tuple[int, int] = (12, 10), noise: float = 0.02) -> Example:
    rng = np.random.default_rng(coils)
    truth = rng.standard_normal((2, *shape)).cumsum(1).cumsum(2) / 20
    maps = rng.standard_normal((2, coils, *shape))
    complex_maps = torch.from_numpy(maps[0] + 1j * maps[1])
    complex_maps = complex_maps / complex_maps.abs().square().sum(0).sqrt()
    image = torch.from_numpy(truth[0] + 1j * truth[1])
    draws = rng.standard_normal((2, coils, *shape))
    kspace = fft2c(complex_maps * image) + noise * torch.from_numpy(draws[0] + 1j * draws[1])
    return Example(image, kspace, complex_maps, noise**2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("coils", [1, 3])
@pytest.mark.parametrize("points", [False, True])
def test_the_gradient_is_that_of_finite_differences(kind: str, coils: int, points: bool) -> None:
    example = example_of(coils)
    shape = example.truth.shape if points else (example.truth.shape[0], 1)
    weights = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.8 + 0.1
    settings = ObjectiveSettings(
        kind=kind, sigma=None if kind == "reconstruction" else 0.4, cg_iterations=120, gamma=0.3, max_ratio=20
    )
    fixed = judge(example, SmoothPrior(), settings, weights, torch.Generator().manual_seed(1))
    loss, gradient = fixed.loss_and_gradient(weights)
    assert loss == pytest.approx(fixed.loss(weights), rel=1e-12)
    assert gradient.shape == weights.shape
    for place in range(0, weights.numel(), 7 if points else 1):
        step = torch.zeros(weights.numel(), dtype=torch.float64)
        step[place] = 1e-5
        step = step.reshape(shape)
        slope = (fixed.loss(weights + step) - fixed.loss(weights - step)) / 2e-5
        assert float(gradient.flatten()[place]) == pytest.approx(slope, rel=2e-5, abs=1e-9)
    assert float(gradient.abs().max()) > 1e-4, "or nothing was tested"


def test_the_slope_of_a_sample_that_is_off_is_not_zero() -> None:
    example = example_of(3)
    weights = (torch.arange(12) % 2 == 0).double()[:, None]
    for kind in KINDS:
        fixed = judge(example, SmoothPrior(), ObjectiveSettings(kind=kind), weights, torch.Generator().manual_seed(1))
        _, gradient = fixed.loss_and_gradient(weights)
        assert bool((gradient != 0).all())


@pytest.mark.parametrize("mean", [0.01, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("shift", [-4.0, 0.0, 4.0])
def test_the_mean_is_exact(mean: float, shift: float) -> None:
    logits = torch.randn(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + shift
    p = rescaled(torch.sigmoid(logits), mean)
    assert float(p.mean()) == pytest.approx(mean, abs=1e-12)
    assert 0 <= float(p.min())
    assert float(p.max()) <= 1
    assert bool((torch.argsort(p, stable=True) == torch.argsort(logits, stable=True)).all()), "the order stays"


def test_draws_are_bernoulli_and_their_slope_is_the_soft_ones() -> None:
    p = torch.tensor([0.03, 0.3, 0.5, 0.97], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([straight_through(p, 1.0, generator) for _ in range(4000)])
    assert set(draws.unique().tolist()) <= {0.0, 1.0}
    np.testing.assert_allclose(draws.mean(0), p, atol=4 * 0.5 / math.sqrt(4000))
    own = p.clone().requires_grad_(True)
    straight_through(own, 0.7, torch.Generator().manual_seed(5)).sum().backward()
    uniform = torch.rand(4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    soft = torch.sigmoid((torch.logit(p) + torch.logit(uniform)) / 0.7)
    np.testing.assert_allclose(own.grad, soft * (1 - soft) / 0.7 / (p * (1 - p)), rtol=1e-9)


@pytest.mark.parametrize("learner", ["gumbel", "greedy"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("coils", [1, 3])
@pytest.mark.parametrize("points", [False, True])
def test_every_learner_has_the_exact_count_and_the_acs(learner: str, kind: str, coils: int, points: bool) -> None:
    acs = acs_square((12, 10), 4) if points else acs_lines(12, 4)[:, None]
    samples = round(acs.size / 2)
    seen: list[tuple[int, int]] = []
    found = learn(
        acs, samples, [example_of(coils), example_of(coils + 1)], SmoothPrior(),
        ObjectiveSettings(kind=kind, evaluations=2, cg_iterations=4),
        LearningSettings(learner=learner, steps=3, validations=2, draws=2, together=9 if points else 2, shortlist=3),
        lambda mask: float(mask.sum()) + float(mask[0].sum()),
        lambda step, steps, loss, probabilities: seen.append((step, steps)),
    )  # fmt: skip
    assert isinstance(found, Learned)
    assert found.mask.sum() == samples
    assert found.mask[acs].all()
    assert seen[-1][0] == seen[-1][1]
    # where no exchange is left to try, the end is told once more
    assert len(found.losses) in (len(seen), len(seen) - (learner == "greedy"))
    if learner == "gumbel":
        assert found.probabilities.mean() == pytest.approx(samples / acs.size, abs=1e-9), "the exact expected R"
        assert [step for step, _ in found.validated] == [2, 2, 2, 3, 3, 3]
        assert max(score for _, score in found.validated) == samples + found.mask[0].sum(), "the best pattern is kept"


def energies(example: Example) -> np.ndarray:
    """(y,) energy of each line of a single coil."""
    return example.kspace[0].abs().square().sum(1).numpy()


@pytest.mark.parametrize("shortlist", [0, 2, 12])
def test_greedy_takes_the_lines_of_most_energy_where_nothing_is_known(shortlist: int) -> None:
    # single coil, no noise, a prior whose image is zero: the loss is the energy of all lines that are not measured
    example = example_of(1, noise=0.0)
    acs = acs_lines(12, 2)[:, None]
    for together in (1, 3):
        found = learn(
            acs, 6, [example], FlatPrior(), ObjectiveSettings(kind="data-consistency", max_ratio=1e6),
            LearningSettings(learner="greedy", together=together, shortlist=shortlist),
        )  # fmt: skip
        expected = np.argsort(-np.where(acs[:, 0], np.inf, energies(example)))[:6]
        assert set(np.flatnonzero(found.mask[:, 0])) == set(expected)
    assert found.probabilities[expected[2], 0] == 1, "the best line came first"


def test_gumbel_finds_the_lines_of_most_energy_where_nothing_is_known() -> None:
    example = example_of(1, (32, 10), noise=0.0)
    acs = acs_lines(32, 4)[:, None]
    found = learn(
        acs, 12, [example], FlatPrior(), ObjectiveSettings(kind="data-consistency", max_ratio=1e3),
        LearningSettings(learner="gumbel", steps=300),
    )  # fmt: skip
    energy = np.where(acs[:, 0], 0, energies(example))
    best = np.sort(energy)[::-1][:8].sum()
    assert energy[found.mask[:, 0]].sum() > 0.97 * best
    assert energy[np.random.default_rng(0).permutation(32)[:8]].sum() < 0.9 * best, "chance does not"
    assert np.mean(found.losses[-50:]) < 0.9 * np.mean(found.losses[:20])


def test_greedy_with_coils_takes_the_line_that_lowers_the_loss_most() -> None:
    example, prior = example_of(4), SmoothPrior()
    acs = acs_lines(12, 2)[:, None]
    objective = ObjectiveSettings(kind="data-consistency", sigma=0.5, cg_iterations=40)
    found = learn(acs, 3, [example], prior, objective, LearningSettings(learner="greedy", shortlist=0, seed=4))
    weights = torch.from_numpy(acs).double()
    fixed = judge(example, prior, objective, weights, torch.Generator().manual_seed(4))
    losses = [fixed.loss(((torch.arange(12) == line)[:, None] | torch.from_numpy(acs)).double()) for line in range(12)]
    assert found.mask[int(np.argmin(losses)), 0]
    assert min(losses) < sorted(losses)[1], "one line is the best"


def test_patterns_from_probabilities() -> None:
    acs = acs_lines(9, 3)[:, None]
    p = np.array([0.2, 0.9, 0.1, 1, 1, 1, 0.3, 0.9, 0.0])[:, None]
    assert np.flatnonzero(most_probable(p, acs, 5)).tolist() == [1, 3, 4, 5, 7]
    rng = np.random.default_rng(0)
    draws = np.stack([drawn(p, acs, 5, rng) for _ in range(500)])
    assert (draws.sum((1, 2)) == 5).all()
    assert draws[:, acs].all()
    shares = draws.mean(0)[:, 0]
    assert shares[1] > shares[6] > shares[8], "likelier ones come oftener"
    assert shares[1] < 1, "and not always"


def test_nothing_to_choose_and_what_cannot_be() -> None:
    acs = acs_lines(12, 4)[:, None]
    prior, objective, settings = SmoothPrior(), ObjectiveSettings(), LearningSettings()
    for samples in (4, 12):
        assert learn(acs, samples, [example_of(1)], prior, objective, settings).mask.sum() == samples
    for samples in (3, 13):
        with pytest.raises(ValueError, match=f"with 4 ACS of 12 expected 4 to 12, got {samples}"):
            learn(acs, samples, [example_of(1)], prior, objective, settings)
    with pytest.raises(ValueError, match="no training image"):
        learn(acs, 6, [], prior, objective, settings)
    with pytest.raises(ValueError, match="sigma: not of the objective reconstruction"):
        ObjectiveSettings(kind="reconstruction", sigma=1.0)


def test_an_example_of_a_scan_is_in_the_priors_scale() -> None:
    image = np.zeros((16, 16), np.float32)
    image[4:12, 4:12] = 700.0
    scan = scan_fully(image, Condition("uniform-1d", 2, 30.0, coils=3), 1)
    example = Example.of(scan, SmoothPrior())
    assert float(example.truth.abs().max()) == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(example.maps.abs().square().sum(0), 1, rtol=1e-4)
    noise = example.kspace - fft2c(example.maps * example.truth)
    assert float(noise.abs().square().mean() / 2) == pytest.approx(example.data_variance, rel=0.1)


def test_exchanges_lead_out_of_a_pattern_that_greed_ends_in() -> None:
    """Samples taken together by their slopes alone end in a worse pattern; with exchanges the loss never rises."""
    examples = [example_of(2), example_of(3)]
    objective = ObjectiveSettings(kind="reconstruction", evaluations=3, cg_iterations=20)
    acs = acs_lines(12, 2)[:, None]
    greedy, exchanged = (
        learn(
            acs, 7, examples, SmoothPrior(), objective,
            LearningSettings(learner="greedy", together=5, shortlist=5, exchanges=exchanges),
        )
        for exchanges in (0, 60)
    )  # fmt: skip
    own = exchanged.losses[1:]
    assert exchanged.mask.sum() == 7
    assert exchanged.mask[acs].all()
    assert all(later <= before for before, later in itertools.pairwise(own))
    assert not np.array_equal(exchanged.mask, greedy.mask)

    def loss(mask: np.ndarray) -> float:
        weights = torch.from_numpy(mask).to(examples[0].truth.real)
        judged = (judge(each, SmoothPrior(), objective, weights, torch.Generator()) for each in examples)
        return float(np.mean([np.log(each.loss(weights)) for each in judged]))

    assert loss(exchanged.mask) == pytest.approx(np.log(own[-1]), rel=1e-6)
    assert loss(exchanged.mask) < loss(greedy.mask) - 0.01
    # no single exchange of what is left lowers it: the search ended there, and not for want of tries
    assert len(own) < 60
    inside, outside = np.flatnonzero(exchanged.mask & ~acs), np.flatnonzero(~exchanged.mask)
    for gone, come in itertools.product(inside, outside):
        other = exchanged.mask.copy()
        other.ravel()[[gone, come]] = [False, True]
        assert loss(other) >= loss(exchanged.mask) - 1e-9
