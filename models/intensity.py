"""The scale of an image: what to divide it by so that a prior knows it."""

from __future__ import annotations

import torch


def intensity_scale(image: torch.Tensor, scale: tuple[float, float] = (99.5, 1.0)) -> float:
    """What to divide `image` by so that this percentile of its magnitude has this value; `scale` as of a prior.

    Raises
    ------
    ValueError
        If the image is zero.
    """
    percentile, value = scale
    magnitude = image.abs().flatten()
    found = float(magnitude.kthvalue(max(1, round(percentile / 100 * magnitude.numel()))).values)
    if not found > 0:
        raise ValueError("the image to begin with is zero nearly everywhere: the scan holds no signal")
    return found / value
