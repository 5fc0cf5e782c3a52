"""Choice of DDS's default settings on TRAINING images: simulated scans of them, never test or recorded data.

    python benchmarks/tune_dds.py --data ../shared/data --work runs/tune

Prints PSNR (mean over the scans) of each variation of the shipped recipe. T2 slices of the training subject and a T1
slice of the subject that the training holds back, 8 coils, random lines at R = 4 and uniform lines at R = 3, 25 dB.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from recorded import Truth, run, weighted, whitening_matrix
from scanprior.models.recipe import load_recipe, recipe_from
from scanprior.sim.augmentation import fourier_resize
from scanprior.sim.image_sources import load_images
from scanprior.sim.scan import simulate

VARIATIONS: list[dict[str, float]] = [
    {},
    {"crop": 0.0},
    {"crop": 0.6},
    {"crop": 0.95},
    {"cg_iterations": 5},
    {"steps": 20},
    {"steps": 60},
    {"eta": 0.6},
    {"eta": 1.0},
    {"sigma_start": 0.5},
    {"sigma_start": 2.0},
    {"sigma_end": 0.005},
    {"sigma_end": 0.02},
    {"max_ratio": 20},
    {"max_ratio": 200},
    {"samples": 8},
]


def make_scans(data: Path, work: Path) -> list[tuple[Path, Truth]]:
    """Simulate the scans and read their truths."""
    work.mkdir(parents=True, exist_ok=True)
    t2 = load_images(data / "train" / "axial_t2_0p43mm_512x384.npz").slices
    t1 = load_images(data / "train" / "axial_t1_192.npz")
    held = [s for s, subject in zip(t1.slices, t1.subjects, strict=True) if subject == sorted(set(t1.subjects))[-1]]
    scans = []
    for name, image, mask, r in (
        ("t2_random", fourier_resize(t2[11], 0.5), "random", 4.0),
        ("t2_uniform", fourier_resize(t2[17], 0.5), "uniform", 3.0),
        ("t1_random", held[len(held) // 2], "random", 4.0),
    ):
        square = np.zeros((max(image.shape),) * 2, np.float32)
        y, x = (max(image.shape) - n for n in image.shape)
        square[y // 2 : y // 2 + image.shape[0], x // 2 : x // 2 + image.shape[1]] = image
        np.savez(work / f"{name}.npz", slices=square[None])
        made = simulate(work / f"{name}.h5", images=work / f"{name}.npz", mask=mask, r=r, seed=1)
        truth = np.load(made.truth)
        field = weighted(whitening_matrix(made.path), truth["maps"])
        scans.append((made.path, Truth(np.abs(truth["image"]), field)))
    return scans


def main() -> None:
    """Run every variation on every scan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the variations to run")
    arguments = parser.parse_args()
    scans = make_scans(arguments.data, arguments.work)
    base = load_recipe("dds").model_dump() | {"precision": arguments.precision}
    # by itself: the shipped recipe begins with another method's image
    base["settings"] = base["settings"] | {"start": "sense", "sigma_start": 1.0, "steps": 30}
    chosen = VARIATIONS if arguments.only is None else [VARIATIONS[i] for i in arguments.only]
    for name in ("sense", "l1-wavelet", "tv"):
        results = [run(name, load_recipe(name), path, truth, arguments.threads) for path, truth in scans]
        print(f"{name}: " + " ".join(f"{r.scores[0, 0]:.2f}" for r in results), flush=True)
    for change in chosen:
        settings = {key: value for key, value in change.items() if key != "crop"}
        maps = base["maps"] | {key: value for key, value in change.items() if key == "crop"}
        recipe = recipe_from(base | {"settings": base["settings"] | settings, "maps": maps}, "dds")
        began = time.perf_counter()
        results = [run("dds", recipe, path, truth, arguments.threads) for path, truth in scans]
        each = [float(r.scores[0, 0]) for r in results]
        seconds = (time.perf_counter() - began) / len(scans)
        told = " ".join(f"{e:.2f}" for e in each)
        print(f"{change}: mean {np.mean(each):.2f} dB ({told}), {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
