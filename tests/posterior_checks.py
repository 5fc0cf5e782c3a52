"""What a sampler must show on a Gaussian prior, on a problem built by hand: scale 1, variances of real channels."""

from __future__ import annotations

import torch
from gaussian import SD, posterior
from scanprior.models.forward import SenseModel
from scanprior.models.scan import Scan


def silent(step: int, steps: int) -> None:
    """Progress that nobody watches."""


def dense_posterior(scan: Scan) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (16 * 18) and covariance of a real channel (16 * 18, 16 * 18) for `GaussianPrior`, by dense algebra."""
    assert scan.maps is not None
    model = SenseModel(scan.maps.to(torch.complex128), scan.mask)
    basis = torch.eye(288, dtype=torch.complex128).reshape(288, 16, 18)
    normal = torch.stack([model.normal(b) for b in basis]).reshape(288, 288).T
    covariance = torch.linalg.inv(normal / (scan.sigma**2 / 2) + torch.eye(288) / SD**2)
    return posterior(scan, SD**2)[0].reshape(-1), covariance


def whitened(samples: torch.Tensor, scan: Scan) -> torch.Tensor:
    """Samples less the posterior's mean, in units of its standard deviation along its principal directions.

    (sample, direction) complex, directions from well measured to open. Of exact samples every real channel of every
    entry is a standard normal draw, independent of all others.
    """
    mean, covariance = dense_posterior(scan)
    variances, directions = torch.linalg.eigh(covariance)
    return (samples.reshape(len(samples), -1).to(torch.complex128) - mean) @ directions.conj() / variances.sqrt()


def check_posterior(samples: torch.Tensor, scan: Scan, bias: float = 0.03) -> None:
    """Mean and variance of samples are the analytic ones, in the well-measured half of all directions and the open one.

    `bias` is what the discretisation may add to a variance, relative. The sampling error of a variance over
    2 * samples * 144 draws is sqrt(2 / draws); four of it are granted. The mean, in units of its own error
    (1 / sqrt(samples)), has mean square 1, with an error of sqrt(2 / (2 * 144)); four of it are granted, and a mean
    that is wrong by `bias` standard deviations.
    """
    count = len(samples)
    z = torch.view_as_real(whitened(samples, scan))
    for half in (z[:, :144], z[:, 144:]):
        for channel in (half[..., 0], half[..., 1]):
            variance = float(channel.var(0).mean())
            assert abs(variance - 1) < bias + 4 * (2 / (count * 144)) ** 0.5, variance
        square = float(half.mean(0).square().mean() * count)
        assert square < 1 + 4 * (2 / 288) ** 0.5 + count * bias**2, square
    # pixel by pixel, as they come: no rotation that could hide a mistake
    _, covariance = dense_posterior(scan)
    wanted = covariance.diagonal().real.reshape(16, 18)
    for part in (samples.real, samples.imag):
        ratio = part.var(0) / wanted
        assert abs(float(ratio.mean()) - 1) < bias + 4 * (2 / (count * 144)) ** 0.5
        assert float((ratio - 1).abs().max()) < bias + 5 * (2 / count) ** 0.5
