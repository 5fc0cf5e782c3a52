"""Two ways down the objective of a VAE prior: as published, and fast. Neither ever takes a step that raises it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .scan import Progress
from .solvers import inner
from .vae_objective import Decoded, VAEObjective

WINDOW = 10
"""Iterations over which the objective must have settled."""

_SUFFICIENT = 1e-4
"""Armijo's condition: share of the fall that the gradient promises which a step must bring."""

_SHRINK = 0.5
_LEAST_SHRINK = 0.1
_TRIALS = 40
"""Steps that a backtracking line search tries, each half the one before."""

_MEMORY = 20
"""Steps that L-BFGS remembers."""


@dataclass
class Descent:
    """Where a descent has come to.

    Attributes
    ----------
    image
        x (element, set, parts, y, x), in the prior's scale.
    decoded
        The decoders' word at the latents.
    history
        The objective (element,) at the start and after each iteration, in double precision.
    """

    image: torch.Tensor
    decoded: Decoded
    history: list[torch.Tensor]

    def settled(self, tolerance: float) -> bool:
        """Whether no element's objective fell by more than `tolerance` in the last `WINDOW` iterations."""
        if len(self.history) <= WINDOW:
            return False
        return bool((self.history[-1 - WINDOW] - self.history[-1] <= tolerance).all())


def published(
    objective: VAEObjective, image: torch.Tensor, latents: torch.Tensor, iterations: int, tolerance: float,
    progress: Progress,
) -> Descent:  # fmt: skip
    """Alternating gradient descent with backtracking (Duff et al. 2023, section 4; Boyd and Vandenberghe, alg. 9.2).

    An iteration is one step in the image, then one in the latents. A line search begins with twice the step that was
    taken last (the algorithm begins each anew at 1, which costs more evaluations and arrives at the same steps). The
    paper does not say when it stops: here when the objective falls by less than `tolerance` over `WINDOW` iterations.
    """
    decoded = objective.decode(latents)
    value = _finite(objective.value(image, decoded))
    done = Descent(image, decoded, [value])
    steps = [torch.ones_like(value), torch.ones_like(value)]
    for iteration in range(iterations):
        image, value, steps[0] = _image_step(objective, image, decoded, value, 2 * steps[0])
        decoded, value, steps[1] = _latent_step(objective, image, decoded, value, 2 * steps[1])
        done = Descent(image, decoded, [*done.history, value])
        progress(iteration + 1, iterations)
        if done.settled(tolerance):
            break
    return done


