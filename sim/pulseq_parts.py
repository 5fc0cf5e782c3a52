"""What the Pulseq sequences share: limits, readout, phase encoding, labels, noise scan, definitions."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pypulseq as pp
from scanprior.sim.pulseq_protocol import LEAST_PARTITION, SLAB_FRACTION, ProtocolError, PulseqProtocol
from scanprior.sim.sampling_table import SamplingTable

RASTER = 1e-5
"""Raster of gradients and blocks, in s."""

RF_DEAD_TIME = 100e-6
"""Before a pulse, in s; like the other dead times, what the Pulseq interpreters' demonstrations allow for."""

FINE = 999999.0
"""Largest amplitude in Hz/m of what encodes and spoils: files hold six digits, so that beyond it the error of an
amplitude is ten times as large, and of a line of 256 half a thousandth of a line."""


def on_raster(seconds: float) -> float:
    """The next time on the raster of gradients and blocks."""
    return math.ceil(seconds / RASTER - 1e-6) * RASTER


class Parts:
    """The events of a sequence that plays a table.

    Attributes
    ----------
    system
        Limits of the scanner.
    readout, adc
        Gradient along x and the samples under it; the sample N // 2 lies in the middle of the gradient.
    half_readout
        Time from the start of the readout gradient to that sample, in s.
    matrix, fov, thickness
        Samples (x, y, z), lengths (x, y, z) in m, and thickness of a slice or of the slab in m.
    """

    def __init__(self, table: SamplingTable, protocol: PulseqProtocol) -> None:
        self.table, self.protocol = table, protocol
        self.matrix = table.mask.matrix
        self.fov = tuple(length * 1e-3 for length in table.mask.fov_mm)
        self.thickness = self.fov[2]
        self.volume = table.mask.kind == "points"
        if self.volume:
            self._check_volume()
            self.thickness *= SLAB_FRACTION if protocol.slab_fraction is None else protocol.slab_fraction
        elif protocol.slab_fraction is not None:
            raise ProtocolError("slab_fraction: a mask of lines has slices; only one of points has a slab")
        self.system = pp.Opts(
            max_grad=protocol.max_grad_mt_m, grad_unit="mT/m", max_slew=protocol.max_slew_t_m_s, slew_unit="T/m/s",
            rf_dead_time=RF_DEAD_TIME, rf_ringdown_time=30e-6, adc_dead_time=10e-6,
        )  # fmt: skip
        dwell = protocol.dwell_us * 1e-6
        self.samples = self.matrix[0] * protocol.oversampling
        if self.samples % 4:
            raise ProtocolError(
                f"oversampling: scanners take readouts of a multiple of 4 samples, {self.matrix[0]} columns times "
                f"{protocol.oversampling} is {self.samples}"
            )
        amplitude = 1 / (self.fov[0] * protocol.oversampling * dwell)
        if amplitude > self.system.max_grad:
            least = 2 * math.ceil(protocol.dwell_us * amplitude / self.system.max_grad / 2)
            raise ProtocolError(
                f"dwell_us: the readout gradient for a field of view of {table.mask.fov_mm[0]} mm needs at least "
                f"{least} with max_grad_mt_m {protocol.max_grad_mt_m:g}, got {protocol.dwell_us}"
            )
        # the k = 0 sample, half a dwell time right of the middle of the samples, is put in the middle of the gradient
        flat = math.ceil((self.samples + 1) * dwell / (2 * RASTER) - 1e-6) * 2 * RASTER
        self.readout = pp.make_trapezoid("x", amplitude=amplitude, flat_time=flat, system=self.system)
        self.half_readout = self.readout.rise_time + flat / 2
        delay = round((self.half_readout - (self.samples // 2 + 0.5) * dwell) * 1e6) * 1e-6
        self.adc = pp.make_adc(self.samples, dwell=dwell, delay=delay, system=self.system)
        self.half_area = amplitude * (self.readout.rise_time / 2 + flat / 2)

    def _check_volume(self) -> None:
        if self.protocol.slices > 1:
            raise ProtocolError(f"slices: a mask of points is a volume, of 1 slab, got {self.protocol.slices}")
        partition, pixel = (self.fov[axis] * 1e3 / self.matrix[axis] for axis in (2, 1))
        if partition < LEAST_PARTITION * pixel:
            raise ProtocolError(
                f"fov_mm: {self.fov[2] * 1e3:g} mm along z are {self.matrix[2]} partitions of {partition:.3g} mm, "
                f"expected at least a tenth of a pixel along y ({pixel:.3g} mm): give the field of view of the volume"
            )

    def shortest(self, area: float) -> float:
        """Duration of the shortest trapezoid of an area in 1/m, in s on the raster."""
        return pp.calc_duration(self._within(channel="x", area=max(abs(area), 1e-3)))

    def trapezoid(self, channel: str, area: float, duration: float) -> SimpleNamespace:
        """A trapezoid of an area in 1/m that takes `duration`."""
        return self._within(channel=channel, area=area, duration=duration)

    def _within(self, **events: Any) -> SimpleNamespace:
        return pp.make_trapezoid(**events, max_grad=min(self.system.max_grad, FINE), system=self.system)

    def phase_areas(self) -> tuple[np.ndarray, np.ndarray]:
        """Areas in 1/m of the phase encoding along y and z of each point of the table."""
        sign = -1.0 if self.protocol.negate_phase else 1.0
        offsets = self.table.order.points - np.array(self.matrix[1:]) // 2
        along_z = offsets[:, 1] / self.fov[2] if self.volume else np.zeros(len(offsets))
        return sign * offsets[:, 0] / self.fov[1], sign * along_z

    def largest_phase(self) -> float:
        """The largest area in 1/m of phase encoding along y that the matrix has."""
        return (self.matrix[1] // 2) / self.fov[1]

    def slice_positions(self) -> np.ndarray:
        """Along z, in m."""
        count = self.protocol.slices
        return (np.arange(count) - (count - 1) / 2) * (self.thickness + self.protocol.slice_gap_mm * 1e-3)

    def spoiler(self, length: float) -> float:
        """Area in 1/m that makes the asked cycles over a length in m."""
        return self.protocol.spoil_cycles / length

    def labels(self, row: int, slice_: int) -> list[SimpleNamespace]:
        """Labels of the readout of a point. All are set each time, for they persist."""
        ky, kz = self.table.order.points[row].tolist()
        acs = bool(self.table.in_acs[row])
        values = {"NOISE": 0, "LIN": ky, "PAR": kz, "SLC": slice_, "REF": acs, "IMA": acs}
        if self.table.settings.echo_train > 1:
            values["SEG"] = int(self.table.order.echo[row])
        return [pp.make_label(name, "SET", value) for name, value in values.items()]

    def noise_scan(self, sequence: pp.Sequence) -> None:
        """Add the readouts without excitation."""
        adc = pp.make_adc(self.samples, dwell=self.adc.dwell, delay=20e-6, system=self.system)
        length = on_raster(adc.delay + self.samples * adc.dwell + 20e-6)
        for _ in range(self.protocol.noise_readouts):
            sequence.add_block(adc, pp.make_delay(length), pp.make_label("NOISE", "SET", 1))
        if self.protocol.noise_readouts:
            # the last ring of the console's filters, before the first pulse
            sequence.add_block(pp.make_delay(1e-3))

    def define(self, sequence: pp.Sequence, te: float, tr: float) -> None:
        """Write the definitions that downstream tools expect; lengths in m, times in s."""
        x, y, _ = self.matrix
        fov_z = self.fov[2]
        if not self.volume:
            positions = self.slice_positions()
            fov_z = float(positions[-1] - positions[0] + self.thickness)
        for key, value in {
            "Name": f"scanprior_{self.protocol.sequence}{'3d' if self.volume else '2d'}",
            "FOV": [self.fov[0], self.fov[1], fov_z],
            "SlicePositions": self.slice_positions().tolist(),
            "SliceThickness": self.thickness,
            "SliceGap": self.protocol.slice_gap_mm * 1e-3,
            "TE": te,
            "TR": tr,
            "kSpaceCenterLine": y // 2,
            "PhaseResolution": (self.fov[0] / x) / (self.fov[1] / y),
            "PhaseSign": -1 if self.protocol.negate_phase else 1,
            "Matrix": list(self.matrix),
            "MaskHash": self.table.mask.sha256,
        }.items():
            sequence.set_definition(key, value)


def slice_order(slices: int) -> list[int]:
    """0, 2, 4, .., 1, 3, ..: neighbours are not excited one after the other."""
    return [*range(0, slices, 2), *range(1, slices, 2)]


def after_centre(rf: SimpleNamespace, gradient: SimpleNamespace) -> tuple[float, float]:
    """Time in s from the middle of a pulse to the end of its block, and the gradient's area in 1/m in that time."""
    middle = rf.delay + pp.calc_rf_center(rf)[0]
    flat_end = gradient.delay + gradient.rise_time + gradient.flat_time
    area = gradient.amplitude * (flat_end - middle + gradient.fall_time / 2)
    return pp.calc_duration(rf, gradient) - middle, area


def shifted(rf: SimpleNamespace, gradient: SimpleNamespace, position: float, phase: float) -> SimpleNamespace:
    """A pulse for a slice at `position` in m, whose phase in its middle is `phase` in radians."""
    moved = SimpleNamespace(**vars(rf))
    moved.freq_offset = gradient.amplitude * position
    moved.phase_offset = (phase - 2 * math.pi * moved.freq_offset * pp.calc_rf_center(rf)[0]) % (2 * math.pi)
    return moved


def fill(asked_ms: float | None, played: float, name: str, visits: int = 1) -> float:
    """Time in s to wait so that `visits` visits of `played` seconds each take `asked_ms` (None: no wait).

    Raises
    ------
    ProtocolError
        If it cannot be that short; the message says how short it can be.
    """
    if asked_ms is None:
        return 0.0
    wait = round((asked_ms * 1e-3 / visits - played) / RASTER) * RASTER
    if wait < -RASTER / 2:
        least = math.ceil(visits * played * 1e5 - 1e-6) / 100
        raise ProtocolError(f"{name}: expected at least {least:.2f} with these settings, got {asked_ms:g}")
    return max(wait, 0.0)
