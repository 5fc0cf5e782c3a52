"""A U-Net from image to image: what supervised learning gives that knows nothing of the scan but its first image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from .unet import UNet

MAX_PIXELS = 1 << 20
"""Pixels that the network sees at once where no gradient is wanted: about 1 GB of activations."""


class ImageUNet(nn.Module):
    """`x + UNet(x)` on complex images of any size; the network is that of the denoisers, at one fixed noise level.

    Parameters
    ----------
    widths, blocks
        As of `UNet`.
    """

    start = "sense"

    def __init__(self, widths: Sequence[int] = (24, 48, 96, 128), blocks: Sequence[int] = (1, 1, 1, 1)) -> None:
        super().__init__()
        self.unet = UNet(2, widths, blocks, embedding=16)
        # the network is not told a noise level, so what would embed it is not trained either
        self.unet.embed.requires_grad_(False)

    def forward(
        self, x: torch.Tensor, adjoint: torch.Tensor, normal: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """The improved image (..., y, x) complex of a first one; the data are not asked again.

        Parameters
        ----------
        x
            CG-SENSE image, (..., y, x) complex.
        adjoint, normal
            Not used: they are what a `VariationalNetwork` is given.
        """
        pictures = torch.view_as_real(x.reshape(-1, *x.shape[-2:])).movedim(-1, 1)
        at_once = len(pictures)
        if not torch.is_grad_enabled():
            at_once = max(1, MAX_PIXELS // (x.shape[-2] * x.shape[-1]))
        parts = [self.unet(part, part.new_zeros(len(part))).float() for part in pictures.split(at_once)]
        change = torch.cat(parts).movedim(1, -1).contiguous()
        return x + torch.view_as_complex(change).reshape(x.shape)
