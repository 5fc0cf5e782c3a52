"""The training of a supervised network as Lightning runs it: scans made for every step, and the error on them."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from scanprior.models.prior import load_any_prior
from scanprior.models.supervised import SupervisedPrior
from scanprior.models.weights_file import PriorError
from torch import nn

from .pairs import Pairs, Scanner
from .supervised_settings import SupervisedTraining
from .training_module import scheduled_adamw


class PairTraining(pl.LightningModule):
    """A network and its error on scans that are simulated for every step."""

    def __init__(self, settings: SupervisedTraining) -> None:
        super().__init__()
        self.settings = settings
        self.network = settings.build()
        if settings.begin_with is not None:
            take_weights(self.network, settings)
        self.scanner = Scanner(settings, settings.seed)
        self._generator = torch.Generator()

    def on_train_start(self) -> None:
        """Each process, and each resumed run, draws scans of its own."""
        self._generator.manual_seed(self.settings.seed + 7919 * self.global_rank + self.trainer.global_step)

    def training_step(self, images: torch.Tensor, index: int) -> torch.Tensor:
        """Error of a batch of slices (batch, channel, y, x)."""
        loss = self.error(self.scanner.scan(images, self._generator))
        self.log("loss", loss, prog_bar=True)
        return loss

    def error(self, pairs: Pairs) -> torch.Tensor:
        """Mean over all pixels of |x - truth|^2, or of |x - truth|, in the prior's scale."""
        difference = torch.view_as_real(pairs.image(self.network) - pairs.truth)
        square = difference.square().sum(-1)
        # the root has no gradient at 0, where the maps are zero
        return square.mean() if self.settings.error == "mse" else (square + 1e-8).sqrt().mean()

    def configure_optimizers(self) -> Any:
        """AdamW with the schedule of `learning_rate_factor`."""
        return scheduled_adamw(self, self.settings)


def take_weights(network: nn.Module, settings: SupervisedTraining) -> None:
    """Fill a network with the weights of a prior, to train them further, on other scans for instance.

    Raises
    ------
    PriorError
        When there is no such prior, it is not supervised, or its network is another one.
    """
    name = str(settings.begin_with)
    prior = load_any_prior(name)
    if not isinstance(prior, SupervisedPrior) or prior.kind != settings.network:
        kind = prior.kind if isinstance(prior, SupervisedPrior) else prior.family
        raise PriorError(f"prior {name!r} to begin with is of kind {kind!r}, expected {settings.network!r}")
    try:
        network.load_state_dict(prior.weights())
    except RuntimeError as error:
        raise PriorError(
            f"prior {name!r} to begin with: its network {prior.arguments} is not the one asked for: {error}"
        ) from error
