"""What `scanprior train --loss vae` can be told, and what fits together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from scanprior.models.vae import VAE
from scanprior.models.vae_prior import build_vae

from .patch_bank import BANK_PATCH
from .training_run import RunSettings

RELEASED_WIDTHS = {True: ((16, 48, 96, 128), 160), False: ((16, 48, 96), 128)}
"""Widths and middle of the released priors, for whole slices and for any size: what one core of a CPU trains in an
hour. Published, for whole slices: (64, 128, 256, 512) and 256."""


@dataclass(frozen=True, kw_only=True)
class VAESettings(RunSettings):
    """The training of a VAE prior in two stages.

    Attributes
    ----------
    steps
        Optimiser steps of both stages together.
    mean_steps
        Those of the first stage, which trains encoder and mean decoder with Sigma = rho I. None: 60 %
        of `steps`; all for the covariance `identity`, none with `begin_with`.
    parts
        1: magnitudes; 2: complex images, demodulated.
    size
        Edge of whole slices, for a dense latent; None: patches, local latents, any size of image.
    patch
        Edge of patches, where there is no `size`.
    network
        Other arguments of `VAE`: latent, widths, middle, covariance, neighbourhood, diagonal, dropout, ...
    begin_with
        Prior (released or a file) whose encoder, mean decoder and rho are taken.
    mean_sigma
        sqrt(rho) of the first stage: the smaller, the more the latent tells, and the farther it may be from N(0, I).
    air_noise
        Standard deviation of the noise that is added where a part of an image is nearly zero (below four times this):
        black air would otherwise be predicted as exactly as the bound of the diagonal allows.
    validation
        Held-back images.

    Raises
    ------
    ValueError
        When a value does not do, or things do not go together.
    """

    patch: int = 96
    parts: int = 1
    size: int | None = 128
    network: dict[str, Any] = field(default_factory=dict)
    mean_steps: int | None = None
    mean_sigma: float = 0.05
    air_noise: float = 0.005
    validation: int = 64

    def __post_init__(self) -> None:
        for key in ("parts", "size"):
            if key in self.network:
                raise ValueError(f"{key} is an option of its own, found it among the network's")
        if not self.mean_sigma > 0:
            raise ValueError(f"expected mean_sigma above 0, found {self.mean_sigma}")
        if self.air_noise < 0:
            raise ValueError(f"expected air_noise of at least 0, found {self.air_noise}")
        if not 0 <= self.first_stage <= self.steps:
            raise ValueError(f"expected mean_steps from 0 to steps ({self.steps}), found {self.first_stage}")
        if self.covariance == "identity" and self.first_stage < self.steps:
            raise ValueError(
                f"covariance identity has no second stage: expected mean_steps {self.steps} as steps, "
                f"found {self.first_stage}"
            )
        if self.size is None and self.patch > BANK_PATCH:
            raise ValueError(f"expected patches of at most {BANK_PATCH}, found {self.patch}")

    @property
    def covariance(self) -> str:
        """identity, diagonal or structured."""
        return str(self.network.get("covariance", "structured"))

    @property
    def first_stage(self) -> int:
        """Steps of the first stage."""
        if self.mean_steps is not None:
            return self.mean_steps
        if self.covariance == "identity":
            return self.steps
        return 0 if self.begin_with is not None else round(0.6 * self.steps)

    @property
    def network_description(self) -> dict[str, Any]:
        """Arguments of `VAE`, as its file will say."""
        widths, middle = RELEASED_WIDTHS[self.size is not None]
        latent = 100 if self.size is not None else 16
        own: dict[str, Any] = {"parts": self.parts, "size": self.size, "latent": latent}
        own |= {"widths": widths, "middle": middle} | self.network
        principal = 1 << len(own["widths"]) if self.size is None else self.size // 2
        return {"principal": principal} | own

    def build(self) -> VAE:
        """New networks.

        Raises
        ------
        ValueError
            When there is no such argument, or a value does not do.
        """
        return build_vae(self.network_description)
