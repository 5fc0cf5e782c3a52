"""Training without clean images end to end on drawn heads: what scans hold, what streams yield, resuming, rounds."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scanprior.models.channels import to_complex
from scanprior.models.diffusion_prior import DiffusionPrior
from scanprior.models.gsure import projected_matching
from scanprior.models.measured_scans import MeasuredScans
from scanprior.models.prior import load_prior, seen_clean_images
from scanprior.models.scan import Scan
from scanprior.models.weights_file import read_weights, write_weights
from scanprior.sim.image_stack import ImageStack, SourceError
from scanprior.sim.phantoms import brain
from scanprior.sim.scan_bank import (
    KEYS,
    batches,
    read_scan,
    scan_files,
    together,
    write_scan,
    write_simulated,
)
from scanprior.sim.scan_data import training_scans
from scanprior.sim.scan_images import noisy_images, write_images
from scanprior.sim.scan_stream import ScanStream, beside_first, scan_density
from scanprior.sim.unsupervised_settings import METHODS
from scanprior.sim.unsupervised_training import full_figures, train_unsupervised, undersampled_figures
from support import random_complex
from unsupervised_runs import SIZE, settings, simulated, write_heads


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_heads(tmp_path_factory.mktemp("data"))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_resumes_and_leaves_a_prior_and_a_card(data: Path, tmp_path: Path, method: str) -> None:
    chosen = settings(method)
    path = train_unsupervised([data], tmp_path, chosen)
    prior = load_prior(str(path))
    assert prior.denoise(torch.zeros(20, 24, dtype=torch.complex64), 0.1).shape == (20, 24)
    card = (tmp_path / "prior.md").read_text()
    assert "| clean images used | none" in card
    assert "| scans | 6, simulated" in card
    assert f"| undersampling R (effective) | {chosen.amount:g} |" in card
    assert read_weights(path, ["scanprior-prior-2"])[1]["training"]["clean_images"] == 0
    train_unsupervised([data], tmp_path, replace(chosen, steps=6))
    rows = list(csv.DictReader((tmp_path / "curve.csv").open()))
    assert [int(row["step"]) for row in rows] == [2, 4, 6]
    column = "rmse_by_sure" if method == "sure" else "held_lines"
    assert all(float(row[column]) > 0 for row in rows)
    assert (tmp_path / "samples.png").stat().st_size > 1000


def test_a_card_does_not_claim_for_the_prior_that_it_began_with(data: Path, tmp_path: Path) -> None:
    started = train_unsupervised([data], tmp_path / "start", settings("gsure", steps=2))
    tensors, facts = load_file(started), read_weights(started, ["scanprior-prior-2"])[1]
    told = {key: value for key, value in facts.items() if key != "training"}
    write_weights(tmp_path / "silent.safetensors", "scanprior-prior-2", tensors, told)
    write_weights(
        tmp_path / "clean.safetensors", "scanprior-prior-2", tensors, told | {"training": {"clean_images": 600}}
    )
    for name, expected in (("start/prior", 0), ("silent", None), ("clean", None)):
        out = tmp_path / f"from-{name.split('/')[0]}"
        begun = settings("gsure", steps=2, begin_with=str(tmp_path / f"{name}.safetensors"))
        path = train_unsupervised([data], out, begun)
        assert read_weights(path, ["scanprior-prior-2"])[1]["training"]["clean_images"] == expected
        assert ("does not say" in (out / "prior.md").read_text()) == (expected is None)
    assert seen_clean_images("small") is not False


def test_scans_that_were_cut_while_written_are_written_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def cut(path: Path, scan: Scan) -> None:
        calls.append(path)
        if len(calls) == 15:  # the validation's 12 are written, and two more
            raise RuntimeError("the machine is gone")
        write_scan(path, scan)

    chosen = settings("gsure", steps=2)
    with monkeypatch.context() as patch:
        patch.setattr("scanprior.sim.scan_bank.write_scan", cut)
        with pytest.raises(RuntimeError, match="the machine is gone"):
            train_unsupervised([data], tmp_path, chosen)
    train_unsupervised([data], tmp_path, chosen)
    assert len(scan_files(training_scans(tmp_path, chosen))) == 6


@pytest.mark.parametrize("changed", [{"amount": 3.0}, {"noise": (0.2, 0.2)}, {"method": "split"}])
def test_a_folder_is_for_one_run(data: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
    chosen = settings("gsure", steps=2)
    train_unsupervised([data], tmp_path, chosen)
    with pytest.raises(FileExistsError, match=f"holds a run with {next(iter(changed))}"):
        train_unsupervised([data], tmp_path, replace(chosen, **changed))


def test_slices_of_mere_air_are_passed_over(tmp_path: Path) -> None:
    heads = np.abs(brain((48, 48), 2, seed=1).image)
    stack = ImageStack("heads", [*heads, *(0 * heads)], ["a"] * 4)
    write_simulated(tmp_path / "scans", [stack], 6, 0, settings("gsure"))
    assert len(scan_files(tmp_path / "scans")) == 6


def test_a_run_keeps_scans_and_no_clean_image(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in its folder is what was measured, and with the images gone it still trains, on that alone."""
    heads = tmp_path / "heads.npz"
    heads.write_bytes((data / "heads.npz").read_bytes())
    run = tmp_path / "run"
    chosen = settings("split", steps=2)
    train_unsupervised([heads], run, chosen)
    kinds = {path.suffix or "folder" for path in run.iterdir()}
    assert not list(run.glob("*.npy"))
    assert {".ckpt", ".csv", ".json", ".md", ".png", ".safetensors", ".txt", "folder"} == kinds
    for path in scan_files(training_scans(run, chosen)):
        assert set(load_file(path)) == set(KEYS)
    folder = training_scans(run, chosen)
    batch = next(iter(ScanStream(folder, scan_density(folder), beside_first(folder, scan_density(folder)), 0)))
    assert set(batch) == {"kspace", "mask", "maps", "sigma", "first", "level", "weights"}

    def no_images(*_: object) -> None:
        raise AssertionError("the images were read again")

    monkeypatch.setattr("scanprior.sim.bank_data.load_sources", no_images)
    train_unsupervised([heads], run, replace(chosen, steps=4))


