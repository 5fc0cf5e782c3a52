"""What every diffusion sampler works on: one inverse problem in the prior's scale; and what is made of its samples.

A sampler is a function of a `Problem`, a `Prior` and its settings. It returns samples (sample, ..., y, x). Everything
around it is the same for all of them and stands here: the scale, the image to begin with, the memory that many slices
times many samples take, the mean and the standard deviation, the account of network evaluations.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import EllipsisType
from typing import Any, TypeVar

import torch
from pydantic import Field, model_validator

from .denoiser_prior import Prior, check_levels
from .forward import SenseModel
from .intensity import intensity_scale
from .linear import combine_sets
from .scan import Progress, Reconstruction, Scan, Settings
from .starting_image import START, Start, starting_image

MAX_PIXELS = 1 << 23
"""Pixels of all samples that are sampled at once: 64 MiB a tensor, and a handful of tensors for each coil."""
GRADIENT_PIXELS = 1 << 18
"""Pixels that a network sees at once where its gradient is wanted: all its activations are kept, about 6 kB a pixel."""

VARIANCE_WINDOW = 17
"""Edge of the window, in pixels, in which `measured_variance` averages: 289 pixels of each sample."""


class SamplerSettings(Settings):
    """What all samplers have in common. Noise levels are per real channel, in the prior's scale."""

    samples: int = Field(8, ge=1, le=256, description="posterior samples; their mean is the image")
    sigma_start: float = Field(1.0, gt=0, le=1e4, description="first noise level, put on the image to begin with")
    sigma_end: float = Field(0.025, gt=0, description="last noise level")
    start: Start = Field(
        "sense",
        description="image to begin with (CCDF, Chung et al. 2022): `noise` is none, and wants a large sigma_start",
    )
    start_iterations: int = Field(15, ge=1, le=200, description="CG iterations of the CG-SENSE image to begin with")
    seed: int = Field(0, ge=0, description="seed of all draws; the same on every device")
    std_factor: float = Field(
        1.0,
        gt=0,
        le=100,
        description="the standard deviation is multiplied by this: a calibration (docs/uncertainty.md)",
    )

    def brief(self) -> Settings:
        """These settings with as few noise levels as still run all of the sampler's code: for a warm-up."""
        return super().brief().model_copy(update={"start": "sense"} if self.start == "pnp-admm" else {})

    @property
    def network_evaluations(self) -> int | None:
        """Network evaluations of one image with all its samples; None where `steps` do not tell."""
        steps = getattr(self, "steps", None)
        return None if steps is None else steps * self.samples + (START.iterations if self.start == "pnp-admm" else 0)

    def images_per_sample(self, coils: int) -> int:
        """How many images are kept for one sample while it is drawn, by which a volume is cut to fit into memory."""
        return 1

    @model_validator(mode="after")
    def _levels_fall(self) -> SamplerSettings:
        if self.sigma_end >= self.sigma_start:
            raise ValueError(f"sigma_end ({self.sigma_end}) must be below sigma_start ({self.sigma_start})")
        return self


@dataclass(frozen=True)
class Problem:
    """`y = A x + n` in the prior's scale.

    Attributes
    ----------
    model
        A, of unit-norm maps.
    kspace
        y (..., coil, y, x).
    adjoint
        A^H y (..., y, x), or (..., set, y, x).
    data_variance
        Variance of n in each real channel.
    start
        Image to begin with, of the shape of `adjoint`.
    samples
        How many samples are drawn.
    generator
        Source of all randomness, on the CPU so that a seed means the same on every device.
    """

    model: SenseModel
    kspace: torch.Tensor
    adjoint: torch.Tensor
    data_variance: float
    start: torch.Tensor
    samples: int
    generator: torch.Generator

    def noise(self) -> torch.Tensor:
        """Complex noise (sample, ..., y, x) of unit variance in each real channel."""
        return self._normal(self.start.shape)

    def kspace_noise(self) -> torch.Tensor:
        """Complex noise (sample, ..., coil, y, x) of unit variance in each real channel."""
        return self._normal(self.kspace.shape)

    def begin(self, sigma: float) -> torch.Tensor:
        """Samples to begin with: the starting image and noise of level `sigma`."""
        return self.start + sigma * self.noise()

    def proximal(self, centre: torch.Tensor, ratio: float, iterations: int) -> torch.Tensor:
        """Mean of the Gaussian that centre +- r and the data give: data consistency, the same in all samplers.

        Solves `(A^H A / s_y^2 + I / r^2) x = A^H y / s_y^2 + centre / r^2` by CG from `centre`; `ratio` is
        r^2 / s_y^2. It takes 1-D transforms only where the mask allows (`SenseModel.normal`).
        """
        ridge = 1 / ratio
        return self.model.solve(self.adjoint + ridge * centre, ridge, centre, iterations=iterations)

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        """A^H (y - A x)."""
        return self.adjoint - self.model.normal(x)

    def _normal(self, shape: torch.Size) -> torch.Tensor:
        drawn = torch.randn((self.samples, *shape, 2), generator=self.generator)
        return torch.view_as_complex(drawn).to(self.start.device)


