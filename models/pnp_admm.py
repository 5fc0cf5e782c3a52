"""The method `pnp-admm`: one image by plug-and-play ADMM, and posterior samples around it that say how sure it is."""

from __future__ import annotations

import time

from pydantic import Field, model_validator

from .dds import DDSSettings, dds_samples
from .denoiser_prior import Prior, check_levels
from .forward import SenseModel
from .linear import combine_sets
from .plug_and_play import PlugAndPlaySettings, plug_and_play
from .posterior import sample_posterior
from .scan import Progress, Reconstruction, Scan

SAMPLE_END = 0.0125
"""Last noise level of the samples: below that of the images that priors are trained on."""


class PnPADMMSettings(PlugAndPlaySettings):
    """Settings of `pnp_admm`."""

    samples: int = Field(
        8,
        ge=0,
        le=256,
        description="samples of dds that begin with the image: they give its standard deviation; 0 or 1: none",
    )
    sample_steps: int = Field(10, ge=2, le=1000, description="network evaluations of each sample")
    sample_start: float = Field(0.2, gt=0, le=1e4, description="noise level that is put on the image to begin with")
    seed: int = Field(0, ge=0, description="seed of the samples")
    std_factor: float = Field(
        1.0,
        gt=0,
        le=100,
        description="the standard deviation is multiplied by this: a calibration (docs/uncertainty.md)",
    )

    @model_validator(mode="after")
    def _samples_can_be_drawn(self) -> PnPADMMSettings:
        if self.sample_start <= SAMPLE_END:
            raise ValueError(f"sample_start ({self.sample_start}) must be above {SAMPLE_END}, where the samples end")
        return self

    @property
    def sampling(self) -> DDSSettings | None:
        """Of the samples; None where none are drawn."""
        if self.samples < 2:
            return None
        return DDSSettings.model_validate(
            {
                "samples": self.samples,
                "steps": self.sample_steps,
                "sigma_start": self.sample_start,
                "sigma_end": SAMPLE_END,
                "start_iterations": self.start_iterations,
                "seed": self.seed,
                "std_factor": self.std_factor,
            }
        )

    @property
    def network_evaluations(self) -> int:
        """The most network evaluations of one image with all its samples."""
        own = self.iterations + (self.final_sigma is not None)
        return own + (0 if self.sampling is None else self.samples * self.sample_steps)

    def without_std(self) -> PnPADMMSettings:
        """These settings without samples."""
        return self.model_copy(update={"samples": 0})

    def brief(self) -> PnPADMMSettings:
        """These settings with as few iterations as still run all of the method's code: for a warm-up."""
        return self.model_copy(update={"iterations": 2, "sample_steps": 2})


def pnp_admm(scan: Scan, prior: Prior, settings: PnPADMMSettings, progress: Progress | None = None) -> Reconstruction:
    """One image by `plug_and_play`, and the spread of samples of `dds` around it.

    The image is the same whether samples are drawn or not. They begin with it (as it was before the last denoising),
    noise of level `sample_start` on it, and end as other images that fit the data and the prior; how much they differ
    is the standard deviation.

    Parameters
    ----------
    scan
        A batch shares one intensity scale. With several sets of maps each set's image is one image to the prior.

    Returns
    -------
    Reconstruction; `std` is the standard deviation of the samples' magnitudes times `std_factor`, None without samples.
    Both are zero where the maps are. `info` says method, prior, nfe (of the image), evaluations (with those of the
    samples), samples, iterations, residuals, stopped, scale and seconds.

    Raises
    ------
    ValueError
        As `plug_and_play` and `sample_posterior`.
    """
    began = time.perf_counter()
    model = SenseModel.of(scan)
    sampling = settings.sampling
    if sampling is not None:
        # before the image is made, not after
        check_levels(prior, sampling.sigma_start, sampling.sigma_end, ("sample_start", "the samples' end"))
    steps = settings.iterations + (settings.sample_steps if sampling is not None else 0)

    def tell(step: int, of: int) -> None:
        if progress is not None:
            progress(step, steps)

    def tell_samples(step: int, of: int) -> None:
        # the samples of a volume are drawn in pieces: their steps are shares of `sample_steps`
        if progress is not None:
            progress(settings.iterations + step * settings.sample_steps // of, steps)

    found = plug_and_play(scan, model, prior, settings, tell)
    info = {
        "method": "pnp-admm",
        "prior": prior.name,
        "nfe": found.evaluations,
        "evaluations": f"{found.evaluations}",
        "iterations": found.iterations,
        "residuals": found.residuals,
        "stopped": found.stopped,
        "scale": found.scale,
    }
    std = None
    if sampling is not None:
        begin = found.scale * found.image
        std = sample_posterior("pnp-admm", dds_samples, scan, prior, sampling, tell_samples, begin=begin).std
        info |= {
            "evaluations": f"{found.evaluations} + {settings.sample_steps} x {sampling.samples}",
            "samples": sampling.samples,
            "std_factor": settings.std_factor,
            "std_of": f"samples of dds that began with the image, from sigma {settings.sample_start:g}",
        }
    info["seconds"] = time.perf_counter() - began
    return Reconstruction(found.scale * combine_sets(found.denoised, model), std, info)
