"""What is shown of a prior, against priors of which everything is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gaussian import SD, GaussianPrior
from scanprior.models.precision import CholeskyFactor
from scanprior.sim.prior_views import choose_pixels, covariance_rows, prepare_image, unconditional_draws


def test_draws_of_a_gaussian_prior_have_its_variance() -> None:
    """The last denoised image of the ancestral sampler is a draw."""
    levels = np.geomspace(80.0, 0.002, 400).tolist()
    draws = unconditional_draws(GaussianPrior(), (48, 48), levels, torch.Generator().manual_seed(0))[-1]
    assert draws.shape == (4, 48, 48)
    for part in (draws.real, draws.imag):
        assert float(part.std()) == pytest.approx(SD, rel=0.05)  # 9216 values: 0.7 %; 400 steps: 1 % too narrow


def test_covariances_are_shares_of_the_pixels_variance() -> None:
    """One coupling: e_5 = u_5 / d, e_4 = (u_4 - c e_5) / d, so the share of pixel 4 is -c / d."""
    values = torch.zeros(1, 5, 1, 8)
    values[:, 0], values[0, 1, 0, 4] = 2.0, -1.0
    factor = CholeskyFactor(values, 1, 3)
    whole, near = covariance_rows(factor, [(0, 5), (0, 1)], np.ones((1, 8)))
    assert [panel.zoom for panel in whole.panels + near.panels] == [False, False, True, True]
    np.testing.assert_allclose(whole.panels[0].picture[0], [0, 0, 0, 0, 0.5, 1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(whole.panels[1].picture[0], [0, 1, 0, 0, 0, 0, 0, 0], atol=1e-6)
    assert "std 0.500" in whole.panels[0].title  # 1 / d
    assert whole.panels[0].limit == pytest.approx(0.5)  # the pixel itself does not count
    assert whole.panels[0].star == (0, 5)


def test_pixels_are_chosen_on_edges_and_in_flat_tissue() -> None:
    rows, columns = np.mgrid[:64, :64]
    radius = np.hypot(rows - 32, columns - 32)
    disc = (radius < 20).astype(float)
    pixels = choose_pixels(disc)
    far = [float(radius[pixel]) for pixel in pixels]
    assert all(18 < r < 22 for r in far[:2])
    assert all(r < 16 for r in far[2:])
    assert all(np.hypot(a[0] - b[0], a[1] - b[1]) > 10 for a in pixels for b in pixels if a != b)


@pytest.mark.parametrize("shape", [(40, 30), (24, 20)])
def test_images_are_put_into_the_priors_size_and_scale(shape: tuple[int, int]) -> None:
    image = np.zeros(shape, np.float32)
    image[8:-8, 8:-8] = 7.0
    prior = GaussianPrior()
    as_is = prepare_image(image, prior, None)
    assert as_is.shape == shape
    assert float(as_is.abs().max()) == pytest.approx(1.0)
    square = prepare_image(image, prior, 32)
    assert square.shape == (32, 32)
    assert float(square.abs().mean()) * 32**2 == pytest.approx(
        (image > 0).sum() * min(1.0, 32 / max(shape)) ** 2, rel=0.25
    )
