"""A size-agnostic convolutional network for denoisers: a U-Net without any statistics over the image.

Normalisation over the whole image (group or instance norm) would make the answer depend on how much background a
picture holds, so a network trained on patches would change its mind on a full slice. Here every layer is local and
no layer normalises: residual branches that start at zero and EDM's preconditioning keep the training stable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .padding import pad_to_multiple


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class NoiseEmbedding(nn.Module):
    """Fourier features of c_noise through two dense layers: (batch,) -> (batch, width)."""

    frequencies: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, math.log(64.0), 16)))
        self.dense = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        """Embed `noise` = ln(sigma) / 4, (batch,)."""
        angles = noise.float()[:, None] * self.frequencies
        return self.dense(torch.cat([angles.cos(), angles.sin()], dim=1))


class ResidualBlock(nn.Module):
    """`x + conv((1 + scale) silu(conv(silu(x))))`; the scale of each channel comes from the noise level."""

    def __init__(self, channels_in: int, channels: int, embedding: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.scale = nn.Linear(embedding, channels)
        nn.init.zeros_(self.scale.weight)
        nn.init.zeros_(self.scale.bias)
        self.second = _zero(nn.Conv2d(channels, channels, 3, padding=1))
        self.skip = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """x (batch, channels_in, y, x) -> (batch, channels, y, x)."""
        h = F.silu(self.first(F.silu(x)))
        # in this view the channels lie contiguous: the product is 14 times faster on a CPU than with (b, c, 1, 1)
        scale = (1 + self.scale(embedding))[:, None, None, :].to(h.dtype)
        h = (h.permute(0, 2, 3, 1) * scale).permute(0, 3, 1, 2)
        return self.skip(x) + self.second(h)


class Blocks(nn.ModuleList):
    """Residual blocks one after the other, all with the same embedding."""

    def __init__(self, count: int, width: int, embedding: int) -> None:
        super().__init__([ResidualBlock(width, width, embedding) for _ in range(count)])

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """x (batch, width, y, x) -> the same shape."""
        for block in self:
            x = block(x, embedding)
        return x


class UNet(nn.Module):
    """U-Net (batch, channels, y, x) -> the same shape, any y and x (reflected and cropped inside).

    Parameters
    ----------
    image_channels
        2 for complex images (real, imaginary), 1 for magnitudes.
    widths
        Channels of each resolution, finest first; every level halves the resolution.
    blocks
        Residual blocks of each level on the way down; the way up has as many.
    embedding
        Width of the noise-level embedding.
    """

    def __init__(
        self,
        image_channels: int = 2,
        widths: Sequence[int] = (32, 64, 128, 160),
        blocks: Sequence[int] = (2, 2, 2, 2),
        embedding: int = 128,
    ) -> None:
        super().__init__()
        if len(widths) != len(blocks):
            raise ValueError(f"widths and blocks must be equally long, got {len(widths)} and {len(blocks)}")
        self.image_channels = image_channels
        self.widths = tuple(widths)
        self.embed = NoiseEmbedding(embedding)
        self.enter = nn.Conv2d(image_channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        self.shrink = nn.ModuleList()
        self.grow = nn.ModuleList()
        self.up = nn.ModuleList()
        for level, width in enumerate(widths):
            self.down.append(Blocks(blocks[level], width, embedding))
            self.up.append(Blocks(blocks[level], width, embedding))
            if level + 1 < len(widths):
                self.shrink.append(nn.Conv2d(width, widths[level + 1], 2, stride=2))
                self.grow.append(nn.Conv2d(widths[level + 1], width, 1))
        self.leave = _zero(nn.Conv2d(widths[0], image_channels, 3, padding=1))

    @property
    def multiple(self) -> int:
        """Image sizes are padded to a multiple of this inside."""
        return 2 ** (len(self.widths) - 1)

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """x (batch, channels, y, x), noise (batch,) = ln(sigma) / 4."""
        rows, columns = x.shape[-2:]
        x = pad_to_multiple(x, self.multiple)
        embedding = self.embed(noise)
        h = self.enter(x.contiguous(memory_format=torch.channels_last))
        passed = []
        for level, stage in enumerate(self.down):
            h = stage(h, embedding)
            if level + 1 < len(self.widths):
                passed.append(h)
                h = self.shrink[level](h)
        for level in reversed(range(len(self.widths))):
            if level + 1 < len(self.widths):
                # a 1x1 convolution first, then nearest neighbour: four times cheaper than the other order
                h = passed.pop() + F.interpolate(self.grow[level](h), scale_factor=2, mode="nearest")
            h = self.up[level](h, embedding)
        return self.leave(h)[..., :rows, :columns]
