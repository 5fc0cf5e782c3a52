"""A prior that was trained on magnitudes alone, for complex images (Chung and Ye 2022, algorithm 3).

Its real denoiser is applied to the real and to the imaginary part. That is right only where the real part is nearly
the magnitude, so the image is turned by a smooth estimate of its phase first, and back afterwards. (The authors' code
squeezes the phase into [0, 1] rad instead, which real scans do not allow.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from .diffusion_prior import DiffusionPrior, _levels

PHASE_BAND = 0.2
"""Share of each k-space axis in the phase's window: the phase of MR images varies over a fifth of the image or more,
noise and aliasing lie farther out."""


def smooth_phase(image: torch.Tensor, band: float = PHASE_BAND) -> torch.Tensor:
    """The phase of the low-resolution image, as factors of modulus 1.

    Parameters
    ----------
    image
        (..., y, x) complex.
    band
        Full width of the Hann window over the centre of k-space, as a share of each axis.

    Returns
    -------
    (..., y, x) complex; 1 where the low-resolution image is zero.
    """
    spectrum = torch.fft.fft2(image)
    for axis in (-2, -1):
        frequency = torch.fft.fftfreq(image.shape[axis], device=image.device) / (band / 2)
        window = torch.where(frequency.abs() < 1, 0.5 + 0.5 * torch.cos(torch.pi * frequency), 0.0)
        spectrum = spectrum * (window[:, None] if axis == -2 else window)
    low = torch.fft.ifft2(spectrum)
    size = low.abs()
    return torch.where(size > 0, low / size.clamp_min(torch.finfo(size.dtype).tiny), torch.ones_like(low))


@dataclass
class MagnitudePrior(DiffusionPrior):
    """A real denoiser of one channel, as a prior of complex images.

    Attributes
    ----------
    phase
        (..., y, x) of modulus 1, to be taken out of the image before the denoiser and put back afterwards; None: the
        image is taken as it is. `for_image` sets it.
    """

    phase: torch.Tensor | None = None

    def for_image(self, image: torch.Tensor) -> MagnitudePrior:
        """A copy (of the same weights) bound to the smooth phase of a scan's first rough image (..., y, x)."""
        return replace(self, phase=smooth_phase(image))

    def denoise(self, x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """`p (D(Re(p* x)) + i D(Im(p* x)))`; see `DiffusionPrior.denoise`. x (..., y, x) broadcasts with the phase."""
        turned = x if self.phase is None else x * self.phase.conj()
        both = torch.view_as_real(turned.reshape(-1, *x.shape[-2:])).movedim(-1, 0)  # (2, batch, y, x)
        clean = self._run(both.reshape(-1, 1, *x.shape[-2:]), _levels(x, sigma).repeat(2)).reshape(both.shape)
        denoised = torch.complex(clean[0], clean[1]).reshape(x.shape)
        return denoised if self.phase is None else denoised * self.phase
