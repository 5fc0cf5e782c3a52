"""Priors by name or file: kept as safetensors with a description of themselves, never as pickles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from .diffusion_prior import DiffusionPrior
from .foreign import load_foreign
from .networks import network_name
from .preconditioning import Denoiser
from .prior_description import PriorDescription
from .supervised import FORMAT as SUPERVISED_FORMAT
from .supervised import read_supervised
from .vae_prior import VAE_FORMAT, read_vae
from .weights_description import describing
from .weights_file import PriorError, read_weights, write_weights

__all__ = [
    "DiffusionPrior",
    "PriorError",
    "load_any_prior",
    "load_prior",
    "prior_description",
    "released_priors",
    "save_prior",
]

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
    weights = {key: value.float() for key, value in denoiser.state_dict().items()}
    network = {"name": network_name(denoiser.network)} | description["network"]
    own = {"kind": denoiser.kind, "network": network, "sigma_data": denoiser.sigma_data}
    description = {"scale": _FIRST_DEFAULTS["scale"]} | description | own
    write_weights(path, FORMAT, weights, description)


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


class AnyPrior(Protocol):
    """What the priors of all families have in common: enough to load one and to name it."""

    name: str
    autocast: torch.dtype | None

    @property
    def size(self) -> int | None:
        """Edge of the only images that it takes; None: any size."""

    @property
    def family(self) -> str:
        """`diffusion`, or another of `Method.prior`: which methods it is for."""

    def compile(self) -> None:
        """Compile its networks with torch.compile."""

    def warm_up(self, shape: tuple[int, int]) -> None:
        """Let its networks see this size of image (y, x) once, so that no timed image pays for the first call."""

    def facts(self) -> str:
        """What decides its results besides the weights, in words: scale, noise levels and the like."""

    def weights(self) -> dict[str, torch.Tensor]:
        """All its weights by name."""

    def to(self, device: torch.device | str) -> Any:
        """Move its weights."""


def prior_path(name: str) -> Path:
    """File of a released prior by its name, or of one's own by its path.

    Raises
    ------
    PriorError
        When there is no such prior.
    """
    path = WEIGHTS_FOLDER / f"{name}.safetensors"
    if not path.is_file():
        path = Path(name)
    if path.suffix not in (".safetensors", *MAPPINGS) or not path.is_file():
        raise PriorError(
            f"prior {name!r} not found: expected one of {released_priors()}, the path of a .safetensors file, "
            f"or of a mapping file ({', '.join(MAPPINGS)}) for weights of others"
        )
    return path


def seen_clean_images(name: str) -> bool | None:
    """Whether a prior's file says that clean images were used in its training; None where it does not say.

    Raises
    ------
    PriorError
        As `load_any_prior`.
    """
    path = prior_path(name)
    if path.suffix in MAPPINGS:
        return None
    training = read_weights(path, READERS)[1].get("training")
    count = training.get("clean_images") if isinstance(training, dict) else None
    return None if count is None else count != 0


def load_any_prior(
    name: str,
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
    compile: bool = False,
) -> Any:
    """Load a released prior by name, one's own by its safetensors file, or foreign weights by their mapping file.

    Parameters
    ----------
    autocast
        None for float32, or the type that torch's autocast computes in.
    compile
        Compile the network with torch.compile: the first image of each size and batch takes a minute or so longer.

    Returns
    -------
    An `AnyPrior` of the family that the file says.

    Raises
    ------
    PriorError
        When there is no such prior, or the file is not a prior of ours.
    """
    path = prior_path(name)
    prior: AnyPrior
    if path.suffix in MAPPINGS:
        prior = load_foreign(path)
    else:
        form, description, weights = read_weights(path, READERS)
        prior = READERS[form](description, weights, path)
    prior.autocast = autocast
    if compile:
        prior.compile()
    return prior.to(device)


def load_prior(
    name: str,
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
    compile: bool = False,
) -> DiffusionPrior:
    """A diffusion prior, by `load_any_prior`; a `MagnitudePrior` where its network has one channel.

    Raises
    ------
    PriorError
        As `load_any_prior`, and when the prior is of another family.
    """
    prior = load_any_prior(name, device, autocast, compile)
    if not isinstance(prior, DiffusionPrior):
        raise PriorError(f"prior {name!r} is of the family {prior.family!r}, expected a diffusion prior")
    return prior


Weights = dict[str, torch.Tensor]


def _diffusion(data: dict[str, Any], weights: Weights, path: Path) -> DiffusionPrior:
    with describing(path):
        description = PriorDescription.model_validate(data)
        denoiser = description.denoiser()
        denoiser.load_state_dict(weights)
    return description.prior(denoiser, path.stem)


def _first_diffusion(data: dict[str, Any], weights: Weights, path: Path) -> DiffusionPrior:
    return _diffusion(_FIRST_DEFAULTS | data, weights, path)


READERS: dict[str, Callable[[dict[str, Any], Weights, Path], AnyPrior]] = {
    FORMAT: _diffusion,
    _FIRST_FORMAT: _first_diffusion,
    VAE_FORMAT: read_vae,
    SUPERVISED_FORMAT: read_supervised,
}
"""Of each format of file, what makes a prior of it: `reader(description, weights, path)`."""
