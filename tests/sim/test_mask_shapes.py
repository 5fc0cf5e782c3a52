"""The masks of Duff et al.: spokes and rows by chance."""

from __future__ import annotations

import numpy as np
import pytest
from scanprior.sim.mask_families import acs_size, make_mask


@pytest.mark.parametrize("shape", [(128, 128), (61, 40)])
@pytest.mark.parametrize("spokes", [1, 5, 24])
def test_every_pixel_of_a_spoke_is_measured_and_no_other(shape: tuple[int, int], spokes: int) -> None:
    sampling = make_mask("radial", shape, spokes, None, 0)
    y, x = ((np.arange(n) - n // 2) / n for n in shape)
    y, x = y[:, None], x[None, :]
    angles = np.arange(spokes) * np.pi / spokes
    # distance of each pixel from the nearest spoke, in pixels of the coarser axis; both measured on the unit circle
    away = np.abs(x[..., None] * np.sin(angles) - y[..., None] * np.cos(angles)).min(-1)
    inside = np.hypot(y, x) <= 0.5 - 1 / min(shape)
    assert sampling.mask[inside & (away < 0.25 / max(shape))].all()
    assert not sampling.mask[away > 0.75 / min(shape)].any()
    assert not sampling.mask[np.hypot(y, x) > 0.5 + 1 / min(shape)].any()
    assert sampling.mask[shape[0] // 2, shape[1] // 2]


def test_spokes_look_the_same_from_both_ends() -> None:
    mask = make_mask("radial", (63, 63), 7, None, 0).mask  # odd: DC is the middle pixel
    np.testing.assert_array_equal(mask, mask[::-1, ::-1])


def test_more_spokes_measure_more_and_cover_a_larger_centre() -> None:
    made = [make_mask("radial", (128, 128), spokes, None, 0) for spokes in (5, 25, 45, 125)]
    factors = [sampling.effective_r for sampling in made]
    assert factors == sorted(factors, reverse=True)
    assert 20 < factors[0] < 30  # 5 spokes of 128 points, DC shared
    assert factors[-1] < 1.6
    covered = [acs_size(sampling) for sampling in made]
    assert covered == sorted(covered)
    for sampling, edge in zip(made, covered, strict=True):
        assert sampling.mask[sampling.acs].all()
        assert sampling.acs.sum() == edge**2


def test_an_acs_asked_for_is_measured() -> None:
    sampling = make_mask("radial", (64, 64), 5, 12, 0)
    assert acs_size(sampling) == 12
    assert sampling.mask[26:38, 26:38].all()


def test_rows_by_chance_are_as_many_as_the_probability_says() -> None:
    counts = []
    for seed in range(300):
        sampling = make_mask("horizontal", (128, 96), 0.2, None, seed)
        assert sampling.mask.shape == (128,)
        assert sampling.mask[56:72].all()
        assert acs_size(sampling) == 16
        counts.append(sampling.mask.sum() - 16)
    assert np.mean(counts) == pytest.approx(0.2 * 112, abs=4 * np.sqrt(112 * 0.2 * 0.8 / 300))
    assert make_mask("horizontal", (128, 96), 1.0, None, 0).mask.all()
    assert make_mask("horizontal", (128, 96), 0.0, None, 0).mask.sum() == 16


def test_what_cannot_be_is_named() -> None:
    for wrong in (0, 2.5, -1):
        with pytest.raises(ValueError, match=rf"'radial' .* spokes: expected a whole number from 1, got {wrong}"):
            make_mask("radial", (48, 48), wrong, None, 0)
    for wrong in (-0.1, 1.5):
        with pytest.raises(ValueError, match=rf"'horizontal' .* probability of a row: expected 0 to 1, got {wrong}"):
            make_mask("horizontal", (48, 48), wrong, None, 0)
    with pytest.raises(ValueError, match="nothing would be measured"):
        make_mask("horizontal", (48, 48), 0.0, 0, 0)
