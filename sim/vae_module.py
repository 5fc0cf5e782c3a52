"""The two stages of a VAE's training as Lightning runs them (Duff et al. 2023, section 4)."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
from scanprior.models.prior import load_any_prior
from scanprior.models.vae import VAE, kl_to_standard
from scanprior.models.vae_prior import VAEPrior
from scanprior.models.weights_file import PriorError

from .training_module import Average, learning_rate_factor
from .vae_settings import VAESettings

LINEAR_RATE = 0.01
"""Of the linear layers against the others': they begin at the linear optimum, and a rate for random weights would throw
that away (measured: the residual rises from 0.113 to 0.119 within 100 steps)."""
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def stage_of(settings: VAESettings, step: int) -> int:
    """1 while encoder and mean decoder train, 2 while the covariance decoder does."""
    return 1 if step < settings.first_stage else 2


class VAETraining(pl.LightningModule):
    """First -ELBO with Sigma = rho I, in encoder and mean decoder; then -log p(x|z) in the covariance alone.

    Which stage it is follows from the number of steps, so that a resumed run goes on in the right one. rho is fixed in
    the first stage, as published (`mean_sigma`^2): learned with the mean it is large as long as the mean is poor, the
    latent then carries little, and the mean stays poor. What the prior is released with, and what the other covariances
    begin with, is a rho that is learned beside on the same residuals and does not act on the mean.
    """

    def __init__(self, settings: VAESettings) -> None:
        super().__init__()
        self.settings = settings
        self.vae = settings.build()
        if settings.begin_with is not None:
            take_mean(self.vae, settings.begin_with)

    def on_train_start(self) -> None:
        """Each process, and each resumed run, draws noise of its own."""
        torch.manual_seed(self.settings.seed + 7919 * self.global_rank + self.trainer.global_step)

    def training_step(self, images: torch.Tensor, index: int) -> torch.Tensor:
        """Loss of a batch (batch, parts, y, x), in nats a number (pixel and part)."""
        stage = stage_of(self.settings, self.trainer.global_step)
        loss = self.loss(with_air_noise(images, self.settings.air_noise), stage)
        # that of a mean square residual of about 1, where images are at most about 1 and a black one would leave far
        # less: without normalisation the mean's blocks diverge at too high a rate
        ceiling = 0.5 / self.settings.mean_sigma**2 if stage == 1 else torch.finfo(torch.float32).max
        value = float(loss.detach())
        if not value <= ceiling:  # false for NaN
            raise FloatingPointError(
                f"the loss is {value} at step {self.trainer.global_step}: begin again with a lower "
                f"--learning-rate than {self.settings.learning_rate:g}"
            )
        self.log("loss", loss, prog_bar=True)
        self.log("stage", float(stage), prog_bar=True)
        return loss

    def loss(self, images: torch.Tensor, stage: int) -> torch.Tensor:
        """-ELBO of the first stage (rho fixed), or -log p(x|z) of the second with all but the covariance frozen."""
        shape = (images.shape[-2], images.shape[-1])
        numbers = images[0].numel()
        with torch.set_grad_enabled(stage == 1):
            latent, log_var = self.vae.encode(images)
            z = latent + (0.5 * log_var).exp() * torch.randn_like(latent)
            residual = images - self.vae.mean(z)[..., : shape[0], : shape[1]]
        if stage == 1:
            rate, sigma = self.vae.identity_diagonal(), self.settings.mean_sigma
            square = residual.square().flatten(1).sum(1) / numbers
            of_rho = 0.5 * rate.square() * square.detach() - rate.log()
            of_mean = 0.5 * square / sigma**2 + math.log(sigma) + kl_to_standard(latent, log_var) / numbers
            # the value is that of the mean; of_rho adds its gradient alone
            return (of_mean + of_rho - of_rho.detach()).mean() + HALF_LOG_2PI
        return (self.vae.factor(z, shape).nll(residual) / numbers).mean() + HALF_LOG_2PI

    def configure_optimizers(self) -> Any:
        """AdamW; each stage has its warm-up, and its rate falls to zero at its end."""
        first, steps = self.settings.first_stage, self.settings.steps
        own = {name: w for name, w in self.vae.named_parameters() if not name.startswith("covariance_decoder")}
        linear = [weight for name, weight in own.items() if ".linear." in name]
        groups = [{"params": [weight for name, weight in own.items() if ".linear." not in name]}]
        factors = [lambda step: learning_rate_factor(min(step, first), max(first, 1))]
        if linear:
            groups.append({"params": linear})
            factors.append(lambda step: LINEAR_RATE * learning_rate_factor(min(step, first), max(first, 1)))
        if self.vae.covariance_decoder is not None:
            groups.append({"params": list(self.vae.covariance_decoder.parameters())})
            factors.append(
                lambda step: learning_rate_factor(max(step - first, 0), max(steps - first, 1)) if step >= first else 0.0
            )
        optimizer = torch.optim.AdamW(groups, lr=self.settings.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def with_air_noise(images: torch.Tensor, noise: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """Images (batch, parts, y, x) with noise of this standard deviation added where a part is nearly zero."""
    drawn = torch.randn(images.shape, generator=generator, dtype=images.dtype).to(images.device)
    return images + torch.where(images.abs() < 4 * noise, noise * drawn, 0.0)


def take_mean(vae: VAE, name: str) -> None:
    """Fill encoder, mean decoder and rho of `vae` with those of a prior, so that covariances share one mean.

    The covariance decoder is taken as well where it is the same.

    Raises
    ------
    PriorError
        When there is no such prior, it is no VAE, or its networks are others.
    """
    prior = load_any_prior(name)
    if not isinstance(prior, VAEPrior):
        raise PriorError(f"prior {name!r} to begin with is of the family {prior.family!r}, expected 'vae'")
    given, own = prior.weights(), vae.state_dict()
    missing = [
        key for key in own if not key.startswith("covariance_decoder")
        and (key not in given or given[key].shape != own[key].shape)
    ]  # fmt: skip
    if missing or prior.vae.bounds != vae.bounds:
        raise PriorError(
            f"prior {name!r} to begin with: its network {prior.network} is not the one asked for: "
            f"{', '.join(missing) or 'diagonal'} differ"
        )
    same = all(key in given and given[key].shape == own[key].shape for key in own)
    vae.load_state_dict(
        {k: v for k, v in given.items() if k in own and (same or not k.startswith("covariance_"))}, strict=False
    )


class VAEAverage(Average):
    """EMA of the weights; where the second stage begins, the averaged mean is what it goes on with."""

    def __init__(self, decay: float, settings: VAESettings) -> None:
        super().__init__(decay)
        self.settings = settings

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, index: int) -> None:
        """The covariance is to be trained on residuals of the mean that is released."""
        if trainer.global_step == self.settings.first_stage > 0:
            module.vae.load_state_dict(self.vae(module).state_dict())

    def vae(self, module: VAETraining) -> VAE:
        """The averaged networks, or the current ones where no average exists yet."""
        averaged = self.averaged(module)
        assert isinstance(averaged, VAETraining)
        return averaged.vae
