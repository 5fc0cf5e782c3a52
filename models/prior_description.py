"""What a file of weights must say about itself to become a diffusion prior."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from .diffusion_prior import DiffusionPrior
from .magnitude_prior import MagnitudePrior
from .networks import build_network
from .preconditioning import DENOISERS, Denoiser
from .weights_description import Scale, one_of
from .weights_file import PriorError


class PriorDescription(BaseModel):
    """Everything but the weights; noise levels and `sigma_data` are per real channel, in the prior's scale."""

    model_config = ConfigDict(extra="ignore", frozen=True)  # files tell more: the step, the data

    kind: Annotated[str, one_of(DENOISERS)] = Field(description="edm, ve or ncsnv2: how the network makes a denoiser")
    network: dict[str, Any] = Field(description="name and arguments; without a name a unet")
    sigma_min: float = Field(gt=0)
    sigma_max: float = Field(gt=0)
    sigma_data: float = Field(gt=0)
    scale: Scale = Field(description="percentile of the magnitude, and the value that it has")

    @model_validator(mode="after")
    def _levels_rise(self) -> PriorDescription:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min ({self.sigma_min}) must be below sigma_max ({self.sigma_max})")
        return self

    def denoiser(self) -> Denoiser:
        """The denoiser, its weights random yet.

        Raises
        ------
        ValueError
            When the network is not known, or an argument of it is wrong.
        """
        return DENOISERS[self.kind](build_network(self.network), self.sigma_data)

    def prior(self, denoiser: Denoiser, name: str) -> DiffusionPrior:
        """A prior of this denoiser: of magnitudes where the network has one channel, else of complex images."""
        channels = denoiser.network.image_channels
        if channels not in (1, 2):
            raise PriorError(f"{name}: expected a network of 1 or 2 image_channels, found {channels}")
        kind = MagnitudePrior if channels == 1 else DiffusionPrior
        denoiser.eval().requires_grad_(False)
        denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return kind(denoiser, name, self.sigma_min, self.sigma_max, dict(self.network), scale=self.scale)
