"""Learning a mask from start to end: images, examples, validation, the file, the pictures, the report."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scanprior.models.diffusion_prior import DiffusionPrior
from scanprior.models.recipe import Recipe
from scanprior.sim.evaluation import Condition, FullScan, draw, scan_fully
from scanprior.sim.mask_checkpoint import Checkpoint
from scanprior.sim.mask_comparison import Interval, Pattern, difference, family, fixed, scores, weights_hash
from scanprior.sim.mask_families import FAMILIES, make_mask
from scanprior.sim.mask_file import FORMAT, SamplingMask, check_own, save_mask
from scanprior.sim.mask_learning import Learned, LearningSettings, Validate, learn
from scanprior.sim.mask_objectives import Example, ObjectiveSettings
from scanprior.sim.masks import Sampling, acs_lines, acs_square
from scanprior.sim.whole_files import whole_files

from .evaluate_plan import TestImage, own_version
from .kept_results import KeptResults
from .mask_pictures import write_learning_picture, write_mask_picture

DRAW_EVERY = 20.0
"""Seconds between pictures of the learning."""

CHECKPOINT = "learning.safetensors"
"""Of a learning that is not finished."""

COMPARISON = "comparison.json"
"""Results of a comparison that is not finished."""

BASELINES = {1: ("uniform-1d", "gaussian-1d"), 2: ("gaussian-2d", "poisson-2d")}
BEST_OF = {1: "gaussian-1d", 2: "poisson-2d"}
"""Of each number of dimensions, the random family whose best draw is a baseline too."""


class MaskLearningError(ValueError):
    """A mask that cannot be learned as it was asked for."""


@dataclass(frozen=True)
class MaskPlan:
    """What is learned, on what, and what it is compared with.

    Attributes
    ----------
    train, validation, test
        Images; none is in two of them, but that without any of its own the validation takes those of `train`.
    kind
        lines or points.
    r, acs
        Undersampling factor, ACS counted; ACS lines, or edge of the square.
    condition
        Coils, noise and phase of the simulated scans; its mask and R are not read.
    recipe
        What reconstructs, for validation and comparison.
    best_of
        So many random draws, of which the one that validates best is a baseline; 0: none.
    fov_mm
        Of the mask file, (x, y, z).
    readout
        Samples along x of the mask file.
    """

    train: list[TestImage]
    validation: list[TestImage]
    test: list[TestImage]
    kind: str
    r: float
    acs: int
    condition: Condition
    objective: ObjectiveSettings
    settings: LearningSettings
    recipe: Recipe
    best_of: int
    fov_mm: tuple[float, float, float]
    readout: int
    seed: int

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x) of all images."""
        rows, columns = self.train[0].pixels.shape
        return rows, columns

    @property
    def inner(self) -> np.ndarray:
        """bool (y, 1) or (y, x): the ACS."""
        return acs_lines(self.shape[0], self.acs)[:, None] if self.kind == "lines" else acs_square(self.shape, self.acs)

    @property
    def samples(self) -> int:
        """How many lines or points R asks for."""
        return round(self.inner.size / self.r)

    def check(self) -> None:
        """Refuse what cannot be done.

        Raises
        ------
        MaskLearningError
            Naming the sizes, R or images at fault.
        """
        shapes = {image.pixels.shape for image in (*self.train, *self.validation, *self.test)}
        if len(shapes) > 1:
            raise MaskLearningError(
                f"a mask is for one matrix: expected images of one size, found {', '.join(map(str, sorted(shapes)))}"
            )
        if not 0 <= self.acs <= min(self.shape[: 1 if self.kind == "lines" else 2]):
            raise MaskLearningError(f"ACS of {self.acs}: expected 0 to the matrix {self.shape}")
        fixed_samples, size = int(self.inner.sum()), self.inner.size
        if not 1 <= self.r <= size / max(1, fixed_samples):
            raise MaskLearningError(
                f"R {self.r:g}: with {fixed_samples} ACS {self.kind} of {size} expected "
                f"1 to {size / max(1, fixed_samples):.2f}"
            )
        if self.condition.coils > 1 and self.acs < self.recipe.maps.kernel:
            raise MaskLearningError(
                f"ACS of {self.acs}: the coil maps' kernel needs at least {self.recipe.maps.kernel}; give more, or "
                "--coils 1"
            )
        if self.recipe.compression is not None:
            raise MaskLearningError(f"recipe {self.recipe.name!r} compresses coils, which is done on streams only")
        known = {image.key for image in self.train}
        for image in self.validation:
            if image.key in known:
                raise MaskLearningError(f"{image.name} is of the training images too: validate on others")
        validating = {image.key for image in self.validation}
        for image in self.test:
            if image.key in known | validating:
                of = "training" if image.key in known else "validation"
                raise MaskLearningError(f"{image.name} is of the {of} images too: test on others")


