"""Priors of the family `supervised`: networks that were trained to undo one way of scanning, and say which."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import nn

from .forward import SenseModel
from .image_unet import ImageUNet
from .intensity import intensity_scale
from .magnitude_prior import smooth_phase
from .networks import build_from
from .variational_network import VariationalNetwork
from .weights_description import Scale, describing, one_of
from .weights_file import write_weights

FORMAT = "scanprior-supervised-1"
NETWORKS: dict[str, type[nn.Module]] = {"varnet": VariationalNetwork, "unet": ImageUNet}
SCALE = (99.5, 1.0)
"""What they are trained in: this percentile of the magnitude of `rough_image` has this value."""

R_TOLERANCE = 1.1
"""The effective R of one family's masks differs a little from scan to scan: so much, as a factor, is not told."""
NOISE_TOLERANCE = 1.3
"""A noise level in the scale is known as well as the scale, which is that of a rough image, aliased and noisy."""


class ImageNetwork(Protocol):
    """What the networks have in common."""

    start: str  # image to begin with: zero-filled (A^H y) or sense (`rough_image`)

    def __call__(
        self, x: torch.Tensor, adjoint: torch.Tensor, normal: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """The image (..., y, x) complex, of the one to begin with, A^H y and A^H A; all in the prior's scale."""


class TrainedFor(BaseModel):
    """The scans that a network was trained on; noise is of each real channel, in the prior's scale."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mask: str = Field(min_length=1, description="the family of masks, in words")
    dimensions: Literal[1, 2] = Field(description="1: whole lines; 2: points")
    effective_r: tuple[float, float] = Field(description="least and greatest R of its masks, ACS counted")
    noise: tuple[float, float] = Field(description="least and greatest standard deviation of a real channel")
    coils: tuple[int, int] = Field(description="least and greatest number")
    size: int = Field(gt=0, description="edge of its images in pixels")
    magnitude: bool = Field(False, description="whether its images had no phase")

    @field_validator("effective_r", "noise", "coils")
    @classmethod
    def _is_a_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] <= value[1]:
            raise ValueError(f"expected [least, greatest], not below 0, found {list(value)}")
        return value

    @model_validator(mode="after")
    def _can_be(self) -> TrainedFor:
        if self.effective_r[0] < 1 or self.coils[0] < 1:
            raise ValueError(f"expected R and coils from 1 on, found {self.effective_r[0]} and {self.coils[0]}")
        return self

    def __str__(self) -> str:
        """In words, for the image's history."""
        images = "magnitude images" if self.magnitude else "complex images"
        coils = "1 coil" if self.coils == (1, 1) else f"{_range(self.coils)} coils"
        return (
            f"{self.mask}, R {_range(self.effective_r)}, noise {_range(self.noise)}, {coils}, "
            f"{images} of {self.size} x {self.size}"
        )

    def departures(self, model: SenseModel, effective_r: float, noise: float) -> list[str]:
        """In what a scan is unlike all that the network was trained on; empty where it is like it.

        Parameters
        ----------
        model
            Of the scan: whether it samples lines or points. A fully sampled scan is neither.
        effective_r
            Of the scan.
        noise
            Of each real channel, in the prior's scale.
        """
        found = []
        dimensions = len(model.transformed)
        if dimensions and dimensions != self.dimensions:
            names = {1: "lines", 2: "points"}
            found.append(f"mask of {names[dimensions]} (trained on {names[self.dimensions]})")
        if not self.effective_r[0] / R_TOLERANCE <= effective_r <= self.effective_r[1] * R_TOLERANCE:
            found.append(f"R {effective_r:.2f} (trained on {_range(self.effective_r)})")
        if not self.noise[0] / NOISE_TOLERANCE <= noise <= max(self.noise[1], 1e-3) * NOISE_TOLERANCE:
            found.append(f"noise {noise:.3g} (trained on {_range(self.noise)})")
        return found


class SupervisedDescription(BaseModel):
    """Everything but the weights."""

    model_config = ConfigDict(extra="ignore", frozen=True)  # files tell more: the step, the data

    kind: Annotated[str, one_of(NETWORKS)] = Field(description="varnet or unet")
    network: dict[str, Any] = Field(description="its arguments")
    scale: Scale = Field(description="percentile of the rough image's magnitude, and the value it has")
    trained_for: TrainedFor


@dataclass
class SupervisedPrior:
    """A network that makes the image out of the data at once.

    There is no noise level to set and no weight of the data: both were learned, for the scans of `trained_for`. That
    is how supervised methods are; elsewhere they are used as they are, and the image's history says so. Only where it
    was trained on magnitudes is the smooth phase of the rough image taken out before, and put back afterwards, as for a
    `MagnitudePrior`.

    Attributes
    ----------
    network
        Of `NETWORKS`; see `ImageNetwork`.
    kind
        Its name there.
    name
        For the image's history.
    arguments
        The network's own, as written into the file.
    trained_for
        Which scans it was trained on.
    autocast
        None (float32), or the type of torch autocast.
    scale
        (percentile, value): which percentile of the rough image's magnitude has which value for the network.
    """

    network: nn.Module
    kind: str
    name: str
    arguments: dict[str, Any]
    trained_for: TrainedFor
    autocast: torch.dtype | None = None
    scale: tuple[float, float] = SCALE

    @property
    def size(self) -> int | None:
        """Any size of image will do."""
        return None

    @property
    def family(self) -> str:
        """Which methods it is for; see `Method.prior`."""
        return "supervised"

    def compile(self) -> None:
        """Compile the network: the first image of each size and batch takes a minute or so longer."""
        self.network.compile()

    def warm_up(self, shape: tuple[int, int]) -> None:
        """Run it on noise of this size (y, x), so that no timed image pays for the first call."""
        device = next(self.network.parameters()).device
        noise = torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)).to(device)
        model = SenseModel(
            torch.ones((1, *shape), dtype=torch.complex64, device=device), torch.ones(shape, device=device)
        )
        self.image(model, noise)

    def facts(self) -> str:
        """What decides its results besides the weights, in words."""
        return f"{self.kind} {self.arguments} {self.scale}"

    def weights(self) -> dict[str, torch.Tensor]:
        """All weights by name."""
        return self.network.state_dict()

    def image(self, model: SenseModel, adjoint: torch.Tensor) -> tuple[torch.Tensor, float]:
        """The image of a scan, and what its rough image was divided by for the network.

        Parameters
        ----------
        model
            A, of unit-norm maps.
        adjoint
            A^H y, (..., y, x) or (..., set, y, x) complex: a batch, and its sets, share one scale.

        Raises
        ------
        ValueError
            If the scan holds no signal.
        """
        rough = rough_image(model, adjoint)
        scale = intensity_scale(rough, self.scale)
        phase = smooth_phase(rough) if self.trained_for.magnitude else torch.ones_like(rough)
        turned = adjoint / scale * phase.conj()
        start = first_image(self.network, turned, rough / scale * phase.conj())

        def normal(x: torch.Tensor) -> torch.Tensor:
            return model.normal(x * phase) * phase.conj()

        with (
            torch.no_grad(),
            torch.autocast(adjoint.device.type, dtype=self.autocast, enabled=self.autocast is not None),
        ):
            return scale * self.network(start, turned, normal) * phase, scale

    def to(self, device: torch.device | str) -> SupervisedPrior:
        """Move the weights to `device` and return self."""
        self.network.to(device)
        return self


