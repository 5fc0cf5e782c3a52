"""Results of a long comparison, each kept as it comes, so that a run that was cut does not make them again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from scanprior.sim.whole_files import whole_files

Result = TypeVar("Result")


class KeptResults:
    """Results by name in a JSON file.

    Parameters
    ----------
    path
        The file.
    key
        Of everything that the results depend on; results of another key, or a file that cannot be read, are not used
        and give way to the new ones.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, key
        self._results: dict[str, object] = {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return
        if isinstance(found, dict) and found.get("key") == key and isinstance(found.get("results"), dict):
            self._results = found["results"]

    def __call__(self, name: str, make: Callable[[], Result]) -> Result:
        """The result of this name: the one that is kept, else what `make()` gives (of what JSON holds)."""
        if name not in self._results:
            self._results[name] = make()
            with whole_files(self._path.parent) as folder:
                text = json.dumps({"key": self._key, "results": self._results})
                (folder / self._path.name).write_text(text, encoding="utf-8")
        return self._results[name]  # type: ignore[return-value]

    def remove(self) -> None:
        """When all is done."""
        self._path.unlink(missing_ok=True)
