"""Denoising of fully sampled scans by Tweedie's formula, in one network evaluation: `tweedie`.

Of a full scan the least-squares image is A^H y. With whitened k-space and maps of unit norm its noise is white and
known, so that a diffusion prior's denoiser at that one level gives the mean of all clean images that it may have come
from (SURE-Score, Aali et al. 2023, and paper 2, Fig. 3). No iteration, no weight.

The same evaluation tells whether the noise level was right. Of the posterior mean D(x) with Jacobian J

    E|x - D|^2 = s^2 (n - tr J),    E|D - x0|^2 = s^2 tr J,    Cov[x0 | x] = s^2 J

over n real entries (Tweedie's formula of second order): the first is held against the residual, the second is the error
to be expected, the third the standard deviation. tr J is measured by one Rademacher probe (Hutchinson 1990).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from pydantic import Field

from .denoiser_prior import Prior
from .forward import SenseModel
from .intensity import intensity_scale
from .linear import combine_sets
from .posterior import GRADIENT_PIXELS, denoise_with_gradient, pieces
from .scan import Progress, Reconstruction, Scan, Settings

AGREES = (0.82, 1.22)
"""Noise of the residual over the noise that was told, where nothing is wrong. Measured: 0.98 to 1.02 at the true level,
1.5 to 1.7 at half of it, 0.5 to 0.6 at double (`benchmarks/denoise.md`)."""
LEAST_SAMPLED = 0.98
"""Full scans may miss a line or two at the edge; that changes the noise by less than its level is known."""
LEAST_REMOVED = 0.05
"""A denoiser that takes away less than this share of the noise does not tell how much there is."""
STD_WINDOW = 9
"""Edge, in pixels, of the window in which the variance is averaged: one probe gives it with much scatter."""


class TweedieSettings(Settings):
    """Settings of `tweedie`."""

    sigma: float | None = Field(
        None,
        gt=0,
        description="noise of each real channel of the k-space, in its own units (whitened by a noise scan: 1 is that "
        "scan's); null: what the scan says",
    )
    seed: int = Field(0, ge=0, description="seed of the probe, and of the noise where there are no maps")

    @property
    def network_evaluations(self) -> int:
        """One, with its gradient."""
        return 1

    def brief(self) -> Settings:
        """The noise level of whatever scan it is warmed up with, since `sigma` is in the units of a real one."""
        return self.model_copy(update={"sigma": None})


def tweedie(scan: Scan, prior: Prior, settings: TweedieSettings, progress: Progress | None = None) -> Reconstruction:
    """Denoise the least-squares image of a fully sampled scan: D(A^H y, sigma), and its standard deviation.

    Parameters
    ----------
    scan
        A batch shares one intensity scale, as the slices of a volume must.

    Returns
    -------
    Reconstruction; image and `std` are zero where the maps are. `info` says method, prior, nfe, sigma (noise of each
    real channel), level (the same in the prior's scale), residual (rms of noisy less denoised, over sigma),
    residual_correlation (of neighbouring pixels; 0 is white), noise_found (the noise that the residual speaks of, over
    sigma; 1 where the level is right; left out where the prior leaves the image as it is), expected_rmse (of each real
    channel), scale, seconds, and a `warning` where the noise level seems to be wrong.

    Raises
    ------
    ValueError
        If the scan is undersampled, has no maps, no signal or no noise level, the noise lies outside the levels that
        the prior was trained on, or the image is not finite.
    """
    began = time.perf_counter()
    if float(scan.mask.float().mean()) < LEAST_SAMPLED:
        raise ValueError(
            f"tweedie denoises fully sampled scans, and this one has R = {scan.effective_r:.2f}: "
            "use pnp-admm, or another method that reconstructs"
        )
    model = SenseModel.of(scan)
    sigma = scan.sigma / 2**0.5 if settings.sigma is None else settings.sigma
    if not sigma > 0:
        raise ValueError(f"tweedie needs the noise level of the scan, found {sigma:g}: give `sigma`")
    image = model.H(scan.kspace)
    measured = (model.maps != 0).any(-3).expand(image.shape)
    scale = intensity_scale(image, prior.scale)
    level = sigma / scale
    if not prior.sigma_min * 0.999 <= level <= prior.sigma_max * 1.001:
        raise ValueError(
            f"tweedie: the noise is {level:.3g} in the scale of prior {prior.name!r}, "
            f"which was trained from {prior.sigma_max:.6g} to {prior.sigma_min:.6g}"
        )
    generator = torch.Generator().manual_seed(settings.seed)
    # the prior knows no image of which a part has no noise
    air = torch.view_as_complex(torch.randn((*image.shape, 2), generator=generator)).to(image.device)
    noisy = torch.where(measured, image / scale, level * air)
    signs = torch.randint(0, 2, (*image.shape, 2), generator=generator).float().mul(2).sub(1)
    probe = torch.view_as_complex(signs).to(image.device) * measured

    parts = pieces(scan, model.maps.shape[-4] if model.sets else 1, GRADIENT_PIXELS)
    denoised, products = [], []
    for number, (part, _) in enumerate(parts):
        x = noisy[part].unsqueeze(0)
        clean, product = denoise_with_gradient(prior.for_image(x[0]), x, level, _Turned(probe[part]))
        denoised.append(clean[0])
        products.append((_phase(clean).conj() * product)[0])
        if progress is not None:
            progress(number + 1, len(parts))
    clean, product = torch.cat(denoised) * measured, torch.cat(products)
    along, across = probe.real * product.real, probe.imag * product.imag  # J of the magnitude, and of the phase
    if not bool(torch.isfinite(torch.view_as_real(clean)).all()):
        raise ValueError(f"tweedie: the image is not finite; the data or the weights of prior {prior.name!r} are not")
    slope = float((along + across).sum() / (2 * measured.sum()))
    found = _Residual.of((noisy - clean) * measured, measured, slope, level)
    info = {
        "method": "tweedie",
        "prior": prior.name,
        "nfe": 1,
        "sigma": sigma,
        "level": level,
        "residual": found.rms,
        "residual_correlation": found.correlation,
        **({} if found.noise is None else {"noise_found": found.noise}),
        "expected_rmse": sigma * found.slope**0.5,
        "scale": scale,
        "seconds": time.perf_counter() - began,
    }
    if (doubt := found.doubt(sigma)) is not None:
        info["warning"] = doubt
    spread = scale * level * _local_mean(along, measured).clamp(0, 1).sqrt()
    return Reconstruction(scale * combine_sets(clean, model), _combine_spread(spread, clean, model), info)


@dataclass(frozen=True)
class _Turned:
    """The probe as `denoise_with_gradient` asks for it, its real part along the denoised image: the error of the
    magnitude is not that of the phase, which is smoother."""

    probe: torch.Tensor

    def __call__(self, denoised: torch.Tensor, which: slice) -> torch.Tensor:
        return _phase(denoised) * self.probe


def _phase(image: torch.Tensor) -> torch.Tensor:
    """Factors of modulus 1; 1 where the image is zero."""
    return torch.where(image == 0, torch.ones_like(image), torch.sgn(image))


@dataclass(frozen=True)
class _Residual:
    """What the residual of one denoising says.

    Attributes
    ----------
    rms
        Over the noise that was told.
    correlation
        Of neighbouring pixels, the mean over both axes.
    slope
        tr J / n, not below zero.
    noise
        The noise that is there over the noise that was told; None where the residual does not tell.
    """

    rms: float
    correlation: float
    slope: float
    noise: float | None

    @classmethod
    def of(cls, residual: torch.Tensor, measured: torch.Tensor, slope: float, level: float) -> _Residual:
        """Of `residual` (..., y, x), zero where nothing was `measured`."""
        energy = residual.abs().square().sum()
        neighbours = [
            (residual.narrow(axis, 1, length - 1) * residual.narrow(axis, 0, length - 1).conj()).real.sum()
            for axis, length in ((-2, residual.shape[-2]), (-1, residual.shape[-1]))
        ]
        power = float(energy / (2 * measured.sum())) / level**2
        slope = max(slope, 0.0)
        removed = 1 - slope
        noise = (power / removed) ** 0.5 if removed > LEAST_REMOVED else None
        correlation = float(sum(neighbours) / (2 * energy)) if energy > 0 else 0.0
        return cls(power**0.5, correlation, slope, noise)

    def doubt(self, sigma: float) -> str | None:
        """What is wrong with the noise level, None where nothing is."""
        if self.noise is None or AGREES[0] <= self.noise <= AGREES[1]:
            return None
        if self.noise > 1:
            much = "too low, and noise is left in the image, or the image has texture that the prior does not know"
        else:
            much = "too high, and detail was smoothed away"
        return (
            f"the residual has {self.noise:.2f} times the noise of the level {sigma:.3g} "
            f"(expected {AGREES[0]} to {AGREES[1]}): this level is {much}"
        )


def _local_mean(values: torch.Tensor, measured: torch.Tensor) -> torch.Tensor:
    """Mean of `values` (..., y, x) over the measured pixels of a window around each; 0 where there are none."""

    def pooled(x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, 1, *x.shape[-2:])
        return torch.nn.functional.avg_pool2d(flat, STD_WINDOW, 1, STD_WINDOW // 2).reshape(x.shape)

    return pooled(values) / pooled(measured.to(values.dtype)).clamp_min(1e-6) * measured


def _combine_spread(spread: torch.Tensor, images: torch.Tensor, model: SenseModel) -> torch.Tensor:
    """Standard deviation (..., y, x) of the magnitude of `combine_sets`; the images of several sets are independent."""
    if not model.sets:
        return spread
    energy = images.abs().square()
    total = energy.sum(-3).clamp_min(torch.finfo(spread.dtype).tiny)
    return ((energy * spread.square()).sum(-3) / total).sqrt()
