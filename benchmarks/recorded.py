"""Recorded scans through the stream core, every recipe, against their truths: writes benchmarks/recorded.md.

    python benchmarks/recorded.py --data ../shared/data --out benchmarks

Units. A reconstruction comes in the units of whitened k-space: image times |W C|, with W the whitening matrix and C the
coil sensitivities. The truths of the semi-real scans are known with their C, so the image is divided by |W C| before it
is compared: a smooth field that comes from the simulation's coils and the noise scan, never from the image. Nothing is
fitted to the truth, for no method. PSNR, SSIM and NMSE: magnitude, data range = maximum of the truth. The air of a
recorded truth is noise, which a method that leaves the noise of its data in the air comes nearer to than one that
removes it; so the PSNR of the head alone stands beside that of the image.

The weights of L1-wavelet and TV are the best of a grid by PSNR against the truth: an advantage that no scanner has,
given to the baselines. `dds` and `pnp-admm` run as their shipped recipes say.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scanprior.gadgets.encoding import Encoding
from scanprior.gadgets.engine import Engine
from scanprior.gadgets.mrd import Image
from scanprior.gadgets.noise import NoiseScan
from scanprior.models.recipe import Recipe, load_recipe, recipe_from
from scanprior.pipelines.replay import ScanFile, replay
from scanprior.sim.evaluation import evaluations_of
from scanprior.sim.metrics import nmse, psnr, ssim

WEIGHTS = {"l1-wavelet": (0.25, 0.5, 1.0, 2.0, 4.0, 8.0), "tv": (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)}
COMMAND = "python benchmarks/recorded.py --data ../shared/data --out benchmarks"


@dataclass
class Truth:
    """Images (repetition, slice, y, x), the field |W C| (slice, y, x), and the lesion (slice, y, x) or None."""

    images: np.ndarray
    field: np.ndarray
    lesion: np.ndarray | None = None


def whitening_matrix(path: Path) -> np.ndarray:
    """(coil, coil): the whitening of this scan, from its noise scan."""
    scan = ScanFile(path)
    encoding, noise, dwell = Encoding.from_header(scan.header), NoiseScan(), 0.0
    for acquisition in scan.acquisitions():
        if acquisition.is_flag_set(19):
            noise.add(acquisition)
        else:
            dwell = float(acquisition.head["sample_time_us"])
            break
    covariance = noise.noise()
    assert covariance is not None
    return covariance.whitening(dwell, encoding.noise_bandwidth).matrix


def truth_r4(folder: Path) -> Truth:
    """Truth of brain_t2_8ch_r4."""
    data = np.load(folder / "brain_t2_8ch_truth.npz")
    maps = data["maps"].astype(np.float32)
    coils = maps[..., 0] + 1j * maps[..., 1]
    matrix = whitening_matrix(folder / "brain_t2_8ch_r4.h5")
    return Truth(np.abs(data["image"])[None, None], weighted(matrix, coils[None]))


def truth_multislice(folder: Path) -> Truth:
    """Truth of brain_t2_multislice_r3: repetition 1 has the lesion."""
    data = np.load(folder / "brain_t2_multislice_r3_truth.npz")
    u = np.linspace(-1, 1, 180)
    basis = np.polynomial.chebyshev.chebvander(u, 8)
    coils = np.einsum("yi,scij,xj->scyx", basis, data["maps_cheb"], basis)
    coils /= np.sqrt((np.abs(coils) ** 2).sum(1, keepdims=True))
    image = data["image"].astype(np.float32)
    clean = image[..., 0] + 1j * image[..., 1]
    lesion = data["lesion"].astype(np.float32)
    spotted = clean + lesion * np.exp(1j * np.angle(clean))
    matrix = whitening_matrix(folder / "brain_t2_multislice_r3.h5") * float(data["scale"])
    return Truth(np.abs(np.stack([clean, spotted])), weighted(matrix, coils), lesion)


def weighted(matrix: np.ndarray, coils: np.ndarray) -> np.ndarray:
    """|W C| (slice, y, x) from W (coil, coil) and C (slice, coil, y, x)."""
    return np.sqrt((np.abs(np.einsum("dc,scyx->sdyx", matrix, coils)) ** 2).sum(1))


@dataclass
class Result:
    """One recipe on one scan. `images` (repetition, slice, y, x) in the truth's units."""

    name: str
    images: np.ndarray
    std: np.ndarray | None
    scores: np.ndarray
    seconds: float
    evaluations: str
    effective_r: float


def variants(name: str) -> Iterator[tuple[str, Recipe]]:
    """The shipped recipe, or one for each weight of the grid; combined by the maps, so that units are comparable."""
    recipe = load_recipe(name)
    if name == "zero-filled":
        data = recipe.model_dump() | {"settings": {"combine": "maps"}}
        yield name, recipe_from(data, name)
    elif name in WEIGHTS:
        default = recipe.method_settings.lam  # type: ignore[attr-defined]
        for factor in WEIGHTS[name]:
            settings = recipe.settings | {"lam": default * factor}
            data = recipe.model_dump() | {"settings": settings}
            yield f"{name} (lam {default * factor:.3g})", recipe_from(data, name)
    else:
        yield name, recipe


