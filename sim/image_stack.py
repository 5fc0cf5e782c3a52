"""Slices to train on, as every source of them hands them on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


class SourceError(ValueError):
    """A file that cannot give training images. The message says what was found and what was expected."""


@dataclass
class ImageStack:
    """Slices of one file, or of one DICOM series.

    Attributes
    ----------
    name
        File name, for the model card.
    slices
        List of (y, x), sizes may differ: float32 magnitudes or complex64 images, the 99.5th percentile of the
        magnitude of their volume at 1.
    subjects
        Subject of each slice, so that a split can go by subject.
    """

    name: str
    slices: list[np.ndarray]
    subjects: list[str] = field(repr=False)

    def __str__(self) -> str:
        """What it holds, in a line. The subjects are counted, not named."""
        sizes = sorted({one.shape for one in self.slices})
        size = " to ".join(f"{rows}x{columns}" for rows, columns in dict.fromkeys((sizes[0], sizes[-1])))
        kind = "complex" if any(np.iscomplexobj(one) for one in self.slices) else "magnitude"
        return f"{self.name}: {len(self.slices)} slices, {len(set(self.subjects))} subjects, {size}, {kind}"


def stack_of(name: str, slices: Sequence[np.ndarray], subjects: Sequence[str]) -> ImageStack:
    """An `ImageStack` of one volume's slices: scaled together, kept complex where they are.

    Parameters
    ----------
    name, slices, subjects
        As in `ImageStack`; slices (y, x) of any numeric type and scale.

    Raises
    ------
    SourceError
        When there is no slice, or they hold values that are not finite, or nothing but zeros.
    """
    if not len(slices):
        raise SourceError(f"{name}: expected at least one slice, found none")
    kept = [one.astype(np.complex64 if np.iscomplexobj(one) else np.float32) for one in slices]
    magnitude = np.concatenate([np.abs(one).ravel() for one in kept])
    largest = magnitude.max()
    if not np.isfinite(largest):
        raise SourceError(f"{name}: its images hold values that are not finite")
    if largest == 0:
        raise SourceError(f"{name}: its images hold nothing but zeros")
    # air would make the percentile depend on how much of it there is around the head
    scale = np.float32(np.percentile(magnitude[magnitude > 0.02 * largest], 99.5))
    return ImageStack(name, [one / scale for one in kept], list(subjects))


def anonymous(identity: str) -> str:
    """A short name for a person that does not tell who it is: it is kept in memory and compared, never shown."""
    return hashlib.sha256(identity.encode()).hexdigest()[:16]
