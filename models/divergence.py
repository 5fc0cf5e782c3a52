"""The divergence of a denoiser, by a random probe and an exact vector-Jacobian product (Hutchinson 1990)."""

from __future__ import annotations

from collections.abc import Callable

import torch

Function = Callable[[torch.Tensor], torch.Tensor]


def rademacher(like: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """A probe of the shape of `like`: +1 or -1 with equal chance, drawn on the CPU.

    Of all probes with independent entries of unit variance it has the least scatter (Hutchinson 1990, prop. 1).
    """
    sign = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8)
    return (2 * sign - 1).to(like.device, like.dtype)


def divergence(
    function: Function, x: torch.Tensor, probe: torch.Tensor, direction: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`function(x)`, and an estimate of the mean of its Jacobian's diagonal for each image.

    The estimate is `probe^T J direction / n`, n the number of real entries of an image. Its mean over probes of
    independent entries of zero mean and unit variance is `tr(J) / n`; with `direction = K probe`, it is `tr(J K) / n`.
    J is exact (reverse mode), which no step size of a finite difference has to be found for. Where gradients are
    enabled the estimate can itself be differentiated with respect to the weights of the function; else it is
    computed without keeping the graph.

    Parameters
    ----------
    function
        (batch, channel, y, x) real to the same shape. It must not mix images.
    x
        Where; complex images as two real channels. It is detached: no gradient goes back through it.
    probe
        Of the shape of `x`; see `rademacher`.
    direction
        K probe, of the shape of `x`; None: the probe itself.

    Returns
    -------
    Values (batch, channel, y, x), and estimates (batch,).

    Raises
    ------
    ValueError
        If shapes differ, or `x` is complex.
    """
    direction = probe if direction is None else direction
    for name, tensor in (("probe", probe), ("direction", direction)):
        if tensor.shape != x.shape:
            raise ValueError(f"expected {tuple(x.shape)}, got {tuple(tensor.shape)} for {name}")
    if x.is_complex():
        raise ValueError("expected real channels, got a complex tensor for x")
    wanted = torch.is_grad_enabled()
    with torch.enable_grad():
        point = x.detach().requires_grad_(True)
        value = function(point)
        (pulled,) = torch.autograd.grad(value, point, probe, create_graph=wanted)
        estimate = (pulled * direction).flatten(1).mean(1)
    return (value, estimate) if wanted else (value.detach(), estimate.detach())
