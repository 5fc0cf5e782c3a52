"""What every sampler of the registry must do, whatever it claims of the posterior: one test for all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gaussian import GaussianPrior, gaussian_scan
from scanprior.models.forward import SenseModel
from scanprior.models.methods import METHODS, reconstruct
from scanprior.models.posterior import SamplerSettings
from scanprior.models.scan import Reconstruction, Scan
from support import random_complex

# settings that are quick on a small scan, and the evaluations of a sample that they take
SAMPLERS: dict[str, tuple[dict[str, Any], int]] = {
    "daps": ({"steps": 7, "ode_steps": 3}, 21),
    "dds": ({"steps": 7}, 7),
    "dps": ({"steps": 30}, 30),
    "langevin": ({"levels": 60, "steps_per_level": 2, "step": 0.9}, 121),
    "pc": ({"steps": 30, "sigma_start": 3.0, "sigma_end": 0.01}, 59),
    "pigdm": ({"steps": 7}, 7),
    "pula": ({"levels": 8, "level_steps": 3}, 25),
}


def run(name: str, scan: Scan, prior: GaussianPrior | None = None, **changes: Any) -> Reconstruction:
    settings = METHODS[name].settings.model_validate(SAMPLERS[name][0] | {"samples": 2} | changes)
    return reconstruct(name, scan, prior or GaussianPrior(), settings)


def measured(maps: torch.Tensor, image: torch.Tensor, *, sets: bool = False) -> Scan:
    """A fully sampled scan with very little noise: there is one image to be found."""
    mask = torch.ones(16, 1, dtype=torch.bool)
    kspace = SenseModel(maps, mask, sets=sets)(image)
    return Scan(kspace + 0.002 * random_complex(*kspace.shape, seed=9), mask, maps, 0.002)


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative error of the worst slice."""
    norms = [torch.linalg.vector_norm(x, dim=(-2, -1)) for x in (found - wanted, wanted)]
    return float((norms[0] / norms[1]).max())


def test_no_sampler_is_forgotten() -> None:
    assert set(SAMPLERS) == {name for name, method in METHODS.items() if issubclass(method.settings, SamplerSettings)}


@pytest.mark.parametrize("name", SAMPLERS)
def test_seed_decides_and_evaluations_are_counted(name: str) -> None:
    scan, _ = gaussian_scan()
    prior = GaussianPrior()
    first = run(name, scan, prior)
    assert prior.calls == first.info["nfe"] == SAMPLERS[name][1]
    assert first.info["method"] == name
    assert torch.equal(first.image, run(name, scan).image)
    assert not torch.equal(first.image, run(name, scan, seed=1).image)


@pytest.mark.parametrize("name", SAMPLERS)
def test_slices_of_a_batch_are_not_mixed(name: str) -> None:
    scan, image = gaussian_scan()
    assert scan.maps is not None
    other = random_complex(16, 18, seed=7) * 0.4
    images = torch.stack([image, other, image.flip(-1)])
    found = run(name, measured(scan.maps.expand(3, -1, -1, -1), images))
    assert error(found.image, images) < 0.1
    assert found.std is not None
    assert found.std.shape == images.shape


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_set_of_maps_gives_its_part_of_the_image(name: str) -> None:
    """Two sets that see a half of the field of view each: together they make the whole image."""
    scan, image = gaussian_scan()
    assert scan.maps is not None
    left = (torch.arange(18) < 9).to(torch.complex64)
    sets = torch.stack([scan.maps * left, scan.maps * (1 - left)])
    found = run(name, measured(sets, torch.stack([image * left, image * (1 - left)]), sets=True))
    assert error(found.image, image) < 0.1


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_scan_of_another_gain_is_the_same_image(name: str) -> None:
    scan, _ = gaussian_scan()
    quieter = Scan(scan.kspace * 1e-5, scan.mask, scan.maps, scan.sigma * 1e-5)
    a, b = run(name, scan).image, run(name, quieter).image * 1e5
    assert error(b, a) < 1e-2


def test_a_sampler_can_begin_with_the_image_of_plug_and_play() -> None:
    """CCDF (paper 5, algorithm 6): its evaluations are counted once, and so little noise leaves it where it is."""
    scan, _ = gaussian_scan()
    prior = GaussianPrior()
    prior.sigma_min = 1e-6
    image = reconstruct(
        "pnp-admm", scan, prior, METHODS["pnp-admm"].settings.model_validate({"samples": 0, "final_sigma": None})
    )
    found = run("dds", scan, prior, start="pnp-admm", steps=2, sigma_start=1e-4, sigma_end=1e-5, max_ratio=1e-4)
    assert found.info["nfe"] == image.info["nfe"] + 2
    assert found.info["evaluations"] == f"{image.info['nfe']} + 2 x 2"
    assert error(found.image, image.image) < 1e-2
    sense = run("dds", scan, prior, start="sense", steps=2, sigma_start=1e-4, sigma_end=1e-5, max_ratio=1e-4)
    assert error(sense.image, image.image) > 5e-2


def test_an_image_to_begin_with_that_cannot_be_made_is_told() -> None:
    scan, _ = gaussian_scan()
    prior = GaussianPrior()
    prior.sigma_max = 0.3
    with pytest.raises(ValueError, match=r"start 'pnp-admm': .* trained from 0.3 to .*; use start: sense"):
        run("dds", scan, prior, start="pnp-admm", sigma_start=0.1)


def test_a_warm_up_makes_no_image_to_begin_with() -> None:
    brief = METHODS["dds"].settings.model_validate({"start": "pnp-admm", "steps": 50}).brief()
    assert brief.model_dump() == METHODS["dds"].settings.model_validate({"start": "sense", "steps": 2}).model_dump()
