"""Encoder and decoder of a VAE, of residual blocks (Duff et al. 2023, section 4), linear layers beside them or not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

MAX_LOG_VAR = 3.0
SEED_CHANNELS = 16  # of the coarsest map that the dense layer makes


def _activation(x: torch.Tensor) -> torch.Tensor:
    """The paper's rectifier, leaky so that no channel dies; on a CPU silu would be a fifth of the training's time."""
    return F.leaky_relu(x, 0.1)


def _keeping(layer: nn.Conv2d | nn.Linear, gain: float = 1.0) -> Any:
    """`layer` with weights that keep the variance times gain^2: without normalisation torch's own choice loses a third
    at every layer, and the training its first thousand steps."""
    nn.init.normal_(layer.weight, 0, gain / math.sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ResizingBlock(nn.Module):
    """Residual block of the paper: convolution, resizing, two convolutions, added to the resized input.

    Parameters
    ----------
    resize
        "up" (bilinear, twice), "down" (strided convolution, half) or "same".
    dropout
        Share of channels that are dropped in training.
    """

    def __init__(self, channels_in: int, channels: int, resize: str = "same", dropout: float = 0.0) -> None:
        super().__init__()
        self.resize = resize
        stride = 2 if resize == "down" else 1
        self.enter = nn.Conv2d(channels_in, channels, 3, padding=1, stride=stride)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.drop = nn.Dropout2d(dropout) if dropout else nn.Identity()
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        same = channels_in == channels and resize == "same"
        self.skip = nn.Identity() if same else _keeping(nn.Conv2d(channels_in, channels, 1))
        _keeping(self.enter, math.sqrt(2))
        _keeping(self.first, math.sqrt(2))
        _keeping(self.second, 0.3)  # the branch begins small beside the skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (batch, channels_in, y, x) -> (batch, channels, y, x), resized."""
        h = self.enter(_activation(x))
        # the 1x1 convolution commutes with the interpolation, and before it there are fewer pixels
        skip = self.skip(F.avg_pool2d(x, 2) if self.resize == "down" else x)
        if self.resize == "up":
            h, skip = (F.interpolate(part, scale_factor=2, mode="bilinear", align_corners=False) for part in (h, skip))
        return skip + self.second(self.drop(_activation(self.first(_activation(h)))))


@dataclass(frozen=True)
class Layout:
    """Of an encoder, and of the decoder that goes back.

    Attributes
    ----------
    size
        Edge of the images for a dense latent; None for a latent map.
    latent
        Length of the dense latent, or channels of the map.
    widths
        Channels of each resolution, finest first; after each the resolution is halved.
    middle
        Channels of the coarsest resolution.
    dropout
        Share of channels that are dropped in training.
    principal
        What the linear layers see and give, as of `vae.VAE`; 0: there are none.
    """

    size: int | None
    latent: int
    widths: Sequence[int]
    middle: int
    dropout: float
    principal: int = 0

    @property
    def coarse(self) -> int:
        """Edge of the map that the dense layer makes; 0 without one."""
        return 0 if self.size is None else self.size >> len(self.widths)


class Encoder(nn.Module):
    """Images (batch, parts, y, x) to mean and logarithm of the variance of z, each (batch, *latent)."""

    def __init__(self, parts: int, layout: Layout) -> None:
        super().__init__()
        size, latent, widths, middle = layout.size, layout.latent, layout.widths, layout.middle
        dropout, principal = layout.dropout, layout.principal
        self.linear: nn.Linear | nn.Conv2d | None = None
        if principal and size:
            self.linear = nn.Linear(parts * principal**2, latent)
        elif principal:
            self.linear = nn.Conv2d(parts, latent, principal, stride=principal)
        self.shrink = size // principal if size and principal else 1
        self.enter = _keeping(nn.Conv2d(parts, widths[0], 3, padding=1))
        following = [*widths[1:], middle]
        self.blocks = nn.Sequential(
            *(ResizingBlock(a, b, "down", dropout) for a, b in zip(widths, following, strict=True)),
            ResizingBlock(middle, middle, "same", dropout),
        )
        self.narrow = _keeping(nn.Conv2d(middle, 2 * latent if size is None else SEED_CHANNELS, 1))
        self.dense = _keeping(nn.Linear(SEED_CHANNELS * layout.coarse**2, 2 * latent)) if size is not None else None
        last = self.narrow if self.dense is None else self.dense
        with torch.no_grad():  # q begins narrow, so that the decoder sees which image it is
            last.weight[:latent] *= 0.0 if principal else 1.0
            last.weight[latent:] *= 0.1
            last.bias[latent:] = -3.0  # type: ignore[index]

    def forward(self, e: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log-variance, float32."""
        h = self.blocks(self.enter(e.contiguous(memory_format=torch.channels_last)))
        h = self.narrow(_activation(h))
        if self.dense is not None:
            h = self.dense(h.flatten(1))
        mean, log_var = h.float().chunk(2, 1)
        if self.linear is not None:
            dense = isinstance(self.linear, nn.Linear)
            mean = mean + self.linear(F.avg_pool2d(e, self.shrink).flatten(1) if dense else e).float()
        # a smooth ceiling: q wider than this tells nothing, and exp of a stray value would end the training
        log_var = MAX_LOG_VAR - F.softplus(MAX_LOG_VAR - log_var)
        return mean.contiguous(), log_var.contiguous()


class Decoder(nn.Module):
    """Latent z (batch, *latent) to (batch, channels, y, x)."""

    def __init__(self, channels: int, layout: Layout) -> None:
        super().__init__()
        size, latent, widths, middle = layout.size, layout.latent, layout.widths, layout.middle
        dropout, principal = layout.dropout, layout.principal
        self.principal = principal
        self.linear: nn.Linear | nn.ConvTranspose2d | None = None
        if principal and size:
            self.linear = nn.Linear(latent, channels * principal**2)
        elif principal:
            self.linear = nn.ConvTranspose2d(latent, channels, principal, stride=principal)
        self.coarse = layout.coarse
        self.dense = _keeping(nn.Linear(latent, SEED_CHANNELS * self.coarse**2)) if size is not None else None
        self.enter = _keeping(nn.Conv2d(latent if size is None else SEED_CHANNELS, middle, 3, padding=1))
        before = [middle, *reversed(widths[1:])]
        self.blocks = nn.Sequential(
            ResizingBlock(middle, middle, "same", dropout),
            *(ResizingBlock(a, b, "up", dropout) for a, b in zip(before, reversed(widths), strict=True)),
        )
        self.leave = nn.Conv2d(widths[0], channels, 3, padding=1)
        if principal:
            nn.init.zeros_(self.leave.weight)
            nn.init.zeros_(self.leave.bias)  # type: ignore[arg-type]

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """float32, at the resolution of the images."""
        linear = None if self.linear is None else self.linear(z).float()
        if self.dense is not None:
            z = self.dense(z).reshape(len(z), SEED_CHANNELS, self.coarse, self.coarse)
        h = self.blocks(self.enter(z.contiguous(memory_format=torch.channels_last)))
        image = self.leave(_activation(h)).float()
        if linear is None:
            return image
        if not isinstance(self.linear, nn.Linear):
            return image + linear
        coarse = linear.reshape(len(z), -1, self.principal, self.principal)
        return image + F.interpolate(coarse, image.shape[-2:], mode="bilinear", align_corners=False)
