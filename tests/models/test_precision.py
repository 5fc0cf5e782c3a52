"""The sparse Cholesky factor against dense linear algebra of a matrix written down entry by entry."""

from __future__ import annotations

import math

import pytest
import torch
from scanprior.models.cholesky_stencil import coefficient_channels, later_neighbours
from scanprior.models.precision import CholeskyFactor, bounded

KINDS = [(parts, neighbourhood) for parts in (1, 2) for neighbourhood in (1, 3, 5)]
SHAPES = [(12, 12), (7, 11), (11, 4), (1, 6), (6, 1), (2, 2)]


def random_factor(
    parts: int, neighbourhood: int, shape: tuple[int, int], batch: int = 2, seed: int = 0
) -> CholeskyFactor:
    generator = torch.Generator().manual_seed(seed)
    channels = coefficient_channels(parts, neighbourhood)
    values = 0.2 * torch.randn(batch, channels, *shape, generator=generator, dtype=torch.float64)
    values[:, :parts] = bounded(5 * values[:, :parts], 0.5, 4.0)
    return CholeskyFactor(values, parts, neighbourhood)


def random_image(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def raster(image: torch.Tensor) -> torch.Tensor:
    """(..., parts, y, x) to vectors in raster order in which a pixel's parts stand together."""
    return image.movedim(-3, -1).flatten(-3)


def dense(factor: CholeskyFactor) -> torch.Tensor:
    """L (batch, n, n), by the definition in the docstring of the class, one entry after the other."""
    batch, parts, height, width = factor.shape
    matrix = factor.values.new_zeros(batch, height, width, parts, height, width, parts)
    for y in range(height):
        for x in range(width):
            channels = iter(factor.values[:, :, y, x].unbind(1))
            for part in range(parts):
                matrix[:, y, x, part, y, x, part] = next(channels)
            if parts == 2:
                matrix[:, y, x, 1, y, x, 0] = next(channels)
            for dy, dx in later_neighbours(factor.neighbourhood):
                for later in range(parts):
                    for own in range(parts):
                        value = next(channels)
                        if y + dy < height and 0 <= x + dx < width:
                            matrix[:, y + dy, x + dx, later, y, x, own] = value
            assert next(channels, None) is None
    size = height * width * parts
    return matrix.reshape(batch, size, size)


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


def test_channels_are_those_of_the_neighbourhoods() -> None:
    assert [coefficient_channels(*kind) for kind in KINDS] == [1, 5, 13, 3, 19, 51]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("parts", "neighbourhood"), KINDS)
def test_everything_equals_dense_algebra(parts: int, neighbourhood: int, shape: tuple[int, int]) -> None:
    factor = random_factor(parts, neighbourhood, shape)
    matrix = dense(factor)
    assert bool((matrix.triu(1) == 0).all())
    precision = matrix @ matrix.mT
    e = random_image(*factor.shape)
    vector = raster(e)[..., None]

    close(raster(factor.transposed(e)), (matrix.mT @ vector)[..., 0])
    close(raster(factor.product(e)), (matrix @ vector)[..., 0])
    close(raster(factor.precision(e)), (precision @ vector)[..., 0])
    close(factor.log_det(), 0.5 * torch.linalg.slogdet(precision).logabsdet)

    gaussian = torch.distributions.MultivariateNormal(torch.zeros_like(raster(e)), scale_tril=_tril(precision))
    constant = 0.5 * vector.shape[-2] * math.log(2 * math.pi)
    close(factor.nll(e), -gaussian.log_prob(raster(e)) - constant)

    close(raster(factor.solve(e)), torch.linalg.solve(matrix, vector)[..., 0])
    close(raster(factor.solve_transposed(e)), torch.linalg.solve(matrix.mT, vector)[..., 0])


def _tril(precision: torch.Tensor) -> torch.Tensor:
    return torch.linalg.cholesky(torch.linalg.inv(precision))


