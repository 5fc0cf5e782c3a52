"""Images that the VAE priors are trained on: whole slices for dense latents, demodulated patches for local ones."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from scanprior.models.magnitude_prior import smooth_phase
from scanprior.models.vae import VAE
from scipy.ndimage import affine_transform
from tqdm import tqdm

from .augmentation import fourier_resize, random_contrast, random_image, smooth_shading
from .bank_data import VALIDATION, VALIDATION_SEED, BankData, make_banks
from .image_stack import ImageStack
from .patch_bank import BANK_PATCH, random_crop, stack_shares
from .vae_settings import VAESettings

COMPONENTS_FROM = 4000
"""Images of a bank that principal components are taken from: half a minute."""
RANDOM_CONTRAST = 0.1
"""Share of whole slices whose contrast is a random map; the others keep theirs up to a power: a dense latent of 100
numbers has no room for every contrast there could be."""


def _set_into_air(image: np.ndarray, edge: int) -> np.ndarray:
    """(y, x) in the middle of an (edge, edge) image of zeros; as it is where it is as large."""
    larger = np.zeros((max(edge, image.shape[0]), max(edge, image.shape[1])), np.float32)
    top, left = ((a - b) // 2 for a, b in zip(larger.shape, image.shape, strict=True))
    larger[top : top + image.shape[0], left : left + image.shape[1]] = image
    return larger


def whole_slice(source: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A magnitude slice (y, x) as a (size, size) float32 image with a small random pose, contrast and shading.

    The field of view fills the image; the 99.5th percentile is near 1.
    """
    magnitude = np.abs(source)
    square = fourier_resize(_set_into_air(magnitude, max(magnitude.shape)), size / max(magnitude.shape))
    square = _set_into_air(square, size)
    angle, zoom = rng.normal(0, 0.08), np.exp(rng.normal(0, 0.06))
    turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = np.full(2, (size - 1) / 2)
    offset = centre - turn @ (centre + rng.normal(0, 0.02, 2) * size)
    moved = affine_transform(square, turn, offset, order=3, mode="constant")
    moved = np.maximum(moved, 0)  # cubic splines and the cropped spectrum ring below zero in the air
    if rng.random() < RANDOM_CONTRAST:
        moved = random_contrast(moved, rng)
    else:
        moved = moved ** np.exp(rng.normal(0, 0.12))
    moved *= smooth_shading(moved.shape, rng)
    moved *= np.exp(rng.normal(0, 0.06)) / max(float(np.percentile(moved, 99.5)), 1e-3)
    return moved[:, ::-1] if rng.random() < 0.5 else moved


def demodulated(image: np.ndarray) -> np.ndarray:
    """A complex image (y, x) without its smooth phase, as the reconstruction takes it out of its rough image."""
    whole = torch.from_numpy(np.ascontiguousarray(image, np.complex64))
    return (whole * smooth_phase(whole).conj()).numpy()


def write_vae_bank(path: Path, stacks: list[ImageStack], images: int, seed: int, size: int | None, parts: int) -> None:
    """Write `images` augmented images to `path`: npy (image, parts, edge, edge) float16.

    Parameters
    ----------
    size
        Edge of whole slices; None: three patches of 160x160 from each augmented slice of any size.
    parts
        1: magnitudes; 2: real and imaginary part, demodulated as whole images before they are cropped.
    """
    rng = np.random.default_rng(seed)
    share = stack_shares(stacks)
    edge = size or BANK_PATCH
    partial = path.with_suffix(".partial.npy")
    bank = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=(images, parts, edge, edge))
    place = np.random.default_rng([seed, 1]).permutation(images)  # neighbours come from one slice, a batch shall not
    done = 0
    with tqdm(total=images, desc=f"augmented images -> {path.name}") as bar:
        while done < images:
            stack = stacks[rng.choice(len(stacks), p=share)]
            source = stack.slices[rng.integers(len(stack.slices))]
            if size is not None:
                found = [whole_slice(source, size, rng)]
            else:
                image = demodulated(random_image(source, rng))
                found = [random_crop(image, edge, rng) for _ in range(3)]
            for one in found[: images - done]:
                if size is None and np.abs(one).mean() < 0.08 and rng.random() < 0.9:
                    continue  # mere air
                bank[place[done]] = [one.real, one.imag] if parts == 2 else [np.abs(one)]
                done += 1
                bar.update()
    bank.flush()
    partial.rename(path)


