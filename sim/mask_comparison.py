"""Masks compared by real reconstructions of the same scans: means, and differences with confidence intervals."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scanprior.models.recipe import Recipe
from scanprior.sim.evaluation import FullScan, draw, image_key, run_recipe
from scanprior.sim.mask_families import make_mask
from scanprior.sim.masks import Sampling
from scanprior.sim.metrics import psnr, ssim
from scipy.stats import t as student

MEASURES = ("psnr", "ssim")

Pattern = Callable[[FullScan], Sampling]
"""The mask with which a scan is measured."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % confidence interval, mean +- half (Student's t over images; nan for one image)."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Of independent values."""
        count = len(values)
        if count < 2:
            return cls(float(np.mean(values)), math.nan)
        spread = float(np.std(values, ddof=1)) / math.sqrt(count)
        return cls(float(np.mean(values)), float(student.ppf(0.975, count - 1)) * spread)


def fixed(sampling: Sampling) -> Pattern:
    """One pattern for all scans."""
    return lambda scan: sampling


def family(name: str, r: float, acs: int, seed: int) -> Pattern:
    """A pattern of a family, drawn anew for each image (but always the same for the same image)."""

    def pattern(scan: FullScan) -> Sampling:
        key = image_key(scan.truth)
        return make_mask(
            name, (scan.truth.shape[0], scan.truth.shape[1]), r, acs, draw(seed, key, name, repr(float(r)))
        )

    return pattern


def scores(
    pattern: Pattern, scans: Sequence[FullScan], recipe: Recipe, prior: Any, device: torch.device | str = "cpu",
    tell: Callable[[], None] | None = None,
) -> dict[str, list[float]]:  # fmt: skip
    """PSNR (dB) and SSIM of each scan's reconstruction; `tell()` is called after each."""
    found: dict[str, list[float]] = {measure: [] for measure in MEASURES}
    for scan in scans:
        image = run_recipe(scan.sampled(pattern(scan)), recipe, prior, device).image.numpy()
        found["psnr"].append(psnr(image, scan.truth))
        found["ssim"].append(ssim(image, scan.truth))
        if tell is not None:
            tell()
    return found


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Of the same images: the mean of `ours` less `theirs`, paired."""
    return Interval.of([a - b for a, b in zip(ours, theirs, strict=True)])


def weights_hash(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256, hexadecimal, of weights by name: the same whatever file or device they lie in."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}|".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
