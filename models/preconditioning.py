"""EDM preconditioning: turns any network F into a denoiser D(x, sigma) (Karras et al. 2022, eq. 7 and table 1)."""

from __future__ import annotations

import torch
from torch import nn


class EDMDenoiser(nn.Module):
    """`D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)`, an estimate of E[x0 | x0 + sigma n].

    Parameters
    ----------
    network
        Called as `network(x, c_noise)` with x (batch, channel, y, x) float32 and c_noise (batch,).
    sigma_data
        Standard deviation of one real channel of the images that the network was made for.
    """

    def __init__(self, network: nn.Module, sigma_data: float) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Denoise x (batch, channel, y, x) at noise levels sigma (batch,), standard deviation of each real channel."""
        sigma = sigma.to(x.dtype).reshape(-1, 1, 1, 1)
        total = sigma**2 + self.sigma_data**2
        skip = self.sigma_data**2 / total
        out = sigma * self.sigma_data / total.sqrt()
        residual = self.network(x / total.sqrt(), sigma.flatten().log() / 4)
        return skip * x + out * residual.to(x.dtype)

    def loss(self, clean: torch.Tensor, sigma: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """EDM loss (eq. 2) of each image (batch,), mean over pixels; weight (sigma^2 + sd^2) / (sigma sd)^2."""
        level = sigma.reshape(-1, 1, 1, 1)
        weight = (level**2 + self.sigma_data**2) / (level * self.sigma_data) ** 2
        denoised = self(clean + level * noise, sigma)
        return (weight * (denoised - clean) ** 2).mean(dim=(1, 2, 3))
