"""What `scanprior train --loss supervised` can be told, and what fits together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from scanprior.models.networks import build_from
from scanprior.models.supervised import NETWORKS
from torch import nn

from .mask_families import FAMILIES, make_mask
from .training_run import RunSettings


@dataclass(frozen=True, kw_only=True)
class SupervisedTraining(RunSettings):
    """The training of a network on simulated pairs of data and image.

    Attributes
    ----------
    size
        Edge of the whole slices that are scanned.
    channels
        1: magnitude images, without phase; 2: complex ones, with a smooth random phase.
    network
        varnet or unet.
    mask, amount, acs
        A family of masks, its R (or spokes, or probability; see `MaskFamily.amount`), and its ACS (None: its own).
    noise
        Least and greatest standard deviation of each real channel over the image's maximum, as `Condition.noise`; each
        scan's is between them, log-uniform.
    coils
        Least and greatest number of coils; 1 is a map of ones.
    error
        mse or l1: of the complex image, in the prior's scale.

    Raises
    ------
    ValueError
        When a value does not do, or things do not go together.
    """

    bank: int = 4_000
    size: int = 128
    channels: int = 2
    network: str = "varnet"
    network_options: dict[str, Any] = field(default_factory=dict)
    mask: str = "gaussian-1d"
    amount: float = 4.0
    acs: int | None = None
    noise: tuple[float, float] = (0.01, 0.01)
    coils: tuple[int, int] = (8, 8)
    error: Literal["mse", "l1"] = "mse"

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise ValueError(f"loss 'supervised' with network {self.network!r}: expected one of {', '.join(NETWORKS)}")
        if self.channels not in (1, 2):
            raise ValueError(f"expected 2 channels (complex) or 1 (magnitude), found {self.channels}")
        if self.error not in ("mse", "l1"):
            raise ValueError(f"expected the error mse or l1, found {self.error!r}")
        low, high = self.noise
        if not 0 <= low <= high < 1 or (low == 0 and high > 0):
            raise ValueError(
                f"noise: expected 0, or a least and a greatest above 0 and below 1, found {low} and {high}"
            )
        if not 1 <= self.coils[0] <= self.coils[1]:
            raise ValueError(f"coils: expected a least from 1 on and a greatest, found {list(self.coils)}")
        if self.size < 16:
            raise ValueError(f"size: expected at least 16, found {self.size}")
        make_mask(self.mask, (self.size, self.size), self.amount, self.acs, 0)  # what it refuses is refused now

    @property
    def mask_told(self) -> str:
        """The masks in words."""
        family = FAMILIES[self.mask]
        amount = f"R {self.amount:g}" if family.amount == "R" else f"{family.amount} {self.amount:g}"
        return f"{self.mask} ({amount})"

    def build(self) -> nn.Module:
        """A new network.

        Raises
        ------
        ValueError
            When the network has no such argument, or the value does not do.
        """
        return build_from(NETWORKS, self.network, self.network_options)
