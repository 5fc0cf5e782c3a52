"""What turns a network F into a denoiser D(x, sigma), an estimate of E[x0 | x0 + sigma n], and how it is trained.

Each kind is a way to parametrise the same thing: score = (D - x) / sigma^2. Networks are called as
`network(x, ln(sigma) / 4)` by all of them.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import nn


class Denoiser(nn.Module):
    """D(x, sigma) on real images (batch, channel, y, x).

    Parameters
    ----------
    network
        Called as `network(x, c_noise)` with x (batch, channel, y, x) float32 and c_noise (batch,).
    sigma_data
        Standard deviation of one real channel of the images that the network was made for.
    """

    kind: ClassVar[str]

    def __init__(self, network: nn.Module, sigma_data: float) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data

    @abstractmethod
    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Denoise x (batch, channel, y, x) at noise levels sigma (batch,), standard deviation of each real channel."""

    @abstractmethod
    def loss(self, clean: torch.Tensor, sigma: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Loss of each image (batch,), mean over pixels; `noise` is of unit variance and of the shape of `clean`."""

    def score(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Gradient of the log density of noisy images at x (Tweedie): (D - x) / sigma^2."""
        return (self(x, sigma) - x) / _level(sigma, x) ** 2


class EDMDenoiser(Denoiser):
    """`D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)` (Karras et al. 2022, eq. 7 and table 1)."""

    kind = "edm"

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Denoise x (batch, channel, y, x) at noise levels sigma (batch,), standard deviation of each real channel."""
        sigma = _level(sigma, x)
        total = sigma**2 + self.sigma_data**2
        skip = self.sigma_data**2 / total
        out = sigma * self.sigma_data / total.sqrt()
        residual = self.network(x / total.sqrt(), _noise(sigma))
        return skip * x + out * residual.to(x.dtype)

    def loss(self, clean: torch.Tensor, sigma: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """EDM loss (eq. 2) of each image (batch,), mean over pixels; weight (sigma^2 + sd^2) / (sigma sd)^2."""
        level = _level(sigma, clean)
        denoised = self(clean + level * noise, sigma)
        return (self.weight(level) * (denoised - clean) ** 2).mean(dim=(1, 2, 3))

    def weight(self, sigma: torch.Tensor) -> torch.Tensor:
        """(sigma^2 + sd^2) / (sigma sd)^2 (eq. 8): makes the network's own error count the same at all levels."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


class VEDenoiser(Denoiser):
    """`score = F(x, c_noise) / sigma`, so `D = x + sigma F` (Song et al. 2021: VE-SDE, scaled by sigma)."""

    kind = "ve"

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Denoise x (batch, channel, y, x) at noise levels sigma (batch,), standard deviation of each real channel."""
        return x + _level(sigma, x) * self._scaled_score(x, sigma)

    def score(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """F / sigma; nothing is subtracted, so nothing is lost at small sigma."""
        return self._scaled_score(x, sigma) / _level(sigma, x)

    def loss(self, clean: torch.Tensor, sigma: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Denoising score matching of each image (batch,), weighted by sigma^2: |sigma score + noise|^2, mean."""
        noisy = clean + _level(sigma, clean) * noise
        return (self._scaled_score(noisy, sigma) + noise).square().mean(dim=(1, 2, 3))

    def _scaled_score(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return self.network(x, _noise(_level(sigma, x))).to(x.dtype)


class NCSNv2Denoiser(VEDenoiser):
    """The same form, trained on discrete levels (Song and Ermon 2020, technique 3: sigma only as 1 / sigma).

    Nothing in it is bound to the levels, so it denoises between them too.
    """

    kind = "ncsnv2"


DENOISERS: dict[str, type[Denoiser]] = {kind.kind: kind for kind in (EDMDenoiser, VEDenoiser, NCSNv2Denoiser)}


def geometric_levels(sigma_max: float, sigma_min: float, count: int) -> torch.Tensor:
    """The discrete levels of NCSNv2, falling: (count,)."""
    return torch.logspace(math.log10(sigma_max), math.log10(sigma_min), count)


def _level(sigma: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return sigma.to(x.dtype).reshape(-1, 1, 1, 1)


def _noise(level: torch.Tensor) -> torch.Tensor:
    return level.flatten().log() / 4
