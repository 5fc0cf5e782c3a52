"""What all methods with a VAE prior make of a scan before they begin: size, scale, phase and noise level."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import EllipsisType
from typing import Protocol

import torch

from .forward import SenseModel
from .magnitude_prior import smooth_phase
from .posterior import intensity_scale
from .scan import Scan

GAMMA_FLOOR = 1e-3
"""Least noise level taken, in units of the bright parts of the image: of a scan without noise (a simulated one) the
objective would have nothing but the data in it, and single precision could not tell one image from the other."""


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
    adjoint
        A^H y.
    rough
        The CG-SENSE image (..., y, x), or (..., set, y, x).
    scale
        What the scan's images are to be divided by to be in the prior's scale.
    gamma
        Standard deviation of the noise in each real channel of k-space, in the prior's scale.
    phase
        Factors of modulus 1, of the shape of `rough`, that turn the prior's images into the scan's; None for 1.
    """

    model: SenseModel
    adjoint: torch.Tensor
    rough: torch.Tensor
    scale: float
    gamma: float
    phase: torch.Tensor | None

    @classmethod
    def of(cls, scan: Scan, prior: Sized, start_iterations: int = 15, gamma: float | None = None) -> VAESetup:
        """The setup of a scan. A batch shares one scale, as the slices of a volume must.

        Parameters
        ----------
        start_iterations
            CG iterations of `rough`.
        gamma
            The noise level if it is not to be that of the scan.

        Raises
        ------
        ValueError
            If the scan has no maps or no signal, is not finite, or has another size than the prior.
        """
        model = SenseModel.of(scan)
        check_size(prior, model)
        adjoint = model.H(scan.kspace)
        # the weight only steadies the unmeasured directions; the prior sees to them
        rough = model.solve(adjoint, 0.01, iterations=start_iterations)
        if not bool(torch.isfinite(torch.view_as_real(rough)).all()):
            raise ValueError("the k-space or the coil maps are not finite")
        scale = intensity_scale(rough, prior.scale)
        level = gamma or max(scan.sigma / math.sqrt(2) / scale, GAMMA_FLOOR * prior.scale[1])
        if not math.isfinite(level):
            raise ValueError(f"expected a finite noise level of the scan, got sigma {scan.sigma}")
        phase = smooth_phase(rough) if prior.parts == 1 or prior.demodulated else None
        return cls(model, adjoint, rough, scale, level, phase)

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
