"""Diffusion priors: a denoiser on complex images of any size, kept as safetensors with a description of itself."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .preconditioning import EDMDenoiser
from .unet import UNet

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
_FORMAT = "scanprior-edm-1"
MAX_PIXELS = 1 << 20  # the network sees at most so many pixels at once: about 1 GB of activations


class PriorError(ValueError):
    """A prior that does not exist, or a file that is not one of ours."""


@dataclass
class DiffusionPrior:
    """A denoiser `D(x, sigma) = E[x0 | x0 + sigma (n_re + i n_im)]` on complex images.

    Images are in the prior's own scale (`scale`). `sigma` is the standard deviation of the real and of the imaginary
    part each.

    Attributes
    ----------
    denoiser
        Network with its preconditioning, on two real channels.
    name
        For the image's history.
    sigma_min, sigma_max
        Noise levels that it was trained on.
    network
        Arguments of the network, as written into the file.
    autocast
        None (float32), or the type of torch autocast.
    scale
        (percentile, value): which percentile of a magnitude image has which value in the prior's scale.
    """

    denoiser: EDMDenoiser
    name: str
    sigma_min: float
    sigma_max: float
    network: dict[str, Any] = field(default_factory=dict)
    autocast: torch.dtype | None = None
    scale: tuple[float, float] = (99.5, 1.0)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.denoiser.parameters()).device

    @property
    def sigma_data(self) -> float:
        """Standard deviation of one real channel of the prior's images."""
        return self.denoiser.sigma_data

    def for_image(self, image: torch.Tensor) -> DiffusionPrior:
        """Itself: a complex prior is for any image."""
        return self

    def denoise(self, x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """Denoise complex images; differentiable with respect to `x` where `x` requires a gradient.

        Parameters
        ----------
        x
            (..., y, x) complex64.
        sigma
            Noise level of each real channel; a number, or a tensor that broadcasts over the leading axes of `x`.

        Returns
        -------
        (..., y, x) complex64.
        """
        lead = x.shape[:-2]
        flat = x.reshape(-1, *x.shape[-2:])
        level = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(lead).reshape(-1)
        channels = torch.view_as_real(flat).movedim(-1, 1).float()
        at_once = max(1, MAX_PIXELS // (x.shape[-2] * x.shape[-1]))
        wanted = torch.is_grad_enabled() and x.requires_grad
        with (
            torch.set_grad_enabled(wanted),
            torch.autocast(x.device.type, dtype=self.autocast, enabled=self.autocast is not None),
        ):
            parts = zip(channels.split(at_once), level.split(at_once), strict=True)
            clean = torch.cat([self.denoiser(part, sigma) for part, sigma in parts])
        return torch.view_as_complex(clean.float().movedim(1, -1).contiguous()).reshape(x.shape)

    def to(self, device: torch.device | str) -> DiffusionPrior:
        """Move the weights to `device` and return self."""
        self.denoiser.to(device)
        return self


def save_prior(path: Path, denoiser: EDMDenoiser, description: dict[str, Any]) -> None:
    """Write weights and `description` (network, sigma range, name) as safetensors, atomically."""
    tensors = {key: value.detach().float().cpu().contiguous() for key, value in denoiser.state_dict().items()}
    metadata = {"format": _FORMAT, "description": json.dumps(description | {"sigma_data": denoiser.sigma_data})}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata)
    partial.replace(path)


def released_priors() -> list[str]:
    """Names of the priors that come with the package."""
    return sorted(path.stem for path in WEIGHTS_FOLDER.glob("*.safetensors"))


def load_prior(name: str, device: torch.device | str = "cpu", autocast: torch.dtype | None = None) -> DiffusionPrior:
    """Load a released prior by name, or one's own by the path of its safetensors file.

    `autocast` is None for float32, or the type that torch's autocast computes in.

    Raises
    ------
    PriorError
        When there is no such prior, or the file is not a prior of ours.
    """
    path = WEIGHTS_FOLDER / f"{name}.safetensors"
    if not path.is_file():
        path = Path(name)
    if path.suffix != ".safetensors" or not path.is_file():
        raise PriorError(
            f"prior {name!r} not found: expected one of {released_priors()} or the path of a .safetensors file"
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise PriorError(f"{path}: not a safetensors file that can be read: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise PriorError(f"{path}: expected format {_FORMAT!r} in its metadata, found {metadata.get('format')!r}")
    try:
        description = json.loads(metadata["description"])
        sigma_min, sigma_max = float(description["sigma_min"]), float(description["sigma_max"])
        denoiser = EDMDenoiser(UNet(**description["network"]), float(description["sigma_data"]))
    except (KeyError, TypeError, ValueError) as error:
        raise PriorError(f"{path}: its description lacks something or is wrong: {error!r}") from error
    try:
        denoiser.load_state_dict(weights)
    except RuntimeError as error:
        raise PriorError(f"{path}: weights do not fit the network it describes: {error}") from error
    denoiser.eval().requires_grad_(False).to(device)
    denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return DiffusionPrior(denoiser, path.stem, sigma_min, sigma_max, description["network"], autocast)
