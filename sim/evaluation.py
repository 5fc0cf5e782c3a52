"""One case of an evaluation: an image becomes a scan, a recipe reconstructs it, and the image is scored.

Simulated scans are in the image's own units: maps have unit norm over coils, so a reconstruction is compared with the
truth as it is. Nothing is fitted to the truth, and the maps come from the noisy ACS alone.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scanprior.models.espirit import espirit_maps
from scanprior.models.methods import METHODS, reconstruct
from scanprior.models.recipe import Maps, Recipe
from scanprior.models.scan import Progress, Reconstruction, Scan
from scanprior.sim.anatomy import to_kspace
from scanprior.sim.coils import coil_maps
from scanprior.sim.fields import pixel_centres, smooth_field
from scanprior.sim.mask_families import acs_size, make_mask
from scanprior.sim.mask_file import SamplingMask
from scanprior.sim.masks import Sampling
from scanprior.sim.metrics import nmse, psnr, ssim

OBJECT_LEVEL = 0.05
"""Object pixels are those whose truth is above this fraction of its maximum."""

BANDS = {50: 0.6744897501960817, 80: 1.2815515655446004, 95: 1.959963984540054}
"""Two-sided Gaussian bands: percent of the probability, and its half-width in standard deviations."""


@dataclass(frozen=True)
class Condition:
    """How an image is scanned.

    Attributes
    ----------
    mask
        Name of a mask family.
    r
        Undersampling factor, ACS counted; number of spokes or probability where the family goes by those
        (`MaskFamily.amount`).
    snr_db
        Mean magnitude in the object over the noise (E|n|^2)^1/2 of the optimally combined, fully sampled image, in dB;
        None for no noise at all.
    coils
        1 is a single coil with a map of ones.
    acs
        Lines, or edge of the square; None takes `mask_families.default_acs`.
    phase
        Spread of the smooth phase that a magnitude image gets, in radians.
    noise
        In place of `snr_db`: standard deviation of the noise in each real channel, over the image's maximum (as Duff et
        al. state it).
    """

    mask: str
    r: float
    snr_db: float | None
    coils: int = 8
    acs: int | None = None
    phase: float = 1.0
    noise: float | None = None
    pattern: SamplingMask | None = field(default=None, compare=False)


@dataclass
class TestScan:
    """A simulated scan and its truth.

    Attributes
    ----------
    truth
        (y, x) complex64.
    kspace
        (coil, y, x) complex64, zero where not sampled; noise white and equal in all coils.
    sampling
        Of shape (y,) or (y, x).
    sigma
        Standard deviation of the complex noise.
    """

    __test__ = False  # not a test, whatever pytest makes of the name

    truth: np.ndarray
    kspace: torch.Tensor
    sampling: Sampling
    sigma: float
    _maps: dict[Maps, torch.Tensor] = field(default_factory=dict)

    @property
    def mask(self) -> torch.Tensor:
        """(y, 1) or (y, x) bool."""
        mask = self.sampling.mask
        return torch.from_numpy(mask[:, None] if mask.ndim == 1 else mask)

    def maps(self, settings: Maps, device: torch.device | str = "cpu") -> torch.Tensor:
        """Coil maps by ESPIRiT from the ACS, kept for the next method; ones for a single coil.

        Raises
        ------
        NoAcsError
            If the ACS is smaller than the kernel.
        """
        if settings not in self._maps:
            if len(self.kspace) == 1:
                self._maps[settings] = torch.ones_like(self.kspace)
            else:
                rows, columns = self._acs_box()
                centre = self.kspace[:, rows, columns]
                self._maps[settings], _ = espirit_maps(
                    centre.to(device), self.truth.shape, kernel=settings.kernel, threshold=settings.threshold,
                    crop=settings.crop, sets=settings.sets, sigma=self.sigma,
                )  # fmt: skip
        return self._maps[settings].to(device)

    def _acs_box(self) -> tuple[slice, slice]:
        acs = self.sampling.acs
        if acs.ndim == 1:
            return _run(acs), slice(None)
        return _run(np.any(acs, axis=1)), _run(np.any(acs, axis=0))


def _run(flags: np.ndarray) -> slice:
    places = np.flatnonzero(flags)
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)


def image_key(image: np.ndarray) -> str:
    """What tells this image from all others: its draws of coils, phase, mask and noise depend on it, not on its place
    in a list, so that an evaluation of more images repeats those of fewer.
    """
    values = np.ascontiguousarray(image, np.complex64 if np.iscomplexobj(image) else np.float32)
    return hashlib.sha256(repr(values.shape).encode() + values.tobytes()).hexdigest()[:16]


def draw(seed: int, *what: str) -> list[int]:
    """Seed of one draw: independent for each name, the same in every process."""
    digest = hashlib.sha256("|".join(what).encode()).digest()
    return [seed, int.from_bytes(digest[:8], "little")]


@lru_cache(maxsize=8)
def _coils(shape: tuple[int, int], coils: int, seed: int) -> np.ndarray:
    if coils == 1:
        return np.ones((1, *shape), np.complex64)
    return coil_maps(shape, coils, seed=seed)[0]


def mask_of(condition: Condition, image: np.ndarray, seed: int) -> Sampling:
    """The mask that `simulate_scan` draws for this image: the same for every noise level.

    Raises
    ------
    ValueError
        If the family is not known, R cannot be reached with the ACS, or a mask file is for another matrix.
    """
    key = image_key(image)
    shape = (image.shape[0], image.shape[1])
    if condition.pattern is not None:
        expected = (shape[0], 1) if condition.pattern.kind == "lines" else shape
        if condition.pattern.mask.shape != expected:
            raise ValueError(
                f"mask {condition.mask}: its matrix (y, z) is {condition.pattern.mask.shape}, "
                f"an image of {shape[0]} x {shape[1]} needs {expected}"
            )
        return condition.pattern.sampling()
    drawn = draw(seed, key, "mask", condition.mask, repr(float(condition.r)))
    return make_mask(condition.mask, shape, condition.r, condition.acs, drawn)


@dataclass(frozen=True)
class FullScan:
    """A fully sampled scan of an image, before any mask, in the image's own units.

    Attributes
    ----------
    truth
        (y, x) complex64.
    kspace
        (coil, y, x) complex64 with the noise; white and equal in all coils.
    maps
        (coil, y, x) complex64, the true ones; unit norm.
    sigma
        Standard deviation of the complex noise.
    """

    truth: np.ndarray
    kspace: np.ndarray
    maps: np.ndarray
    sigma: float

    def sampled(self, sampling: Sampling) -> TestScan:
        """What remains of it where `sampling` measures."""
        mask = sampling.mask[:, None] if sampling.mask.ndim == 1 else sampling.mask
        return TestScan(self.truth, torch.from_numpy(self.kspace * mask), sampling, self.sigma)


def scan_fully(image: np.ndarray, condition: Condition, seed: int = 0) -> FullScan:
    """Scan all of k-space: coils, phase and noise as `simulate_scan` draws them; the condition's mask is not asked.

    Raises
    ------
    ValueError
        If the image is zero or not finite.
    """
    if image.ndim != 2 or not np.isfinite(image).all() or not image.any():
        raise ValueError(
            f"image: expected a finite slice (y, x) that is not all zero, got shape {image.shape}, "
            f"largest magnitude {np.abs(image).max():g}"
        )
    key = image_key(image)
    rows, columns = image.shape
    truth = image.astype(np.complex64)
    if not np.iscomplexobj(image):
        phases = np.random.default_rng(draw(seed, key, "phase"))
        where = np.zeros((1, 1)), pixel_centres(rows)[:, None], pixel_centres(columns)[None, :]
        phase = condition.phase * (0.8 * smooth_field(phases, 5, *where) + 0.3 * smooth_field(phases, 9, *where))
        truth = (np.abs(image) * np.exp(1j * phase)).astype(np.complex64)

    loops = int(np.random.default_rng(draw(seed, key, "coils")).integers(2**31))
    maps = _coils((rows, columns), condition.coils, loops)
    kspace = to_kspace(maps * truth, (-2, -1)).astype(np.complex64)
    sigma = 0.0
    if condition.snr_db is not None:
        sigma = float(np.abs(truth)[object_pixels(truth)].mean() / 10 ** (condition.snr_db / 20))
    elif condition.noise is not None:
        sigma = float(2**0.5 * condition.noise * np.abs(truth).max())
    if sigma > 0:
        white = np.random.default_rng(draw(seed, key, "noise")).standard_normal((2, *kspace.shape), np.float32)
        kspace += np.float32(sigma / 2**0.5) * (white[0] + 1j * white[1])
    return FullScan(truth, kspace, maps, sigma)


def simulate_scan(image: np.ndarray, condition: Condition, seed: int = 0) -> TestScan:
    """Scan an image.

    Coils (Biot-Savart), smooth phase (of a magnitude image; a complex one keeps its own), mask and noise are drawn for
    this image and this seed. All masks and R of an image share its coils, its phase and, at one noise level, the noise
    of the k-space before the mask.

    Parameters
    ----------
    image
        (y, x), magnitude or complex.

    Raises
    ------
    ValueError
        If the image is zero or not finite, the mask is not known, or R cannot be reached.
    """
    full = scan_fully(image, condition, seed)
    return full.sampled(mask_of(condition, image, seed))


def object_pixels(truth: np.ndarray) -> np.ndarray:
    """(y, x) bool: where the scores of uncertainty, and the noise level, are taken."""
    magnitude = np.abs(truth)
    return magnitude > OBJECT_LEVEL * magnitude.max()


def run_recipe(
    scan: TestScan, recipe: Recipe, prior: Any = None, device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Reconstruction:  # fmt: skip
    """Reconstruct a test scan by a recipe's method, maps and settings, and add `seconds` and `maps_seconds`.

    `seconds` is the wall time of the method alone, `maps_seconds` that of ESPIRiT (next to nothing where another method
    had the same maps before).

    Raises
    ------
    ValueError
        If the recipe compresses coils, which belongs to the stream, or the method fails.
    """
    if recipe.compression is not None:
        raise ValueError(f"recipe {recipe.name!r}: compression is not done on simulated scans; leave it out")
    began = time.perf_counter()
    maps = scan.maps(recipe.maps, device) if recipe.needs_maps else None
    problem = Scan(scan.kspace.to(device), scan.mask.to(device), maps, scan.sigma)
    prepared = time.perf_counter()
    result = reconstruct(recipe.method, problem, prior, recipe.settings_to_run, progress)
    image = result.image.cpu()  # waits for a GPU
    finished = time.perf_counter()
    info = result.info | {"seconds": finished - prepared, "maps_seconds": prepared - began}
    return Reconstruction(image, None if result.std is None else result.std.cpu(), info)


def score(image: np.ndarray, std: np.ndarray | None, truth: np.ndarray) -> dict[str, float | None]:
    """PSNR (dB), SSIM and NMSE of the magnitude, and, with a standard deviation, `calibration`.

    Parameters
    ----------
    image, truth
        (y, x), complex or magnitude; data range is the maximum of |truth|.
    std
        (y, x) standard deviation of the magnitude, or None: the scores of calibration are None then.
    """
    scores: dict[str, float | None] = {
        "psnr": psnr(image, truth), "ssim": ssim(image, truth), "nmse": nmse(image, truth),
    }  # fmt: skip
    if std is None:
        return scores | dict.fromkeys(CALIBRATION)
    return scores | calibration(np.abs(image), std, np.abs(truth))


CALIBRATION = (*(f"cover{percent}" for percent in BANDS), "error_rms", "std_rms", "error_over_std", "error_std_corr")
"""Keys of what `calibration` returns."""


def calibration(image: np.ndarray, std: np.ndarray, truth: np.ndarray) -> dict[str, float | None]:
    """How well `std` (y, x) tells the error of `image`, over the object's pixels; all magnitudes.

    Returns
    -------
    cover50, cover80, cover95
        Fraction of pixels where |truth - image| <= z std, the Gaussian band of that probability.
    error_rms, std_rms, error_over_std
        Root mean square of the error and of `std`, and their ratio: above 1 the method is too sure of itself. The
        ratio is None where `std` is zero everywhere.
    error_std_corr
        Pearson's correlation of |truth - image| with `std`: whether the map shows where the errors are. None where
        either does not vary.
    """
    inside = object_pixels(truth)
    error = np.abs(truth - image)[inside].astype(np.float64)
    spread = np.asarray(std)[inside].astype(np.float64)
    error_rms, std_rms = float(np.sqrt(np.mean(error**2))), float(np.sqrt(np.mean(spread**2)))
    found: dict[str, float | None] = {
        f"cover{percent}": float(np.mean(error <= z * spread)) for percent, z in BANDS.items()
    }
    varies = len(error) > 1 and error.std() > 0 and spread.std() > 0
    return found | {
        "error_rms": error_rms,
        "std_rms": std_rms,
        "error_over_std": error_rms / std_rms if std_rms > 0 else None,
        "error_std_corr": float(np.corrcoef(error, spread)[0, 1]) if varies else None,
    }


def evaluations_of(info: Mapping[str, Any]) -> str | None:
    """All network evaluations, from `Reconstruction.info`: `20 x 8`, or `20 + 10 x 8` where samples share some."""
    if "nfe" not in info:
        return None
    return str(info.get("evaluations", f"{info['nfe']} x {info.get('samples', 1)}"))


def case_record(scan: TestScan, recipe: Recipe, result: Reconstruction) -> dict[str, Any]:
    """The scores of one case with what the table says besides: time, NFE, samples, effective R, ACS."""
    std = None if result.std is None else result.std.numpy()
    method = METHODS[recipe.method]
    return {
        **score(result.image.numpy(), std, scan.truth),
        "seconds": float(result.info["seconds"]),
        "maps_seconds": float(result.info["maps_seconds"]),
        "nfe": int(result.info["nfe"]) if method.needs_prior and "nfe" in result.info else None,
        "samples": int(result.info["samples"]) if "samples" in result.info else None,
        "evaluations": evaluations_of(result.info) if method.needs_prior else None,
        "effective_r": scan.sampling.effective_r,
        "acs": acs_size(scan.sampling),
        "sigma": scan.sigma,
    }
