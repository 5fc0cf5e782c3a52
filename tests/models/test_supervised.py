"""Supervised priors: their file, and what the methods `varnet` and `unet` make of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scanprior.models.end_to_end import SupervisedSettings
from scanprior.models.forward import SenseModel
from scanprior.models.linear import SenseSettings, sense
from scanprior.models.methods import METHODS, reconstruct
from scanprior.models.networks import build_from
from scanprior.models.prior import PriorError, load_any_prior, load_prior
from scanprior.models.scan import Reconstruction, Scan
from scanprior.models.supervised import (
    FORMAT,
    NETWORKS,
    SupervisedPrior,
    TrainedFor,
    save_supervised,
)
from scanprior.models.weights_file import write_weights
from support import random_complex
from torch import nn

SMALL: dict[str, dict[str, Any]] = {
    "varnet": {"stages": 2, "filters": 3, "kernel": 5},
    "unet": {"widths": [4, 8], "blocks": [1, 1]},
}
TRAINED = TrainedFor(
    mask="gaussian-1d", dimensions=1, effective_r=(2.0, 2.1), noise=(0.04, 0.06), coils=(1, 8), size=128
)


def network(kind: str) -> nn.Module:
    """None of its weights zero: layers that start at zero would hide mistakes."""
    torch.manual_seed(0)
    made = build_from(NETWORKS, kind, SMALL[kind])
    for parameter in made.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    return made


def prior(kind: str, folder: Path) -> SupervisedPrior:
    path = folder / f"{kind}.safetensors"
    save_supervised(path, network(kind), SMALL[kind], TRAINED, step=7)
    found = load_any_prior(str(path))
    assert isinstance(found, SupervisedPrior)
    return found


def scan(coils: int = 3, shape: tuple[int, ...] = (20, 24), sigma: float = 0.0, lines: bool = True) -> Scan:
    maps = random_complex(coils, *shape[-2:], seed=1)
    maps = maps / maps.abs().square().sum(0).sqrt()
    mask = torch.rand((shape[-2], 1 if lines else shape[-1]), generator=torch.Generator().manual_seed(3)) < 0.5
    kspace = SenseModel(maps, mask)(random_complex(*shape, seed=2))
    return Scan(kspace, mask, maps, sigma)


def run(kind: str, of: Scan, by: SupervisedPrior) -> Reconstruction:
    return reconstruct(kind, of, by, SupervisedSettings())


@pytest.mark.parametrize("kind", NETWORKS)
def test_file_round_trip(kind: str, tmp_path: Path) -> None:
    by = prior(kind, tmp_path)
    assert (by.kind, by.name, by.family, by.scale, by.trained_for) == (kind, kind, "supervised", (99.5, 1.0), TRAINED)
    before = network(kind).state_dict()
    assert before.keys() == by.weights().keys()
    assert all(torch.equal(before[key], value) for key, value in by.weights().items())
    assert not any(weight.requires_grad for weight in by.network.parameters())
    by.warm_up((16, 18))
    assert kind in by.facts()


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(("coils", "shape"), [(1, (20, 24)), (3, (17, 31)), (4, (2, 20, 16))])
def test_the_image_is_the_networks_in_its_scale(kind: str, coils: int, shape: tuple[int, ...], tmp_path: Path) -> None:
    by, of = prior(kind, tmp_path), scan(coils, shape)
    found = run(kind, of, by)
    assert found.std is None
    assert found.image.shape == shape
    scale = found.info["scale"]
    model = SenseModel.of(of)
    adjoint = model.H(of.kspace)
    begin = adjoint if kind == "varnet" else model.solve(adjoint, 0.01, iterations=15, tolerance=1e-3)
    with torch.no_grad():
        wanted = scale * by.network(begin / scale, adjoint / scale, model.normal)
    torch.testing.assert_close(found.image, wanted, rtol=1e-4, atol=1e-5)
    # another gain of the receiver gives the same image
    louder = run(kind, replace(of, kspace=1e4 * of.kspace), by)
    torch.testing.assert_close(louder.image / 1e4, found.image, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", NETWORKS)
def test_sets_of_maps_and_pixels_without(kind: str, tmp_path: Path) -> None:
    """Two sets that see a half of the field of view each; the last column is seen by none."""
    one = scan(sigma=0.01)
    assert one.maps is not None
    left = (torch.arange(24) < 9).to(torch.complex64)
    right = ((torch.arange(24) >= 9) & (torch.arange(24) < 23)).to(torch.complex64)
    sets = replace(one, maps=torch.stack([one.maps * left, one.maps * right]))
    found = run(kind, sets, prior(kind, tmp_path)).image
    assert found.shape == (20, 24)
    assert float(found[:, -1].abs().max()) == 0
    assert float(found[:, :23].abs().min()) > 0


def test_a_unet_that_does_nothing_gives_cg_sense(tmp_path: Path) -> None:
    by, of = prior("unet", tmp_path), scan(8)
    nn.init.zeros_(by.network.unet.leave.weight)  # type: ignore[union-attr, arg-type]
    nn.init.zeros_(by.network.unet.leave.bias)  # type: ignore[union-attr, arg-type]
    wanted = sense(of, None, SenseSettings(lam=0.0, iterations=15)).image
    found = run("unet", of, by).image
    assert float((found - wanted).norm() / wanted.norm()) < 0.1


def test_the_phase_is_taken_out_of_what_magnitudes_were_trained_for(tmp_path: Path) -> None:
    """A scan whose image is turned by a constant phase gives the turned image, which no network does by itself."""
    by, of = prior("varnet", tmp_path), scan()
    real = replace(by, trained_for=TRAINED.model_copy(update={"magnitude": True}))
    turn = torch.exp(torch.tensor(0.9j))
    turned = replace(of, kspace=of.kspace * turn)
    torch.testing.assert_close(
        run("varnet", turned, real).image, run("varnet", of, real).image * turn, rtol=0, atol=1e-4
    )
    assert float((run("varnet", turned, by).image - run("varnet", of, by).image * turn).abs().max()) > 1e-3


def test_the_history_says_what_it_was_trained_on_and_what_is_otherwise(tmp_path: Path) -> None:
    by, of = prior("varnet", tmp_path), scan(coils=2)
    info = run("varnet", of, by).info
    assert info["trained_for"] == (
        "gaussian-1d, R 2 to 2.1, noise 0.04 to 0.06, 1 to 8 coils, complex images of 128 x 128"
    )
    # noise of a real channel is sigma / sqrt(2); the scan's R is 20 over its lines
    fits = replace(of, sigma=0.05 * 2**0.5 * info["scale"])
    alike = TRAINED.model_copy(update={"effective_r": (of.effective_r, of.effective_r)})
    assert "warning" not in run("varnet", fits, replace(by, trained_for=alike)).info
    noisier = replace(of, sigma=4 * fits.sigma)
    text = run("varnet", noisier, replace(by, trained_for=alike)).info["warning"]
    assert text == "not what the prior was trained on: noise 0.2 (trained on 0.04 to 0.06)"
    points = replace(scan(2, lines=False), sigma=fits.sigma)
    far = TRAINED.model_copy(update={"effective_r": (6.0, 6.0)})
    text = run("varnet", points, replace(by, trained_for=far)).info["warning"]
    assert "mask of points (trained on lines), R 1.9" in text or "mask of points (trained on lines), R 2.0" in text
    assert "(trained on 6)" in text


def test_the_other_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"method 'unet': expected a prior of kind 'unet', and prior 'varnet' is of"):
        run("unet", scan(), prior("varnet", tmp_path))
    with pytest.raises(PriorError, match="is of the family 'supervised', expected a diffusion prior"):
        load_prior(str(tmp_path / "varnet.safetensors"))
    assert METHODS["varnet"].prior == METHODS["unet"].prior == "supervised"


def test_scans_that_cannot_be_done(tmp_path: Path) -> None:
    by, of = prior("varnet", tmp_path), scan()
    with pytest.raises(ValueError, match="no signal"):
        run("varnet", replace(of, kspace=torch.zeros_like(of.kspace)), by)
    with pytest.raises(ValueError, match="needs coil maps"):
        run("varnet", replace(of, maps=None), by)
    nn.init.constant_(by.network.stages[0].log_weight, 200.0)  # type: ignore[union-attr, index, arg-type]
    with pytest.raises(ValueError, match="varnet: the image is not finite"):
        run("varnet", of, by)


GOOD: dict[str, Any] = {
    "kind": "varnet", "network": SMALL["varnet"], "scale": [99.5, 1.0], "trained_for": TRAINED.model_dump(),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"kind": "vit"}, r"kind: 'vit' is not known; there are: varnet, unet"),
        ({"network": {"layers": 3}}, "network 'varnet' has no argument 'layers'; there are: stages, filters"),
        ({"network": {"kernel": 4}}, "kernel: expected an odd number from 3 on, found 4"),
        ({"network": {"stages": 3}}, "weights do not fit the network it describes"),
        ({"scale": [0, 1]}, r"scale: expected \[percentile up to 100, value above 0\], found \[0.0, 1.0\]"),
        ({"trained_for": {"mask": "radial"}}, "trained_for.dimensions: Field required"),
        (
            {"trained_for": GOOD["trained_for"] | {"noise": (0.2, 0.1)}},
            r"noise: expected \[least, greatest\].*0.2, 0.1",
        ),
        ({"trained_for": GOOD["trained_for"] | {"effective_r": (0.5, 2)}}, "expected R and coils from 1 on, found 0.5"),
        ({"trained_for": GOOD["trained_for"] | {"dimensions": 3}}, "trained_for.dimensions: .*found 3"),
    ],
)
def test_wrong_files_are_refused(change: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.safetensors"
    write_weights(path, FORMAT, network("varnet").state_dict(), GOOD | change)
    with pytest.raises(PriorError, match=complaint) as refusal:
        load_any_prior(str(path))
    assert str(path) in str(refusal.value)
