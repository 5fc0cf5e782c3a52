"""What an evaluation leaves in its folder: tables, figures, and the page that holds both."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scanprior.sim.evaluation import mask_of

from .evaluate import Evaluation
from .evaluate_figures import Shown, calibration_figure, grid_figure, quality_figure
from .evaluate_methods import Candidate
from .evaluate_page import write_page
from .evaluate_plan import Plan, own_version, told
from .evaluate_store import load_picture
from .evaluate_tables import Record, write_tables


@dataclass
class Grid:
    """One picture of images side by side: see `grid_figure`."""

    heading: str
    truth: np.ndarray
    mask: np.ndarray
    shown: list[Shown]


def about_run(plan: Plan, threads: int) -> dict[str, Any]:
    """What was run, for the head of the tables."""
    tuned = "on " + ", ".join(image.name for image in plan.tuning) if plan.tuning_cases else "no: shipped weights"
    return {
        "images": ", ".join(image.name for image in plan.images),
        "conditions": "; ".join(told(condition) for condition in plan.conditions),
        **about_methods(plan.candidates, bool(plan.tuning)),
        "weights of l1-wavelet, tv and vae tuned": tuned,
        "seed": plan.seed,
        "masks, coils, noise": "drawn anew for each image; all methods see the same data",
        **about_machine(threads),
    }


def about_methods(candidates: Sequence[Candidate], tuned: bool = False) -> dict[str, Any]:
    """Settings, maps and prior of each method; `tuned` says that the weights of baselines are in the tables."""
    about = {}
    for candidate in candidates:
        recipe = candidate.recipe
        settings = recipe.method_settings.model_dump()
        if tuned and candidate.tunable:
            settings["lam"] = "tuned, see the tables"
        parts = [f"{key} {value}" for key, value in settings.items()]
        if recipe.needs_maps:
            parts.append("maps: " + " ".join(f"{key} {value}" for key, value in recipe.maps.model_dump().items()))
        if recipe.prior is not None:
            parts.append(f"prior {recipe.prior}, {recipe.precision}")
        about[f"method {candidate.label}"] = ", ".join(parts)
    return about


def about_machine(threads: int) -> dict[str, Any]:
    """Versions and hardware."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {
        "scanprior": own_version(),
        "machine": f"{platform.machine()}, {device}, {threads or torch.get_num_threads()} threads, "
        f"torch {torch.__version__}",
    }


def grids_of(evaluation: Evaluation, records: Sequence[Record]) -> list[Grid]:
    """The images that a run of `evaluation` has kept, a grid for each shown image and condition."""
    plan = evaluation.plan
    grids = []
    for image in plan.images[: plan.shown]:
        for condition in plan.conditions:
            shown = []
            for record in records:
                same = all(record.get(key) == getattr(condition, key) for key in ("mask", "r", "snr_db", "noise"))
                if same and record["image"] == image.name:
                    shown.append(Shown(record["method"], *load_picture(evaluation.picture(record["case"]))))
            if shown:
                sampling = mask_of(condition, image.pixels, plan.seed)
                mask = sampling.mask[:, None] if sampling.mask.ndim == 1 else sampling.mask
                heading = f"{image.name}, {told(condition)}, true R {sampling.effective_r:.2f}"
                grids.append(Grid(heading, np.abs(image.pixels), mask, shown))
    return grids


def write_report(
    out: Path, records: Sequence[Record], about: dict[str, Any], grids: Sequence[Grid], failures: Sequence[str] = ()
) -> Path:
    """Write cases.csv, summary.csv, .json and .md, figures/*.png and report.html; returns the path of the page."""
    rows = write_tables(out, records, about)
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):  # of a plan before
        old.unlink()
    figures = [
        ("PSNR against R.", quality_figure(folder / "psnr.png", rows, "psnr", "PSNR, dB")),
        ("SSIM against R.", quality_figure(folder / "ssim.png", rows, "ssim", "SSIM")),
    ]
    calibrated = calibration_figure(folder / "calibration.png", rows)
    if calibrated is not None:
        figures.append(
            (
                "Calibration: how often the truth lies within a band; error / std; both alone, in the image's units.",
                calibrated,
            )
        )
    for number, grid in enumerate(grids):
        path = grid_figure(folder / f"images_{number:03d}.png", grid.truth, grid.mask, grid.shown, grid.heading)
        figures.append((grid.heading, path))
    return write_page(out / "report.html", about, rows, figures, failures)
