"""How well a mask serves a prior, and the gradient of that by every line or point: what masks are learned by.

A mask is a tensor of weights w (y, 1) or (y, x), 1 where sampled. It weighs the squared errors of the data, so that
A^H A = S^H F^H w F S: for weights of 0 and 1 that is the mask itself, and the slope at 0 says what a line not sampled
would bring. Loss: || x - x0 ||^2 / || x0 ||^2 of the one-step estimate x.

Three estimates, all of Ravula et al. (2023, eq. 14) or after it:

- `posterior-mean`: x = D(x_t) - gamma grad || A D(x_t) - y ||^2, theirs. The gradient of the loss goes through the
  network a second time.
- `data-consistency`: x solves (A^H A + ridge) x = A^H y + ridge D(x_t) by CG. D(x_t) does not depend on the mask, and
  the solution is differentiated by a second CG (implicit function theorem): the network is only evaluated.
- `reconstruction`: the same around what plug-and-play ADMM has come to with the mask's own data after a few iterations,
  in place of D of the truth with noise: lines are worth what the reconstruction lacks. The iterations are held fixed.
  (Without ADMM's dual variable images are worse, and patterns are found that are good for those alone.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from pydantic import Field, model_validator
from scanprior.models.denoiser_prior import Prior
from scanprior.models.forward import SenseModel
from scanprior.models.fourier import fft2c
from scanprior.models.intensity import intensity_scale
from scanprior.models.plug_and_play import PlugAndPlaySettings, plug_and_play
from scanprior.models.posterior import conditional_variance
from scanprior.models.scan import Scan, Settings
from scanprior.sim.evaluation import FullScan

LOG_SIGMA = (-1.2, 1.2)
"""Mean and standard deviation of ln sigma where it is drawn (Karras et al. 2022)."""

Kind = Literal["posterior-mean", "data-consistency", "reconstruction"]


class ObjectiveSettings(Settings):
    """What a mask is judged by."""

    kind: Kind = Field("reconstruction", description="the one-step estimate")
    sigma: float | None = Field(
        None, gt=0, description="noise level of x_t; none: drawn anew each time. Not of `reconstruction`"
    )
    gamma: float = Field(1.0, gt=0, description="step on the data of `posterior-mean`")
    max_ratio: float = Field(50.0, gt=0, description="cap of the prior's variance over that of the data")
    cg_iterations: int = Field(10, ge=1, le=200, description="CG iterations of each solution")
    sigma_start: float = Field(0.5, gt=0, description="first level of `reconstruction`")
    sigma_end: float = Field(0.07, gt=0, description="last level of `reconstruction`")
    evaluations: int = Field(10, ge=1, le=100, description="network evaluations of `reconstruction`")

    @model_validator(mode="after")
    def _read(self) -> ObjectiveSettings:
        if self.kind == "reconstruction" and self.sigma is not None:
            raise ValueError("sigma: not of the objective reconstruction, whose levels are sigma_start to sigma_end")
        if self.sigma_end > self.sigma_start:
            raise ValueError(f"sigma_end ({self.sigma_end}) must not be above sigma_start ({self.sigma_start})")
        return self


@dataclass(frozen=True)
class Example:
    """A training image in the prior's scale.

    Attributes
    ----------
    truth
        (y, x) complex.
    kspace
        (coil, y, x), fully sampled, with noise.
    maps
        (coil, y, x), unit norm; ones for a single coil.
    data_variance
        Of the noise in each real channel of `kspace`.
    """

    truth: torch.Tensor
    kspace: torch.Tensor
    maps: torch.Tensor
    data_variance: float

    @classmethod
    def of(cls, scan: FullScan, prior: Prior, device: torch.device | str = "cpu") -> Example:
        """A simulated scan, in this prior's scale (by its truth: training images are known)."""
        truth = torch.from_numpy(scan.truth).to(device)
        scale = intensity_scale(truth, prior.scale)
        kspace, maps = (torch.from_numpy(part).to(device) for part in (scan.kspace, scan.maps))
        return cls(truth / scale, kspace / scale, maps, (scan.sigma / scale) ** 2 / 2)

    @property
    def energy(self) -> torch.Tensor:
        """|| x0 ||^2."""
        return _power(self.truth)


class Judge(Protocol):
    """One example with all of its draws made: the loss as a function of the weights alone."""

    def loss(self, weights: torch.Tensor) -> float:
        """Of weights (y, 1) or (y, x)."""

    def loss_and_gradient(self, weights: torch.Tensor) -> tuple[float, torch.Tensor]:
        """The loss, and its gradient by each weight."""


