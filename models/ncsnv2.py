"""NCSNv2: the score network of Song and Ermon 2020, as Jalal et al. (2021) use it for MRI.

A RefineNet: residual stages that first halve the resolution and then dilate instead, each refined together with what
comes from the coarser one. Instance normalisation that keeps the channels' means (InstanceNorm++), ELU. It is not
told the noise level: the score is its output divided by sigma.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .padding import pad_to_multiple


class InstanceNormPlus(nn.Module):
    """InstanceNorm++ (Song and Ermon 2019, appendix A): `gamma (instance norm + alpha standardised mean) + beta`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(1 + 0.02 * torch.randn(channels))
        self.gamma = nn.Parameter(1 + 0.02 * torch.randn(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (batch, channels, y, x) -> the same shape; statistics in float32 at least."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(wide, dim=(2, 3), correction=0, keepdim=True)
        between, overall = torch.var_mean(mean, dim=1, correction=1, keepdim=True)  # over the channels
        standard = (mean - overall) / (between + 1e-5).sqrt()
        alpha, gamma, beta = (part[:, None, None] for part in (self.alpha, self.gamma, self.beta))
        return (gamma * ((wide - mean) / (variance + 1e-5).sqrt() + alpha * standard) + beta).to(x.dtype)


class _PooledConv(nn.Module):
    """A convolution, then the mean over 2 x 2 pixels."""

    def __init__(self, channels_in: int, channels: int, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, size, padding=size // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(self.conv(x), 2)


def _dilated(channels_in: int, channels: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels, 3, padding=dilation, dilation=dilation)


class ResidualBlock(nn.Module):
    """norm, ELU, conv, twice; the skip is convolved where the stage begins with `enter`.

    With `enter` and no dilation the resolution is halved.
    """

    def __init__(self, channels_in: int, channels: int, dilation: int, enter: bool) -> None:
        super().__init__()
        between = channels_in if enter else channels
        self.first_norm = InstanceNormPlus(channels_in)
        self.first = _dilated(channels_in, between, dilation)
        self.second_norm = InstanceNormPlus(between)
        self.second: nn.Module
        self.skip: nn.Module
        if enter and dilation == 1:
            self.second = _PooledConv(between, channels, 3)
            self.skip = _PooledConv(channels_in, channels, 1)
        else:
            self.second = _dilated(between, channels, dilation)
            self.skip = _dilated(channels_in, channels, dilation) if enter else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (batch, channels_in, y, x) -> (batch, channels, y', x')."""
        h = self.first(F.elu(self.first_norm(x)))
        return self.skip(x) + self.second(F.elu(self.second_norm(h)))


class ConvUnits(nn.Module):
    """Residual convolution units: each twice ELU and convolution without bias."""

    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2 * units))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (batch, channels, y, x) -> the same shape."""
        for first, second in zip(self.convs[::2], self.convs[1::2], strict=True):
            x = x + second(F.elu(first(F.elu(x))))
        return x


class Refine(nn.Module):
    """RefineNet's block: adapt each input, bring them to the finest one's size and sum, pool in a chain, convolve."""

    def __init__(self, inputs: Sequence[int], channels: int, last: bool) -> None:
        super().__init__()
        self.adapt = nn.ModuleList(ConvUnits(width, 2) for width in inputs)
        self.fuse = nn.ModuleList(
            nn.Conv2d(width, channels, 3, padding=1) for width in (inputs if len(inputs) > 1 else ())
        )
        self.pool = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.leave = ConvUnits(channels, 3 if last else 1)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Inputs (batch, width, y, x), the finest first -> (batch, channels, y, x) of the finest one's size."""
        adapted = [adapt(x) for adapt, x in zip(self.adapt, inputs, strict=True)]
        h = adapted[0]
        if self.fuse:
            size = inputs[0].shape[-2:]
            convolved = [fuse(x) for fuse, x in zip(self.fuse, adapted, strict=True)]
            h = convolved[0] + F.interpolate(convolved[1], size=size, mode="bilinear", align_corners=True)
        h = path = F.elu(h)
        for conv in self.pool:
            path = conv(F.max_pool2d(path, 5, stride=1, padding=2))
            h = h + path
        return self.leave(h)


class NCSNv2(nn.Module):
    """NCSNv2 (batch, channels, y, x) -> the same shape, any y and x (padded and cropped inside).

    Parameters
    ----------
    image_channels
        2 for complex images (real, imaginary), 1 for magnitudes.
    widths
        Channels of each stage. The published networks, of width n: (n, 2n, 2n, 2n); deeper (n, 2n, 2n, 4n, 4n);
        deepest, paper 1's, (n, 2n, 2n, 2n, 4n, 4n) with n = 128.
    dilations
        Of each stage; a stage after the first halves the resolution where its dilation is 1. The published networks
        end with 2, 4.
    centre
        The network sees 2 x - 1, as networks for images from 0 to 1 do.
    """

    def __init__(
        self,
        image_channels: int = 2,
        widths: Sequence[int] = (64, 128, 128, 128),
        dilations: Sequence[int] = (1, 1, 2, 4),
        centre: bool = False,
    ) -> None:
        super().__init__()
        if len(widths) != len(dilations) or dilations[0] != 1:
            raise ValueError(
                "widths and dilations must be equally long and the first dilation 1, "
                f"got widths {list(widths)}, dilations {list(dilations)}"
            )
        self.image_channels, self.centre = image_channels, centre
        self.multiple = 2 ** sum(dilation == 1 for dilation in dilations[1:])
        self.enter = nn.Conv2d(image_channels, widths[0], 3, padding=1)
        self.stages, self.refine = nn.ModuleList(), nn.ModuleList()
        before = widths[0]
        for number, (width, dilation) in enumerate(zip(widths, dilations, strict=True)):
            first = ResidualBlock(before, width, dilation, enter=number > 0)
            self.stages.append(nn.Sequential(first, ResidualBlock(width, width, dilation, enter=False)))
            before = width
        coarser = 0  # channels of what comes from the stage below
        for number in reversed(range(len(widths))):
            inputs = [widths[number], coarser] if coarser else [widths[number]]
            # the deepest one keeps its width, all others take that of the stage that they are handed to
            coarser = widths[max(0, number - 1)] if coarser else widths[number]
            self.refine.append(Refine(inputs, coarser, last=number == 0))
        self.norm = InstanceNormPlus(coarser)
        self.leave = nn.Conv2d(coarser, image_channels, 3, padding=1)

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """x (batch, channels, y, x); `noise` as all networks take it, and this one has no use for it."""
        rows, columns = x.shape[-2:]
        h = self.enter(pad_to_multiple(2 * x - 1 if self.centre else x, self.multiple))
        finer = []
        for stage in self.stages:
            h = stage(h)
            finer.append(h)
        h = self.refine[0](finer.pop())
        for refine in self.refine[1:]:
            h = refine(finer.pop(), h)
        return self.leave(F.elu(self.norm(h)))[..., :rows, :columns]
