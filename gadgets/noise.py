"""Noise covariance, from the noise scan or from the edge of k-space, and the whitening that follows from it.

After whitening, the noise is uncorrelated between coils and E|n|^2 = 2 per complex sample: unit variance in the real
and in the imaginary part, Gadgetron's SNR units. Hence sigma = sqrt(2).
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
from scanprior.gadgets.errors import ScanError
from scanprior.gadgets.mrd import Acquisition
from scanprior.gadgets.slices import SliceData
from scipy.linalg import solve_triangular
from scipy.special import gammaincinv

log = logging.getLogger(__name__)

SIGMA = math.sqrt(2.0)
DEAD = 1e-8  # a coil with this fraction of the median coil's noise power is not connected
MIN_EIGENVALUE = 1e-5  # of the correlation matrix; below, its inverse is rounding error
SAMPLES_PER_COIL = 4  # fewer samples make a covariance matrix that needs regularisation
EDGE_FRACTION, MAX_EDGE_FRACTION, EDGE_SAMPLES_PER_COIL = 0.02, 0.25, 50
MAX_EDGE_LINES = 4096


@dataclass(frozen=True)
class Whitening:
    """How to whiten k-space.

    Attributes
    ----------
    matrix
        (kept coil, coil) complex64.
    sigma
        Standard deviation of the complex noise afterwards: E|n|^2 = sigma^2.
    source
        "scan", "estimated", "upstream" or "not whitened".
    dropped
        Coils that were left out because they are dead.
    regularised
        Whether the covariance was singular, or its samples too few, and was drawn towards its diagonal.
    """

    matrix: np.ndarray
    sigma: float
    source: str
    dropped: tuple[int, ...] = ()
    regularised: bool = False

    @classmethod
    def upstream(cls, coils: int) -> Whitening:
        """No whitening: it was done before (Gadgetron's NoiseAdjust), to SNR units."""
        return cls(np.eye(coils, dtype=np.complex64), SIGMA, "upstream")

    @classmethod
    def identity(cls, coils: int, noise: Noise | None) -> Whitening:
        """No whitening: coils stay as they were received. `noise` tells the noise level; None: nobody asks for it."""
        sigma = 0.0 if noise is None else math.sqrt(float(noise.covariance.diagonal().real.mean()))
        return cls(np.eye(coils, dtype=np.complex64), sigma, "not whitened")

    def __call__(self, kspace: np.ndarray) -> np.ndarray:
        """Whiten `kspace` (coil, ...) complex64.

        Raises
        ------
        ScanError
            Another number of coils than in the noise.
        """
        if len(kspace) != self.matrix.shape[1]:
            raise ScanError(f"the noise covariance has {self.matrix.shape[1]} coils, the k-space {len(kspace)}")
        if self.source in ("upstream", "not whitened"):
            return kspace
        flat = kspace.reshape(len(kspace), -1)
        return (self.matrix @ flat).reshape(len(self.matrix), *kspace.shape[1:])


@dataclass(frozen=True)
class Noise:
    """Noise covariance of a scan.

    Attributes
    ----------
    covariance
        (coil, coil) complex128, E[n n^H] of one complex sample.
    dwell_us
        Dwell time of these samples in microseconds, 0 if unknown.
    samples
        How many samples it comes from.
    source
        "scan" or "estimated".
    """

    covariance: np.ndarray
    dwell_us: float
    samples: int
    source: str

    def whitening(self, dwell_us: float, bandwidth: float) -> Whitening:
        """Whitening of readouts with `dwell_us`: inv(chol(cov)) * sqrt(2 * dwell * bandwidth / noise_dwell).

        Parameters
        ----------
        dwell_us
            Dwell time of the image, microseconds; 0 if unknown (then taken as that of the noise).
        bandwidth
            relativeReceiverNoiseBandwidth: how much of the noise scan's bandwidth the receiver let through. Not used
            for an estimate from the image itself, which has the bandwidth of the image.

        Raises
        ------
        ScanError
            No coil has noise.
        """
        power = self.covariance.diagonal().real
        live = power > DEAD * np.median(power[power > 0]) if (power > 0).any() else np.zeros(len(power), bool)
        if not live.any():
            raise ScanError("the noise covariance is zero in all coils: the noise readouts hold no noise")
        dropped = tuple(int(coil) for coil in np.flatnonzero(~live))
        if dropped:
            log.warning("coils %s have no noise: dropped", ", ".join(map(str, dropped)))
        scale = np.sqrt(power[live])
        correlation = self.covariance[np.ix_(live, live)] / np.outer(scale, scale)
        smallest = float(np.linalg.eigvalsh(correlation)[0])
        coils = len(scale)
        regularised = smallest < MIN_EIGENVALUE or self.samples < SAMPLES_PER_COIL * coils
        if regularised:
            weight = min(1.0, max(coils / max(self.samples, 1), 1e-3))
            log.warning(
                "noise covariance of %d coils from %d samples, smallest eigenvalue %.1e: regularised by %.3f",
                coils, self.samples, smallest, weight,
            )  # fmt: skip
            correlation = (1 - weight) * correlation + weight * np.eye(coils)
        factor = 2.0
        if self.source == "scan":
            ratio = dwell_us / self.dwell_us if dwell_us > 0 and self.dwell_us > 0 else 1.0
            factor *= ratio * bandwidth
        inverse = solve_triangular(np.linalg.cholesky(correlation), np.eye(coils), lower=True) / scale
        matrix = np.zeros((coils, len(power)), np.complex64)
        matrix[:, live] = inverse * math.sqrt(factor)
        return Whitening(matrix, SIGMA, self.source, dropped, regularised)


class NoiseScan:
    """Collects noise readouts (flag 19). Keeps only their covariance, so it needs no memory."""

    def __init__(self) -> None:
        self.readouts = 0
        self.samples = 0
        self.dwell_us = 0.0
        self._sum: np.ndarray | None = None

    def add(self, acquisition: Acquisition) -> None:
        """Take a noise readout (coil, sample), checked to be finite.

        Raises
        ------
        ScanError
            It differs from the noise readouts before it in its channels or its dwell time.
        """
        data = acquisition.data.astype(np.complex128)
        dwell = float(acquisition.head["sample_time_us"])
        if self._sum is None:
            self._sum, self.dwell_us = np.zeros((len(data), len(data)), np.complex128), dwell
        if len(data) != len(self._sum):
            raise ScanError(f"a noise readout has {len(data)} channels, those before it {len(self._sum)}")
        if dwell != self.dwell_us:
            raise ScanError(f"a noise readout has a dwell time of {dwell} us, those before it {self.dwell_us} us")
        self._sum += data @ data.conj().T
        self.readouts += 1
        self.samples += data.shape[1]

    def noise(self) -> Noise | None:
        """Covariance of what has come so far; None if there was no noise readout.

        Raises
        ------
        ScanError
            All samples are zero.
        """
        if self._sum is None or not self.samples:
            return None
        if not self._sum.any():
            raise ScanError(f"the noise scan is corrupt: all samples of its {self.readouts} readouts are zero")
        return Noise(self._sum / self.samples, self.dwell_us, self.samples, "scan")


def estimate_noise(data: SliceData) -> Noise:
    """Noise covariance from the outermost samples of k-space, for scans without a noise scan.

    There the signal is weakest. Samples that are zero in all coils were filled in, not acquired, and are left out; so
    are those that stick out of the noise (0.1 % of Gaussian noise does), until nothing changes.

    Raises
    ------
    ScanError
        Too little was acquired, or it is all zero.
    """
    coils, size_z, size_y, width = data.kspace.shape
    columns = np.arange(*data.readout)
    kz, ky = np.nonzero(data.counts)
    radius_line = ((kz - size_z // 2) / size_z) ** 2 + ((ky - size_y // 2) / size_y) ** 2
    outer = np.argsort(-radius_line, kind="stable")[:MAX_EDGE_LINES]
    kz, ky, radius_line = kz[outer], ky[outer], radius_line[outer]
    radius = (radius_line[:, None] + ((columns - width // 2) / width) ** 2).ravel()
    samples = data.kspace[:, kz, ky, data.readout[0] : data.readout[1]].reshape(coils, -1)
    acquired = np.flatnonzero(samples.any(0))
    if not data.kspace.any():
        raise ScanError(f"{data.key} has only zeros in its {np.count_nonzero(data.counts)} lines")
    if len(acquired) < 2 * coils:
        raise ScanError(
            f"{data.key} has no noise scan, and {len(acquired)} non-zero samples of {coils} coils: "
            "too few to estimate the noise from"
        )
    wanted = max(EDGE_SAMPLES_PER_COIL * coils, EDGE_FRACTION * len(acquired))
    wanted = int(min(wanted, max(MAX_EDGE_FRACTION * len(acquired), 2 * coils)))
    chosen = acquired[np.argsort(-radius[acquired], kind="stable")[:wanted]]
    weight = np.sqrt(np.repeat(data.counts[kz, ky], len(columns))[chosen])
    noise = samples[:, chosen].astype(np.complex128) * weight  # as if not averaged

    keep = _gaussian_part(noise)
    covariance = noise[:, keep] @ noise[:, keep].conj().T / keep.sum()
    return Noise(covariance, data.dwell_us, int(keep.sum()), "estimated")


def _gaussian_part(noise: np.ndarray) -> np.ndarray:
    """Which of the samples (coil, sample) belong to the Gaussian bulk: a mask (sample,) bool."""
    coils, samples = noise.shape
    power = np.median(np.abs(noise) ** 2, axis=1) / math.log(2)  # |n|^2 is exponential
    covariance = np.diag(power).astype(np.complex128)
    limit = gammaincinv(coils, 0.999)  # scipy.stats would say it more plainly, and takes half a second to import
    keep = np.ones(samples, bool)
    for _ in range(10):
        distance = np.einsum("ik,ik->k", noise.conj(), np.linalg.pinv(covariance, hermitian=True) @ noise).real
        inside = distance < limit
        if inside.sum() < max(2 * coils, samples // 4):
            break  # not Gaussian at all: what were kept then would be chosen, not measured
        if (inside == keep).all():
            break
        keep = inside
        covariance = noise[:, keep] @ noise[:, keep].conj().T / keep.sum()
    return keep