def _image_step(
    objective: VAEObjective, image: torch.Tensor, decoded: Decoded, value: torch.Tensor, step: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    slope = objective.image_gradient(image, decoded)
    return _backtrack(image, value, slope, step, lambda trial: objective.value(trial, decoded))


def _latent_step(
    objective: VAEObjective, image: torch.Tensor, decoded: Decoded, value: torch.Tensor, step: torch.Tensor
) -> tuple[Decoded, torch.Tensor, torch.Tensor]:
    _, slope = objective.latent_gradient(image, decoded)
    last = decoded

    def evaluate(trial: torch.Tensor) -> torch.Tensor:
        nonlocal last
        last = objective.decode(trial)
        return objective.value(image, last)

    point, value, step = _backtrack(decoded.z.detach(), value, slope, step, evaluate)
    # the last trial is the new point, unless elements of the batch stopped at different trials
    return last if torch.equal(point, last.z) else objective.decode(point), value, step


def _backtrack(
    point: torch.Tensor, value: torch.Tensor, slope: torch.Tensor, step: torch.Tensor,
    evaluate: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """A step down the gradient for each element: the new points, their values, and the steps taken.

    An element that no trial brings down far enough stays where it is.
    """
    power = slope.double().square().flatten(1).sum(1)
    found, best = point, value
    taken = torch.zeros_like(value, dtype=torch.bool)
    for _ in range(_TRIALS):
        trial = torch.where(_wide(taken, point), found, point - _wide(step, point).to(point.dtype) * slope)
        new = evaluate(trial)
        good = ~taken & (new <= value - _SUFFICIENT * step * power)  # false for NaN
        found = torch.where(_wide(good, point), trial, found)
        best = torch.where(good, new, best)
        taken = taken | good
        if bool(taken.all()):
            break
        step = torch.where(taken, step, _SHRINK * step)
    return found, best, step


def fast(
    objective: VAEObjective, image: torch.Tensor, latents: torch.Tensor, iterations: int, tolerance: float,
    cg_iterations: int, cg_tolerance: float, progress: Progress, spread: torch.Tensor | None = None,
) -> Descent:  # fmt: skip
    """Variable projection: L-BFGS on z -> min_x f(x, z), where CG, warm-started, finds the x of each z.

    (Golub and Pereyra, SIAM J. Numer. Anal. 1973; Liu and Nocedal, Math. Program. 1989, with Armijo's condition.) An
    iteration is one trial step of every element, with one evaluation of the decoders, forward and backward; elements
    whose trial fails try a shorter one in the next, while the others go on.

    `spread`, of the shape of the latents, is the diagonal of the inverse Hessian that L-BFGS begins with, up to a
    factor: the variance of q(z|x) at the first image. (On a slice of 128x128, 25 spokes: 27 instead of 35 iterations.)
    """
    decoded = objective.decode(latents)
    image = objective.image(image, decoded, cg_iterations, cg_tolerance)
    value, slope = objective.latent_gradient(image, decoded)
    done = Descent(image, decoded, [_finite(value)])
    point = decoded.z.detach()
    spread = torch.ones_like(point) if spread is None else spread
    memory: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    direction = _direction(slope, memory, spread)
    step = torch.ones_like(value)
    for iteration in range(iterations):
        trial = point + _wide(step, point).to(point.dtype) * direction
        decoded = objective.decode(trial)
        trial_image = objective.image(image, decoded, cg_iterations, cg_tolerance)
        new, new_slope = objective.latent_gradient(trial_image, decoded)
        promised = inner(slope, direction, 1).flatten() * step
        good = (new <= value + _SUFFICIENT * promised) & new_slope.isfinite().flatten(1).all(1)

        before, pick = value, _wide(good, point)
        moved = torch.where(pick, trial - point, 0)
        bent = torch.where(pick, new_slope - slope, 0)
        curvature = inner(moved, bent, 1)
        usable = curvature > 1e-10 * (inner(moved, moved, 1) * inner(bent, bent, 1)).sqrt()
        memory = [*memory, (moved, bent, torch.where(usable, 1 / torch.where(usable, curvature, 1), 0))][-_MEMORY:]
        point, slope = torch.where(pick, trial, point), torch.where(pick, new_slope, slope)
        image, value = torch.where(_wide(good, image), trial_image, image), torch.where(good, new, value)
        # of a trial that failed, the lowest point of the parabola through both values and the first slope
        bowl = -promised / (2 * (new - before - promised))
        shrink = torch.where(bowl.isfinite(), bowl, _LEAST_SHRINK).clamp(_LEAST_SHRINK, _SHRINK)
        step = torch.where(good, 1.0, shrink * step)
        direction = torch.where(pick, _direction(slope, memory, spread), direction)

        done = Descent(image, decoded, [*done.history, value])
        progress(iteration + 1, iterations)
        if done.settled(tolerance) or bool((step < _SHRINK**_TRIALS).all()):
            break
    if not torch.equal(decoded.z, point):
        done.decoded = objective.decode(point)
    return done


def _direction(
    slope: torch.Tensor, memory: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], spread: torch.Tensor
) -> torch.Tensor:
    """Minus the gradient times what L-BFGS takes for the inverse Hessian, for each element (its two loops).

    A pair (s, y, 1 / <s, y>) whose last entry is 0 counts for nothing.
    """
    q = slope
    shares = []
    for moved, bent, weight in reversed(memory):
        share = weight * inner(moved, q, 1)
        q = q - share * bent
        shares.append(share)
    scale = 1 / inner(slope, spread * slope, 1).sqrt().clamp_min(1e-30)
    for _, bent, weight in memory:
        known = weight > 0
        size = inner(bent, spread * bent, 1)
        scale = torch.where(known, 1 / (torch.where(known, weight, 1) * torch.where(known, size, 1)), scale)
    q = scale * spread * q
    for (moved, bent, weight), share in zip(memory, reversed(shares), strict=True):
        q = q + (share - weight * inner(bent, q, 1)) * moved
    return -q


def _wide(flags: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(element,) with as many ones behind as `like` has dimensions."""
    return flags.reshape(-1, *([1] * (like.ndim - 1)))


def _finite(value: torch.Tensor) -> torch.Tensor:
    """The objective (element,) at the start; after it no step is taken to where it is not finite.

    Raises
    ------
    ValueError
        If it is not finite.
    """
    if not bool(torch.isfinite(value).all()):
        raise ValueError(
            f"vae: the objective is not finite at the start ({value.tolist()[:8]}): the prior's weights, the k-space "
            "or the settings (lam, mu, gamma) make it so"
        )
    return value
