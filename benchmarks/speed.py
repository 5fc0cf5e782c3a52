"""Seconds a slice of `pnp-admm` and `dds` against the L1-wavelet of BART and of sigpy, in one run; a markdown table.

    python benchmarks/speed.py --threads 2                      # CPU, 320x320, 8 coils
    python benchmarks/speed.py --device cuda --coils 16         # GPU: without the peers, which run on the CPU

Each time covers what a slice needs once its data are there: maps from the ACS, then the image. The same simulated brain
slice, R = 4 (random lines with 24 ACS lines), 25 dB, for all. The peers run their usual settings: BART `pics
-l1 -r 0.002 -i 100` after `ecalib`, sigpy `L1WaveletRecon` (lamda 0.002, 100 iterations) after `EspiritCalib`; PSNR
stands beside the time so that a fast bad image shows.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sigpy
import sigpy.mri
import torch
from scanprior.models.espirit import espirit_maps
from scanprior.models.forward import SenseModel
from scanprior.models.fourier import ifft2c
from scanprior.models.methods import METHODS, reconstruct
from scanprior.models.prior import load_prior
from scanprior.models.recipe import load_recipe
from scanprior.models.scan import Scan, Settings
from scanprior.sim.anatomy import resize
from scanprior.sim.augmentation import fourier_resize
from scanprior.sim.coils import coil_maps
from scanprior.sim.image_sources import load_images
from scanprior.sim.masks import acs_lines, random
from scanprior.sim.metrics import psnr

ACS = 24


def slice_of(data: Path | None, size: int, coils: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray, float]:
    """K-space (coil, y, x), mask (y, 1), truth (y, x) and noise level of the slice that all reconstruct."""
    if data is None:
        magnitude = np.abs(sigpy.shepp_logan((size, size))).astype(np.float32)
    else:
        slices = load_images(data / "train" / "axial_t2_0p43mm_512x384.npz").slices
        image = slices[len(slices) // 2]
        magnitude = np.abs(resize(fourier_resize(image, size / max(image.shape)), (size, size))).astype(np.float32)
    truth = magnitude / magnitude.max()
    sensitivities = torch.from_numpy(coil_maps((size, size), coils).reshape(coils, size, size).astype(np.complex64))
    mask = torch.from_numpy(random(size, 4.0, ACS, np.random.default_rng(0)).mask)[:, None]
    sigma = float(truth[truth > 0.1].mean()) / 10 ** (25 / 20)
    clean = SenseModel(sensitivities, mask)(torch.from_numpy(truth).to(torch.complex64))
    noise = torch.randn((*clean.shape, 2), generator=torch.Generator().manual_seed(1)) * sigma / 2**0.5
    return clean + torch.view_as_complex(noise) * mask, mask, truth, sigma


def timed(run: Callable[[], np.ndarray], repeats: int) -> tuple[float, np.ndarray]:
    """Median of `repeats` runs after one that is not counted (plans, allocator, caches), and the image."""
    image, times = run(), []
    for _ in range(repeats):
        began = time.perf_counter()
        image = run()
        times.append(time.perf_counter() - began)
    return float(np.median(times)), image


def ours(
    kspace: torch.Tensor,
    mask: torch.Tensor,
    sigma: float,
    method: str,
    settings: Settings,
    device: str,
    precision: str,
) -> Callable[[], np.ndarray]:
    """Maps and the method on `device`."""
    prior = load_prior("small", device, None if precision == "float32" else getattr(torch, precision))
    inner = torch.from_numpy(acs_lines(mask.shape[0], ACS))
    size = kspace.shape[-2:]
    columns = acs_lines(size[1], ACS)

    def run() -> np.ndarray:
        y = kspace.to(device)
        maps, _ = espirit_maps(y[:, inner][..., columns], (size[0], size[1]), crop=0.8)
        scan = Scan(y, mask.to(device), maps, sigma)
        return reconstruct(method, scan, prior, settings).image.abs().cpu().numpy()

    return run


def of_sigpy(kspace: np.ndarray) -> Callable[[], np.ndarray]:
    """EspiritCalib and L1WaveletRecon."""

    def run() -> np.ndarray:
        maps = sigpy.mri.app.EspiritCalib(kspace, calib_width=ACS, crop=0.8, show_pbar=False).run()
        app = sigpy.mri.app.L1WaveletRecon(kspace, maps, lamda=0.002, max_iter=100, show_pbar=False)
        return np.abs(app.run())

    return run


def of_bart(kspace: np.ndarray, threads: int) -> Callable[[], np.ndarray] | None:
    """`ecalib` and `pics`, their files included; None where there is no BART."""
    program = shutil.which("bart")
    if program is None:
        return None

    def run() -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            # BART's arrays are (x, y, z, coil), the first dimension fastest
            dims = [kspace.shape[2], kspace.shape[1], 1, kspace.shape[0]]
            Path(folder, "k.hdr").write_text("# Dimensions\n" + " ".join(map(str, dims)) + "\n")
            kspace.astype(np.complex64).tofile(Path(folder, "k.cfl"))
            for command in (f"ecalib -m1 -r{ACS} k maps", "pics -S -l1 -r 0.002 -i 100 k maps out"):
                environment = {"OMP_NUM_THREADS": str(threads), "PATH": str(Path(program).parent)}
                subprocess.run(
                    [program, *command.split()], cwd=folder, check=True, capture_output=True, env=environment
                )
            return np.abs(np.fromfile(Path(folder, "out.cfl"), np.complex64).reshape(kspace.shape[1:]))

    return run


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with train/; without it a Shepp-Logan phantom")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--coils", type=int, default=8)
    parser.add_argument("--methods", nargs="+", default=["pnp-admm", "dds"], help="shipped recipes")
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kspace, mask, truth, sigma = slice_of(options.data, options.size, options.coils)
    where = torch.cuda.get_device_name() if options.device.startswith("cuda") else f"CPU, {options.threads} thread(s)"
    shape = f"{options.size}x{options.size}x{options.coils}"
    print(f"torch {torch.__version__}, sigpy {sigpy.__version__}, {where}; {shape}\n")
    print("| what | seconds a slice | against sigpy | PSNR dB | peak GPU memory |\n|---|---|---|---|---|")
    reference = None
    if options.device == "cpu":
        peers = {
            "sigpy L1WaveletRecon": of_sigpy(kspace.numpy()),
            "BART pics": of_bart(kspace.numpy(), options.threads),
        }
        for name, run in peers.items():
            if run is None:
                print(f"| {name} | not installed | | | |")
                continue
            seconds, image = timed(run, 1)
            reference = reference or seconds
            # the peers' images may come in a scale of their own; theirs is fitted to the truth, in their favour
            image = image * (image * truth).sum() / (image**2).sum()
            print(f"| {name} | {seconds:.2f} | {seconds / reference:.2f} | {psnr(image, truth):.2f} | |", flush=True)
    for method, precision in itertools.product(options.methods, options.precision):
        for samples in options.samples:
            shipped = load_recipe(method).settings
            settings = METHODS[method].settings.model_validate(shipped | {"samples": samples})
            if options.device != "cpu":
                torch.cuda.reset_peak_memory_stats()
            run = ours(kspace, mask, sigma, method, settings, options.device, precision)
            seconds, image = timed(run, options.repeats)
            peak = f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB" if options.device != "cpu" else ""
            ratio = f"{seconds / reference:.2f}" if reference else ""
            name = f"{method}, {samples} sample(s), {precision}"
            print(f"| {name} | {seconds:.2f} | {ratio} | {psnr(image, truth):.2f} | {peak} |", flush=True)
    zero = ifft2c(kspace).abs().square().sum(0).sqrt().numpy()
    print(f"\n(zero-filled: {psnr(zero, truth):.2f} dB)")


if __name__ == "__main__":
    main()
