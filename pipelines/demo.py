"""What `make demo` runs: simulate a scan, reconstruct it by several recipes, and show the images beside the truth."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scanprior.gadgets.engine import Engine
from scanprior.gadgets.images import IMAGE_SERIES, STD_SERIES
from scanprior.gadgets.mrd import Image
from scanprior.models.recipe import DEFAULT_RECIPE
from scanprior.sim.scan import simulate
from tqdm import tqdm

from .replay import replay

RECIPES = ("zero-filled", "sense", DEFAULT_RECIPE)


def main() -> None:
    """Write scan.h5, a folder a recipe, and demo.png into the folder given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    scan = simulate(out / "scan.h5", slices=2, matrix=256, coils=8, mask="random", r=4, acs=24, seed=5)
    print(f"simulated {scan.path}: 2 slices, 8 coils, effective R {scan.effective_r:.2f}")
    columns: list[tuple[str, np.ndarray, str]] = []
    for name in RECIPES:
        engine = Engine(name)
        try:
            with tqdm(desc=f"recipe {name}", unit="readout") as bar:

                def progress(done: int, total: int, bar: tqdm = bar) -> None:
                    bar.total = total
                    bar.update(done - bar.n)

                images, report = replay(scan.path, engine, out / name, progress=progress)
        finally:
            engine.close()
        print(f"recipe {name}: {len(images)} images in {report['seconds']:.1f} s -> {out / name}")
        columns.append((name, _picture(images, IMAGE_SERIES), "gray"))
        if any(int(image.head["image_series_index"]) == STD_SERIES for image in images):
            columns.append((f"{name}: standard deviation", _picture(images, STD_SERIES), "magma"))
    truth = np.abs(np.load(scan.truth)["image"][0, 0])
    columns.append(("truth", truth, "gray"))
    _montage(out / "demo.png", columns)
    print(f"picture: {out / 'demo.png'}")


def _picture(images: list[Image], series: int) -> np.ndarray:
    return next(
        np.abs(image.data[0, 0])
        for image in images
        if int(image.head["image_series_index"]) == series and int(image.head["slice"]) == 0
    )


def _montage(path: Path, columns: list[tuple[str, np.ndarray, str]]) -> None:
    """Pictures side by side, each from 0 to its own 99.7th percentile."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(columns), 3.3), dpi=100)
    for axis, (title, image, colours) in zip(figure.subplots(1, len(columns)), columns, strict=True):
        axis.imshow(image, cmap=colours, vmin=0, vmax=np.percentile(image, 99.7))
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
