"""Total variation against sigpy's solver and its app."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sigpy
import sigpy.mri
import torch
from bart import bart
from brain import load_brain
from scanprior.models.forward import SenseModel
from scanprior.models.linear import SenseSettings, sense
from scanprior.models.scan import Scan
from scanprior.models.total_variation import TvSettings, gradient, gradient_adjoint, total_variation, tv
from sparse import noisy_scan
from support import check_adjoint, random_complex


@pytest.mark.parametrize("shape", [(6, 7), (2, 5, 4)])
def test_gradient(shape: tuple[int, ...]) -> None:
    check_adjoint(gradient, gradient_adjoint, shape, (2, *shape))
    image = random_complex(*shape, dtype=torch.complex128)
    np.testing.assert_allclose(gradient(image)[0, ..., :-1, :], np.diff(image, axis=-2))
    np.testing.assert_allclose(gradient(image)[1, ..., :-1], np.diff(image, axis=-1))


def test_norm_of_the_gradient_is_bounded() -> None:
    columns = torch.eye(30, dtype=torch.complex128).reshape(30, 6, 5)
    matrix = gradient_adjoint(gradient(columns)).reshape(30, 30)
    assert 7 < float(torch.linalg.eigvalsh(matrix).amax()) <= 8


def test_total_variation_of_a_disc_is_its_edge() -> None:
    y, x = np.mgrid[-50:50, -50:50]
    disc = torch.from_numpy((1j * (y**2 + x**2 < 30**2)).astype(np.complex64))
    # A sharp pixel edge overstates the length of slanted parts somewhat.
    assert float(total_variation(disc).sum()) == pytest.approx(2 * np.pi * 30, rel=0.15)


def penalised(scan: Scan, image: torch.Tensor, lam: float) -> float:
    residual = SenseModel.of(scan)(image) - scan.kspace
    return 0.5 * float(residual.abs().square().sum()) + lam * float(total_variation(image).sum())


class _GroupL1(sigpy.prox.Prox):
    """Prox of lam sum of lengths over the first axis, for sigpy's solver."""

    def __init__(self, shape: tuple[int, ...], lam: float) -> None:
        self.lam = lam
        super().__init__(shape)

    def _prox(self, alpha: float, field: np.ndarray) -> np.ndarray:
        length = np.sqrt((np.abs(field) ** 2).sum(0))
        return field * (1 - np.minimum(1, alpha * self.lam / np.maximum(length, 1e-30)))


class _Gradient(sigpy.linop.Linop):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__((2, *shape), shape)

    def _apply(self, image: np.ndarray) -> np.ndarray:
        return gradient(torch.from_numpy(image)).numpy()

    def _adjoint_linop(self) -> sigpy.linop.Linop:
        outer = self

        class _Adjoint(sigpy.linop.Linop):
            def __init__(self) -> None:
                super().__init__(outer.ishape, outer.oshape)

            def _apply(self, field: np.ndarray) -> np.ndarray:
                return gradient_adjoint(torch.from_numpy(field)).numpy()

            def _adjoint_linop(self) -> sigpy.linop.Linop:
                return outer

        return _Adjoint()


def test_objective_is_at_most_sigpys() -> None:
    scan, _ = noisy_scan()
    assert scan.maps is not None
    lam = 2 * scan.sigma
    result = tv(scan, None, TvSettings(lam=2, iterations=400, tolerance=0))
    ours = penalised(scan, result.image, lam)
    assert ours == pytest.approx(result.info["objective"][-1], rel=1e-4)
    operator = sigpy.mri.linop.Sense(scan.maps.numpy(), weights=scan.mask.float().expand(64, 60).numpy())
    # sigpy's default dual step of 1 is far from converged after hundreds of iterations.
    oracle = sigpy.app.LinearLeastSquares(
        operator, scan.kspace.numpy(), proxg=_GroupL1((2, 64, 60), lam), G=_Gradient((64, 60)), sigma=0.1,
        max_iter=400, show_pbar=False,
    ).run()  # fmt: skip
    theirs = penalised(scan, torch.from_numpy(oracle), lam)
    assert ours <= theirs * (1 + 1e-4)
    assert ours > theirs * (1 - 2e-2)
    # Settled: five times the iterations change next to nothing.
    longer = tv(scan, None, TvSettings(lam=2, iterations=2000, tolerance=0)).info["objective"][-1]
    assert ours == pytest.approx(longer, rel=1e-3)


def test_each_slice_of_a_batch_and_its_gain() -> None:
    scan, _ = noisy_scan()
    settings = TvSettings(lam=1, iterations=20, tolerance=0)
    alone = tv(scan, None, settings).image
    stack = Scan(torch.stack([0 * scan.kspace, scan.kspace]), scan.mask, scan.maps, scan.sigma)
    together = tv(stack, None, settings).image
    assert torch.equal(together[0], torch.zeros_like(alone))
    torch.testing.assert_close(together[1], alone, rtol=1e-3, atol=1e-4)
    quiet = Scan(scan.kspace * 1e-6, scan.mask, scan.maps, scan.sigma * 1e-6)
    torch.testing.assert_close(tv(quiet, None, settings).image * 1e6, alone, rtol=1e-3, atol=1e-4)


def test_it_stops_and_beats_sense_on_a_phantom() -> None:
    scan, truth = noisy_scan()
    steps: list[tuple[int, int]] = []
    result = tv(scan, None, TvSettings(lam=1, iterations=3000), lambda step, total: steps.append((step, total)))
    assert result.info["iterations"] == len(steps) == len(result.info["objective"]) < 3000
    linear = sense(scan, None, SenseSettings())
    assert float((result.image - truth).norm()) < 0.5 * float((linear.image - truth).norm())


def test_two_sets_and_all_zero() -> None:
    maps = random_complex(2, 5, 16, 16, seed=3)
    maps = maps / maps.abs().square().sum((0, 1)).sqrt()
    mask = torch.ones(16, 1, dtype=torch.bool)
    kspace = SenseModel(maps, mask, sets=True)(random_complex(2, 16, 16))
    assert tv(Scan(kspace, mask, maps, 0.0), None, TvSettings(iterations=5)).image.shape == (16, 16)
    empty = tv(Scan(0 * kspace, mask, maps, 0.0), None, TvSettings(iterations=5)).image
    assert torch.equal(empty, torch.zeros_like(empty))


@pytest.mark.slow
def test_recorded_brain_beats_sense_sigpy_and_bart(tmp_path: Path) -> None:
    brain = load_brain()
    scan = Scan(brain.kspace, brain.mask, brain.maps, 1.0)
    ours = brain.psnr(tv(scan, None, TvSettings()).image)
    assert ours > 32.5
    assert ours > brain.psnr(sense(scan, None, SenseSettings()).image) + 1
    inputs = brain.kspace.numpy()[:, None], brain.maps.numpy()[:, None]
    oracle = torch.from_numpy(bart(tmp_path, "pics -w1 -i100 -RT:3:0:0.2", *inputs).reshape(320, 320))
    assert ours > brain.psnr(oracle) - 0.3
    app = sigpy.mri.app.TotalVariationRecon(
        brain.kspace.numpy(), brain.maps.numpy(), 0.2, weights=brain.mask.float().expand(320, 320).numpy(),
        max_iter=100, sigma=0.1, show_pbar=False,
    )  # fmt: skip
    assert ours > brain.psnr(torch.from_numpy(app.run())) - 0.3
