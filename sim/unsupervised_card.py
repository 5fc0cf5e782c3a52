"""The model card of a prior that was trained without clean images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scanprior.models.prior import seen_clean_images

from .scan_bank import read_scan
from .unsupervised_settings import METHODS, UnsupervisedTraining


def write_card(
    path: Path,
    scans: list[Path],
    settings: UnsupervisedTraining,
    step: int,
    found: dict[str, float],
    batch: str,
    doubts: Sequence[str] = (),
) -> None:
    """Write what the prior was trained on, as found in the scans themselves.

    Parameters
    ----------
    found
        The last figures of `curve.csv`, by name.
    batch
        What a step takes, in words.
    doubts
        What is doubtful about the scans.
    """
    rates, levels, coils = [], [], []
    for file in scans:
        scan = read_scan(file)
        rates.append(1 / float(scan["mask"].float().mean()))
        levels.append(float(scan["sigma"]))
        coils.append(scan["maps"].shape[1])
    clean = "none: neither by the loss, nor for any choice or figure of the training"
    if not clean_free(settings):
        clean += f"; but it began with {settings.begin_with}, whose training used some or does not say"
    begin = settings.begin_with or ("CG-SENSE images" if settings.method == "em" else "random weights")
    known = "of the noise scans" if settings.recorded else "known"
    rows = {
        "clean images used": clean,
        "trained by": f"{settings.method}: {METHODS[settings.method]}",
        "scans": f"{len(scans)} recorded slices"
        if settings.recorded
        else f"{len(scans)}, simulated, each scanned once; mask {settings.mask}",
        "undersampling R (effective)": _range(rates),
        "noise of each real channel, in the prior's scale": f"{_range(levels)}, {known}",
        "coils": _range(coils),
        "coil maps": "ESPIRiT of each scan's ACS",
        "begun with": begin,
        "network": str(settings.network_description),
        "noise levels": " to ".join(f"{level:g}" for level in settings.sigma_range),
        "steps": f"{step}, {batch} each",
    }
    rows |= {f"last {name} on held-back scans": f"{value:.4f}" for name, value in found.items()}
    if doubts:
        rows["doubtful"] = "; ".join(doubts)
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    path.write_text(
        f"# Prior {settings.method}\n\nA denoiser of complex images, for every diffusion method.\n\n"
        f"| | |\n|---|---|\n{table}\n"
    )


def clean_free(settings: UnsupervisedTraining) -> bool:
    """Whether no clean image was used, by the prior that it began with either."""
    return settings.begin_with is None or seen_clean_images(settings.begin_with) is False


def _range(values: list[float] | list[int]) -> str:
    low, high = np.min(values), np.max(values)
    return f"{low:.3g}" if high - low < 1e-6 else f"{low:.3g} to {high:.3g} (median {np.median(values):.3g})"
