"""Training of VAE priors in two stages, by Lightning: `train_vae`, and what it shows as it goes."""

from __future__ import annotations

from pathlib import Path

import torch
from scanprior.models.vae import VAE, elbo_terms
from scanprior.models.vae_prior import save_vae

from .training_run import PRIOR, PeriodicReport, begin_run, run_training
from .vae_data import VAEData, validation_images
from .vae_module import VAEAverage, VAETraining, stage_of, with_air_noise
from .vae_settings import VAESettings


def train_vae(data: list[Path], folder: Path, settings: VAESettings) -> Path:
    """Train a VAE prior; an interrupted run in the same folder goes on where it stopped, in either stage.

    Parameters
    ----------
    data
        Files or folders of them; see `image_sources`.
    folder
        Gets the banks of images, `last.ckpt`, `curve.csv`, `samples.png` and `prior.safetensors`.
    settings
        Covariance, size of the networks, steps, and so on.

    Returns
    -------
    Path of the prior.

    Raises
    ------
    FileNotFoundError, FileExistsError, SourceError, PriorError
        See `bank_data.make_banks` and `take_mean`.
    """
    start = begin_run(folder, settings)
    module = VAETraining(settings)
    principal = settings.network_description["principal"] and not start and settings.begin_with is None
    images = VAEData(data, folder, settings, settings.seed + start, module.vae if principal else None)
    return run_training(
        folder, settings, module, images, VAEReport(folder, VAEAverage(0.998, settings), settings),
        strategy="ddp_find_unused_parameters_true" if settings.devices > 1 else "auto",
    )  # fmt: skip


class VAEReport(PeriodicReport[VAESettings, VAEAverage]):
    """Every `save_every` steps and at the end of a stage: validation likelihood, pictures, and the prior's file."""

    COLUMNS = ("step", "seconds", "stage", "loss", "elbo", "nll", "kl", "rmse")

    def is_due(self, step: int) -> bool:
        """Whether this many steps call for a report."""
        return super().is_due(step) or step == self.settings.first_stage

    def report(self, step: int, module: VAETraining, loss: torch.Tensor | None) -> None:
        """Write `curve.csv`, `samples.png` and the prior."""
        vae = self.average.vae(module).eval()
        generator = torch.Generator().manual_seed(1)
        images = validation_images(self.folder, self.settings)
        images = with_air_noise(images, self.settings.air_noise, generator).to(module.device)
        numbers, shape = images[0].numel(), (images.shape[-2], images.shape[-1])
        sums = torch.zeros(3)
        for batch in images.split(8):
            with module.trainer.precision_plugin.forward_context():
                mean, log_var = vae.encode(batch)
                z = mean + (0.5 * log_var).exp() * torch.randn(mean.shape, generator=generator).to(mean)
                nll, kl = elbo_terms(vae, batch, z, mean, log_var)
                error = (batch - vae.mean(z)[..., : shape[0], : shape[1]]).square().mean()
            sums += torch.tensor([float(nll.sum()), float(kl.sum()), float(error) * len(batch)])
        nll_mean, kl_mean, square = (sums / len(images)).tolist()
        found = {
            "stage": stage_of(self.settings, step - 1),
            "elbo": f"{-(nll_mean + kl_mean) / numbers:.5f}",
            "nll": f"{nll_mean / numbers:.5f}",
            "kl": f"{kl_mean:.2f}",
            "rmse": f"{square**0.5:.5f}",
        }
        self.write_row(step, loss, found)
        write_pictures(self.folder / "samples.png", vae, images[:6], generator)
        description = {"network": self.settings.network_description, "step": step}
        save_vae(self.folder / PRIOR, vae, description)


@torch.no_grad()
def write_pictures(path: Path, vae: VAE, images: torch.Tensor, generator: torch.Generator) -> None:
    """Rows: images, their reconstructions G(z), residuals, drawn residuals; G(z) of z ~ N(0, I), and draws of p(x|z).

    Images show the first part; residuals are signed, grey is zero, from -0.3 to 0.3.
    """
    from matplotlib.image import imsave

    shape = (images.shape[-2], images.shape[-1])
    z, _ = vae.encode(images)
    mean = vae.mean(z)[..., : shape[0], : shape[1]]
    drawn = vae.factor(z, shape).sample(1).cpu()[0]
    new = torch.randn(z.shape, generator=generator).to(z)
    made = vae.mean(new)[..., : shape[0], : shape[1]]
    full = made.cpu() + vae.factor(new, shape).sample(1).cpu()[0]
    signed = [(part.cpu() / 0.6 + 0.5) * 1.2 for part in (images - mean, drawn)]
    rows = [images.cpu(), mean.cpu(), *signed, made.cpu(), full]
    picture = torch.cat([torch.cat(list(row[:, 0]), 1) for row in rows]).clamp(0, 1.2)
    imsave(path, picture.float().numpy(), cmap="gray", vmin=0, vmax=1.2)
