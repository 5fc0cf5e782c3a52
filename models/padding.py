"""Any image size for networks that halve the resolution: padded at the end of each axis, cropped afterwards."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def pad_to_multiple(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """Extend (batch, channel, y, x) so that y and x are multiples of `multiple`: reflected, or repeated where small."""
    rows, columns = x.shape[-2:]
    pad_y, pad_x = -rows % multiple, -columns % multiple
    if not (pad_y or pad_x):
        return x
    return F.pad(x, (0, pad_x, 0, pad_y), mode="reflect" if min(rows, columns) > multiple else "replicate")
