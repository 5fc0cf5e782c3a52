"""A picture of the order in which a table measures its points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scanprior.sim.sampling_table import SamplingTable


def write_order_figure(path: Path, table: SamplingTable) -> None:
    """Write a PNG. Lines: ky over time, coloured by echo, the ACS shaded. Points: the plane, coloured by time.

    Parameters
    ----------
    path
        The PNG; one that is there is replaced.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    order, mask, settings = table.order, table.mask, table.settings
    train = settings.echo_train > 1
    lines = mask.kind == "lines"
    figure = Figure(figsize=(8, 4.5) if lines else (7, 5.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    time = np.arange(len(order.points))
    if lines:
        axes.plot(time, order.points[:, 0], color="0.85", linewidth=0.8, zorder=1)
        dots = axes.scatter(time, order.points[:, 0], c=order.echo, cmap="viridis", s=14, zorder=2)
        rows = np.flatnonzero(mask.acs[:, 0])
        if len(rows):
            axes.axhspan(rows[0] - 0.5, rows[-1] + 0.5, color="tab:orange", alpha=0.2, label="ACS")
            axes.legend(loc="upper right")
        axes.set(xlabel="readout, in order of time", ylabel="ky", ylim=(-1, mask.matrix[1]))
        if train:
            figure.colorbar(dots, label="echo of the train")
    else:
        dots = axes.scatter(
            order.points[:, 0], order.points[:, 1], c=order.echo if train else time, cmap="viridis", s=10, marker="s"
        )
        axes.set(xlabel="ky", ylabel="kz", xlim=(-1, mask.matrix[1]), ylim=(-1, mask.matrix[2]), aspect="equal")
        figure.colorbar(dots, label="echo of the train" if train else "readout, in order of time")
    effective = "" if settings.effective_echo is None else f", DC at echo {settings.effective_echo}"
    shots = f", {order.shot.max() + 1} shots of {settings.echo_train}{effective}" if train else ""
    axes.set_title(f"{settings.name} order, {mask.samples} {mask.kind}{shots}", fontsize=10)
    figure.savefig(path)
