"""Supervised training end to end on drawn heads: pairs, loss, resuming, the file, what it reconstructs."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scanprior.models.end_to_end import SupervisedSettings
from scanprior.models.methods import reconstruct
from scanprior.models.prior import PriorError, load_any_prior
from scanprior.models.scan import Scan
from scanprior.models.supervised import NETWORKS, rough_image
from scanprior.sim.evaluation import Condition, simulate_scan
from scanprior.sim.image_sources import ImageStack
from scanprior.sim.metrics import psnr
from scanprior.sim.pair_module import PairTraining, take_weights
from scanprior.sim.pairs import Scanner
from scanprior.sim.phantoms import brain
from scanprior.sim.slice_bank import SliceBank, whole_slice, write_slices
from scanprior.sim.supervised_settings import SupervisedTraining
from scanprior.sim.supervised_training import train_supervised

SMALL: dict[str, dict[str, Any]] = {
    "varnet": {"stages": 3, "filters": 4, "kernel": 5},
    "unet": {"widths": [8, 16], "blocks": [1, 1]},
}
SIZE = 32
TINY = SupervisedTraining(
    steps=80, batch=4, size=SIZE, learning_rate=5e-3, bank=12, accelerator="cpu", save_every=40, mask="gaussian-1d",
    amount=2.0, acs=8, noise=(0.05, 0.05), coils=(1, 1), network_options=SMALL["varnet"],
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    slices = np.abs(brain(48, 4, seed=1).image)
    np.savez(folder / "heads.npz", slices=slices, subject=["a", "a", "b", "b"])
    return folder


def heads(count: int = 4, seed: int = 5) -> torch.Tensor:
    """(count, 2, SIZE, SIZE) complex heads."""
    image = torch.from_numpy(brain(SIZE, count, seed=seed).image)
    return torch.view_as_real(image).movedim(-1, 1).contiguous()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_pairs_are_scans_in_the_priors_scale() -> None:
    """Without noise and fully sampled the truth comes back; R, noise and scale are as stated."""
    full = replace(TINY, amount=1.0, noise=(0.0, 0.0), coils=(1, 3))
    scanner = Scanner(full, 0)
    for seed in range(4):
        pairs = scanner.scan(heads(), generator(seed))
        torch.testing.assert_close(pairs.adjoint, pairs.truth, rtol=1e-3, atol=1e-3)
        bright = torch.quantile(pairs.rough.abs().flatten(1), 0.995, dim=1)
        torch.testing.assert_close(bright, torch.ones(4), rtol=0.05, atol=0)
        assert float(pairs.noise.abs().max()) == 0
    undersampled = Scanner(replace(TINY, coils=(4, 4)), 0)
    pairs = undersampled.scan(heads(), generator())
    assert pairs.model.maps.shape == (4, 4, SIZE, SIZE)
    assert (1 / pairs.model.mask.mean((-2, -1)) == 2).all()
    assert len({tuple(mask.flatten().tolist()) for mask in pairs.model.mask}) > 1, "each has a mask of its own"
    torch.testing.assert_close(pairs.rough, rough_image(pairs.model, pairs.adjoint), rtol=1e-3, atol=1e-3)
    same, other = undersampled.scan(heads(), generator()), undersampled.scan(heads(), generator(1))
    assert torch.equal(same.adjoint, pairs.adjoint)
    assert not torch.equal(other.adjoint, pairs.adjoint)


def test_noise_is_that_of_the_data() -> None:
    """What A^H y has beyond A^H A truth, on a fully sampled single-coil scan, is the noise of each real channel."""
    scanner = Scanner(replace(TINY, amount=1.0, noise=(0.02, 0.2)), 0)
    pairs = scanner.scan(heads(16), generator())
    left = torch.view_as_real(pairs.adjoint - pairs.truth).flatten(1)
    torch.testing.assert_close(left.std(1), pairs.noise, rtol=0.1, atol=0)
    assert float(pairs.noise.max() / pairs.noise.min()) > 3
    told = scanner.trained_for(pairs)
    assert told.noise == pytest.approx((float(pairs.noise.min()), float(pairs.noise.max())), abs=1e-3)
    assert (told.mask, told.dimensions, told.effective_r) == ("gaussian-1d (R 1)", 1, (1.0, 1.0))
    assert (told.coils, told.size, told.magnitude) == ((1, 1), SIZE, False)


def test_masks_of_points_and_magnitudes() -> None:
    scanner = Scanner(replace(TINY, mask="radial", amount=9, acs=None, channels=1), 0)
    assert len(scanner.masks) == 1, "the spokes are always the same"
    pairs = scanner.scan(heads()[:, :1].abs(), generator())
    assert float(pairs.truth.imag.abs().max()) == 0
    told = scanner.trained_for(pairs)
    assert (told.mask, told.dimensions, told.magnitude) == ("radial (spokes 9)", 2, True)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("error", ["mse", "l1"])
def test_training_lowers_the_loss_and_beats_zero_filling_on_other_heads(network: str, error: Any) -> None:
    # mostly noise, which little training takes away
    settings = replace(
        TINY, network=network, network_options=SMALL[network], error=error, amount=1.5, noise=(0.15, 0.15)
    )
    torch.manual_seed(0)
    module = PairTraining(settings)
    learned = [weight for weight in module.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=5e-3)
    training, held = heads(8, seed=1), module.scanner.scan(heads(4, seed=77), generator(99))
    before = float(module.error(held).detach())
    draws = generator(1)
    for _ in range(40):
        optimizer.zero_grad()
        module.error(module.scanner.scan(training, draws)).backward()
        optimizer.step()
    with torch.no_grad():
        found = held.image(module.network)
        assert float(module.error(held)) < 0.8 * before
        assert float((found - held.truth).norm()) < 0.7 * float((held.adjoint - held.truth).norm())


@pytest.mark.slow
def test_a_run_learns_resumes_and_leaves_a_prior_that_reconstructs(data: Path, tmp_path: Path) -> None:
    settings = replace(TINY, noise=(0.1, 0.1))
    path = train_supervised([data], tmp_path / "run", settings)
    train_supervised([data], tmp_path / "run", replace(settings, steps=120))
    rows = list(csv.DictReader((tmp_path / "run" / "curve.csv").open()))
    assert [int(row["step"]) for row in rows] == [40, 80, 120]
    assert float(rows[-1]["rmse"]) < float(rows[0]["rmse"]) < float(rows[0]["rmse_start"])
    assert float(rows[-1]["psnr"]) > float(rows[-1]["psnr_start"]) + 1
    assert (tmp_path / "run" / "samples.png").stat().st_size > 1000
    assert "mask: gaussian-1d" in (tmp_path / "run" / "settings.txt").read_text()
    prior = load_any_prior(str(path))
    assert (prior.kind, prior.trained_for.mask) == ("varnet", "gaussian-1d (R 2)")
    # and on a scan as `evaluate` makes it, of a head of another seed
    image = np.abs(brain(SIZE, 1, seed=9).image[0])
    test = simulate_scan(image, Condition("gaussian-1d", 2.0, None, coils=1, acs=8, noise=0.1))
    scan = Scan(test.kspace, test.mask, torch.ones_like(test.kspace), test.sigma)
    found = reconstruct("varnet", scan, prior, SupervisedSettings())
    assert "warning" not in found.info
    zero_filled = torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(test.kspace[0]), norm="ortho"))
    assert psnr(found.image.numpy(), test.truth) > psnr(zero_filled.numpy(), test.truth) + 0.5
    # its weights begin the next training, but only of the same network
    begun = replace(settings, begin_with=str(path))
    module = PairTraining(begun)
    assert all(torch.equal(module.network.state_dict()[key], value) for key, value in prior.weights().items())
    with pytest.raises(PriorError, match="is of kind 'varnet', expected 'unet'"):
        take_weights(module.network, replace(begun, network="unet", network_options=SMALL["unet"]))
    with pytest.raises(PriorError, match=r"its network .* is not the one asked for"):
        PairTraining(replace(begun, network_options=SMALL["varnet"] | {"stages": 2}))
    with pytest.raises(PriorError, match="is of kind 'diffusion', expected 'varnet'"):
        PairTraining(replace(begun, begin_with="small"))


def test_slices_are_whole_and_fill_the_matrix(tmp_path: Path) -> None:
    source = np.abs(brain((64, 48), 1, seed=3).image[0]).astype(np.float32)
    rng = np.random.default_rng(0)
    for _ in range(8):
        magnitude, image = whole_slice(source, SIZE, 1, rng), whole_slice(source, SIZE, 2, rng)
        assert magnitude.shape == image.shape == (SIZE, SIZE)
        assert (magnitude.dtype, image.dtype) == (np.float32, np.complex64)
        assert magnitude.min() >= 0
        assert magnitude.max() == pytest.approx(1)
        assert np.isfinite(image).all()
        assert np.abs(image).max() == pytest.approx(1)
    assert whole_slice(source[:20, :20], SIZE, 2, rng).shape == (SIZE, SIZE)
    write_slices(tmp_path / "bank.npy", [ImageStack("x", [source], ["s"])], 5, 0, SIZE, 2)
    assert np.load(tmp_path / "bank.npy").shape == (5, 2, SIZE, SIZE)
    first, same, rank = (next(iter(SliceBank(tmp_path / "bank.npy", 0, r))) for r in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, rank)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"network": "ncsnpp"}, "network 'ncsnpp': expected one of varnet, unet"),
        ({"channels": 3}, r"expected 2 channels \(complex\) or 1 \(magnitude\), found 3"),
        ({"error": "ssim"}, "expected the error mse or l1, found 'ssim'"),
        ({"noise": (0.0, 0.1)}, "noise: expected 0, or a least and a greatest above 0 and below 1, found 0.0 and 0.1"),
        ({"noise": (0.2, 0.1)}, "noise: .* found 0.2 and 0.1"),
        ({"coils": (0, 4)}, r"coils: expected a least from 1 on and a greatest, found \[0, 4\]"),
        ({"mask": "spiral"}, "mask 'spiral' is not known; there are: "),
        ({"amount": 30.0}, "mask 'gaussian-1d' on a 32 x 32 matrix: R: .* got 30"),
        ({"mask": "radial", "amount": 2.5}, "spokes: expected a whole number from 1, got 2.5"),
        ({"size": 8}, "size: expected at least 16, found 8"),
    ],
)
def test_what_does_not_go_together_is_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(TINY, **change)


def test_arguments_a_network_does_not_have() -> None:
    with pytest.raises(ValueError, match="network 'varnet' has no argument 'depth'; there are: stages, filters"):
        replace(TINY, network_options={"depth": 3}).build()


def test_the_released_network_is_good_where_it_was_trained_and_says_where_it_was_not() -> None:
    prior = load_any_prior("varnet")
    image = np.abs(brain(128, 1, contrast="t1", seed=9).image[0])
    gains = {}
    for noise in (0.05, 0.3):
        test = simulate_scan(image, Condition("radial", 25, None, coils=1, phase=0.0, noise=noise))
        scan = Scan(test.kspace, test.mask, torch.ones_like(test.kspace), test.sigma)
        found = reconstruct("varnet", scan, prior, SupervisedSettings())
        assert ("warning" in found.info) == (noise == 0.3)
        zero_filled = torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(test.kspace[0]), norm="ortho"))
        gains[noise] = psnr(found.image.numpy(), test.truth) - psnr(zero_filled.numpy(), test.truth)
    assert gains[0.05] > 2
