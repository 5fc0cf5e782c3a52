"""Training end to end on drawn images: banks, loss, resuming, the file that comes out."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scanprior.models.magnitude_prior import MagnitudePrior
from scanprior.models.prior import PriorError, load_prior
from scanprior.sim.augmentation import fourier_resize, random_contrast, random_image
from scanprior.sim.bank_data import make_banks, split_by_subject
from scanprior.sim.banks import prepare_banks, validation_patches
from scanprior.sim.image_sources import ImageStack, find_images, load_images
from scanprior.sim.patch_bank import BANK_PATCH, PatchBank, write_bank
from scanprior.sim.phantoms import brain
from scanprior.sim.training import train_prior
from scanprior.sim.training_module import DenoiserTraining, learning_rate_factor
from scanprior.sim.training_settings import NETWORKS_OF, TrainingSettings

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    slices = np.abs(brain((96, 96), 4, seed=1).image)
    np.savez(folder / "heads.npz", slices=(slices / slices.max() * 255).astype(np.uint8), subject=["a", "a", "b", "b"])
    return folder


@pytest.mark.slow
def test_training_learns_resumes_and_leaves_a_prior(data: Path, tmp_path: Path) -> None:
    settings = TrainingSettings(
        steps=60, batch=2, patch=32, widths=(8, 16), blocks=(1, 1), bank=12, save_every=30, accelerator="cpu",
        learning_rate=3e-3,
    )  # fmt: skip
    path = train_prior([data], tmp_path / "run", settings)
    prior = load_prior(str(path))
    assert prior.denoise(torch.zeros(40, 40, dtype=torch.complex64), 0.1).shape == (40, 40)
    run = (tmp_path / "run").rename(tmp_path / "moved")
    train_prior([data], run, TrainingSettings(**{**settings.__dict__, "steps": 90}))
    assert [path.name for path in run.glob("*.ckpt")] == ["last.ckpt"]
    rows = list(csv.DictReader((run / "curve.csv").open()))
    assert [int(row["step"]) for row in rows] == [30, 60, 90]
    # the average of the weights lags behind, so little is to be expected of so few steps
    assert float(rows[-1]["rmse_at_0.5"]) < 0.9 * float(rows[0]["rmse_at_0.5"])
    assert (run / "samples.png").stat().st_size > 1000


TINY = {
    "unet": {"widths": (8, 16), "blocks": (1, 1)},
    "ncsnv2": {"widths": (8, 16), "network_options": {"dilations": [1, 2]}},
    "ncsnpp": {"widths": (8, 16), "blocks": (1,), "network_options": {"middle_attention": False}},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "network", "channels"),
    [("edm", "unet", 1), *((kind, network, 2) for kind, names in NETWORKS_OF.items() for network in names)],
)
def test_every_kind_learns(data: Path, tmp_path: Path, kind: str, network: str, channels: int) -> None:
    """Sixty steps on a tiny bank, at noise levels that matter; the loss on fixed draws before and after."""
    settings = TrainingSettings(
        kind=kind, network=network, channels=channels, sigma_min=0.1, sigma_max=2.0, levels=5,
        **TINY[network],  # type: ignore[arg-type]
    )  # fmt: skip
    stacks = [load_images(data / "heads.npz")]
    write_bank(tmp_path / "bank.npy", stacks, 12, seed=0)
    torch.manual_seed(0)
    module = DenoiserTraining(settings)
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    stream = iter(torch.utils.data.DataLoader(PatchBank(tmp_path / "bank.npy", 32, 0, 0, channels), batch_size=4))
    held = torch.cat([next(stream) for _ in range(4)])
    sigma = settings.draw_sigma(16, torch.Generator().manual_seed(1))
    noise = torch.randn(held.shape, generator=torch.Generator().manual_seed(2))

    def loss() -> float:
        with torch.no_grad():
            return float(module.denoiser.loss(held, sigma, noise).mean())

    before = loss()
    for _ in range(60):
        clean = next(stream)
        optimizer.zero_grad()
        module.denoiser.loss(clean, settings.draw_sigma(4), torch.randn_like(clean)).mean().backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    assert loss() < 0.85 * before


@pytest.mark.slow
def test_a_magnitude_prior_of_another_kind_is_trained_end_to_end(data: Path, tmp_path: Path) -> None:
    settings = TrainingSettings(
        steps=6, batch=2, patch=32, bank=6, save_every=6, accelerator="cpu", kind="ncsnv2", network="ncsnv2",
        channels=1, levels=10, sigma_max=20.0, **TINY["ncsnv2"],  # type: ignore[arg-type]
    )  # fmt: skip
    prior = load_prior(str(train_prior([data / "heads.npz"], tmp_path / "run", settings)))
    assert isinstance(prior, MagnitudePrior)
    assert (prior.kind, prior.network["name"], prior.sigma_data) == ("ncsnv2", "ncsnv2", 0.42)
    assert (prior.sigma_min, prior.sigma_max) == (0.0066, 20.0)
    assert "sigma_max: 20.0" in (tmp_path / "run" / "settings.txt").read_text()
    # and the weights begin the next training, but only one of the same kind
    DenoiserTraining(replace(settings, begin_with=str(tmp_path / "run" / "prior.safetensors")))
    with pytest.raises(PriorError, match="is of kind 'ncsnv2', expected 've'"):
        DenoiserTraining(replace(settings, kind="ve", begin_with=str(tmp_path / "run" / "prior.safetensors")))


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match="loss 'vp' is not known; there are: edm, ve, ncsnv2"):
        TrainingSettings(kind="vp")
    with pytest.raises(ValueError, match="network 'vit' is not known; there are: unet, ncsnv2, ncsnpp"):
        TrainingSettings(network="vit")
    with pytest.raises(ValueError, match="loss 've' with network 'unet': expected one of ncsnpp, ncsnv2"):
        TrainingSettings(kind="ve")
    with pytest.raises(ValueError, match=r"expected 2 channels .* or 1 .*, found 3"):
        TrainingSettings(channels=3)
    with pytest.raises(ValueError, match="found 90 and 80"):
        TrainingSettings(sigma_min=90.0)
    with pytest.raises(ValueError, match="has no argument 'depth'"):
        TrainingSettings(network_options={"depth": 3}).denoiser()


def test_noise_levels_of_each_kind() -> None:
    generator = torch.Generator().manual_seed(0)
    ve = TrainingSettings(kind="ve", network="ncsnpp").draw_sigma(20_000, generator)
    assert float(ve.min()) >= 0.01
    assert float(ve.max()) <= 378
    assert float(ve.median()) == pytest.approx((0.01 * 378) ** 0.5, rel=0.1)
    discrete = TrainingSettings(kind="ncsnv2", network="ncsnv2", levels=4, sigma_min=0.1, sigma_max=100.0)
    drawn = discrete.draw_sigma(4000, generator)
    values, counts = drawn.unique(return_counts=True)
    torch.testing.assert_close(values, torch.tensor([0.1, 1.0, 10.0, 100.0]))
    assert counts.min() > 900


def test_banks_are_magnitudes_for_one_channel_and_larger_for_larger_patches(data: Path, tmp_path: Path) -> None:
    small, large = TrainingSettings(bank=2), TrainingSettings(bank=2, patch=192)
    training, _ = prepare_banks([data / "heads.npz"], tmp_path, small)
    complex_patch = next(iter(PatchBank(training, 64, 3)))
    magnitude = next(iter(PatchBank(training, 64, 3, channels=1)))
    assert magnitude.shape == (1, 64, 64)
    torch.testing.assert_close(magnitude[0], complex_patch.square().sum(0).sqrt())
    held, real = validation_patches(tmp_path, 2), validation_patches(tmp_path, 1)
    assert real.shape == (16, 1, 128, 128)
    torch.testing.assert_close(real, held.square().sum(1, keepdim=True).sqrt())
    larger, _ = prepare_banks([data / "heads.npz"], tmp_path, large)
    assert larger != training
    assert next(iter(PatchBank(larger, 192, 0))).shape == (2, 192, 192)


def test_a_folder_keeps_to_its_data(data: Path, tmp_path: Path) -> None:
    run, settings = tmp_path / "run", TrainingSettings(bank=4)
    run.mkdir()
    training, _ = prepare_banks([data], run, settings)
    made = training.stat().st_mtime_ns
    prepare_banks([data / "heads.npz"], run, settings)
    assert training.stat().st_mtime_ns == made, "taken as it is"
    patches = np.load(training)
    assert patches.shape == (4, 2, 160, 160)
    assert (np.abs(patches).max((1, 2, 3)) > 0).all()
    np.savez(data / "more.npz", slices=np.ones((2, 32, 32), np.float32))
    with pytest.raises(FileExistsError, match="holds patches of other data"):
        prepare_banks([data], run, settings)


def test_banks_that_no_note_tells_the_data_of_are_made_again(tmp_path: Path) -> None:
    """A run that ended between the banks and the note of their data left banks; a run with other data shall not have
    them."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("old", "new"):
        np.savez(tmp_path / f"{name}.npz", slices=RNG.random((2, 16, 16)).astype(np.float32))

    def write(path: Path, stacks: list[ImageStack]) -> None:
        np.save(path, stacks[0].slices[0])

    training, validation = folder / "training.npy", folder / "validation.npy"
    for data in ("old", "new"):
        make_banks([tmp_path / f"{data}.npz"], folder, (training, write), (validation, write))
        (folder / "data.txt").unlink()
    wanted = load_images(tmp_path / "new.npz").slices[0]
    for bank in (training, validation):
        np.testing.assert_array_equal(np.load(bank), wanted)


