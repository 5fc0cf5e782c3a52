"""A VAE with structured covariance as a prior of real or complex images, and its file (Duff et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from .networks import check_arguments
from .precision import CholeskyFactor
from .vae import VAE
from .weights_description import Scale, describing
from .weights_file import write_weights

VAE_FORMAT = "scanprior-vae-1"


@dataclass
class VAEPrior:
    """p(x|z) = N(G(z), (L(z) L(z)^T)^-1) with z ~ N(0, I), and q(z|x), on real images in a scale of its own.

    Images are (batch, parts, y, x) float32: parts 1 real, 2 (real, imaginary). Everything is differentiable in its
    tensor, not in the weights.

    Attributes
    ----------
    vae
        The networks.
    name
        For the image's history.
    scale
        (percentile, value): which percentile of a magnitude image has which value in the prior's scale.
    demodulated
        Whether images have their smooth phase (`magnitude_prior.smooth_phase`) taken out before the prior sees them.
    network
        Arguments of `VAE`, as written into the file.
    autocast
        None (float32), or the type of torch autocast.
    shape
        (y, x) that `mean` and `factor` are cropped to, by `for_shape`; None: whatever the latent gives, a multiple of
        the network's coarsest pixel.
    """

    vae: VAE
    name: str
    scale: tuple[float, float] = (99.5, 1.0)
    demodulated: bool = True
    network: Mapping[str, Any] | None = None
    autocast: torch.dtype | None = None
    shape: tuple[int, int] | None = None

    @property
    def family(self) -> str:
        """Which methods it is for; see `Method.prior`."""
        return "vae"

    @property
    def parts(self) -> int:
        """1: real images; 2: real and imaginary part."""
        return self.vae.parts

    @property
    def covariance(self) -> str:
        """identity, diagonal or structured."""
        return self.vae.covariance

    @property
    def neighbourhood(self) -> int:
        """Edge of the patch that L couples: 3 or 5; 1 where it is diagonal."""
        return self.vae.neighbourhood

    @property
    def size(self) -> int | None:
        """Edge of the images; None: any size."""
        return self.vae.size

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.vae.identity.device

    def latent_shape(self, shape: tuple[int, int]) -> tuple[int, ...]:
        """Shape of z, without the batch, for images (y, x).

        Raises
        ------
        ValueError
            When the prior is for images of another size; both are named.
        """
        try:
            return self.vae.latent_shape(shape)
        except ValueError as error:
            raise ValueError(f"prior {self.name!r}: {error}") from None

    def for_shape(self, shape: tuple[int, int]) -> VAEPrior:
        """A copy (of the same weights) whose `mean` and `factor` have this size (y, x), for z of its `latent_shape`.

        A latent map alone does not tell the size of the image: the network's is a multiple of its coarsest pixel.

        Raises
        ------
        ValueError
            As `latent_shape`.
        """
        self.latent_shape(shape)
        return replace(self, shape=(int(shape[0]), int(shape[1])))

    def encode(self, e: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log-variance of q(z|x) of images (batch, parts, y, x): (batch, *latent) each.

        Raises
        ------
        ValueError
            When the images do not fit.
        """
        with self._running(e):
            return self.vae.encode(e)

    def mean(self, z: torch.Tensor) -> torch.Tensor:
        """G(z), (batch, parts, y, x).

        Raises
        ------
        ValueError
            When z does not fit.
        """
        self._check(z)
        with self._running(z):
            mean = self.vae.mean(z)
        return mean if self.shape in (None, mean.shape[-2:]) else mean[..., : self.shape[0], : self.shape[1]]

    def factor(self, z: torch.Tensor) -> CholeskyFactor:
        """L(z); errors as of `mean`."""
        self._check(z)
        with self._running(z):
            return self.vae.factor(z, self.shape)

    def decode(self, z: torch.Tensor) -> tuple[torch.Tensor, CholeskyFactor]:
        """G(z) and L(z)."""
        return self.mean(z), self.factor(z)

    def compile(self) -> None:
        """Compile the networks: the first image of each size and batch takes a minute or so longer."""
        for part in (self.vae.encoder, self.vae.mean_decoder, self.vae.covariance_decoder):
            if part is not None:
                part.compile()

    def warm_up(self, shape: tuple[int, int]) -> None:
        """Encode and decode an image of zeros of this size (y, x), so that no timed image pays for the first call.

        Raises
        ------
        ValueError
            As `latent_shape`.
        """
        with torch.no_grad():
            self.for_shape(shape).decode(self.encode(torch.zeros(1, self.parts, *shape, device=self.device))[0])

    def facts(self) -> str:
        """What decides its results besides the weights, in words."""
        return f"{self.scale} {self.demodulated} {self.covariance} {self.neighbourhood} {self.vae.bounds}"

    def weights(self) -> dict[str, torch.Tensor]:
        """All weights by name."""
        return self.vae.state_dict()

    def to(self, device: torch.device | str) -> VAEPrior:
        """Move the weights to `device` and return self."""
        self.vae.to(device)
        return self

    def _running(self, tensor: torch.Tensor) -> torch.autocast:
        return torch.autocast(tensor.device.type, dtype=self.autocast, enabled=self.autocast is not None)

    def _check(self, z: torch.Tensor) -> None:
        if self.shape is not None and tuple(z.shape[1:]) != self.vae.latent_shape(self.shape):
            raise ValueError(
                f"prior {self.name!r}: expected a latent (batch, {', '.join(map(str, self.latent_shape(self.shape)))}) "
                f"for images of {self.shape[0]}x{self.shape[1]}, found {tuple(z.shape)}"
            )


class VAEDescription(BaseModel):
    """What a file of weights must say about itself to become a `VAEPrior`."""

    model_config = ConfigDict(extra="ignore", frozen=True)  # files tell more: the step, the data

    network: dict[str, Any] = Field(description="arguments of VAE")
    scale: Scale = Field(description="percentile of the magnitude, and the value that it has")
    demodulated: bool


def build_vae(arguments: Mapping[str, Any]) -> VAE:
    """A VAE of random weights.

    Raises
    ------
    ValueError
        When an argument is not known, naming those that are, or a value does not do.
    """
    check_arguments(VAE, "vae", arguments)
    try:
        vae = VAE(**arguments)
    except (TypeError, RuntimeError, IndexError) as error:
        raise ValueError(f"network 'vae' cannot be made with {dict(arguments)}: {error}") from error
    return vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def save_vae(path: Path, vae: VAE, description: dict[str, Any]) -> None:
    """Write weights (float16: half a prior's size for an error far below that of the training) and `description`.

    Parameters
    ----------
    description
        `network` (arguments of `VAE`), `scale` ((99.5, 1) if it is not given), `demodulated` (True), and what else is
        to be remembered.
    """
    # the one number of the identity stays as it is: it has no others beside it that would make up for an error
    weights = {key: value.float() if value.ndim == 0 else value.half() for key, value in vae.state_dict().items()}
    write_weights(path, VAE_FORMAT, weights, {"scale": (99.5, 1.0), "demodulated": True} | description)


def read_vae(data: dict[str, Any], weights: dict[str, torch.Tensor], path: Path) -> VAEPrior:
    """The prior of a file's description and weights.

    Raises
    ------
    PriorError
        Naming the file and what is wrong with it.
    """
    with describing(path):
        description = VAEDescription.model_validate(data)
        vae = build_vae(description.network)
        vae.load_state_dict(weights)
    vae.eval().requires_grad_(False)
    return VAEPrior(vae, path.stem, description.scale, description.demodulated, dict(description.network))
