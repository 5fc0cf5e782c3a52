"""Images of what no prior of ours was trained on, for the part `shift` of papers.sh: an abdomen and a phantom.

    python benchmarks/never_seen.py --data ../shared/data --out runs/papers

The abdomen is the MR image among the example files that come with pydicom (`examples_overlay.dcm`); the phantom is
`siemens_gre_phantom`, by the recipe `zero-filled` with root-sum-of-squares.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pydicom
from pydicom.data import get_testdata_file
from scanprior.gadgets.engine import Engine
from scanprior.models.recipe import load_recipe, recipe_from
from scanprior.pipelines.replay import replay


def abdomen() -> np.ndarray:
    """Magnitude (y, x) float32."""
    path = get_testdata_file("examples_overlay.dcm", download=False)
    if path is None:
        raise FileNotFoundError("examples_overlay.dcm: this pydicom comes without it")
    return np.asarray(pydicom.dcmread(path).pixel_array, np.float32)


def phantom(scan: Path) -> np.ndarray:
    """Magnitude (y, x) float32."""
    recipe = recipe_from(load_recipe("zero-filled").model_dump() | {"settings": {"combine": "rss"}}, "zero-filled")
    engine = Engine(recipe)
    try:
        with TemporaryDirectory() as folder:
            images, _ = replay(scan, engine, Path(folder))
    finally:
        engine.close()
    return np.abs(np.squeeze(images[0].data)).astype(np.float32)


def main() -> None:
    """Write abdomen.npz and phantom.npz, each in the middle of a square."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    recorded = arguments.data / "recorded"
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, image in (("abdomen", abdomen()), ("phantom", phantom(recorded / "siemens_gre_phantom.h5"))):
        edge = max(image.shape)
        square = np.zeros((edge, edge), np.float32)
        y, x = ((edge - n) // 2 for n in image.shape)
        square[y : y + image.shape[0], x : x + image.shape[1]] = image / image.max()
        np.savez_compressed(arguments.out / f"{name}.npz", slices=square[None])
        print(f"{arguments.out / name}.npz: {square.shape}")


if __name__ == "__main__":
    main()
