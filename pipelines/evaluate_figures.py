"""Figures of an evaluation: quality against R, calibration, and images with their errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scanprior.sim.evaluation import BANDS, object_pixels
from scanprior.sim.metrics import psnr, ssim

from .evaluate_tables import Record, amount, by_condition

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ERROR_GAIN = 5
"""Errors and standard deviations are shown this many times brighter than images."""

# Okabe and Ito's colours, which colour-blind readers can tell apart, and markers beside them
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass
class Shown:
    """Images of one case for a grid: magnitudes (y, x), `std` or None."""

    method: str
    image: np.ndarray
    std: np.ndarray | None


def quality_figure(path: Path, rows: Sequence[Record], measure: str, label: str) -> Path:
    """`measure` against R, a panel for each mask and noise level, a line for each method; bars: spread."""
    styles = _styles(rows)
    figure, panels = _panels(rows, 1)
    for axis, (name, part) in zip(panels[0], by_condition(rows), strict=True):
        for method, style in styles.items():
            mine = [row for row in part if row["method"] == method]
            if mine:
                axis.errorbar(
                    [row["effective_r"] for row in mine], [row[measure] for row in mine],
                    [row.get(f"{measure}_sd") or 0.0 for row in mine],
                    capsize=2, linewidth=1.4, elinewidth=0.8, markersize=5, label=method, **style,
                )  # fmt: skip
        _finish(axis, name, part, label)
    return _save(figure, path, panels[0])


def calibration_figure(path: Path, rows: Sequence[Record]) -> Path | None:
    """Measured against nominal coverage; against R, error over standard deviation, and both alone; None without any."""
    styles = _styles(rows)  # of all rows: a method looks the same in every figure
    rows = [row for row in rows if row["cover50"] is not None]
    if not rows:
        return None
    figure, panels = _panels(rows, 3)
    for column, (name, part) in enumerate(by_condition(rows)):
        bands, ratio, alone = (panels[row][column] for row in range(3))
        bands.plot([0, 100], [0, 100], color="0.6", linewidth=0.8)
        ratio.axhline(1.0, color="0.6", linewidth=0.8)
        every_r = sorted({row["r"] for row in part})
        for method, style in styles.items():
            mine = [row for row in part if row["method"] == method]
            for row in mine:
                place = (every_r.index(row["r"]) + 1) / len(every_r)
                bands.plot(
                    list(BANDS), [100 * row[f"cover{percent}"] for percent in BANDS],
                    linewidth=0.8 + 1.2 * place, alpha=0.5 + 0.5 * place, markersize=5,
                    label=method if row is mine[-1] else None, **style,
                )  # fmt: skip
            known = [row for row in mine if row["error_over_std"] is not None]
            at = [row["effective_r"] for row in known]
            ratio.plot(at, [row["error_over_std"] for row in known], linewidth=1.4, markersize=5, **style)
            alone.plot(at, [row["std_rms"] for row in known], linewidth=1.4, markersize=5, **style)
            hollow = style | {"markerfacecolor": "none"}
            alone.plot(at, [row["error_rms"] for row in known], "--", linewidth=0.9, markersize=5, **hollow)
        bands.set(xlim=(40, 100), ylim=(0, 100), xlabel="nominal band, %", title=name)
        bands.set_xticks(list(BANDS))
        bands.grid(alpha=0.3)
        if column == 0:
            bands.set_ylabel("truth within, % of object")
        if len(every_r) > 1:
            bands.text(
                0.03,
                0.95,
                f"bolder: {amount(part[0]['mask'], every_r[-1])}",
                transform=bands.transAxes,
                va="top",
                fontsize=8,
            )
        _finish(ratio, "", part, "error rms / std rms")
        _finish(alone, "", part, "rms of std (full), of error (hollow)")
    return _save(figure, path, panels[0])


def grid_figure(path: Path, truth: np.ndarray, mask: np.ndarray, shown: Sequence[Shown], heading: str) -> Path:
    """Images above, errors below, standard deviations last where there are any; truth and mask on the left.

    Parameters
    ----------
    truth
        (y, x) magnitude.
    mask
        (y, 1) or (y, x) bool; of size 0 where it is not known.
    """
    from matplotlib.figure import Figure

    box = _around_object(truth)
    top = float(np.percentile(truth[box], 99.7))
    rows = 3 if any(one.std is not None for one in shown) else 2
    height, width = truth[box].shape
    edge = 2.3
    size = edge * (len(shown) + 1), (edge * height / width + 0.3) * rows + 0.5
    figure = Figure(figsize=size, dpi=130)
    axes = figure.subplots(rows, len(shown) + 1, squeeze=False)
    for axis in axes.ravel():
        axis.axis("off")
    axes[0, 0].imshow(truth[box], cmap="gray", vmin=0, vmax=top)
    axes[0, 0].set_title("truth", fontsize=9)
    if mask.size:
        axes[1, 0].imshow(np.broadcast_to(mask, truth.shape), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes[1, 0].set_title("mask", fontsize=9)
    for column, one in enumerate(shown, 1):
        error = np.abs(one.image - truth)
        axes[0, column].imshow(one.image[box], cmap="gray", vmin=0, vmax=top)
        told = f"{psnr(one.image, truth):.2f} dB, SSIM {ssim(one.image, truth):.3f}"
        axes[0, column].set_title(f"{_short(one.method)}\n{told}", fontsize=9)
        axes[1, column].imshow(ERROR_GAIN * error[box], cmap="inferno", vmin=0, vmax=top)
        axes[1, column].set_title(f"{ERROR_GAIN} x error", fontsize=9)
        if one.std is not None:
            axes[2, column].imshow(ERROR_GAIN * one.std[box], cmap="inferno", vmin=0, vmax=top)
            axes[2, column].set_title(f"{ERROR_GAIN} x std", fontsize=9)
    figure.suptitle(heading, fontsize=10, y=1 - 0.08 / size[1], va="top")
    figure.tight_layout(pad=0.4, rect=(0, 0, 1, 1 - 0.22 / size[1]))
    figure.savefig(path)
    return path


def _around_object(truth: np.ndarray, margin: int = 4) -> tuple[slice, slice]:
    inside = object_pixels(truth)
    spans = []
    for axis, size in zip((1, 0), truth.shape, strict=True):
        places = np.flatnonzero(inside.any(axis))
        spans.append(slice(max(0, int(places[0]) - margin), min(size, int(places[-1]) + 1 + margin)))
    return spans[0], spans[1]


def _short(method: str, length: int = 30) -> str:
    return method if len(method) <= length else method[: length - 1] + "…"


def _styles(rows: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each method."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    return {
        method: {"color": COLOURS[n % len(COLOURS)], "marker": MARKERS[(n + n // len(COLOURS)) % len(MARKERS)]}
        for n, method in enumerate(methods)
    }


def _panels(rows: Sequence[Record], height: int) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    columns = len(by_condition(rows))
    figure = Figure(figsize=(max(3.6 * columns, 5), 3.2 * height + 0.5), dpi=110)
    return figure, figure.subplots(height, columns, squeeze=False, sharey="row")


def _finish(axis: Axes, name: str, part: Sequence[Record], label: str) -> None:
    ticks = sorted({round(row["effective_r"], 2) for row in part})
    axis.set(title=name, xlabel="true R")
    if axis.get_subplotspec().is_first_col():  # type: ignore[union-attr]
        axis.set_ylabel(label)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.grid(alpha=0.3)


def _save(figure: Figure, path: Path, panels: Sequence[Axes]) -> Path:
    """Save with one legend for all panels: a method may have failed in the first."""
    found: dict[str, Any] = {}
    for axis in panels:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    labels, handles = list(found), list(found.values())
    columns = max(1, min(len(labels), int(figure.get_figwidth() // 2)))
    lines = -(-len(labels) // columns)
    room = (0.28 * lines + 0.1) / figure.get_figheight()
    figure.legend(handles, labels, loc="lower center", ncols=columns, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, room, 1, 1))
    figure.savefig(path)
    return path
