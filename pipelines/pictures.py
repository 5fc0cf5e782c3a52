"""PNG pictures of images, for a person to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scanprior.gadgets.images import IMAGE_SERIES, STD_SERIES
from scanprior.gadgets.mrd import Image


def flat(image: Image) -> np.ndarray:
    """(y, x) magnitude of an image; of a volume the plane in the middle of its shortest axis."""
    volume = np.abs(image.data[0])
    axis = int(np.argmin(volume.shape))
    return np.take(volume, volume.shape[axis] // 2, axis)


def write_pictures(folder: Path, images: list[Image]) -> list[Path]:
    """One PNG an image: magnitudes in grey up to the 99.7th percentile, standard-deviation maps in colour with a bar.

    Returns the paths. Names tell series, slice, contrast, phase, repetition and set where there is more than one.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    paths = []
    varying = [
        name
        for name in ("slice", "contrast", "phase", "repetition", "set")
        if len({int(image.head[name]) for image in images}) > 1
    ]
    for image in images:
        picture = flat(image)
        series = int(image.head["image_series_index"])
        kind = {IMAGE_SERIES: "magnitude", STD_SERIES: "std"}.get(series, f"series{series}")
        name = "_".join([kind, *(f"{key}{int(image.head[key]):03d}" for key in varying)])
        top = float(np.percentile(picture, 99.7)) or 1.0
        rows, columns = picture.shape
        figure = Figure(figsize=(columns / 100 + (0.8 if series == STD_SERIES else 0), rows / 100), dpi=200)
        axes = figure.add_axes((0, 0, columns / 100 / figure.get_figwidth(), 1))
        shown = axes.imshow(picture, cmap="magma" if series == STD_SERIES else "gray", vmin=0, vmax=top)
        axes.axis("off")
        if series == STD_SERIES:
            bar = figure.add_axes((columns / 100 / figure.get_figwidth() + 0.02, 0.05, 0.05, 0.9))
            figure.colorbar(shown, cax=bar).ax.tick_params(labelsize=5)
        path = folder / f"{name}.png"
        figure.savefig(path)
        paths.append(path)
    return paths
