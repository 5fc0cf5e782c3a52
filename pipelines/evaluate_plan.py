"""What an evaluation compares on what: the plan, the test images, and what is refused before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from scanprior.sim.augmentation import fourier_resize
from scanprior.sim.evaluation import Condition, image_key, mask_of
from scanprior.sim.image_sources import find_images, load_images
from scanprior.sim.image_stack import ImageStack, SourceError
from scanprior.sim.mask_families import acs_size, default_acs
from scanprior.sim.source_dicom import is_dicom, load_dicom

from .evaluate_methods import Candidate
from .evaluate_tables import amount, noise_level

LAM_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Weights tried first, relative to the shipped one; the grid goes on by factors of 2 where its best lies at an edge."""


class EvaluationError(ValueError):
    """An evaluation that cannot be made as it was asked for."""


@dataclass(frozen=True)
class TestImage:
    """A slice (y, x), float32 magnitude or complex64, and the file or folder that it comes from."""

    __test__ = False

    name: str
    pixels: np.ndarray
    source: Path

    @property
    def key(self) -> str:
        """Tells it from all others."""
        return image_key(self.pixels)


@dataclass(frozen=True)
class Plan:
    """What is compared on what."""

    images: list[TestImage]
    candidates: list[Candidate]
    conditions: list[Condition]
    seed: int = 0
    tuning: list[TestImage] = field(default_factory=list)
    shown: int = 1

    @property
    def cases(self) -> int:
        """Reconstructions of test images."""
        return len(self.images) * len(self.conditions) * len(self.candidates)

    @property
    def tuning_cases(self) -> int:
        """Reconstructions of training images, at the least."""
        tunable = sum(candidate.tunable for candidate in self.candidates) if self.tuning else 0
        return tunable * len(self.conditions) * len(self.tuning) * len(LAM_FACTORS)

    def check(self) -> None:
        """Refuse what cannot be run, before anything is.

        Raises
        ------
        EvaluationError
            When R cannot be reached, the ACS is too small for the maps, or tuning images are test images.
        """
        for condition in self.conditions:
            for image in {image.pixels.shape: image for image in (*self.images, *self.tuning)}.values():
                try:
                    edge = acs_size(mask_of(condition, image.pixels, self.seed))
                except ValueError as error:
                    raise EvaluationError(str(error)) from None
                kernel = max((c.recipe.maps.kernel for c in self.candidates if c.recipe.needs_maps), default=0)
                if condition.coils > 1 and edge < kernel:
                    raise EvaluationError(
                        f"ACS of {edge}: the coil maps' kernel needs at least {kernel}; give more, or --coils 1"
                    )
        for candidate in self.candidates:
            if candidate.recipe.compression is not None:
                raise EvaluationError(
                    f"method {candidate.label!r}: its recipe compresses coils, which is done on streams only"
                )
        if self.tuning:
            keys = {image.key for image in self.images}
            files = {image.source.resolve() for image in self.images}
            for image in self.tuning:
                if image.key in keys or image.source.resolve() in files:
                    raise EvaluationError(f"{image.name} is of the test images: baselines are tuned on others")


def pick_images(paths: list[Path], count: int | None, size: int | None = None) -> list[TestImage]:
    """`count` slices, evenly spread over all that the files hold; all of them where it is None.

    Parameters
    ----------
    size
        Longest edge in pixels; larger images are resampled to it in k-space.

    Raises
    ------
    EvaluationError
        When a file is missing or cannot be used, or there are fewer slices.
    """
    for path in paths:
        if not path.exists():
            raise EvaluationError(f"{path} does not exist")
    every: list[TestImage] = []
    try:
        for stack, source in _stacks(paths):
            every += [TestImage(f"{stack.name}[{n}]", image, source) for n, image in enumerate(stack.slices)]
    except ImportError as error:
        raise EvaluationError(f"these images need the extra: pip install 'scanprior[train]' ({error})") from error
    except (SourceError, FileNotFoundError) as error:
        raise EvaluationError(str(error).removeprefix("training data: ")) from error
    if count is None:
        count = len(every)
    if not 1 <= count <= len(every):
        raise EvaluationError(f"{count} images asked for, {', '.join(map(str, paths))} hold {len(every)}")
    chosen = [every[int((n + 0.5) * len(every) / count)] for n in range(count)]
    return chosen if size is None else [_at_most(image, size) for image in chosen]