def test_scans_are_scans_in_the_priors_scale(data: Path, tmp_path: Path) -> None:
    simulated(data, tmp_path, coils=(2, 3), bank=8)
    each = [read_scan(path) for path in scan_files(tmp_path / "scans")]
    scans = MeasuredScans(**together(each))
    assert set(scans.coils().tolist()) == {2, 3}
    assert scans.kspace.shape == (8, 3, SIZE, SIZE)
    assert (scans.mask.float().mean((-2, -1)) == 0.5).all()
    assert not (scans.kspace * ~scans.mask[:, None]).any()
    rough = scans.model().solve(scans.model().H(scans.kspace), 0.01, iterations=15)
    bright = torch.quantile(rough.abs().flatten(1), 0.995, dim=1)
    torch.testing.assert_close(bright, torch.ones(8), rtol=0.05, atol=0)
    # 0.05 of the maximum, which is a little above the percentile
    assert bool(((scans.sigma > 0.03) & (scans.sigma < 0.09)).all())


def test_noise_of_full_scans_is_as_told(data: Path, tmp_path: Path) -> None:
    """In the outermost corner of k-space there is nothing but noise; in air, where maps are zero, it is put there."""
    simulated(data, tmp_path, method="sure", bank=12, noise=(0.2, 0.2))
    path = tmp_path / "images.npy"
    write_images(tmp_path / "scans", path, noisy_images(0), "noisy images")
    images = torch.from_numpy(np.load(path))
    scans = MeasuredScans(**together([read_scan(file) for file in scan_files(tmp_path / "scans")]))
    air = (scans.maps == 0).all(1)
    assert 0.05 < float(air.float().mean()) < 0.9
    level = scans.sigma[:, None, None].expand(-1, SIZE, SIZE)
    for channel in (0, 1):
        assert float((images[:, channel] / level)[air].std()) == pytest.approx(1, abs=0.05)
    spectrum = torch.fft.fft2(to_complex(images), norm="ortho")[:, 12:20, 12:20] / scans.sigma[:, None, None]
    assert float(torch.view_as_real(spectrum).std()) == pytest.approx(1, abs=0.06)
    undersampled = replace(scans, mask=torch.zeros_like(scans.mask))
    with pytest.raises(SourceError, match="fully sampled"):
        noisy_images(0)(undersampled)


