"""What a Pulseq sequence is asked to be: contrast, geometry, and the limits of the scanner."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

SEQUENCES = ("gre", "tse")
VERSIONS = ("1.5", "1.4.1")

SLAB_FRACTION = 0.8
"""Of the field of view along z that a slab excites: a pulse has flanks, and what it excites beyond aliases into the
outer partitions."""

LEAST_PARTITION = 0.1
"""Of a pixel along y: a thinner partition is a mistaken field of view, not a wish."""


class ProtocolError(ValueError):
    """A protocol that cannot be played; the message says what can."""


@dataclass(frozen=True)
class PulseqProtocol:
    """Settings of a sequence. Matrix, field of view and slice thickness come from the mask file.

    Attributes
    ----------
    sequence
        `gre`: spoiled gradient echo, 2-D for a mask of lines, 3-D for one of points. `tse`: turbo spin echo, 2-D.
    te_ms
        Echo time; None: the shortest. Of `tse` it is (effective echo + 1) times the echo spacing, and follows from the
        order of the table.
    tr_ms
        Time between two excitations of a slice; None: the shortest.
    flip_deg, refocusing_deg
        Of the excitation; None: 15 for `gre`, 90 for `tse`. And of the refocusing pulses.
    echo_spacing_ms
        Of `tse`.
    slices, slice_gap_mm
        2-D only; measured interleaved (0, 2, 4, .., 1, 3, ..).
    slab_fraction
        3-D only: thickness of the excited slab over the field of view along z; None: `SLAB_FRACTION`.
    dummy_scans
        Excitations (of `tse`: trains) of each slice in front, without data.
    noise_readouts
        Readouts without excitation at the start, labelled NOISE; 0: none.
    oversampling
        Of the readout.
    dwell_us
        Time per sample; a multiple of 2, so that the k = 0 sample lies in the middle of the readout gradient.
    spoil_cycles
        Cycles of phase over a slice (and over a pixel, along the readout) that spoilers and crushers make.
    rf_spoil_deg
        Increment of the quadratic phase of `gre`.
    negate_phase
        Play ky and kz with the other sign, as Siemens scanners count.
    max_grad_mt_m, max_slew_t_m_s
        Limits of each axis.
    version
        Of the file format.
    """

    sequence: str = "gre"
    te_ms: float | None = None
    tr_ms: float | None = None
    flip_deg: float | None = None
    refocusing_deg: float = 180.0
    echo_spacing_ms: float = 10.0
    slices: int = 1
    slice_gap_mm: float = 0.0
    slab_fraction: float | None = None
    dummy_scans: int = 0
    noise_readouts: int = 16
    oversampling: int = 2
    dwell_us: int = 6
    spoil_cycles: float = 2.0
    rf_spoil_deg: float = 117.0
    negate_phase: bool = False
    max_grad_mt_m: float = 30.0
    max_slew_t_m_s: float = 120.0
    version: str = "1.5"

    def __post_init__(self) -> None:
        for name, allowed in (("sequence", SEQUENCES), ("version", VERSIONS)):
            if getattr(self, name) not in allowed:
                raise ProtocolError(f"{name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and not math.isfinite(value):
                raise ProtocolError(f"{field.name}: expected a finite number, got {value}")
        for name, least in (
            ("slices", 1),
            ("slice_gap_mm", 0),
            ("dummy_scans", 0),
            ("noise_readouts", 0),
            ("oversampling", 1),
            ("dwell_us", 2),
            ("spoil_cycles", 0),
        ):
            if getattr(self, name) < least:
                raise ProtocolError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        for name in ("te_ms", "tr_ms", "echo_spacing_ms", "max_grad_mt_m", "max_slew_t_m_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ProtocolError(f"{name}: expected more than 0, got {value}")
        if self.slab_fraction is not None and not 0 < self.slab_fraction <= 1:
            raise ProtocolError(f"slab_fraction: expected above 0 and at most 1, got {self.slab_fraction:g}")
        if self.dwell_us % 2:
            raise ProtocolError(f"dwell_us: expected a multiple of 2, got {self.dwell_us}")
        if not 0 < self.excitation_deg <= 90:
            raise ProtocolError(f"flip_deg: expected above 0 and at most 90, got {self.flip_deg}")
        # a file of 1.4.1 does not say what a pulse is for; readers take one above 90 degrees for a refocusing pulse
        if not 91 <= self.refocusing_deg <= 180:
            raise ProtocolError(f"refocusing_deg: expected 91 to 180, got {self.refocusing_deg}")

    @property
    def excitation_deg(self) -> float:
        """Flip angle of the excitation."""
        if self.flip_deg is not None:
            return self.flip_deg
        return 15.0 if self.sequence == "gre" else 90.0


def effective_echo(te_ms: float, echo_spacing_ms: float, echo_train: int) -> int:
    """The echo (from 0) of a train that an effective TE asks for.

    Raises
    ------
    ProtocolError
        If the train has no echo at that time.
    """
    echo = round(te_ms / echo_spacing_ms)
    if not 1 <= echo <= echo_train or abs(echo * echo_spacing_ms - te_ms) > 1e-6:
        raise ProtocolError(
            f"te_ms: expected a multiple of the echo spacing {echo_spacing_ms:g} up to "
            f"{echo_train * echo_spacing_ms:g}, got {te_ms:g}"
        )
    return echo - 1
