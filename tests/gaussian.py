"""A Gaussian prior and its scans: every posterior is known in closed form, so samplers can be held against it."""

from __future__ import annotations

import torch
from scanprior.models.forward import SenseModel
from scanprior.models.scan import Scan
from support import random_complex

SD = 0.3


class GaussianPrior:
    """x0 ~ N(0, SD^2) in each real channel: D(x, s) = x SD^2 / (SD^2 + s^2)."""

    name = "gaussian"
    sigma_data = SD
    scale = (99.5, 1.0)
    sigma_min, sigma_max = 0.002, 80.0

    def __init__(self) -> None:
        self.calls = 0

    def for_image(self, image: torch.Tensor) -> GaussianPrior:
        return self

    def denoise(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        self.calls += 1
        return x * SD**2 / (SD**2 + sigma**2)


def gaussian_scan(line_mask: bool = True, sigma: float = 0.1, real: bool = False) -> tuple[Scan, torch.Tensor]:
    maps = random_complex(4, 16, 18, seed=1)
    maps = maps / maps.abs().square().sum(0, keepdim=True).sqrt()
    image = random_complex(16, 18, seed=2) * SD * 2**0.5
    if real:
        image = image.real.to(image.dtype)
    mask = torch.rand(16, 1 if line_mask else 18, generator=torch.Generator().manual_seed(3)) < 0.5
    model = SenseModel(maps, mask)
    kspace = model(image) + sigma * random_complex(4, 16, 18, seed=4) * mask
    return Scan(kspace, mask, maps, sigma), image


def posterior(scan: Scan, variance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Analytic mean (16, 18) complex, and standard deviation (16, 18) of each real channel, for prior `variance`.

    Dense algebra on (A^H A / s_y^2 + I / variance) x = A^H y / s_y^2, all variances per real channel.
    """
    assert scan.maps is not None
    model = SenseModel(scan.maps.to(torch.complex128), scan.mask)
    size = 16 * 18
    basis = torch.eye(size, dtype=torch.complex128).reshape(size, 16, 18)
    normal = torch.stack([model.normal(b) for b in basis]).reshape(size, size).T
    data = scan.sigma**2 / 2
    system = normal / data + torch.eye(size) / variance
    covariance = torch.linalg.inv(system)
    mean = covariance @ (model.H(scan.kspace.to(torch.complex128)).reshape(-1) / data)
    return mean.reshape(16, 18), covariance.diagonal().real.sqrt().reshape(16, 18)


def posterior_mean(scan: Scan, variance: float) -> torch.Tensor:
    """The first of `posterior`."""
    return posterior(scan, variance)[0]
