"""Augmented patches made ahead of the training, so that making them does not eat the processor during it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .augmentation import random_image, turned_patch
from .image_stack import ImageStack

BANK_PATCH = 160  # pixels, or more where asked for; training crops its own, smaller or equal patches out of these


def random_crop(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A (size, size) patch of an image (y, x); smaller images are set into air first."""
    rows, columns = image.shape
    if rows < size or columns < size:
        larger = np.zeros((max(rows, size), max(columns, size)), image.dtype)
        top, left = (larger.shape[0] - rows) // 2, (larger.shape[1] - columns) // 2
        larger[top : top + rows, left : left + columns] = image
        image, (rows, columns) = larger, larger.shape
    y, x = rng.integers(0, rows - size + 1), rng.integers(0, columns - size + 1)
    return image[y : y + size, x : x + size]


def stack_shares(stacks: list[ImageStack]) -> np.ndarray:
    """How often each file is drawn: by the fourth root of its number of slices times the edge of a slice in pixels, so
    that small sets and sharp ones are seen often."""
    share = np.array([len(stack.slices) ** 0.25 * stack.slices[0].size ** 0.5 for stack in stacks])
    return share / share.sum()


def write_bank(path: Path, stacks: list[ImageStack], patches: int, seed: int, size: int = BANK_PATCH) -> None:
    """Write `patches` augmented patches to `path`: npy, (patch, 2, size, size) float16, real and imaginary part.

    Every file gets the share of `stack_shares`. Three patches come from each augmented slice. Patches of mere air are
    mostly drawn again.
    """
    rng = np.random.default_rng(seed)
    share = stack_shares(stacks)
    partial = path.with_suffix(".partial.npy")
    bank = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=(patches, 2, size, size))
    done = 0
    # written where the shuffle wants them, since neighbours come from one slice and a batch shall not; shuffled
    # afterwards, the bank would have to fit into memory
    place = np.random.default_rng([seed, 1]).permutation(patches)
    with tqdm(total=patches, desc=f"augmented patches -> {path.name}") as bar:
        while done < patches:
            stack = stacks[rng.choice(len(stacks), p=share)]
            image = random_image(stack.slices[rng.integers(len(stack.slices))], rng)
            for _ in range(3):
                patch = random_crop(image, size, rng)
                if done == patches or (np.abs(patch).mean() < 0.08 and rng.random() < 0.9):
                    continue
                bank[place[done], 0], bank[place[done], 1] = patch.real, patch.imag
                done += 1
                bar.update()
    bank.flush()
    partial.rename(path)


class PatchBank(torch.utils.data.IterableDataset):
    """Endless stream of patches (channels, size, size) float32 from a bank: random crop, flips, transposition, phase.

    Each worker and each rank draws its own sequence from `seed`. With one channel they are magnitudes.
    """

    def __init__(self, path: Path, size: int, seed: int, rank: int = 0, channels: int = 2) -> None:
        largest = np.load(path, mmap_mode="r").shape[-1]
        if size > largest:
            raise ValueError(f"patch size {size} is larger than the bank's {largest}")
        self.path, self.size, self.seed, self.rank, self.channels = path, size, seed, rank, channels

    def __iter__(self):  # type: ignore[no-untyped-def]
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, self.rank, worker.id if worker else 0])
        bank = np.load(self.path, mmap_mode="r")
        while True:
            y, x = rng.integers(0, bank.shape[-1] - self.size + 1, 2)
            real, imaginary = np.asarray(
                bank[rng.integers(len(bank)), :, y : y + self.size, x : x + self.size], np.float32
            )
            patch = turned_patch(real + 1j * imaginary, rng)
            parts = [patch.real, patch.imag] if self.channels == 2 else [np.abs(patch)]
            yield torch.from_numpy(np.stack(parts).astype(np.float32))