@pytest.mark.parametrize(("parts", "neighbourhood"), KINDS)
def test_samples_are_the_dense_solves_of_the_noise_drawn(parts: int, neighbourhood: int) -> None:
    factor = random_factor(parts, neighbourhood, (12, 12))
    found = factor.sample(3, torch.Generator().manual_seed(4))
    noise = torch.randn(3, *factor.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    close(raster(found), torch.linalg.solve(dense(factor).mT, raster(noise)[..., None])[..., 0])


@pytest.mark.parametrize(("parts", "neighbourhood"), [(1, 3), (1, 5), (2, 3), (2, 5)])
def test_covariance_of_samples_converges_to_the_inverse_of_the_precision(parts: int, neighbourhood: int) -> None:
    factor = random_factor(parts, neighbourhood, (4, 5), batch=1)
    matrix = dense(factor)[0]
    wanted = torch.linalg.inv(matrix @ matrix.mT)
    errors = []
    for count in (1000, 16000):
        draws = raster(factor.sample(count, torch.Generator().manual_seed(count))[:, 0])
        errors.append(float((draws.mT @ draws / count - wanted).norm() / wanted.norm()))
    size = len(wanted)
    # E ||C_n - C||_F^2 = (||C||_F^2 + tr(C)^2) / n for Gaussian draws
    spread = math.sqrt(1 + float(wanted.trace() ** 2 / wanted.square().sum()))
    assert size == 20 * parts
    assert errors[1] < 1.5 * spread / math.sqrt(16000)
    assert errors[1] < 0.4 * errors[0]


@pytest.mark.parametrize(("parts", "neighbourhood"), KINDS)
def test_covariance_rows(parts: int, neighbourhood: int) -> None:
    factor = random_factor(parts, neighbourhood, (6, 8))
    matrix = dense(factor)
    covariance = torch.linalg.inv(matrix @ matrix.mT)
    pixels = [(0, 0, 0), (5, 7, parts - 1), (3, 4, parts - 1)]
    rows = factor.covariance_rows(pixels)
    assert rows.shape == (3, *factor.shape)
    for row, (y, x, part) in zip(rows, pixels, strict=True):
        close(raster(row), covariance[:, (y * 8 + x) * parts + part])
    close(factor.covariance_row(3, 4, parts - 1), rows[2])


@pytest.mark.parametrize(("parts", "neighbourhood"), KINDS)
@pytest.mark.parametrize("method", ["product", "transposed", "precision", "nll"])
def test_gradients(method: str, parts: int, neighbourhood: int) -> None:
    factor = random_factor(parts, neighbourhood, (4, 3))
    values = factor.values.requires_grad_()
    e = random_image(*factor.shape).requires_grad_()

    def of(values: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        result = getattr(CholeskyFactor(values, parts, neighbourhood), method)(e)
        assert isinstance(result, torch.Tensor)
        return result

    assert torch.autograd.gradcheck(of, (values, e), fast_mode=True)


@pytest.mark.parametrize("lead", [(1,), (3, 1), (3, 2), ()])
@pytest.mark.parametrize("parts", [1, 2])
def test_one_factor_serves_many_images(parts: int, lead: tuple[int, ...]) -> None:
    """Leading axes broadcast, in values and in gradients."""
    batch = 2 if lead == (3, 2) else 3 if lead == (3, 1) else 1
    factor = random_factor(parts, 3, (5, 4), batch)
    e = random_image(*lead, *factor.shape[1:])
    matrix = dense(factor)
    product = factor.product(e)
    assert product.shape[:-3] == torch.broadcast_shapes(lead, (batch,))
    close(raster(product), (matrix @ raster(e)[..., None])[..., 0])
    for solved, again in ((factor.solve(e), factor.product), (factor.solve_transposed(e), factor.transposed)):
        close(again(solved), e.expand_as(solved))
    assert factor.nll(e).shape == torch.broadcast_shapes(lead, (batch,))

    def of(values: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        return CholeskyFactor(values, parts, 3).precision(e)

    assert torch.autograd.gradcheck(of, (factor.values.requires_grad_(), e.requires_grad_()), fast_mode=True)


def test_single_precision_agrees_with_double() -> None:
    factor = random_factor(2, 5, (16, 18))
    e = random_image(*factor.shape)
    single = CholeskyFactor(factor.values.float(), 2, 5)
    for method in ("transposed", "product", "precision", "nll", "solve", "solve_transposed"):
        found = getattr(single, method)(e.float())
        wanted = getattr(factor, method)(e)
        assert found.dtype == torch.float32
        assert float((found - wanted).norm()) < 1e-5 * float(wanted.norm())


def test_images_that_are_not_contiguous() -> None:
    factor = random_factor(2, 5, (6, 8))
    e = random_image(8, 6, 2, 2).permute(3, 2, 1, 0)
    for method in ("transposed", "product", "solve", "solve_transposed"):
        close(getattr(factor, method)(e), getattr(factor, method)(e.contiguous()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_same_on_cuda() -> None:
    factor = random_factor(2, 5, (16, 18))
    e = random_image(*factor.shape)
    there = CholeskyFactor(factor.values.cuda(), 2, 5)
    for method in ("transposed", "product", "precision", "nll", "solve", "solve_transposed"):
        close(getattr(there, method)(e.cuda()).cpu(), getattr(factor, method)(e))
    assert there.sample(2).device.type == "cuda"


def test_bounded_diagonal() -> None:
    raw = torch.tensor([-100.0, 0.0, 100.0], dtype=torch.float64)
    close(bounded(raw, 0.5, 8.0), torch.tensor([0.5, 2.0, 8.0], dtype=torch.float64))
    for low, high in ((0.0, 1.0), (2.0, 1.0), (1.0, math.inf)):
        with pytest.raises(ValueError, match="0 < low < high"):
            bounded(raw, low, high)


def test_what_does_not_fit_is_named() -> None:
    good = random_factor(1, 5, (6, 8)).values
    with pytest.raises(ValueError, match=r"expected \(batch, 51, y, x\).*got \(2, 13, 6, 8\)"):
        CholeskyFactor(good, 2, 5)
    with pytest.raises(ValueError, match=r"got \(13, 6, 8\)"):
        CholeskyFactor(good[0], 1, 5)
    with pytest.raises(ValueError, match=r"neighbourhood: expected one of .* got 7"):
        CholeskyFactor(good, 1, 7)
    with pytest.raises(ValueError, match=r"parts: expected one of .* got 3"):
        CholeskyFactor(good, 3, 5)
    with pytest.raises(ValueError, match="real floating-point"):
        CholeskyFactor(good.to(torch.complex64), 1, 5)
    for wrong in (0.0, -1.0, math.nan, math.inf):
        broken = good.clone()
        broken[1, 0, 2, 3] = wrong
        with pytest.raises(ValueError, match="positive, finite diagonal"):
            CholeskyFactor(broken, 1, 5)

    factor = CholeskyFactor(good, 1, 5)
    for shape in ((2, 1, 6, 7), (2, 2, 6, 8), (3, 1, 6, 8), (6, 8)):
        for method in ("transposed", "product", "precision", "nll", "solve", "solve_transposed"):
            with pytest.raises(ValueError, match=r"does not fit .*\(2, 1, 6, 8\)"):
                getattr(factor, method)(random_image(*shape))
    with pytest.raises(ValueError, match=r"expected torch\.float64"):
        factor.transposed(random_image(2, 1, 6, 8).float())
    with pytest.raises(ValueError, match=r"pixel .*\(6, 0, 0\)"):
        factor.covariance_row(6, 0)
