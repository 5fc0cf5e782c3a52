"""The divergence estimator: exact where it must be, unbiased elsewhere, and itself differentiable."""

from __future__ import annotations

import pytest
import torch
from networks import small_network
from scanprior.models.divergence import Function, divergence, rademacher
from scanprior.models.preconditioning import EDMDenoiser

SHAPE = (2, 4, 3)
SIZE = 24
PROBES = 40_000


def matrix(seed: int) -> torch.Tensor:
    return torch.randn(SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def within(estimates: torch.Tensor, value: float) -> None:
    """The mean is within 4 standard errors: a right estimator fails once in 16 000 seeds, and the seed is fixed."""
    estimates = estimates.detach()
    error = float(estimates.mean()) - value
    assert abs(error) < 4 * float(estimates.std()) / len(estimates) ** 0.5


def linear(a: torch.Tensor) -> Function:
    return lambda x: (x.flatten(1) @ a.T).reshape(x.shape)


def test_it_is_exact_for_a_diagonal_map_with_rademacher_probes() -> None:
    gains = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = torch.zeros(3, *SHAPE, dtype=torch.float64)
    _, found = divergence(lambda image: gains * image, x, rademacher(x))
    torch.testing.assert_close(found, gains.mean().expand(3))


def test_it_is_unbiased_for_a_linear_map_and_for_one_after_another() -> None:
    a, k = matrix(1), matrix(2)
    x = torch.zeros(PROBES, *SHAPE, dtype=torch.float64)
    probe = rademacher(x, torch.Generator().manual_seed(3))
    value, found = divergence(linear(a), x, probe)
    assert not value.any()
    within(found, float(a.trace()) / SIZE)
    direction = (probe.flatten(1) @ k.T).reshape(x.shape)
    within(divergence(linear(a), x, probe, direction)[1], float((a @ k).trace()) / SIZE)


def test_it_is_unbiased_for_a_nonlinear_map() -> None:
    a = matrix(1) / 5
    one = torch.randn(1, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    x = one.expand(PROBES, *SHAPE)

    def function(image: torch.Tensor) -> torch.Tensor:
        return torch.tanh((image.flatten(1) @ a.T).reshape(image.shape)) * image

    exact = torch.autograd.functional.jacobian(lambda v: function(v.reshape(1, *SHAPE)).flatten(), one.flatten())
    assert isinstance(exact, torch.Tensor)
    within(divergence(function, x, rademacher(x, torch.Generator().manual_seed(5)))[1], float(exact.trace()) / SIZE)


def test_its_gradient_is_that_of_the_trace() -> None:
    """d/da of mean(a^2 x -> diagonal) is known: of f = (a x)^3 / 3 the diagonal is a^3 x^2."""
    a = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(5, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    _, found = divergence(lambda image: (a * image) ** 3 / 3, x, rademacher(x))
    found.sum().backward()
    assert a.grad is not None
    torch.testing.assert_close(a.grad, 3 * a.detach() ** 2 * x.square().flatten(1).mean(1).sum())


def test_a_network_of_ours_can_be_differentiated_twice() -> None:
    """The gradient with respect to a weight, against a central difference of the estimate itself."""
    denoiser = EDMDenoiser(small_network("unet").double(), 0.3)
    x = torch.randn(2, 2, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    probe, sigma = rademacher(x, torch.Generator().manual_seed(8)), torch.tensor([0.1, 0.5])
    weight = denoiser.network.down[0][0].first.weight

    def total() -> torch.Tensor:
        return divergence(lambda image: denoiser(image, sigma), x, probe)[1].sum()

    (gradient,) = torch.autograd.grad(total(), weight)
    step = 1e-4
    with torch.no_grad():
        weight[0, 0, 1, 1] += step
        above = total()
        weight[0, 0, 1, 1] -= 2 * step
        below = total()
    assert not above.requires_grad
    assert float((above - below) / (2 * step)) == pytest.approx(float(gradient[0, 0, 1, 1]), rel=1e-3)


def test_what_does_not_fit_is_refused() -> None:
    x = torch.zeros(1, *SHAPE)
    with pytest.raises(ValueError, match=r"expected \(1, 2, 4, 3\), got \(1, 2, 4, 4\) for probe"):
        divergence(lambda image: image, x, torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match="complex"):
        divergence(lambda image: image, x.to(torch.complex64), x.to(torch.complex64))
