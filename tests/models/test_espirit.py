"""ESPIRiT against sigpy and BART, on simulated and recorded data, and on what cannot be calibrated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sigpy
import sigpy.mri
import torch
from bart import bart
from brain import load_brain
from scanprior.models.espirit import NoAcsError, espirit_maps, fitting_kernel
from scanprior.models.fourier import fft2c


def simulate(coils: int, size: tuple[int, int], noise: float = 2e-3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """K-space (coil, y, x), true maps of unit norm, object."""
    full = max(size)
    crop = (slice((full - size[0]) // 2, (full - size[0]) // 2 + size[0]), slice(0, size[1]))
    image = torch.from_numpy(sigpy.shepp_logan((full, full)).astype(np.complex64))[crop]
    maps = torch.from_numpy(sigpy.mri.birdcage_maps((coils, full, full)).astype(np.complex64))[:, crop[0], crop[1]]
    maps = maps / torch.linalg.vector_norm(maps, dim=0)
    generator = torch.Generator().manual_seed(0)
    kspace = fft2c(image * maps)
    kspace = kspace + noise * torch.randn(kspace.shape, dtype=kspace.dtype, generator=generator)
    return kspace, maps, image.abs() > 0.05


def middle(kspace: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    y, x = (size // 2 - kept // 2 for size, kept in zip(kspace.shape[-2:], (rows, columns), strict=True))
    return kspace[..., y : y + rows, x : x + columns]


def angles(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Angle in degrees between two fields of coil vectors (coil, n) of unit norm, blind to their phase."""
    # From the sine: the cosine of a small angle has no digits left in float32.
    a, b = a.to(torch.complex128), b.to(torch.complex128)
    rest = a - b * (b.conj() * a).sum(0)
    return torch.rad2deg(torch.asin(torch.linalg.vector_norm(rest, dim=0).clamp_max(1)))


@pytest.mark.parametrize(
    ("coils", "size", "lines"), [(4, (64, 64), (24, 24)), (3, (65, 50), (20, 24)), (4, (48, 64), (15, 17))]
)
def test_maps_are_the_true_ones(coils: int, size: tuple[int, int], lines: tuple[int, int]) -> None:
    kspace, truth, inside = simulate(coils, size)
    maps, eigenvalues = espirit_maps(middle(kspace, *lines), size)
    assert maps.shape == (coils, *size)
    assert eigenvalues.shape == size
    norm = torch.linalg.vector_norm(maps, dim=0)
    torch.testing.assert_close(norm, (eigenvalues > 0.95).float(), atol=1e-5, rtol=0)
    assert float((norm > 0)[inside].float().mean()) > 0.99
    assert float(eigenvalues.amax()) < 1 + 1e-4
    seen = inside & (norm > 0)
    assert float(angles(maps[:, seen], truth[:, seen]).median()) < 1.0


@pytest.mark.parametrize("coils", [4, 16])
def test_eight_lines_give_maps_of_all_of_the_object(coils: int) -> None:
    kspace, truth, inside = simulate(coils, (64, 64), noise=0.05)
    maps, _ = espirit_maps(middle(kspace, 8, 24), (64, 64), crop=0.8, sigma=0.05 * 2**0.5)
    seen = inside & (torch.linalg.vector_norm(maps, dim=0) > 0)
    assert float(seen.sum() / inside.sum()) > 0.95
    assert float(angles(maps[:, seen], truth[:, seen]).square().mean().sqrt()) < 6


def test_the_kernel_fits_the_lines() -> None:
    assert [fitting_kernel(lines, 6) for lines in (24, 12, 11, 8, 6)] == [6, 6, 5, 4, 3]
    assert fitting_kernel(24, 3) == 3
    assert fitting_kernel(8, 2) == 2, "what was asked for is the most"


