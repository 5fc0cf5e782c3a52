"""What a prior believes, as rows of pictures: draws, residuals, covariances with chosen pixels, denoised examples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scanprior.models.diffusion_prior import DiffusionPrior
from scanprior.models.intensity import intensity_scale
from scanprior.models.magnitude_prior import MagnitudePrior, smooth_phase
from scipy.ndimage import gaussian_filter, gaussian_gradient_magnitude, maximum_filter

from .augmentation import fourier_resize

Pixel = tuple[int, int]
DRAWS = 4
STEPS = 40
STD_DRAWS = 200  # a standard deviation from so many draws is right within 5 %
ZOOM = 16
"""Half the edge, in pixels, of the window in which a covariance is shown enlarged."""


@dataclass
class Panel:
    """One picture.

    Attributes
    ----------
    picture
        (y, x) real.
    title
        What it is.
    limit
        Of a signed picture the value of the full colour, red for plus and blue for minus; None: grey from 0 to `top`.
    top
        Value of white, of a grey picture.
    anatomy
        (y, x) from 0 to 1: the signed picture is laid over it.
    star
        Pixel (y, x) to mark.
    zoom
        Show the `ZOOM` pixels around `star` alone.
    """

    picture: np.ndarray
    title: str
    limit: float | None = None
    top: float = 1.0
    anatomy: np.ndarray | None = None
    star: Pixel | None = None
    zoom: bool = False


@dataclass
class Row:
    """Panels beside each other, with one title."""

    title: str
    panels: list[Panel]


def prepare_image(image: np.ndarray, prior: Any, size: int | None) -> torch.Tensor:
    """An image (y, x), magnitude or complex, in the prior's scale; (y, x) complex64.

    Parameters
    ----------
    size
        None: as it is; else it is put into a square of air, of at least that edge, and shrunk to it in k-space.

    Raises
    ------
    ValueError
        If it is zero nearly everywhere.
    """
    if size is not None and image.shape != (size, size):
        edge = max(size, *image.shape)
        before = [(edge - length) // 2 for length in image.shape]
        square = np.pad(image, [(b, edge - length - b) for b, length in zip(before, image.shape, strict=True)])
        image = fourier_resize(square, size / edge)
    x = torch.as_tensor(image.astype(np.complex64))
    return x / intensity_scale(x, prior.scale)


def choose_pixels(anatomy: np.ndarray, edges: int = 2, flat: int = 2) -> list[Pixel]:
    """Pixels on the strongest edges and in the flattest tissue, apart from each other; anatomy (y, x) from 0."""
    smooth = gaussian_filter(anatomy, 1.0)
    slope = gaussian_gradient_magnitude(anatomy, 1.0)
    tissue = smooth > 0.25 * np.percentile(smooth, 99)
    calm = np.where(tissue, -maximum_filter(slope, 9), -np.inf)
    apart = min(anatomy.shape) / 6
    chosen: list[Pixel] = []
    for score, wanted in ((slope, edges), (calm, flat)):
        free = score.astype(float).copy()
        for _ in range(wanted):
            for y, x in chosen:
                rows, columns = np.ogrid[: anatomy.shape[0], : anatomy.shape[1]]
                free[np.hypot(rows - y, columns - x) < apart] = -np.inf
            best = np.unravel_index(int(np.argmax(free)), free.shape)
            if np.isfinite(free[best]):
                chosen.append((int(best[0]), int(best[1])))
    return chosen


@torch.no_grad()
def vae_rows(
    prior: Any, shape: tuple[int, int], image: torch.Tensor | None, pixels: Sequence[Pixel], seed: int
) -> list[Row]:
    """Draws of a VAE prior, what it makes of an image, its covariance with chosen pixels (Duff et al. 2023, Fig. 4).

    Parameters
    ----------
    prior
        A `VAEPrior`.
    shape
        (y, x) of the draws, and of the image.
    image
        (y, x) complex in the prior's scale, to be encoded; None: the first draw takes its place.
    pixels
        (y, x) each; none: `choose_pixels`.
    seed
        Of the draws.

    Raises
    ------
    ValueError
        When the prior is for images of another size, or a pixel is not in the image.
    """
    prior = prior.for_shape(shape)
    _check_pixels(pixels, shape)
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(DRAWS, *prior.latent_shape(shape), generator=generator)
    means, factor = prior.decode(latent)
    residuals = factor.sample(1, generator)[0]
    top = _top(_shown(means))
    rows = [
        Row("draws of the prior: G(z) + e", [Panel(one, f"draw {n + 1}", top=top)
                                            for n, one in enumerate(_shown(means + residuals))]),
        Row("their means G(z)", [Panel(one, f"mean {n + 1}", top=top) for n, one in enumerate(_shown(means))]),
    ]  # fmt: skip

    known = image is not None
    encoded = _parts_of(image, prior) if image is not None else means[:1] + residuals[:1]
    mean, factor = prior.decode(prior.encode(encoded)[0] if known else latent[:1])
    draws = factor.sample(STD_DRAWS, generator)[:, 0]
    spread = draws.square().mean(0).sum(0).sqrt().numpy()
    (anatomy,), (expected,) = _shown(encoded), _shown(mean)
    top = _top([anatomy])
    error = (encoded - mean)[0, 0].numpy()
    limit = _limit([one[0].numpy() for one in draws[:DRAWS]])
    part = " (real part)" if prior.parts == 2 else ""
    rows += [
        Row("the image, encoded" if known else "draw 1, closer", [
            Panel(anatomy, "image" if known else "draw 1", top=top),
            Panel(expected, "mean G(z)", top=top),
            Panel(error, f"image - mean{part}", limit),
            Panel(spread, f"standard deviation, white = {_top([spread]):.3f}", top=_top([spread])),
        ]),
        Row(f"draws of its residual e{part}, full colour = {limit:.3f}",
            [Panel(one[0].numpy(), f"residual {n + 1}", limit) for n, one in enumerate(draws[:DRAWS])]),
    ]  # fmt: skip
    chosen = list(pixels) or choose_pixels(expected)
    backdrop = np.clip(expected / top, 0, 1)
    return rows + covariance_rows(factor, chosen, backdrop)


def covariance_rows(factor: Any, pixels: Sequence[Pixel], anatomy: np.ndarray) -> list[Row]:
    """Covariance of every pixel with each of `pixels`, as a share of that pixel's variance, whole and enlarged.

    Parameters
    ----------
    factor
        A `CholeskyFactor` of batch 1.
    anatomy
        (y, x) from 0 to 1, to lay it over.
    """
    found = factor.covariance_rows([(y, x, 0) for y, x in pixels])[:, 0]  # (pixel, parts, y, x)
    shares, deviations = [], []
    for covariance, (y, x) in zip(found.numpy(), pixels, strict=True):
        shares.append(covariance / covariance[0, y, x])
        deviations.append(math.sqrt(covariance[0, y, x]))
    others = [share.copy() for share in shares]
    for other, (y, x) in zip(others, pixels, strict=True):
        other[0, y, x] = 0
    limit = max(0.05, max(float(np.abs(other).max()) for other in others))
    whole = f"covariance with the starred pixel, full colour = {limit:.2f} of its variance"
    titles = [(0, False, whole), (0, True, f"the same, {2 * ZOOM + 1} pixels around it")]
    if found.shape[1] == 2:
        titles[0] = (0, False, f"{whole}; both real parts")
        titles.append((1, True, "its real part with the others' imaginary part"))
    return [
        Row(title, [
            Panel(share[part], f"({y}, {x}), std {deviation:.3f}", limit, 1.0, anatomy, (y, x), zoom)
            for share, deviation, (y, x) in zip(shares, deviations, pixels, strict=True)
        ])
        for part, zoom, title in titles
    ]  # fmt: skip


@torch.no_grad()
def diffusion_rows(
    prior: DiffusionPrior, shape: tuple[int, int], image: torch.Tensor | None, seed: int, steps: int = STEPS
) -> list[Row]:
    """Unconditional draws of a diffusion prior as they form, and an image denoised at several noise levels.

    Parameters
    ----------
    shape
        (y, x) of the draws.
    image
        (y, x) complex in the prior's scale, or None.
    seed
        Of the noise.
    steps
        Noise levels of a draw.
    """
    generator = torch.Generator().manual_seed(seed)
    levels = np.geomspace(prior.sigma_max, max(prior.sigma_min, 1e-3), steps).tolist()
    stages = unconditional_draws(prior, shape, levels, generator)
    alike = isinstance(prior, MagnitudePrior)  # it denoises real and imaginary part as two images
    pictures = [(stage.real if alike else stage.abs()).numpy() for stage in stages]
    top = _top(list(pictures[-1]))
    shown = sorted({int(np.argmin(np.abs(np.log(np.asarray(levels) / s)))) for s in (2.0, 0.5, 0.1)})
    rows = [
        Row(f"draws from noise as they form: E[x0 | x] at sigma = {levels[at]:.2g}",
            [Panel(one, f"draw {n + 1}", top=top) for n, one in enumerate(pictures[at])])
        for at in shown
    ]  # fmt: skip
    rows.append(Row(f"draws of the prior, {steps} levels", [
        Panel(one, f"draw {n + 1}", top=top) for n, one in enumerate(pictures[-1])
    ]))  # fmt: skip
    if image is None:
        return rows
    sigmas = [s for s in (0.05, 0.2, 0.5, 1.0) if prior.sigma_min <= s <= prior.sigma_max]
    noise = _complex_noise((len(sigmas), *image.shape), generator)
    noisy = image + torch.tensor(sigmas)[:, None, None] * noise
    bound = prior.for_image(image)
    clean = bound.denoise(noisy, torch.tensor(sigmas))
    top = _top([image.abs().numpy()])
    for title, images in (("the image with noise", noisy), ("denoised: E[x0 | x]", clean)):
        panels = [Panel(one.abs().numpy(), f"sigma = {s:g}", top=top) for one, s in zip(images, sigmas, strict=True)]
        rows.append(Row(title, panels))
    return rows


def unconditional_draws(
    prior: Any, shape: tuple[int, int], levels: Sequence[float], generator: torch.Generator
) -> list[torch.Tensor]:
    """Ancestral sampling from noise: `x <- D + (s'/s)^2 (x - D) + s' sqrt(1 - (s'/s)^2) n`, exact for small steps.

    Returns
    -------
    D of every level, (draw, y, x) complex each; the last is the draw.
    """
    x = levels[0] * _complex_noise((DRAWS, *shape), generator)
    stages = []
    for level, following in itertools.pairwise([*levels, 0.0]):
        denoised = prior.denoise(x, level)
        stages.append(denoised)
        kept = (following / level) ** 2
        fresh = following * math.sqrt(1 - kept) * _complex_noise(x.shape, generator)
        x = denoised + kept * (x - denoised) + fresh
    return stages


def _complex_noise(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Real and imaginary part of standard deviation 1 each."""
    return torch.view_as_complex(torch.randn(*shape, 2, generator=generator))


