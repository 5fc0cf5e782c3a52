"""Partial Fourier: POCS and homodyne against an image that is known."""

from __future__ import annotations

import numpy as np
import pytest
from acquisitions import acquisition, header_xml, smooth_object
from scanprior.gadgets.encoding import Encoding
from scanprior.gadgets.errors import ScanError
from scanprior.gadgets.fourier import fft, ifft
from scanprior.gadgets.noise import Whitening
from scanprior.gadgets.partial_fourier import acquired_ranges, complete
from scanprior.gadgets.preparation import Problem, prepare
from scanprior.gadgets.sorting import Sorter

SIZE = 96


def partial(rows: slice, columns: slice = slice(0, SIZE), step: int = 1) -> tuple[np.ndarray, Problem]:
    """The true image of a single coil, and the problem with those rows and columns acquired."""
    # fine detail under a smooth phase: what partial Fourier is for
    smooth = smooth_object(SIZE, SIZE, coils=1)
    detail = 1 + 0.5 * np.random.default_rng(0).standard_normal((SIZE, SIZE))
    image = (smooth * detail).astype(np.complex64)
    kspace = fft(image, (-2, -1))
    encoding = Encoding.from_header(header_xml((SIZE, SIZE, 1), channels=1, calibration=None))
    target = Sorter(encoding)
    for number in range(SIZE)[rows][::step]:
        target.add(acquisition(kspace[:, number, columns], number, center=SIZE // 2 - columns.start))
    return image[0], prepare(target.flush()[0].slice_data, encoding, Whitening.upstream(1))


def error(image: np.ndarray, true: np.ndarray) -> float:
    return float(np.linalg.norm(np.abs(image) - np.abs(true)) / np.linalg.norm(true))


@pytest.mark.parametrize("rows", [slice(36, SIZE), slice(0, 60)], ids=["late", "early"])
@pytest.mark.parametrize("method", ["pocs", "homodyne"])
def test_rows_are_filled(rows: slice, method: str) -> None:
    true, problem = partial(rows)
    zero_filled = ifft(problem.kspace[0], (-2, -1))
    filled = complete(zero_filled, problem, method)
    assert error(filled, true) < 0.5 * error(zero_filled, true)
    assert filled.dtype == np.complex64


def test_pocs_keeps_what_was_measured() -> None:
    _, problem = partial(slice(36, SIZE))
    filled = complete(ifft(problem.kspace[0], (-2, -1)), problem, "pocs")
    assert np.allclose(fft(filled, (-2, -1))[36:], problem.kspace[0, 36:], atol=1e-5)


@pytest.mark.parametrize("method", ["pocs", "homodyne"])
def test_columns_are_filled(method: str) -> None:
    true, problem = partial(slice(0, SIZE), slice(36, SIZE))
    zero_filled = ifft(problem.kspace[0], (-2, -1))
    assert acquired_ranges(problem) == ((0, SIZE), (36, SIZE))
    assert error(complete(zero_filled, problem, method), true) < 0.5 * error(zero_filled, true)


def test_both_axes_need_pocs() -> None:
    true, problem = partial(slice(0, 66), slice(30, SIZE))
    zero_filled = ifft(problem.kspace[0], (-2, -1))
    # where a point and its mirror image are both missing, nothing can be known
    assert error(complete(zero_filled, problem, "pocs"), true) < 0.8 * error(zero_filled, true)
    with pytest.raises(ValueError, match="homodyne fills one axis"):
        complete(zero_filled, problem, "homodyne")


def test_nothing_happens_by_default_or_without_asymmetry() -> None:
    _, problem = partial(slice(36, SIZE))
    image = ifft(problem.kspace[0], (-2, -1))
    assert complete(image, problem) is image
    _, problem = partial(slice(0, SIZE), step=3)
    assert acquired_ranges(problem) == ((0, SIZE), (0, SIZE))
    assert complete(image, problem, "pocs") is image


def test_batches_are_filled_alike() -> None:
    _, problem = partial(slice(36, SIZE))
    image = ifft(problem.kspace[0], (-2, -1))
    both = complete(np.stack([image, 2 * image]), problem, "pocs")
    assert np.allclose(both[1], 2 * both[0], atol=1e-5)
    assert np.allclose(both[0], complete(image, problem, "pocs"), atol=1e-6)


@pytest.mark.parametrize(("first", "ratio"), [(24, 1.491), (36, 1.713)])
@pytest.mark.parametrize("method", ["pocs", "homodyne"])
def test_filling_makes_white_noise_stronger(method: str, first: int, ratio: float) -> None:
    """Why a map of the standard deviation from before is not one of the filled image, as docs/recipes.md says.

    Homodyne weighs the acquired part f of k-space by w; a magnitude, too, has only that part of the noise that lies
    along the phase. So the standard deviation grows by sqrt(mean w^2 / f), mean w^2 = 4 (1 - f) + 4/3 (2 f - 1).
    """
    f = 1 - first / SIZE
    assert ratio == pytest.approx(np.sqrt((4 * (1 - f) + 4 / 3 * (2 * f - 1)) / f), rel=1e-3)
    true, problem = partial(slice(first, SIZE))
    generator = np.random.default_rng(1)
    shape = (30, SIZE, SIZE)
    noise = generator.standard_normal(shape, np.float32) + 1j * generator.standard_normal(shape, np.float32)
    noise[:, :first] = 0
    images = ifft(problem.kspace[0] + 0.01 * np.abs(true).max() * noise, (-2, -1))
    bright = np.abs(true) > 0.5 * np.abs(true).max()
    before = np.abs(images).std(0)[bright].mean()
    after = np.abs(complete(images, problem, method)).std(0)[bright].mean()
    assert after / before == pytest.approx(ratio, rel=0.06)


def test_errors_name_the_remedy() -> None:
    _, problem = partial(slice(46, SIZE))
    image = ifft(problem.kspace[0], (-2, -1))
    with pytest.raises(ScanError, match="only 2 lines lie beyond the centre"):
        complete(image, problem, "pocs")
    with pytest.raises(ValueError, match="'magic', expected one of zero-fill, pocs, homodyne"):
        complete(image, problem, "magic")
