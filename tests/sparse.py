"""A small scan for the sparse methods."""

from __future__ import annotations

import numpy as np
import sigpy
import sigpy.mri
import torch
from scanprior.models.forward import SenseModel
from scanprior.models.scan import Scan
from support import random_complex


def noisy_scan() -> tuple[Scan, torch.Tensor]:
    """A phantom of 64 x 60 with 4 coils, random lines, noise 0.02; and the true image."""
    truth = torch.from_numpy(sigpy.shepp_logan((64, 64)).astype(np.complex64))[:, 2:62]
    maps = torch.from_numpy(sigpy.mri.birdcage_maps((4, 64, 64)).astype(np.complex64))[:, :, 2:62]
    maps = (maps / torch.linalg.vector_norm(maps, dim=0)).contiguous()
    mask = torch.rand(64, 1, generator=torch.Generator().manual_seed(3)) < 0.3
    mask[26:38] = True
    clean = SenseModel(maps, mask)(truth)
    return Scan(clean + 0.02 * random_complex(*clean.shape, seed=8) * mask, mask, maps, 0.02), truth
