"""Plug-and-play ADMM (Venkatakrishnan et al. 2013; Ryu et al. 2019): a denoiser stands where a proximal operator would.

What Duff et al. 2023 compare with (their eq. 14-16), here with the denoisers of diffusion priors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator

from .denoiser_prior import Prior, check_levels
from .forward import SenseModel
from .intensity import intensity_scale
from .scan import Progress, Scan, Settings
from .solvers import inner

_AIR = 0.01
"""A slice with less than this share of the energy of its volume's brightest is judged by that share."""
_RISE, _AT_REST = 2.0, 0.02
"""The primal residual has risen where it is twice its least so far and above this share of the image. Where it comes to
rest it falls below 0.01 within 20 iterations and stays there."""


class PlugAndPlaySettings(Settings):
    """Settings of `plug_and_play`. Noise levels are per real channel, in the prior's scale."""

    iterations: int = Field(20, ge=1, le=10000, description="the most iterations, of one network evaluation (NFE) each")
    sigma: float = Field(0.07, gt=0, le=1e4, description="noise level of the denoiser: its strength")
    sigma_start: float | None = Field(
        0.5,
        gt=0,
        le=1e4,
        description="level of the first iteration, from where it falls geometrically to sigma; none: sigma throughout",
    )
    decrease: int = Field(
        12, ge=1, le=10000, description="iterations in which it falls, at most two thirds of all; read with sigma_start"
    )
    penalty: float = Field(
        0.7,
        gt=0,
        description="rho sigma^2: 1 takes the denoiser for the proximal operator of its own prior, more weighs the "
        "denoised image higher against the data",
    )
    max_ratio: float = Field(
        50.0,
        gt=0,
        description="cap of sigma^2 / penalty over the variance of the data: maps are never as exact as quiet data",
    )
    tolerance: float = Field(
        1e-3,
        ge=0,
        lt=1,
        description="stop when ||x - v|| and the change of v are this share of ||v|| or less",
    )
    cg_iterations: int = Field(10, ge=1, le=1000, description="the most CG iterations of each step on the data")
    final_sigma: float | None = Field(
        0.01,
        gt=0,
        le=1e4,
        description="level of a last denoising, which takes what noise is left out of flat parts; none: none",
    )
    start: Literal["sense", "zero-filled"] = Field("sense", description="image to begin with")
    start_iterations: int = Field(15, ge=1, le=200, description="CG iterations of the CG-SENSE image to begin with")

    @model_validator(mode="after")
    def _level_falls(self) -> PlugAndPlaySettings:
        if self.sigma_start is not None and self.sigma_start < self.sigma:
            raise ValueError(f"sigma_start ({self.sigma_start}) must not be below sigma ({self.sigma})")
        if self.final_sigma is not None and self.final_sigma > self.sigma:
            raise ValueError(f"final_sigma ({self.final_sigma}) must not be above sigma ({self.sigma})")
        return self

    def level(self, iteration: int) -> float:
        """The denoiser's noise level in this iteration, counted from 0."""
        # a few iterations must come to sigma too: the last third of them stays there
        decrease = min(self.decrease, max(1, 2 * self.iterations // 3))
        if self.sigma_start is None or iteration >= decrease:
            return self.sigma
        return self.sigma_start * (self.sigma / self.sigma_start) ** (iteration / decrease)

    def brief(self) -> PlugAndPlaySettings:
        """These settings with as few iterations as still run all of the method's code: for a warm-up."""
        return self.model_copy(update={"iterations": 2})


@dataclass(frozen=True)
class PnPImage:
    """What `plug_and_play` found.

    Attributes
    ----------
    image
        v (..., y, x), or (..., set, y, x); in the prior's scale.
    denoised
        The same after the last denoising.
    centre
        v - u: what the next step on the data would draw its image to, with the weight `ridge`.
    scale
        What the image is to be multiplied by.
    residuals
        Primal ||x - v|| and dual ||v - v_before|| over ||v||, of the worst slice in each iteration.
    stopped
        `tolerance` or `iterations`.
    evaluations
        Of the network, for `denoised`.
    """

    image: torch.Tensor
    denoised: torch.Tensor
    centre: torch.Tensor
    ridge: float
    scale: float
    residuals: list[tuple[float, float]]
    stopped: str
    evaluations: int

    @property
    def iterations(self) -> int:
        """Iterations, of one network evaluation each."""
        return len(self.residuals)


def plug_and_play(
    scan: Scan, model: SenseModel, prior: Prior, settings: PlugAndPlaySettings, progress: Progress | None = None
) -> PnPImage:
    """Alternate between the data and a denoiser until they agree on one image.

    With s_y^2 the noise of each real channel of the data, D the denoiser of level s and rho = penalty / s^2:

    - x = argmin ||A x - y||^2 / (2 s_y^2) + rho ||x - (v - u)||^2 / 2, by CG from the x before
    - v = D(x + u, s)
    - u = u + x - v, the scaled dual variable; it is rescaled where rho changes

    and at last D(v, `final_sigma`).

    For a Gaussian prior D is the proximal operator of the prior over rho's own s, and the fixed point is the posterior
    mean of a prior `penalty` times as strong, whatever s is; s_y^2 counts as no less than s^2 / (penalty max_ratio)
    there. For any other prior the denoiser only stands for one: nothing is minimised, and only a fixed s can come to
    rest.

    Parameters
    ----------
    scan
        A batch shares one intensity scale. With several sets of maps each set's image is one image to the prior.

    Raises
    ------
    ValueError
        If the scan has no maps or no signal, the prior was not trained on the noise levels asked for, the image is not
        finite, or it moves away from the data instead of coming to rest: some denoisers (the prior `magnitude`) do so.
    """
    check_levels(prior, settings.level(0), settings.final_sigma or settings.sigma, ("sigma_start", "final_sigma"))
    adjoint = model.H(scan.kspace)
    batch_dims = adjoint.ndim - len(model.image_shape)
    # the weight only steadies the unmeasured directions
    rough = model.solve(adjoint, 0.01, iterations=settings.start_iterations)
    scale = intensity_scale(rough, prior.scale)
    bound = prior.for_image(rough / scale)
    data = adjoint / scale
    data_variance = (scan.sigma / scale) ** 2 / 2

    x = v = data if settings.start == "zero-filled" else rough / scale
    u = torch.zeros_like(x)
    residuals: list[tuple[float, float]] = []
    level_before, ridge = settings.level(0), 0.0
    stopped = "iterations"
    for iteration in range(settings.iterations):
        level = settings.level(iteration)
        u, level_before = u * (level / level_before) ** 2, level
        ridge = max(settings.penalty * data_variance / level**2, 1 / settings.max_ratio)
        x = model.solve(data + ridge * (v - u), ridge, x, iterations=settings.cg_iterations, tolerance=1e-5)
        last, v = v, bound.denoise(x + u, level)
        u = u + x - v
        size = inner(v, v, batch_dims)
        # of a slice of air alone any change is large
        size = size.clamp_min(_AIR * float(size.amax()))
        primal, dual = (
            float(torch.where(size > 0, inner(d, d, batch_dims) / size, 0.0).amax().sqrt()) for d in (x - v, v - last)
        )
        if not (math.isfinite(primal) and math.isfinite(dual)):
            raise ValueError(
                f"pnp-admm: the image is not finite after {iteration + 1} iterations: the denoiser and the data drive "
                "each other apart (try a larger sigma or penalty)"
            )
        residuals.append((primal, dual))
        at_sigma = [p for n, (p, _) in enumerate(residuals) if settings.level(n) == settings.sigma]
        if at_sigma and primal > max(_RISE * min(at_sigma), _AT_REST):
            raise ValueError(
                f"pnp-admm: after {iteration + 1} iterations the image and its denoised form differ by {primal:.3g} of "
                f"it, having come as near as {min(at_sigma):.3g}: prior {prior.name!r} and the data drive each other "
                "apart (try a larger sigma or penalty, or another prior)"
            )
        if progress is not None:
            progress(iteration + 1, settings.iterations)
        if max(primal, dual) <= settings.tolerance and level == settings.sigma:
            stopped = "tolerance"
            break
    denoised, evaluations = v, len(residuals)
    if settings.final_sigma is not None:
        denoised, evaluations = bound.denoise(v, settings.final_sigma), evaluations + 1
    return PnPImage(v, denoised, v - u, ridge, scale, residuals, stopped, evaluations)
