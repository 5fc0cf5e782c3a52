"""Complex images as networks see them: real and imaginary part as two channels."""

from __future__ import annotations

import torch


def to_channels(image: torch.Tensor) -> torch.Tensor:
    """Complex (..., y, x) to real (..., 2, y, x)."""
    return torch.view_as_real(image).movedim(-1, -3)


def to_complex(channels: torch.Tensor) -> torch.Tensor:
    """Real (..., 2, y, x) to complex (..., y, x).

    Raises
    ------
    ValueError
        If there are not two channels.
    """
    if channels.ndim < 3 or channels.shape[-3] != 2:
        raise ValueError(f"expected (..., 2, y, x), got {tuple(channels.shape)} for channels")
    return torch.view_as_complex(channels.movedim(-3, -1).contiguous())