def run(label: str, recipe: Recipe, scan: Path, truth: Truth, threads: int) -> Result:
    """Replay `scan` and score each image."""
    engine = Engine(recipe, threads=threads)
    engine.warm_up()
    began = time.perf_counter()
    images, report = replay(scan, engine, None)
    seconds = time.perf_counter() - began
    engine.close()
    found = np.zeros_like(truth.images)
    std = np.zeros_like(truth.images)
    for image in images:
        at = int(image.head["repetition"]), int(image.head["slice"])
        target = found if int(image.head["image_series_index"]) == 1 else std
        target[at] = image.data[0, 0] / truth.field[at[1]]
    size = found.shape[-2:]
    pairs = zip(found.reshape(-1, *size), truth.images.reshape(-1, *size), strict=True)
    scores = np.array([[measure(a, b) for measure in (psnr, psnr_in_head, ssim, nmse)] for a, b in pairs])
    first = report["images"][0]
    has_std = any(int(image.head["image_series_index"]) == 2 for image in images)
    return Result(
        label, found, std if has_std else None, scores, seconds, evaluations_of(first) or "-", first["effective_r"]
    )


def psnr_in_head(image: np.ndarray, truth: np.ndarray) -> float:
    """PSNR over the pixels of the head: where the smoothed truth is above a tenth of its maximum, holes filled."""
    from scipy.ndimage import binary_fill_holes, gaussian_filter

    smooth = gaussian_filter(truth, 3.0)
    head = binary_fill_holes(smooth > 0.1 * smooth.max())
    error = np.mean((np.abs(image)[head] - truth[head]) ** 2)
    return float(10 * np.log10(truth.max() ** 2 / error))


def table(results: list[Result]) -> list[str]:
    """Markdown rows: mean and spread over images."""
    titles = ("recipe", "PSNR dB", "in the head", "SSIM", "NMSE", "evaluations", "s per image", "effective R")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for r in results:
        mean, spread = r.scores.mean(0), r.scores.std(0)
        several = len(r.scores) > 1
        figures = zip(mean, spread, (2, 2, 4, 5), strict=True)
        cells = [f"{m:.{d}f}" + (f" ± {s:.{d}f}" if several else "") for m, s, d in figures]
        per_image = r.seconds / len(r.scores)
        lines.append(f"| {r.name} | {' | '.join(cells)} | {r.evaluations} | {per_image:.1f} | {r.effective_r:.2f} |")
    return lines


def best_of_each(scan: Path, truth: Truth, threads: int) -> tuple[list[Result], list[str]]:
    """Every recipe; of a baseline with a weight the best one. And what the grid gave."""
    chosen, grid = [], []
    for name in ("zero-filled", "sense", "l1-wavelet", "tv", "dds", "pnp-admm"):
        tried = [run(label, recipe, scan, truth, threads) for label, recipe in variants(name)]
        best = max(tried, key=lambda r: float(r.scores[:, 0].mean()))
        print(f"{scan.name}: {best.name} {best.scores[:, 0].mean():.2f} dB", flush=True)
        chosen.append(best)
        if len(tried) > 1:
            told = [f"{t.name.split('(')[1][:-1]} {t.scores[:, 0].mean():.2f} dB" for t in tried]
            grid.append(f"{name}: {', '.join(told)}")
    return chosen, grid


def lesion_lines(results: list[Result], truth: Truth) -> list[str]:
    """Contrast of the bright spot in each repetition, less that of the truth's repetition 0 (where there is no spot),
    over the spot's own contrast in the truth."""
    assert truth.lesion is not None
    lines = ["| recipe | slice | contrast kept in repetition 1 | spot seen in repetition 0 |", "|---|---|---|---|"]
    for r in results:
        for index in np.flatnonzero(truth.lesion.any((1, 2))):
            core = truth.lesion[index] > 0.5 * truth.lesion[index].max()
            faint = truth.lesion[index] <= 0.02 * truth.lesion[index].max()
            around = faint & _grown(core, 8) & ~_grown(core, 3)
            wanted = contrast(truth.images[1, index], core, around) - contrast(truth.images[0, index], core, around)
            kept = contrast(r.images[1, index], core, around) - contrast(truth.images[0, index], core, around)
            ghost = contrast(r.images[0, index], core, around) - contrast(truth.images[0, index], core, around)
            lines.append(f"| {r.name} | {index} | {100 * kept / wanted:.1f} % | {100 * ghost / wanted:.1f} % |")
    return lines


def contrast(image: np.ndarray, core: np.ndarray, around: np.ndarray) -> float:
    """Mean in the core less mean around it."""
    return float(image[core].mean() - image[around].mean())


def _grown(region: np.ndarray, pixels: int) -> np.ndarray:
    from scipy.ndimage import binary_dilation

    return binary_dilation(region, iterations=pixels)