def test_sigpys_maps() -> None:
    kspace, _, inside = simulate(6, (64, 64))
    maps, eigenvalues = espirit_maps(middle(kspace, 24, 24), (64, 64))
    oracle, oracle_eigenvalues = sigpy.mri.app.EspiritCalib(
        kspace.numpy(), show_pbar=False, output_eigenvalue=True
    ).run()
    oracle = torch.from_numpy(oracle)
    seen = inside & (maps[0] != 0)
    assert float(((oracle[0] != 0) == (maps[0] != 0)).float().mean()) > 0.999
    assert float(angles(maps[:, seen], oracle[:, seen]).amax()) < 0.1
    np.testing.assert_allclose(eigenvalues[seen], oracle_eigenvalues.squeeze()[seen.numpy()], atol=1e-3)


def test_barts_maps_and_phase(tmp_path: Path) -> None:
    kspace, _, inside = simulate(5, (64, 64))
    maps, _ = espirit_maps(middle(kspace, 24, 24), (64, 64))
    # BART compares the threshold with squares of singular values.
    command = f"ecalib -m1 -k6 -r24 -t{0.02**2} -c0.95"
    oracle = torch.from_numpy(bart(tmp_path, command, kspace.numpy()[:, None]).reshape(5, 64, 64))
    seen = inside & (maps[0] != 0) & (oracle[0] != 0)
    assert float(seen.float().sum() / inside.float().sum()) > 0.97
    # BART fills the covariance by sinc interpolation of a small grid, and ends its power iteration early.
    assert float(angles(maps[:, seen], oracle[:, seen]).quantile(0.99)) < 0.5
    rotation = torch.sgn((oracle.conj() * maps).sum(0))[seen]
    assert float((rotation - rotation.mean()).abs().quantile(0.99)) < 0.1


def test_recorded_brain() -> None:
    brain = load_brain()
    maps, _ = espirit_maps(brain.acs, (320, 320))
    inside = brain.truth.abs() > 0.1
    seen = inside & (maps[0] != 0)
    assert float(seen.sum() / inside.sum()) > 0.995
    assert float(angles(maps[:, seen], brain.maps[:, seen]).median()) < 2.0


@pytest.mark.slow
def test_recorded_brain_as_sigpy() -> None:
    brain = load_brain()
    maps, _ = espirit_maps(brain.acs, (320, 320))
    oracle = torch.from_numpy(sigpy.mri.app.EspiritCalib(brain.kspace.numpy(), show_pbar=False).run())
    seen = (brain.truth.abs() > 0.1) & (maps[0] != 0)
    assert float((oracle[0] != 0)[seen].float().mean()) > 0.999
    assert float(angles(maps[:, seen], oracle[:, seen]).quantile(0.999)) < 0.5


def test_phase_is_smooth_where_one_coil_sees_nothing() -> None:
    kspace, _, _ = simulate(4, (64, 64), noise=0.0)
    # A first coil without signal: relative to it every phase would be noise.
    kspace = torch.cat([1e-4 * torch.randn(1, 64, 64, dtype=kspace.dtype), kspace])
    maps, _ = espirit_maps(middle(kspace, 24, 24), (64, 64))
    seen = (maps[0] != 0)[:, 1:] & (maps[0] != 0)[:, :-1]
    coherence = (maps[:, :, 1:] * maps[:, :, :-1].conj()).sum(0)[seen]
    assert float(coherence.angle().abs().amax()) < 0.3


def test_gain_and_position_of_the_acs_change_nothing() -> None:
    kspace, _, _ = simulate(4, (64, 64))
    acs = middle(kspace, 24, 24)
    maps, _ = espirit_maps(acs, (64, 64))
    small, _ = espirit_maps(acs * 1e-6, (64, 64))
    torch.testing.assert_close(maps, small, atol=1e-3, rtol=0)
    # The whole readout: its middle is taken.
    wide, _ = espirit_maps(middle(kspace, 24, 64), (64, 64))
    torch.testing.assert_close(maps, wide)


def test_batch_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = torch.stack([middle(simulate(4, (48, 40), noise)[0], 24, 20) for noise in (1e-3, 1e-2)])
    maps, eigenvalues = espirit_maps(stack, (48, 40))
    assert maps.shape == (2, 4, 48, 40)
    monkeypatch.setattr("scanprior.models.espirit._CPU_CHUNK_BYTES", 1)
    for index in range(2):
        alone = espirit_maps(stack[index], (48, 40))
        torch.testing.assert_close(alone, (maps[index], eigenvalues[index]), atol=2e-3, rtol=0)


