"""Coil compression by singular value decomposition.

Source: Buehrer, Pruessmann, Boesiger, Kozerke, "Array compression for MRI with large coil arrays", MRM 2007.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scanprior.gadgets.errors import ScanError


@dataclass(frozen=True)
class Compression:
    """Combines coils into fewer virtual ones.

    Attributes
    ----------
    matrix
        (virtual coil, coil) complex64 with orthonormal rows, so that white noise stays white and as strong.
    energy
        Fraction of the calibration's energy that the virtual coils hold.
    """

    matrix: np.ndarray
    energy: float

    @classmethod
    def from_calibration(cls, kspace: np.ndarray, coils: int | float) -> Compression:
        """Find the virtual coils.

        Parameters
        ----------
        kspace
            (coil, ...) complex64, whitened: the calibration region.
        coils
            A whole number: how many virtual coils (all, if there are fewer). A fraction, 0 < coils < 1: as few as hold
            this part of the energy.

        Raises
        ------
        ScanError
            The calibration is all zero.
        ValueError
            `coils` is neither.
        """
        if not (0 < coils < 1 or (coils >= 1 and coils == int(coils))):
            raise ValueError(f"coils is {coils}, expected a whole number from 1 or an energy fraction between 0 and 1")
        flat = kspace.reshape(len(kspace), -1).astype(np.complex128)
        values, vectors = np.linalg.eigh(flat @ flat.conj().T)
        values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
        if not values[0] > 0:
            raise ScanError("coils cannot be compressed: the calibration region is all zero")
        energy = np.cumsum(values) / values.sum()
        count = int(np.searchsorted(energy, coils)) + 1 if coils < 1 else int(coils)
        count = min(count, len(values))
        return cls(vectors[:, :count].conj().T.astype(np.complex64), float(energy[count - 1]))

    def __call__(self, kspace: np.ndarray) -> np.ndarray:
        """Compress `kspace` (coil, ...)."""
        if len(kspace) != self.matrix.shape[1]:
            raise ScanError(f"the coil compression takes {self.matrix.shape[1]} coils, the k-space has {len(kspace)}")
        return (self.matrix @ kspace.reshape(len(kspace), -1)).reshape(len(self.matrix), *kspace.shape[1:])
