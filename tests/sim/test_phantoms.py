"""The phantom, its coils and its masks."""

from __future__ import annotations

import numpy as np
import pytest
from scanprior.sim import masks
from scanprior.sim.coils import coil_maps
from scanprior.sim.phantoms import CONTRASTS, brain, signal


def test_one_seed_is_one_head_at_any_size() -> None:
    """Block means of a fine image match the coarse one; another head does not."""
    coarse = np.abs(brain(64, seed=5).image[0]).astype(float)
    fine = np.abs(brain(256, seed=5).image[0]).astype(float)
    other = np.abs(brain(64, seed=6).image[0]).astype(float)
    blocks = fine.reshape(64, 4, 64, 4).mean((1, 3))

    def alike(a: np.ndarray) -> float:
        return float(np.corrcoef(a.ravel(), blocks.ravel())[0, 1])

    assert alike(coarse) > 0.95
    assert alike(other) < 0.85


def test_slices_differ_and_neighbours_are_close() -> None:
    image = np.abs(brain(64, 8, seed=1).image).reshape(8, -1)
    alike = np.corrcoef(image)
    assert alike[3, 4] > alike[0, 7]
    assert alike[3, 4] < 0.999


def test_contrasts_order_the_tissues_as_in_vivo() -> None:
    assert signal("white", "t1") > signal("grey", "t1") > signal("csf", "t1")
    assert signal("csf", "t2") > signal("grey", "t2") > signal("white", "t2")
    assert signal("csf", "flair") < 0.2 * signal("white", "flair")


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_image_is_complex_smooth_in_phase_and_empty_outside(contrast: str) -> None:
    phantom = brain((96, 80), 2, contrast=contrast, seed=2)
    image, head = phantom.image, phantom.head
    assert image.shape == head.shape == (2, 96, 80)
    assert image.dtype == np.complex64
    assert np.abs(image).max() == pytest.approx(1.0, abs=1e-5)
    assert 0.2 < head.mean() < 0.7
    assert np.abs(image[~head]).mean() < 0.02
    inside = head[:, 1:] & head[:, :-1]
    steps = np.angle(image[:, 1:] * image[:, :-1].conj())[inside]
    assert np.abs(steps).max() < 0.35
    assert np.angle(image[head]).std() > 0.2


@pytest.mark.parametrize("coils", [1, 2, 8, 20])
def test_maps_have_unit_norm_are_smooth_and_differ(coils: int) -> None:
    maps = coil_maps((64, 48), coils, np.array([0.0, 0.3]), seed=1)
    assert maps.shape == (2, coils, 64, 48)
    assert maps.dtype == np.complex64
    np.testing.assert_allclose(np.sum(np.abs(maps) ** 2, axis=1), 1.0, atol=1e-5)
    assert np.abs(np.diff(maps, axis=-1)).max() < 0.2
    if coils == 8:
        flat = maps[0].reshape(8, -1)
        overlap = np.abs(flat.conj() @ flat.T)
        norms = np.sqrt(np.diag(overlap))
        assert (overlap / np.outer(norms, norms))[np.triu_indices(8, 1)].max() < 0.95


@pytest.mark.parametrize(("lines", "r", "acs"), [(256, 4.0, 24), (255, 3.3, 21), (320, 8.0, 16), (64, 1.0, 0)])
def test_random_mask_has_exactly_its_lines(lines: int, r: float, acs: int) -> None:
    sampling = masks.random(lines, r, acs, np.random.default_rng(0))
    assert sampling.mask.sum() == round(lines / r)
    assert sampling.effective_r == lines / round(lines / r)
    assert sampling.mask[masks.acs_lines(lines, acs)].all()


def test_random_mask_is_denser_towards_the_centre() -> None:
    rng = np.random.default_rng(0)
    counts = np.sum([masks.random(128, 4, 8, rng).mask for _ in range(200)], axis=0)
    assert counts[40:56].mean() > 2 * counts[:16].mean() > 0
    assert counts[:4].min() > 0
    assert counts[-4:].min() > 0


@pytest.mark.parametrize("lines", [48, 49, 180])
def test_uniform_mask_contains_dc_and_effective_r_counts_acs(lines: int) -> None:
    sampling = masks.uniform(lines, 3, 12)
    assert sampling.imaging[lines // 2]
    assert set(np.diff(np.flatnonzero(sampling.imaging))) == {3}
    assert sampling.effective_r == lines / (sampling.imaging | sampling.acs).sum()
    assert sampling.effective_r < 3


def test_partial_fourier_leaves_out_the_first_lines() -> None:
    for sampling in (
        masks.full(64, 0.75),
        masks.uniform(64, 2, 8, 0.75),
        masks.random(64, 4, 8, np.random.default_rng(0), 0.75),
    ):
        assert not sampling.mask[:16].any()
        assert sampling.mask[16:].any()
    plane = masks.random_2d((16, 64), 4, 6, np.random.default_rng(0), 0.75)
    assert plane.mask.sum() == 256
    assert not plane.mask[:, :16].any()
