"""Denoising of full scans: `tweedie` by priors, and baselines of libraries, on simulated scans of test images.

    python benchmarks/denoise.py --data ../shared/data --priors small,runs/noisy/prior.safetensors

Baselines (extra `denoise`): wavelet thresholding (scikit-image; soft with BayesShrink, hard with the universal
threshold; cycle spinning) and BM3D (package bm3d), on real and imaginary part each. They are told the true noise times
a factor: the one that is best on TRAINING images at that noise. The prior is told the scan's noise as it is. All see
the same least-squares image, and its magnitude is scored: the data range is the truth's maximum, nothing is scaled to
the truth. Noise is the standard deviation of each real channel of that image over the truth's maximum.

Also the check of the noise level: `tweedie` told half and double the noise.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
import typer
from scanprior.models.linear import ZeroFilledSettings, zero_filled
from scanprior.models.prior import load_prior
from scanprior.models.recipe import Maps
from scanprior.models.scan import Reconstruction, Scan
from scanprior.models.tweedie import TweedieSettings, tweedie
from scanprior.pipelines.evaluate_plan import pick_images
from scanprior.sim.evaluation import Condition, calibration, scan_fully
from scanprior.sim.masks import Sampling, acs_lines
from scanprior.sim.metrics import psnr, ssim

SETS = {"T1": "axial_t1_192.npz", "T2": "axial_t2_0p45mm_512x480.npz"}
TUNING_SETS = {"T1": "axial_t1_192.npz", "T2": "axial_t2_0p43mm_512x384.npz"}
FACTORS = (0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.5)
TOLD = (0.5, 1.0, 2.0)
Baseline = Callable[[np.ndarray, float], np.ndarray]
"""`baseline(channel, sigma)`: one real channel (y, x), denoised."""


def wavelet(channel: np.ndarray, sigma: float, *, mode: str, method: str) -> np.ndarray:
    """Thresholding of wavelet coefficients (db2), averaged over 16 shifts of the image."""
    from skimage.restoration import cycle_spin, denoise_wavelet

    # the package's own number of levels is one or two on so small images, which leaves most of the noise
    options = {
        "sigma": sigma, "wavelet": "db2", "mode": mode, "method": method, "rescale_sigma": False, "wavelet_levels": 4,
    }  # fmt: skip
    return cycle_spin(channel, denoise_wavelet, max_shifts=3, func_kw=options, workers=1)


def bm3d(channel: np.ndarray, sigma: float) -> np.ndarray:
    """Both stages, the package's usual profile."""
    import bm3d as package

    return package.bm3d(channel, sigma)


BASELINES: dict[str, Baseline] = {
    "wavelet soft": partial(wavelet, mode="soft", method="BayesShrink"),
    "wavelet hard": partial(wavelet, mode="hard", method="VisuShrink"),
    "BM3D": bm3d,
}


def scanned(image: np.ndarray, noise: float, coils: int) -> tuple[np.ndarray, Scan]:
    """Truth (y, x), and the full scan with its maps from the centre of k-space."""
    full = scan_fully(image, Condition("full", 1.0, None, coils=coils, noise=noise))
    lines = len(image)
    test = full.sampled(Sampling(np.ones(lines, bool), acs_lines(lines, min(lines, 32)), 1.0))
    maps = test.maps(Maps.model_validate({}))
    scan = Scan(test.kspace, test.mask, maps, test.sigma)
    return test.truth, scan


def least_squares(scan: Scan) -> np.ndarray:
    """A^H y: of a full scan the least-squares image, (y, x)."""
    return zero_filled(scan, None, ZeroFilledSettings(combine="maps")).image.numpy()


def by_channels(baseline: Baseline, image: np.ndarray, sigma: float) -> np.ndarray:
    """A baseline on real and imaginary part; zero where the image is exactly (no maps)."""
    real, imaginary = (baseline(part.astype(np.float64), sigma) for part in (image.real, image.imag))
    return (real + 1j * imaginary) * (image != 0)


def tuned(baseline: Baseline, images: list[np.ndarray], noise: float, coils: int) -> float:
    """The factor of the noise that is best on these images."""
    cases = []
    for image in images:
        truth, scan = scanned(image, noise, coils)
        cases.append((truth, least_squares(scan), scan.sigma / 2**0.5))
    means = [
        np.mean([psnr(by_channels(baseline, noisy, factor * sigma), truth) for truth, noisy, sigma in cases])
        for factor in FACTORS
    ]
    return FACTORS[int(np.argmax(means))]


