"""Simulated pairs of data and image, made on the fly: what supervised networks are trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scanprior.models.forward import SenseModel
from scanprior.models.intensity import intensity_scale
from scanprior.models.supervised import SCALE, TrainedFor, first_image, rough_image
from torch import nn

from .coils import coil_maps
from .mask_families import FAMILIES, make_mask
from .supervised_settings import SupervisedTraining

MASKS = 64
"""Masks that are drawn ahead; a family without chance has but one."""
ARRAYS = 4
"""Coil arrays that are drawn ahead of each number of coils."""
AIR = 0.02
"""Where all is below this part of the image's maximum, over `REACH` pixels, ESPIRiT finds no maps."""
REACH = 9


@dataclass(frozen=True)
class Pairs:
    """A batch of scans and their truths, in the scale of supervised priors.

    Attributes
    ----------
    model
        A of each: maps (batch, coil, y, x), masks (batch, y, x or 1).
    adjoint
        A^H y (batch, y, x) complex.
    rough
        `rough_image` of it; in this scale its percentile has the value that `SCALE` says.
    truth
        (batch, y, x) complex; zero where the maps are.
    noise
        (batch,) standard deviation of each real channel.
    """

    model: SenseModel
    adjoint: torch.Tensor
    rough: torch.Tensor
    truth: torch.Tensor
    noise: torch.Tensor

    def image(self, network: nn.Module) -> torch.Tensor:
        """What a network of `models.supervised.NETWORKS` makes of the data; zero where the maps are."""
        made = network(first_image(network, self.adjoint, self.rough), self.adjoint, self.model.normal)
        return made * (self.model.maps != 0).any(-3)


class Scanner:
    """Scans images as the settings say; masks and coil arrays are drawn ahead, which of them a scan gets is by chance.

    Simulated as in `evaluation`: noise goes on the k-space before the mask. The maps are the true ones, which a scan
    only has estimates of, but as those they are zero in air (of more than one coil).
    """

    def __init__(self, settings: SupervisedTraining, seed: int) -> None:
        self.settings = settings
        shape = (settings.size, settings.size)
        drawn = [
            make_mask(settings.mask, shape, settings.amount, settings.acs, [seed, number]).mask
            for number in range(MASKS)
        ]
        different = np.unique(np.stack(drawn), axis=0)
        self.masks = torch.from_numpy(different if different.ndim == 3 else different[:, :, None])
        self.maps: dict[int, torch.Tensor] = {}
        for coils in range(settings.coils[0], settings.coils[1] + 1):
            if coils == 1:
                self.maps[coils] = torch.ones((1, 1, *shape), dtype=torch.complex64)
            else:
                arrays = [coil_maps(shape, coils, seed=seed + 1000 * coils + number)[0] for number in range(ARRAYS)]
                self.maps[coils] = torch.from_numpy(np.stack(arrays))

    @torch.no_grad()
    def scan(self, images: torch.Tensor, generator: torch.Generator) -> Pairs:
        """Scan images (batch, 1 or 2, y, x), magnitude or (Re, Im), in any scale.

        Parameters
        ----------
        generator
            On the CPU, so that a seed means the same on every device.

        Raises
        ------
        ValueError
            If an image is zero.
        """
        model, kspace, sigma = self.measure(images, generator)
        adjoint = model.H(kspace)
        rough = rough_image(model, adjoint)
        scale = torch.tensor([intensity_scale(one, SCALE) for one in rough], device=images.device)
        wide = scale[:, None, None]
        truth = _complex(images) * (model.maps != 0).any(-3)
        return Pairs(model, adjoint / wide, rough / wide, truth / wide, sigma / scale)

    @torch.no_grad()
    def measure(
        self, images: torch.Tensor, generator: torch.Generator
    ) -> tuple[SenseModel, torch.Tensor, torch.Tensor]:
        """The scans alone, as a scanner leaves them: A, k-space (batch, coil, y, x), noise of a real channel (batch,).

        Parameters and errors as of `scan`; the scale is that of the images.
        """
        truth = _complex(images)
        device, batch = images.device, len(images)
        counts = list(self.maps)
        coils = counts[int(torch.randint(len(counts), (), generator=generator))]
        maps = _some(self.maps[coils], batch, generator).to(device)
        if coils > 1:
            maps = maps * _support(truth).unsqueeze(1)
        mask = _some(self.masks, batch, generator).to(device)
        low, high = self.settings.noise
        level = low * (high / max(low, 1e-12)) ** torch.rand(batch, generator=generator)
        sigma = level.to(device) * truth.abs().amax((-2, -1))  # of each real channel
        model = SenseModel(maps, mask)
        noise = torch.view_as_complex(torch.randn((*maps.shape, 2), generator=generator)).to(device)
        return model, model(truth) + sigma[:, None, None, None] * noise * model.mask.unsqueeze(-3), sigma

    def trained_for(self, pairs: Pairs) -> TrainedFor:
        """What a network that learns from this scanner is for; the noise in the prior's scale is that of `pairs`."""
        rates = 1 / self.masks.float().mean((-2, -1))
        settings = self.settings
        return TrainedFor(
            mask=settings.mask_told,
            dimensions=1 if FAMILIES[settings.mask].dimensions == 1 else 2,
            effective_r=(round(float(rates.min()), 3), round(float(rates.max()), 3)),
            noise=(round(float(pairs.noise.min()), 4), round(float(pairs.noise.max()), 4)),
            coils=settings.coils,
            size=settings.size,
            magnitude=settings.channels == 1,
        )


def _complex(images: torch.Tensor) -> torch.Tensor:
    """(batch, 1 or 2, y, x) to (batch, y, x) complex."""
    return torch.complex(images[:, 0], images[:, 1] if images.shape[1] == 2 else torch.zeros_like(images[:, 0]))


def _some(pool: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    return pool[torch.randint(len(pool), (count,), generator=generator)]


def _support(truth: torch.Tensor) -> torch.Tensor:
    """(batch, y, x) bool: where maps could be estimated, of images (batch, y, x)."""
    magnitude = truth.abs()
    near = F.max_pool2d(magnitude[:, None], REACH, stride=1, padding=REACH // 2)[:, 0]
    return near > AIR * magnitude.amax((-2, -1), keepdim=True)
