"""What all methods with a VAE prior make of a scan before they begin: size, scale, phase, noise level, first image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import EllipsisType
from typing import Literal, Protocol

import torch
from pydantic import Field

from .forward import SenseModel
from .intensity import intensity_scale
from .magnitude_prior import smooth_phase
from .scan import Scan, Settings

GAMMA_FLOOR = 1e-3
"""Least noise level taken, in units of the bright parts of the image: of a scan without noise (a simulated one) the
objective would have nothing but the data in it, and single precision could not tell one image from the other."""


class VAEProblemSettings(Settings):
    """What every method with a VAE prior can be told of the scan and of where to begin."""

    gamma: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="standard deviation of the noise in each real channel of k-space, in the prior's scale; None: "
        "that of the scan",
    )
    start: Literal["sense", "zero-filled"] = Field("sense", description="the first image: CG-SENSE, or A^H y (paper)")
    start_iterations: int = Field(15, ge=1, le=200, description="CG iterations of the CG-SENSE image")


class Sized(Protocol):
    """What the setup needs of a VAE prior; see `vae_objective.VAEPrior`."""

    name: str

    @property
    def parts(self) -> int:
        """1: real images, the smooth phase taken out; 2: real and imaginary part."""

    @property
    def size(self) -> int | None:
        """Edge of the images; None: any size."""

    @property
    def demodulated(self) -> bool:
        """Whether images of two parts have their smooth phase taken out, too."""

    @property
    def scale(self) -> tuple[float, float]:
        """(percentile, value): which percentile of a magnitude image has which value in the prior's scale."""


@dataclass(frozen=True)
class VAESetup:
    """A scan, seen from a VAE prior.

    Attributes
    ----------
    model
        A.
    first
        The image to begin with (..., y, x), or (..., set, y, x).
    scale
        What the scan's images are to be divided by to be in the prior's scale.
    gamma
        Standard deviation of the noise in each real channel of k-space, in the prior's scale.
    phase
        Factors of modulus 1, of the shape of `first`, that turn the prior's images into the scan's; None for 1.
    """

    model: SenseModel
    first: torch.Tensor
    scale: float
    gamma: float
    phase: torch.Tensor | None

    @classmethod
    def of(cls, scan: Scan, prior: Sized, settings: VAEProblemSettings) -> VAESetup:
        """The setup of a scan. A batch shares one scale, as the slices of a volume must.

        Raises
        ------
        ValueError
            If the scan has no maps or no signal, is not finite, or has another size than the prior.
        """
        model = SenseModel.of(scan)
        check_size(prior, model)
        adjoint = model.H(scan.kspace)
        # the weight only steadies the unmeasured directions; the prior sees to them
        rough = model.solve(adjoint, 0.01, iterations=settings.start_iterations)
        if not bool(torch.isfinite(torch.view_as_real(rough)).all()):
            raise ValueError("the k-space or the coil maps are not finite")
        scale = intensity_scale(rough, prior.scale)
        level = settings.gamma or max(scan.sigma / math.sqrt(2) / scale, GAMMA_FLOOR * prior.scale[1])
        if not math.isfinite(level):
            raise ValueError(f"expected a finite noise level of the scan, got sigma {scan.sigma}")
        phase = smooth_phase(rough) if prior.parts == 1 or prior.demodulated else None
        first = adjoint if settings.start == "zero-filled" else rough
        return cls(model, first, scale, level, phase)

    def own_phase(self, part: slice | EllipsisType) -> torch.Tensor | None:
        """`phase` of some of the slices."""
        return None if self.phase is None else self.phase[part]


def check_size(prior: Sized, model: SenseModel) -> None:
    """Refuse images that a prior of one size cannot take.

    Raises
    ------
    ValueError
        Naming both sizes.
    """
    rows, columns = model.maps.shape[-2:]
    if prior.size is not None and (rows, columns) != (prior.size, prior.size):
        raise ValueError(
            f"prior {prior.name!r} is for images of {prior.size} x {prior.size} only, "
            f"and this scan is of {rows} x {columns}: use a prior of any size, or a matrix of the prior's size"
        )


def check_finite(method: str, what: str, values: torch.Tensor) -> None:
    """Refuse an image, or numbers about it, that are not finite.

    Raises
    ------
    ValueError
        Naming the method and `what`.
    """
    real = torch.view_as_real(values) if values.is_complex() else values
    if not bool(torch.isfinite(real).all()):
        raise ValueError(f"{method}: the {what} is not finite")


def summed(histories: list[list[float]]) -> list[float]:
    """The objective of all pieces of a scan; one that stopped early stays where it is."""
    length = max(len(history) for history in histories)
    padded = [history + history[-1:] * (length - len(history)) for history in histories]
    return [sum(values) for values in zip(*padded, strict=True)]