def test_two_sets_hold_both_anatomies_of_a_fold_over() -> None:
    """Half the field of view along y: the object folds, and every pixel there has two coil vectors."""
    kspace, truth, inside = simulate(6, (96, 96), noise=1e-4)
    folded = middle(kspace[:, ::2], 24, 24)
    maps, eigenvalues = espirit_maps(folded, (48, 96), sets=2)
    assert maps.shape == (2, 6, 48, 96)
    assert eigenvalues.shape == (2, 48, 96)
    crossing = (maps[0].conj() * maps[1]).sum(0).abs()
    assert float(crossing.amax()) < 1e-3
    # Image row r of the small field of view holds rows r + 24 and those 48 away from it.
    rows = torch.arange(48)
    first, second = truth[:, (rows + 24) % 96], truth[:, (rows + 72) % 96]
    both = inside[(rows + 24) % 96] & inside[(rows + 72) % 96] & (maps[1, 0] != 0)
    assert int(both.sum()) > 100
    for one in (first, second):
        captured = (maps.conj() * one).sum(1).abs().square().sum(0).sqrt()[both]
        assert float(captured.quantile(0.1)) > 0.98


def test_one_coil_has_the_map_one() -> None:
    kspace, _, _ = simulate(1, (48, 48))
    maps, _ = espirit_maps(middle(kspace, 24, 24), (48, 48))
    torch.testing.assert_close(maps[maps != 0], torch.ones(int((maps != 0).sum())) + 0j)


@pytest.mark.parametrize(
    "acs", [None, torch.zeros(4, 0, 24) + 0j, torch.ones(4, 5, 24) + 0j, torch.zeros(4, 24, 24) + 0j]
)
def test_no_acs_names_the_remedies(acs: torch.Tensor | None) -> None:
    with pytest.raises(NoAcsError, match=r"ACS.*reference scan .*flags 20, 21.*zero-filled"):
        espirit_maps(acs, (32, 32))


def test_bad_input_is_named() -> None:
    acs = torch.ones(4, 24, 24) + 0j
    with pytest.raises(ValueError, match="sets"):
        espirit_maps(acs, (32, 32), sets=5)
    with pytest.raises(ValueError, match=r"got \(8, 32\)"):
        espirit_maps(acs, (8, 32))
    with pytest.raises(ValueError, match="NaN"):
        espirit_maps(acs * float("nan"), (32, 32))
    with pytest.raises(ValueError, match="complex"):
        espirit_maps(acs.real, (32, 32))
    with pytest.raises(ValueError, match="crop"):
        espirit_maps(acs, (32, 32), crop=1.5)
    with pytest.raises(ValueError, match="kernel"):
        espirit_maps(acs, (32, 32), kernel=0)


def test_noise_above_the_threshold_makes_no_maps() -> None:
    """At low SNR singular values of noise lie above 2 % of the largest: without knowing it the maps are noise's."""
    noise = 0.1
    kspace, truth, inside = simulate(4, (64, 64), noise)
    acs = middle(kspace, 24, 24)

    def agreement(sigma: float) -> float:
        maps, _ = espirit_maps(acs, (64, 64), crop=0.8, sigma=sigma)
        seen = inside & (maps.abs().sum(0) > 0)
        assert float(seen.sum() / inside.sum()) > 0.95, "the head is not lost"
        return float(angles(maps[:, seen], truth[:, seen]).median())

    with_it, without = agreement(noise), agreement(0.0)
    assert with_it < 4.5
    assert without > 30
    maps, _ = espirit_maps(acs, (64, 64), sigma=1e3)  # all is noise: something, and finite
    assert torch.isfinite(torch.view_as_real(maps)).all()
    with pytest.raises(ValueError, match=r"noise level sigma of 0 or more, got -1\.0"):
        espirit_maps(acs, (64, 64), sigma=-1.0)