class DataConsistency:
    """The loss of the solution of (A^H A + ridge) x = A^H y + ridge * centre."""

    def __init__(self, example: Example, centre: torch.Tensor, ridge: float, iterations: int) -> None:
        self.example = example
        self.centre = centre
        self.ridge = ridge
        self.iterations = iterations

    def estimate(self, weights: torch.Tensor) -> torch.Tensor:
        """x (y, x)."""
        return _consistent(self.example, weights, self.centre, self.ridge, self.iterations)

    def loss(self, weights: torch.Tensor) -> float:
        """See `Judge`."""
        return float(_power(self.estimate(weights) - self.example.truth) / self.example.energy)

    def loss_and_gradient(self, weights: torch.Tensor) -> tuple[float, torch.Tensor]:
        """See `Judge`. With z = (A^H A + ridge)^-1 dL/dx the gradient is Re (F S z)^* (y - F S x), all coils' sum."""
        example = self.example
        x = self.estimate(weights)
        error = x - example.truth
        model = SenseModel(example.maps, weights.sqrt())
        z = model.solve(2 * error / example.energy, self.ridge, iterations=self.iterations)
        left, right = fft2c(example.maps * z), example.kspace - fft2c(example.maps * x)
        by_point = (torch.view_as_real(left) * torch.view_as_real(right)).sum((0, -1))
        return float(_power(error) / example.energy), by_point.sum_to_size(weights.shape)


class PosteriorMean:
    """The loss of D(x_t) - gamma grad_{x_t} || A D(x_t) - y ||^2 (Ravula et al. 2023, eq. 14)."""

    def __init__(self, example: Example, prior: Prior, noisy: torch.Tensor, sigma: float, gamma: float) -> None:
        self.example = example
        self.gamma = gamma
        with torch.enable_grad():
            self._noisy = noisy.detach().requires_grad_(True)
            self._clean = prior.denoise(self._noisy, sigma)
            self._residual = (
                torch.view_as_real(fft2c(example.maps * self._clean) - example.kspace).square().sum((0, -1))
            )

    def _loss(self, weights: torch.Tensor, differentiable: bool) -> torch.Tensor:
        with torch.enable_grad():
            data = (weights * self._residual).sum()
        (slope,) = torch.autograd.grad(data, self._noisy, create_graph=differentiable, retain_graph=True)
        with torch.set_grad_enabled(differentiable):
            return _power(self._clean.detach() - self.gamma * slope - self.example.truth) / self.example.energy

    def loss(self, weights: torch.Tensor) -> float:
        """See `Judge`."""
        return float(self._loss(weights.detach(), differentiable=False))

    def loss_and_gradient(self, weights: torch.Tensor) -> tuple[float, torch.Tensor]:
        """See `Judge`."""
        own = weights.detach().clone().requires_grad_(True)
        loss = self._loss(own, differentiable=True)
        (gradient,) = torch.autograd.grad(loss, own)
        return float(loss.detach()), gradient


def judge(
    example: Example, prior: Prior, settings: ObjectiveSettings, weights: torch.Tensor, generator: torch.Generator
) -> Judge:
    """Make the draws of one example.

    Parameters
    ----------
    weights
        The mask that `reconstruction` begins with; the others do not ask.
    generator
        Of noise and noise level, on the CPU.
    """
    ridge_least = 1 / settings.max_ratio
    if settings.kind == "reconstruction":
        return _reconstructing(example, prior, settings, weights)
    sigma = settings.sigma
    if sigma is None:
        mean, spread = LOG_SIGMA
        sigma = float((mean + spread * torch.randn((), generator=generator)).exp())
        sigma = min(max(sigma, prior.sigma_min), prior.sigma_max)
    noise = torch.view_as_complex(torch.randn((*example.truth.shape, 2), generator=generator)).to(example.truth)
    noisy = example.truth + sigma * noise
    prior = prior.for_image(example.truth)
    if settings.kind == "posterior-mean":
        return PosteriorMean(example, prior, noisy, sigma, settings.gamma)
    ridge = max(example.data_variance / conditional_variance(prior, sigma), ridge_least)
    with torch.no_grad():
        clean = prior.denoise(noisy, sigma)
    return DataConsistency(example, clean, ridge, settings.cg_iterations)


def _reconstructing(
    example: Example, prior: Prior, settings: ObjectiveSettings, weights: torch.Tensor
) -> DataConsistency:
    with torch.no_grad():
        kept = PlugAndPlaySettings.model_validate(
            {
                "iterations": settings.evaluations, "sigma": settings.sigma_end, "sigma_start": settings.sigma_start,
                "max_ratio": settings.max_ratio, "cg_iterations": settings.cg_iterations, "final_sigma": None,
            }
        )  # fmt: skip
        root = weights.sqrt()
        scan = Scan(example.kspace * root, weights > 0, example.maps, math.sqrt(2 * example.data_variance))
        found = plug_and_play(scan, SenseModel(example.maps, root), prior, kept)
    return DataConsistency(example, found.scale * found.centre, found.ridge, settings.cg_iterations)


def _consistent(
    example: Example, weights: torch.Tensor, centre: torch.Tensor, ridge: float, iterations: int
) -> torch.Tensor:
    model = SenseModel(example.maps, weights.sqrt())
    adjoint = SenseModel(example.maps, weights).H(example.kspace)
    return model.solve(adjoint + ridge * centre, ridge, centre, iterations=iterations)


def _power(x: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(x).square().sum()
