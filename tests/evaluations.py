"""Calls of `scanprior evaluate`, and what they leave."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from scanprior.pipelines.cli import app
from scanprior.sim.phantoms import brain
from typer.testing import CliRunner, Result

cli = CliRunner()


def stack(path: Path, seed: int, count: int = 3) -> Path:
    np.savez(path, slices=np.abs(brain((48, 48), count, seed=seed).image))
    return path


def call(
    data: Path, out: Path, *options: str, methods: str = "zero-filled,sense",
    masks: str = "uniform-1d,gaussian-2d", r: str = "2",
) -> Result:  # fmt: skip
    fixed = ["--methods", methods, "--masks", masks, "--r", r, "--coils", "3", "--device", "cpu"]
    return cli.invoke(app, ["evaluate", "--data", str(data), "--out", str(out), *fixed, *options])


def cases(out: Path) -> list[dict[str, str]]:
    with (out / "cases.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def words(result: Result) -> str:
    """Output without the frame that typer draws around an error, on one line."""
    return " ".join(result.output.replace("│", " ").split())
