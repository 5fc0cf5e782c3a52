"""A test scan is what it says, its maps come from the noisy ACS alone, and the scores are those of known errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scanprior.models.espirit import NoAcsError
from scanprior.models.recipe import Recipe, load_recipe, recipe_from
from scanprior.sim.anatomy import to_kspace
from scanprior.sim.evaluation import (
    BANDS,
    Condition,
    calibration,
    case_record,
    evaluations_of,
    image_key,
    mask_of,
    object_pixels,
    run_recipe,
    score,
    simulate_scan,
)
from scanprior.sim.metrics import nmse, psnr, ssim
from scanprior.sim.phantoms import brain

HEADS = [np.abs(image).astype(np.float32) for image in brain((48, 48), 3, seed=2).image]
HEAD = HEADS[1]
FULL = Condition("uniform-1d", 1.0, None, coils=1)
SENSE = load_recipe("sense")


def test_a_full_scan_of_one_coil_is_the_transform_of_the_image() -> None:
    scan = simulate_scan(HEAD, FULL)
    np.testing.assert_allclose(np.abs(scan.truth), HEAD, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(scan.kspace[0].numpy(), to_kspace(scan.truth, (0, 1)), atol=1e-5)
    assert scan.sigma == 0
    assert scan.mask.shape == (48, 1)
    phase = np.angle(scan.truth[object_pixels(scan.truth)])
    assert phase.std() > 0.1, "the image is complex"
    result = run_recipe(scan, load_recipe("zero-filled"))
    np.testing.assert_allclose(result.image.abs().numpy(), HEAD, atol=1e-5)


def test_a_complex_image_keeps_its_phase() -> None:
    image = (HEAD * np.exp(2j)).astype(np.complex64)
    scan = simulate_scan(image, FULL)
    np.testing.assert_array_equal(scan.truth, image)
    np.testing.assert_allclose(scan.kspace[0].numpy(), to_kspace(image, (0, 1)), atol=1e-5)
    assert image_key(image) != image_key(np.conj(image))


@pytest.mark.parametrize("coils", [1, 5])
def test_noise_is_as_strong_as_asked_for(coils: int) -> None:
    clean = simulate_scan(HEAD, replace(FULL, coils=coils))
    noisy = simulate_scan(HEAD, replace(FULL, coils=coils, snr_db=20.0))
    noise = (noisy.kspace - clean.kspace).numpy()
    assert np.sqrt(np.mean(np.abs(noise) ** 2)) == pytest.approx(noisy.sigma, rel=0.03)
    mean = np.abs(clean.truth)[object_pixels(clean.truth)].mean()
    assert 20 * np.log10(mean / noisy.sigma) == pytest.approx(20.0)
    flat = np.concatenate([noise.real.reshape(coils, -1), noise.imag.reshape(coils, -1)])
    assert np.abs(np.corrcoef(flat) - np.eye(2 * coils)).max() < 0.1, "white, and equal in all coils"


def test_maps_and_images_are_in_the_images_own_units() -> None:
    scan = simulate_scan(HEAD, replace(FULL, coils=6))
    maps = scan.maps(SENSE.maps)
    support = (maps != 0).any(0)
    np.testing.assert_allclose(maps.abs().square().sum(0)[support], 1, atol=1e-4)
    inside = object_pixels(scan.truth) & support.numpy()
    assert inside.sum() > 0.9 * object_pixels(scan.truth).sum()
    found = run_recipe(scan, SENSE).image.abs().numpy()
    np.testing.assert_allclose(found[inside], HEAD[inside], atol=0.03 * HEAD.max())


@pytest.mark.parametrize("mask", ["gaussian-1d", "gaussian-2d"])
def test_maps_come_from_the_noisy_acs_alone(mask: str) -> None:
    condition = Condition(mask, 2.0, 25.0, coils=4, acs=12)
    scan, other = simulate_scan(HEAD, condition), simulate_scan(HEAD, condition)
    acs = torch.from_numpy(other.sampling.acs)
    inside = acs[:, None].expand(48, 48) if acs.ndim == 1 else acs
    other.kspace[:, ~inside] = 0
    other.truth[:] = 1
    torch.testing.assert_close(scan.maps(SENSE.maps), other.maps(SENSE.maps), rtol=0, atol=0)
    other = simulate_scan(HEAD, condition)
    other.kspace[:, inside] *= 1 + 0.2 * torch.rand(int(inside.sum()), generator=torch.Generator().manual_seed(0))
    assert not torch.equal(scan.maps(SENSE.maps), other.maps(SENSE.maps))


def test_draws_belong_to_the_image_and_are_shared_by_its_conditions() -> None:
    one = simulate_scan(HEAD, Condition("gaussian-1d", 2.0, 25.0, coils=2), seed=4)
    again = simulate_scan(HEAD.copy(), Condition("gaussian-1d", 2.0, 25.0, coils=2), seed=4)
    torch.testing.assert_close(one.kspace, again.kspace, rtol=0, atol=0)
    louder = simulate_scan(HEAD, Condition("gaussian-1d", 2.0, 5.0, coils=2), seed=4)
    np.testing.assert_array_equal(one.sampling.mask, louder.sampling.mask)
    np.testing.assert_array_equal(one.truth, louder.truth)
    denser = simulate_scan(HEAD, Condition("gaussian-2d", 1.0, 25.0, coils=2, acs=8), seed=4)
    both = one.mask.expand(48, 48)
    torch.testing.assert_close(one.kspace[:, both], denser.kspace[:, both], rtol=0, atol=0)
    for other in (simulate_scan(HEAD, Condition("gaussian-1d", 2.0, 25.0, coils=2), seed=5),
                  simulate_scan(HEADS[0], Condition("gaussian-1d", 2.0, 25.0, coils=2), seed=4)):  # fmt: skip
        assert not np.array_equal(one.sampling.mask, other.sampling.mask)
    assert image_key(HEAD) == image_key(HEAD.copy()) != image_key(HEADS[0])
    np.testing.assert_array_equal(
        mask_of(Condition("gaussian-1d", 2.0, 1.0), HEAD, 4).mask, one.sampling.mask
    )  # the plan's look at a mask is the mask that is used


def test_bands_of_a_gaussian_error() -> None:
    rng = np.random.default_rng(0)
    truth = np.full((200, 220), 5.0)
    truth[:, :20] = 0  # not object: what happens there does not count
    std = rng.uniform(0.1, 0.4, truth.shape)
    image = truth + std * rng.standard_normal(truth.shape)
    image[:, :20] = 1e3
    found = calibration(image, std, truth)
    for percent in BANDS:
        assert found[f"cover{percent}"] == pytest.approx(percent / 100, abs=0.01)
    assert found["error_over_std"] == pytest.approx(1, abs=0.02)
    # E|e| given s is s sqrt(2 / pi): the correlation follows from the moments of s alone
    s2, s1 = np.mean(std**2), np.mean(std)
    wanted = np.sqrt(2 / np.pi) * np.std(std) / np.sqrt(s2 - 2 / np.pi * s1**2)
    assert found["error_std_corr"] == pytest.approx(wanted, abs=0.02)
    sure = calibration(image, std / 2, truth)
    assert sure["error_over_std"] == pytest.approx(2, abs=0.04)
    assert sure["cover95"] == pytest.approx(0.673, abs=0.01), "P(|n| < 0.98)"
    none = calibration(image, 0 * std, truth)
    assert none["error_over_std"] is None
    assert none["error_std_corr"] is None
    assert none["cover95"] == 0


def test_scores_are_those_of_the_metrics_and_of_magnitudes() -> None:
    scan = simulate_scan(HEAD, replace(FULL, snr_db=15.0))
    result = run_recipe(scan, load_recipe("zero-filled"))
    record = case_record(scan, load_recipe("zero-filled"), result)
    image = result.image.numpy()
    wanted = [measure(image, scan.truth) for measure in (psnr, ssim, nmse)]
    assert [record["psnr"], record["ssim"], record["nmse"]] == wanted
    assert wanted == pytest.approx([measure(image, HEAD) for measure in (psnr, ssim, nmse)], rel=1e-5)
    assert record["nfe"] is None
    assert record["cover50"] is None
    assert (record["effective_r"], record["acs"]) == (1.0, 15)
    assert score(image * np.exp(1j), None, scan.truth)["psnr"] == pytest.approx(record["psnr"], abs=1e-5)


def test_a_recipe_with_a_standard_deviation_is_calibrated() -> None:
    scan = simulate_scan(HEAD, Condition("gaussian-2d", 2.0, 20.0, coils=1))
    recipe = recipe_from(
        load_recipe("dds").model_dump() | {"settings": {"steps": 2, "samples": 3}, "device": "cpu"}, "dds"
    )
    from scanprior.models.prior import load_prior

    prior = load_prior("small")
    result = run_recipe(scan, recipe, prior)
    record = case_record(scan, recipe, result)
    assert (record["nfe"], record["samples"]) == (2, 3)
    assert result.std is not None
    known = calibration(result.image.abs().numpy(), result.std.numpy(), HEAD)
    assert {key: record[key] for key in known} == pytest.approx(known, rel=1e-5)
    assert record["seconds"] > 0


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(ValueError, match="not all zero"):
        simulate_scan(np.zeros((48, 48), np.float32), FULL)
    with pytest.raises(ValueError, match="'spiral' is not known"):
        simulate_scan(HEAD, replace(FULL, mask="spiral"))
    with pytest.raises(NoAcsError, match="fewer than the kernel"):
        run_recipe(simulate_scan(HEAD, Condition("uniform-1d", 4.0, None, coils=4, acs=4)), SENSE)
    compressed = Recipe.model_validate(SENSE.model_dump() | {"compression": {"coils": 2}})
    with pytest.raises(ValueError, match="compression is not done on simulated scans"):
        run_recipe(simulate_scan(HEAD, FULL), compressed)


def test_evaluations_are_told_in_words() -> None:
    assert evaluations_of({"nfe": 20, "samples": 8}) == "20 x 8"
    assert evaluations_of({"nfe": 20}) == "20 x 1"
    assert evaluations_of({"nfe": 20, "samples": 8, "evaluations": "20 + 10 x 8"}) == "20 + 10 x 8"
    assert evaluations_of({"iterations": 30}) is None
