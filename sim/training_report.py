"""What a training shows as it goes: a curve, pictures, and the prior as it stands."""

from __future__ import annotations

from pathlib import Path

import torch
from scanprior.models.prior import save_prior

from .banks import validation_patches
from .training_module import Average, DenoiserTraining
from .training_run import PRIOR, PeriodicReport
from .training_settings import TrainingSettings

VALIDATION_SIGMAS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 3.0)


class Report(PeriodicReport[TrainingSettings, Average]):
    """Every `save_every` steps: validation denoising error per noise level, pictures, and the prior's file."""

    COLUMNS = ("step", "seconds", "loss", *(f"rmse_at_{sigma}" for sigma in VALIDATION_SIGMAS))

    def report(self, step: int, module: DenoiserTraining, loss: torch.Tensor | None) -> None:
        """Write `curve.csv`, `samples.png` and the prior."""
        denoiser = self.average.denoiser(module)
        clean = validation_patches(self.folder, self.settings.channels).to(module.device)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1)).to(module.device)
        errors, pictures = {}, [clean[:4]]
        for sigma in VALIDATION_SIGMAS:
            with module.trainer.precision_plugin.forward_context():
                denoised = denoiser(clean + sigma * noise, torch.full((len(clean),), sigma, device=module.device))
            errors[f"rmse_at_{sigma}"] = f"{float((denoised - clean).square().mean().sqrt()):.5f}"
            if sigma in (0.1, 0.5, 3.0):
                pictures += [(clean + sigma * noise)[:4], denoised[:4]]
        self.write_row(step, loss, errors)
        _write_pictures(self.folder / "samples.png", pictures)
        low, high = self.settings.sigma_range
        description = {
            "network": self.settings.network_description,
            "sigma_min": low,
            "sigma_max": high,
            "step": step,
        }
        if self.settings.kind == "ncsnv2":
            description["levels"] = self.settings.levels
        save_prior(self.folder / PRIOR, denoiser, description)


def _write_pictures(path: Path, rows: list[torch.Tensor]) -> None:
    """Magnitudes of clean, noisy and denoised validation patches, one row of each."""
    from matplotlib.image import imsave

    magnitudes = [torch.cat(list(row.square().sum(1).sqrt()), dim=1) for row in rows]
    imsave(path, torch.cat(magnitudes).clamp(0, 1.2).cpu().numpy(), cmap="gray", vmin=0, vmax=1.2)