Tell = Callable[[str, int, int], None]
"""`tell(what, step, steps)`."""


def learn_and_report(plan: MaskPlan, prior: DiffusionPrior, out: Path, device: torch.device, tell: Tell) -> Path:
    """Learn the mask and write `mask.npz`, `mask.json`, `mask.png`, `learning.png`, `learning.json` and `report.md`.

    As it goes, `CHECKPOINT` and `COMPARISON` in the folder keep its state: a run that was cut goes on from there when
    it is called again alike. They are removed at the end.

    Returns the path of the mask file, which is written before the comparison begins.

    Raises
    ------
    MaskLearningError
        If the plan cannot be carried out.
    ValueError
        If the folder holds an unfinished learning of another kind, or a mask.json that is not ours.
    """
    plan.check()
    check_own(out / "mask.json", FORMAT)  # now, not after hours
    checkpoint = Checkpoint(out / CHECKPOINT, _key(plan, prior))
    kept = checkpoint.load()
    out.mkdir(parents=True, exist_ok=True)
    train, validation, test = (
        [scan_fully(image.pixels, plan.condition, plan.seed) for image in images]
        for images in (plan.train, plan.validation or plan.train, plan.test)
    )
    examples = [Example.of(scan, prior, device) for scan in train]
    validate = _validation(plan, validation, prior, device)
    losses: list[float] = [] if kept is None else list(kept.facts["losses"])
    if kept is not None:
        tell("goes on where it was cut", 0, 1)
    label = "probability" if plan.settings.learner == "gumbel" else "order of choice (1: first)"
    drawn_at = [time.perf_counter()]

    def watch(step: int, steps: int, loss: float, probabilities: np.ndarray) -> None:
        losses.append(loss)
        tell(f"loss {loss:.4f}", step, steps)
        if time.perf_counter() - drawn_at[0] > DRAW_EVERY:
            write_learning_picture(out / "learning.png", probabilities, plan.inner, losses, [], label=label)
            drawn_at[0] = time.perf_counter()

    found = learn(plan.inner, plan.samples, examples, prior, plan.objective, plan.settings, validate, watch, checkpoint)
    seconds = checkpoint.seconds
    mask = _mask_of(plan, found, prior)
    save_mask(out / "mask.npz", mask)
    write_mask_picture(out / "mask.png", mask)
    write_learning_picture(
        out / "learning.png", found.probabilities, plan.inner, found.losses, found.validated, found.mask, label
    )
    _write_text(
        out / "learning.json",
        json.dumps(
            {"seconds": seconds, "losses": found.losses, "validated": found.validated,
             "probabilities": found.probabilities.ravel().tolist()}
        ),
    )  # fmt: skip
    kept_results = KeptResults(out / COMPARISON, _comparison_key(plan, mask, prior))
    table = _compare(plan, mask, test, validate, prior, device, tell, kept_results) if test else {}
    _write_text(out / "report.md", "\n".join(_report(plan, mask, found, seconds, table, prior)) + "\n")
    kept_results.remove()
    checkpoint.remove()
    return out / "mask.npz"