def _stacks(paths: list[Path]) -> Iterator[tuple[ImageStack, Path]]:
    """What the files hold, and where it lies. None is left out: an average over other images would be another one."""
    files = find_images(paths)
    series = [file for file in files if is_dicom(file)]
    for file in files:
        if file not in series:
            yield load_images(file), file
    if series:
        stacks, left_out = load_dicom(series)
        if left_out:
            raise SourceError("; ".join(left_out))
        yield from ((stack, series[0].parent) for stack in stacks)


def _at_most(image: TestImage, size: int) -> TestImage:
    factor = size / max(image.pixels.shape)
    if factor >= 1:
        return image
    small = fourier_resize(image.pixels, factor)
    return TestImage(image.name, small if np.iscomplexobj(small) else np.abs(small), image.source)


def conditions_of(
    amounts: dict[str, list[float]], snrs: list[float | None], noises: list[float], coils: int, acs: int | None,
    phase: float = 1.0,
) -> list[Condition]:  # fmt: skip
    """All combinations, masks outermost; `amounts`: of each mask R, the number of spokes or the probability."""
    levels: list[tuple[float | None, float | None]] = [(None, noise) for noise in noises]
    levels += [(snr, None) for snr in snrs]
    return [
        Condition(mask, r, snr, coils, acs, phase, noise)
        for mask, values in amounts.items() for r in values for snr, noise in levels
    ]  # fmt: skip


def plan_lines(plan: Plan) -> Iterator[str]:
    """The plan in words, for a dry run."""
    shapes = sorted({f"{rows} x {columns}" for rows, columns in (image.pixels.shape for image in plan.images)})
    yield f"images: {len(plan.images)} ({', '.join(shapes)}), {plan.images[0].name} to {plan.images[-1].name}"
    for candidate in plan.candidates:
        settings = candidate.recipe.settings_to_run
        tuned = ", lam tuned" if candidate.tunable and plan.tuning else ""
        evaluations = settings.network_evaluations
        work = f", {evaluations} images through the network a case" if evaluations else ""
        yield f"method {candidate.label}: {candidate.recipe.method}{tuned}{work}"
    for condition in plan.conditions:
        sampling = mask_of(condition, plan.images[0].pixels, plan.seed)
        acs = acs_size(sampling)
        square = "" if sampling.acs.ndim == 1 else f" x {acs}"
        yield f"{told(condition)}: effective R {sampling.effective_r:.2f}, ACS {acs}{square}"
    if plan.tuning_cases:
        yield f"tuning: at least {plan.tuning_cases} cases on {len(plan.tuning)} training images"
    yield f"cases: {plan.cases}"


def resolved_acs(condition: Condition, image: TestImage) -> int:
    """The ACS that the mask of this image has."""
    if condition.pattern is not None:
        return acs_size(condition.pattern.sampling())
    shape = image.pixels.shape[0], image.pixels.shape[1]
    return default_acs(condition.mask, shape, condition.r) if condition.acs is None else condition.acs


def own_version() -> str:
    """Version of the installed package."""
    try:
        return version("scanprior")
    except PackageNotFoundError:
        return "not installed: run from a checkout"


def told(condition: Condition) -> str:
    """A condition in words."""
    coils = "1 coil" if condition.coils == 1 else f"{condition.coils} coils"
    noise = noise_level(condition.snr_db, condition.noise)
    return f"{condition.mask} {amount(condition.mask, condition.r)}, {noise}, {coils}"


def known(condition: Condition) -> dict[str, Any]:
    """The condition as a mapping, by which finished cases are found again: without what earlier versions had not."""
    found = asdict(replace(condition, pattern=None))
    del found["pattern"]
    if condition.pattern is not None:
        found["mask"] += " " + condition.pattern.sha256  # another mask may have the same file name
    if condition.noise is None:
        del found["noise"]
    return found