S = TypeVar("S", bound=SamplerSettings)
Sampler = Callable[[Problem, Prior, S, Progress], torch.Tensor]
"""`sampler(problem, prior, settings, progress)` -> samples (sample, ..., y, x), or (sample, ..., set, y, x)."""


def sample_posterior(
    method: str,
    sampler: Sampler[S],
    scan: Scan,
    prior: Prior,
    settings: S,
    progress: Progress | None = None,
    begin: torch.Tensor | None = None,
) -> Reconstruction:
    """Run a sampler on a scan; the mean of its samples, and the standard deviation of their magnitudes.

    Parameters
    ----------
    method
        For the image's history.
    scan
        A batch shares one intensity scale, as the slices of a volume must. With several sets of maps each set's image
        is one image to the prior.
    begin
        Image to begin with (..., y, x), or (..., set, y, x), in the scan's units; None: the one that `start` says.

    Returns
    -------
    Reconstruction with `std` (None for one sample); zero, both, where the maps are. `info` says method, prior, nfe
    (network evaluations from the data to a sample, as counted), evaluations (all of them, those that the samples share
    first), samples, start, scale and seconds.

    Raises
    ------
    ValueError
        If the scan has no maps or no signal, the prior was not trained on the noise levels asked for, or a sample is
        not finite.
    """
    began = time.perf_counter()
    check_levels(prior, settings.sigma_start, settings.sigma_end)
    model = SenseModel.of(scan)
    adjoint = model.H(scan.kspace)
    # the weight only steadies the unmeasured directions; the sampler replaces them anyway
    rough = model.solve(adjoint, 0.01, iterations=settings.start_iterations)
    scale = intensity_scale(rough, prior.scale)
    shared = 0
    if begin is None:
        begin, shared = starting_image(scan, model, settings.start, rough, adjoint, prior)
    counted = _Counted(prior)
    generator = torch.Generator().manual_seed(settings.seed)
    parts = pieces(scan, settings.samples * settings.images_per_sample(scan.kspace.shape[-3]), MAX_PIXELS)
    images, spreads = [], []
    for number, (part, piece) in enumerate(parts):

        def tell(step: int, steps: int, number: int = number) -> None:
            if progress is not None:
                progress(number * steps + step, len(parts) * steps)

        problem = Problem(
            SenseModel.of(piece), piece.kspace / scale, adjoint[part] / scale, (scan.sigma / scale) ** 2 / 2,
            begin[part] / scale, settings.samples, generator,
        )  # fmt: skip
        bound = counted.for_image(rough[part] / scale)
        samples = scale * combine_sets(sampler(problem, bound, settings, tell), problem.model)
        if not bool(torch.isfinite(torch.view_as_real(samples)).all()):
            raise ValueError(
                f"{method}: a sample is not finite; the settings make it diverge (steps or levels too far)"
            )
        images.append(samples.mean(0))
        spreads.append(settings.std_factor * samples.abs().std(0) if settings.samples > 1 else None)
    std = torch.cat([spread for spread in spreads if spread is not None]) if settings.samples > 1 else None
    each = counted.calls // (len(parts) * settings.samples)
    info = {
        "method": method,
        "prior": prior.name,
        "nfe": shared + each,
        "evaluations": (f"{shared} + " if shared else "") + f"{each} x {settings.samples}",
        "samples": settings.samples,
        "start": settings.start,
        "std_factor": settings.std_factor,
        "scale": scale,
        "seconds": time.perf_counter() - began,
    }
    return Reconstruction(torch.cat(images), std, info)


def conditional_variance(prior: Prior, level: float) -> float:
    """r^2 = s^2 sd^2 / (s^2 + sd^2): variance of each real channel of x0 where x0 + noise of level s is known.

    It is that of a Gaussian of the prior's `sigma_data`: right at s far below it, an upper bound elsewhere.
    """
    image = prior.sigma_data**2
    return level**2 * image / (level**2 + image)


