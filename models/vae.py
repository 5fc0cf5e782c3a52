"""A VAE with structured image covariance (Duff et al. 2023, section 4), and the terms of its evidence bound.

Two forms. With a fixed `size` the latent is a dense vector, as published: it knows the whole image, and only images of
this size. Without one the latent is a map at a fraction of the resolution: everything is local, so any size will do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .cholesky_stencil import coefficient_channels
from .padding import pad_to_multiple
from .precision import CholeskyFactor, bounded
from .vae_networks import Decoder, Encoder, Layout

COVARIANCES = ("identity", "diagonal", "structured")


class VAE(nn.Module):
    """Encoder q(z|x), mean decoder G(z) and the coefficients of L(z): p(x|z) = N(G(z), (L L^T)^-1).

    Parameters
    ----------
    parts
        1: real images; 2: real and imaginary part.
    size
        Edge of the images, a multiple of 2 ** len(widths); the latent is then a vector. None: any size, the latent is a
        map at 1 / 2 ** len(widths) of the resolution.
    latent
        Length of the vector, or channels of the map.
    widths
        Channels of each resolution, finest first. Published: 64, 128, 256, 512.
    middle
        Channels of the coarsest resolution. Published: 256.
    covariance
        "identity" (one learned number), "diagonal" or "structured".
    neighbourhood
        3 or 5: edge of the patch of pixels that L couples; read where the covariance is structured.
    diagonal
        Lowest and highest value of L's diagonal, one over a standard deviation in the prior's scale. Published without
        numbers: a scaled tanh bounds them.
    dropout
        Share of channels that are dropped in training.
    principal
        Not 0: linear layers go around the encoder and the mean decoder, so that the training can begin with principal
        components (`begin_with_components`). With a `size` the edge of the coarse image that they see and give, else
        the edge of the block that a pixel of the latent map stands for. Published: 0.
    covariance_widths, covariance_middle
        Channels of the covariance decoder; as the mean's where they are not given.

    Raises
    ------
    ValueError
        When these do not go together.
    """

    def __init__(
        self,
        parts: int = 1,
        size: int | None = 128,
        latent: int = 100,
        widths: Sequence[int] = (64, 128, 256, 512),
        middle: int = 256,
        covariance: str = "structured",
        neighbourhood: int = 5,
        diagonal: Sequence[float] = (0.5, 200.0),
        dropout: float = 0.0,
        principal: int = 0,
        covariance_widths: Sequence[int] | None = None,
        covariance_middle: int | None = None,
    ) -> None:
        super().__init__()
        wider = tuple(covariance_widths or widths)
        _check(parts, size, latent, (*widths, middle), covariance, neighbourhood, diagonal)
        _check(parts, size, latent, (*wider, covariance_middle or middle), covariance, neighbourhood, diagonal)
        if size is None and len(wider) != len(widths):
            raise ValueError(f"expected {len(widths)} covariance_widths, as many as widths, found {len(wider)}")
        self.parts, self.size, self.latent, self.covariance = parts, size, latent, covariance
        self.neighbourhood = neighbourhood if covariance == "structured" else 1
        self.bounds = float(diagonal[0]), float(diagonal[1])
        self.multiple = 1 << len(widths)
        if principal and (principal < 1 or (size % principal if size else principal != self.multiple)):
            expected = f"divisor of {size}" if size else str(self.multiple)
            raise ValueError(f"expected principal 0 or {expected}, found {principal}")
        layout = Layout(size, latent, widths, middle, dropout, principal)
        self.encoder = Encoder(parts, layout)
        self.mean_decoder = Decoder(parts, layout)
        # L = diagonal of this before tanh for all pixels: the identity, and where the other kinds begin
        self.identity = nn.Parameter(torch.tensor(0.0))
        self.covariance_decoder: Decoder | None = None
        if covariance != "identity":
            channels = parts if covariance == "diagonal" else coefficient_channels(parts, self.neighbourhood)
            layout = Layout(size, latent, wider, covariance_middle or middle, dropout)
            self.covariance_decoder = Decoder(channels, layout)
            nn.init.zeros_(self.covariance_decoder.leave.weight)
            nn.init.zeros_(self.covariance_decoder.leave.bias)  # type: ignore[arg-type]

    @torch.no_grad()
    def begin_with_components(self, images: torch.Tensor, rho: float) -> None:
        """Start the linear layers as the best linear VAE of these images: probabilistic principal components.

        z are the components, scaled to variance 1; q has the variance of the linear posterior.

        Parameters
        ----------
        images
            (image, parts, y, x), more (or with more blocks) than the latent is long.
        rho
            Variance of the residuals in the likelihood.

        Raises
        ------
        ValueError
            When the networks have no linear layers, or there are too few images.
        """
        encoder, decoder = self.encoder.linear, self.mean_decoder.linear
        if encoder is None or decoder is None:
            raise ValueError("these networks have no linear layers: expected principal above 0")
        if isinstance(encoder, nn.Linear):
            coarse = F.avg_pool2d(images, self.encoder.shrink).flatten(1)
        else:
            coarse = F.unfold(images, self.multiple, stride=self.multiple).transpose(1, 2).flatten(0, 1)
        if len(coarse) <= self.latent:
            raise ValueError(f"expected more than {self.latent} images for as many components, found {len(coarse)}")
        mean = coarse.mean(0)
        torch.manual_seed(0)
        _, values, components = torch.svd_lowrank(coarse - mean, min(2 * self.latent, len(coarse)), niter=2)
        spread = values[: self.latent] / math.sqrt(len(coarse))
        components = components[:, : self.latent]
        towards, back = (components / spread).T, components * spread
        encoder.weight.copy_(towards.reshape(encoder.weight.shape))
        encoder.bias.copy_(-towards @ mean)  # type: ignore[union-attr]
        if isinstance(decoder, nn.Linear):
            decoder.weight.copy_(back)
            decoder.bias.copy_(mean)
        else:  # the mean over all blocks, one number a part: blocks shall not show
            decoder.weight.copy_(back.T.reshape(decoder.weight.shape))
            decoder.bias.copy_(mean.reshape(self.parts, -1).mean(1))  # type: ignore[union-attr]
        # one coarse pixel stands for shrink^2 fine ones, each with a residual of its own
        ratio = spread.square() * self.encoder.shrink**2 / rho
        last = self.encoder.dense or self.encoder.narrow
        last.bias[self.latent :] = -torch.log1p(ratio)  # type: ignore[index]

    def latent_shape(self, shape: tuple[int, int]) -> tuple[int, ...]:
        """Shape of z, without the batch, for images (y, x).

        Raises
        ------
        ValueError
            When only another size will do.
        """
        if self.size is None:
            return (self.latent, *(-(-length // self.multiple) for length in shape))
        if tuple(shape) != (self.size, self.size):
            raise ValueError(f"expected images of {self.size}x{self.size}, found {shape[0]}x{shape[1]}")
        return (self.latent,)

    def encode(self, e: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log-variance of z given images (batch, parts, y, x).

        Raises
        ------
        ValueError
            When the images do not fit.
        """
        if e.ndim != 4 or e.shape[1] != self.parts:
            raise ValueError(f"expected images (batch, {self.parts}, y, x), found {tuple(e.shape)}")
        self.latent_shape((e.shape[-2], e.shape[-1]))
        return self.encoder(pad_to_multiple(e, self.multiple))

    def mean(self, z: torch.Tensor) -> torch.Tensor:
        """G(z), (batch, parts, y, x), of the size of the padded images."""
        return self.mean_decoder(self._checked(z))

    def identity_diagonal(self) -> torch.Tensor:
        """The diagonal of L = rho^-1/2 I, a single number."""
        return bounded(self.identity, *self.bounds)

    def coefficients(self, z: torch.Tensor) -> torch.Tensor:
        """Values of L as `CholeskyFactor` takes them, of the size of the padded images.

        Without neighbours the two parts of a pixel do not couple either.

        The couplings are the network's output times the bounded diagonal of their column: L = M D with D the diagonal
        and M of unit diagonal, so that a step of the training means the same at every noise level.
        """
        low, high = self.bounds
        if self.covariance_decoder is None:
            self._checked(z)
            rows, columns = (self.size, self.size) if self.size else (n * self.multiple for n in z.shape[-2:])
            diagonal = self.identity_diagonal().expand(len(z), self.parts, rows, columns)
            return torch.cat([diagonal, torch.zeros_like(diagonal[:, 1:])], 1)
        raw = self.covariance_decoder(self._checked(z))
        diagonal = bounded(raw[:, : self.parts] + self.identity.detach(), low, high)
        if self.covariance == "diagonal":
            return torch.cat([diagonal, torch.zeros_like(diagonal[:, 1:])], 1)
        couplings = raw[:, self.parts :]
        cross = self.parts - 1  # the coupling within the pixel is in the first column
        of_columns = diagonal.repeat(1, (couplings.shape[1] - cross) // self.parts, 1, 1)
        return torch.cat([diagonal, couplings * torch.cat([diagonal[:, :cross], of_columns], 1)], 1)

    def factor(self, z: torch.Tensor, shape: tuple[int, int] | None = None) -> CholeskyFactor:
        """L(z); cropped to images (y, x) of `shape`."""
        values = self.coefficients(z)
        if shape not in (None, values.shape[-2:]):
            values = values[..., : shape[0], : shape[1]]
        return CholeskyFactor(values, self.parts, self.neighbourhood)

    def _checked(self, z: torch.Tensor) -> torch.Tensor:
        expected = (self.latent,) if self.size else (self.latent, "y", "x")
        if z.ndim != len(expected) + 1 or z.shape[1] != self.latent:
            raise ValueError(f"expected a latent (batch, {', '.join(map(str, expected))}), found {tuple(z.shape)}")
        return z


def elbo_terms(
    vae: VAE, e: torch.Tensor, z: torch.Tensor, mean: torch.Tensor, log_var: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """-log p(e|z) and KL(q(z|e) || N(0, I)) of each image in nats, (batch,) each; -ELBO is their sum.

    Duff et al. 2023, eq. 8, with all its constants. z is a draw from q = N(mean, exp(log_var)).
    """
    shape = (e.shape[-2], e.shape[-1])
    residual = e - vae.mean(z)[..., : shape[0], : shape[1]]
    nll = vae.factor(z, shape).nll(residual) + 0.5 * math.log(2 * math.pi) * e[0].numel()
    return nll, kl_to_standard(mean, log_var)


def kl_to_standard(mean: torch.Tensor, log_var: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, exp(log_var)) || N(0, I)) in nats, (batch,)."""
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var).flatten(1).sum(1)


def _check(
    parts: int, size: int | None, latent: int, widths: Sequence[int], covariance: str, neighbourhood: int,
    diagonal: Sequence[float],
) -> None:  # fmt: skip
    if parts not in (1, 2):
        raise ValueError(f"expected 1 part (real images) or 2 (real, imaginary), found {parts}")
    if covariance not in COVARIANCES:
        raise ValueError(f"covariance {covariance!r} is not known; there are: {', '.join(COVARIANCES)}")
    if covariance == "structured" and neighbourhood not in (3, 5):
        raise ValueError(f"expected a neighbourhood of 3 or 5 for a structured covariance, found {neighbourhood}")
    if latent < 1 or len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"expected a latent and widths of at least 1, found latent {latent}, widths {list(widths)}")
    multiple = 1 << (len(widths) - 1)
    if size is not None and (size < multiple or size % multiple):
        raise ValueError(f"expected a size that is a multiple of {multiple} ({len(widths) - 1} widths), found {size}")
    if len(diagonal) != 2 or not 0 < diagonal[0] < diagonal[1]:
        raise ValueError(f"expected diagonal: lowest and highest value, both above 0, found {list(diagonal)}")