def _key(plan: MaskPlan, prior: DiffusionPrior) -> str:
    """Of everything that the mask depends on."""
    parts = {
        "acs": [*plan.inner.shape, plan.acs],
        "samples": plan.samples,
        "images": [[image.key for image in images] for images in (plan.train, plan.validation)],
        "condition": asdict(plan.condition),
        "objective": plan.objective.model_dump(mode="json"),
        "settings": plan.settings.model_dump(mode="json"),
        "recipe": plan.recipe.model_dump(mode="json"),
        "prior": weights_hash(prior.weights()),
        "seed": plan.seed,
        # the same settings may end in another mask elsewhere
        "version": own_version(),
        "device": prior.device.type,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _comparison_key(plan: MaskPlan, mask: SamplingMask, prior: DiffusionPrior) -> str:
    """Of everything that the comparison depends on."""
    parts = [_key(plan, prior), mask.sha256, plan.r, plan.best_of, [image.key for image in plan.test]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _validation(plan: MaskPlan, scans: list[FullScan], prior: Any, device: torch.device) -> Validate:
    def validate(mask: np.ndarray) -> float:
        return float(np.mean(scores(fixed(_sampling(plan, mask)), scans, plan.recipe, prior, device)["psnr"]))

    return validate


def _sampling(plan: MaskPlan, mask: np.ndarray) -> Sampling:
    flat = (mask[:, 0], plan.inner[:, 0]) if plan.kind == "lines" else (mask, plan.inner)
    return Sampling(flat[0], flat[1], plan.r)


def _mask_of(plan: MaskPlan, found: Learned, prior: DiffusionPrior) -> SamplingMask:
    rows, columns = found.mask.shape
    condition = asdict(plan.condition)
    return SamplingMask(
        found.mask,
        plan.inner,
        (plan.readout, rows, columns),
        plan.fov_mm,
        f"learned-{plan.settings.learner}",
        {
            "learning": plan.settings.model_dump(exclude={"seed"}),
            "objective": plan.objective.model_dump(),
            "scans": {name: condition[name] for name in ("coils", "snr_db", "phase")},
            "validation": plan.recipe.name,
        },
        plan.r,
        plan.seed,
        f"{len(plan.train)} images: " + ", ".join(image.name for image in plan.train[:20]),
        prior.name,
        weights_hash(prior.weights()),
    )


def _compare(
    plan: MaskPlan, mask: SamplingMask, test: list[FullScan], validate: Validate, prior: Any, device: torch.device,
    tell: Tell, kept: KeptResults,
) -> dict[str, dict[str, list[float]]]:  # fmt: skip
    dimensions = 1 if plan.kind == "lines" else 2
    patterns: dict[str, Pattern] = {"learned": fixed(mask.sampling())}
    patterns |= {name: family(name, plan.r, plan.acs, plan.seed) for name in BASELINES[dimensions]}
    if plan.best_of:
        name = BEST_OF[dimensions]
        tries = []
        for number in range(plan.best_of):
            tell(f"draws of {name}", number, plan.best_of)
            drawn = make_mask(name, plan.shape, plan.r, plan.acs, draw(plan.seed, "best of", name, str(number)))
            flat = drawn.mask[:, None] if drawn.mask.ndim == 1 else drawn.mask
            tries.append((kept(f"draw {number}", partial(validate, flat)), number, drawn))
        patterns[f"best of {plan.best_of} {name}"] = fixed(max(tries)[2])
    done = 0
    table = {}
    for name, pattern in patterns.items():

        def count() -> None:
            nonlocal done
            done += 1
            tell("test images", done, len(patterns) * len(test))

        table[name] = kept(f"mask {name}", partial(scores, pattern, test, plan.recipe, prior, device, count))
        done = len(table) * len(test)
    return table


def _report(
    plan: MaskPlan, mask: SamplingMask, found: Learned, seconds: float, table: dict[str, dict[str, list[float]]],
    prior: DiffusionPrior,
) -> list[str]:  # fmt: skip
    rows, columns = plan.shape
    square = "" if plan.kind == "lines" else f" x {plan.acs}"
    coils = "1 coil" if plan.condition.coils == 1 else f"{plan.condition.coils} coils"
    noise = "no noise" if plan.condition.snr_db is None else f"SNR {plan.condition.snr_db:g} dB"
    lines = [
        f"# A learned mask: {mask.samples} {mask.kind} of {mask.mask.size}, R {mask.effective_r:.3f}",
        "",
        f"- matrix {rows} x {columns}, ACS {plan.acs}{square}, R asked for {plan.r:g} (ACS counted)",
        f"- learner {plan.settings.learner}, objective {plan.objective.kind}, prior {prior.name}, {coils}, {noise}",
        f"- trained on {len(plan.train)} images in {seconds:.0f} s; validated on "
        + (f"{len(plan.validation)} others" if plan.validation else "the same images")
        + f" by {plan.recipe.name}",
        f"- hash {mask.sha256}",
    ]
    if found.validated:
        tried = ", ".join(f"{score:.2f} (step {step})" for step, score in found.validated)
        lines.append(f"- patterns tried, PSNR in dB: {tried}")
    lines += ["", "![learning](learning.png)", ""]
    if not table:
        return [*lines, "Not compared: no test images were given."]
    count = len(table["learned"]["psnr"])
    lines += [
        f"## On {count} test images",
        "",
        f"The same scans and the same reconstruction ({plan.recipe.name}) for all masks. Mean and 95 % confidence "
        "interval over images (Student's t); differences are paired, learned less the other. Families are drawn anew "
        "for each image.",
        "",
        "| mask | PSNR, dB | learned better by | SSIM | learned better by |",
        "|---|---|---|---|---|",
    ]
    for name, values in table.items():
        cells = []
        for measure, digits in (("psnr", 2), ("ssim", 4)):
            cells.append(_told(Interval.of(values[measure]), digits))
            better = "" if name == "learned" else _told(difference(table["learned"][measure], values[measure]), digits)
            cells.append(better)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    described = "; ".join(f"{name}: {FAMILIES[name].description}" for name in table if name in FAMILIES)
    return [*lines, "", f"Families: {described}."]


def _told(interval: Interval, digits: int) -> str:
    return f"{interval.mean:.{digits}f} ± {interval.half:.{digits}f}"


def _write_text(path: Path, text: str) -> None:
    with whole_files(path.parent) as folder:
        (folder / path.name).write_text(text, encoding="utf-8")