def measured_variance(prior: Prior, level: float, noise: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """r^2 = s^2 J: the variance of x0 given x in each pixel, measured at no cost on the noise that x was made with.

    The covariance of x0 given x is s^2 J, J the Jacobian of D at x (Tweedie's formula, second order). By Stein's lemma
    its diagonal is the mean of noise * D(x) / s, pixel by pixel, where x = something + s * noise. The mean is taken
    over the samples and over `VARIANCE_WINDOW` pixels a side. A Gaussian with the variance of whole images
    (`conditional_variance`) is too wide: images are smooth, and D knows.

    Parameters
    ----------
    noise
        (sample, ..., y, x) of unit variance in each real channel, as drawn for x.
    change
        D(x) less anything that knows nothing of `noise`: the nearer to D, the less the estimate scatters.

    Returns
    -------
    (..., y, x) real, between a twenty-fifth of `conditional_variance` and itself: few samples measure it badly.
    """
    most = conditional_variance(prior, level)
    slope = (noise.conj() * change).real.mean(0) / (2 * level)
    local = torch.nn.functional.avg_pool2d(
        slope.reshape(-1, 1, *slope.shape[-2:]), VARIANCE_WINDOW, 1, VARIANCE_WINDOW // 2, count_include_pad=False
    )
    return (level**2 * local.reshape(slope.shape)).clamp(most / 25, most)


def denoise_with_gradient(
    prior: Prior, x: torch.Tensor, sigma: float, cotangent: Callable[[torch.Tensor, slice], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """D(x, sigma) and J^T v, with J the Jacobian of D at x on real and imaginary parts.

    Parameters
    ----------
    x
        (sample, ..., y, x) complex.
    cotangent
        v for a part of the samples: `cotangent(denoised, which)`, both of those samples alone.

    Returns
    -------
    Both of the shape of `x`. Memory is bounded: samples go through the network a few at a time.
    """
    at_once = max(1, GRADIENT_PIXELS // max(1, x[0].numel()))
    denoised, gradients = [], []
    for first in range(0, len(x), at_once):
        which = slice(first, first + at_once)
        with torch.enable_grad():
            part = x[which].detach().requires_grad_(True)
            clean = prior.denoise(part, sigma)
        vector = cotangent(clean.detach(), which)
        gradients.append(torch.autograd.grad(clean, part, vector)[0])
        denoised.append(clean.detach())
    return torch.cat(denoised), torch.cat(gradients)


class _Counted:
    """A prior that counts evaluations of one sample (first axis): all at once or a few at a time, it is the same."""

    def __init__(self, prior: Prior, parent: _Counted | None = None) -> None:
        self._prior = prior
        self._parent = parent
        self.calls = 0
        self.name, self.sigma_min, self.sigma_max = prior.name, prior.sigma_min, prior.sigma_max

    def __getattr__(self, name: str) -> Any:
        return getattr(self._prior, name)

    @property
    def sigma_data(self) -> float:
        return self._prior.sigma_data

    @property
    def scale(self) -> tuple[float, float]:
        return self._prior.scale

    def for_image(self, image: torch.Tensor) -> Prior:
        return _Counted(self._prior.for_image(image), self._parent or self)

    def denoise(self, x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        (self._parent or self).calls += len(x)
        return self._prior.denoise(x, sigma)


def pieces(scan: Scan, samples: int, most: int) -> list[tuple[slice | EllipsisType, Scan]]:
    """A scan in pieces that fit into memory together with all their samples: the slices of a volume a few at a time.

    Parameters
    ----------
    samples
        Images that are held for each slice.
    most
        Pixels of all images that are held at once; one slice is the least.
    """
    rows, columns = scan.kspace.shape[-2:]
    at_once = max(1, most // (samples * rows * columns))
    if scan.kspace.ndim != 4 or len(scan.kspace) <= at_once:
        return [(..., scan)]
    assert scan.maps is not None
    of_each = scan.maps.ndim >= scan.kspace.ndim  # else one set of maps serves all slices
    parts: list[tuple[slice | EllipsisType, Scan]] = []
    for first in range(0, len(scan.kspace), at_once):
        part = slice(first, first + at_once)
        mask = scan.mask[part] if scan.mask.ndim == 3 else scan.mask
        maps = scan.maps[part] if of_each else scan.maps
        parts.append((part, replace(scan, kspace=scan.kspace[part], mask=mask, maps=maps)))
    return parts