def _parts_of(image: torch.Tensor, prior: Any) -> torch.Tensor:
    """(y, x) complex as the (1, parts, y, x) that a VAE prior takes."""
    if prior.demodulated:
        image = image * smooth_phase(image).conj()
    both = torch.view_as_real(image).movedim(-1, 0)
    return both[None, : prior.parts].contiguous()


def _shown(images: torch.Tensor) -> list[np.ndarray]:
    """Real images as they are, complex ones (batch, 2, y, x) as magnitudes."""
    flat = images[:, 0] if images.shape[1] == 1 else images.square().sum(1).sqrt()
    return list(flat.numpy())


def _top(pictures: Sequence[np.ndarray]) -> float:
    """White of pictures; those of a prior that has not learned yet may be negative throughout."""
    found = float(np.percentile(np.stack(list(pictures)), 99.7))
    return found if found > 0 else 1.0


def _limit(pictures: Sequence[np.ndarray]) -> float:
    return float(np.percentile(np.abs(np.stack(list(pictures))), 99.5)) or 1.0


def _check_pixels(pixels: Sequence[Pixel], shape: tuple[int, int]) -> None:
    for y, x in pixels:
        if not (0 <= y < shape[0] and 0 <= x < shape[1]):
            raise ValueError(f"pixel y,x = {y},{x} is not in images of (y, x) = {tuple(shape)}")
