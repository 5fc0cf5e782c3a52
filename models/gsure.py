"""Denoisers from undersampled scans: generalised SURE, the error on held-out lines, score matching where measured.

The first two are losses of the estimate `f(y) = D(u; level)`, u the regularised inverse of the data (`first_image`).
They measure k-space error where there is data: with unit-norm maps and weights 1 it is `|A (f - x)|^2 / n`, n the real
entries of an image: the error of the image projected on what was measured (of several coils: weighted by how well).
Eldar, "Generalized SURE for exponential families" (2009); Aggarwal et al., "ENSURE" (2022); Yaman et al., "SSDU"
(2020); Aali et al., "Ambient diffusion posterior sampling" (2024).
"""

from __future__ import annotations

import torch

from .channels import to_channels, to_complex
from .divergence import divergence
from .measured_scans import MeasuredScans, first_image, misfit, regularised_inverse
from .preconditioning import EDMDenoiser


def gsure(
    denoiser: EDMDenoiser,
    scans: MeasuredScans,
    weights: torch.Tensor,
    probe: torch.Tensor,
    spread: float,
    given: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unbiased estimate of `|W^1/2 A (f(y) - x)|^2 / n`, without x.

    `[ |W^1/2 (A f - y)|^2 + 2 s^2 tr(W A df/dy) - s^2 tr(W) ] / n`, s the noise of each real channel, W the weights on
    the measured samples of all coils. With `u = B y`, `tr(W A J B) = tr(J K)`, `K = B W A`: one vector-Jacobian product
    of the denoiser and one CG solve. Where the denoiser is given all the data, nothing asks it to fill in what was not
    measured; with `given` it sees a part and is judged on all.

    Parameters
    ----------
    weights
        (y, x or 1), or (batch, y, x or 1), not negative: 1, or `density_weights`.
    probe
        (batch, 2, y, x); see `divergence.rademacher`.
    spread
        Of `first_image`.
    given
        (batch, y, x or 1) bool, a part of the masks: the data that f sees (`random_part`); None: all.

    Returns
    -------
    Estimates (batch,), which can be negative, and the level that the denoiser was told (batch,).
    """
    image, level = first_image(scans, probe, spread, given)
    root = weights.sqrt()
    seen = scans.model(given)
    part = scans.model((scans.mask if given is None else given) * root)
    direction = regularised_inverse(seen, part.normal(to_complex(probe)))
    found, slope = divergence(lambda x: denoiser(x, level), image, probe, to_channels(direction))
    square, expected = misfit(scans, to_complex(found), scans.mask * root)
    return square + scans.sigma**2 * (2 * slope - expected), level


def held_out(
    denoiser: EDMDenoiser,
    scans: MeasuredScans,
    weights: torch.Tensor,
    probe: torch.Tensor,
    spread: float,
    given: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unbiased estimate of `|W^1/2 A_rest (f(y_given) - x)|^2 / n`, `rest` the measured points that f does not see.

    `[ |W^1/2 (A_rest f - y_rest)|^2 - s^2 tr(W) ] / n`: their noise is independent of what f has seen, so no divergence
    is needed, and filling in is what is judged. Parameters and returned values as of `gsure`.
    """
    image, level = first_image(scans, probe, spread, given)
    found = denoiser(image, level)
    square, expected = misfit(scans, to_complex(found), (scans.mask & ~given) * weights.sqrt())
    return square - scans.sigma**2 * expected, level


def projected_matching(
    denoiser: EDMDenoiser,
    scans: MeasuredScans,
    weights: torch.Tensor,
    images: torch.Tensor,
    sigma: torch.Tensor,
    noise: torch.Tensor,
) -> torch.Tensor:
    """Score matching on images made of scans, judged where these were measured: `|W^1/2 A (D(x + s n) - x)|^2 / n`.

    What the images have in the rest of k-space was made up by a prior, or is missing. As a target it would confirm
    whatever it is; here it is but a part of what the denoiser is given. Each point of k-space is a target in those
    scans that have it, and with density weights all count alike (as ENSURE's; Kawar et al., "GSURE-based diffusion
    model training with corrupted data", 2023, do so with masked images). Where the images are posterior draws of the
    true prior, the minimum is that of EDM's loss on clean images: mask and image are independent then.

    Pixels without maps, which no data are of, are zero in every image and count as they are.

    Parameters
    ----------
    weights
        As of `gsure`.
    images
        x (batch, 2, y, x), zero where the maps are.
    sigma, noise
        s (batch,) and n of unit variance.

    Returns
    -------
    Loss of each image (batch,), with EDM's weight.
    """
    level = sigma.to(images.dtype).reshape(-1, 1, 1, 1)
    difference = denoiser(images + level * noise, sigma) - images
    measured = scans.model(scans.mask * weights.sqrt())(to_complex(difference))
    air = (scans.maps == 0).all(1, keepdim=True)
    square = torch.view_as_real(measured).square().flatten(1).sum(1)
    square = square + (difference * air).square().flatten(1).sum(1)
    return denoiser.weight(sigma.to(images.dtype)) * square / scans.real_entries
