"""Spoiled gradient echo that plays a table: 2-D slices, or one volume with a second phase encoding along z."""

from __future__ import annotations

import math

import pypulseq as pp
from scanprior.sim.pulseq_parts import RF_DEAD_TIME, Parts, after_centre, fill, shifted, slice_order
from scanprior.sim.pulseq_protocol import PulseqProtocol
from scanprior.sim.sampling_table import SamplingTable


def build_gre(table: SamplingTable, protocol: PulseqProtocol) -> pp.Sequence:
    """Noise scan, dummy scans, then every point of the table, slice by slice within a repetition time.

    An excitation is: pulse; prephasing and phase encoding; wait for TE; readout; rewinding and spoiling; wait for TR.

    Raises
    ------
    ProtocolError
        If TE or TR cannot be played, or a gradient is beyond the limits.
    """
    parts = Parts(table, protocol)
    rf, select, _ = pp.make_sinc_pulse(
        math.radians(protocol.excitation_deg), duration=2e-3 if parts.volume else 3e-3, slice_thickness=parts.thickness,
        apodization=0.5, time_bw_product=8 if parts.volume else 4, delay=RF_DEAD_TIME, system=parts.system,
        return_gz=True, use="excitation",
    )  # fmt: skip
    tail, selected = after_centre(rf, select)
    along_y, along_z = parts.phase_areas()
    reach_z = (parts.matrix[2] // 2) / parts.fov[2] if parts.volume else 0.0
    pixel = parts.fov[0] / parts.matrix[0]
    depth = parts.fov[2] / parts.matrix[2]  # of a slice, or of a partition

    before = max(map(parts.shortest, (parts.half_area, parts.largest_phase(), selected + reach_z)))
    spoil_z = parts.spoiler(depth)
    after = max(map(parts.shortest, (parts.spoiler(pixel), parts.largest_phase(), spoil_z + reach_z)))
    prephase = parts.trapezoid("x", -parts.half_area, before)
    spoil = parts.trapezoid("x", parts.spoiler(pixel), after)
    te_played = tail + before + parts.half_readout
    te_wait = fill(protocol.te_ms, te_played, "te_ms")
    excitation = pp.calc_duration(rf, select)
    visit = excitation + before + te_wait + pp.calc_duration(parts.readout, parts.adc) + after
    tr_wait = fill(protocol.tr_ms, visit, "tr_ms", protocol.slices)

    sequence = pp.Sequence(system=parts.system)
    parts.noise_scan(sequence)
    positions, phase, step = parts.slice_positions(), 0.0, 0.0
    dummies = [None] * protocol.dummy_scans
    for row in [*dummies, *range(len(along_y))]:
        # quadratic phase: the increment itself grows by the same angle each time
        phase = (phase + step) % 360.0
        step = (step + protocol.rf_spoil_deg) % 360.0
        ky, kz = (0.0, 0.0) if row is None else (float(along_y[row]), float(along_z[row]))
        for slice_ in slice_order(protocol.slices):
            sequence.add_block(shifted(rf, select, positions[slice_], math.radians(phase)), select)
            sequence.add_block(prephase, parts.trapezoid("y", ky, before), parts.trapezoid("z", kz - selected, before))
            if te_wait:
                sequence.add_block(pp.make_delay(te_wait))
            if row is None:
                sequence.add_block(parts.readout)
            else:
                parts.adc.phase_offset = math.radians(phase)
                sequence.add_block(parts.readout, parts.adc, *parts.labels(row, slice_))
            sequence.add_block(spoil, parts.trapezoid("y", -ky, after), parts.trapezoid("z", spoil_z - kz, after))
            if tr_wait:
                sequence.add_block(pp.make_delay(tr_wait))
    parts.define(sequence, te_played + te_wait, (visit + tr_wait) * protocol.slices)
    return sequence
