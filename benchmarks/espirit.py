"""Time and agreement of our ESPIRiT and sigpy's, in one run on the CPU; prints a markdown table.

python benchmarks/espirit.py --threads 1
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import sigpy
import sigpy.mri
import torch
from scanprior.models.espirit import espirit_maps


def simulate(size: int, coils: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """K-space (coil, y, x) of a phantom with noise, and where the phantom is."""
    image = sigpy.shepp_logan((size, size)).astype(np.complex64)
    maps = sigpy.mri.birdcage_maps((coils, size, size)).astype(np.complex64)
    generator = np.random.default_rng(seed)
    kspace = sigpy.fft(image * maps, axes=(-2, -1))
    noise = generator.standard_normal((*kspace.shape, 2)).astype(np.float32).view(np.complex64)[..., 0]
    return (kspace + 2e-3 * noise).astype(np.complex64), np.abs(image) > 0.05


def angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angle in degrees between coil vectors (coil, n), blind to phase; from the sine, which keeps small angles."""
    a, b = (vectors.astype(np.complex128) / np.linalg.norm(vectors, axis=0) for vectors in (a, b))
    return np.degrees(np.arcsin(np.linalg.norm(a - b * (b.conj() * a).sum(0), axis=0).clip(0, 1)))


def compare(size: int, coils: int, lines: int, repeats: int) -> str:
    """One row of the table."""
    kspace, inside = simulate(size, coils, seed=0)
    first = size // 2 - lines // 2
    acs = torch.from_numpy(kspace[:, first : first + lines, first : first + lines].copy())
    times = []
    for _ in range(repeats + 1):  # the first run plans transforms and wakes the allocator
        start = time.perf_counter()
        maps = espirit_maps(acs, (size, size), width=lines)[0].numpy()
        times.append(time.perf_counter() - start)
    ours = float(np.median(times[1:]))
    start = time.perf_counter()
    oracle = sigpy.mri.app.EspiritCalib(kspace, calib_width=lines, show_pbar=False).run()
    theirs = time.perf_counter() - start
    support, oracle_support = np.abs(maps).sum(0) > 0, np.abs(oracle).sum(0) > 0
    angles = angle(maps[:, inside & support & oracle_support], oracle[:, inside & support & oracle_support])
    return (
        f"| {size} x {size} x {coils} | {lines} | {ours:.2f} | {theirs:.2f} | {theirs / ours:.1f} | "
        f"{np.median(angles):.4f} | {angles.max():.4f} | {100 * (support == oracle_support).mean():.3f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="pixels along each axis (default: 256)")
    parser.add_argument("--coils", type=int, nargs="+", default=[8, 16], help="numbers of coils (default: 8 16)")
    parser.add_argument("--lines", type=int, default=24, help="ACS lines (default: 24)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of ours, the median counts (default: 3)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, sigpy {sigpy.__version__}, {options.threads} thread(s)\n")
    columns = ["matrix", "ACS lines", "ours [s]", "sigpy [s]", "ratio"]
    columns += ["median angle [deg]", "largest angle [deg]", "same support [%]"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for coils in options.coils:
        print(compare(options.size, coils, options.lines, options.repeats), flush=True)


if __name__ == "__main__":
    main()
