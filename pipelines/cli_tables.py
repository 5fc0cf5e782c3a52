"""`scanprior export-mask` and `scanprior read-table`: masks as the tables and sequences that a scanner plays."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from scanprior.sim.acquisition_order import ORDERS, OrderSettings
from scanprior.sim.mask_file import MaskFileError, load_mask, save_mask
from scanprior.sim.pulseq_protocol import SEQUENCES, VERSIONS, ProtocolError, PulseqProtocol
from scanprior.sim.pulseq_protocol import effective_echo as effective_echo_of
from scanprior.sim.sampling_table import SamplingTable, TableError, sidecar_path
from scanprior.sim.tables import TABLE_FORMATS, TableFormat, read_table, write_table

from .option_numbers import lengths

_OF_ONE_SEQUENCE = {"echo_spacing_ms": "tse", "refocusing_deg": "tse", "rf_spoil_deg": "gre"}
_PULSEQ = "Pulseq"


def export_mask(
    mask: Annotated[Path, typer.Argument(help="Mask file (.npz, its .json beside it).")],
    format_: Annotated[str, typer.Option("--format", help=f"One of {', '.join(TABLE_FORMATS)}.")],
    out: Annotated[Path | None, typer.Option(help="File to write; else beside the mask, with its name.")] = None,
    order: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(ORDERS)}; else linear, and interleaved for tse. Where an early or late echo measures DC, "
            "interleaved puts the first echo beside the last near DC, centre-out does not."
        ),
    ] = None,
    echo_train: Annotated[int, typer.Option(min=1, help="Points a shot measures.")] = 1,
    effective_echo: Annotated[
        int | None, typer.Option(help="Echo of the train, from 0, that measures DC; see --order.")
    ] = None,
    fov: Annotated[str | None, typer.Option(help="Field of view x,y,z in mm (z: thickness); else the mask's.")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG of the order to write.")] = None,
    sequence: Annotated[
        str | None, typer.Option(help=f"{', '.join(SEQUENCES)}; else gre.", rich_help_panel=_PULSEQ)
    ] = None,
    te: Annotated[
        float | None, typer.Option(help="ms; else the shortest. Of tse the effective one.", rich_help_panel=_PULSEQ)
    ] = None,
    tr: Annotated[float | None, typer.Option(help="ms; else the shortest.", rich_help_panel=_PULSEQ)] = None,
    flip: Annotated[float | None, typer.Option(help="Degrees; else gre 15, tse 90.", rich_help_panel=_PULSEQ)] = None,
    refocusing: Annotated[float | None, typer.Option(help="Degrees, tse; else 180.", rich_help_panel=_PULSEQ)] = None,
    echo_spacing: Annotated[float | None, typer.Option(help="ms, tse; else 10.", rich_help_panel=_PULSEQ)] = None,
    slices: Annotated[int | None, typer.Option(help="2-D; else 1.", rich_help_panel=_PULSEQ)] = None,
    gap: Annotated[float | None, typer.Option(help="mm between slices; else 0.", rich_help_panel=_PULSEQ)] = None,
    slab_fraction: Annotated[
        float | None, typer.Option(help="3-D: slab over field of view along z; else 0.8.", rich_help_panel=_PULSEQ)
    ] = None,
    dummies: Annotated[
        int | None, typer.Option(help="Excitations of each slice before the data; else 0.", rich_help_panel=_PULSEQ)
    ] = None,
    noise_readouts: Annotated[
        int | None, typer.Option(help="Of the noise scan at the start; else 16.", rich_help_panel=_PULSEQ)
    ] = None,
    oversampling: Annotated[int | None, typer.Option(help="Of the readout; else 2.", rich_help_panel=_PULSEQ)] = None,
    dwell: Annotated[int | None, typer.Option(help="us a sample, even; else 6.", rich_help_panel=_PULSEQ)] = None,
    spoil_cycles: Annotated[
        float | None, typer.Option(help="Over a pixel and a slice; else 2.", rich_help_panel=_PULSEQ)
    ] = None,
    rf_spoil: Annotated[float | None, typer.Option(help="Degrees, gre; else 117.", rich_help_panel=_PULSEQ)] = None,
    negate_phase: Annotated[
        bool | None, typer.Option("--negate-phase", help="ky and kz with the sign of Siemens.", rich_help_panel=_PULSEQ)
    ] = None,
    max_grad: Annotated[float | None, typer.Option(help="mT/m; else 30.", rich_help_panel=_PULSEQ)] = None,
    max_slew: Annotated[float | None, typer.Option(help="T/m/s; else 120.", rich_help_panel=_PULSEQ)] = None,
    pulseq_version: Annotated[
        str | None, typer.Option(help=f"{', '.join(VERSIONS)}; else 1.5.", rich_help_panel=_PULSEQ)
    ] = None,
) -> None:
    """Write a mask as a table, in order of acquisition, or as a Pulseq sequence, and read it back to check it.

    Example: scanprior export-mask mask.npz --format pulseq --te 8 --tr 60 --slices 3 --plot order.png
    """
    asked = {
        "sequence": sequence, "te_ms": te, "tr_ms": tr, "flip_deg": flip, "refocusing_deg": refocusing,
        "echo_spacing_ms": echo_spacing, "slices": slices, "slice_gap_mm": gap,
        "slab_fraction": slab_fraction, "dummy_scans": dummies,
        "noise_readouts": noise_readouts, "oversampling": oversampling, "dwell_us": dwell,
        "spoil_cycles": spoil_cycles, "rf_spoil_deg": rf_spoil, "negate_phase": negate_phase,
        "max_grad_mt_m": max_grad, "max_slew_t_m_s": max_slew, "version": pulseq_version,
    }  # fmt: skip
    asked = {name: value for name, value in asked.items() if value is not None}
    if format_ not in TABLE_FORMATS:
        raise typer.BadParameter(f"--format: expected one of {', '.join(TABLE_FORMATS)}, got {format_!r}")
    if asked and format_ != "pulseq":
        raise typer.BadParameter(f"{', '.join(asked)}: only --format pulseq has that, got {format_!r}")
    out = out or mask.with_suffix(TABLE_FORMATS[format_].suffix)
    try:
        _check_plot(plot)
        loaded = load_mask(mask)
        if fov is not None:
            loaded = replace(loaded, fov_mm=lengths("--fov", fov))
        write = None
        if format_ == "pulseq":
            protocol = _protocol(asked)
            settings = _train_settings(protocol, order, echo_train, effective_echo)
            write = _pulseq_writer(protocol)
        else:
            settings = OrderSettings(order or "linear", echo_train, effective_echo)
        table = SamplingTable(loaded, settings)
        chosen = write_table(out, table, format_, write)
        if plot is not None:
            _plot(plot, table)
    except (TableError, ProtocolError, MaskFileError, ValueError, OSError) as error:
        typer.echo(f"export-mask: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(_summary(out, table, format_, chosen))
    if format_ == "pulseq":
        typer.echo(_timing(out))


def read_table_command(
    table: Annotated[Path, typer.Argument(help="A table that export-mask wrote, its .json beside it.")],
    points: Annotated[
        bool, typer.Option("--points", help="List the points in order: index, shot, echo, ky, kz.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Mask file (.npz) to write.")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG of the order to write.")] = None,
) -> None:
    """Read an exported table back and check it against the file beside it.

    Example: scanprior read-table mask.seq --out again.npz
    """
    try:
        _check_plot(plot)
        found, chosen = read_table(table)
        if out is not None:
            save_mask(out, found.mask)
        if plot is not None:
            _plot(plot, found)
    except (TableError, MaskFileError, ValueError, OSError) as error:
        typer.echo(f"read-table: {error}", err=True)
        raise typer.Exit(1) from None
    name = next(name for name, known in TABLE_FORMATS.items() if known is chosen)
    typer.echo(_summary(table, found, name, chosen))
    if points:
        for index, (point, shot, echo) in enumerate(
            zip(found.order.points.tolist(), found.order.shot, found.order.echo, strict=True)
        ):
            typer.echo(f"{index} {shot} {echo} {point[0]} {point[1]}")


def _protocol(asked: dict[str, Any]) -> PulseqProtocol:
    protocol = PulseqProtocol(**asked)
    for name in asked:
        if _OF_ONE_SEQUENCE.get(name, protocol.sequence) != protocol.sequence:
            raise ProtocolError(f"{name}: only the sequence {_OF_ONE_SEQUENCE[name]} has it, got {protocol.sequence}")
    return protocol


def _train_settings(
    protocol: PulseqProtocol, order: str | None, echo_train: int, effective_echo: int | None
) -> OrderSettings:
    """The order of a sequence; of tse, the effective TE says which echo measures DC."""
    if protocol.sequence == "gre":
        return OrderSettings(order or "linear", echo_train, effective_echo)
    if protocol.te_ms is not None:
        echo = effective_echo_of(protocol.te_ms, protocol.echo_spacing_ms, echo_train)
        if effective_echo not in (None, echo):
            raise ProtocolError(f"te_ms {protocol.te_ms:g} is echo {echo}, got --effective-echo {effective_echo}")
        effective_echo = echo
    return OrderSettings(order or "interleaved", echo_train, effective_echo)


def _pulseq_writer(protocol: PulseqProtocol) -> Any:
    """The writer of a protocol; None without pypulseq, so that the format's own says what is missing."""
    try:
        from scanprior.sim.pulseq_file import write_pulseq
    except ModuleNotFoundError as error:
        if error.name != "pypulseq":
            raise
        return None
    return partial(write_pulseq, protocol=protocol)


