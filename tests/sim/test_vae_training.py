"""Training of VAE priors: banks, what each stage moves, resuming in either stage, the file that comes out."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scanprior.models.prior import PriorError, load_any_prior
from scanprior.models.vae import elbo_terms
from scanprior.sim.image_sources import load_images
from scanprior.sim.phantoms import brain
from scanprior.sim.vae_data import (
    ImageBank,
    demodulated,
    prepare_vae_banks,
    validation_images,
    whole_slice,
    write_vae_bank,
)
from scanprior.sim.vae_module import VAETraining, take_mean, with_air_noise
from scanprior.sim.vae_settings import VAESettings
from scanprior.sim.vae_training import train_vae

RNG = np.random.default_rng(0)
TINY = {"widths": (8, 16), "middle": 16, "latent": 8, "neighbourhood": 3}
DENSE = VAESettings(
    steps=40, batch=4, bank=12, size=32, parts=1, network=TINY, save_every=10, accelerator="cpu", learning_rate=3e-3,
    validation=8,
)  # fmt: skip
LOCAL = replace(DENSE, size=None, parts=2, patch=32, batch=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    slices = np.abs(brain((64, 64), 4, seed=1).image)
    np.savez(folder / "heads.npz", slices=(slices / slices.max() * 255).astype(np.uint8), subject=["a", "a", "b", "b"])
    return folder


def rows_of(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "curve.csv").open()))


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """First parts of the names of weights that differ."""
    return {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}


@pytest.mark.parametrize("settings", [DENSE, LOCAL], ids=["dense", "local"])
def test_each_stage_moves_its_own_weights_alone(settings: VAESettings) -> None:
    torch.manual_seed(0)
    module = VAETraining(settings)
    images = torch.rand(2, settings.parts, 32, 32)
    for stage, expected in (
        (1, {"encoder", "mean_decoder", "identity"}),
        (2, {"covariance_decoder"}),
    ):
        module.zero_grad()
        module.loss(images, stage).backward()
        moved = {
            name.split(".")[0]
            for name, weight in module.vae.named_parameters()
            if weight.grad is not None and float(weight.grad.abs().max()) > 0
        }
        assert moved == expected
    # and rho does not act on the mean: its gradient is that of the likelihood of the residuals alone
    module.zero_grad()
    torch.manual_seed(1)
    module.loss(images, 1).backward()
    gradient = module.vae.mean_decoder.leave.weight.grad
    assert gradient is not None
    kept = gradient.clone()
    module.vae.identity.data += 0.5
    module.zero_grad()
    torch.manual_seed(1)
    module.loss(images, 1).backward()
    torch.testing.assert_close(module.vae.mean_decoder.leave.weight.grad, kept)


def test_losses_are_the_evidence_bound_and_the_likelihood() -> None:
    """By `elbo_terms`, which is held against a linear case: the first with rho fixed at that of the mean."""
    module = VAETraining(DENSE)
    images, numbers = torch.rand(3, 1, 32, 32), 32 * 32
    low, high = module.vae.bounds
    share = math.log(DENSE.mean_sigma**-2 / (low * high)) / math.log(high / low)
    module.vae.identity.data.fill_(math.atanh(share))
    assert module.vae.identity_diagonal().item() == pytest.approx(1 / DENSE.mean_sigma, rel=1e-5)
    mean, log_var = module.vae.encode(images)
    for stage in (1, 2):
        torch.manual_seed(3)
        loss = module.loss(images, stage).detach()
        torch.manual_seed(3)
        nll, kl = elbo_terms(module.vae, images, mean + (0.5 * log_var).exp() * torch.randn_like(mean), mean, log_var)
        expected = nll + kl if stage == 1 else nll
        torch.testing.assert_close(loss, (expected.mean() / numbers).detach())


def test_rho_becomes_that_of_the_residuals() -> None:
    module = VAETraining(DENSE)
    for weight in (*module.vae.encoder.parameters(), *module.vae.mean_decoder.parameters()):
        weight.data.zero_()  # G = 0: the residuals are the images
    images = 0.2 * torch.randn(64, 1, 32, 32)
    optimizer = torch.optim.Adam([module.vae.identity], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        module.loss(images, 1).backward()
        optimizer.step()
    assert module.vae.identity_diagonal().item() == pytest.approx(1 / 0.2, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [DENSE, LOCAL], ids=["dense", "local"])
def test_training_learns_and_resumes_in_either_stage(data: Path, tmp_path: Path, settings: VAESettings) -> None:
    run = tmp_path / "run"
    # stopped within the first stage, then within the second: the plan is the same one throughout
    whole = replace(settings, mean_steps=20)
    for steps in (10, 30, 40):
        path = train_vae([data], run, replace(whole, steps=steps, mean_steps=min(20, steps)))
        if steps == 30:
            first = load_any_prior(str(path)).weights()
    rows = rows_of(run)
    assert [(int(row["step"]), int(row["stage"])) for row in rows] == [(10, 1), (20, 1), (30, 2), (40, 2)]
    assert float(rows[1]["rmse"]) < 1.01 * float(rows[0]["rmse"]), "the principal components are not spoilt"
    assert float(rows[3]["nll"]) < float(rows[1]["nll"]), "the covariance explains the residuals better than rho I"
    assert rows[3]["rmse"] == rows[2]["rmse"], "the mean is frozen in the second stage"
    assert changed(first, load_any_prior(str(path)).weights()) == {"covariance_decoder"}
    assert [file.name for file in run.glob("*.ckpt")] == ["last.ckpt"]
    assert (run / "samples.png").stat().st_size > 1000
    assert "mean_sigma: 0.05" in (run / "settings.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [DENSE, LOCAL], ids=["dense", "local"])
def test_the_mean_learns_from_random_weights(data: Path, tmp_path: Path, settings: VAESettings) -> None:
    """Without principal components, which are so near the best that 40 steps add nothing to be seen."""
    network = TINY | {"covariance": "identity", "principal": 0}
    train_vae([data], tmp_path, replace(settings, network=network, save_every=20))
    first, last = rows_of(tmp_path)
    # 0.85 and 0.87 of it; with weights that stand still it is 1
    assert float(last["rmse"]) < 0.93 * float(first["rmse"])
    assert float(last["elbo"]) > float(first["elbo"])


@pytest.mark.slow
def test_covariances_share_a_mean(data: Path, tmp_path: Path) -> None:
    identity = replace(DENSE, network=TINY | {"covariance": "identity"}, steps=10)
    path = train_vae([data], tmp_path / "identity", identity)
    mean = load_any_prior(str(path)).weights()
    assert not any(key.startswith("covariance") for key in mean)
    for covariance in ("diagonal", "structured"):
        settings = replace(DENSE, network=TINY | {"covariance": covariance}, steps=10, begin_with=str(path))
        assert settings.first_stage == 0
        other = train_vae([data], tmp_path / covariance, settings)
        weights = load_any_prior(str(other)).weights()
        assert changed(mean, weights) == set()
        assert rows_of(tmp_path / covariance)[0]["stage"] == "2"
    with pytest.raises(PriorError, match=r"to begin with: .*encoder.enter.weight.* differ"):
        take_mean(replace(DENSE, network=TINY | {"widths": (4, 16)}).build(), str(path))
    with pytest.raises(PriorError, match="is not the one asked for: diagonal differ"):
        take_mean(replace(DENSE, network=TINY | {"diagonal": (1.0, 2.0)}).build(), str(path))
    with pytest.raises(PriorError, match="is of the family 'diffusion', expected 'vae'"):
        take_mean(DENSE.build(), "small")


def test_whole_slices_keep_the_head_and_the_scale() -> None:
    head = np.zeros((90, 60), np.float32)
    y, x = np.mgrid[0:90, 0:60]
    head[((y - 45) / 35) ** 2 + ((x - 30) / 22) ** 2 < 1] = 1.0
    for seed in range(8):
        image = whole_slice(head, 48, np.random.default_rng(seed))
        assert image.shape == (48, 48)
        assert float(image.min()) >= 0
        assert float(np.percentile(image, 99.5)) == pytest.approx(1, abs=0.25)
        # pi * 35 * 22 pixels of 90 x 90, moved and zoomed a little
        assert float((image > 0.4).mean()) == pytest.approx(np.pi * 35 * 22 / 90**2, rel=0.35)
        rows, columns = np.nonzero(image > 0.4)
        assert abs(rows.mean() - 23.5) < 5
        assert abs(columns.mean() - 23.5) < 5
        assert rows.max() - rows.min() > columns.max() - columns.min(), "not turned over"


def test_demodulation_leaves_a_small_imaginary_part() -> None:
    magnitude = np.abs(brain((96, 96), 1, seed=2).image[0]).astype(np.float32)
    y, x = np.mgrid[-1:1:96j, -1:1:96j]
    image = magnitude * np.exp(1j * (0.4 + 1.2 * y - x * y))
    found = demodulated(image)
    np.testing.assert_allclose(np.abs(found), np.abs(image), rtol=1e-4, atol=1e-5)
    assert np.linalg.norm(found.imag) < 0.1 * np.linalg.norm(found.real)
    assert np.linalg.norm(image.imag) > 0.3 * np.linalg.norm(image.real)


def test_banks_and_their_streams(data: Path, tmp_path: Path) -> None:
    training, _ = prepare_vae_banks([data], tmp_path, DENSE)
    assert np.load(training).shape == (12, 1, 32, 32)
    assert validation_images(tmp_path, DENSE).shape == (8, 1, 32, 32)
    made = training.stat().st_mtime_ns
    prepare_vae_banks([data], tmp_path, DENSE)
    assert training.stat().st_mtime_ns == made, "taken as it is"
    bank = np.load(training).astype(np.float32)
    stream = iter(ImageBank(training, 32, True, 0))
    for _ in range(6):  # whole slices are flipped left-right alone
        image = next(stream).numpy()
        assert any(np.array_equal(image, one[:, :, ::step]) for one in bank for step in (1, -1))
    np.savez(data / "more.npz", slices=np.ones((2, 32, 32), np.float32))
    try:
        with pytest.raises(FileExistsError, match="holds patches of other data"):
            prepare_vae_banks([data], tmp_path, DENSE)
    finally:
        (data / "more.npz").unlink()
    write_vae_bank(tmp_path / "patches.npy", [load_images(data / "heads.npz")], 4, 0, None, 2)
    assert np.load(tmp_path / "patches.npy").shape == (4, 2, 160, 160)
    first, same, rank = (next(iter(ImageBank(tmp_path / "patches.npy", 48, False, 0, r))) for r in (0, 0, 1))
    assert first.shape == (2, 48, 48)
    assert torch.equal(first, same)
    assert not torch.equal(first, rank)
    with pytest.raises(ValueError, match="patch size 192 is larger than the bank's 160"):
        ImageBank(tmp_path / "patches.npy", 192, False, 0)


def test_noise_comes_on_air_alone() -> None:
    images = torch.zeros(1, 2, 64, 64)
    images[:, 0, 32:] = 1.0
    noisy = with_air_noise(images, 0.01, torch.Generator().manual_seed(0))
    assert torch.equal(noisy[:, 0, 32:], images[:, 0, 32:])
    for air in (noisy[:, 0, :32], noisy[:, 1]):
        assert float(air.std()) == pytest.approx(0.01, rel=0.05)
    assert torch.equal(with_air_noise(images, 0.0), images)


def test_what_does_not_go_together_is_refused() -> None:
    assert DENSE.first_stage == 24
    with pytest.raises(ValueError, match=r"expected mean_steps from 0 to steps \(40\), found 50"):
        replace(DENSE, mean_steps=50)
    with pytest.raises(ValueError, match="covariance identity has no second stage: expected mean_steps 40"):
        replace(DENSE, network={"covariance": "identity"}, mean_steps=20)
    with pytest.raises(ValueError, match="size is an option of its own"):
        replace(DENSE, network={"size": 64})
    with pytest.raises(ValueError, match="expected patches of at most 160, found 192"):
        replace(LOCAL, patch=192)
    with pytest.raises(ValueError, match="expected air_noise of at least 0"):
        replace(DENSE, air_noise=-1.0)
    with pytest.raises(ValueError, match="expected mean_sigma above 0, found 0"):
        replace(DENSE, mean_sigma=0.0)
    with pytest.raises(ValueError, match="network 'vae' has no argument 'depth'"):
        replace(DENSE, network={"depth": 2}).build()


def test_a_mean_that_diverges_ends_the_run_while_its_loss_is_still_finite(data: Path, tmp_path: Path) -> None:
    """Weights so large that the mean is off by more than the images are large: that is no training any more."""
    settings = replace(DENSE, bank=120, network=TINY | {"covariance": "identity"}, learning_rate=0.1, steps=400)
    with pytest.raises(FloatingPointError, match=r"the loss is [0-9.]+ at step \d+: begin again"):
        train_vae([data], tmp_path / "run", settings)
