"""Run BART (the `bart` binary) as an oracle."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
from support import missing


def bart(folder: Path, command: str, *inputs: np.ndarray) -> np.ndarray:
    """Run `bart command input.. output` in `folder`; arrays are (..., z, y, x), BART's first dimension last."""
    program = shutil.which("bart")
    if program is None:
        missing("the bart binary is not installed")
    assert program is not None
    names = []
    for index, array in enumerate(inputs):
        name = f"in{index}"
        (folder / f"{name}.hdr").write_text("# Dimensions\n" + " ".join(map(str, array.shape[::-1])) + "\n")
        array.astype(np.complex64).tofile(folder / f"{name}.cfl")
        names.append(name)
    subprocess.run([program, *command.split(), *names, "out"], cwd=folder, check=True, capture_output=True, timeout=300)
    sizes = [int(size) for size in (folder / "out.hdr").read_text().splitlines()[1].split()]
    return np.fromfile(folder / "out.cfl", np.complex64).reshape(sizes[::-1])
