"""Reconstruction with a VAE prior of structured covariance (Duff et al. 2023): one image, of the highest probability.

The model of the image is a Gaussian around what the latents decode to, with a covariance that the latents decode to as
well. Image and latents together are found by going down one objective (`vae_objective`), in one of two ways
(`vae_descent`). For the latents found, the image's posterior is Gaussian; its draws give the standard deviation.
"""

from __future__ import annotations

import time
from typing import Literal

import torch
from pydantic import Field

from .forward import SenseModel
from .linear import combine_sets
from .posterior import GRADIENT_PIXELS, pieces
from .scan import Progress, Reconstruction, Scan
from .vae_descent import Descent, fast, published
from .vae_objective import VAEObjective, VAEPrior
from .vae_problem import VAEProblemSettings, VAESetup, check_finite, summed

_ITERATIONS = {"fast": 100, "published": 5000}
_SOLVE_ITERATIONS = 500
"""The most CG iterations of the last image and of the draws, which want to be exact."""


_SHARE_ITERATIONS, _SHARE_TOLERANCE = 50, 1e-2
"""Of the CG that estimates how much the data decide, once a scan: a weight of one term, wanted to some percent."""

_DRAW_SLACK = 10
"""How much less exact the draws may be than the image: a standard deviation is known to some percent at best."""


class VAESettings(VAEProblemSettings):
    """Settings of `vae`. `lam` and `mu` of 1 are those of Bayes' rule."""

    lam: float = Field(1.0, gt=0, allow_inf_nan=False, description="weight of the prior against the data")
    mu: float = Field(1.0, gt=0, allow_inf_nan=False, description="weight of the latents' own prior in it")
    latents: Literal["joint", "marginal"] = Field(
        "joint", description="joint: image and latents of the highest probability together (the paper); marginal: "
        "log det L weighted by the share of the image that the data decide, which is that of the first image's latents"
    )  # fmt: skip
    form: Literal["fast", "published"] = Field(
        "fast", description="CG for the image and L-BFGS for the latents, or alternating gradient descent (the paper)"
    )
    starts: int = Field(
        1, ge=1, le=64, description="starting points: the encoding of the first image, then random latents; the lowest "
        "objective wins"
    )  # fmt: skip
    iterations: int | None = Field(
        None, ge=1, le=100000, description="the most iterations; None: 100 of the fast form, 5000 of the published one"
    )
    tolerance: float = Field(
        1e-4, ge=0, lt=1, description="stop when the objective falls by less than this for each pixel in 10 iterations"
    )
    cg_iterations: int = Field(20, ge=1, le=1000, description="CG iterations for the image of each trial (fast form)")
    cg_tolerance: float = Field(1e-4, ge=0, lt=1, description="CG stops when the relative residual is below this")
    samples: int = Field(
        8, ge=0, le=256, description="draws of the image, given the latents found, whose standard deviation is shown; "
        "fewer than 2: none is"
    )  # fmt: skip
    seed: int = Field(0, ge=0, description="seed of all draws; the same on every device")

    def without_std(self) -> VAESettings:
        """These settings without draws."""
        return self.model_copy(update={"samples": 0})

    def brief(self) -> VAESettings:
        """These settings with as few iterations as still run all of the method's code: for a warm-up."""
        return self.model_copy(update={"iterations": 2})


