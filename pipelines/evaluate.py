"""`scanprior evaluate` on test images: every method on every condition, kept as it goes; the tuning of baselines."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scanprior.gadgets.engine import Engine
from scanprior.models.prior import AnyPrior
from scanprior.sim.evaluation import (
    Condition,
    TestScan,
    case_record,
    run_recipe,
    simulate_scan,
)

from .evaluate_methods import Candidate
from .evaluate_plan import LAM_FACTORS, Plan, TestImage, known, own_version, resolved_acs, told
from .evaluate_store import Store, WeightsHash, save_picture
from .evaluate_tables import amount

log = logging.getLogger(__name__)

LAM_LIMIT = 64.0
"""How far, as a factor either way, the grid goes on."""

Tell = Callable[[str, int], None]
"""`tell(what is being done, cases finished since the last call)`."""


class Evaluation:
    """Runs a plan in a folder.

    Parameters
    ----------
    plan
        Checked.
    out
        Folder for `cases.jsonl`, `tuning.jsonl` and `images/`; cases that are there already are not computed again.
    engine
        Loads the priors, each once, and knows the device.
    """

    def __init__(self, plan: Plan, out: Path, engine: Engine) -> None:
        self.plan = plan
        self._engine = engine
        self._pictures = out / "images"
        self._pictures.mkdir(parents=True, exist_ok=True)
        self._store = Store(out / "cases.jsonl")
        self._tuning = Store(out / "tuning.jsonl")
        self._weights = WeightsHash()
        self._warm: set[tuple[int, tuple[int, ...]]] = set()
        self.failures: list[str] = []

    def run(self, tell: Tell = lambda what, done: None) -> list[dict[str, Any]]:
        """All records of the plan, in its order. A case that fails is left out and named in `failures`."""
        chosen = self.tune(tell)
        records = []
        for number, image in enumerate(self.plan.images):
            for condition in self.plan.conditions:
                candidates = [chosen[condition, candidate.label] for candidate in self.plan.candidates]
                show = number < self.plan.shown
                records += self._image(image, condition, candidates, show, tell)
        return records

    def done(self) -> int:
        """Cases of the plan that are there already; without those that tuning has yet to decide."""
        count = 0
        for image in self.plan.images:
            for condition in self.plan.conditions:
                for candidate in self.plan.candidates:
                    if not (candidate.tunable and self.plan.tuning):
                        count += self.case_id(image, condition, candidate) in self._store.records
        return count

    def tune(self, tell: Tell) -> dict[tuple[Condition, str], Candidate]:
        """The candidate to run under each condition: with the weight that is best on the training images, or as it is.

        The mean PSNR over the training images decides; the grid goes on while its best lies at an edge.
        """
        chosen = {(c, candidate.label): candidate for c in self.plan.conditions for candidate in self.plan.candidates}
        tunable = [candidate for candidate in self.plan.candidates if candidate.tunable]
        if not self.plan.tuning or not tunable:
            return chosen
        for condition in self.plan.conditions:
            scans: dict[str, TestScan] = {}
            for candidate in tunable:
                lam = self._best_weight(candidate, condition, scans, tell)
                if lam is not None:
                    chosen[condition, candidate.label] = candidate.with_lam(lam)
        return chosen

    def _best_weight(
        self, candidate: Candidate, condition: Condition, scans: dict[str, TestScan], tell: Tell
    ) -> float | None:
        """None where no weight could be run."""
        default = float(getattr(candidate.recipe.method_settings, "lam"))  # noqa: B009 : only tunable methods have it
        quality: dict[float, float] = {}

        def try_factor(factor: float) -> None:
            weighted = candidate.with_lam(default * factor)
            records = []
            for image in self.plan.tuning:
                record = self._case(self._tuning, image, condition, weighted, scans, tell, f"tuning {candidate.label}")
                if record is not None:
                    records.append(record["psnr"])
            if len(records) == len(self.plan.tuning):
                quality[factor] = float(np.mean(records))

        for factor in LAM_FACTORS:
            try_factor(factor)
        while quality:
            best = max(quality, key=lambda factor: quality[factor])
            following = {min(quality): best / 2, max(quality): best * 2}.get(best)
            if following is None or not 1 / LAM_LIMIT <= following <= LAM_LIMIT:
                return default * best
            before = len(quality)
            try_factor(following)
            if len(quality) == before:
                return default * best
        return None

    def _image(
        self, image: TestImage, condition: Condition, candidates: list[Candidate], show: bool, tell: Tell
    ) -> list[dict[str, Any]]:
        scans: dict[str, TestScan] = {}
        records = []
        for candidate in candidates:
            record = self._case(self._store, image, condition, candidate, scans, tell, candidate.label, show)
            if record is not None:
                # what the user calls it now: the same case may have had another label before
                tuned = bool(self.plan.tuning) if candidate.tunable else None
                records.append(record | {"method": candidate.label, "image": image.name, "tuned": tuned})
        return records

    def _case(
        self,
        store: Store,
        image: TestImage,
        condition: Condition,
        candidate: Candidate,
        scans: dict[str, TestScan],
        tell: Tell,
        what: str,
        show: bool = False,
    ) -> dict[str, Any] | None:
        """One record, from the store where it is there. `scans` holds the scan of an image once it was simulated."""
        case = self.case_id(image, condition, candidate)
        picture = self.picture(case)
        tell(f"{condition.mask} {amount(condition.mask, condition.r)} {what}", 0)
        if case not in store.records or (show and not picture.exists()):
            try:
                scan = scans.get(image.key)
                if scan is None:
                    scan = scans[image.key] = simulate_scan(image.pixels, condition, self.plan.seed)
                recipe = candidate.recipe
                prior, device = self._engine.prior(recipe), self._engine.device(recipe)
                if prior is not None:
                    self._warm_up(prior, image.pixels.shape)
                result = run_recipe(scan, recipe, prior, device)
                record = case_record(scan, recipe, result)
            except (ValueError, RuntimeError) as error:
                log.debug("case failed", exc_info=True)
                self.failures.append(f"{image.name}, {told(condition)}, {candidate.label}: {error}")
                tell("", 1)
                return None
            if show:
                save_picture(picture, result.image.abs().numpy(), None if result.std is None else result.std.numpy())
            store.add(
                {"case": case, "image": image.name, "method": candidate.label}
                | {name: value for name, value in vars(condition).items() if name != "pattern"} | record
                | {"acs": record["acs"], "lam": getattr(recipe.method_settings, "lam", None)}
            )  # fmt: skip
        tell("", 1)
        return store.records[case]

    def _warm_up(self, prior: AnyPrior, shape: tuple[int, int]) -> None:
        """Let a network see this size once, so that what a first call costs is in no method's seconds."""
        if (id(prior), shape) not in self._warm:
            self._warm.add((id(prior), shape))
            prior.warm_up(shape)

    def picture(self, case: str) -> Path:
        """Where the image of a shown case lies: npz with `image` and, where there is one, `std`."""
        return self._pictures / f"{case}.npz"

    def case_id(self, image: TestImage, condition: Condition, candidate: Candidate) -> str:
        """Hash of what a case's numbers depend on: version, image, condition, seed, recipe, weights, device."""
        recipe = candidate.recipe
        parts = {
            "image": image.key,
            "scanprior": own_version(),
            "condition": known(condition) | {"r": float(condition.r), "acs": resolved_acs(condition, image)},
            "seed": self.plan.seed,
            "recipe": recipe.model_dump(include={"maps", "method", "prior", "precision"}),
            "settings": recipe.method_settings.model_dump(),
            "weights": self._weights(self._engine.prior(recipe)),
            "device": str(self._engine.device(recipe)),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]
