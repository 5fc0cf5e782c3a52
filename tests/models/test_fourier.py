"""The centred transforms against numpy, by their definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scanprior.models.fourier import fft1c, fft2c, ifft1c, ifft2c
from support import check_adjoint, random_complex


@pytest.mark.parametrize("shape", [(8, 6), (7, 6), (9, 5)])
def test_fft2c_is_the_definition(shape: tuple[int, int]) -> None:
    x = random_complex(3, *shape, dtype=torch.complex128)
    matrices = []
    for n in shape:
        centred = np.arange(n) - n // 2
        matrices.append(np.exp(-2j * np.pi * np.outer(centred, centred) / n) / np.sqrt(n))
    expected = np.einsum("ky,byx,lx->bkl", matrices[0], x.numpy(), matrices[1])
    np.testing.assert_allclose(fft2c(x).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(8, 6), (7, 6), (9, 5)])
def test_inverse_is_the_adjoint(shape: tuple[int, int]) -> None:
    check_adjoint(fft2c, ifft2c, shape, shape)
    check_adjoint(lambda x: fft1c(x, -2), lambda y: ifft1c(y, -2), shape, shape)
    x = random_complex(*shape, dtype=torch.complex128)
    torch.testing.assert_close(ifft2c(fft2c(x)), x)
    torch.testing.assert_close(fft1c(fft1c(x, -1), -2), fft2c(x))


@pytest.mark.parametrize("n", [6, 7])
def test_constant_image_gives_dc_at_the_middle(n: int) -> None:
    kspace = fft1c(torch.ones(n))
    assert int(kspace.abs().argmax()) == n // 2
    torch.testing.assert_close(kspace[n // 2], torch.tensor(n**0.5 + 0j))
