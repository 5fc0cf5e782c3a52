"""Conjugate gradients against numpy, one system per batch element."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scanprior.models.solvers import conjugate_gradient, inner
from support import random_complex


def systems(batch: int, n: int) -> torch.Tensor:
    root = random_complex(batch, n, n, seed=1, dtype=torch.complex128)
    scale = torch.logspace(-3, 3, batch, dtype=torch.float64).reshape(batch, 1, 1)
    return scale * (root @ root.mH + 0.5 * torch.eye(n))


@pytest.mark.parametrize("start", [False, True])
def test_each_element_is_numpys_solution(start: bool) -> None:
    matrices = systems(4, 6)
    rhs = random_complex(4, 6, seed=2, dtype=torch.complex128)
    x0 = random_complex(4, 6, seed=3, dtype=torch.complex128) if start else None
    found = conjugate_gradient(
        lambda x: torch.einsum("bij,bj->bi", matrices, x), rhs, x0, iterations=100, tolerance=1e-13, batch_dims=1
    )
    for matrix, side, solution in zip(matrices.numpy(), rhs.numpy(), found.numpy(), strict=True):
        np.testing.assert_allclose(solution, np.linalg.solve(matrix, side), rtol=1e-8, atol=1e-9 * abs(solution).max())


def test_an_element_does_not_depend_on_its_neighbours() -> None:
    matrices = systems(3, 5)
    rhs = random_complex(3, 5, seed=2, dtype=torch.complex128)
    together = conjugate_gradient(lambda x: torch.einsum("bij,bj->bi", matrices, x), rhs, iterations=3, batch_dims=1)
    for index in range(3):
        alone = conjugate_gradient(lambda x, m=matrices[index]: m @ x, rhs[index], iterations=3)
        torch.testing.assert_close(together[index], alone)


def test_zero_elements_stay_zero_and_harm_nobody() -> None:
    rhs = random_complex(2, 5)
    rhs[0] = 0
    for tolerance in (0.0, 1e-6):
        found = conjugate_gradient(lambda x: 2 * x, rhs, iterations=50, tolerance=tolerance, batch_dims=1)
        assert torch.equal(found[0], torch.zeros(5, dtype=torch.complex64))
        torch.testing.assert_close(found[1], rhs[1] / 2)


def test_stops_when_all_have_converged() -> None:
    steps = []
    conjugate_gradient(
        lambda x: 2 * x, random_complex(3, 5), iterations=50, tolerance=1e-4, batch_dims=1,
        progress=lambda step, total: steps.append((step, total)),
    )  # fmt: skip
    assert steps == [(1, 50)]


def test_singular_system_stays_finite() -> None:
    weights = torch.tensor([0.0, 0.0, 1.0, 2.0])
    found = conjugate_gradient(lambda x: weights * x, weights * random_complex(4), iterations=200)
    assert torch.isfinite(torch.view_as_real(found)).all()
    torch.testing.assert_close(found, (weights > 0) * random_complex(4))


def test_inner_is_the_real_part() -> None:
    a, b = random_complex(2, 3, 4, seed=1), random_complex(2, 3, 4, seed=2)
    expected = (a.conj() * b).real.sum((1, 2), keepdim=True)
    torch.testing.assert_close(inner(a, b, 1), expected)
    assert inner(a, b, 3).shape == (2, 3, 4)


def test_bad_numbers_are_named() -> None:
    rhs = random_complex(2, 3)
    with pytest.raises(ValueError, match=r"expected \(2, 3\), got \(3,\) for x0"):
        conjugate_gradient(lambda x: x, rhs, random_complex(3))
    with pytest.raises(ValueError, match="batch_dims is 3"):
        conjugate_gradient(lambda x: x, rhs, batch_dims=3)
    with pytest.raises(ValueError, match="iterations"):
        conjugate_gradient(lambda x: x, rhs, iterations=-1)
