"""Images to evaluate on, and which methods really ran."""

from __future__ import annotations

from pathlib import Path

import pytest
from evaluations import stack
from scanprior.pipelines import evaluate as running
from scanprior.sim.evaluation import run_recipe


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return stack(tmp_path / "test.npz", 1)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the methods that really ran."""
    ran: list[str] = []

    def counting(scan: object, recipe: object, *rest: object) -> object:
        ran.append(recipe.method)  # type: ignore[attr-defined]
        return run_recipe(scan, recipe, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(running, "run_recipe", counting)
    return ran