def test_figures_need_no_clean_image_and_tell_a_good_prior_from_none(data: Path, tmp_path: Path) -> None:
    """The released prior against one that does nothing (random weights: D = c_skip x)."""
    # with more noise the maps' own errors are larger than what a prior can do about
    chosen = simulated(data, tmp_path, coils=(4, 4), noise=(0.01, 0.01))
    good, none = load_prior("small").denoiser, chosen.denoiser()
    scans = MeasuredScans(**together([read_scan(path) for path in scan_files(tmp_path / "scans")]))
    held = [undersampled_figures(one, scans, chosen)[0]["held_lines"] for one in (good, none)]  # type: ignore[arg-type]
    assert 0 < held[0] < 0.6 * held[1]
    chosen = simulated(data, tmp_path / "full", method="sure")
    scans = MeasuredScans(**together([read_scan(path) for path in scan_files(tmp_path / "full" / "scans")]))
    errors = [full_figures(one, scans)[0]["rmse_by_sure"] for one in (good, none)]  # type: ignore[arg-type]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize(
    ("method", "options", "complaint"),
    [
        ("n2n", {}, "method 'n2n' is not known; there are: sure, gsure, split, em"),
        ("em", {"kind": "ve", "network": "ncsnv2"}, "expected loss 'edm'"),
        ("em", {"noise": (0.0, 0.0)}, "expected noise above 0"),
        ("sure", {"amount": 2.0}, "for fully sampled scans: expected --r 1, found 2"),
        ("sure", {"patch": 48}, "patch 48 is larger than the images' 32"),
        ("split", {"held": 1.0}, "held: expected a share between 0 and 1"),
        ("em", {"rounds": 5}, "rounds: expected 1 to 4"),
        ("em", {"amount": 50.0}, "ACS lines"),
        ("split", {"sigma_max": 0.5}, "expected noise levels from 0.0125 or less to 1 or more, found 0.002 to 0.5"),
    ],
)
def test_what_does_not_fit_is_refused(method: str, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        settings(method, **options)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"maps": None}, "no coil maps"),
        ({"sigma": 0.0}, "expected a noise level above 0"),
        ({"kspace": torch.zeros(2, 8, 8, dtype=torch.complex64)}, "holds no signal"),
    ],
)
def test_a_scan_that_cannot_be_used_is_refused(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    maps = random_complex(2, 8, 8)
    scan = Scan(random_complex(2, 8, 8, seed=1), torch.ones(8, 1, dtype=torch.bool), maps, 0.1)
    with pytest.raises(SourceError, match=complaint):
        write_scan(tmp_path / "scan.safetensors", replace(scan, **changes))
    with pytest.raises(SourceError, match="expected scans"):
        scan_files(tmp_path)


def test_a_call_that_fails_leaves_its_folder_free(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="--acs 2"):
        train_unsupervised([data], tmp_path, settings("em", acs=2))
    train_unsupervised([data], tmp_path, settings("em", steps=2))


def test_rounds_draw_anew_and_train_on_what_was_drawn(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, dict[str, torch.Tensor]]] = []
    trained_on: list[float] = []

    def drawing(folder: Path, path: Path, prior: DiffusionPrior, seed: int, what: str) -> None:
        seen.append((what, {name: weight.clone() for name, weight in prior.denoiser.state_dict().items()}))
        assert not prior.denoiser.training
        write_images(folder, path, lambda scans: torch.full((len(scans), SIZE, SIZE), len(seen) + 0j), what)

    def matching(denoiser: Any, scans: Any, weights: Any, images: torch.Tensor, *rest: Any) -> torch.Tensor:
        trained_on.append(float(to_complex(images).abs().mean()))
        return projected_matching(denoiser, scans, weights, images, *rest)

    monkeypatch.setattr("scanprior.sim.unsupervised_module.write_posterior_images", drawing)
    monkeypatch.setattr("scanprior.sim.unsupervised_module.projected_matching", matching)
    chosen = settings("em", steps=24, rounds=3, save_every=24)
    train_unsupervised([data], tmp_path, chosen)
    assert [what for what, _ in seen] == ["posterior images, step 8", "posterior images, step 16"]
    # a batch or two of before are under way
    assert trained_on[11:16] == pytest.approx([1] * 5)
    assert trained_on[19:] == pytest.approx([2] * 5)
    first, second = (weights["network.leave.weight"] for _, weights in seen)
    assert not torch.equal(first, second)
    train_unsupervised([data], tmp_path, replace(chosen, steps=26))  # rounds of 9 steps now: the next would be at 27
    assert len(seen) == 2


def test_two_draws_tell_the_error_of_the_mean_and_their_own_spread(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draws of a known mean and spread about the true images, single coil: both figures are those, and no noise's."""
    chosen = simulated(data, tmp_path, coils=(1, 1), bank=200, noise=(0.1, 0.1))
    (scans,) = batches(tmp_path / "scans", 200)
    truth = random_complex(200, SIZE, SIZE, seed=3)
    model = scans.model()
    noise = torch.view_as_complex(torch.randn(*scans.kspace.shape, 2, generator=torch.Generator().manual_seed(4)))
    kspace = model(truth) + scans.sigma[:, None, None, None] * noise * model.mask[:, None]
    calls: list[int] = []

    def draws(*_: object) -> torch.Tensor:
        calls.append(1)
        return 0.8 * truth + 0.3 * random_complex(*truth.shape, seed=10 + len(calls))

    monkeypatch.setattr("scanprior.sim.unsupervised_training.draw_images", draws)
    found, _ = undersampled_figures(chosen.denoiser(), replace(scans, kspace=kspace), chosen)  # type: ignore[arg-type]
    assert found["held_lines"] == pytest.approx(0.2**2, abs=0.003)
    assert found["held_spread"] == pytest.approx(0.3**2, abs=0.003)
