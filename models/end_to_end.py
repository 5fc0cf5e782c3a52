"""Reconstruction by networks that were trained end to end on pairs of data and image: `varnet` and `unet`.

They show where supervised methods win, which is on the scans they were trained for, and where they break: nothing in
them follows the noise level or the mask of another scan. `info` tells both.
"""

from __future__ import annotations

import time

import torch

from .forward import SenseModel
from .linear import combine_sets
from .scan import Progress, Reconstruction, Scan, Settings
from .supervised import SupervisedPrior


class SupervisedSettings(Settings):
    """Settings of `varnet` and of `unet`: none, all was decided by the training."""


def varnet(
    scan: Scan, prior: SupervisedPrior, settings: SupervisedSettings, progress: Progress | None = None
) -> Reconstruction:
    """Variational network (Hammernik et al. 2018): `VariationalNetwork`; see `_run` for what is returned and raised."""
    return _run("varnet", scan, prior, progress)


def unet(
    scan: Scan, prior: SupervisedPrior, settings: SupervisedSettings, progress: Progress | None = None
) -> Reconstruction:
    """U-Net on the CG-SENSE image; see `ImageUNet`, and `_run` for what is returned and raised."""
    return _run("unet", scan, prior, progress)


def _run(method: str, scan: Scan, prior: SupervisedPrior, progress: Progress | None) -> Reconstruction:
    """The image by a prior of that kind; there is no standard deviation.

    Returns
    -------
    Reconstruction; zero where the maps are. `info` says method, prior, what it was trained on (`trained_for`), scale,
    seconds and, where the scan is unlike that, in what (`warning`).

    Raises
    ------
    ValueError
        If the prior is of the other kind, the scan has no maps or no signal, or the image is not finite.
    """
    began = time.perf_counter()
    if prior.kind != method:
        raise ValueError(
            f"method {method!r}: expected a prior of kind {method!r}, and prior {prior.name!r} is of kind "
            f"{prior.kind!r}: use the method {prior.kind!r}, or another prior"
        )
    model = SenseModel.of(scan)
    images, scale = prior.image(model, model.H(scan.kspace))
    image = combine_sets(images, model)
    if not bool(torch.isfinite(torch.view_as_real(image)).all()):
        raise ValueError(f"{method}: the image is not finite; the data or the weights of prior {prior.name!r} are not")
    if progress is not None:
        progress(1, 1)
    info = {
        "method": method,
        "prior": prior.name,
        "trained_for": str(prior.trained_for),
        "scale": scale,
        "seconds": time.perf_counter() - began,
    }
    unlike = prior.trained_for.departures(model, scan.effective_r, scan.sigma / scale / 2**0.5)
    if unlike:
        info["warning"] = f"not what the prior was trained on: {', '.join(unlike)}"
    return Reconstruction(image, None, info)
