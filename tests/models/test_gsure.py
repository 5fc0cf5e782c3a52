"""GSURE and held-out lines: unbiased estimates of the error on measured k-space, for any denoiser and several coils."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gains import Gains, gradients, zero_mean
from scanprior.models.channels import to_channels, to_complex
from scanprior.models.divergence import rademacher
from scanprior.models.fourier import fft2c, ifft2c
from scanprior.models.gsure import gsure, held_out, projected_matching
from scanprior.models.measured_scans import (
    MOST_DATA,
    RIDGE,
    MeasuredScans,
    consistent_images,
    density_weights,
    first_image,
    missing_variance,
    random_part,
    regularised_inverse,
)
from support import random_complex

ROWS, COLUMNS = 8, 6
SD, SIGMA = 0.3, 0.2
COUNT = 800
SIZE = 2 * ROWS * COLUMNS


class Soft(Gains):
    """A denoiser that mixes neighbours and is not linear, as networks do."""

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        mixed = x + 0.5 * x.roll(1, -1) - 0.3 * x.roll(2, -2).flip(1)
        return self.gains[0] * mixed * torch.tanh(0.3 + mixed.square())


def scans(
    count: int = COUNT, coils: int = 3, share: float = 0.5, each: bool = True
) -> tuple[MeasuredScans, torch.Tensor]:
    """Scans of one image with much noise, and the image; with `each` all have masks of their own."""
    maps = random_complex(coils, ROWS, COLUMNS, seed=1, dtype=torch.complex128)
    maps = maps / maps.abs().square().sum(0).sqrt()
    image = SD * 2**0.5 * random_complex(ROWS, COLUMNS, seed=2, dtype=torch.complex128)
    masks = torch.rand(count if each else 1, ROWS, 1, generator=torch.Generator().manual_seed(3)) < share
    found = MeasuredScans(
        torch.zeros(count, coils, ROWS, COLUMNS, dtype=torch.complex128), masks.expand(count, -1, -1),
        maps.expand(count, -1, -1, -1), torch.full((count,), SIGMA, dtype=torch.float64),
    )  # fmt: skip
    model = found.model()
    noise = SIGMA * 2**0.5 * random_complex(count, coils, ROWS, COLUMNS, seed=4, dtype=torch.complex128)
    return replace(found, kspace=model(image.expand(count, -1, -1)) + noise * model.mask[:, None]), image


def probes(count: int, seed: int = 5) -> torch.Tensor:
    like = torch.zeros(count, 2, ROWS, COLUMNS, dtype=torch.float64)
    return rademacher(like, torch.Generator().manual_seed(seed))


def weights(of: MeasuredScans) -> torch.Tensor:
    return density_weights(of.mask.double().mean(0))


def true_error(
    denoiser: Gains, of: MeasuredScans, image: torch.Tensor, probe: torch.Tensor, given: torch.Tensor | None,
    root: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """|root A (f - x)|^2 / n, from the clean image."""
    first, level = first_image(of, probe, SD, given)
    difference = to_complex(denoiser(first, level)) - image
    return torch.view_as_real(of.model(root)(difference)).square().flatten(1).sum(1) / SIZE


@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize("coils", [1, 3])
def test_gsure_is_the_projected_error_and_so_is_its_gradient(coils: int, part: bool) -> None:
    of, image = scans(coils=coils)
    denoiser = Soft([1.0], (2, ROWS, COLUMNS), begin=0.8)
    probe, weight = probes(COUNT), weights(of)
    assert float(weight.max()) > 1.5
    given = random_part(of.mask, 0.4, torch.Generator().manual_seed(6)) if part else None
    estimate, _ = gsure(denoiser, of, weight, probe, SD, given)
    right = true_error(denoiser, of, image, probe, given, of.mask * weight.sqrt())
    zero_mean((estimate - right)[:, None])
    # and it would notice if the divergence were left out
    assert float((2 * SIGMA**2 * (of.mask.sum() / of.mask.numel())) / right.detach().mean()) > 0.1

    def difference(some: slice) -> torch.Tensor:
        few = MeasuredScans(of.kspace[some], of.mask[some], of.maps[some], of.sigma[some])
        seen = None if given is None else given[some]
        truth = true_error(denoiser, few, image, probe[some], seen, few.mask * weight.sqrt())
        return (gsure(denoiser, few, weight, probe[some], SD, seen)[0] - truth).mean()

    zero_mean(gradients(difference, denoiser.gains, COUNT, 20).flatten(1))


def test_held_out_lines_give_the_error_on_them() -> None:
    of, image = scans()
    denoiser = Soft([1.0], (2, ROWS, COLUMNS), begin=0.8)
    probe, weight = probes(COUNT), weights(of)
    given = random_part(of.mask, 0.4, torch.Generator().manual_seed(6))
    assert not (given & ~of.mask).any()
    estimate, _ = held_out(denoiser, of, weight, probe, SD, given)
    right = true_error(denoiser, of, image, probe, given, (of.mask & ~given) * weight.sqrt())
    zero_mean((estimate - right)[:, None])


def test_the_minimum_over_linear_denoisers_is_wieners_filter() -> None:
    """White Gaussian images, one coil: in measured k-space SD^2 / (SD^2 + s^2), and the first image is y / (1 + c)."""
    count = 1000
    of, _ = scans(count, coils=1)
    image = SD * 2**0.5 * random_complex(count, ROWS, COLUMNS, seed=7, dtype=torch.complex128)
    noise = SIGMA * 2**0.5 * random_complex(*of.kspace.shape, seed=8, dtype=torch.complex128)
    of = replace(of, maps=torch.ones_like(of.maps))
    model = of.model()
    of = replace(of, kspace=model(image) + noise * model.mask[:, None])
    probe = probes(count)

    def slope(gain: float) -> float:
        denoiser = Gains([1.0], (1, 1, 1), begin=gain)
        loss = gsure(denoiser, of, torch.ones(1, 1).double(), probe, SD)[0].mean()
        return float(torch.autograd.grad(loss, denoiser.gains)[0])

    # a parabola: its slope is a line
    assert slope(0) / (slope(0) - slope(1)) == pytest.approx((1 + RIDGE) * SD**2 / (SD**2 + SIGMA**2), rel=0.03)


def test_coils_that_a_scan_does_not_have_change_nothing() -> None:
    of, _ = scans(50)
    none = torch.zeros_like(of.kspace[:, :1])
    padded = MeasuredScans(torch.cat([of.kspace, none], 1), of.mask, torch.cat([of.maps, none], 1), of.sigma)
    denoiser = Soft([1.0], (2, ROWS, COLUMNS))
    args = weights(of), probes(50), SD
    torch.testing.assert_close(gsure(denoiser, padded, *args)[0], gsure(denoiser, of, *args)[0])


def test_the_first_image_is_linear_in_the_data_and_its_level_counts_what_is_missing() -> None:
    of, _ = scans(200)
    probe = probes(200)
    first, level = first_image(of, probe, SD)
    doubled, _ = first_image(replace(of, kspace=2 * of.kspace), probe, SD)
    torch.testing.assert_close(doubled, 2 * first)
    model = of.model()
    u = to_complex(first)
    torch.testing.assert_close(model.normal(u) + RIDGE * u, model.H(of.kspace), atol=1e-3, rtol=0)
    assert bool((level > SIGMA).all())
    assert bool((level < (SIGMA**2 + SD**2) ** 0.5).all())
    full = replace(of, mask=torch.ones_like(of.mask))
    assert full.fully_sampled
    torch.testing.assert_close(first_image(full, probe, SD)[1], of.sigma, atol=0.005, rtol=0)
    nothing = replace(of, mask=torch.zeros_like(of.mask))
    torch.testing.assert_close(first_image(nothing, probe, SD)[1], (of.sigma**2 + SD**2).sqrt())


def test_consistent_images_weigh_the_data_by_what_is_missing() -> None:
    """One coil, so that each point of k-space is a mean by itself: of data and image where it was measured."""
    of, _ = scans(3, coils=1)
    of = replace(of, maps=torch.ones_like(of.maps))
    of = replace(of, kspace=of.kspace * of.model().mask[:, None])
    image = to_channels(random_complex(3, ROWS, COLUMNS, seed=9, dtype=torch.complex128))
    ratios = torch.tensor([0.0, 3.0, MOST_DATA], dtype=torch.float64)
    # the last level asks for more than is allowed
    level = SIGMA * (1 + torch.tensor([0.0, 3.0, 100.0], dtype=torch.float64)).sqrt()
    found = fft2c(to_complex(consistent_images(of, image, level)))
    own = fft2c(to_complex(image))
    weight = (ratios / (1 + ratios))[:, None, None] * of.mask
    torch.testing.assert_close(found, own + weight * (of.kspace[:, 0] - own))


def test_the_inverse_is_solved_to_the_end_where_it_is_worst() -> None:
    """Many coils and few lines: eigenvalues all over [0, 1]. Not converged, CG would not be linear in the data."""
    of, _ = scans(4, coils=4, share=0.3)
    model = of.model()
    adjoint = model.H(of.kspace)
    found = regularised_inverse(model, adjoint)
    rest = model.normal(found) + RIDGE * found - adjoint
    assert float(rest.abs().square().sum() / adjoint.abs().square().sum()) < 1e-6


def test_density_weights_make_all_points_count_alike() -> None:
    masks = torch.rand(4000, 16, 1, generator=torch.Generator().manual_seed(0)) < torch.linspace(0.02, 1, 16)[:, None]
    found = density_weights(masks.float().mean(0))
    counted = (found * masks.float()).mean(0)
    assert torch.allclose(counted[2:], torch.ones(14, 1))
    assert float(found.max()) == 16
    assert to_channels(random_complex(3, 4)).shape == (2, 3, 4)


def test_the_deviation_of_what_is_missing_is_found_on_held_out_lines() -> None:
    """One coil; lines of k-space have deviations of their own, and the more of it, the more often they are measured."""
    count = 4000
    deviation = torch.linspace(0.1, 1.0, ROWS, dtype=torch.float64)[:, None]
    share = torch.linspace(0.15, 0.9, ROWS, dtype=torch.float64)[:, None]
    of, _ = scans(count, coils=1)
    mask = torch.rand(count, ROWS, 1, generator=torch.Generator().manual_seed(1)) < share
    drawn = random_complex(2, count, 1, ROWS, COLUMNS, seed=2, dtype=torch.complex128)
    kspace = 2**0.5 * (deviation * drawn[0] + SIGMA * drawn[1]) * mask[:, None]
    of = replace(of, maps=torch.ones_like(of.maps), mask=mask, kspace=kspace)
    found = missing_variance(of, mask.double().mean(0), torch.Generator().manual_seed(3))
    zero_mean((found - float(((1 - share) * deviation**2).sum() / (1 - share).sum()))[:, None])
    full = replace(of, mask=torch.ones_like(mask))
    assert not missing_variance(full, torch.ones(ROWS, 1).double(), torch.Generator()).any()


LEVEL = torch.full((COUNT,), 0.4, dtype=torch.float64)


def matched(of: MeasuredScans, weight: torch.Tensor, image: torch.Tensor) -> tuple[torch.Tensor, Gains, torch.Tensor]:
    denoiser, noise = Soft([1.0], (2, ROWS, COLUMNS), begin=0.8), normal_like(image)
    return projected_matching(denoiser, of, weight, image, LEVEL[: len(of)], noise), denoiser, noise


def normal_like(image: torch.Tensor) -> torch.Tensor:
    return torch.randn(image.shape, dtype=image.dtype, generator=torch.Generator().manual_seed(11))


def test_matching_of_full_scans_is_edms_loss() -> None:
    of, _ = scans(20)
    of = replace(of, mask=torch.ones_like(of.mask))
    image = to_channels(SD * random_complex(20, ROWS, COLUMNS, seed=8, dtype=torch.complex128))
    found, denoiser, noise = matched(of, torch.ones(1, ROWS, COLUMNS).double(), image)
    torch.testing.assert_close(found, denoiser.loss(image, LEVEL[:20], noise))


def test_matching_over_random_masks_is_edms_loss_and_so_is_its_gradient() -> None:
    of, _ = scans()
    image = to_channels(SD * random_complex(COUNT, ROWS, COLUMNS, seed=8, dtype=torch.complex128))
    # the masks have a chance of 1/2 each; their own density is not independent of them
    weight = torch.full((ROWS, 1), 2.0, dtype=torch.float64)
    found, denoiser, noise = matched(of, weight, image)
    zero_mean((found - denoiser.loss(image, LEVEL, noise))[:, None])

    def difference(some: slice) -> torch.Tensor:
        args = image[some], LEVEL[some], noise[some]
        return (projected_matching(denoiser, of[some], weight, *args) - denoiser.loss(*args)).mean()

    zero_mean(gradients(difference, denoiser.gains, COUNT, 20).flatten(1))


def test_what_was_not_measured_is_no_target_and_air_is() -> None:
    of, _ = scans(6, coils=1)
    of = replace(of, maps=torch.ones_like(of.maps))
    image = random_complex(6, ROWS, COLUMNS, seed=9, dtype=torch.complex128)
    kspace = fft2c(image)
    other = ifft2c(torch.where(of.mask, kspace, 7 * kspace))

    class Zero(Gains):
        def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return 0 * x

    args = LEVEL[:6], torch.zeros(6, 2, ROWS, COLUMNS).double()
    one = torch.ones(1, 1).double()
    both = [projected_matching(Zero([1.0]), of, one, to_channels(x), *args) for x in (image, other)]
    torch.testing.assert_close(*both)
    # nothing of air is measured, and something there is an error
    of = replace(of, maps=of.maps * (torch.arange(COLUMNS) > 1))
    bright = torch.zeros(6, 2, ROWS, COLUMNS).double()

    class Bright(Gains):
        def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return x + 0.5 * (torch.arange(COLUMNS) < 2)

    found = projected_matching(Bright([1.0]), of, one, bright, *args)
    torch.testing.assert_close(found, Bright([1.0]).weight(LEVEL[:6]) * 0.25 * 2 / COLUMNS)
