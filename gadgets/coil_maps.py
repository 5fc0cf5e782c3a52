"""Coil maps of a scan, kept for the slices that share them."""

from __future__ import annotations

import logging
import time

import numpy as np
import torch
from scanprior.models.espirit import espirit_maps, fitting_kernel
from scanprior.models.recipe import Maps

from .slices import Key

log = logging.getLogger(__name__)

MAX_BYTES = 1 << 30  # maps kept for slices that are still being acquired


class CoilMaps:
    """ESPIRiT maps by the key of their calibration lines. For one thread."""

    def __init__(self, settings: Maps, device: torch.device) -> None:
        self._settings, self._device = settings, device
        self._kept: dict[Key, tuple[np.ndarray, torch.Tensor]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, key: Key, acs: np.ndarray, shape: tuple[int, int], sigma: float) -> torch.Tensor:
        """Maps (coil, y, x), or (set, coil, y, x), from calibration k-space; made once for each.

        Parameters
        ----------
        acs
            (coil, y, x) complex64, whitened.
        shape
            Matrix (y, x) of the image.
        sigma
            Standard deviation of the complex noise in `acs`; 0 where it is not known.

        Raises
        ------
        NoAcsError, ValueError
            See `espirit_maps`.
        """
        known = self._kept.get(key)
        if known is not None and np.array_equal(known[0], acs):
            return known[1]
        began = time.perf_counter()
        wanted = self._settings
        maps, _ = espirit_maps(
            torch.from_numpy(acs).to(self._device), shape, kernel=wanted.kernel, threshold=wanted.threshold,
            crop=wanted.crop, sets=wanted.sets, sigma=sigma,
        )  # fmt: skip
        log.info(
            "maps of %s from %s calibration samples, kernel %d, in %.2f s",
            key, acs.shape, fitting_kernel(min(acs.shape[-2:]), wanted.kernel), time.perf_counter() - began,
        )  # fmt: skip
        self._kept.pop(key, None)
        self._kept[key] = acs, maps
        while len(self._kept) > 1 and sum(m.nbytes for _, m in self._kept.values()) > MAX_BYTES:
            self._kept.pop(next(iter(self._kept)))
        return maps

    def forget_before(self, used: Key) -> None:
        """Of a dynamic scan whose repetitions have calibration lines of their own, only the latest maps are kept."""
        for key in list(self._kept):
            if key.repetition < used.repetition and key._replace(repetition=used.repetition) == used:
                del self._kept[key]