def test_split_keeps_subjects_apart(data: Path) -> None:
    train, held = split_by_subject([load_images(data / "heads.npz")])
    assert set(train[0].subjects) == {"a"}
    assert set(held[0].subjects) == {"b"}
    assert len(train[0].slices) == len(held[0].slices) == 2


def test_bank_streams_differ_by_seed_and_rank(tmp_path: Path) -> None:
    stack = ImageStack("x", [RNG.random((200, 180)).astype(np.float32)], ["s"])
    write_bank(tmp_path / "bank.npy", [stack], 5, seed=0)
    assert np.load(tmp_path / "bank.npy").shape == (5, 2, BANK_PATCH, BANK_PATCH)
    first, same, rank = (next(iter(PatchBank(tmp_path / "bank.npy", 48, 0, r))) for r in (0, 0, 1))
    assert first.shape == (2, 48, 48)
    assert torch.equal(first, same)
    assert not torch.equal(first, rank)
    with pytest.raises(ValueError, match="patch size 200 is larger than the bank's 160"):
        PatchBank(tmp_path / "bank.npy", 200, 0)


def test_fourier_resize_keeps_intensities_and_low_frequencies() -> None:
    y, x = np.mgrid[0:64, 0:48]
    wave = (2 + np.cos(2 * np.pi * 3 * y / 64) * np.cos(2 * np.pi * 2 * x / 48)).astype(np.float32)
    small = fourier_resize(wave, 0.5)
    np.testing.assert_allclose(small, wave[::2, ::2], atol=1e-5)
    assert fourier_resize(wave, 1.0) is wave


