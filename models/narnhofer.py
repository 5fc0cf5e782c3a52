"""Search in the range of a VAE's mean decoder whose weights are then tuned to the scan (Narnhofer et al. 2019).

What Duff et al. 2023 compare their method with: the image is one that the generator can be made to make.
"""

from __future__ import annotations

import copy

import torch
from pydantic import Field

from .range_search import Found, GeneratorPrior, RangeSettings, Search, Tell, search_slices
from .scan import Progress, Reconstruction, Scan


class NarnhoferSettings(RangeSettings):
    """Settings of `narnhofer`; those of `range_search` are for its first part."""

    weight_iterations: int = Field(500, ge=1, le=100000, description="the most Adam steps on latents and weights")
    weight_rate: float = Field(1e-3, gt=0, le=1, description="Adam's rate for the weights")
    latent_rate: float = Field(1e-2, gt=0, le=10, description="Adam's rate for the latents")
    tau: float = Field(1.0, gt=0, le=100, description="stop when the residual is this many times the noise")

    def brief(self) -> NarnhoferSettings:
        """As of `RangeSettings`."""
        return self.model_copy(update={"iterations": 2, "starts": 1, "weight_iterations": 2})


def narnhofer(
    scan: Scan, prior: GeneratorPrior, settings: NarnhoferSettings, progress: Progress | None = None
) -> Reconstruction:
    """Search in the generator's range, then tune the latents and the generator's weights to the data.

    (Narnhofer et al., SPIE 2019.) Enough steps would fit the noise, so it stops by the discrepancy principle, when
    ||A G(z) - y||^2 <= tau^2 samples 2 gamma^2. The authors of the comparison take the number of steps that is best for
    the PSNR, which no scan tells. Where the residual cannot come down so far the bound on the steps stops it. Weights
    are tuned on a copy for each slice.

    Parameters, what is returned and raised: see `range_search`. `info["objective"]` is of the range, and goes on with
    the lowest so far for each step on the weights; its last entry is that of the image, which may be higher where the
    discrepancy principle stopped it: Adam's steps do not always lead down.
    """

    def refine(search: Search, found: Found, noise: float, tell: Tell) -> Found:
        return tune_weights(search, found, settings.tau**2 * noise, settings, tell)

    return search_slices("narnhofer", scan, prior, settings, progress, refine, settings.weight_iterations)


def tune_weights(search: Search, begin: Found, goal: float, settings: NarnhoferSettings, tell: Tell) -> Found:
    """Minimise over z and the decoder's weights by Adam until ||A G(z) - y||^2 <= goal.

    The weights are those of a copy: the prior stays as it is, whoever else uses it meanwhile. The history goes on
    from that of `begin`.
    """
    tuned = Search(search.problem, copy.deepcopy(search.prior), search.mu, search.method)
    decoder: torch.nn.Module = tuned.prior.vae.mean_decoder
    decoder.requires_grad_(True)
    z = begin.z.clone().requires_grad_(True)
    solver = torch.optim.Adam(
        [
            # z is where its gradient is zero: without the 1 (of a nat) Adam would make a full step of its rounding
            {"params": [z], "lr": settings.latent_rate, "eps": 1.0},
            {"params": decoder.parameters(), "lr": settings.weight_rate},
        ]
    )
    lowest, best = float("inf"), (begin.z, begin.image)
    history: list[float] = []
    stopped = "iterations"
    with torch.enable_grad():
        for done in range(settings.weight_iterations + 1):
            image = tuned.generate(z)
            value = tuned.value(z, image)
            if float(value.detach()) < lowest:
                lowest, best = float(value.detach()), (z.detach().clone(), image.detach())
            history.append(lowest)
            if search.misfit(image.detach()) <= goal:
                best, stopped = (z.detach().clone(), image.detach()), "discrepancy"
                history[-1] = float(value.detach())
                break
            if done == settings.weight_iterations:
                break
            solver.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            solver.step()
            tell(done + 1)
    search.evaluations += tuned.evaluations
    return Found(*best, begin.history + history[1:], len(history) - 1, stopped)