@dataclass(frozen=True)
class Check:
    """What `tweedie` says of the noise level, and how far its own error estimates hold.

    `expected` is the expected rmse of the real channels over the true one; of several coils it is not known (NaN),
    since maps have a phase of their own.
    """

    MEANS: ClassVar = ("noise_found", "residual", "expected", "error_over_std")

    prior: str
    noise: float
    told: float
    noise_found: float
    residual: float
    expected: float
    error_over_std: float
    warned: bool

    @classmethod
    def of(cls, prior: str, noise: float, told: float, result: Reconstruction, truth: np.ndarray, coils: int) -> Check:
        """Of one denoising."""
        assert result.std is not None
        image, info = result.image.numpy(), result.info
        error = float(np.sqrt(np.mean(np.abs(image - truth) ** 2) / 2)) if coils == 1 else np.nan
        spread = calibration(np.abs(image), result.std.numpy(), np.abs(truth))["error_over_std"]
        assert spread is not None
        return cls(
            prior, noise, told, info["noise_found"], info["residual"], info["expected_rmse"] / error, spread,
            "warning" in info,
        )  # fmt: skip


def main(
    data: Annotated[Path, typer.Option(help="Folder with train/ and test/.")],
    priors: Annotated[str, typer.Option(help="Diffusion priors: names or files, commas between.")] = "small",
    noise: Annotated[str, typer.Option(help="Levels, commas between.")] = "0.03,0.07,0.15",
    images: Annotated[int, typer.Option(min=1, help="Of each contrast.")] = 2,
    tune_images: Annotated[int, typer.Option(min=1, help="Training images of each contrast.")] = 1,
    size: Annotated[int, typer.Option(min=32, help="Longest edge.")] = 128,
    coils: Annotated[int, typer.Option(min=1, help="1: a map of ones.")] = 1,
    baselines: Annotated[str, typer.Option(help="Of the baselines, commas between; none: ''.")] = ",".join(BASELINES),
    sets: Annotated[str, typer.Option(help="Contrasts of tests and tuning: T1, T2 or both.")] = "T1,T2",
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Print the tables in Markdown."""
    torch.set_num_threads(threads)
    contrasts = sets.split(",")
    if unknown := set(contrasts) - set(SETS):
        raise typer.BadParameter(f"--sets: expected {' or '.join(SETS)}, got {', '.join(sorted(unknown))}")
    levels = [float(level) for level in noise.split(",")]
    chosen = {name: BASELINES[name] for name in baselines.split(",") if name}
    loaded = {name: load_prior(name) for name in priors.split(",")}
    training = [
        one.pixels
        for contrast in contrasts
        for one in pick_images([data / "train" / TUNING_SETS[contrast]], tune_images, size)
    ]
    factors = {
        (name, level): tuned(baseline, training, level, coils) for level in levels for name, baseline in chosen.items()
    }
    checks: list[Check] = []
    print(f"PSNR in dB / SSIM, {images} slices of each contrast, longest edge {size}, {coils} coils\n")
    print("| images | noise | noisy | " + " | ".join([*chosen, *(f"tweedie, {name}" for name in loaded)]) + " |")
    print("|---" * (3 + len(chosen) + len(loaded)) + "|")
    seconds: dict[str, list[float]] = {}
    for contrast in contrasts:
        tests = [one.pixels for one in pick_images([data / "test" / SETS[contrast]], images, size)]
        for level in levels:
            scores: dict[str, list[tuple[float, float]]] = {}
            for image in tests:
                truth, scan = scanned(image, level, coils)
                noisy, sigma = least_squares(scan), scan.sigma / 2**0.5
                found = {"noisy": noisy}
                for method, baseline in chosen.items():
                    began = time.perf_counter()
                    found[method] = by_channels(baseline, noisy, factors[method, level] * sigma)
                    seconds.setdefault(method, []).append(time.perf_counter() - began)
                for method, prior in loaded.items():
                    told = {factor: tweedie(scan, prior, TweedieSettings(sigma=factor * sigma)) for factor in TOLD}
                    found[method] = told[1.0].image.numpy()
                    seconds.setdefault(method, []).append(told[1.0].info["seconds"])
                    checks += [Check.of(method, level, factor, one, truth, coils) for factor, one in told.items()]
                for method, denoised in found.items():
                    scores.setdefault(method, []).append((psnr(denoised, truth), ssim(denoised, truth)))
            means = [np.mean(each, 0) for each in scores.values()]
            cells = " | ".join(f"{mean[0]:.2f} / {mean[1]:.3f}" for mean in means)
            print(f"| {contrast} | {level:g} | {cells} |", flush=True)
    best = "; ".join(f"{name} {level:g}: {factor:g}" for (name, level), factor in factors.items())
    print(f"\nFactors of the noise: {best}")
    print("\nSeconds an image: " + ", ".join(f"{method} {np.mean(taken):.2f}" for method, taken in seconds.items()))
    print("\n| prior | noise | told | noise found | residual | expected rmse over true | error over std | warned |")
    print("|---" * 8 + "|")
    for row in itertools.product(loaded, levels, TOLD):
        mine = [check for check in checks if (check.prior, check.noise, check.told) == row]
        means = [np.mean([getattr(check, name) for check in mine]) for name in Check.MEANS]
        cells = " | ".join("-" if np.isnan(mean) else f"{mean:.2f}" for mean in means)
        print(
            f"| {row[0]} | {row[1]:g} | {row[2]:g} | {cells} | {sum(check.warned for check in mine)} of {len(mine)} |"
        )


if __name__ == "__main__":
    typer.run(main)
