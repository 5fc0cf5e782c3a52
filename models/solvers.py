"""Iterative solvers for Hermitian positive systems, batched: every batch element has its own step sizes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from scanprior.models.scan import Progress

Operator = Callable[[torch.Tensor], torch.Tensor]
"""A linear map of a tensor onto a tensor of the same shape."""


def inner(a: torch.Tensor, b: torch.Tensor, batch_dims: int) -> torch.Tensor:
    """Real part of the inner product <a, b> of each batch element.

    Parameters
    ----------
    a, b
        Complex or real tensors of one shape.
    batch_dims
        Number of leading dimensions that tell batch elements apart.

    Returns
    -------
    Real tensor with the batch shape followed by ones, so that it broadcasts against `a`.
    """
    if a.is_complex():
        product = (torch.view_as_real(a) * torch.view_as_real(b)).sum(-1)
    else:
        product = a * b
    dims = tuple(range(batch_dims, a.ndim))
    return product.sum(dims, keepdim=True) if dims else product


def conjugate_gradient(
    normal: Operator,
    rhs: torch.Tensor,
    x0: torch.Tensor | None = None,
    *,
    iterations: int = 10,
    tolerance: float = 0.0,
    batch_dims: int = 0,
    progress: Progress | None = None,
) -> torch.Tensor:
    """Solve normal(x) = rhs for each batch element by conjugate gradients (Hestenes and Stiefel, 1952).

    For a Hermitian positive semi-definite `normal` the step sizes are real; they are real here, one per batch element.

    Parameters
    ----------
    normal
        The operator, on tensors of the shape of `rhs`. It must not mix batch elements.
    rhs
        Right-hand side, complex or real.
    x0
        Where to start; zero if None.
    iterations
        The most iterations.
    tolerance
        An element is left alone as soon as ||residual|| <= tolerance * ||rhs||; when all are, the solver returns.
        With 0 all iterations run and nothing is read back from the device.
    batch_dims
        Number of leading dimensions of `rhs` that tell separate systems apart.
    progress
        Called as `progress(step, iterations)`.

    Returns
    -------
    The solution, of the shape of `rhs`. An element with an all-zero `rhs` and start gives zeros.

    Raises
    ------
    ValueError
        If `x0` has not the shape of `rhs`, or a number is out of range.
    """
    if x0 is not None and x0.shape != rhs.shape:
        raise ValueError(f"expected {tuple(rhs.shape)}, got {tuple(x0.shape)} for x0")
    if not 0 <= batch_dims <= rhs.ndim:
        raise ValueError(f"batch_dims is {batch_dims}, but rhs has {rhs.ndim} dimensions")
    if iterations < 0 or tolerance < 0:
        raise ValueError(f"iterations ({iterations}) and tolerance ({tolerance}) must not be negative")

    solution = torch.zeros_like(rhs) if x0 is None else x0.clone()
    residual = rhs.clone() if x0 is None else rhs - normal(x0)
    direction = residual
    power = inner(residual, residual, batch_dims)
    goal = tolerance**2 * inner(rhs, rhs, batch_dims)
    active = power > goal
    for step in range(iterations):
        if tolerance > 0 and not bool(active.any()):
            break
        image = normal(direction)
        curvature = inner(direction, image, batch_dims)
        # A direction of no curvature (rounding, or the null space) cannot be improved along: that element is done.
        active = active & (curvature > 0)
        length = torch.where(active, power / torch.where(active, curvature, 1.0), 0.0)
        solution = solution + length * direction
        residual = residual - length * image
        previous, power = power, inner(residual, residual, batch_dims)
        ratio = torch.where(active, power / torch.where(active, previous, 1.0), 0.0)
        direction = residual + ratio * direction
        active = active & (power > goal)
        if progress is not None:
            progress(step + 1, iterations)
    return solution
