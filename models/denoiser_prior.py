"""What a method needs of a diffusion prior: a denoiser, its noise levels, its scale."""

from __future__ import annotations

from typing import Protocol

import torch


class Prior(Protocol):
    """What a sampler needs of a prior. Images are in the prior's own scale, noise levels are per real channel."""

    name: str
    sigma_min: float
    sigma_max: float

    @property
    def sigma_data(self) -> float:
        """Standard deviation of one real channel of the prior's images."""

    @property
    def scale(self) -> tuple[float, float]:
        """(percentile, value): which percentile of a magnitude image has which value in the prior's scale."""

    def for_image(self, image: torch.Tensor) -> Prior:
        """This prior for a scan whose first rough image (..., y, x) is known; most priors are for any."""

    def denoise(self, x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """D(x, sigma) = E[x0 | x0 + noise = x] of complex images (..., y, x); differentiable where x asks for it."""


def check_levels(prior: Prior, start: float, end: float, names: tuple[str, str] = ("sigma_start", "sigma_end")) -> None:
    """Refuse noise levels that the prior was not trained on.

    Parameters
    ----------
    names
        What the two are called where they were asked for.

    Raises
    ------
    ValueError
        Naming both ranges.
    """
    # weights may say 0.0020000001
    if end < prior.sigma_min * 0.999 or start > prior.sigma_max * 1.001:
        raise ValueError(
            f"noise levels from {names[0]} {start:.6g} to {names[1]} {end:.6g} asked for; "
            f"prior {prior.name!r} was trained from {prior.sigma_max:.6g} to {prior.sigma_min:.6g}"
        )
