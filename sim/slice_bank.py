"""Whole slices on a square matrix, augmented ahead of the training: for networks that learn from scans of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .augmentation import fourier_resize, random_contrast, random_phase, random_pose, smooth_shading
from .image_stack import ImageStack
from .patch_bank import stack_shares

RANDOM_CONTRAST = 0.5
"""Share of slices whose contrast is a random map; the others keep theirs up to a power."""

AIR_MEAN = 0.02
"""A slice whose mean magnitude is below, of a largest of about 1, is mere air."""


def whole_slice(source: np.ndarray, size: int, channels: int, rng: np.random.Generator) -> np.ndarray:
    """A slice (y, x) as a (size, size) image whose field of view it fills, in a random pose, contrast and shading.

    Complex64 with a smooth random phase (a complex slice keeps its own beneath) for 2 channels, float32 of magnitudes
    for 1; the largest magnitude is 1.
    """
    image = source if channels == 2 else np.abs(source)
    edge = max(image.shape)
    square = np.zeros((edge, edge), image.dtype)
    top, left = ((edge - length) // 2 for length in image.shape)
    square[top : top + image.shape[0], left : left + image.shape[1]] = image
    square = random_pose(fourier_resize(square, size / edge), rng)
    if square.shape[0] < size:  # a small source keeps its pixels, in a larger field of view
        before = (size - square.shape[0]) // 2
        square = np.pad(square, (before, size - square.shape[0] - before))
    if not np.iscomplexobj(square):
        square = np.maximum(square, 0)  # splines and the cropped spectrum ring below zero in air
    if rng.random() < RANDOM_CONTRAST:
        square = random_contrast(square, rng)
    else:
        square = square * np.maximum(np.abs(square), 1e-6) ** (np.exp(rng.normal(0, 0.15)) - 1)
    square = square * smooth_shading(square.shape, rng)
    square = square / max(float(np.abs(square).max()), 1e-3)
    if channels == 1:
        return square.astype(np.float32)
    return (square * np.exp(1j * random_phase(square.shape, rng))).astype(np.complex64)


def write_slices(path: Path, stacks: list[ImageStack], slices: int, seed: int, size: int, channels: int) -> None:
    """Write `slices` augmented slices to `path`: npy (slice, channels, size, size) float16, magnitude or (Re, Im)."""
    rng = np.random.default_rng(seed)
    share = stack_shares(stacks)
    partial = path.with_suffix(".partial.npy")
    bank = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=(slices, channels, size, size))
    done = 0
    with tqdm(total=slices, desc=f"augmented slices -> {path.name}") as bar:
        while done < slices:
            stack = stacks[rng.choice(len(stacks), p=share)]
            image = whole_slice(stack.slices[rng.integers(len(stack.slices))], size, channels, rng)
            if np.abs(image).mean() < AIR_MEAN:
                continue  # mere air
            bank[done] = [image.real, image.imag] if channels == 2 else [image]
            done += 1
            bar.update()
    bank.flush()
    partial.rename(path)


class SliceBank(torch.utils.data.IterableDataset):
    """Endless stream of slices (channels, size, size) float32 from a bank, flipped along either axis by chance.

    Each worker and each rank draws its own sequence from `seed`.
    """

    def __init__(self, path: Path, seed: int, rank: int = 0) -> None:
        self.path, self.seed, self.rank = path, seed, rank

    def __iter__(self):  # type: ignore[no-untyped-def]
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, self.rank, worker.id if worker else 0])
        bank = np.load(self.path, mmap_mode="r")
        while True:
            image = np.asarray(bank[rng.integers(len(bank))], np.float32)
            yield torch.from_numpy(image[:, :: rng.choice([-1, 1]), :: rng.choice([-1, 1])].copy())
