"""VAE priors in dense algebra: a linear-Gaussian one, whose reconstructions are known in closed form, and a curved one.

Both satisfy `vae_objective.VAEPrior` without a network and without `precision.CholeskyFactor`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

LATENTS = 5


class DenseFactor:
    """L of a precision L L^T as dense matrices (batch, n, n), on images (..., batch, parts, y, x)."""

    def __init__(self, lower: torch.Tensor, shape: tuple[int, ...]) -> None:
        self.lower = lower
        self._shape = shape

    def _apply(self, matrix: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        return (matrix @ e.reshape(*e.shape[:-3], -1, 1)).reshape(e.shape)

    def transposed(self, e: torch.Tensor) -> torch.Tensor:
        return self._apply(self.lower.mT, e)

    def product(self, u: torch.Tensor) -> torch.Tensor:
        return self._apply(self.lower, u)

    def precision(self, e: torch.Tensor) -> torch.Tensor:
        return self.product(self.transposed(e))

    def log_det(self) -> torch.Tensor:
        return self.lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def diagonal(self) -> torch.Tensor:
        return self.lower.diagonal(dim1=-2, dim2=-1).reshape(-1, *self._shape)


class LinearVAE:
    """G(z) = W z + b, and one L for all z, near the identity times `1 / spread`."""

    name = "linear"
    family = "vae"
    scale = (99.5, 1.0)

    def __init__(
        self, shape: tuple[int, int], parts: int = 1, spread: float = 0.1, dtype: torch.dtype = torch.float32,
        size: int | None = None, demodulated: bool = False,
    ) -> None:  # fmt: skip
        generator = torch.Generator().manual_seed(11)
        self.parts, self.size, self.demodulated, self.dtype = parts, size, demodulated, dtype
        self.image_shape = (parts, *shape)
        pixels = parts * shape[0] * shape[1]
        # latents of very different weight, as those of a trained VAE are
        sizes = torch.logspace(0, -1.5, LATENTS, dtype=dtype)
        self.weight = 0.4 * sizes * torch.randn(pixels, LATENTS, generator=generator, dtype=dtype)
        self.offset = 0.6 + 0.1 * torch.randn(pixels, generator=generator, dtype=dtype)
        near = torch.randn(pixels, pixels, generator=generator, dtype=dtype).tril(-1) / pixels**0.5
        uneven = torch.rand(pixels, generator=generator, dtype=dtype) + 0.5
        self.lower = (near + torch.diag(uneven)) / spread
        self.decodings = 0

    def latent_shape(self, shape: tuple[int, int]) -> tuple[int, ...]:
        return (LATENTS,)

    def encode(self, e: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The least-squares latents: an encoder that is no more than a guess, as any is."""
        mean = (e.flatten(1) - self.offset) @ torch.linalg.pinv(self.weight).mT
        return mean, torch.zeros_like(mean)

    def decode(self, z: torch.Tensor) -> tuple[torch.Tensor, DenseFactor]:
        self.decodings += 1
        mean = (z @ self.weight.mT + self.offset).reshape(-1, *self.image_shape)
        return mean, DenseFactor(self.lower.expand(len(z), -1, -1), self.image_shape)


class CurvedVAE(LinearVAE):
    """G(z) = W curve(2 z) + b, and rows of L that grow and shrink with z."""

    name = "curved"

    def __init__(
        self, shape: tuple[int, int], parts: int = 1, curve: Callable[[torch.Tensor], torch.Tensor] = torch.tanh,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        super().__init__(shape, parts, dtype=dtype)
        self.curve = curve

    def decode(self, z: torch.Tensor) -> tuple[torch.Tensor, DenseFactor]:
        self.decodings += 1
        mean = (self.curve(2 * z) @ self.weight.mT + self.offset).reshape(-1, *self.image_shape)
        growth = torch.exp(0.5 * torch.tanh(z @ self.weight.mT))
        return mean, DenseFactor(self.lower * growth[:, :, None], self.image_shape)
