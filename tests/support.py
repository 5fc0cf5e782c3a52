"""What several tests need: recorded data, and proofs about operators."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch


def missing(reason: str) -> None:
    """Skip the test, unless this is CI, where everything must be there."""
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def data_dir() -> Path:
    """The folder that holds `recorded/` and `wire/`: SCANPRIOR_DATA, or ../shared/data beside the checkout."""
    folder = Path(os.environ.get("SCANPRIOR_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not folder.is_dir():
        missing(f"no recorded data at {folder}: set SCANPRIOR_DATA")
    return folder


def recorded_stream(name: str) -> bytes:
    """A byte stream recorded from a real peer, e.g. `gt_bucket/to_external`."""
    return gzip.decompress((data_dir() / "wire" / f"{name}.bin.gz").read_bytes())


def random_complex(
    *shape: int, seed: int = 0, dtype: torch.dtype = torch.complex64, device: str = "cpu"
) -> torch.Tensor:
    """Complex white noise with E|n|^2 = 1, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=dtype, generator=generator).to(device)


def check_adjoint(
    forward: Callable[[torch.Tensor], torch.Tensor],
    adjoint: Callable[[torch.Tensor], torch.Tensor],
    x_shape: tuple[int, ...],
    y_shape: tuple[int, ...],
    tolerance: float = 1e-10,
    dtype: torch.dtype = torch.complex128,
) -> None:
    """Prove <A x, y> = <x, A^H y> on random tensors, and that the shapes are those promised."""
    for seed in range(3):
        x = random_complex(*x_shape, seed=2 * seed, dtype=dtype)
        y = random_complex(*y_shape, seed=2 * seed + 1, dtype=dtype)
        image, back = forward(x), adjoint(y)
        assert image.shape == y.shape
        assert back.shape == x.shape
        left = torch.vdot(image.reshape(-1), y.reshape(-1))
        right = torch.vdot(x.reshape(-1), back.reshape(-1))
        scale = float(image.norm() * y.norm() + x.norm() * back.norm())
        assert abs(complex(left - right)) <= tolerance * scale


def multiply_noise_scan(path: Path, gain: float) -> None:
    """As if the noise scan of an MRD file had been made with another gain than the image."""
    with h5py.File(path, "r+") as file:
        rows = file["dataset/data"][:]
        for row in rows:
            if int(row["head"]["flags"]) & 1 << 18:
                row["data"] = (gain * row["data"]).astype(np.float32)
        file["dataset/data"][:] = rows
