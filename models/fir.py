"""Anti-aliased resampling by 2: the FIR filter (1, 3, 3, 1) / 8 of each axis, as in StyleGAN2 and NCSN++.

Images are zero outside. Means are kept by both directions, and up is four times the adjoint of down.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

TAPS = (1.0, 3.0, 3.0, 1.0)


def _filter(x: torch.Tensor, gain: float) -> torch.Tensor:
    taps = torch.tensor(TAPS, device=x.device, dtype=x.dtype)
    kernel = gain * taps[:, None] * taps[None, :] / taps.sum() ** 2
    return kernel.expand(x.shape[1], 1, len(TAPS), len(TAPS)).contiguous()


def halve(x: torch.Tensor) -> torch.Tensor:
    """(batch, channel, 2y, 2x) -> (batch, channel, y, x)."""
    return F.conv2d(x, _filter(x, 1.0), stride=2, padding=1, groups=x.shape[1])


def double(x: torch.Tensor) -> torch.Tensor:
    """(batch, channel, y, x) -> (batch, channel, 2y, 2x)."""
    return F.conv_transpose2d(x, _filter(x, 4.0), stride=2, padding=1, groups=x.shape[1])


def smooth(x: torch.Tensor) -> torch.Tensor:
    """Filter (batch, channel, y, x) without decimating -> (batch, channel, y + 1, x + 1)."""
    return F.conv2d(x, _filter(x, 1.0), padding=2, groups=x.shape[1])