def picture(path: Path, results: list[Result], truth: Truth, at: tuple[int, int]) -> None:
    """Truth and each recipe above, five times the error below; DDS's standard deviation last."""
    from matplotlib.figure import Figure

    wanted = truth.images[at]
    top = float(np.percentile(wanted, 99.7))
    columns = [("truth", wanted, None)] + [(r.name, r.images[at], np.abs(r.images[at] - wanted)) for r in results]
    figure = Figure(figsize=(2.4 * len(columns), 5.2), dpi=110)
    axes = figure.subplots(2, len(columns))
    for column, (name, image, error) in enumerate(columns):
        axes[0, column].imshow(image, cmap="gray", vmin=0, vmax=top)
        axes[0, column].set_title(name, fontsize=8)
        if error is not None:
            axes[1, column].imshow(5 * error, cmap="inferno", vmin=0, vmax=top)
            axes[1, column].set_title(f"5 x error, {psnr(image, wanted):.2f} dB", fontsize=8)
    std = results[-1].std
    if std is not None:
        axes[1, 0].imshow(5 * std[at], cmap="inferno", vmin=0, vmax=top)
        axes[1, 0].set_title(f"5 x std of {results[-1].name}", fontsize=8)
    for axis in axes.ravel():
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path)


def gre_figure(scan: Path) -> float:
    """nrmse of the zero-filled recipe against the manifest's rule: centred orthonormal inverse FFT, rss over coils."""
    engine = Engine("zero-filled")
    images, _ = replay(scan, engine, None)
    engine.close()
    file = ScanFile(scan)
    kspace = np.zeros((2, 160, 320), np.complex64)
    for acquisition in file.acquisitions():
        kspace[:, int(acquisition.head["idx"]["kspace_encode_step_1"])] = acquisition.data
    shifted = np.fft.ifftshift(kspace, axes=(-2, -1))
    coils = np.fft.fftshift(np.fft.ifft2(shifted, norm="ortho"), axes=(-2, -1))[..., 80:240]
    rule = np.sqrt((np.abs(coils) ** 2).sum(0))
    return float(np.linalg.norm(images[0].data[0, 0] - rule) / np.linalg.norm(rule))


def plain_pictures(scan: Path, recipes: tuple[str, ...], path: Path) -> list[str]:
    """Scans without a truth: pictures of several recipes, and what their history says."""
    from matplotlib.figure import Figure
    from scanprior.pipelines.pictures import flat

    shown: list[tuple[str, Image]] = []
    lines = []
    for name in recipes:
        engine = Engine(name)
        images, report = replay(scan, engine, None)
        engine.close()
        shown += [(name if int(i.head["image_series_index"]) == 1 else name + " std", i) for i in images]
        first = report["images"][0]
        r, seconds = first["effective_r"], report["seconds"]
        lines.append(f"{name}: noise {first['noise']}, effective R {r:.2f}, {seconds:.1f} s")
    figure = Figure(figsize=(3 * len(shown), 3.6), dpi=110)
    for axis, (name, image) in zip(np.atleast_1d(figure.subplots(1, len(shown))), shown, strict=True):
        data = flat(image)
        axis.imshow(data, cmap="gray", vmin=0, vmax=np.percentile(data, 99.7))
        axis.set_title(name, fontsize=8)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path)
    return lines


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    recorded, out = arguments.data / "recorded", arguments.out
    lines = [
        "# Recorded scans", "",
        f"Made by `{COMMAND}` on {arguments.threads} threads of {platform.machine()}, torch {torch.__version__}.", "",
        *(__doc__ or "").split("\n\n", 2)[2].strip().splitlines(), "",
    ]  # fmt: skip
    nrmse = gre_figure(recorded / "siemens_gre_phantom.h5")
    lines += ["## siemens_gre_phantom", "", f"`zero-filled` against the manifest's rule: nrmse {nrmse:.1e}.", ""]
    for name, truth, at in (
        ("brain_t2_8ch_r4", truth_r4(recorded), (0, 0)),
        ("brain_t2_multislice_r3", truth_multislice(recorded), (1, 3)),
    ):
        results, grid = best_of_each(recorded / f"{name}.h5", truth, arguments.threads)
        lines += [f"## {name}", "", *table(results), "", "Weights tried: " + "; ".join(grid) + "."]
        lines += ["", f"![]({name}.png)", ""]
        if truth.lesion is not None:
            lines += [*lesion_lines(results, truth), ""]
        picture(out / f"{name}.png", results, truth, at)
    for name, recipes in (
        ("brain8ch_poisson_r8", ("zero-filled", "sense", "l1-wavelet", "pnp-admm")),
        ("phantom16ch_grappa", ("zero-filled", "sense", "tv", "pnp-admm")),
    ):
        told = plain_pictures(recorded / f"{name}.h5", recipes, out / f"{name}.png")
        lines += [f"## {name}", "", "No truth. " + "; ".join(told) + ".", "", f"![]({name}.png)", ""]
    (out / "recorded.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
