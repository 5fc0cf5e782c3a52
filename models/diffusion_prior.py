"""A diffusion prior: a denoiser on complex images of any size, in a scale of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from .preconditioning import Denoiser

MAX_PIXELS = 1 << 20  # the network sees at most so many pixels at once: about 1 GB of activations


@dataclass
class DiffusionPrior:
    """A denoiser `D(x, sigma) = E[x0 | x0 + sigma (n_re + i n_im)]` on complex images.

    Images are in the prior's own scale (`scale`). `sigma` is the standard deviation of the real and of the imaginary
    part each.

    Attributes
    ----------
    denoiser
        Network with its preconditioning, on two real channels.
    name
        For the image's history.
    sigma_min, sigma_max
        Noise levels that it was trained on.
    network
        Name and arguments of the network, as written into the file.
    autocast
        None (float32), or the type of torch autocast.
    scale
        (percentile, value): which percentile of a magnitude image has which value in the prior's scale.
    """

    denoiser: Denoiser
    name: str
    sigma_min: float
    sigma_max: float
    network: dict[str, Any] = field(default_factory=dict)
    autocast: torch.dtype | None = None
    scale: tuple[float, float] = (99.5, 1.0)

    @property
    def size(self) -> int | None:
        """Any size of image will do."""
        return None

    @property
    def family(self) -> str:
        """Which methods it is for; see `Method.prior`."""
        return "diffusion"

    def compile(self) -> None:
        """Compile the network: the first image of each size and batch takes a minute or so longer."""
        self.denoiser.compile()

    def warm_up(self, shape: tuple[int, int]) -> None:
        """Denoise noise of this size (y, x), so that no timed image pays for the first call."""
        noise = torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)).to(self.device)
        self.for_image(noise).denoise(noise, self.sigma_max)

    def facts(self) -> str:
        """What decides its results besides the weights, in words."""
        return f"{self.sigma_min} {self.sigma_max} {self.sigma_data} {self.scale}"

    def weights(self) -> dict[str, torch.Tensor]:
        """All weights by name."""
        return self.denoiser.state_dict()

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.denoiser.parameters()).device

    @property
    def sigma_data(self) -> float:
        """Standard deviation of one real channel of the prior's images."""
        return self.denoiser.sigma_data

    @property
    def kind(self) -> str:
        """What its network was trained as: edm, ve or ncsnv2."""
        return self.denoiser.kind

    def for_image(self, image: torch.Tensor) -> DiffusionPrior:
        """Itself: a complex prior is for any image."""
        return self

    def denoise(self, x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """Denoise complex images; differentiable with respect to `x` where `x` requires a gradient.

        Parameters
        ----------
        x
            (..., y, x) complex64.
        sigma
            Noise level of each real channel; a number, or a tensor that broadcasts over the leading axes of `x`.

        Returns
        -------
        (..., y, x) complex64.
        """
        flat = x.reshape(-1, *x.shape[-2:])
        clean = self._run(torch.view_as_real(flat).movedim(-1, 1), _levels(x, sigma))
        return torch.view_as_complex(clean.movedim(1, -1).contiguous()).reshape(x.shape)

    def _run(self, channels: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """D of real images (batch, channel, y, x), float32, a part of the batch at a time."""
        at_once = max(1, MAX_PIXELS // (channels.shape[-2] * channels.shape[-1]))
        wanted = torch.is_grad_enabled() and channels.requires_grad
        with (
            torch.set_grad_enabled(wanted),
            torch.autocast(channels.device.type, dtype=self.autocast, enabled=self.autocast is not None),
        ):
            parts = zip(channels.float().split(at_once), level.split(at_once), strict=True)
            return torch.cat([self.denoiser(part, sigma) for part, sigma in parts]).float()

    def to(self, device: torch.device | str) -> DiffusionPrior:
        """Move the weights to `device` and return self."""
        self.denoiser.to(device)
        return self


def _levels(x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
    """One noise level for each image (..., y, x) of `x`: (batch,)."""
    return torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(x.shape[:-2]).reshape(-1)
