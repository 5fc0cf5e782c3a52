"""The forward model: adjointness, the normal operator's fast path, sets, batches, errors."""

from __future__ import annotations

import pytest
import sigpy.mri
import torch
from scanprior.models.forward import SenseModel
from scanprior.models.scan import Scan
from support import check_adjoint, random_complex

COILS, SETS = 3, 2
SIZES = [(8, 6), (7, 6), (8, 5), (9, 7)]
MASKS = ["lines_y", "lines_y_full", "lines_x", "points", "all"]


def make_mask(kind: str, rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    if kind == "lines_y":
        return torch.rand(rows, 1, generator=generator) > 0.5
    if kind == "lines_y_full":
        return (torch.rand(rows, 1, generator=generator) > 0.5).expand(rows, columns).clone()
    if kind == "lines_x":
        return torch.rand(1, columns, generator=generator) > 0.5
    if kind == "points":
        return torch.rand(rows, columns, generator=generator) > 0.5
    return torch.ones(rows, columns, dtype=torch.bool)


def make_model(kind: str, size: tuple[int, int], sets: bool) -> SenseModel:
    shape = (SETS, COILS, *size) if sets else (COILS, *size)
    return SenseModel(random_complex(*shape, seed=5, dtype=torch.complex128), make_mask(kind, *size), sets=sets)


@pytest.mark.parametrize("sets", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", MASKS)
def test_adjoint_and_normal(kind: str, size: tuple[int, int], sets: bool) -> None:
    model = make_model(kind, size, sets)
    check_adjoint(model, model.H, model.image_shape, model.coil_shape)
    check_adjoint(model.normal, model.normal, model.image_shape, model.image_shape)
    x = random_complex(4, *model.image_shape, seed=9, dtype=torch.complex128)
    torch.testing.assert_close(model.normal(x), model.H(model(x)), rtol=1e-12, atol=1e-12)


def test_transforms_that_the_mask_asks_for() -> None:
    axes = {kind: make_model(kind, (8, 6), False).transformed for kind in MASKS}
    assert axes == {"lines_y": (-2,), "lines_y_full": (-2,), "lines_x": (-1,), "points": (-2, -1), "all": ()}


def test_normal_of_a_line_mask_calls_one_dimensional_transforms_and_no_shift(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("lines_y_full", (9, 7), False)
    x = random_complex(*model.image_shape, dtype=torch.complex128)
    expected = model.H(model(x))
    dims = []
    plain = torch.fft.fftn
    monkeypatch.setattr(
        torch.fft, "fftn", lambda t, dim, norm: dims.append((t.shape[-1], dim)) or plain(t, dim=dim, norm=norm)
    )
    for shift in ("fftshift", "ifftshift"):
        monkeypatch.setattr(torch.fft, shift, lambda *_: pytest.fail("a shift in the loop"))
    monkeypatch.setattr(torch, "roll", lambda *_: pytest.fail("a roll in the loop"))
    torch.testing.assert_close(model.normal(x), expected)
    # Along y (of length 9), on transposed images.
    assert dims == [(9, (-1,))]


@pytest.mark.parametrize("size", SIZES)
def test_sigpy_has_the_same_model(size: tuple[int, int]) -> None:
    model = make_model("points", size, False)
    x = random_complex(*size, dtype=torch.complex128)
    oracle = sigpy.mri.linop.Sense(model.maps.numpy(), weights=model.mask.numpy())
    torch.testing.assert_close(model(x), torch.from_numpy(oracle(x.numpy())))


@pytest.mark.parametrize("sets", [False, True])
@pytest.mark.parametrize("lines", [False, True])
def test_batches_equal_their_elements(lines: bool, sets: bool) -> None:
    size = (8, 5)
    shape = (2, SETS, COILS, *size) if sets else (2, COILS, *size)
    maps = random_complex(*shape, dtype=torch.complex128)
    mask = torch.stack([make_mask("points", *size), make_mask("lines_x", *size).expand(*size)])
    if lines:
        mask = mask[..., :1]
    model = SenseModel(maps, mask, sets=sets)
    assert model.transformed == ((-2,) if lines else (-2, -1))
    x = random_complex(3, 2, *model.image_shape, seed=3, dtype=torch.complex128)
    y = random_complex(3, 2, *model.coil_shape, seed=4, dtype=torch.complex128)
    for index in range(2):
        single = SenseModel(maps[index], mask[index], sets=sets)
        torch.testing.assert_close(model(x)[:, index], single(x[:, index]))
        torch.testing.assert_close(model.H(y)[:, index], single.H(y[:, index]))
        torch.testing.assert_close(model.normal(x)[:, index], single.normal(x[:, index]))


@pytest.mark.parametrize("sets", [False, True])
def test_coil_chunks_change_nothing(sets: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("points", (8, 5), sets)
    x = random_complex(2, *model.image_shape, dtype=torch.complex128)
    y = random_complex(2, *model.coil_shape, dtype=torch.complex128)
    whole = model.normal(x), model.H(y)
    monkeypatch.setattr("scanprior.models.forward._CPU_CHUNK", 1)
    torch.testing.assert_close((model.normal(x), model.H(y)), whole)


@pytest.mark.parametrize("sets", [False, True])
def test_norm_bound_bounds(sets: bool) -> None:
    model = make_model("points", (6, 5), sets)
    columns = torch.eye(int(torch.tensor(model.image_shape).prod()), dtype=torch.complex128)
    matrix = model.normal(columns.reshape(-1, *model.image_shape)).reshape(columns.shape)
    largest = float(torch.linalg.eigvalsh(matrix).amax())
    assert largest <= model.norm_bound * (1 + 1e-9)
    assert model.norm_bound < 4 * largest


def test_gradients_reach_image_and_mask() -> None:
    mask = torch.rand(6, 1, dtype=torch.float64, requires_grad=True)
    maps = random_complex(COILS, 6, 4, dtype=torch.complex128)
    x = random_complex(6, 4, dtype=torch.complex128).requires_grad_()

    def energy(mask: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return SenseModel(maps, mask).normal(x).abs().square().sum()

    assert torch.autograd.gradcheck(energy, (mask, x))


@pytest.mark.parametrize("sets", [False, True])
def test_solve_is_the_gaussian_posterior_mean(sets: bool) -> None:
    model = make_model("points", (5, 4), sets)
    size = int(torch.tensor(model.image_shape).prod())
    columns = torch.eye(size, dtype=torch.complex128)
    matrix = model.normal(columns.reshape(-1, *model.image_shape)).reshape(size, size).T
    rhs = random_complex(2, *model.image_shape, dtype=torch.complex128)
    ridge = torch.tensor([0.3, 2.0], dtype=torch.float64).reshape(2, *[1] * len(model.image_shape))
    found = model.solve(rhs, ridge, iterations=200, tolerance=1e-12)
    for index, weight in enumerate([0.3, 2.0]):
        expected = torch.linalg.solve(matrix + weight * columns, rhs[index].reshape(-1))
        torch.testing.assert_close(found[index].reshape(-1), expected, rtol=1e-8, atol=1e-8)


def test_errors_name_both_shapes() -> None:
    maps = random_complex(8, 12, 10)
    model = SenseModel(maps, torch.ones(12, 1))
    with pytest.raises(ValueError, match=r"expected \(\.\.\., 8, 12, 10\), got \(8, 12, 9\) for kspace"):
        model.H(random_complex(8, 12, 9))
    with pytest.raises(ValueError, match=r"expected \(\.\.\., 12, 10\), got \(12, 9\) for image"):
        model.normal(random_complex(12, 9))
    with pytest.raises(ValueError, match=r"got \(12, 9\) for mask"):
        SenseModel(maps, torch.ones(12, 9))
    with pytest.raises(ValueError, match=r"coil, y, x\), got \(12, 10\) for maps"):
        SenseModel(maps[0], torch.ones(12, 10))
    with pytest.raises(ValueError, match="complex"):
        SenseModel(maps.real, torch.ones(12, 10))


def test_of_a_scan() -> None:
    kspace, mask = random_complex(2, 3, 6, 4), torch.ones(6, 1, dtype=torch.bool)
    assert not SenseModel.of(Scan(kspace, mask, random_complex(2, 3, 6, 4), 1.0)).sets
    assert not SenseModel.of(Scan(kspace, mask, random_complex(3, 6, 4), 1.0)).sets
    assert SenseModel.of(Scan(kspace, mask, random_complex(2, 2, 3, 6, 4), 1.0)).image_shape == (2, 6, 4)
    with pytest.raises(ValueError, match="needs coil maps"):
        SenseModel.of(Scan(kspace, mask, None, 1.0))
    with pytest.raises(ValueError, match=r"expected \(\.\.\., 4, 6, 4\), got \(2, 3, 6, 4\) for kspace"):
        SenseModel.of(Scan(kspace, mask, random_complex(4, 6, 4), 1.0))