def vae(scan: Scan, prior: VAEPrior, settings: VAESettings, progress: Progress | None = None) -> Reconstruction:
    """Minimise ||A x - y||^2 / (2 gamma^2) + lam (nll(x; z) + mu ||z||^2 / 2) over the image x and its latents z.

    A prior of one part has x real: the smooth phase of the CG-SENSE image is taken out of A, and put back at the end.

    Parameters
    ----------
    scan
        A batch shares one intensity scale, as the slices of a volume must. With several sets of maps each set's image
        is one image to the prior. A noise level below `GAMMA_FLOOR` is taken for that.

    Returns
    -------
    Reconstruction with `std`, of the Gaussian that the posterior of x is given z (what z itself may be is not in it);
    zero, both, where the maps are. `info` says method, prior, form, nfe (evaluations of the decoders for one slice,
    those of all its starts, as counted), latents, share (of each slice, where they are marginal), iterations (the fast
    form's last CG counts as one), objective (of each iteration, summed over the batch), starts, which start won, lam,
    mu, gamma, samples, scale and seconds.

    Raises
    ------
    ValueError
        If the scan has no maps or no signal, its size is not the prior's, or k-space, maps, objective or image are not
        finite.
    """
    began = time.perf_counter()
    setup = VAESetup.of(scan, prior, settings)
    model, scale, gamma = setup.model, setup.scale, setup.gamma
    generator = torch.Generator().manual_seed(settings.seed)
    parts = pieces(scan, settings.starts * model.maps.shape[-4] if model.sets else settings.starts, GRADIENT_PIXELS)
    images, spreads, histories, winners, shares, evaluations = [], [], [], [], [], 0
    for number, (part, piece) in enumerate(parts):

        def tell(step: int, steps: int, number: int = number) -> None:
            if progress is not None:
                progress(number * steps + step, len(parts) * steps)

        own_phase = setup.own_phase(part)
        problem = _problem(piece, prior, settings, own_phase, gamma, scale, settings.starts)
        single = _problem(piece, prior, settings, own_phase, gamma, scale, 1)
        if settings.latents == "marginal":
            at = single.decode(single.encode(single.to_real(setup.first[part][None] / scale)))
            single.share = single.measured_share(at, generator, _SHARE_ITERATIONS, _SHARE_TOLERANCE)
            problem.share = single.share.repeat(settings.starts)
            shares.append(single.share)
        found = _descend(problem, setup.first[part] / scale, settings, generator, tell)
        best = found.history[-1].reshape(settings.starts, -1).argmin(0)
        chosen = best * len(best) + torch.arange(len(best), device=best.device)
        history = torch.stack(found.history)[:, chosen]
        winners.append(best)

        decoded = single.decode(found.decoded.z[chosen])
        image = found.image[chosen]
        if settings.form == "fast":
            polished = single.image(image, decoded, _SOLVE_ITERATIONS, settings.cg_tolerance)
            value = single.value(polished, decoded)
            lower = value <= found.history[-1][chosen]
            image = torch.where(lower.reshape(-1, 1, 1, 1, 1), polished, image)
            history = torch.cat([history, torch.where(lower, value, history[-1])[None]])
        histories.append(history.sum(1).tolist())
        images.append(scale * combine_sets(single.to_complex(image)[0], single.model))
        if settings.samples > 1:
            several = _problem(piece, prior, settings, own_phase, gamma, scale, settings.samples)
            tolerance = _DRAW_SLACK * settings.cg_tolerance
            draws = several.draw(image, decoded, generator, _SOLVE_ITERATIONS, tolerance)
            spreads.append(scale * combine_sets(several.to_complex(draws), several.model).abs().std(0))
        # the descent's are of all starts of a slice at once, the others (share, last image) of one
        evaluations += settings.starts * problem.evaluations + single.evaluations
    image = torch.cat(images) if len(images) > 1 else images[0]
    std = None if not spreads else torch.cat(spreads) if len(spreads) > 1 else spreads[0]
    check_finite("vae", "image", image)
    if std is not None:
        check_finite("vae", "standard deviation", std)
    info = {
        "method": "vae",
        "prior": prior.name,
        "form": settings.form,
        "latents": settings.latents,
        "share": torch.cat(shares).tolist() if shares else None,
        "nfe": evaluations // len(parts),
        "iterations": max(len(history) for history in histories) - 1,
        "objective": summed(histories),
        "starts": settings.starts,
        "winner": torch.cat(winners).tolist(),
        "lam": settings.lam,
        "mu": settings.mu,
        "gamma": gamma,
        "samples": settings.samples,
        "scale": scale,
        "seconds": time.perf_counter() - began,
    }
    return Reconstruction(image, std, info)


def _problem(
    scan: Scan, prior: VAEPrior, settings: VAESettings, phase: torch.Tensor | None, gamma: float, scale: float,
    copies: int,
) -> VAEObjective:  # fmt: skip
    model = SenseModel.of(scan)
    return VAEObjective(prior, model, scan.kspace / scale, phase, gamma, settings.lam, settings.mu, copies)


def _descend(
    problem: VAEObjective, first: torch.Tensor, settings: VAESettings, generator: torch.Generator, tell: Progress
) -> Descent:
    """All slices of a piece from all their starting points."""
    image = problem.to_real(first.expand(settings.starts, *first.shape))
    latents = problem.encode(image)
    shape = problem.latent_shape
    per_start = shape[0] // settings.starts
    random = torch.randn((shape[0] - per_start, *shape[1:]), generator=generator, dtype=image.dtype)
    latents = torch.cat([latents[:per_start], random.to(image.device)])
    rows, columns = problem.model.maps.shape[-2:]
    iterations = settings.iterations or _ITERATIONS[settings.form]
    tolerance = settings.tolerance * rows * columns
    if settings.form == "published":
        return published(problem, image, latents, iterations, tolerance, tell)
    return fast(
        problem, image, latents, iterations, tolerance, settings.cg_iterations, settings.cg_tolerance, tell,
        problem.spread(image),
    )  # fmt: skip
