"""The image that a sampler begins with (CCDF, Chung et al. 2022): a rough one, or one that another method made."""

from __future__ import annotations

from typing import Literal

import torch

from .denoiser_prior import Prior
from .forward import SenseModel
from .plug_and_play import PlugAndPlaySettings, plug_and_play
from .scan import Scan
from .total_variation import TvSettings, tv
from .wavelet import L1WaveletSettings, l1_wavelet

Start = Literal["sense", "zero-filled", "l1-wavelet", "tv", "pnp-admm", "noise"]

START = PlugAndPlaySettings.model_validate({"final_sigma": None})
"""Of the image to begin with: noise is put on it, so it needs no last denoising."""


def starting_image(
    scan: Scan, model: SenseModel, name: Start, rough: torch.Tensor, adjoint: torch.Tensor, prior: Prior
) -> tuple[torch.Tensor, int]:
    """The image to begin with, by the method of that name with its usual settings; and the network evaluations it took.

    Parameters
    ----------
    rough, adjoint
        CG-SENSE image and A^H y (..., y, x), or (..., set, y, x).

    Returns
    -------
    Image of the shape and in the units of `rough`: zero for `noise`.

    Raises
    ------
    ValueError
        For a method that knows no sets of maps, where the scan has several.
    """
    if name == "noise":
        return torch.zeros_like(rough), 0
    if name == "zero-filled":
        return adjoint, 0
    if name == "pnp-admm":
        try:
            found = plug_and_play(scan, model, prior, START)
        except ValueError as error:
            raise ValueError(f"start 'pnp-admm': {error}; use start: sense") from error
        return found.scale * found.image, found.iterations
    if name in ("l1-wavelet", "tv"):
        if model.sets:
            raise ValueError(
                f"start {name!r}: for one set of maps only, and this scan has several; use start: sense or pnp-admm"
            )
        if name == "tv":
            return tv(scan, None, TvSettings.model_validate({})).image, 0
        return l1_wavelet(scan, None, L1WaveletSettings.model_validate({})).image, 0
    return rough, 0
