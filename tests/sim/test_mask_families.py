"""Mask families: the count is exact, the ACS is there, the density and the distances are those promised."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from scanprior.sim.caipi import caipi_lattice
from scanprior.sim.mask_families import (
    FAMILIES,
    GAUSSIAN_WIDTH,
    _throw_darts,
    acs_size,
    default_acs,
    make_mask,
    poisson_growth,
)
from scipy.spatial import cKDTree

SHAPES = ((48, 48), (61, 40))
LEAST_R = {"partial-fourier-1d": 1.3, "partial-fourier-2d": 1.3, "poisson-ellipse-2d": 1.2}
"""Where k-space is cut there are not enough places below this R."""
BY_R = [name for name, family in FAMILIES.items() if family.amount == "R"]


@pytest.mark.parametrize("family", BY_R)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("r", [1.0, 2.0, 3.7, 4.0])
def test_the_count_is_exact_and_counts_the_acs(family: str, shape: tuple[int, int], r: float) -> None:
    if r < LEAST_R.get(family, 1):
        with pytest.raises(ValueError, match=r"expected 1\.\d+ to .*, got 1"):
            make_mask(family, shape, r, 8, 3)
        return
    sampling = make_mask(family, shape, r, 8, 3)
    mask = sampling.mask
    assert mask.shape == shape[: FAMILIES[family].dimensions]
    assert mask.sum() == round(mask.size / r)
    assert sampling.effective_r == pytest.approx(mask.size / round(mask.size / r))
    centre = tuple(slice(n // 2 - 4, n // 2 + 4) for n in mask.shape)
    assert mask[centre].all()
    expected = np.zeros_like(mask)
    expected[centre] = True
    np.testing.assert_array_equal(sampling.acs, expected)
    assert acs_size(sampling) == 8


@pytest.mark.parametrize("family", BY_R)
@pytest.mark.parametrize("r", [2.0, 4.0, 8.0, 12.0, 16.0])
def test_every_r_of_a_usual_matrix_with_the_default_acs(family: str, r: float) -> None:
    for shape in ((192, 192), (320, 320)):
        sampling = make_mask(family, shape, r, None, 0)
        assert sampling.mask.sum() == round(sampling.mask.size / r)
        assert 8 <= acs_size(sampling) <= 24
        assert sampling.acs.sum() <= 0.76 * sampling.mask.sum()
        assert acs_size(sampling) == default_acs(family, shape, r)


@pytest.mark.parametrize("family", BY_R)
def test_the_default_acs_is_what_the_help_says(family: str) -> None:
    for size in (16, 32, 48, 96, 320, 512):
        for r in (1.5, 2.0, 4.0, 8.0):
            acs = default_acs(family, (size, size), r)
            dimensions = FAMILIES[family].dimensions
            samples = size**dimensions / r
            third, most = (0.32 * samples) ** (1 / dimensions), (0.75 * samples) ** (1 / dimensions)
            assert 8 <= acs <= max(8, most)
            if most >= 12:
                assert acs == np.clip(round(third), 12, min(24, int(most)))


@pytest.mark.parametrize("family", BY_R)
def test_one_seed_is_one_mask(family: str) -> None:
    draws = [make_mask(family, (48, 40), 3.0, 6, [7, seed]).mask for seed in (1, 1, *range(2, 10))]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert len({draw.tobytes() for draw in draws}) > 2


def test_uniform_lines_are_evenly_spread() -> None:
    for seed in range(20):
        sampling = make_mask("uniform-1d", (100, 16), 4.3, 9, seed)
        outside = sampling.mask[~sampling.acs]  # the places that the ACS leaves, one after another
        gaps = np.diff(np.flatnonzero(outside))
        assert gaps.max() - gaps.min() <= 1
        around = np.flatnonzero(outside)
        assert abs(around[0] + len(outside) - around[-1] - gaps.mean()) <= 1.5, "evenly from the edge to the edge too"


@pytest.mark.parametrize("family", ["gaussian-1d", "gaussian-2d"])
def test_gaussian_density(family: str) -> None:
    # so few points of so many that drawing without repetition hardly changes the density
    shape, r = ((400, 1), 400 / 5) if family == "gaussian-1d" else ((200, 120), 24000 / 30)
    places = []
    for seed in range(400):
        sampling = make_mask(family, shape, r, 1, seed)
        places.append(np.argwhere(sampling.mask & ~sampling.acs))
    found = np.concatenate(places)
    for axis in range(found.shape[1]):
        offsets = (found[:, axis] - shape[axis] // 2) / shape[axis]
        assert offsets.std() == pytest.approx(GAUSSIAN_WIDTH, rel=0.06)
        assert abs(offsets.mean()) < 0.012
        assert (offsets**4).mean() / (offsets**2).mean() ** 2 == pytest.approx(3, abs=0.35), "a Gaussian's kurtosis"


def test_darts_keep_their_distance_and_leave_no_hole() -> None:
    shape = (30, 37)
    radius = 1.2 * poisson_growth(shape)
    order = np.random.default_rng(0).permutation(shape[0] * shape[1])
    stuck = _throw_darts(shape, order, radius, order.size)
    points, reach = np.stack(np.divmod(np.array(stuck), shape[1]), -1), radius.ravel()[stuck]
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    earlier = np.tril(np.ones_like(distance, bool), -1)  # [later, earlier]
    assert (distance >= reach[None, :])[earlier].all(), "no dart within the radius of an earlier one"
    every = np.stack(np.divmod(np.arange(order.size), shape[1]), -1)
    covered = np.linalg.norm(every[:, None] - points[None], axis=-1) < reach[None]
    assert covered.any(1).all(), "where none sticks there is a disc"
    assert _throw_darts(shape, order, radius, 10) == stuck[:10]


@pytest.mark.parametrize("r", [4.0, 6.0, 10.0])
def test_poisson_discs_are_as_far_apart_as_r_allows(r: float) -> None:
    shape = (96, 80)
    sampling = make_mask("poisson-2d", shape, r, 10, 5)
    points = np.argwhere(sampling.mask & ~sampling.acs)
    growth = poisson_growth(shape)[tuple(points.T)]
    pairs = cKDTree(points).query_pairs(12.0, output_type="ndarray")
    distance = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1)
    base = (distance / np.minimum(growth[pairs[:, 0]], growth[pairs[:, 1]])).min()
    # random discs jam at about 0.7 points per squared radius: no other pattern of darts does much better
    jammed = np.sqrt(0.7 * np.sum(poisson_growth(shape)[~sampling.acs] ** -2.0) / len(points))
    assert base > 0.8 * jammed
    inner = np.hypot(*(points - np.array(shape) // 2).T) < 20
    outer = np.hypot(*(points - np.array(shape) // 2).T) > 35
    nearest, _ = cKDTree(points).query(points, k=2)
    assert nearest[inner, 1].mean() < 0.8 * nearest[outer, 1].mean(), "denser in the centre"


def test_poisson_with_nothing_beside_the_acs() -> None:
    sampling = make_mask("poisson-2d", (20, 20), 4.0, 10, 0)
    np.testing.assert_array_equal(sampling.mask, sampling.acs)


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(ValueError, match=r"'spiral' is not known; there are: uniform-1d, random-1d, gaussian-1d, poly"):
        make_mask("spiral", (48, 48), 4.0, 8, 0)
    for family, most in (("uniform-1d", "6.00"), ("gaussian-1d", "6.00"), ("gaussian-2d", "36.00")):
        with pytest.raises(
            ValueError, match=rf"'{family}' on a 48 x 48 matrix: R: with .* expected 1 to {most}, got 40"
        ):
            make_mask(family, (48, 48), 40, 8, 0)
        with pytest.raises(ValueError, match=r"expected 1 to .*, got 0\.5"):
            make_mask(family, (48, 48), 0.5, 8, 0)
    with pytest.raises(ValueError, match="ACS lines: expected 0 to 48"):
        make_mask("gaussian-2d", (48, 60), 2, 50, 0)


@pytest.mark.parametrize(("family", "power"), [("polynomial-1d", 3), ("polynomial-2d", 3), ("random-1d", 0)])
def test_polynomial_and_flat_density(family: str, power: int) -> None:
    shape = (400, 1) if family.endswith("1d") else (160, 120)
    r = 400 / 5 if family.endswith("1d") else shape[0] * shape[1] / 40
    found = np.concatenate([np.argwhere(make_mask(family, shape, r, 1, seed).mask) for seed in range(600)])
    reach = [np.abs(found[:, axis] - shape[axis] // 2) / (shape[axis] / 2) for axis in range(found.shape[1])]
    distance = reach[0] if len(reach) == 1 else np.hypot(*reach) / math.sqrt(2)
    distance = distance[distance > 0]  # without the ACS point
    grid = [np.abs(np.arange(size) - size // 2) / (size / 2) for size in shape[: len(reach)]]
    every = grid[0] if len(grid) == 1 else np.hypot(grid[0][:, None], grid[1][None, :]).ravel() / math.sqrt(2)
    weights = np.clip(1 - every, 0, 1) ** power
    assert distance.mean() == pytest.approx(np.average(every, weights=weights), rel=0.05)


def test_partial_fourier_and_corners() -> None:
    for family in ("partial-fourier-1d", "partial-fourier-2d"):
        mask = make_mask(family, (64, 48), 3.0, 6, 0).mask
        rows = mask if mask.ndim == 1 else mask.any(1)
        assert not rows[:16].any(), "a quarter is left out"
        assert rows[16:22].any()
        assert rows[-6:].any()
    mask = make_mask("poisson-ellipse-2d", (64, 48), 3.0, 6, 0).mask
    y, x = np.nonzero(mask)
    assert (((y - 32) / 32) ** 2 + ((x - 24) / 24) ** 2 <= 1).all()
    assert y.min() <= 2
    assert x.max() >= 45


@pytest.mark.parametrize(("r", "rows", "columns", "shift"), [(4, 2, 2, 1), (6, 2, 3, 1), (5, 1, 5, 2), (9, 3, 3, 1)])
def test_caipi_lattice(r: int, rows: int, columns: int, shift: int) -> None:
    lattice = caipi_lattice((36, 30), r)
    expected = {
        (y, z) for y in range(0, 36, rows) for z in range(30) if (z - shift * (y // rows)) % columns == 0
    }  # fmt: skip
    assert {(int(y), int(z)) for y, z in np.argwhere(lattice)} == expected
    assert lattice.sum() == 36 * 30 / r
    mask = make_mask("caipi-2d", (36, 30), r, 6, 1).mask
    assert mask.sum() == round(36 * 30 / r)
    fits = [
        n for n in range(r, 3 * r) for dy in range(n) for dz in range(n)
        if mask[caipi_lattice((36, 30), n, (dy, dz))].all()
    ]  # fmt: skip
    assert fits, "a lattice is in it, whole"


def test_a_large_poisson_disc_is_fast() -> None:
    began = time.process_time()
    assert make_mask("poisson-2d", (320, 320), 12.0, None, 0).mask.sum() == round(320 * 320 / 12)
    assert time.process_time() - began < 1.0
