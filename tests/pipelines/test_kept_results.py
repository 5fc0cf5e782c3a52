"""Results that are kept, and those that are not used."""

from __future__ import annotations

from pathlib import Path

import pytest
from scanprior.pipelines.kept_results import KeptResults


def test_a_result_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    made = []

    def make() -> dict[str, list[float]]:
        made.append(1)
        return {"psnr": [1 / 3, float("nan")]}

    first = KeptResults(path, "a")("x", make)
    again = KeptResults(path, "a")("x", make)
    assert len(made) == 1
    assert again["psnr"][0] == first["psnr"][0]
    KeptResults(path, "b")("x", make)
    assert len(made) == 2, "of another key"
    kept = KeptResults(path, "b")
    kept("y", make)
    assert len(made) == 3
    kept.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "[]", "{", '{"key": "a", "results": 3}', "[" * 9999])
def test_a_file_that_is_none_is_not_used(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kept.json"
    path.write_text(text)
    assert KeptResults(path, "a")("x", lambda: 5) == 5