def rough_image(model: SenseModel, adjoint: torch.Tensor) -> torch.Tensor:
    """CG-SENSE with next to no regularisation, by which a scan is scaled; the same in training and in use."""
    return model.solve(adjoint, 0.01, iterations=15, tolerance=1e-3)


def first_image(network: nn.Module, adjoint: torch.Tensor, rough: torch.Tensor) -> torch.Tensor:
    """The image that this network begins with."""
    return rough if network.start == "sense" else adjoint


def save_supervised(
    path: Path, network: nn.Module, arguments: Mapping[str, Any], trained_for: TrainedFor, **more: Any
) -> None:
    """Write a network of `NETWORKS` as a prior; `more` is what else is to be remembered (the step)."""
    kind = next(name for name, of_kind in NETWORKS.items() if type(network) is of_kind)
    description = {"kind": kind, "network": dict(arguments), "scale": SCALE, "trained_for": trained_for.model_dump()}
    weights = {key: value.float() for key, value in network.state_dict().items()}
    write_weights(path, FORMAT, weights, more | description)


def read_supervised(data: dict[str, Any], weights: dict[str, torch.Tensor], path: Path) -> SupervisedPrior:
    """What `models.prior.READERS` wants: a prior from a file's description and weights.

    Raises
    ------
    PriorError
        Naming the file and what of it is wrong.
    """
    with describing(path):
        description = SupervisedDescription.model_validate(data)
        network = build_from(NETWORKS, description.kind, description.network)
        network.load_state_dict(weights)
    network.eval().requires_grad_(False)
    return SupervisedPrior(
        network, description.kind, path.stem, dict(description.network), description.trained_for,
        scale=description.scale,
    )  # fmt: skip


def _range(values: tuple[float, float]) -> str:
    low, high = values
    return f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"
