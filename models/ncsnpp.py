"""NCSN++: the score network of Song et al. 2021 (appendix H), as Chung and Ye (2022) use it for MRI.

Gaussian Fourier features of the noise level, residual blocks in BigGAN's manner, anti-aliased resampling, a pyramid of
the input beside the way down (`residual`), skips scaled by 1/sqrt 2, self-attention where asked for. Group
normalisation takes statistics over the whole image, so such a network should be trained on images of about the size
that it is used on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .fir import double, halve, smooth
from .padding import pad_to_multiple

_HALF = math.sqrt(0.5)


def group_norm(channels: int) -> nn.GroupNorm:
    """Groups of four channels or more, 32 groups at most; fewer where `channels` is no multiple."""
    groups = next(count for count in range(max(1, min(channels // 4, 32)), 0, -1) if channels % count == 0)
    return nn.GroupNorm(groups, channels, eps=1e-6)


def _conv(
    channels_in: int, channels: int, size: int = 3, zero: bool = False, padding: int | None = None, stride: int = 1
) -> nn.Conv2d:
    conv = nn.Conv2d(channels_in, channels, size, stride, size // 2 if padding is None else padding)
    if zero:
        nn.init.zeros_(conv.weight)
    else:
        nn.init.xavier_uniform_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


class FourierFeatures(nn.Module):
    """sin and cos of 2 pi f v at random fixed frequencies f: (batch,) -> (batch, 2 count)."""

    frequencies: torch.Tensor

    def __init__(self, count: int, scale: float, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.register_buffer("frequencies", scale * torch.randn(count))

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        """v = `factor` * noise."""
        with torch.autocast(noise.device.type, enabled=False):  # angles of hundreds of radians: no half precision
            angles = 2 * math.pi * self.factor * noise[:, None] * self.frequencies
            return torch.cat([angles.sin(), angles.cos()], dim=1)


class BigGANBlock(nn.Module):
    """Residual block (batch, channels_in, y, x) -> (batch, channels, y', x'); `resample` "up", "down" or "" first."""

    def __init__(self, channels_in: int, channels: int, embedding: int, resample: str = "") -> None:
        super().__init__()
        self.resample = {"up": double, "down": halve, "": None}[resample]
        self.first_norm = group_norm(channels_in)
        self.first = _conv(channels_in, channels)
        self.shift = nn.Linear(embedding, channels)
        self.second_norm = group_norm(channels)
        self.second = _conv(channels, channels, zero=True)
        self.skip = _conv(channels_in, channels, 1) if channels != channels_in or resample else nn.Identity()

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """`embedding` (batch, embedding), after its activation."""
        h = F.silu(self.first_norm(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.first(h) + self.shift(embedding)[:, :, None, None]
        h = self.second(F.silu(self.second_norm(h)))
        return _HALF * (self.skip(x) + h)


class Attention(nn.Module):
    """Self-attention over all pixels, one head: (batch, channels, y, x) -> the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.query, self.key, self.value = (_conv(channels, channels, 1) for _ in range(3))
        self.leave = _conv(channels, channels, 1, zero=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (batch, channels, y, x)."""
        h = self.norm(x)
        query, key, value = (part(h).flatten(2).transpose(1, 2) for part in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(x.shape)
        return _HALF * (x + self.leave(mixed))


class PyramidDown(nn.Module):
    """The image pyramid's next level: filtered, then a 3x3 convolution with stride 2."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv = _conv(channels_in, channels, padding=0, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, channels_in, 2y, 2x) -> (batch, channels, y, x)."""
        return self.conv(smooth(x))


class NCSNpp(nn.Module):
    """NCSN++ (batch, channels, y, x) -> the same shape, any y and x (padded and cropped inside).

    Parameters
    ----------
    image_channels
        2 for complex images (real, imaginary), 1 for magnitudes.
    widths
        Channels of each resolution, finest first; every level halves the resolution. Best multiples of 32.
    blocks
        Residual blocks of each level on the way down; the way up has one more.
    attention
        Levels (0 is the finest) with self-attention. Its time goes with the square of the pixels of that level.
    middle_attention
        Self-attention at the coarsest level, between its blocks.
    fourier_scale
        Standard deviation of the Fourier features' frequencies.
    noise_factor
        The features are of `noise_factor * noise`: 4 makes it ln(sigma), as in Song et al.; EDM's networks take 1.
    centre
        The network sees 2 x - 1, as networks for images from 0 to 1 do.
    """

    def __init__(
        self,
        image_channels: int = 2,
        widths: Sequence[int] = (64, 64, 128, 128, 128),
        blocks: int = 2,
        attention: Sequence[int] = (),
        middle_attention: bool = True,
        fourier_scale: float = 16.0,
        noise_factor: float = 4.0,
        centre: bool = False,
    ) -> None:
        super().__init__()
        if [level for level in attention if not 0 <= level < len(widths)]:
            raise ValueError(f"attention: expected levels from 0 to {len(widths) - 1}, got {list(attention)}")
        self.image_channels, self.levels, self.blocks = image_channels, len(widths), blocks
        self.attention, self.middle_attention, self.centre = frozenset(attention), middle_attention, centre
        features, embedding = widths[0], 4 * widths[0]
        # one list in the order of execution, as published weights are numbered
        layers: list[nn.Module] = [
            FourierFeatures(features, fourier_scale, noise_factor),
            nn.Linear(2 * features, embedding),
            nn.Linear(embedding, embedding),
            _conv(image_channels, features),
        ]
        passed, width, pyramid = [features], features, image_channels
        for level, following in enumerate(widths):
            for _ in range(blocks):
                layers.append(BigGANBlock(width, following, embedding))
                width = following
                if level in self.attention:
                    layers.append(Attention(width))
                passed.append(width)
            if level + 1 < len(widths):
                layers += [BigGANBlock(width, width, embedding, "down"), PyramidDown(pyramid, width)]
                pyramid = width
                passed.append(width)
        layers.append(BigGANBlock(width, width, embedding))
        if middle_attention:
            layers.append(Attention(width))
        layers.append(BigGANBlock(width, width, embedding))
        for level in reversed(range(len(widths))):
            for _ in range(blocks + 1):
                layers.append(BigGANBlock(width + passed.pop(), widths[level], embedding))
                width = widths[level]
            if level in self.attention:
                layers.append(Attention(width))
            if level:
                layers.append(BigGANBlock(width, width, embedding, "up"))
        layers += [group_norm(width), _conv(width, image_channels, zero=True)]
        self.layers = nn.ModuleList(layers)

    @property
    def multiple(self) -> int:
        """Image sizes are padded to a multiple of this inside."""
        return 2 ** (self.levels - 1)

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """x (batch, channels, y, x), noise (batch,) = ln(sigma) / 4."""
        rows, columns = x.shape[-2:]
        x = pad_to_multiple(2 * x - 1 if self.centre else x, self.multiple)
        layer = iter(self.layers)
        embedding = next(layer)(noise)
        embedding = next(layer)(embedding)
        embedding = F.silu(next(layer)(F.silu(embedding)))
        pyramid = x
        h = next(layer)(x)
        passed = [h]
        for level in range(self.levels):
            for _ in range(self.blocks):
                h = next(layer)(h, embedding)
                if level in self.attention:
                    h = next(layer)(h)
                passed.append(h)
            if level + 1 < self.levels:
                h = next(layer)(h, embedding)
                h = pyramid = _HALF * (next(layer)(pyramid) + h)
                passed.append(h)
        h = next(layer)(h, embedding)
        if self.middle_attention:
            h = next(layer)(h)
        h = next(layer)(h, embedding)
        for level in reversed(range(self.levels)):
            for _ in range(self.blocks + 1):
                h = next(layer)(torch.cat([h, passed.pop()], dim=1), embedding)
            if level in self.attention:
                h = next(layer)(h)
            if level:
                h = next(layer)(h, embedding)
        h = F.silu(next(layer)(h))
        return next(layer)(h)[..., :rows, :columns]
