"""The registry of reconstruction methods: one name each, one settings class each, one signature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .daps import DAPSSettings, daps
from .dds import DDSSettings, dds
from .dps import DPSSettings, dps
from .langevin import LangevinSettings, langevin
from .linear import SenseSettings, ZeroFilledSettings, sense, zero_filled
from .pigdm import PiGDMSettings, pigdm
from .pula import PULASettings, pula
from .scan import Progress, Reconstruction, Scan, Settings
from .score_mri import PCSettings, pc
from .total_variation import TvSettings, tv
from .wavelet import L1WaveletSettings, l1_wavelet


@dataclass(frozen=True)
class Method:
    """A reconstruction: `run(scan, prior, settings, progress) -> Reconstruction`."""

    run: Callable[..., Reconstruction]
    settings: type[Settings]
    needs_prior: bool = False
    needs_noise: bool = True

    def needs_maps(self, settings: Settings) -> bool:
        """Whether the scan must come with coil maps."""
        return getattr(settings, "combine", "maps") != "rss"


METHODS: dict[str, Method] = {
    "zero-filled": Method(zero_filled, ZeroFilledSettings, needs_noise=False),
    "sense": Method(sense, SenseSettings),
    "l1-wavelet": Method(l1_wavelet, L1WaveletSettings),
    "tv": Method(tv, TvSettings),
    "dds": Method(dds, DDSSettings, needs_prior=True),
    "langevin": Method(langevin, LangevinSettings, needs_prior=True),
    "pc": Method(pc, PCSettings, needs_prior=True),
    "dps": Method(dps, DPSSettings, needs_prior=True),
    "pigdm": Method(pigdm, PiGDMSettings, needs_prior=True),
    "pula": Method(pula, PULASettings, needs_prior=True),
    "daps": Method(daps, DAPSSettings, needs_prior=True),
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
