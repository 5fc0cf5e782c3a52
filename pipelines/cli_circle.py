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

    from .client import Received

Images = Annotated[Path | None, typer.Option(help="npz with images (slice, y, x) to scan instead of the phantom.")]
FirstSlice = Annotated[int, typer.Option(min=0, help="First slice taken from --images.")]
Contrast = Annotated[str, typer.Option(help="Of the phantom: t1, t2, pd, flair.")]
Coils = Annotated[int, typer.Option(min=1, help="Of the simulated scans.")]
Snr = Annotated[float, typer.Option(help="Of the optimally combined full image, dB.")]


def play(
    sequence: Annotated[Path, typer.Argument(help="Pulseq file that export-mask wrote.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Argument(help="MRD file to write; its truth goes beside it.")],
    images: Images = None,
    first_slice: FirstSlice = 0,
    contrast: Contrast = "t2",
    coils: Coils = 8,
    snr_db: Snr = 25.0,
    t2: Annotated[float | None, typer.Option(help="ms, of the whole object: echoes fade. Else none.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of head, coils and noise.")] = 0,
) -> None:
    """Play a sequence on a simulated object: what its gradients and pulses measure, as a converter would write it.

    Of a volume the slab's profile is not simulated: it holds the whole object.

    Example: scanprior play mask.seq scan.h5 --coils 8
    """
    run = _player()
    try:
        made = run(
            sequence, out, images=images, first_slice=first_slice, contrast=contrast, coils=coils, snr_db=snr_db,
            t2_ms=t2, seed=seed,
        )  # fmt: skip
    except _TOLD as error:
        typer.echo(f"play: {_words(error)}", err=True)
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

    try:
        with tqdm(desc=scan.name, unit="readout") as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            parameters = {} if recipe is None else {"recipe": recipe}
            try:
                received = send_scan(scan, host, port, parameters, patience=patience, progress=progress)
            except SendError as error:
                _write(out, error.received)  # what had come is kept
                raise
        _write(out, received)
    except _TOLD as error:
        typer.echo(f"send: {_words(error)}", err=True)
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
    r: Annotated[float | None, typer.Option("--r", min=1, help="Of the mask to learn, ACS counted; 4.")] = None,
    acs: Annotated[int | None, typer.Option(min=0, help="Of the mask to learn.")] = None,
    train_images: Annotated[int | None, typer.Option(min=1, help="Training slices to learn from; 5.")] = None,
    size: Annotated[int | None, typer.Option(min=32, help="Longest edge of the training images.")] = None,
    prior: Annotated[
        str | None,
        typer.Option(help="Of the mask to learn and of the reconstruction; else the mask's, else the recipe's."),
    ] = None,
    sequence: Annotated[str, typer.Option(help="gre or tse.")] = "gre",
    order: Annotated[str | None, typer.Option(help="As of export-mask.")] = None,
    echo_train: Annotated[int, typer.Option(min=1, help="Of tse.")] = 1,
    slices: Annotated[int, typer.Option(min=1, help="Of a mask of lines.")] = 1,
    images: Images = None,
    first_slice: FirstSlice = 0,
    contrast: Contrast = "t2",
    coils: Coils = 8,
    snr_db: Snr = 25.0,
    recipe: Annotated[str, typer.Option(help="Shipped recipe, or a YAML file.")] = DEFAULT_RECIPE,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves it to torch.")] = 0,
    patience: Annotated[float, typer.Option(min=1, help="Seconds that the server may be silent.")] = 600.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Close the circle: learn a mask, export it, play the sequence, stream the scan to the server, compare the image.

    Writes learned/ (with --data), mask.seq, order.png, played.h5, direct.h5 (the mask, simulated directly), again.h5
    (that with other noise), circle/ and direct/ (their images), circle.png, report.md, and recipe.yaml where the prior
    is not the recipe's own. Of a volume the slab's profile is not simulated. Ends with an error when a check does not
    hold.

    Example: scanprior circle --data train.npz --size 128 --r 4 --out circle/
    """
    import numpy as np
    import yaml
    from scanprior.models.methods import METHODS
    from scanprior.models.prior import load_any_prior
    from scanprior.sim.mask_comparison import weights_hash
    from scanprior.sim.scan import simulate
    from scanprior.sim.tables import read_table

    from .circle import (
        Slices,
        check_images,
        check_lines,
        check_prior,
        image_table,
        with_prior,
        write_picture,
        write_report,
    )
    from .cli_masks import learn_mask
    from .cli_replay import chosen_recipe
    from .cli_tables import export_mask
    from .client import SendError, send_scan
    from .evaluate_recorded import load_truth
    from .resident import resident_server

    if (mask is None) == (not data):
        raise typer.BadParameter("expected --mask, or --data to learn one from")
    of_learning = {"--r": r, "--acs": acs, "--size": size, "--train-images": train_images}
    given = [name for name, value in of_learning.items() if value is not None]
    if mask is not None and given:
        raise typer.BadParameter(f"{', '.join(given)}: of a mask to learn, got --mask")
    chosen = chosen_recipe(recipe)
    family = METHODS[chosen.method].prior
    if mask is not None and prior is not None and family is None:
        raise typer.BadParameter(f"--prior: the recipe {chosen.name} takes none, and --mask is learned already")
    _check_before(mask, sequence, order, echo_train, slices, images, first_slice)
    run = _player()
    out.mkdir(parents=True, exist_ok=True)
    wanted = prior
    if mask is None:
        wanted = prior or (chosen.prior if family == "diffusion" else None) or "small"
        learn_mask(
            data or [], out / "learned", r=4.0 if r is None else r, acs=acs,
            images=5 if train_images is None else train_images, size=size, prior=wanted, coils=coils, snr=snr_db,
            threads=threads, seed=seed,
        )  # fmt: skip
        mask = out / "learned" / "mask.npz"
        wanted = wanted if family == "diffusion" else None
    played_by, scan, direct, again = (out / name for name in ("mask.seq", "played.h5", "direct.h5", "again.h5"))
    export_mask(
        mask, "pulseq", played_by, order=order, echo_train=echo_train, plot=out / "order.png", sequence=sequence,
        slices=slices if slices > 1 else None,
    )  # fmt: skip
    received: list[Received] = []
    try:
        table, _ = read_table(played_by)
        if family == "diffusion":
            wanted = wanted or table.mask.prior
        served = recipe
        if wanted is not None and wanted != chosen.prior:
            chosen = with_prior(chosen, wanted)
            served = str(out / "recipe.yaml")
            Path(served).write_text(yaml.safe_dump(chosen.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
        weights = None if chosen.prior is None else weights_hash(load_any_prior(chosen.prior).weights())
        volume = table.mask.kind == "points"
        sizes = table.mask.matrix
        made = run(
            played_by,
            scan,
            images=images,
            first_slice=first_slice,
            contrast=contrast,
            coils=coils,
            snr_db=snr_db,
            seed=seed,
        )
        for path, noise_seed in ((direct, seed + 1), (again, seed + 2)):
            simulate(
                path, mask=table.mask, images=images, first_slice=first_slice, matrix=sizes[1], columns=sizes[0],
                contrast=contrast,
                slices=sizes[2] if volume else slices, three_d=volume, coils=coils, snr_db=snr_db, seed=seed,
                noise_seed=noise_seed,
            )  # fmt: skip
        with np.load(made.truth, allow_pickle=False) as file:
            true, noise_cov = file["image"][0], file["noise_cov"]
        checks = [check_prior(table.mask, chosen, weights), *check_lines(scan, direct, table, noise_cov)]
        with resident_server(served, threads) as port:
            for path, folder in ((scan, out / "circle"), (direct, out / "direct"), (again, None)):
                try:
                    received.append(send_scan(path, "127.0.0.1", port, {}, patience=patience))
                except SendError as error:
                    _write(folder, error.received)  # what had come is kept
                    raise
                _write(folder, received[-1])
                typer.echo(f"{path.name}: {len(received[-1].images)} images")
        failures = [text for found in received for text in found.failures]
        if failures:
            raise SendError("; ".join(failures))
        ours, theirs, other = (
            Slices.of(found.images, load_truth(made.truth, path).field)
            for found, path in zip(received, (scan, direct, again), strict=True)
        )
        checks += check_images(ours, theirs, other, true)
        pictured = write_picture(out / "circle.png", ours, theirs, true)
        played = f"{sequence}, {made.acquisitions} readouts"
        reconstructed = chosen.name if chosen.prior is None else f"{chosen.name} with the prior {chosen.prior}"
        report = write_report(out, checks, table, image_table(ours, theirs, true), reconstructed, played, pictured)
    except _TOLD as error:
        typer.echo(f"circle: {_words(error)}", err=True)
        raise typer.Exit(1) from None
    for check in checks:
        typer.echo(f"{'ok ' if check.holds else 'NO '} {check.what}: {check.found}")
    typer.echo(f"{report}")
    if not all(check.holds for check in checks):
        raise typer.Exit(1)


_TOLD = (ScanError, ValueError, RuntimeError, OSError, MemoryError)
"""What a command says in one line: refusals of ours (SendError and finufft's are RuntimeErrors, others ValueErrors),
disk errors, and too little memory."""


def _words(error: BaseException) -> str:
    return str(error) if str(error) and not isinstance(error, MemoryError) else f"not enough memory: {error!r}"


def _write(folder: Path | None, received: Received) -> None:
    """Images and pictures into a folder, where there are any of the one and of the other."""
    from .pictures import write_pictures
    from .replay import write_images

    if folder is None or not received.images:
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_images(folder / "images.h5", received.images)
    write_pictures(folder, received.images)


def _check_before(
    mask: Path | None,
    sequence: str,
    order: str | None,
    echo_train: int,
    slices: int,
    images: Path | None,
    first_slice: int,
) -> None:
    """Find mistakes that need no mask to be learned first."""
    from scanprior.sim.acquisition_order import OrderSettings
    from scanprior.sim.anatomy import load_images
    from scanprior.sim.mask_file import load_mask
    from scanprior.sim.pulseq_protocol import PulseqProtocol

    try:
        PulseqProtocol(sequence=sequence, slices=slices)
        OrderSettings(order or "linear", echo_train)
        depth = slices
        if mask is not None:
            loaded = load_mask(mask)
            depth = loaded.matrix[2] if loaded.kind == "points" else slices
        if images is not None:
            load_images(images, depth, first_slice)
    except (ValueError, OSError) as error:
        typer.echo(f"circle: {error}", err=True)
        raise typer.Exit(1) from None


def _player() -> Callable[..., Simulated]:
    """`sequence_scan.play`, or a word on what it needs."""
    try:
        from scanprior.sim.sequence_scan import play as run
    except ModuleNotFoundError as error:
        if error.name not in ("pypulseq", "finufft"):
            raise
        raise typer.BadParameter(f"needs {error.name}: pip install 'scanprior[seq]'") from None
    return run
