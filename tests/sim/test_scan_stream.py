"""What a training without clean images is given: scans turned at random, their weights, images and batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scanprior.models.channels import to_channels, to_complex
from scanprior.models.divergence import rademacher
from scanprior.models.measured_scans import RIDGE, MeasuredScans, density_weights, first_image
from scanprior.models.posterior_images import sense_images
from scanprior.sim.image_sources import load_images
from scanprior.sim.scan_bank import (
    read_scan,
    scan_files,
    together,
    write_simulated,
)
from scanprior.sim.scan_data import ScanData, images_file, training_scans
from scanprior.sim.scan_images import ImageStream, write_images
from scanprior.sim.scan_stream import ScanStream, beside_first, folder_spread, scan_density, turned
from scanprior.sim.unsupervised_training import train_unsupervised
from support import random_complex
from unsupervised_runs import SIZE, settings, simulated, write_heads


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_heads(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("shape", [(8, 6), (7, 9), (6, 6)])
def test_a_turned_scan_is_one_of_the_turned_image(shape: tuple[int, int]) -> None:
    """A of the turned maps and mask, of the turned image, is the turned k-space; every way of turning comes up."""
    maps, image = random_complex(1, 3, *shape, seed=1), random_complex(1, *shape, seed=2)
    mask = torch.rand(1, shape[0], 1, generator=torch.Generator().manual_seed(3)) < 0.5
    scan = {"maps": maps, "mask": mask, "sigma": torch.ones(1)}
    scan["kspace"] = MeasuredScans(kspace=maps, **scan).model()(image)
    scan |= {"image": to_channels(image), "first": 2 * to_channels(image), "weights": 3.0 * mask.expand(1, *shape)}
    seen, phases = set(), set()
    for seed in range(150):
        found = turned(scan, np.random.default_rng(seed))
        scans = MeasuredScans(*(found[name] for name in ("kspace", "mask", "maps", "sigma")))
        torch.testing.assert_close(scans.model()(to_complex(found["image"])), scans.kspace, rtol=0, atol=1e-5)
        torch.testing.assert_close(found["first"], 2 * found["image"])
        torch.testing.assert_close(found["weights"], 3.0 * found["mask"])
        lies = to_complex(found["image"])
        phases.add(round(float(lies[0, 3, 3].angle()), 2))
        lies = lies * (lies.square().sum() / image.square().sum()).abs() / lies[0, 3, 3] * lies[0, 3, 3].abs()
        seen.add(tuple(torch.view_as_real(lies).flatten().mul(100).round().tolist()))
    # flips, conjugation, and of a square also transposition
    assert len(seen) == (16 if shape[0] == shape[1] else 8)
    assert len(phases) > 20


def test_first_images_of_turned_scans_are_turned_first_images(data: Path, tmp_path: Path) -> None:
    simulated(data, tmp_path, bank=2, coils=(3, 3))
    folder = tmp_path / "scans"
    density = scan_density(folder)
    stream = iter(ScanStream(folder, density, beside_first(folder, density), 0))
    batch = together([next(stream) for _ in range(6)])
    scans = MeasuredScans(*(batch[name] for name in ("kspace", "mask", "maps", "sigma")))
    again, level = first_image(scans, rademacher(batch["first"]), folder_spread(folder, density))
    torch.testing.assert_close(again, batch["first"], rtol=0, atol=2e-3)
    torch.testing.assert_close(level, batch["level"], rtol=0.1, atol=0)


def test_first_images_are_told_about_their_true_error(data: Path, tmp_path: Path) -> None:
    """Of images that nothing has seen since: the scans are made again from the images that they were made of."""
    chosen = simulated(data, tmp_path, bank=24, coils=(4, 4), noise=(0.01, 0.01), mask="random-1d")
    folder, full = tmp_path / "scans", tmp_path / "full"
    write_simulated(full, [load_images(data / "heads.npz")], 24, 0, replace(chosen, amount=1.0))
    density = scan_density(folder)
    beside, errors, levels = beside_first(folder, density), [], []
    for number, (path, whole) in enumerate(zip(scan_files(folder), scan_files(full), strict=True)):
        scan, clean = read_scan(path), MeasuredScans(**read_scan(whole))
        found = beside(number, scan)
        truth = sense_images(clean) * load_file(whole)["scale"] / load_file(path)["scale"]
        # the phase of the virtual coil is not the same from other ACS
        difference = (1 + RIDGE) * to_complex(found["first"]).abs() - truth.abs()
        errors.append(float(difference.square().mean()))
        levels.append(float(found["level"].square()))
    assert 0.4 < np.mean(errors) / np.mean(levels) < 2.5  # 0.3 ^ 2 for sigma_data would be far outside
    assert np.mean(levels) < 0.25 * 0.3**2


def test_streams_read_images_that_are_drawn_anew(tmp_path: Path, data: Path) -> None:
    simulated(data, tmp_path, method="sure", bank=3)
    path = images_file(tmp_path)
    write_images(tmp_path / "scans", path, lambda scans: torch.ones(len(scans), SIZE, SIZE) + 0j, "first")
    stream = iter(ImageStream(path, np.full(3, 0.1, np.float32), 16, 0))
    assert float(to_complex(next(stream)["image"]).abs().max()) == pytest.approx(1)
    write_images(tmp_path / "scans", path, lambda scans: 2 * torch.ones(len(scans), SIZE, SIZE) + 0j, "second")
    found = next(stream)
    assert float(to_complex(found["image"]).abs().max()) == pytest.approx(2)
    assert found["image"].shape == (2, 16, 16)
    assert float(found["sigma"]) == pytest.approx(0.1)


def test_full_scans_are_trained_on_in_patches_whatever_makes_their_images(data: Path, tmp_path: Path) -> None:
    for method in ("em", "sure"):
        chosen = settings(method, amount=1.0, steps=2)
        train_unsupervised([data], tmp_path / method, chosen)
        batch = next(iter(ScanData([data], tmp_path / method, chosen, 0).stream(0)))
        assert batch["image"].shape == (2, 16, 16)
        assert ScanData([data], tmp_path / method, chosen, 0).batch_size == chosen.batch


def test_many_full_scans_are_full(data: Path, tmp_path: Path) -> None:
    """The density is a count: hundreds of shares added up would miss 1 by rounding."""
    chosen = settings("sure", bank=100)
    folder = training_scans(tmp_path, chosen)
    write_simulated(folder, [load_images(data / "heads.npz")], 1, 0, chosen)
    (one,) = scan_files(folder)
    for number in range(1, 100):
        (folder / f"{number:06d}.safetensors").hardlink_to(one)
    assert (scan_density(folder) == 1).all()
    assert ScanData([data], tmp_path, chosen, 0).patches


def test_batches_of_whole_scans_have_about_the_pixels_of_the_patches(data: Path, tmp_path: Path) -> None:
    chosen = settings("gsure", batch=16, patch=16)
    write_simulated(training_scans(tmp_path, chosen), [load_images(data / "heads.npz")], 6, 0, chosen)
    assert ScanData([data], tmp_path, chosen, 0).batch_size == 16 * 16**2 // SIZE**2
    assert ScanData([data], tmp_path, replace(chosen, batch=1), 0).batch_size == 1


@pytest.mark.parametrize("mask", ["gaussian-1d", "uniform-1d"])
def test_weights_make_up_for_the_density_of_the_masks(data: Path, tmp_path: Path, mask: str) -> None:
    """Weight times mask, over what the stream yields, is 1 everywhere that is measured often enough.

    Evenly spread lines are the same in all scans, and only turning them tells of what lies between.
    """
    chosen = settings("gsure", bank=60, amount=2.0, mask=mask)
    folder = training_scans(tmp_path, chosen)
    write_simulated(folder, [load_images(data / "heads.npz")], 60, 0, chosen)
    density = scan_density(folder)
    assert float(density_weights(density).max()) > 1.5
    stream = iter(ScanStream(folder, density, lambda number, scan: {}, 0))
    counted = torch.stack([scan["weights"][0] * scan["mask"][0] for scan in (next(stream) for _ in range(1500))])
    often = density > 1 / 16
    assert float(often.float().mean()) > 0.3
    assert float(counted.mean(0)[often].mean()) == pytest.approx(1, abs=0.03)
    assert float(counted.mean(0)[often].std()) < 0.2
    masks = {tuple(read_scan(path)["mask"].flatten().tolist()) for path in scan_files(folder)}
    assert len(masks) > 40 if mask == "gaussian-1d" else len(masks) < 5
    assert folder_spread(folder, density) > 0.02, "scans of one mask tell their spread too"


def test_whole_lines_are_held_out_however_a_scan_is_turned(data: Path, tmp_path: Path) -> None:
    simulated(data, tmp_path, bank=4)
    folder = tmp_path / "scans"
    stream = iter(ScanStream(folder, scan_density(folder), lambda number, scan: {}, 0, held=0.4))
    shares = []
    for scan in (next(stream) for _ in range(12)):
        given, mask = scan["given"][0], scan["mask"][0]
        assert not (given & ~mask).any()
        assert any(bool(((given.sum(axis) == 0) | (given.sum(axis) == SIZE)).all()) for axis in (0, 1))
        shares.append(1 - float(given.sum() / mask.sum()))
    assert np.mean(shares) == pytest.approx(0.4, abs=0.1)
