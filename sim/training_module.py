"""The training of a denoiser as Lightning runs it: loss, optimiser, schedule, average of the weights."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging
from scanprior.models.preconditioning import Denoiser
from scanprior.models.prior import PriorError, load_prior
from torch import nn

from .training_run import RunSettings
from .training_settings import TrainingSettings


def learning_rate_factor(step: int, steps: int) -> float:
    """Warm-up over 300 steps, constant, then linear to zero over the last 30 %."""
    return min(1.0, (step + 1) / 300) * min(1.0, max(0.0, (steps - step) / (0.3 * steps)))


def scheduled_adamw(module: nn.Module, settings: RunSettings) -> dict[str, Any]:
    """AdamW on all weights that learn, with the schedule of `learning_rate_factor`, as Lightning takes it."""
    learned = [weight for weight in module.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, settings.steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class DenoiserTraining(pl.LightningModule):
    """A denoiser and its own loss: EDM's, denoising score matching of the VE-SDE, or of discrete levels."""

    def __init__(self, settings: TrainingSettings) -> None:
        super().__init__()
        self.settings = settings
        self.denoiser = settings.denoiser()
        if settings.begin_with is not None:
            begin_with(self.denoiser, settings.begin_with)
        self.denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def on_train_start(self) -> None:
        """Each process, and each resumed run, draws noise of its own."""
        torch.manual_seed(self.settings.seed + 7919 * self.global_rank + self.trainer.global_step)

    def training_step(self, clean: torch.Tensor, index: int) -> torch.Tensor:
        """Loss of a batch (batch, channel, y, x)."""
        sigma = self.settings.draw_sigma(len(clean)).to(clean.device)
        loss = self.denoiser.loss(clean, sigma, torch.randn_like(clean)).mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW with the schedule of `learning_rate_factor`."""
        return scheduled_adamw(self, self.settings)


def begin_with(denoiser: Denoiser, name: str) -> None:
    """Fill `denoiser` with the weights of a prior, released or one's own, to train them further.

    Raises
    ------
    PriorError
        When there is no such prior, or its network is another one.
    """
    prior = load_prior(name)
    if prior.kind != denoiser.kind:
        raise PriorError(f"prior {name!r} to begin with is of kind {prior.kind!r}, expected {denoiser.kind!r}")
    try:
        denoiser.load_state_dict(prior.denoiser.state_dict())
    except RuntimeError as error:
        raise PriorError(
            f"prior {name!r} to begin with: its network {prior.network} is not the one asked for: {error}"
        ) from error


class Average(WeightAveraging):
    """EMA whose memory grows with the training: decay = min(`decay`, (1 + updates) / (10 + updates))."""

    def __init__(self, decay: float) -> None:
        def average(mean: torch.Tensor, current: torch.Tensor, updates: int | torch.Tensor) -> torch.Tensor:
            count = float(updates)
            return torch.lerp(mean, current, 1 - min(decay, (1 + count) / (10 + count)))

        super().__init__(avg_fn=average)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """After every optimiser step."""
        return step_idx is not None

    def averaged(self, module: pl.LightningModule) -> pl.LightningModule:
        """The module with averaged weights, or the current one where no average exists yet."""
        return getattr(self._average_model, "module", module)

    def denoiser(self, module: DenoiserTraining) -> Denoiser:
        """The averaged denoiser, or the current one where no average exists yet."""
        averaged = self.averaged(module)
        assert isinstance(averaged, DenoiserTraining)
        return averaged.denoiser
