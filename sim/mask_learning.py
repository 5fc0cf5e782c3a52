"""Learning one fixed mask with a diffusion prior from a few images: probabilities by gradients, or greedily.

`gumbel` is Ravula et al. (2023): a logit for each line (or point) -> probability -> rescaled to the exact mean (eq. 16)
-> Bernoulli draws with the Gumbel straight-through estimator. `greedy` begins with the ACS and adds, again and again,
what lowers the loss most; then it tries samples in other places (exchanges, as in optimal design), as long as that
lowers it. Both end in one pattern of exactly the asked number of samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from scanprior.models.denoiser_prior import Prior
from scanprior.models.scan import Settings
from scanprior.sim.mask_checkpoint import Checkpoint, LearningState
from scanprior.sim.mask_objectives import Example, Judge, ObjectiveSettings, judge


class LearningSettings(Settings):
    """How a mask is learned."""

    learner: Literal["gumbel", "greedy"] = Field("greedy", description="by gradients of probabilities, or line by line")
    loss: Literal["log", "mse"] = Field(
        "log", description="what is lowered over the images: the mean of ln loss, which is that of PSNR; or of the loss"
    )
    steps: int = Field(400, ge=1, description="gumbel: steps of Adam, each on one image")
    learning_rate: float = Field(0.1, gt=0, description="gumbel: of Adam; it falls to a tenth by a cosine")
    temperature: float = Field(1.0, gt=0, description="gumbel: of the soft draw whose slope is used")
    validations: int = Field(4, ge=1, description="gumbel: how often patterns are tried by real reconstruction")
    draws: int = Field(4, ge=0, description="gumbel: random patterns tried then, besides the most probable one")
    together: int = Field(2, ge=1, description="greedy: samples that are added before the loss is taken anew")
    shortlist: int = Field(8, ge=0, description="greedy: exact losses of so many of the best by their slopes; 0: all")
    exchanges: int = Field(
        30, ge=0, description="greedy: so many times one of the samples is tried in another place afterwards"
    )
    seed: int = Field(0, ge=0, description="of all draws")


Validate = Callable[[np.ndarray], float]
"""`validate(mask)`: how good real reconstructions from a bool mask (y, 1) or (y, x) are; more is better."""

Watch = Callable[[int, int, float, np.ndarray], None]
"""`watch(step, steps, loss, probabilities)`, after each step."""


@dataclass
class Learned:
    """What was learned.

    Attributes
    ----------
    mask
        bool (y, 1) or (y, x), exactly the asked number of samples.
    probabilities
        The learned ones, of the same shape; ACS 1. Of `greedy`: how late a sample was chosen, from 1 down to 0.
    losses
        Of each step.
    validated
        (step, score of `validate`) of each pattern that was tried.
    """

    mask: np.ndarray
    probabilities: np.ndarray
    losses: list[float] = field(default_factory=list)
    validated: list[tuple[int, float]] = field(default_factory=list)


def learn(
    acs: np.ndarray,
    samples: int,
    examples: Sequence[Example],
    prior: Prior,
    objective: ObjectiveSettings,
    settings: LearningSettings,
    validate: Validate | None = None,
    watch: Watch | None = None,
    checkpoint: Checkpoint | None = None,
) -> Learned:
    """Learn a mask.

    Parameters
    ----------
    acs
        bool (y, 1) for lines, (y, x) for points: what is sampled in any case.
    samples
        How many lines or points in all, the ACS included.
    examples
        Training images.
    validate
        Chooses among the patterns that `gumbel` tries; None: the most probable one of the last step is taken.
    checkpoint
        Where the state is kept as it goes, and from where a run goes on that was cut: to the same mask as without.

    Raises
    ------
    ValueError
        If there is no example, the number of samples cannot be had, or the checkpoint is of another learning.
    """
    fixed, size = int(acs.sum()), acs.size
    if not examples:
        raise ValueError("no training image")
    if not max(1, fixed) <= samples <= size:
        raise ValueError(f"samples: with {fixed} ACS of {size} expected {max(1, fixed)} to {size}, got {samples}")
    if samples in (fixed, size):  # there is nothing to choose
        mask = acs | (samples == size)
        return Learned(mask, mask.astype(np.float64))
    if settings.learner == "greedy":
        return _greedy(acs, samples, examples, prior, objective, settings, validate, watch, checkpoint)
    return _gumbel(acs, samples, examples, prior, objective, settings, validate, watch, checkpoint)


def rescaled(probabilities: torch.Tensor, mean: float) -> torch.Tensor:
    """Probabilities scaled, or their complements, so that their mean is exactly `mean` (Ravula et al. 2023, eq. 16)."""
    found = probabilities.mean()
    if float(found.detach()) >= mean:
        return probabilities * (mean / found)
    return 1 - (1 - probabilities) * ((1 - mean) / (1 - found))


def straight_through(probabilities: torch.Tensor, temperature: float, generator: torch.Generator) -> torch.Tensor:
    """A Bernoulli draw, 0 or 1, whose gradient is that of the soft draw (Jang et al. 2017; Maddison et al. 2017)."""
    uniform = torch.rand(probabilities.shape, generator=generator, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    noise = torch.logit(uniform).to(probabilities)  # the difference of two Gumbel variables
    soft = torch.sigmoid((torch.logit(probabilities, eps=1e-6) + noise) / temperature)
    hard = (soft >= 0.5).to(soft)
    return hard + (soft - soft.detach())  # the bracket is exactly 0


def most_probable(probabilities: np.ndarray, acs: np.ndarray, samples: int) -> np.ndarray:
    """The ACS and the likeliest others, `samples` in all; the one nearer to the first index where two are equal."""
    keys = np.where(acs, np.inf, probabilities).ravel()
    mask = np.zeros(acs.size, bool)
    mask[np.argsort(-keys, kind="stable")[:samples]] = True
    return mask.reshape(acs.shape)


def drawn(probabilities: np.ndarray, acs: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """A Bernoulli draw of these probabilities on condition that it has `samples` samples, nearly: Gumbel top-k."""
    p = np.clip(probabilities, 1e-6, 1 - 1e-6)
    return most_probable(np.log(p / (1 - p)) + rng.logistic(size=p.shape), acs, samples)


def _gumbel(
    acs: np.ndarray, samples: int, examples: Sequence[Example], prior: Prior, objective: ObjectiveSettings,
    settings: LearningSettings, validate: Validate | None, watch: Watch | None, checkpoint: Checkpoint | None,
) -> Learned:  # fmt: skip
    device = examples[0].truth.device
    free = torch.from_numpy(~acs).to(device)
    mean = (samples - int(acs.sum())) / int((~acs).sum())
    logits = torch.zeros(int(free.sum()), dtype=torch.float64, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, settings.steps, eta_min=settings.learning_rate / 10
    )
    generator = torch.Generator().manual_seed(settings.seed)
    rng = np.random.default_rng([settings.seed, 2])
    found = Learned(acs, acs.astype(np.float64))
    tries = {max(1, round(settings.steps * (n + 1) / settings.validations)) for n in range(settings.validations)}
    best = -np.inf
    order: list[int] = []
    first = 1
    kept = checkpoint.load() if checkpoint is not None else None
    if kept is not None:
        first, order, best = kept.facts["step"] + 1, kept.facts["order"], kept.facts["best"]
        _restore_optimizer(kept, logits, optimizer, schedule)
        generator.set_state(kept.tensors["generator"])
        rng.bit_generator.state = kept.facts["rng"]
        found = _restored(kept)
    for step in range(first, settings.steps + 1):
        order = order or torch.randperm(len(examples), generator=generator).tolist()
        example = examples[order.pop()]
        draw = straight_through(rescaled(torch.sigmoid(logits), mean), settings.temperature, generator)
        weights = torch.ones(acs.shape, dtype=example.truth.real.dtype, device=device)
        weights[free] = draw.detach().to(weights)
        loss, slope = judge(example, prior, objective, weights, generator).loss_and_gradient(weights)
        if settings.loss == "log":
            slope = slope / loss
        optimizer.zero_grad()
        draw.backward(slope[free].to(draw))
        optimizer.step()
        schedule.step()
        found.losses.append(loss)
        found.probabilities = _probabilities(logits, mean, acs)
        if validate is not None and step in tries:
            patterns = [most_probable(found.probabilities, acs, samples)]
            patterns += [drawn(found.probabilities, acs, samples, rng) for _ in range(settings.draws)]
            for pattern in patterns:
                score = validate(pattern)
                found.validated.append((step, score))
                if score > best:
                    best, found.mask = score, pattern
        if checkpoint is not None and (step == settings.steps or checkpoint.due()):
            tensors, facts = _optimizer_state(logits, optimizer, schedule)
            tensors["generator"] = generator.get_state()
            facts |= {"step": step, "order": order, "best": best, "rng": rng.bit_generator.state}
            _save(checkpoint, found, tensors, facts)
        if watch is not None:
            watch(step, settings.steps, loss, found.probabilities)
    if validate is None:
        found.mask = most_probable(found.probabilities, acs, samples)
    return found


def _save(checkpoint: Checkpoint, found: Learned, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
    arrays = {"mask": found.mask, "probabilities": found.probabilities}
    checkpoint.save(
        LearningState(
            tensors | {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()},
            facts | {"losses": found.losses, "validated": found.validated},
        )
    )


def _restored(kept: LearningState) -> Learned:
    return Learned(
        kept.tensors["mask"].numpy().copy(),
        kept.tensors["probabilities"].numpy().copy(),
        list(kept.facts["losses"]),
        [(step, score) for step, score in kept.facts["validated"]],
    )


def _optimizer_state(
    logits: torch.Tensor, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Logits and moments of Adam; step size and its schedule."""
    tensors = {f"adam.{name}": value for name, value in optimizer.state[logits].items()}
    return tensors | {"logits": logits}, {"rate": optimizer.param_groups[0]["lr"], "schedule": schedule.state_dict()}


