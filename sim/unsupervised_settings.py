"""What `scanprior train --method ...` can be told: priors from noisy or undersampled scans, without a clean image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scanprior.models.posterior_images import SAMPLING

from .mask_families import FAMILIES
from .supervised_settings import SupervisedTraining
from .training_settings import TrainingSettings

METHODS = {
    "sure": "SURE-Score: noisy, fully sampled scans",
    "gsure": "generalised SURE on the measured k-space; score matching, where measured, on what is denoised",
    "split": "as gsure, with the error on measured lines that the network is not given in the place of SURE",
    "em": "expectation maximisation: score matching, where measured, on posterior images redrawn in rounds",
}


@dataclass(frozen=True, kw_only=True)
class UnsupervisedTraining(TrainingSettings):
    """The training of a diffusion prior on scans of which no clean image is known.

    Attributes
    ----------
    method
        One of `METHODS`.
    bank
        Scans that there are: each slice is scanned once, with one mask and one realisation of noise.
    size
        Edge of the matrix.
    mask, amount, acs, noise, coils
        Of the simulated scans, as of `SupervisedTraining`.
    batch
        Patches of full scans; of undersampled ones whole scans, as many as have about as many pixels.
    held
        Share of the lines that `split` holds out, drawn anew in each step.
    rounds
        Of `em`.
    recorded
        Whether the scans are recorded ones: they tell matrix, masks, coils and noise themselves then.

    Raises
    ------
    ValueError
        When a value does not do, or things do not go together.
    """

    method: str
    bank: int = 1000
    patch: int = 64
    size: int = 128
    mask: str = "gaussian-1d"
    amount: float = 4.0
    acs: int | None = None
    noise: tuple[float, float] = (0.01, 0.01)
    coils: tuple[int, int] = (8, 8)
    held: float = 0.2
    rounds: int = 8
    recorded: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in METHODS:
            raise ValueError(f"method {self.method!r} is not known; there are: {', '.join(METHODS)}")
        if self.kind != "edm" or self.channels != 2:
            raise ValueError(
                f"method {self.method!r}: expected loss 'edm' and 2 channels, found {self.kind!r} and {self.channels}"
            )
        if self.noise[0] <= 0:
            raise ValueError(f"method {self.method!r}: expected noise above 0, found {self.noise[0]:g}")
        if self.method == "sure" and self.amount != 1:
            raise ValueError(
                f"method 'sure' is for fully sampled scans: expected --r 1, found {self.amount:g}; "
                "of undersampled ones gsure, split or em learn"
            )
        full = self.amount == 1 and FAMILIES[self.mask].amount == "R"
        if full and self.method in ("sure", "em") and self.patch > self.size and not self.recorded:
            raise ValueError(f"patch {self.patch} is larger than the images' {self.size}")
        if not 0 < self.held < 1:
            raise ValueError(f"held: expected a share between 0 and 1, found {self.held:g}")
        if self.method == "em" and not 1 <= self.rounds <= self.steps:
            raise ValueError(f"rounds: expected 1 to {self.steps} (the steps), found {self.rounds}")
        low, high = self.sigma_range
        if self.method != "sure" and (low > SAMPLING.sigma_end or high < SAMPLING.sigma_start):
            raise ValueError(
                f"method {self.method!r} draws posterior images: expected noise levels from {SAMPLING.sigma_end:g} "
                f"or less to {SAMPLING.sigma_start:g} or more, found {low:g} to {high:g}"
            )
        self._check_scans()

    def told(self) -> dict[str, Any]:
        """All but what only other methods read, or simulated scans where these are recorded."""
        unread = {"held"} if self.method != "split" else set()
        unread |= {"rounds"} if self.method != "em" else set()
        unread |= {"bank", "size", "mask", "amount", "acs", "noise", "coils"} if self.recorded else set()
        return {name: value for name, value in super().told().items() if name not in unread}

    def _check_scans(self) -> None:
        """Refuse what supervised training refuses of the same scans."""
        SupervisedTraining(
            size=self.size, channels=2, mask=self.mask, amount=self.amount, acs=self.acs, noise=self.noise,
            coils=self.coils,
        )  # fmt: skip

    @property
    def redraw_every(self) -> int:
        """Steps of a round of `em`."""
        return -(-self.steps // self.rounds)
