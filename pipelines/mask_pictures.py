"""Pictures of masks: the pattern, and what was learned on the way to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scanprior.sim.mask_file import SamplingMask
from scanprior.sim.whole_files import whole_files


def write_mask_picture(path: Path, mask: SamplingMask) -> Path:
    """The pattern: samples white, ACS orange."""
    figure = _figure(4.0)
    axes = figure.add_axes((0.16, 0.1, 0.8, 0.8))
    _pattern(axes, mask.mask, mask.acs)
    axes.set_title(f"{mask.made_by}, R {mask.effective_r:.2f}, {mask.samples} {mask.kind}", fontsize=8)
    _save(figure, path)
    return path


def write_learning_picture(
    path: Path, probabilities: np.ndarray, acs: np.ndarray, losses: list[float], validated: list[tuple[int, float]],
    mask: np.ndarray | None = None, label: str = "probability",
) -> Path:  # fmt: skip
    """Probabilities (or what `label` says), each loss and their running mean, and the mask when it is final.

    Before that, the scores of patterns that were tried.
    """
    figure = _figure(11.0, 4.2)
    left = figure.add_axes((0.05, 0.12, 0.26, 0.76))
    if probabilities.shape[1] == 1:
        left.fill_between(np.arange(len(probabilities)), probabilities[:, 0], step="mid")
        left.set(xlabel="line", ylabel=label, ylim=(0, 1.02))
    else:
        left.imshow(probabilities, cmap="magma", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    left.set_title(label if mask is None else f"{label}, at the end", fontsize=8)
    middle = figure.add_axes((0.38, 0.12, 0.26, 0.76))
    middle.plot(np.arange(1, len(losses) + 1), losses, color="0.75", linewidth=0.6)
    width = max(1, len(losses) // 20)
    if len(losses) >= 2 * width:
        smooth = np.convolve(losses, np.ones(width) / width, "valid")
        middle.plot(np.arange(len(smooth)) + width, smooth, color="#0072B2")
    middle.set(xlabel="step", yscale="log")
    middle.set_title("loss (|x - x0|² / |x0|²)", fontsize=8)
    right = figure.add_axes((0.71, 0.12, 0.26, 0.76))
    if mask is not None:
        _pattern(right, mask, acs)
        right.set_title("the mask", fontsize=8)
    elif validated:
        right.plot(*zip(*validated, strict=True), "o", color="#D55E00")
        right.set_title("validation: PSNR, dB", fontsize=8)
    else:
        right.set_axis_off()
    _save(figure, path)
    return path


def _pattern(axes, mask: np.ndarray, acs: np.ndarray) -> None:  # type: ignore[no-untyped-def]
    picture = np.zeros((*mask.shape, 3))
    picture[mask] = 1
    picture[acs] = (1.0, 0.6, 0.1)
    axes.imshow(picture, aspect="auto" if mask.shape[1] == 1 else "equal", interpolation="nearest")
    axes.set_ylabel("ky", fontsize=8)
    axes.set_xlabel("kx (every sample)" if mask.shape[1] == 1 else "kz", fontsize=8)
    if mask.shape[1] == 1:
        axes.set_xticks([])


def _figure(width: float, height: float | None = None):  # type: ignore[no-untyped-def]
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height or width), dpi=140)


def _save(figure, path: Path) -> None:  # type: ignore[no-untyped-def]
    with whole_files(path.parent) as folder:
        figure.savefig(folder / path.name)
