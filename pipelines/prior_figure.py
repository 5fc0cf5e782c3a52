"""A picture of what a prior believes: rows of panels in one PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scanprior.sim.prior_views import ZOOM, Panel, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RED, BLUE = (0.85, 0.0, 0.05), (0.05, 0.25, 1.0)


def overlay(signed: np.ndarray, limit: float, anatomy: np.ndarray | None) -> np.ndarray:
    """RGB (y, x, 3): red where `signed` is positive, blue where negative, full at `limit`; over grey, or over white.

    The colour's strength is the square root of the value's share of `limit`, so that small covariances can be seen.
    """
    strength = np.sqrt(np.clip(np.abs(signed) / limit, 0, 1))[..., None]
    colour = np.where((signed > 0)[..., None], RED, BLUE)
    ground = np.ones((*signed.shape, 3)) if anatomy is None else np.repeat(0.85 * anatomy[..., None], 3, -1)
    return np.clip(strength * colour + (1 - strength) * ground, 0, 1)


def write_figure(path: Path, title: str, rows: Sequence[Row], panel: float = 2.0) -> None:
    """Draw `rows` into a PNG; a panel is `panel` inches wide."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    columns = max(len(row.panels) for row in rows)
    height, width = rows[0].panels[0].picture.shape
    tall = panel * height / width
    heading, gap = 0.62, 0.55
    total = heading + sum((panel if row.panels[0].zoom else tall) + gap for row in rows)
    figure = Figure(figsize=(columns * (panel + 0.1) + 0.1, total), dpi=140)
    figure.text(0.5, 1 - 0.25 / total, textwrap.fill(title, 28 * columns), ha="center", va="center", fontsize=11)
    at = heading
    for row in rows:
        here = panel if row.panels[0].zoom else tall
        figure.text(0.1 / figure.get_figwidth(), 1 - (at + 0.12) / total, row.title, fontsize=9, weight="bold")
        for column, one in enumerate(row.panels):
            left = (0.1 + column * (panel + 0.1)) / figure.get_figwidth()
            box = (left, 1 - (at + gap - 0.12 + here) / total, panel / figure.get_figwidth(), here / total)
            _draw(figure.add_axes(box), one)
        at += here + gap
    figure.savefig(path)


def _draw(axes: Axes, panel: Panel) -> None:
    if panel.limit is None:
        axes.imshow(panel.picture, cmap="gray", vmin=0, vmax=panel.top)
    else:
        axes.imshow(overlay(panel.picture, panel.limit, panel.anatomy), interpolation="nearest")
    if panel.star is not None:
        y, x = panel.star
        axes.plot(x, y, marker="*", markersize=6, markerfacecolor="none", markeredgecolor="yellow", markeredgewidth=0.8)
        if panel.zoom:
            axes.set_xlim(x - ZOOM - 0.5, x + ZOOM + 0.5)
            axes.set_ylim(y + ZOOM + 0.5, y - ZOOM - 0.5)
            axes.set_facecolor("0.8")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(panel.title, fontsize=7, pad=2)
