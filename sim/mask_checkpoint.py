"""State of a mask's learning in one file, so that a run that was cut goes on where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scanprior.sim.whole_files import whole_files

FORMAT = "scanprior-mask-learning 1"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or is of another learning."""


@dataclass(frozen=True)
class LearningState:
    """What a learner needs to go on: its tensors, and what JSON holds."""

    tensors: Mapping[str, torch.Tensor]
    facts: Mapping[str, Any]


class Checkpoint:
    """The file of one learning (`.safetensors`, the facts as JSON in its header).

    Parameters
    ----------
    path
        Where it lies.
    key
        Of everything that the result depends on. A state of another key is refused.
    every
        Seconds between two savings.

    Attributes
    ----------
    seconds
        That the learning has taken in all, earlier parts included.
    """

    def __init__(self, path: Path, key: str, every: float = 30.0) -> None:
        self.path = path
        self._key = key
        self._every = every
        self._before = 0.0
        self._began = self._saved = time.perf_counter()

    @property
    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._began

    def load(self) -> LearningState | None:
        """What the last run left; None if it left nothing.

        Raises
        ------
        CheckpointError
            If it is not such a file, or of another key.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # no mapping
            if header.get("format") != FORMAT:
                raise CheckpointError(f"{self.path}: expected the format {FORMAT!r}, found {header.get('format')!r}")
            facts = json.loads(header["facts"])
            self._before = float(header["seconds"])
        except CheckpointError:
            raise
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise CheckpointError(f"{self.path}: no state of a learning that can be read: {error}; remove it") from None
        if header.get("key") != self._key:
            raise CheckpointError(
                f"{self.path}: an unfinished learning with other settings, images or prior, or of another "
                "device or version; repeat its command to finish it, choose another folder, or remove this file"
            )
        return LearningState(tensors, facts)

    def due(self) -> bool:
        """Whether it is time to save."""
        return time.perf_counter() - self._saved >= self._every

    def save(self, state: LearningState) -> None:
        """Replace the file, as a whole or not at all."""
        header = {
            "format": FORMAT, "key": self._key, "facts": json.dumps(dict(state.facts)), "seconds": repr(self.seconds),
        }  # fmt: skip
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in state.tensors.items()}
        with whole_files(self.path.parent) as folder:
            save_file(tensors, folder / self.path.name, header)
        self._saved = time.perf_counter()

    def remove(self) -> None:
        """When all is done."""
        self.path.unlink(missing_ok=True)
