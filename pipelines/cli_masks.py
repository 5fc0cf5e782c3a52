"""`scanprior make-mask` and `scanprior learn-mask`: sampling patterns as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from .option_numbers import lengths, sizes

_FOV = (
    "Field of view x,y,z in mm; of lines z is the thickness. Else 230,230,4 for lines; for points 230,230 and a z that "
    "makes voxels as long along z as along y."
)
_ACS = (
    "Lines, or edge of the square; else a third of the samples, but 12 to 24, and no more than three quarters of them "
    "(or 8, where that is more)."
)


def make_mask(
    family: Annotated[str, typer.Argument(help="Name of a family, such as uniform-1d or poisson-2d.")],
    out: Annotated[Path, typer.Argument(help="Mask file to write (.npz); its description and picture go beside it.")],
    matrix: Annotated[
        str, typer.Option(help="Phase encodings y of lines, or y,z of points, such as 320 or 320,256.")
    ] = "320,320",
    readout: Annotated[int | None, typer.Option(min=1, help="Samples along x; as many as y.")] = None,
    r: Annotated[float, typer.Option("--r", help="Undersampling, ACS counted; spokes, or probability.")] = 4.0,
    acs: Annotated[int | None, typer.Option(min=0, help=_ACS)] = None,
    fov: Annotated[str | None, typer.Option(help=_FOV)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw.")] = 0,
) -> None:
    """Draw a mask of a family.

    Example: scanprior make-mask poisson-2d mask.npz --matrix 320,320 --r 12
    """
    from scanprior.sim import mask_families
    from scanprior.sim.mask_file import MaskFileError, SamplingMask, save_mask

    from .mask_pictures import write_mask_picture

    try:
        if family not in mask_families.FAMILIES:
            raise ValueError(f"mask {family!r} is not known; there are: {', '.join(mask_families.FAMILIES)}")
        dimensions = mask_families.FAMILIES[family].dimensions
        shape = sizes("--matrix", matrix)
        if dimensions == 2 and len(shape) != 2:
            raise ValueError(f"--matrix: {family} is of points, expected y,z, found {matrix!r}")
        if len(shape) > 2:
            raise ValueError(f"--matrix: {family} is of lines, expected y, found {matrix!r}")
        y, z = shape[0], shape[1] if dimensions == 2 else 1
        if min(shape) < 8 or max(shape) > 65535:
            raise ValueError(f"--matrix: expected sizes from 8 to 65535, found {matrix!r}")
        drawn = mask_families.make_mask(family, (y, shape[-1]), r, acs, seed)
        shaped = [part.reshape(y, z) for part in (drawn.mask, drawn.acs)]
        mask = SamplingMask(
            shaped[0], shaped[1], (readout or y, y, z), _fov(fov, y, z), family,
            {mask_families.FAMILIES[family].amount: r, "acs": mask_families.acs_size(drawn)},
            drawn.asked_r, seed,
        )  # fmt: skip
        save_mask(out, mask)
        picture = write_mask_picture(out.with_suffix(".png"), mask)
    except (MaskFileError, ValueError, OSError) as error:
        typer.echo(f"make-mask: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{out}: {mask.samples} {mask.kind}, R {mask.effective_r:.3f}; {picture}")


def learn_mask(
    data: Annotated[list[Path], typer.Option(help="Training images (as of train); may be given often.")],
    out: Annotated[
        Path, typer.Option(help="Folder for the mask, its pictures and the report; the same again resumes a cut run.")
    ],
    r: Annotated[float, typer.Option("--r", min=1, help="Undersampling factor, ACS counted.")] = 4.0,
    kind: Annotated[str, typer.Option(help="lines, or points of two phase encodings.")] = "lines",
    acs: Annotated[int | None, typer.Option(min=0, help=_ACS)] = None,
    images: Annotated[int, typer.Option(min=1, help="Training slices, evenly spread over the data.")] = 5,
    validation: Annotated[
        list[Path] | None, typer.Option(help="Other images, on which patterns are tried; else the training images.")
    ] = None,
    validation_images: Annotated[int, typer.Option(min=1, help="How many of them.")] = 5,
    test: Annotated[list[Path] | None, typer.Option(help="Images for the comparison with the families.")] = None,
    test_images: Annotated[int | None, typer.Option(min=1, help="How many of them; all.")] = None,
    size: Annotated[int | None, typer.Option(min=32, help="Longest edge; larger images are resampled.")] = None,
    prior: Annotated[str, typer.Option(help="A diffusion prior, by name or file.")] = "small",
    learner: Annotated[
        str, typer.Option(help="greedy (line by line) or gumbel (by gradients of probabilities).")
    ] = "greedy",
    objective: Annotated[
        str, typer.Option(help="posterior-mean (paper, second order), data-consistency, reconstruction.")
    ] = "reconstruction",
    sigma: Annotated[float | None, typer.Option(help="Noise level of x_t; drawn anew each step if not given.")] = None,
    coils: Annotated[int, typer.Option(min=1, help="Of the simulated scans; 1: single coil.")] = 8,
    snr: Annotated[float | None, typer.Option(help="Noise of the simulated scans, dB.")] = 25.0,
    steps: Annotated[int, typer.Option(min=1, help="gumbel: steps, each on one image.")] = 400,
    learning_rate: Annotated[float, typer.Option(help="gumbel: of Adam.")] = 0.1,
    draws: Annotated[int, typer.Option(min=0, help="gumbel: random patterns tried at each validation.")] = 4,
    together: Annotated[int, typer.Option(min=1, help="greedy: samples added at once.")] = 2,
    shortlist: Annotated[int, typer.Option(min=0, help="greedy: candidates tried exactly; 0: all.")] = 8,
    exchanges: Annotated[
        int | None, typer.Option(min=0, help="greedy: tries of a sample in another place; default: 30, of points 0.")
    ] = None,
    evaluations: Annotated[int, typer.Option(min=1, help="Of the network, by the objective reconstruction.")] = 10,
    method: Annotated[str, typer.Option(help="Recipe of validation and comparison.")] = "pnp-admm:samples=0",
    best_of: Annotated[int, typer.Option(min=0, help="Random draws whose best is a baseline; 0: none.")] = 10,
    fov: Annotated[str | None, typer.Option(help=_FOV)] = None,
    readout: Annotated[int | None, typer.Option(min=1, help="Samples along x of points; else as many as y.")] = None,
    precision: Annotated[
        str, typer.Option(help="Of the network: float32, bfloat16 (faster on GPUs and CPUs with AMX), float16.")
    ] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves it to torch.")] = 0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Learn which lines (or points) of k-space to acquire, for a prior, from a few images.

    Writes mask.npz and mask.json (exactly the asked number of samples), mask.png, learning.png (drawn as it goes) and
    report.md: the mask against the families on the test images, with 95 % confidence intervals. A run that was cut goes
    on where it was when the same command is given again.

    Example: scanprior learn-mask --data train.npz --images 5 --test test.npz --r 6 --prior small --out learned/
    """
    import torch
    from pydantic import ValidationError
    from scanprior.models.prior import PriorError, load_prior
    from scanprior.models.recipe import RecipeError
    from scanprior.models.weights_description import explain
    from scanprior.sim.evaluation import Condition
    from scanprior.sim.mask_families import default_acs
    from scanprior.sim.mask_learning import LearningSettings
    from scanprior.sim.mask_objectives import ObjectiveSettings

    from .evaluate_methods import parse_methods
    from .evaluate_plan import EvaluationError, pick_images
    from .mask_learning import MaskLearningError, MaskPlan, learn_and_report

    if kind not in ("lines", "points"):
        raise typer.BadParameter(f"--kind: expected lines or points, found {kind!r}")
    try:
        candidate = parse_methods([f"{method}{',' if ':' in method else ':'}prior={prior}"], precision)[0]
        chosen = {"kind": objective, "sigma": sigma, "evaluations": evaluations}
        learning = {
            "learner": learner, "steps": steps, "learning_rate": learning_rate, "draws": draws, "together": together,
            "shortlist": shortlist, "seed": seed,
            "exchanges": exchanges if exchanges is not None else 30 if kind == "lines" else 0,
        }  # fmt: skip
        train = pick_images(data, images, size)
        rows, columns = train[0].pixels.shape
        family = "gaussian-1d" if kind == "lines" else "gaussian-2d"
        plan = MaskPlan(
            train,
            pick_images(validation, validation_images, size) if validation else [],
            pick_images(test, test_images, size) if test else [],
            kind,
            r,
            default_acs(family, (rows, columns), r) if acs is None else acs,
            Condition("full", 1.0, snr, coils),
            ObjectiveSettings.model_validate(chosen),
            LearningSettings.model_validate(learning),
            candidate.recipe,
            best_of,
            _fov(fov, rows, 1 if kind == "lines" else columns),
            columns if kind == "lines" else readout or rows,
            seed,
        )
        plan.check()
        if threads:
            torch.set_num_threads(threads)
        place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        loaded = load_prior(prior, place, None if precision == "float32" else getattr(torch, precision))
    except ValidationError as error:
        raise typer.BadParameter(explain(error)) from None
    except (RecipeError, PriorError, EvaluationError, MaskLearningError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None
    try:
        with tqdm(unit="step") as bar:

            def tell(what: str, step: int, of: int) -> None:
                bar.set_description(what)
                bar.total = of
                bar.n = step
                bar.refresh()

            path = learn_and_report(plan, loaded, out, place, tell)
    except (MaskLearningError, RuntimeError, OSError, ValueError) as error:
        typer.echo(f"learn-mask: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{path}: {plan.samples} {kind} of {plan.inner.size}; {out / 'report.md'}")


def _fov(text: str | None, y: int, z: int) -> tuple[float, float, float]:
    """What `--fov` says; else the usual one, for points with voxels as long along z as along y."""
    return (230.0, 230.0, 4.0 if z == 1 else 230.0 * z / y) if text is None else lengths("--fov", text)
