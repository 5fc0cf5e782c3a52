"""Priors by name or file: kept as safetensors with a description of themselves, never as pickles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .diffusion_prior import DiffusionPrior, PriorError
from .foreign import load_foreign
from .networks import network_name
from .preconditioning import Denoiser
from .prior_description import describe

__all__ = ["DiffusionPrior", "PriorError", "load_prior", "prior_description", "released_priors", "save_prior"]

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
FORMAT = "scanprior-prior-2"
_FIRST_FORMAT = "scanprior-edm-1"
_FIRST_DEFAULTS = {"kind": "edm", "scale": (99.5, 1.0)}  # what files of the first format leave out
MAPPINGS = (".yaml", ".yml", ".json")


def save_prior(path: Path, denoiser: Denoiser, description: dict[str, Any]) -> None:
    """Write weights and `description` as safetensors, atomically.

    Parameters
    ----------
    description
        `network` (its arguments), `sigma_min`, `sigma_max`, `scale` ((99.5, 1) if it is not given), and what else is to
        be remembered. Kind, name of the network and `sigma_data` are the denoiser's own.
    """
    tensors = {key: value.detach().float().cpu().contiguous() for key, value in denoiser.state_dict().items()}
    network = {"name": network_name(denoiser.network)} | description["network"]
    own = {"kind": denoiser.kind, "network": network, "sigma_data": denoiser.sigma_data}
    description = {"scale": _FIRST_DEFAULTS["scale"]} | description | own
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, {"format": FORMAT, "description": json.dumps(description)})
    partial.replace(path)


def prior_description(prior: DiffusionPrior) -> dict[str, Any]:
    """What `save_prior` wants to know of a loaded prior."""
    return {
        "network": prior.network,
        "sigma_min": prior.sigma_min,
        "sigma_max": prior.sigma_max,
        "scale": prior.scale,
    }


def released_priors() -> list[str]:
    """Names of the priors that come with the package."""
    return sorted(path.stem for path in WEIGHTS_FOLDER.glob("*.safetensors"))


def load_prior(
    name: str,
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
    compile: bool = False,
) -> DiffusionPrior:
    """Load a released prior by name, one's own by its safetensors file, or foreign weights by their mapping file.

    Parameters
    ----------
    autocast
        None for float32, or the type that torch's autocast computes in.
    compile
        Compile the network with torch.compile: the first image of each size and batch takes a minute or so longer.

    Returns
    -------
    A `MagnitudePrior` where the network has one channel.

    Raises
    ------
    PriorError
        When there is no such prior, or the file is not a prior of ours.
    """
    path = WEIGHTS_FOLDER / f"{name}.safetensors"
    if not path.is_file():
        path = Path(name)
    if path.suffix not in (".safetensors", *MAPPINGS) or not path.is_file():
        raise PriorError(
            f"prior {name!r} not found: expected one of {released_priors()}, the path of a .safetensors file, "
            f"or of a mapping file ({', '.join(MAPPINGS)}) for weights of others"
        )
    prior = load_foreign(path) if path.suffix in MAPPINGS else _read(path)
    prior.autocast = autocast
    if compile:
        prior.denoiser.compile()
    return prior.to(device)


def _read(path: Path) -> DiffusionPrior:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise PriorError(f"{path}: not a safetensors file that can be read: {error}") from error
    if metadata.get("format") not in (FORMAT, _FIRST_FORMAT):
        raise PriorError(
            f"{path}: expected format {FORMAT!r} or {_FIRST_FORMAT!r} in its metadata, found "
            f"{metadata.get('format')!r}; weights of others want a mapping file, see docs/priors.md"
        )
    try:
        data = json.loads(metadata["description"])
    except (KeyError, ValueError) as error:
        raise PriorError(f"{path}: its description cannot be read: {error!r}") from error
    description = describe(_FIRST_DEFAULTS | data if metadata["format"] == _FIRST_FORMAT else data, str(path))
    try:
        denoiser = description.denoiser()
        denoiser.load_state_dict(weights)
    except ValueError as error:
        raise PriorError(f"{path}: its description lacks something or is wrong: {error}") from error
    except RuntimeError as error:
        raise PriorError(f"{path}: weights do not fit the network it describes: {error}") from error
    return description.prior(denoiser, path.stem)
