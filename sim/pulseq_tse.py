"""Turbo spin echo that plays a table of lines: a train of refocused echoes after each excitation, 2-D slices."""

from __future__ import annotations

import math

import numpy as np
import pypulseq as pp
from scanprior.sim.acquisition_order import nearest_to_dc
from scanprior.sim.pulseq_parts import RASTER, RF_DEAD_TIME, Parts, after_centre, fill, shifted, slice_order
from scanprior.sim.pulseq_protocol import ProtocolError, PulseqProtocol
from scanprior.sim.sampling_table import SamplingTable


def effective_te_ms(table: SamplingTable, protocol: PulseqProtocol) -> float:
    """The echo time at which the table measures DC (or the point nearest to it), in ms."""
    nearest = nearest_to_dc(table.order.points, table.mask.mask.shape)
    return float((table.order.echo[nearest] + 1) * protocol.echo_spacing_ms)


def build_tse(table: SamplingTable, protocol: PulseqProtocol) -> pp.Sequence:
    """Noise scan, dummy trains, then every shot of the table, slice by slice within a repetition time.

    Excitation along y, refocusing along x of the rotating frame (CPMG); crushers on both sides of each refocusing
    pulse; the phase encoding is rewound after each echo. An echo for which the table has no line is played without
    phase encoding and without data.

    Raises
    ------
    ProtocolError
        If echo spacing, TE or TR cannot be played, or a gradient is beyond the limits.
    """
    parts = Parts(table, protocol)
    if parts.volume:
        raise ProtocolError("sequence tse: expected a mask of lines, got one of points; gre plays it in 3-D")
    te = effective_te_ms(table, protocol) * 1e-3
    if protocol.te_ms is not None and abs(protocol.te_ms * 1e-3 - te) > 1e-9:
        raise ProtocolError(f"te_ms: the table measures DC at {te * 1e3:g} ms, got {protocol.te_ms:g}")
    pulses = [
        pp.make_sinc_pulse(
            math.radians(angle), duration=duration, slice_thickness=parts.thickness, apodization=0.5,
            time_bw_product=4, delay=RF_DEAD_TIME, system=parts.system, return_gz=True, use=use,
        )[:2]
        for angle, duration, use in (
            (protocol.excitation_deg, 2.4e-3, "excitation"),
            (protocol.refocusing_deg, 2.4e-3, "refocusing"),
        )
    ]  # fmt: skip
    (excite, excite_z), (refocus, refocus_z) = pulses
    tail, selected = after_centre(excite, excite_z)
    refocus_tail, _ = after_centre(refocus, refocus_z)
    refocus_head = pp.calc_duration(refocus, refocus_z) - refocus_tail
    crush = parts.spoiler(parts.thickness)

    # before the first refocusing pulse: rephase the slice, prephase the readout (the pulse turns its sign), crush
    encode = max(map(parts.shortest, (crush, parts.largest_phase())))
    first = max(map(parts.shortest, (parts.half_area, crush - selected)))
    readout_tail = pp.calc_duration(parts.readout, parts.adc) - parts.half_readout
    half = protocol.echo_spacing_ms * 1e-3 / 2
    if abs(half / RASTER - round(half / RASTER)) > 1e-6:
        raise ProtocolError(f"echo_spacing_ms: expected a multiple of 0.02, got {protocol.echo_spacing_ms:g}")
    # what stands between excitation and refocusing, refocusing and echo, echo and the next refocusing
    sides = (
        tail + first + refocus_head,
        refocus_tail + encode + parts.half_readout,
        readout_tail + encode + refocus_head,
    )
    fill(protocol.echo_spacing_ms, 2 * max(sides), "echo_spacing_ms")
    waits = [fill(half * 1e3, side, "echo_spacing_ms") for side in sides]
    train = table.settings.echo_train
    end = parts.trapezoid("z", crush, encode)
    visit = pp.calc_duration(excite, excite_z) - tail + train * 2 * half + readout_tail + encode
    shots = np.split(np.arange(len(table.order.shot)), np.flatnonzero(np.diff(table.order.shot)) + 1)
    tr_wait = fill(protocol.tr_ms, visit, "tr_ms", protocol.slices)

    sequence = pp.Sequence(system=parts.system)
    parts.noise_scan(sequence)
    positions = parts.slice_positions()
    along_y, _ = parts.phase_areas()
    for shot in [*[np.zeros(0, int)] * protocol.dummy_scans, *shots]:
        row_of_echo = {int(table.order.echo[row]): int(row) for row in shot}
        for slice_ in slice_order(protocol.slices):
            position = positions[slice_]
            sequence.add_block(shifted(excite, excite_z, position, math.pi / 2), excite_z)
            rewind, ahead, wait = 0.0, crush - selected, waits[0]
            for echo in range(train):
                lead = first if echo == 0 else encode
                events = [parts.trapezoid("z", ahead, lead)]
                events.append(
                    parts.trapezoid("x", parts.half_area, lead) if echo == 0 else parts.trapezoid("y", rewind, lead)
                )
                sequence.add_block(*events)
                _wait(sequence, wait)
                sequence.add_block(shifted(refocus, refocus_z, position, 0.0), refocus_z)
                _wait(sequence, waits[1])
                row = row_of_echo.get(echo)
                area = 0.0 if row is None else float(along_y[row])
                sequence.add_block(parts.trapezoid("y", area, encode), parts.trapezoid("z", crush, encode))
                if row is None:
                    sequence.add_block(parts.readout)
                else:
                    parts.adc.phase_offset = math.pi / 2
                    sequence.add_block(parts.readout, parts.adc, *parts.labels(row, slice_))
                rewind, ahead, wait = -area, crush, waits[2]
            sequence.add_block(end, parts.trapezoid("y", rewind, encode))
            _wait(sequence, tr_wait)
    parts.define(sequence, te, (visit + tr_wait) * protocol.slices)
    return sequence


def _wait(sequence: pp.Sequence, seconds: float) -> None:
    if seconds > 0:
        sequence.add_block(pp.make_delay(seconds))
