"""Small runs of training without clean images, for its tests: their settings, drawn heads, scans of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scanprior.sim.image_sources import load_images
from scanprior.sim.phantoms import brain
from scanprior.sim.scan_bank import (
    write_simulated,
)
from scanprior.sim.unsupervised_settings import UnsupervisedTraining

SIZE = 32


def settings(method: str, **options: Any) -> UnsupervisedTraining:
    usual: dict[str, Any] = {
        "steps": 4, "batch": 4, "patch": 16, "widths": (8, 16), "blocks": (1, 1), "bank": 6, "save_every": 2,
        "accelerator": "cpu", "size": SIZE, "amount": 1.0 if method == "sure" else 2.0, "noise": (0.05, 0.05),
        "coils": (2, 2), "rounds": 2, "acs": 8,
    }  # fmt: skip
    return UnsupervisedTraining(method=method, **(usual | options))


def write_heads(folder: Path) -> Path:
    """The folder, with two subjects of two slices."""
    slices = np.abs(brain((48, 48), 4, seed=1).image)
    np.savez(folder / "heads.npz", slices=slices, subject=["a", "a", "b", "b"])
    return folder


def simulated(data: Path, folder: Path, **options: Any) -> UnsupervisedTraining:
    chosen = settings(options.pop("method", "split"), **options)
    write_simulated(folder / "scans", [load_images(data / "heads.npz")], chosen.bank, 0, chosen)
    return chosen
