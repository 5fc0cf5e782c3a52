"""`scanprior play`, `send` and `circle`: a mask as a sequence plays it, through the server, back to an image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from scanprior.gadgets.errors import ScanError
from scanprior.models.recipe import DEFAULT_RECIPE
from tqdm import tqdm

if TYPE_CHECKING:
    from scanprior.sim.scan import Simulated

Images = Annotated[Path | None, typer.Option(help="npz with images (slice, y, x) to scan instead of the phantom.")]
Contrast = Annotated[str, typer.Option(help="Of the phantom: t1, t2, pd, flair.")]
Coils = Annotated[int, typer.Option(min=1, help="Of the simulated scans.")]
Snr = Annotated[float, typer.Option(help="Of the optimally combined full image, dB.")]


def play(
    sequence: Annotated[Path, typer.Argument(help="Pulseq file that export-mask wrote.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Argument(help="MRD file to write; its truth goes beside it.")],
    images: Images = None,
    first_slice: Annotated[int, typer.Option(min=0, help="First slice taken from --images.")] = 0,
    contrast: Contrast = "t2",
    coils: Coils = 8,
    snr_db: Snr = 25.0,
    t2: Annotated[float | None, typer.Option(help="ms, of the whole object: echoes fade. Else none.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of head, coils and noise.")] = 0,
) -> None:
    """Play a sequence on a simulated object: what its gradients and pulses measure, as a converter would write it.

    Example: scanprior play mask.seq scan.h5 --coils 8
    """
    run = _player()
    try:
        made = run(
            sequence, out, images=images, first_slice=first_slice, contrast=contrast, coils=coils, snr_db=snr_db,
            t2_ms=t2, seed=seed,
        )  # fmt: skip
    except (ValueError, OSError) as error:
        typer.echo(f"play: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{made.path}: {made.acquisitions} readouts, effective R {made.effective_r:.2f}; truth: {made.truth}")


def send(
    scan: Annotated[Path, typer.Argument(help="MRD raw-data file (HDF5).", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option(help="Folder for images.h5 and PNGs.")],
    host: Annotated[str, typer.Option(help="Of the server.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 9002,
    recipe: Annotated[str | None, typer.Option(help="Shipped recipe to ask for; else the server's own.")] = None,
    patience: Annotated[float, typer.Option(min=1, help="Seconds that the server may be silent.")] = 600.0,
) -> None:
    """Send a recorded scan to a running server as a scanner would, and save the images that come back.

    Example: scanprior send scan.h5 --port 9002 --out images/
    """
    from .client import SendError, send_scan
    from .pictures import write_pictures
    from .replay import ScanFileError, write_images

    try:
        with tqdm(desc=scan.name, unit="readout") as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            parameters = {} if recipe is None else {"recipe": recipe}
            received = send_scan(scan, host, port, parameters, patience=patience, progress=progress)
        out.mkdir(parents=True, exist_ok=True)
        write_images(out / "images.h5", received.images)
        write_pictures(out, received.images)
    except (SendError, ScanFileError, ScanError, OSError) as error:
        typer.echo(f"send: {error}", err=True)
        raise typer.Exit(1) from None
    for text in received.texts:
        typer.echo(f"server: {text}", err=True)
    typer.echo(f"{len(received.images)} images -> {out}")
    if received.failures:
        typer.echo(f"send: {'; '.join(received.failures)}", err=True)
        raise typer.Exit(1)


def circle(
    out: Annotated[Path, typer.Option(help="Folder for mask, sequence, scans, images and the report.")],
    mask: Annotated[Path | None, typer.Option(help="Mask file (.npz); else one is learned from --data.")] = None,
    data: Annotated[list[Path] | None, typer.Option(help="Training images to learn a mask from.")] = None,
    r: Annotated[float, typer.Option("--r", min=1, help="Of the mask to learn, ACS counted.")] = 4.0,
    acs: Annotated[int | None, typer.Option(min=0, help="Of the mask to learn.")] = None,
    train_images: Annotated[int, typer.Option(min=1, help="Training slices to learn from.")] = 5,
    size: Annotated[int | None, typer.Option(min=32, help="Longest edge of the training images.")] = None,
    prior: Annotated[str, typer.Option(help="To learn the mask for.")] = "small",
    sequence: Annotated[str, typer.Option(help="gre or tse.")] = "gre",
    order: Annotated[str | None, typer.Option(help="As of export-mask.")] = None,
    echo_train: Annotated[int, typer.Option(min=1, help="Of tse.")] = 1,
    slices: Annotated[int, typer.Option(min=1, help="Of a mask of lines.")] = 1,
    images: Images = None,
    contrast: Contrast = "t2",
    coils: Coils = 8,
    snr_db: Snr = 25.0,
    recipe: Annotated[str, typer.Option(help="Shipped recipe, or a YAML file.")] = DEFAULT_RECIPE,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves it to torch.")] = 0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Close the circle: learn a mask, export it, play the sequence, stream the scan to the server, compare the image.

    Writes learned/ (with --data), mask.seq, order.png, played.h5, direct.h5, circle/ (images of the sequence), direct/
    (of the mask, simulated directly), circle.png and report.md. Ends with an error when a check does not hold.

    Example: scanprior circle --data train.npz --size 128 --r 4 --out circle/
    """
    import numpy as np
    from scanprior.sim.mask_file import MaskFileError
    from scanprior.sim.sampling_table import TableError
    from scanprior.sim.scan import simulate
    from scanprior.sim.tables import read_table

    from .circle import Slices, check_images, check_lines, image_table, resident_server, write_picture, write_report
    from .cli_masks import learn_mask
    from .cli_tables import export_mask
    from .client import SendError, send_scan
    from .evaluate_recorded import load_truth
    from .pictures import write_pictures
    from .replay import ScanFileError, write_images

    if (mask is None) == (not data):
        raise typer.BadParameter("expected --mask, or --data to learn one from")
    run = _player()
    out.mkdir(parents=True, exist_ok=True)
    if mask is None:
        learn_mask(
            data or [], out / "learned", r=r, acs=acs, images=train_images, size=size, prior=prior, coils=coils,
            snr=snr_db, threads=threads, seed=seed,
        )  # fmt: skip
        mask = out / "learned" / "mask.npz"
    played_by, scan, direct, again = (out / name for name in ("mask.seq", "played.h5", "direct.h5", "again.h5"))
    export_mask(
        mask, "pulseq", played_by, order=order, echo_train=echo_train, plot=out / "order.png", sequence=sequence,
        slices=slices if slices > 1 else None,
    )  # fmt: skip
    try:
        table, _ = read_table(played_by)
        volume = table.mask.kind == "points"
        sizes = table.mask.matrix
        made = run(played_by, scan, images=images, contrast=contrast, coils=coils, snr_db=snr_db, seed=seed)
        for path, noise_seed in ((direct, seed + 1), (again, seed + 2)):
            simulate(
                path, mask=table.mask, images=images, matrix=sizes[1], columns=sizes[0], contrast=contrast,
                slices=sizes[2] if volume else slices, three_d=volume, coils=coils, snr_db=snr_db,
                seed=seed, noise_seed=noise_seed,
            )  # fmt: skip
        truth = np.load(made.truth)
        checks = check_lines(scan, direct, table, truth["noise_cov"])
        received = []
        with resident_server(recipe, threads) as port:
            for path in (scan, direct, again):
                received.append(send_scan(path, "127.0.0.1", port, {}))
                typer.echo(f"{path.name}: {len(received[-1].images)} images")
    except (TableError, MaskFileError, SendError, ScanFileError, ScanError, ValueError, OSError) as error:
        typer.echo(f"circle: {error}", err=True)
        raise typer.Exit(1) from None
    for folder, found in zip((out / "circle", out / "direct"), received, strict=False):
        folder.mkdir(exist_ok=True)
        write_images(folder / "images.h5", found.images)
        write_pictures(folder, found.images)
    failures = [text for found in received for text in found.failures]
    if failures:
        typer.echo(f"circle: {'; '.join(failures)}", err=True)
        raise typer.Exit(1)
    ours, theirs, other = (
        Slices.of(found.images, load_truth(made.truth, path).field)
        for found, path in zip(received, (scan, direct, again), strict=True)
    )
    true = truth["image"][0]
    checks += check_images(ours, theirs, other, true)
    write_picture(out / "circle.png", ours, theirs, true)
    played = f"{sequence}, {made.acquisitions} readouts"
    report = write_report(out, checks, table, image_table(ours, theirs, true), recipe, played)
    for check in checks:
        typer.echo(f"{'ok ' if check.holds else 'NO '} {check.what}: {check.found}")
    typer.echo(f"{report}")
    if not all(check.holds for check in checks):
        raise typer.Exit(1)


def _player() -> Callable[..., Simulated]:
    """`sequence_scan.play`, or a word on what it needs."""
    try:
        from scanprior.sim.sequence_scan import play as run
    except ModuleNotFoundError as error:
        if error.name not in ("pypulseq", "finufft"):
            raise
        raise typer.BadParameter(f"needs {error.name}: pip install 'scanprior[seq]'") from None
    return run
