"""The registry of reconstruction methods: one name each, one settings class each, one signature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .daps import DAPSSettings, daps
from .dds import DDSSettings, dds
from .dps import DPSSettings, dps
from .end_to_end import SupervisedSettings, unet, varnet
from .langevin import LangevinSettings, langevin
from .least_squares import LeastSquaresSettings, least_squares
from .linear import SenseSettings, ZeroFilledSettings, sense, zero_filled
from .narnhofer import NarnhoferSettings, narnhofer
from .pigdm import PiGDMSettings, pigdm
from .pnp_admm import PnPADMMSettings, pnp_admm
from .pula import PULASettings, pula
from .range_search import RangeSettings, range_search
from .scan import Progress, Reconstruction, Scan, Settings
from .score_mri import PCSettings, pc
from .total_variation import TvSettings, tv
from .tweedie import TweedieSettings, tweedie
from .vae_reconstruction import VAESettings, vae
from .wavelet import L1WaveletSettings, l1_wavelet


@dataclass(frozen=True)
class Method:
    """A reconstruction: `run(scan, prior, settings, progress) -> Reconstruction`.

    Attributes
    ----------
    prior
        Family of the prior that it needs, None where it takes none.
    """

    run: Callable[..., Reconstruction]
    settings: type[Settings]
    prior: str | None = None
    needs_noise: bool = True

    @property
    def needs_prior(self) -> bool:
        """Whether a prior must be named."""
        return self.prior is not None

    def needs_maps(self, settings: Settings) -> bool:
        """Whether the scan must come with coil maps."""
        return getattr(settings, "combine", "maps") != "rss"


METHODS: dict[str, Method] = {
    "zero-filled": Method(zero_filled, ZeroFilledSettings, needs_noise=False),
    "sense": Method(sense, SenseSettings),
    "least-squares": Method(least_squares, LeastSquaresSettings),
    "l1-wavelet": Method(l1_wavelet, L1WaveletSettings),
    "tv": Method(tv, TvSettings),
    "dds": Method(dds, DDSSettings, prior="diffusion"),
    "langevin": Method(langevin, LangevinSettings, prior="diffusion"),
    "pc": Method(pc, PCSettings, prior="diffusion"),
    "dps": Method(dps, DPSSettings, prior="diffusion"),
    "pigdm": Method(pigdm, PiGDMSettings, prior="diffusion"),
    "pula": Method(pula, PULASettings, prior="diffusion"),
    "daps": Method(daps, DAPSSettings, prior="diffusion"),
    "pnp-admm": Method(pnp_admm, PnPADMMSettings, prior="diffusion"),
    "tweedie": Method(tweedie, TweedieSettings, prior="diffusion"),
    "vae": Method(vae, VAESettings, prior="vae"),
    "range": Method(range_search, RangeSettings, prior="vae"),
    "narnhofer": Method(narnhofer, NarnhoferSettings, prior="vae"),
    "varnet": Method(varnet, SupervisedSettings, prior="supervised"),
    "unet": Method(unet, SupervisedSettings, prior="supervised"),
}


def reconstruct(
    method: str, scan: Scan, prior: Any, settings: Settings, progress: Progress | None = None
) -> Reconstruction:
    """Reconstruct `scan` by the method of that name.

    Raises
    ------
    KeyError
        When there is no such method.
    """
    return METHODS[method].run(scan, prior, settings, progress)
