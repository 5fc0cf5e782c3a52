"""Files of weights: safetensors that describe themselves. What they describe, each family of priors knows."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


class PriorError(ValueError):
    """A prior that does not exist, or a file that is not one of ours."""


def write_weights(path: Path, form: str, weights: Mapping[str, torch.Tensor], description: Mapping[str, Any]) -> None:
    """Write weights (as they are: float32, float16, ...) with their description, atomically.

    Parameters
    ----------
    form
        Name and version of the format, by which `load_prior` knows the family.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, {"format": form, "description": json.dumps(dict(description))})
    partial.replace(path)


def read_weights(path: Path, forms: Collection[str]) -> tuple[str, dict[str, Any], dict[str, torch.Tensor]]:
    """Format, description and weights of a file that has one of these formats.

    Raises
    ------
    PriorError
        When it is not a safetensors file, has another format, or its description cannot be read.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise PriorError(f"{path}: not a safetensors file that can be read: {error}") from error
    form = metadata.get("format")
    if form not in forms:
        raise PriorError(
            f"{path}: expected format {' or '.join(map(repr, forms))} in its metadata, found {form!r}; "
            "weights of others want a mapping file, see docs/priors.md"
        )
    try:
        return str(form), dict(json.loads(metadata["description"])), weights
    except (KeyError, ValueError, TypeError) as error:
        raise PriorError(f"{path}: its description cannot be read: {error!r}") from error