def _restore_optimizer(
    kept: LearningState, logits: torch.Tensor, optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:  # fmt: skip
    with torch.no_grad():
        logits.copy_(kept.tensors["logits"])
    moments = {name.removeprefix("adam."): value for name, value in kept.tensors.items() if name.startswith("adam.")}
    optimizer.load_state_dict({"state": {0: moments}, "param_groups": optimizer.state_dict()["param_groups"]})
    optimizer.param_groups[0]["lr"] = kept.facts["rate"]
    schedule.load_state_dict(dict(kept.facts["schedule"]))


def _probabilities(logits: torch.Tensor, mean: float, acs: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        free = rescaled(torch.sigmoid(logits), mean).cpu().numpy()
    every = np.ones(acs.shape)
    every[~acs] = free
    return every


def _greedy(
    acs: np.ndarray, samples: int, examples: Sequence[Example], prior: Prior, objective: ObjectiveSettings,
    settings: LearningSettings, validate: Validate | None, watch: Watch | None, checkpoint: Checkpoint | None,
) -> Learned:  # fmt: skip
    found = Learned(acs.copy(), acs.astype(np.float64))
    kept = checkpoint.load() if checkpoint is not None else None
    tried: set[tuple[int, int]] = set()  # exchanges of this very pattern
    exchanges = 0
    at: tuple[float, torch.Tensor] | None = None  # loss and slope of the pattern, once exchanges have begun
    if kept is not None:
        found = _restored(kept)
        exchanges, tried = kept.facts["exchanges"], {(gone, come) for gone, come in kept.facts["tried"]}
        if "slope" in kept.tensors:
            at = kept.facts["loss"], kept.tensors["slope"]
    missing = samples - int(acs.sum())
    steps = missing + settings.exchanges

    def save(last: bool) -> None:
        if checkpoint is not None and (last or checkpoint.due()):
            facts: dict[str, Any] = {"exchanges": exchanges, "tried": sorted(tried)}
            _save(checkpoint, found, {"slope": at[1]} if at else {}, facts | ({"loss": at[0]} if at else {}))

    def weighed(mask: np.ndarray) -> tuple[list[Judge], float, torch.Tensor, torch.Tensor]:
        """Judges, loss, slopes and weights of a pattern."""
        weights = torch.from_numpy(mask).to(examples[0].truth.real)
        # the same draws in every step: what changes is the mask alone
        generator = torch.Generator().manual_seed(settings.seed)
        judges = [judge(example, prior, objective, weights, generator) for example in examples]
        loss, slope = 0.0, torch.zeros_like(weights)
        for each in judges:
            part = each.loss_and_gradient(weights)
            loss += (math.log(part[0]) if settings.loss == "log" else part[0]) / len(judges)
            slope += part[1] / (len(judges) * (part[0] if settings.loss == "log" else 1))
        return judges, math.exp(loss) if settings.loss == "log" else loss, slope, weights

    done = int(found.mask.sum()) - int(acs.sum())
    while done < missing:
        judges, loss, slope, weights = weighed(found.mask)
        now = min(settings.together, missing - done)
        chosen = _best_additions(judges, weights, slope, now, settings)
        for place in chosen:
            found.mask.ravel()[place] = True
            found.probabilities.ravel()[place] = 1 - done / missing
            done += 1
        found.losses.append(loss)
        save(last=done == missing)
        if watch is not None:
            watch(done, steps, loss, found.probabilities)
    while exchanges < settings.exchanges:
        if at is None:
            at = weighed(found.mask)[1:3]
            save(last=False)
        pair = next((pair for pair in _exchanges(found.mask, acs, at[1].numpy(force=True)) if pair not in tried), None)
        if pair is None:  # no other place is better for any
            exchanges = settings.exchanges
            save(last=True)
            if watch is not None:
                watch(steps, steps, at[0], found.probabilities)
            break
        tried.add(pair)
        exchanges += 1
        changed = found.mask.copy()
        changed.ravel()[list(pair)] = [False, True]
        other = weighed(changed)[1:3]
        if other[0] < at[0]:
            at, found.mask = other, changed
            ranks = found.probabilities.ravel()
            ranks[pair[1]], ranks[pair[0]] = ranks[pair[0]], 0.0
            tried.clear()
        found.losses.append(at[0])
        save(last=exchanges == settings.exchanges)
        if watch is not None:
            watch(missing + exchanges, steps, at[0], found.probabilities)
    if validate is not None:
        found.validated.append((steps, validate(found.mask)))
    return found


def _exchanges(mask: np.ndarray, acs: np.ndarray, slope: np.ndarray) -> Iterator[tuple[int, int]]:
    """(flat place to leave, flat place to take), in the order of the sum of their ranks by slope."""
    slopes = slope.ravel()
    inside, outside = np.flatnonzero((mask & ~acs).ravel()), np.flatnonzero(~mask.ravel())
    leave = inside[np.argsort(-slopes[inside], kind="stable")]
    take = outside[np.argsort(slopes[outside], kind="stable")]
    for rank in range(len(leave) + len(take) - 1):
        for number in range(max(0, rank - len(take) + 1), min(rank + 1, len(leave))):
            yield int(leave[number]), int(take[rank - number])


def _best_additions(
    judges: Sequence[Judge], weights: torch.Tensor, slope: torch.Tensor, wanted: int, settings: LearningSettings
) -> list[int]:
    """Flat places of the samples to add, the best first: by exact losses of those with the steepest slopes."""
    slopes = slope.flatten().clone()
    slopes[weights.flatten() > 0] = torch.inf
    free, shortlist = int((weights == 0).sum()), settings.shortlist
    measure = math.log if settings.loss == "log" else float
    candidates = torch.argsort(slopes, stable=True)[: free if shortlist == 0 else min(free, max(shortlist, wanted))]
    if len(candidates) > wanted or shortlist == 0:
        losses = []
        for place in candidates:
            changed = weights.flatten().clone()
            changed[place] = 1
            losses.append(sum(measure(each.loss(changed.reshape(weights.shape))) for each in judges))
        candidates = candidates[torch.argsort(torch.tensor(losses, dtype=torch.float64), stable=True)]
    return [int(place) for place in candidates[:wanted]]