def test_contrast_keeps_air_dark_and_scale() -> None:
    image = np.zeros((64, 64), np.float32)
    image[16:48, 16:48] = RNG.uniform(0.2, 1.0, (32, 32))
    for seed in range(20):
        mapped = random_contrast(image, np.random.default_rng(seed))
        assert np.abs(mapped[:16]).max() == 0
        assert np.percentile(mapped, 99.5) == pytest.approx(1.0, abs=1e-3)


def test_augmented_images_are_complex_finite_and_vary() -> None:
    head = np.abs(brain((128, 128), 1, seed=2).image[0])
    head = (head / head.max()).astype(np.float32)
    made = [random_image(head, np.random.default_rng(seed)) for seed in range(6)]
    assert all(image.dtype == np.complex64 and np.isfinite(image).all() for image in made)
    assert all(0.3 < np.percentile(np.abs(image), 99.5) < 3 for image in made)
    assert np.std([np.abs(image).mean() for image in made]) > 0.01


def test_sigma_covers_the_range_and_rate_follows_its_schedule() -> None:
    sigma = TrainingSettings().draw_sigma(20_000, torch.Generator().manual_seed(0))
    assert 0.18 < float(sigma.median()) < 0.28
    assert float(sigma.min()) >= 0.002
    assert float((sigma > 10).float().mean()) == pytest.approx(0.02, abs=0.01)
    assert learning_rate_factor(0, 1000) == pytest.approx(1 / 300)
    assert learning_rate_factor(500, 1000) == 1.0
    assert learning_rate_factor(850, 1000) == pytest.approx(0.5)


def test_wrong_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        find_images([tmp_path / "nowhere"])
    with pytest.raises(FileNotFoundError, match=r"no file with .npz"):
        find_images([tmp_path])
    np.savez(tmp_path / "odd.npz", pictures=np.zeros(3))
    with pytest.raises(ValueError, match=r"expected the key 'slices'.*found \['pictures'\]"):
        load_images(tmp_path / "odd.npz")
    np.savez(tmp_path / "flat.npz", slices=np.ones((3, 3)))
    with pytest.raises(ValueError, match=r"expected \(slice, y, x\), got shape \(3, 3\)"):
        load_images(tmp_path / "flat.npz")


def test_nifti_volumes_give_axial_slices(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    volume = np.zeros((20, 24, 40), np.float32)  # right, anterior, superior
    volume[5:15, 6:18, 5:38] = 100
    volume[5:15, 16:18, 5:38] = 200  # the front is bright
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "head.nii.gz")
    stack = load_images(tmp_path / "head.nii.gz")
    assert stack.slices[0].shape == (24, 20)
    assert len(stack.slices) == 28
    assert stack.slices[0][6:8, 10].mean() > 1.5 * stack.slices[0][12:16, 10].mean()
