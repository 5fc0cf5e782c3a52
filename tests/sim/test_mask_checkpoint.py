"""A learning that was cut and goes on ends in the same mask as one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scanprior.models.fourier import fft2c
from scanprior.sim.mask_checkpoint import Checkpoint, CheckpointError, LearningState
from scanprior.sim.mask_learning import Learned, LearningSettings, learn
from scanprior.sim.mask_objectives import Example, ObjectiveSettings
from scanprior.sim.masks import acs_lines


class Cut(Exception):
    """What ends a run in its middle."""


class ShrinkingPrior:
    """Pulls towards zero; ends the run at the evaluation `cut_at`."""

    name, sigma_min, sigma_max, sigma_data, scale = "shrinking", 0.01, 10.0, 0.3, (99.5, 1.0)

    def __init__(self, cut_at: int | None = None) -> None:
        self.calls, self.cut_at = 0, cut_at

    def for_image(self, image: torch.Tensor) -> ShrinkingPrior:
        return self

    def denoise(self, x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.cut_at:
            raise Cut
        return x * (self.sigma_data**2 / (self.sigma_data**2 + float(sigma) ** 2))


def example_of(seed: int) -> Example:
    rng = np.random.default_rng(seed)
    parts = rng.standard_normal((2, 24, 10)).cumsum(1).cumsum(2) / 20
    image = torch.from_numpy(parts[0] + 1j * parts[1])
    noise = rng.standard_normal((2, 1, 24, 10)) * 0.02
    maps = torch.ones((1, 24, 10), dtype=torch.complex128)
    return Example(image, fft2c(maps * image) + torch.from_numpy(noise[0] + 1j * noise[1]), maps, 0.02**2)


def run(learner: str, prior: ShrinkingPrior, checkpoint: Checkpoint | None) -> Learned:
    return learn(
        acs_lines(24, 4)[:, None],
        12,
        [example_of(seed) for seed in range(3)],
        prior,  # type: ignore[arg-type]
        ObjectiveSettings(kind="data-consistency", cg_iterations=4),
        LearningSettings(learner=learner, steps=16, validations=5, draws=2, together=1, shortlist=3, seed=7),  # type: ignore[arg-type]
        lambda mask: float((mask[:, 0] * np.arange(24)).sum() % 17),
        checkpoint=checkpoint,
    )


def assert_same(found: Learned, expected: Learned) -> None:
    assert np.array_equal(found.mask, expected.mask)
    assert np.array_equal(found.probabilities, expected.probabilities)
    assert found.losses == expected.losses
    assert found.validated == expected.validated


@pytest.mark.parametrize("learner", ["gumbel", "greedy"])
def test_a_cut_run_goes_on_to_the_same_mask(learner: str, tmp_path: Path) -> None:
    whole = ShrinkingPrior()
    expected = run(learner, whole, None)
    # cut in the middle of a step, again and again
    for part in range(2, whole.calls + 1, 3):
        path = tmp_path / f"{part}.safetensors"
        calls = 0
        for number in range(whole.calls):
            prior = ShrinkingPrior(part if number < 2 else None)
            try:
                found = run(learner, prior, Checkpoint(path, "a", every=0))
            except Cut:
                calls += prior.calls
                continue
            break
        assert_same(found, expected)
        calls += prior.calls
        assert calls <= whole.calls + 2 * 3, "at most the step of a cut is done again, of three images"
    # of a learning that is done nothing is done again
    again = ShrinkingPrior(1)
    assert_same(run(learner, again, Checkpoint(path, "a")), expected)


@pytest.mark.parametrize("learner", ["gumbel", "greedy"])
def test_what_the_state_decides(learner: str, tmp_path: Path) -> None:
    """The test above would not fail if learning were the same from any state: it is not."""
    path = tmp_path / "state.safetensors"
    with pytest.raises(Cut):
        run(learner, ShrinkingPrior(14), Checkpoint(path, "a", every=0))
    checkpoint = Checkpoint(path, "a")
    state = checkpoint.load()
    assert state is not None
    changed: dict[str, Any] = dict(state.tensors)
    if learner == "gumbel":
        changed["logits"] = changed["logits"].flip(0) + torch.linspace(-2, 2, 20, dtype=torch.float64)
    else:
        free = torch.nonzero(~changed["mask"].flatten()).flatten()
        changed["mask"].view(-1)[free[:2]] = True
    checkpoint.save(LearningState(changed, state.facts))
    assert not np.array_equal(
        run(learner, ShrinkingPrior(), Checkpoint(path, "a")).probabilities,
        run(learner, ShrinkingPrior(), None).probabilities,
    )


def test_a_state_is_kept_only_now_and_then(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "state.safetensors", "a", every=3600)
    assert not checkpoint.due()
    with pytest.raises(Cut):
        run("greedy", ShrinkingPrior(14), checkpoint)
    assert not list(tmp_path.iterdir())


def test_files_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    assert Checkpoint(path, "a").load() is None
    Checkpoint(path, "a").save(LearningState({"mask": torch.ones(2)}, {"step": 3}))
    with pytest.raises(CheckpointError, match="an unfinished learning with other settings, images or prior"):
        Checkpoint(path, "b").load()
    state = Checkpoint(path, "a").load()
    assert state is not None
    assert state.facts == {"step": 3}
    whole = path.read_bytes()
    for content in (b"", whole[:40], whole[:-3], b"{}" * 50):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"state\.safetensors: (no state|expected the format)"):
            Checkpoint(path, "a").load()


def test_the_seconds_of_all_parts_are_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("scanprior.sim.mask_checkpoint.time.perf_counter", lambda: clock[0])
    path = tmp_path / "state.safetensors"
    for part, total in ((5.0, 5.0), (7.0, 12.0)):
        checkpoint = Checkpoint(path, "a")
        checkpoint.load()
        clock[0] += part
        assert checkpoint.seconds == total
        checkpoint.save(LearningState({"mask": torch.ones(2)}, {}))
