"""The inverse problem as a VAE prior sees it: real images of one or two parts, in the prior's scale, without phase.

What all methods with a VAE prior share: the scale, the phase, the way from parts to k-space and back, and the refusal
of sizes that do not fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch

from .forward import SenseModel
from .least_squares import sample_count
from .linear import combine_sets
from .magnitude_prior import smooth_phase
from .posterior import intensity_scale
from .scan import Scan


class MeanDecoder(Protocol):
    """What the search in a generator's range needs of a VAE prior. Tensors are real; images (batch, parts, y, x)."""

    @property
    def name(self) -> str:
        """For the image's history."""

    @property
    def scale(self) -> tuple[float, float]:
        """(percentile, value): which percentile of a magnitude image has which value in the prior's scale."""

    @property
    def parts(self) -> int:
        """1: real images, the phase taken out; 2: real and imaginary part."""

    @property
    def demodulated(self) -> bool:
        """Whether images of two parts have had their smooth phase taken out, too."""

    @property
    def size(self) -> int | None:
        """Edge of the images, None where any size will do."""

    def latent_shape(self, shape: tuple[int, int]) -> tuple[int, ...]:
        """Shape of z, without batch, for images (y, x)."""

    def encode(self, e: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and logarithm of the variance of z given images."""

    def mean(self, z: torch.Tensor) -> torch.Tensor:
        """G(z), differentiable."""


@dataclass(frozen=True)
class VAEProblem:
    """`y = A (phase * x) + n` in the prior's scale; x are real images e (batch, parts, y, x).

    A scan of several slices is a batch. With several sets of maps each set's image is an image of its own to the prior:
    the images' batch is then batch * sets, and `misfit` still has one value for each scan.

    Attributes
    ----------
    model
        A.
    kspace
        y (..., coil, y, x).
    variance
        gamma^2: variance of n in each real channel.
    phase
        Of modulus 1, of the shape of A's images: (..., y, x), or (..., set, y, x).
    parts
        1 or 2.
    scale
        What the scan's own images are divided by.
    start
        The CG-SENSE image as e.
    """

    model: SenseModel
    kspace: torch.Tensor
    variance: float
    phase: torch.Tensor
    parts: int
    scale: float
    start: torch.Tensor

    @classmethod
    def of(cls, scan: Scan, prior: MeanDecoder, start_iterations: int = 15) -> VAEProblem:
        """The problem of a scan; scale and phase are those of its CG-SENSE image of so many iterations.

        Raises
        ------
        ValueError
            If the scan has no maps, no signal, no noise level, or another size than the prior's images.
        """
        check_size(prior, (scan.kspace.shape[-2], scan.kspace.shape[-1]))
        if not (scan.sigma > 0 and math.isfinite(scan.sigma)):
            raise ValueError(
                f"the scan's noise level sigma is {scan.sigma}, and weighing the data against a prior wants one above 0"
            )
        model = SenseModel.of(scan)
        # the weight only steadies the unmeasured directions
        rough = model.solve(model.H(scan.kspace), 0.01, iterations=start_iterations)
        scale = intensity_scale(rough, prior.scale)
        demodulated = prior.parts == 1 or prior.demodulated
        phase = smooth_phase(rough) if demodulated else torch.ones_like(rough)
        problem = cls(model, scan.kspace / scale, (scan.sigma / scale) ** 2 / 2, phase, prior.parts, scale, rough.real)
        return cls(**{**vars(problem), "start": problem.as_parts(rough / scale)})

    def images(self, e: torch.Tensor) -> torch.Tensor:
        """e (batch, parts, y, x) to complex images with their phase, of A's shape."""
        complex_image = torch.complex(e[:, 0], e[:, 1]) if self.parts == 2 else e[:, 0]
        return complex_image.reshape(self.phase.shape) * self.phase

    def as_parts(self, images: torch.Tensor) -> torch.Tensor:
        """Complex images of A's shape to e: the adjoint of `images`, and its inverse where there are two parts."""
        turned = (images * self.phase.conj()).reshape(-1, *self.phase.shape[-2:])
        return torch.stack([turned.real, turned.imag][: self.parts], 1)

    def misfit(self, e: torch.Tensor) -> torch.Tensor:
        """||A x - y||^2 of each scan of the batch: (batch,), differentiable."""
        residual = torch.view_as_real(self.model(self.images(e)) - self.kspace)
        return residual.square().reshape(-1, math.prod(self.kspace.shape[-3:]) * 2).sum(-1)

    def normal(self, e: torch.Tensor) -> torch.Tensor:
        """The normal operator on e, A^H A with the phase around it."""
        return self.as_parts(self.model.normal(self.images(e)))

    @property
    def adjoint(self) -> torch.Tensor:
        """A^H y as e."""
        return self.as_parts(self.model.H(self.kspace))

    @property
    def measured(self) -> torch.Tensor:
        """How many complex samples each scan of the batch has, all coils: (batch,)."""
        return sample_count(self.kspace, self.model).reshape(-1)

    def per_scan(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the sets of maps of values (batch * sets,): (batch,)."""
        sets = self.model.image_shape[0] if self.model.sets else 1
        return values.reshape(-1, sets).sum(-1)

    def finished(self, e: torch.Tensor, method: str) -> torch.Tensor:
        """The image (..., y, x) in the scan's own units.

        Raises
        ------
        ValueError
            If it is not finite.
        """
        image = self.scale * combine_sets(self.images(e), self.model)
        check_finite(method, "image", torch.view_as_real(image))
        return image


def check_size(prior: MeanDecoder, shape: tuple[int, int]) -> None:
    """Refuse images that a prior of one size cannot take.

    Raises
    ------
    ValueError
        Naming both sizes.
    """
    if prior.size is not None and shape != (prior.size, prior.size):
        raise ValueError(
            f"prior {prior.name!r} is for images of {prior.size} x {prior.size}, "
            f"and this scan's are {shape[0]} x {shape[1]} (y, x)"
        )


def check_finite(method: str, what: str, values: torch.Tensor) -> None:
    """Refuse numbers that are not.

    Raises
    ------
    ValueError
        Naming the method and `what`.
    """
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{method}: the {what} is not finite: the settings make it diverge, or the prior is damaged")