def _check_plot(path: Path | None) -> None:
    """Before anything is written."""
    if path is not None and path.suffix != ".png":
        raise ValueError(f"--plot: expected a name that ends in .png, got {path.name!r}")


def _plot(path: Path, table: SamplingTable) -> None:
    from .order_figure import write_order_figure

    write_order_figure(path, table)


def _summary(path: Path, table: SamplingTable, name: str, chosen: TableFormat) -> str:
    mask, settings = table.mask, table.settings
    train = f", trains of {settings.echo_train}" if settings.echo_train > 1 else ""
    if settings.effective_echo is not None:
        train += f", DC at echo {settings.effective_echo}"
    return "\n".join(
        [
            f"{path}: {name}, {mask.samples} {mask.kind} of {mask.matrix[1]} x {mask.matrix[2]}, "
            f"R {mask.effective_r:.2f} (asked {mask.asked_r:g}), ACS {mask.acs_extent[0]} x {mask.acs_extent[1]}",
            f"order: {settings.name}{train}; mask {mask.sha256[:16]}, made by {mask.made_by}; "
            f"described in {sidecar_path(path).name}",
            f"status: {chosen.status}",
        ]
    )


def _timing(path: Path) -> str:
    """TE, TR and duration, from the file's own definitions."""
    values = {}
    for line in path.read_text(encoding="ascii").split("[BLOCKS]")[0].splitlines():
        name, _, value = line.strip().partition(" ")
        values[name] = value
    te, tr, total = (float(values[name]) for name in ("TE", "TR", "TotalDuration"))
    return f"{values['Name']}: TE {te * 1e3:.2f} ms, TR {tr * 1e3:.2f} ms, {total:.1f} s; timing checked by pypulseq"
