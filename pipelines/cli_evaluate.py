"""`scanprior evaluate`: methods x masks x R x noise, in one table and one page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from scanprior.models.prior import PriorError
from scanprior.models.recipe import RecipeError
from tqdm import tqdm

if TYPE_CHECKING:
    from scanprior.sim.evaluation import Condition
    from scanprior.sim.mask_file import SamplingMask

    from .evaluate_methods import Candidate

_MASKS = "uniform-1d,gaussian-2d"
_R = "4,8"
_SNR = "25"
_SPOKES = "25"
_PROBABILITY = "0.2"


def evaluate(
    data: Annotated[
        list[Path], typer.Option(help="Images (as of train; may be given often), or a recorded scan (MRD).")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the evaluation; the same folder again goes on with it.")],
    methods: Annotated[
        list[str], typer.Option(help="Recipes by name or YAML file, with changes: sense,tv,pnp-admm:samples=4.")
    ] = ["sense,l1-wavelet,tv,pnp-admm"],  # noqa: B006 : typer wants a list
    masks: Annotated[
        str | None,
        typer.Option(
            help=f"Families (uniform-1d, poisson-2d, radial, ...) and mask files (mine.npz). Default: {_MASKS}."
        ),
    ] = None,
    r: Annotated[str | None, typer.Option("--r", help=f"Undersampling, ACS counted. Default: {_R}.")] = None,
    snr: Annotated[
        str | None, typer.Option(help=f"dB of the combined full image, or none for no noise. Default: {_SNR}.")
    ] = None,
    spokes: Annotated[str | None, typer.Option(help=f"Of the mask radial. Default: {_SPOKES}.")] = None,
    probability: Annotated[
        str | None, typer.Option(help=f"Of a row of the mask horizontal. Default: {_PROBABILITY}.")
    ] = None,
    noise: Annotated[
        str | None,
        typer.Option(help="In place of --snr: deviation of each real channel over the image's maximum, such as 0.05."),
    ] = None,
    phase: Annotated[
        float | None, typer.Option(min=0, help="Smooth phase of magnitude images, radians; 0: real. Default: 1.")
    ] = None,
    coils: Annotated[int | None, typer.Option(min=1, help="1: single coil, map of ones. Default: 8.")] = None,
    acs: Annotated[
        int | None, typer.Option(min=1, help="Lines, or edge of the square; default: a third of the samples, 12 to 24.")
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Slices, evenly spread over the data; all.")] = None,
    size: Annotated[int | None, typer.Option(min=32, help="Longest edge; larger images are resampled.")] = None,
    truth: Annotated[Path | None, typer.Option(help="Truth of a recorded scan (npz).")] = None,
    tune_on: Annotated[
        list[Path] | None,
        typer.Option(help="TRAINING images: the weights of l1-wavelet, tv and vae are chosen on them."),
    ] = None,
    tune_images: Annotated[int, typer.Option(min=1, help="How many of them.")] = 3,
    precision: Annotated[
        str | None, typer.Option(help="Of the priors' networks: float32, bfloat16, float16; default: the recipe's.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1; default: the recipe's.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves it to torch.")] = 0,
    show: Annotated[int, typer.Option(min=0, help="Of so many images, pictures under each condition.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of coils, phases, masks and noise.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and print the plan, then stop.")] = False,
) -> None:
    """Compare methods on test images, scanned by simulation, or on a recorded scan with its truth.

    Writes report.html, summary.csv/.json/.md, cases.csv and figures/. Cases are kept as they finish: a run that was
    cut, or a wider one in the same folder, computes only what is missing.

    Example: scanprior evaluate --data test.npz --methods sense,tv,pnp-admm --masks uniform-1d,gaussian-2d --r 4,8
    --snr 25 --coils 8 --images 10 --out out/
    """
    from scanprior.sim.image_stack import SourceError
    from scanprior.sim.source_hdf5 import SUFFIXES, hdf5_layout

    from .evaluate_methods import parse_methods
    from .evaluate_plan import EvaluationError

    try:
        candidates = parse_methods(methods, precision, device)
        recorded = [path for path in data if path.suffix in SUFFIXES and path.is_file() and hdf5_layout(path) == "mrd"]
        if recorded or truth is not None:
            _refuse_for_recorded(
                masks=masks,
                r=r,
                snr=snr,
                spokes=spokes,
                probability=probability,
                noise=noise,
                phase=phase,
                coils=coils,
                acs=acs,
                images=images,
                size=size,
                tune=tune_on,
            )
            if len(data) != 1 or len(recorded) != 1 or truth is None:
                raise EvaluationError("a recorded scan: expected one --data, an MRD file, and its --truth")
            failures = _recorded(data[0], truth, candidates, out, threads, show, dry_run)
        else:
            failures = _simulated(
                data, candidates, out,
                _conditions(masks or _MASKS, r, spokes, probability, snr, noise, phase, coils or 8, acs),
                images, size, tune_on or [], tune_images, threads, show, seed, dry_run,
            )  # fmt: skip
    except (RecipeError, PriorError, EvaluationError, SourceError) as error:
        raise typer.BadParameter(str(error)) from None
    except (RuntimeError, OSError) as error:
        typer.echo(f"evaluate: {error}", err=True)
        raise typer.Exit(1) from None
    for failure in failures:
        typer.echo(f"failed: {failure}", err=True)
    if failures:
        raise typer.Exit(1)


def _simulated(
    data: list[Path], candidates: list[Candidate], out: Path, conditions: list[Condition], images: int | None,
    size: int | None, tune_on: list[Path], tune_images: int, threads: int, show: int, seed: int, dry_run: bool,
) -> list[str]:  # fmt: skip
    import torch
    from scanprior.gadgets.engine import Engine

    from .evaluate import Evaluation
    from .evaluate_plan import EvaluationError, Plan, pick_images, plan_lines
    from .evaluate_report import about_run, grids_of, write_report

    tuning = pick_images(tune_on, tune_images, size) if tune_on else []
    if tuning and not any(candidate.tunable for candidate in candidates):
        raise EvaluationError("--tune-on: none of the methods has a weight to tune (l1-wavelet, tv, vae without lam=)")
    plan = Plan(pick_images(data, images, size), candidates, conditions, seed, tuning, show)
    plan.check()
    if threads:
        torch.set_num_threads(threads)
    engine = Engine(candidates[0].recipe, threads=threads)
    try:
        for candidate in candidates:
            engine.prior(candidate.recipe)  # each once, and what cannot be loaded is told before anything runs
        if dry_run:
            for line in plan_lines(plan):
                typer.echo(line)
            done = Evaluation(plan, out, engine).done() if out.exists() else 0
            typer.echo(f"of these are done: {done}")
            return []
        evaluation = Evaluation(plan, out, engine)
        with tqdm(total=plan.cases + plan.tuning_cases, unit="case") as bar:

            def tell(what: str, done: int) -> None:
                if what:
                    bar.set_description(what)
                bar.total = max(bar.total or 0, bar.n + done)  # the grid of a weight may have gone on
                bar.update(done)

            records = evaluation.run(tell)
    finally:
        engine.close()
    if not records:
        raise RuntimeError("every case failed: " + "; ".join(dict.fromkeys(evaluation.failures)))
    page = write_report(out, records, about_run(plan, threads), grids_of(evaluation, records), evaluation.failures)
    typer.echo(f"{len(records)} cases -> {page}")
    return evaluation.failures


def _recorded(
    scan: Path, truth: Path, candidates: list[Candidate], out: Path, threads: int, show: int, dry_run: bool
) -> list[str]:
    from .evaluate_recorded import about_recorded, load_truth, recorded_records
    from .evaluate_report import write_report

    known = load_truth(truth, scan)
    if dry_run:
        typer.echo(f"{scan.name}: {known.images.shape[0]} repetitions of {known.images.shape[1]} slices with a truth")
        typer.echo(f"cases: {known.images.shape[0] * known.images.shape[1] * len(candidates)}")
        return []
    with tqdm(total=len(candidates), unit="method") as bar:

        def tell(what: str, done: int) -> None:
            if what:
                bar.set_description(what)
            bar.update(done)

        records, grids, failures = recorded_records(scan, known, candidates, out, threads, show, tell)
    if not records:
        raise RuntimeError("every method failed: " + "; ".join(failures))
    out.mkdir(parents=True, exist_ok=True)
    page = write_report(out, records, about_recorded(scan, truth, candidates, threads), grids, failures)
    typer.echo(f"{len(records)} cases -> {page}")
    return failures


def _refuse_for_recorded(**given: object) -> None:
    for name, value in given.items():
        if value not in (None, []):
            option = {"tune": "--tune-on"}.get(name, f"--{name}")
            raise typer.BadParameter(f"{option}: not for a recorded scan, which has its own mask, noise and images")


def _conditions(
    masks: str, r: str | None, spokes: str | None, probability: str | None, snr: str | None, noise: str | None,
    phase: float | None, coils: int, acs: int | None,
) -> list[Condition]:  # fmt: skip
    """The conditions asked for; an option that no mask goes by is refused."""
    from scanprior.sim.mask_families import FAMILIES

    from .evaluate_plan import conditions_of

    if snr is not None and noise is not None:
        raise typer.BadParameter("--snr and --noise: give one of them")
    names, files = _names(masks)
    kinds = {FAMILIES[name].amount for name in names}
    if acs is not None and not names:
        raise typer.BadParameter("--acs: mask files have their own")
    values = {}
    for kind, option, given, usual in (
        ("R", "--r", r, _R), ("spokes", "--spokes", spokes, _SPOKES),
        ("probability", "--probability", probability, _PROBABILITY),
    ):  # fmt: skip
        if given is not None and kind not in kinds:
            raise typer.BadParameter(f"{option}: none of the masks {', '.join(names)} goes by it")
        values[kind] = _numbers(option, given or usual)
    noises = [] if noise is None else _numbers("--noise", noise)
    snrs = [] if noise is not None else _levels(snr or _SNR)
    amounts = {name: values[FAMILIES[name].amount] for name in names}
    drawn = conditions_of(amounts, snrs, noises, coils, acs, 1.0 if phase is None else phase)
    own = {name: [pattern.effective_r] for name, pattern in files.items()}
    read = conditions_of(own, snrs, noises, coils, None, 1.0 if phase is None else phase)
    return drawn + [replace(condition, pattern=files[condition.mask]) for condition in read]


def _names(text: str) -> tuple[list[str], dict[str, SamplingMask]]:
    """Families by name, and mask files by the name of the file."""
    from scanprior.sim.mask_families import FAMILIES
    from scanprior.sim.mask_file import MaskFileError, load_mask

    parts = _distinct("--masks", [part.strip() for part in text.split(",") if part.strip()])
    files: dict[str, SamplingMask] = {}
    for part in parts:
        if part.endswith(".npz"):
            path = Path(part)
            if path.name in files:
                raise typer.BadParameter(
                    f"--masks: two files are called {path.name}, which tables could not tell apart"
                )
            try:
                files[path.name] = load_mask(path)
            except MaskFileError as error:
                raise typer.BadParameter(f"--masks: {error}") from None
        elif part not in FAMILIES:
            raise typer.BadParameter(
                f"--masks: {part!r} is not known; there are: {', '.join(FAMILIES)}, or a mask file"
            )
    return [part for part in parts if not part.endswith(".npz")], files


def _numbers(option: str, text: str) -> list[float]:
    try:
        return _distinct(option, [float(part) for part in text.split(",") if part.strip()])
    except ValueError:
        raise typer.BadParameter(f"{option}: expected numbers with commas between, found {text!r}") from None


def _levels(text: str) -> list[float | None]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        return _distinct("--snr", [None if part == "none" else float(part) for part in parts])
    except ValueError:
        raise typer.BadParameter(f"--snr: expected numbers (dB) or none with commas between, found {text!r}") from None


def _distinct(option: str, values: list) -> list:  # type: ignore[type-arg]
    if not values or len(set(values)) < len(values):
        raise typer.BadParameter(f"{option}: expected one value or several different ones, found {values}")
    return values
