"""What every reconstruction takes and gives: a scan of one slice, and its reconstruction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

Progress = Callable[[int, int], None]
"""Called as `progress(step, steps)` while a reconstruction runs."""


@dataclass(frozen=True)
class Scan:
    """One slice (or a batch of slices) of Cartesian k-space, ready for a reconstruction.

    Attributes
    ----------
    kspace
        (..., coil, y, x) complex64, zero where nothing was sampled; whitened, so that the noise is
        uncorrelated between coils and equal in all of them. DC lies at index N // 2.
    mask
        (..., y, x) bool, true where sampled; for line masks (..., y, 1), which lets the solvers use
        one-dimensional transforms.
    maps
        (..., coil, y, x) complex64, or (..., set, coil, y, x) for soft SENSE; unit norm over coils on
        their support. None where the method needs none.
    sigma
        Standard deviation of the complex noise in one sample of `kspace`: E|n|^2 = sigma^2.
    """

    kspace: torch.Tensor
    mask: torch.Tensor
    maps: torch.Tensor | None
    sigma: float

    @property
    def effective_r(self) -> float:
        """Undersampling factor that the mask really has: points of the matrix over points sampled."""
        mask = self.mask.float()
        return float(1.0 / mask.mean().clamp_min(1e-12))


@dataclass
class Reconstruction:
    """What a method returns.

    Attributes
    ----------
    image
        (..., y, x) complex64 in the units of `Scan.kspace` under an orthonormal transform.
    std
        (..., y, x) float32, pixelwise standard deviation of the magnitude, or None where the method has none.
    info
        What the image's history shall say: method, nfe, iterations, seconds, ...
    """

    image: torch.Tensor
    std: torch.Tensor | None = None
    info: dict[str, Any] = field(default_factory=dict)


class Settings(BaseModel):
    """Base of every method's settings: unknown keys are errors, values are checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def network_evaluations(self) -> int | None:
        """The most network evaluations of one image with all its samples; None where nobody knows or there are none."""
        return None

    def without_std(self) -> Settings:
        """These settings without what is done for the standard deviation alone; the image is the same."""
        return self

    def brief(self) -> Settings:
        """These settings with as few noise levels as still run all of the method's code: for a warm-up."""
        fewer = {name: 2 for name in ("steps", "levels") if getattr(self, name, 0) > 2}
        return self.model_copy(update=fewer)
