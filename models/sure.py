"""Denoisers from noisy images of known noise level: Stein's unbiased risk estimate, and SURE-Score.

Images are real (batch, 2, y, x), real and imaginary part; noise levels are those of each real channel. All losses are
means over the channels and pixels of each image, so that their size does not depend on the image's. README of
the papers, section 2; Aali et al., "Solving inverse problems with score-based generative priors learned from noisy
data" (SURE-Score, 2023); Daras, Dimakis, Daskalakis, "Consistent diffusion meets Tweedie" (2024).
"""

from __future__ import annotations

import torch

from .divergence import divergence
from .preconditioning import EDMDenoiser


def sure(
    denoiser: EDMDenoiser, noisy: torch.Tensor, known: torch.Tensor, probe: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unbiased estimate of the mean squared error of `D(noisy; known)`, without the clean image (Stein 1981).

    `|D(x_w) - x_w|^2 / n + 2 s_w^2 div D(x_w) / n - s_w^2`. Its mean over noise and probe is `|D(x_w) - x|^2 / n`, n
    the real entries of an image; single values can be negative.

    Parameters
    ----------
    noisy
        x_w = x + s_w n (batch, 2, y, x), white noise.
    known
        s_w (batch,).
    probe
        See `divergence`.

    Returns
    -------
    The estimates (batch,), and what it is the error of: g = D(x_w; s_w).
    """
    estimate, slope = divergence(lambda x: denoiser(x, known), noisy, probe)
    square = known.to(noisy.dtype).square()
    return (estimate - noisy).square().flatten(1).mean(1) + square * (2 * slope - 1), estimate


def above_noise(
    denoiser: EDMDenoiser, noisy: torch.Tensor, known: torch.Tensor, sigma: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """Score matching at levels above that of the images, exact without a clean one (Daras et al. 2024, theorem 3.1).

    With x_t = x_w + sqrt(s_t^2 - s_w^2) n and a = 1 - s_w^2 / s_t^2 it is E[x_w | x_t] = x_t + a (E[x | x_t] - x_t). So
    `|x_t + a (D(x_t; s_t) - x_t) - x_w|^2` times EDM's weight has the gradient of EDM's loss on clean images, times
    a^2: all of it far above s_w, and nothing at s_w, where these pairs tell nothing and SURE takes over. Nothing is
    divided by a.

    Parameters
    ----------
    noisy, known
        x_w and s_w, as in `sure`.
    sigma
        s_t (batch,), none below s_w.
    noise
        n, of unit variance.

    Returns
    -------
    Loss of each image (batch,).

    Raises
    ------
    ValueError
        If a level is below that of its image.
    """
    if bool((sigma < known).any()):
        raise ValueError(f"expected levels from those of the images on ({known.tolist()}), got {sigma.tolist()}")
    level, own = _wide(sigma, noisy), _wide(known, noisy)
    share = 1 - (own / level) ** 2
    # the noise that is added has the standard deviation s_t sqrt(a)
    added = level * share.sqrt() * noise
    x = noisy + added
    difference = share * (denoiser(x, sigma) - x) + added
    return (denoiser.weight(level) * difference**2).flatten(1).mean(1)


def sure_score(
    denoiser: EDMDenoiser,
    noisy: torch.Tensor,
    known: torch.Tensor,
    sigma: torch.Tensor,
    noise: torch.Tensor,
    probe: torch.Tensor,
    detach: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Joint loss of denoising (SURE) and score matching at all levels, from noisy images alone.

    Score matching is `above_noise` where s_t > s_w. Below, nothing exact is left: there the denoised image
    g = D(x_w; s_w) takes the place of the clean one, as SURE-Score has it at all levels.

    Parameters
    ----------
    noisy, known
        x_w and s_w, as in `sure`.
    sigma, noise
        s_t (batch,), any; n of unit variance.
    probe
        For the first images of the batch, as many as it has: SURE, which costs about three times as much as score
        matching, is taken of those alone.
    detach
        Whether g is a constant to the score matching. Otherwise its gradient draws g to what is easily denoised: g is
        then smoother than the best estimate (the tests measure it on a Gaussian). SURE alone is to decide on g.

    Returns
    -------
    Score matching of each image (batch,) with EDM's weights, and SURE (len(probe),) with EDM's weight at s_w. The loss
    is the sum of both means: EDM's weights make 1 the size of both for an untrained network.
    """
    risk, _ = sure(denoiser, noisy[: len(probe)], known[: len(probe)], probe)
    above = sigma > known
    matching = torch.zeros(len(noisy), dtype=noisy.dtype, device=noisy.device)
    if bool(above.any()):
        matching[above] = above_noise(denoiser, noisy[above], known[above], sigma[above], noise[above])
    if not bool(above.all()):
        with torch.set_grad_enabled(torch.is_grad_enabled() and not detach):
            denoised = denoiser(noisy[~above], known[~above])
        matching[~above] = denoiser.loss(denoised, sigma[~above], noise[~above])
    return matching, denoiser.weight(known[: len(probe)].to(noisy.dtype)) * risk


def _wide(sigma: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return sigma.to(like.dtype).reshape(-1, 1, 1, 1)
