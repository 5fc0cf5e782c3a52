"""The recorded scan brain_t2_8ch_r4, read by hand: no code of ours between the file and the tests."""

from __future__ import annotations

from dataclasses import dataclass

import h5py
import numpy as np
import torch
from support import data_dir

NOISE_FLAG = 1 << 18


@dataclass(frozen=True)
class Brain:
    """brain_t2_8ch_r4, whitened: noise of variance 1, uncorrelated between coils.

    Attributes
    ----------
    kspace, mask, acs
        (coil, y, x) complex64; (y, 1) bool; (coil, 24, x) complex64, the fully sampled lines.
    truth
        (y, x) complex64: the image that the file was made of, largest magnitude 1.
    profile
        (y, x) float32: root sum of squares of the whitened true maps. A reconstruction with unit-norm maps estimates
        truth * profile, by the algebra of whitening alone.
    maps
        (coil, y, x) complex64: the whitened true maps over `profile`.
    """

    kspace: torch.Tensor
    mask: torch.Tensor
    acs: torch.Tensor
    truth: torch.Tensor
    profile: torch.Tensor
    maps: torch.Tensor

    def psnr(self, image: torch.Tensor) -> float:
        """Of the magnitude in the truth's units, range the truth's maximum, nothing fitted."""
        error = image.abs() / self.profile - self.truth.abs()
        return float(20 * torch.log10(self.truth.abs().amax() / error.square().mean().sqrt()))


def load_brain() -> Brain:
    """Read file and truth; skips where they are missing."""
    folder = data_dir() / "recorded"
    with h5py.File(folder / "brain_t2_8ch_r4.h5") as file:
        acquisitions = file["dataset/data"][:]
    noise, kspace = [], np.zeros((8, 320, 640), np.complex64)
    for acquisition in acquisitions:
        head = acquisition["head"]
        samples = acquisition["data"].view(np.complex64).reshape(8, -1)
        if int(head["flags"]) & NOISE_FLAG:
            noise.append(samples)
        else:
            kspace[:, int(head["idx"]["kspace_encode_step_1"])] = samples
    truth = np.load(folder / "brain_t2_8ch_truth.npz")

    along_x = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(kspace, -1), axis=-1, norm="ortho"), -1)[..., 160:480]
    kspace = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(along_x, -1), axis=-1, norm="ortho"), -1)
    samples = np.concatenate(noise, -1)
    whitening = np.linalg.inv(np.linalg.cholesky(samples @ samples.conj().T / samples.shape[-1]))
    kspace = np.einsum("dc,cyx->dyx", whitening, kspace).astype(np.complex64)
    raw_maps = truth["maps"].astype(np.float32)
    maps = np.einsum("dc,cyx->dyx", whitening, raw_maps[..., 0] + 1j * raw_maps[..., 1]).astype(np.complex64)
    profile = np.linalg.norm(maps, axis=0)
    assert (truth["mask"] == (np.abs(kspace).sum((0, 2)) > 0)).all()
    return Brain(
        kspace=torch.from_numpy(kspace),
        mask=torch.from_numpy(truth["mask"])[:, None],
        acs=torch.from_numpy(kspace[:, truth["acs"]]),
        truth=torch.from_numpy(truth["image"]),
        profile=torch.from_numpy(profile),
        maps=torch.from_numpy(maps / profile),
    )
