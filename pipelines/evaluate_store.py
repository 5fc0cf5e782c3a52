"""What an evaluation keeps as it goes, so that a cut run goes on: records, pictures, and by what they are known."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from scanprior.models.prior import AnyPrior

from .evaluate_plan import EvaluationError


class Store:
    """Records of finished cases in a JSON-lines file, each written as it comes; a cut run goes on from there.

    Raises
    ------
    EvaluationError
        When the file is not such a file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.records: dict[str, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            return
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        try:
            for line in whole.decode().splitlines():
                record = json.loads(line)
                self.records[record["case"]] = record
        except (ValueError, KeyError, TypeError) as error:
            raise EvaluationError(f"{path}: not a file of finished cases ({error!r}); choose another --out") from error
        if len(whole) < len(text):  # the line that the last run was cut in
            path.write_bytes(whole)

    def add(self, record: dict[str, Any]) -> None:
        """Keep one record; its key `case` says which it is."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self.records[record["case"]] = record


class WeightsHash:
    """Hashes of priors' weights, wherever they were loaded from; each is worked out once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[AnyPrior, str]] = {}

    def __call__(self, prior: AnyPrior | None) -> str | None:
        """Hash of the weights; None for no prior."""
        if prior is None:
            return None
        if id(prior) not in self._known:
            digest = hashlib.sha256(prior.facts().encode())
            for name, tensor in sorted(prior.weights().items()):
                digest.update(name.encode())
                digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
            self._known[id(prior)] = prior, digest.hexdigest()  # kept, so that its id stays its own
        return self._known[id(prior)][1]


def save_picture(path: Path, image: np.ndarray, std: np.ndarray | None) -> None:
    """Keep a magnitude (y, x) and its standard deviation, if there is one."""
    kept = {"image": image} if std is None else {"image": image, "std": std}
    np.savez_compressed(path, **kept)  # type: ignore[arg-type]


def load_picture(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """What `save_picture` kept."""
    with np.load(path, allow_pickle=False) as data:
        return data["image"], data["std"] if "std" in data else None
