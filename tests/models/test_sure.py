"""SURE and score matching on noisy images: what they equal in expectation, and what they are smallest for."""

from __future__ import annotations

import pytest
import torch
from gains import SHAPE, VARIANCE, Gains, gradients, images, minimise, normal, zero_mean
from scanprior.models.divergence import rademacher
from scanprior.models.sure import above_noise, sure, sure_score

KNOWN, HIGH, LOW = 0.3, 0.7, 0.1
COUNT = 20_000
SIZE = 32


def noisy_images(count: int = COUNT) -> tuple[torch.Tensor, torch.Tensor]:
    return images(count, 1) + KNOWN * normal(count, 2), torch.full((count,), KNOWN, dtype=torch.float64)


def squared_error(gain: torch.Tensor, level: float) -> torch.Tensor:
    """|w (x + level n) - x|^2 of each pixel, in expectation."""
    return (gain - 1) ** 2 * VARIANCE + gain**2 * level**2


def wiener(level: float) -> torch.Tensor:
    return VARIANCE / (VARIANCE + level**2)


def test_sure_is_the_mean_squared_error_and_so_is_its_gradient() -> None:
    denoiser = Gains([KNOWN])
    noisy, known = noisy_images()
    probe = rademacher(noisy, torch.Generator().manual_seed(3))
    estimate, denoised = sure(denoiser, noisy, known, probe)
    zero_mean(estimate[:, None] - squared_error(denoiser.gains[0], KNOWN).mean())
    torch.testing.assert_close(denoised, 0.5 * noisy)
    found = gradients(
        lambda part: sure(denoiser, noisy[part], known[part], probe[part])[0].mean(), denoiser.gains, COUNT
    )
    (right,) = torch.autograd.grad(squared_error(denoiser.gains, KNOWN).mean(), denoiser.gains)
    zero_mean((found - right).flatten(1))


def test_sure_is_right_of_a_nonlinear_denoiser() -> None:
    """Against the error itself, image by image: the noise of one cancels against that of the other."""

    class Soft(Gains):
        def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return self.gains[0] * x * torch.tanh(x.square() / 0.1)

    clean = images(COUNT, 1)
    noisy, known = noisy_images()
    estimate, denoised = sure(Soft([KNOWN]), noisy, known, rademacher(noisy, torch.Generator().manual_seed(4)))
    zero_mean((estimate - (denoised - clean).square().flatten(1).mean(1))[:, None])


@pytest.mark.parametrize("level", [1.1 * KNOWN, HIGH, 5.0])
def test_above_the_noise_the_gradient_is_that_of_clean_images(level: float) -> None:
    """Times a^2, whichever level: no target has to be clean."""
    denoiser = Gains([level])
    noisy, known = noisy_images()
    sigma, noise = torch.full_like(known, level), normal(COUNT, 5)
    found = gradients(
        lambda part: above_noise(
            denoiser, noisy[part], known[part], sigma[part], noise[part]
        ).mean(),
        denoiser.gains, COUNT,
    )  # fmt: skip
    share = 1 - (KNOWN / level) ** 2
    weight = denoiser.weight(torch.tensor(level, dtype=torch.float64))
    (right,) = torch.autograd.grad(weight * share**2 * squared_error(denoiser.gains, level).mean(), denoiser.gains)
    zero_mean((found - right).flatten(1))


def test_at_the_noise_level_it_is_zero_and_below_it_is_refused() -> None:
    denoiser = Gains([KNOWN])
    noisy, known = noisy_images(4)
    assert not above_noise(denoiser, noisy, known, known, normal(4, 6)).any()
    with pytest.raises(ValueError, match="from those of the images on"):
        above_noise(denoiser, noisy, known, known / 2, normal(4, 6))


@pytest.mark.parametrize("detach", [True, False])
def test_the_joint_minimum_is_wieners_filter_if_what_is_denoised_is_detached(detach: bool) -> None:
    """At s_w and above. Below, it is that of the denoised images, whose variance is v^2 / (v + s_w^2)."""
    denoiser = Gains([LOW, KNOWN, HIGH])
    noisy, known = noisy_images()
    # the variance and the noise that these images happen to have, so that nothing is left to chance
    sigma = torch.tensor([LOW, HIGH], dtype=torch.float64).repeat(COUNT // 2)
    noise, probe = normal(COUNT, 7), rademacher(noisy)

    def loss() -> torch.Tensor:
        matching, risk = sure_score(denoiser, noisy, known, sigma, noise, probe, detach)
        return matching.mean() + risk.mean()

    minimise(denoiser, loss)
    low, own, high = denoiser.gains.detach()
    error = float((own - wiener(KNOWN)).abs().mean())
    assert float((high - wiener(HIGH)).abs().max()) < 0.06  # each pixel's has a standard error of 0.01
    if detach:
        assert error < 0.02
        smooth = VARIANCE**2 / (VARIANCE + KNOWN**2)
        torch.testing.assert_close(low, smooth / (smooth + LOW**2), atol=0.03, rtol=0)
    else:
        assert error > 0.05
        assert float((own - wiener(KNOWN)).mean()) < -0.05  # smoother


def test_risk_is_taken_of_as_many_images_as_there_are_probes() -> None:
    denoiser = Gains([KNOWN, HIGH])
    noisy, known = noisy_images(6)
    matching, risk = sure_score(denoiser, noisy, known, 2 * known, normal(6, 8), torch.ones(2, *SHAPE).double())
    assert matching.shape == (6,)
    expected = denoiser.weight(known[:2]) * ((0.5 * noisy[:2]).square().flatten(1).mean(1))
    torch.testing.assert_close(risk, expected)  # 2 s^2 div - s^2 is zero at gain 0.5
