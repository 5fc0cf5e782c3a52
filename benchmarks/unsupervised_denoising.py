"""PSNR of one denoising (Tweedie) of full scans, by priors from noisy images and from clean ones; test slices.

    python benchmarks/unsupervised_denoising.py --data ../shared/data/test/axial_t1_192.npz --noise 0.06 \
        --priors runs/unsupervised/clean/prior.safetensors,runs/unsupervised/sure_0.06/prior.safetensors

Noise is a known part of the image's maximum in each real channel, as of `scanprior train --noise`. Each image is scaled
by its own noisy percentile, as a reconstruction would; the truth is seen by PSNR (of magnitudes, data range: maximum of
the truth) alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from scanprior.models.channels import to_complex
from scanprior.models.intensity import intensity_scale
from scanprior.models.prior import load_prior
from scanprior.sim.image_sources import load_sources
from scanprior.sim.metrics import psnr
from scanprior.sim.slice_bank import whole_slice


def main(
    data: Annotated[list[Path], typer.Option(help="Test images.")],
    priors: Annotated[str, typer.Option(help="Names or files, commas between.")],
    noise: Annotated[str, typer.Option(help="Levels, commas between.")] = "0.03,0.06,0.12",
    images: Annotated[int, typer.Option(min=1)] = 10,
    size: Annotated[int, typer.Option(min=32)] = 96,
) -> None:
    """Print a table in Markdown."""
    (stack,) = load_sources(data).stacks
    chosen = np.linspace(0, len(stack.slices) - 1, images).round().astype(int)
    rng = np.random.default_rng(0)
    truths = [torch.from_numpy(whole_slice(stack.slices[number], size, 2, rng)) for number in chosen]
    print("| noise | noisy | " + " | ".join(priors.split(",")) + " |")
    print("|---" * (2 + len(priors.split(","))) + "|")
    for level in map(float, noise.split(",")):
        rows = [[] for _ in range(1 + len(priors.split(",")))]
        for number, truth in enumerate(truths):
            generator = torch.Generator().manual_seed(number)
            sigma = level * float(truth.abs().max())
            noisy = truth + sigma * to_complex(torch.randn((2, *truth.shape), generator=generator))
            rows[0].append(psnr(noisy.abs().numpy(), truth.abs().numpy()))
            for row, name in zip(rows[1:], priors.split(","), strict=True):
                prior = load_prior(name)
                scale = intensity_scale(noisy, prior.scale)
                denoised = scale * prior.denoise(noisy / scale, sigma / scale)
                row.append(psnr(denoised.abs().numpy(), truth.abs().numpy()))
        print(f"| {level:g} | " + " | ".join(f"{np.mean(row):.2f}" for row in rows) + " |", flush=True)


if __name__ == "__main__":
    typer.run(main)