def bank_paths(folder: Path, settings: VAESettings) -> tuple[Path, Path]:
    """Training and validation bank of a run."""
    kind = f"slices-{settings.size}" if settings.size else f"patches-{settings.parts}"
    return folder / f"bank-{kind}-{settings.bank}-{settings.seed}.npy", folder / VALIDATION


def prepare_vae_banks(data: list[Path], folder: Path, settings: VAESettings) -> tuple[Path, Path]:
    """Training and validation bank, made if they are not there; errors as of `bank_data.make_banks`."""
    training, validation = bank_paths(folder, settings)
    write = partial(write_vae_bank, size=settings.size, parts=settings.parts)
    return make_banks(
        data, folder,
        (training, partial(write, images=settings.bank, seed=settings.seed)),
        (validation, partial(write, images=settings.validation, seed=VALIDATION_SEED)),
    )  # fmt: skip


def validation_images(folder: Path, settings: VAESettings) -> torch.Tensor:
    """Held-back images (image, parts, y, x) float32 of a run: whole slices, or patches of 128x128."""
    images = np.load(folder / VALIDATION)
    edge = settings.size or 128
    return torch.from_numpy(images[:, :, :edge, :edge].astype(np.float32))


class ImageBank(torch.utils.data.IterableDataset):
    """Endless stream of images (parts, edge, edge) float32 from a bank.

    Whole slices are flipped left-right alone, patches are cropped, flipped and transposed; the imaginary part's sign is
    random. The real part of a demodulated image is nearly its magnitude: no phase is added.
    """

    def __init__(self, path: Path, edge: int, whole: bool, seed: int, rank: int = 0) -> None:
        largest = np.load(path, mmap_mode="r").shape[-1]
        if edge > largest:
            raise ValueError(f"patch size {edge} is larger than the bank's {largest}")
        self.path, self.edge, self.whole, self.seed, self.rank = path, edge, whole, seed, rank

    def __iter__(self):  # type: ignore[no-untyped-def]
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, self.rank, worker.id if worker else 0])
        bank = np.load(self.path, mmap_mode="r")
        while True:
            y, x = rng.integers(0, bank.shape[-1] - self.edge + 1, 2)
            image = np.asarray(bank[rng.integers(len(bank)), :, y : y + self.edge, x : x + self.edge], np.float32)
            if not self.whole:
                if rng.random() < 0.5:
                    image = image.swapaxes(1, 2)
                image = image[:, :: rng.choice([-1, 1])]
            image = image[:, :, :: rng.choice([-1, 1])].copy()
            image[1:] *= rng.choice([-1, 1])
            yield torch.from_numpy(image)


class VAEData(BankData[VAESettings]):
    """Images for a VAE.

    Parameters
    ----------
    components_of
        Networks that shall begin with the principal components of the bank.
    """

    def __init__(
        self, data: list[Path], folder: Path, settings: VAESettings, seed: int, components_of: VAE | None = None
    ) -> None:
        super().__init__(data, folder, settings, seed)
        self.components_of = components_of

    def prepare_data(self) -> None:
        """Make the banks."""
        prepare_vae_banks(self.data, self.folder, self.settings)

    def setup(self, stage: str) -> None:
        """Called by Lightning before anything takes a copy of the networks."""
        if self.components_of is not None:
            bank = np.load(bank_paths(self.folder, self.settings)[0], mmap_mode="r")
            few = COMPONENTS_FROM if self.settings.size else COMPONENTS_FROM // 10  # a patch has hundreds of blocks
            images = torch.from_numpy(np.asarray(bank[:few], np.float32))
            self.components_of.begin_with_components(images, self.settings.mean_sigma**2)

    def stream(self, rank: int) -> ImageBank:
        """Images of this rank."""
        settings = self.settings
        training, _ = bank_paths(self.folder, settings)
        return ImageBank(training, settings.size or settings.patch, settings.size is not None, self.seed, rank)
