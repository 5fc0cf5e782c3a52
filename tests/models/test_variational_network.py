"""The variational network: its regulariser is the gradient of an energy, without it it is plain gradient descent."""

from __future__ import annotations

import math

import pytest
import torch
from scanprior.models import variational_network
from scanprior.models.forward import SenseModel
from scanprior.models.variational_network import Activations, Stage, VariationalNetwork
from support import random_complex


def stage(seed: int = 0, filters: int = 5, kernel: int = 5) -> Stage:
    """In float64, with activations of no special shape."""
    torch.manual_seed(seed)
    made = Stage(filters, kernel, bases=9, span=1.0)
    torch.nn.init.normal_(made.activations.weights)
    return made.double()


def energy(of: Stage, image: torch.Tensor) -> torch.Tensor:
    """Sum of Phi(K x), the integral of phi from 0 on: Gaussians integrate to error functions. Written independently:
    the filters act by an explicit sum over their taps."""
    filters = of.filters
    reach = filters.shape[-1] // 2
    padded = torch.nn.functional.pad(image, (reach,) * 4)
    rows, columns = image.shape[-2:]
    responses = sum(
        torch.einsum("bcyx,fc->bfyx", padded[..., dy : dy + rows, dx : dx + columns], filters[:, :, dy, dx])
        for dy in range(filters.shape[-1])
        for dx in range(filters.shape[-1])
    )
    assert isinstance(responses, torch.Tensor)
    basis = of.activations
    normalised = math.sqrt(2) * basis.width
    integral = basis.width * math.sqrt(math.pi / 2) * torch.erf((responses[..., None] - basis.centres) / normalised)
    return (integral * basis.weights[:, None, None, :]).sum() / len(basis.weights)


def test_the_regulariser_is_the_gradient_of_an_energy() -> None:
    of = stage()
    image = (0.4 * torch.randn(2, 2, 12, 15, dtype=torch.float64)).requires_grad_()
    wanted = torch.autograd.grad(energy(of, image), image)[0]
    found = of.regulariser(image.detach())
    # the table is linear between its points: 0.1 % of phi
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-3 * float(wanted.abs().max()))


def test_a_small_step_lowers_that_energy() -> None:
    of = stage(1)
    image = 0.4 * torch.randn(1, 2, 12, 15, dtype=torch.float64)
    with torch.no_grad():
        assert energy(of, image - 1e-3 * of.regulariser(image)) < energy(of, image)


def test_the_table_is_phi_with_both_its_gradients() -> None:
    torch.manual_seed(0)
    phi = Activations(3, 31, 0.75).double()
    torch.nn.init.normal_(phi.weights)
    z = torch.linspace(-3, 3, 2 * 3 * 40 * 20, dtype=torch.float64).reshape(2, 3, 40, 20).requires_grad_()
    cotangent = torch.randn(z.shape, dtype=torch.float64)
    height = float(phi.exact(z.detach()).abs().max())
    torch.testing.assert_close(phi(z), phi.exact(z), rtol=0, atol=2e-3 * height)
    assert float(phi(torch.full((1, 3, 1, 1), 50.0, dtype=torch.float64)).abs().max()) < 1e-4, "zero far outside"
    fast = torch.autograd.grad((phi(z) * cotangent).sum(), [z, phi.weights])
    slow = torch.autograd.grad((phi.exact(z) * cotangent).sum(), [z, phi.weights])
    # of a piecewise linear function the slope is exact in the middle of a piece only
    torch.testing.assert_close(fast[0], slow[0], rtol=0, atol=0.05 * float(slow[0].abs().max()))
    torch.testing.assert_close(fast[1], slow[1], rtol=0, atol=2e-3 * float(slow[1].abs().max()))


def test_the_tables_own_gradients_by_finite_differences() -> None:
    torch.manual_seed(0)
    z = (torch.rand(1, 2, 3, 4, dtype=torch.float64) * 1.8 - 0.9).requires_grad_()
    table = torch.randn(2, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: variational_network._Interpolation.apply(a, b, 1.0), (z, table))


def test_filters_have_mean_zero_and_norm_one() -> None:
    filters = stage().filters
    torch.testing.assert_close(filters.mean((-2, -1)), torch.zeros(5, 2, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(filters.square().sum((1, 2, 3)), torch.ones(5, dtype=torch.float64))


def problem(coils: int, *shape: int) -> tuple[SenseModel, torch.Tensor]:
    maps = random_complex(coils, *shape[-2:], seed=1)
    maps = maps / maps.abs().square().sum(0).sqrt()
    mask = torch.rand(shape[-2:], generator=torch.Generator().manual_seed(0)) < 0.4
    return SenseModel(maps, mask), random_complex(*shape, seed=2) * 0.3


@pytest.mark.parametrize("zero", ["filters", "weights"])
def test_without_a_regulariser_it_is_landweber(zero: str) -> None:
    model, image = problem(3, 16, 18)
    adjoint = model.normal(image)
    network = VariationalNetwork(stages=4, filters=3, kernel=5)
    for number, of in enumerate(network.stages):
        assert isinstance(of, Stage)
        torch.nn.init.zeros_(of.raw if zero == "filters" else of.activations.weights)
        torch.nn.init.constant_(of.log_weight, math.log(0.5 + 0.1 * number))
    wanted = adjoint
    for number in range(4):
        wanted = wanted - (0.5 + 0.1 * number) * model.H(model(wanted) - model(image))
    found = network(adjoint, adjoint, model.normal)
    if zero == "filters":  # phi(0) = 0 by symmetry of what it begins with
        assert all(float(of.activations(torch.zeros(1, 3, 1, 1)).abs().max()) < 1e-6 for of in network.stages)  # type: ignore[operator, union-attr]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("coils", "shape"), [(1, (9, 30)), (2, (16, 18)), (8, (3, 24, 17)), (1, (2, 2, 8, 8))])
def test_any_size_coils_and_batch(coils: int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = VariationalNetwork(stages=2, filters=3, kernel=5)
    model, image = problem(coils, *shape)
    adjoint = model.normal(image)
    with torch.no_grad():
        whole = network(adjoint, adjoint, model.normal)
        assert whole.shape == image.shape
        for place in torch.cartesian_prod(*(torch.arange(size) for size in shape[:-2])) if shape[:-2] else []:
            at = tuple(place.reshape(-1).tolist())
            alone = network(adjoint[at], adjoint[at], model.normal)
            torch.testing.assert_close(whole[at], alone, rtol=1e-4, atol=1e-5)
        monkeypatch.setattr(variational_network, "MAX_FEATURES", 1)
        torch.testing.assert_close(network(adjoint, adjoint, model.normal), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arguments", [{"stages": 0}, {"filters": 0}, {"bases": 2}, {"span": 0.0}])
def test_numbers_that_do_not_do(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected at least 1 stage, 1 filter, 3 bases and a span above 0, found"):
        VariationalNetwork(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("kernel", [1, 4])
def test_kernels_are_odd(kernel: int) -> None:
    with pytest.raises(ValueError, match=f"kernel: expected an odd number from 3 on, found {kernel}"):
        VariationalNetwork(kernel=kernel)
