"""What `scanprior train` can be told, and what fits together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from scanprior.models.networks import NETWORKS, build_network
from scanprior.models.preconditioning import DENOISERS, Denoiser

from .noise_draws import draw_discrete, draw_edm, draw_log_uniform
from .training_run import RunSettings

SIGMA_DATA = {2: 0.3, 1: 0.42}
"""Rms of one real channel of the augmented patches, measured; a magnitude has both parts' energy."""
SIGMA_RANGE = {"edm": (0.002, 80.0), "ve": (0.01, 378.0), "ncsnv2": (0.0066, 232.0)}
"""Of each kind: EDM's, Score-MRI's (paper 5) and CSGM-Langevin's (paper 1)."""
NETWORKS_OF = {"edm": ("unet", "ncsnpp"), "ve": ("ncsnpp", "ncsnv2"), "ncsnv2": ("ncsnv2", "ncsnpp")}
"""The unet does not normalise, so it wants EDM's scaled input; the ncsnv2 is not told the noise level."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(RunSettings):
    """What `scanprior train` can be told of a diffusion prior; see its help for each.

    Raises
    ------
    ValueError
        When a name is not known, or things do not go together.
    """

    patch: int = 96
    widths: tuple[int, ...] | None = None
    blocks: tuple[int, ...] | None = None
    network: str = "unet"
    kind: str = "edm"
    channels: int = 2
    network_options: dict[str, Any] = field(default_factory=dict)
    sigma_min: float | None = None
    sigma_max: float | None = None
    levels: int = 2311

    def __post_init__(self) -> None:
        if self.kind not in DENOISERS:
            raise ValueError(f"loss {self.kind!r} is not known; there are: {', '.join(DENOISERS)}")
        if self.network not in NETWORKS:
            raise ValueError(f"network {self.network!r} is not known; there are: {', '.join(NETWORKS)}")
        if self.network not in NETWORKS_OF[self.kind]:
            raise ValueError(
                f"loss {self.kind!r} with network {self.network!r}: expected one of {', '.join(NETWORKS_OF[self.kind])}"
            )
        if self.channels not in SIGMA_DATA:
            raise ValueError(f"expected 2 channels (complex) or 1 (magnitude), found {self.channels}")
        low, high = self.sigma_range
        if not 0 < low < high:
            raise ValueError(f"expected 0 < sigma_min < sigma_max, found {low:g} and {high:g}")

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Lowest and highest noise level: as given, else the kind's own."""
        low, high = SIGMA_RANGE[self.kind]
        return low if self.sigma_min is None else self.sigma_min, high if self.sigma_max is None else self.sigma_max

    @property
    def network_description(self) -> dict[str, Any]:
        """Name and arguments of the network, as its file will say."""
        own: dict[str, Any] = {"name": self.network, "image_channels": self.channels}
        if self.widths is not None:
            own["widths"] = self.widths
        if self.blocks is not None:
            # the unet has a number for each level, the ncsnpp one for all
            own["blocks"] = self.blocks[0] if self.network == "ncsnpp" and len(self.blocks) == 1 else self.blocks
        return own | self.network_options

    def denoiser(self) -> Denoiser:
        """A new denoiser.

        Raises
        ------
        ValueError
            When the network has no such argument, or the value does not do.
        """
        return DENOISERS[self.kind](build_network(self.network_description), SIGMA_DATA[self.channels])

    def build(self) -> Denoiser:
        """What is trained: `denoiser`."""
        return self.denoiser()

    def draw_sigma(self, count: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Noise levels (count,) to train on."""
        low, high = self.sigma_range
        if self.kind == "edm":
            return draw_edm(count, low, high, generator)
        if self.kind == "ve":
            return draw_log_uniform(count, low, high, generator)
        return draw_discrete(count, low, high, self.levels, generator)
