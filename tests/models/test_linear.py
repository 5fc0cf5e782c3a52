"""Zero-filled and CG-SENSE."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bart import bart
from brain import load_brain
from pydantic import ValidationError
from scanprior.models.forward import SenseModel
from scanprior.models.fourier import fft2c
from scanprior.models.linear import SenseSettings, ZeroFilledSettings, combine_sets, noise_to_signal, sense, zero_filled
from scanprior.models.scan import Scan
from support import random_complex

SIZE = (20, 17)


def unit_maps(*shape: int) -> torch.Tensor:
    maps = random_complex(*shape, seed=1)
    return maps / maps.abs().square().sum(-3, keepdim=True).sqrt()


def line_mask() -> torch.Tensor:
    mask = torch.zeros(SIZE[0], 1, dtype=torch.bool)
    mask[::2] = True
    return mask


def test_zero_filled_of_full_data_is_the_image() -> None:
    image, maps = random_complex(2, *SIZE), unit_maps(4, *SIZE)
    scan = Scan(fft2c(image.unsqueeze(-3) * maps), torch.ones(SIZE[0], 1, dtype=torch.bool), maps, 1.0)
    with_maps = zero_filled(scan, None, ZeroFilledSettings())
    assert with_maps.info["combine"] == "maps"
    torch.testing.assert_close(with_maps.image, image, rtol=1e-4, atol=1e-5)
    rss = zero_filled(scan, None, ZeroFilledSettings(combine="rss"))
    torch.testing.assert_close(rss.image, image.abs() + 0j, rtol=1e-4, atol=1e-5)
    bare = Scan(scan.kspace, scan.mask, None, 1.0)
    assert zero_filled(bare, None, ZeroFilledSettings()).info["combine"] == "rss"
    with pytest.raises(ValueError, match="needs coil maps"):
        zero_filled(bare, None, ZeroFilledSettings(combine="maps"))


def test_sense_unfolds_noiseless_data_for_each_slice() -> None:
    image, maps, mask = random_complex(2, *SIZE), unit_maps(6, *SIZE), line_mask()
    image[0] *= 1e-5
    model = SenseModel(maps, mask)
    steps = []
    result = sense(
        Scan(model(image), mask, maps, 0.0), None, SenseSettings(iterations=200, tolerance=1e-6),
        lambda step, total: steps.append((step, total)),
    )  # fmt: skip
    for found, truth in zip(result.image, image, strict=True):
        assert float((found - truth).norm() / truth.norm()) < 1e-4
    assert result.info["iterations"] == len(steps) < 200


def test_sense_solves_its_normal_equations_with_the_documented_ridge() -> None:
    maps, mask, sigma = unit_maps(3, *SIZE), line_mask(), 0.5
    model = SenseModel(maps, mask)
    clean = model(random_complex(*SIZE, seed=2))
    kspace = clean + sigma * random_complex(*clean.shape, seed=3) * mask
    result = sense(Scan(kspace, mask, maps, sigma), None, SenseSettings(iterations=100, lam=3.0, tolerance=1e-6))
    # Mean |x|^2 is 1; half of the energy is sampled.
    ridge = 3.0 * sigma**2 / 0.5
    residual = model.H(kspace) - model.normal(result.image) - ridge * result.image
    assert float(residual.norm() / model.H(kspace).norm()) < 0.02


def test_no_reconstruction_depends_on_the_receiver_gain() -> None:
    maps, mask = unit_maps(3, *SIZE), line_mask()
    kspace = SenseModel(maps, mask)(random_complex(*SIZE, seed=2))
    small = sense(Scan(kspace * 1e-6, mask, maps, 0.3e-6), None, SenseSettings())
    large = sense(Scan(kspace, mask, maps, 0.3), None, SenseSettings())
    torch.testing.assert_close(small.image * 1e6, large.image, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_all_zero_scan_gives_zeros(sigma: float) -> None:
    mask = line_mask()
    result = sense(Scan(torch.zeros(3, *SIZE) + 0j, mask, unit_maps(3, *SIZE), sigma), None, SenseSettings())
    assert torch.equal(result.image, torch.zeros(SIZE) + 0j)


def test_two_sets_separate_a_fold_over_that_one_set_cannot() -> None:
    images, maps = random_complex(2, *SIZE, seed=4), unit_maps(2, 8, *SIZE)
    mask = torch.ones(SIZE[0], 1, dtype=torch.bool)
    model = SenseModel(maps, mask, sets=True)
    result = sense(Scan(model(images), mask, maps, 0.0), None, SenseSettings(iterations=300, tolerance=1e-6))
    assert result.image.shape == SIZE
    torch.testing.assert_close(result.image.abs(), images.abs().square().sum(0).sqrt(), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(torch.sgn(result.image), torch.sgn(images[0]), rtol=0.1, atol=0.1)


def test_phase_of_the_second_set_where_the_first_is_zero() -> None:
    images = random_complex(2, *SIZE)
    images[0, :5] = 0
    model = SenseModel(unit_maps(2, 3, *SIZE), line_mask(), sets=True)
    torch.testing.assert_close(combine_sets(images, model)[:5], images[1, :5])


def test_settings_refuse_what_makes_no_sense() -> None:
    for bad in ({"iterations": 0}, {"lam": -1.0}, {"iteration": 3}):
        with pytest.raises(ValidationError):
            SenseSettings(**bad)


def test_barts_pics_gives_the_same_image(tmp_path: Path) -> None:
    brain = load_brain()
    scan = Scan(brain.kspace, brain.mask, brain.maps, 1.0)
    settings = SenseSettings(iterations=60, tolerance=0)
    ours = sense(scan, None, settings).image
    ridge = settings.lam * float(noise_to_signal(scan, SenseModel.of(scan)))
    inputs = brain.kspace.numpy()[:, None], brain.maps.numpy()[:, None]
    oracle = torch.from_numpy(bart(tmp_path, f"pics -w1 -l2 -r{ridge} -i60", *inputs).reshape(320, 320))
    assert float((ours - oracle).norm() / oracle.norm()) < 1e-3
    assert brain.psnr(ours) > 30.3


@pytest.mark.parametrize("sets", [False, True])
def test_pixels_without_a_map_are_zero(sets: bool) -> None:
    maps = unit_maps(2, 3, *SIZE) if sets else unit_maps(3, *SIZE)
    maps[..., :5, :] = 0
    images = random_complex(2, *SIZE) if sets else random_complex(*SIZE)
    combined = combine_sets(images, SenseModel(maps, line_mask(), sets=sets))
    assert float(combined[:5].abs().amax()) == 0
    assert float(combined[5:].abs().amin()) > 0
