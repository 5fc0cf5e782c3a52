"""`scanprior simulate`: a scan with a known truth, as an MRD file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def simulate(
    out: Annotated[Path, typer.Argument(help="MRD file to write; its truth goes beside it.")],
    images: Annotated[Path | None, typer.Option(help="npz with images (slice, y, x) instead of the phantom.")] = None,
    matrix: Annotated[int | None, typer.Option(min=16, help="Rows; 256, or the size of the images.")] = None,
    columns: Annotated[int | None, typer.Option(min=16, help="Columns; as many as rows.")] = None,
    slices: Annotated[int | None, typer.Option(min=1, help="Slices, or partitions of a volume; 1.")] = None,
    three_d: Annotated[bool, typer.Option("--3d", help="A volume, phase-encoded along y and z.")] = False,
    contrast: Annotated[str, typer.Option(help="Of the phantom: t1, t2, pd, flair.")] = "t2",
    coils: Annotated[int, typer.Option(min=1)] = 8,
    mask: Annotated[
        str, typer.Option(help="full, uniform, random, or a mask file (.npz), which brings matrix, R, ACS and extent.")
    ] = "random",
    r: Annotated[float | None, typer.Option("--r", min=1, help="Undersampling factor; 4.")] = None,
    acs: Annotated[int | None, typer.Option(min=0, help="Calibration lines; 24.")] = None,
    calibration: Annotated[str, typer.Option(help="embedded or separate.")] = "embedded",
    partial_fourier: Annotated[float, typer.Option(help="Fraction of the lines kept.")] = 1.0,
    asymmetric_echo: Annotated[float, typer.Option(help="Fraction of the readout kept.")] = 1.0,
    oversampling: Annotated[float, typer.Option(help="Of the readout.")] = 2.0,
    repetitions: Annotated[int, typer.Option(min=1, help="Every second one has a bright spot.")] = 1,
    averages: Annotated[int, typer.Option(min=1)] = 1,
    echo_train: Annotated[int, typer.Option(min=1, help="Lines a shot.")] = 1,
    snr_db: Annotated[float, typer.Option(help="Of the optimally combined full image.")] = 25.0,
    noise_readouts: Annotated[int, typer.Option(min=0, help="Of the noise scan in front; 0: none.")] = 16,
    waveforms: Annotated[bool, typer.Option("--waveforms", help="Write an ECG too.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of head, coils, noise and mask.")] = 0,
) -> None:
    """Simulate a scan: an MRD file with noise scan, oversampling and ACS flags, and its truth.

    Example: scanprior simulate scan.h5 --slices 6 --repetitions 2 --mask uniform --r 3
    """
    from scanprior.sim.mask_file import SamplingMask, load_mask
    from scanprior.sim.scan import simulate as run

    pattern: str | SamplingMask = mask
    try:
        if mask.endswith(".npz"):
            pattern = load_mask(Path(mask))
            matrix, columns = matrix or pattern.matrix[1], columns or pattern.matrix[0]
            volume = pattern.kind == "points"
            asked = {"--r": r, "--acs": acs, "--slices": slices if volume else None}
            given = [name for name, value in asked.items() if value is not None]
            if given:
                raise ValueError(f"{', '.join(given)}: the mask file {mask} brings that")
            if volume:
                slices, three_d = pattern.matrix[2], True
        made = run(
            out, images=images, matrix=matrix, columns=columns, slices=1 if slices is None else slices,
            three_d=three_d, contrast=contrast, coils=coils, mask=pattern, r=4.0 if r is None else r,
            acs=24 if acs is None else acs, calibration=calibration, partial_fourier=partial_fourier,
            asymmetric_echo=asymmetric_echo, oversampling=oversampling, repetitions=repetitions, averages=averages,
            echo_train=echo_train, snr_db=snr_db, noise_readouts=noise_readouts, waveforms=waveforms, seed=seed,
        )  # fmt: skip
    except (ValueError, OSError, MemoryError) as error:
        typer.echo(f"simulate: {str(error) or 'not enough memory'}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{made.path}: {made.acquisitions} readouts, effective R {made.effective_r:.2f}; truth: {made.truth}")
