"""The circle: does a sequence's scan give the image that its mask promised? Line by line, and in the image."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scanprior.gadgets.images import IMAGE_SERIES, STD_SERIES
from scanprior.gadgets.mrd import Image
from scanprior.models.recipe import Recipe, recipe_from
from scanprior.sim.mask_file import SamplingMask
from scanprior.sim.metrics import psnr
from scanprior.sim.sampling_table import SamplingTable

from .replay import ScanFile

NOISE_FLAG, ACS_FLAG, ACS_AND_IMAGING_FLAG = 19, 20, 21

WITHIN = 1.2
"""How much further from a direct simulation the circle's image may be than that is from another draw of its noise."""

SPREAD = 6.0
"""Standard errors by which the k-space of a line may differ from the direct simulation's."""


@dataclass(frozen=True)
class Check:
    """One thing that has to hold: what, whether it does, and what was found."""

    what: str
    holds: bool
    found: str


def check_lines(scan: Path, direct: Path, table: SamplingTable, noise_cov: np.ndarray) -> list[Check]:
    """The readouts of a played scan against table and mask, and their data against the direct simulation.

    Parameters
    ----------
    scan, direct
        MRD files of the played sequence and of the mask, of the same object and coils.
    table
        What the sequence was exported from.
    noise_cov
        (coil, coil), of a k-space sample in both.
    """
    ours, theirs = _lines(scan), _lines(direct)
    slices = sorted({key[0] for key, _, _ in ours})
    points = table.order.points.tolist()
    expected_flags = [ACS_AND_IMAGING_FLAG if inside else 0 for inside in table.in_acs]
    order, flags = True, True
    for number in slices:
        own = [(list(key[1:]), flag) for key, flag, _ in ours if key[0] == number]
        order &= [point for point, _ in own] == points
        flags &= [flag for _, flag in own] == expected_flags
    measured = np.zeros(table.mask.mask.shape, bool)
    for key, _, _ in ours:
        measured[key[1], key[2]] = True
    checks = [
        Check("MRD counters are the table's points, in its order", order, f"{len(points)} in {len(slices)} slices"),
        Check("flag 21 on the ACS and nowhere else, flag 20 never", flags, f"{int(table.in_acs.sum())} ACS"),
        Check(
            "MRD counters are the mask's points", bool(np.array_equal(measured, table.mask.mask)),
            f"{int(measured.sum())} of {measured.size}",
        ),
    ]  # fmt: skip
    other = {key: data for key, _, data in theirs}
    same = bool(ours) and {key: data.shape for key, data in other.items()} == {key: data.shape for key, _, data in ours}
    checks.append(Check("the direct simulation has the same lines", same, f"{len(other)} readouts"))
    if same:
        root = np.linalg.inv(np.linalg.cholesky(noise_cov.astype(np.complex128)))
        # both have noise of their own: the difference has twice the covariance
        ratio = np.array([np.mean(np.abs(root @ (data - other[key])) ** 2) / 2 for key, _, data in ours])
        bound = SPREAD / math.sqrt(ours[0][2].size)
        checks.append(
            Check(
                f"k-space of every line is the direct simulation's within its noise (1 +- {bound:.2f})",
                bool(np.abs(ratio - 1).max() < bound),
                f"power of the difference over that of the noise {ratio.mean():.3f}, lines {ratio.min():.2f} to "
                f"{ratio.max():.2f}",
            )
        )
    return checks


@dataclass(frozen=True)
class Slices:
    """What came of a scan, in the units of its truth.

    Attributes
    ----------
    image, std
        (slice, y, x) magnitudes; the partitions of a volume count as slices. Empty where nothing came.
    """

    image: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, images: list[Image], field: np.ndarray) -> Slices:
        """Of messages; `field` (slice, y, x) is what turns the truth into the units of a reconstruction."""
        return cls(*(_series(images, series, field) for series in (IMAGE_SERIES, STD_SERIES)))


def check_images(circle: Slices, direct: Slices, again: Slices, truth: np.ndarray) -> list[Check]:
    """The circle's images against those of the direct simulation and of another draw of its noise.

    Parameters
    ----------
    circle, direct, again
        What the server made of the three.
    truth
        (slice, y, x) complex.
    """
    shapes = {part.image.shape for part in (circle, direct, again)}
    finite = all(np.isfinite(part.image).all() for part in (circle, direct, again))
    spread = circle.std.size > 0 and circle.std.shape == circle.image.shape and bool(np.isfinite(circle.std).all())
    checks = [
        Check(
            "one image for each slice, of finite numbers", shapes == {truth.shape} and finite,
            ", ".join(map(str, sorted(shapes))) + ("" if finite else ", not finite"),
        ),
        Check(
            "a standard deviation map beside each",
            spread and bool((circle.std > 0).any((-2, -1)).all()),
            f"rms {_rms(circle.std) / np.abs(truth).max():.2%} of the truth's maximum" if circle.std.size else "none",
        ),
    ]  # fmt: skip
    if shapes == {truth.shape} and finite:
        off, noise = _rms(circle.image - direct.image), _rms(direct.image - again.image)
        checks.append(
            Check(
                f"image within noise of the direct simulation's (rms at most {WITHIN:g} times that of another draw)",
                0 < noise and off <= WITHIN * noise,
                f"{off / noise:.3f} times" if noise else "another draw changes nothing, which cannot be",
            )
        )
    return checks


def check_prior(mask: SamplingMask, recipe: Recipe, prior_sha256: str | None) -> Check:
    """Whether the reconstruction's prior is the one that the mask was learned for.

    Parameters
    ----------
    prior_sha256
        Of the weights of the recipe's prior; None where it has none.
    """
    what = "the recipe's prior is the mask's"
    if mask.prior is None:
        return Check(what, True, f"does not apply: the mask, made by {mask.made_by}, is for no prior")
    if prior_sha256 is None:
        return Check(what, True, f"does not apply: {recipe.name} has no prior, the mask is for {mask.prior}")
    return Check(
        what, prior_sha256 == mask.prior_sha256,
        f"weights {prior_sha256[:16]} of {recipe.prior}, the mask's {str(mask.prior_sha256)[:16]} of {mask.prior}",
    )  # fmt: skip


def image_table(circle: Slices, direct: Slices, truth: np.ndarray) -> list[tuple[int, float, float]]:
    """(slice, PSNR of the circle's image, PSNR of the direct one) in dB, of magnitudes; empty where images lack."""
    if not {circle.image.shape, direct.image.shape} == {truth.shape}:
        return []
    return [
        (number, psnr(one, np.abs(true)), psnr(other, np.abs(true)))
        for number, (true, one, other) in enumerate(zip(truth, circle.image, direct.image, strict=True))
    ]


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else math.nan


def _series(images: list[Image], series: int, field: np.ndarray) -> np.ndarray:
    own = sorted(
        (image for image in images if int(image.head["image_series_index"]) == series),
        key=lambda image: int(image.head["slice"]),
    )
    found = np.concatenate([np.abs(image.data[0]) for image in own]) if own else np.zeros((0, 0, 0))
    return found / field if found.shape == field.shape else found


def _lines(path: Path) -> list[tuple[tuple[int, int, int], int, np.ndarray]]:
    """Of each imaging readout in order: (slice, step_1, step_2), its calibration flag, (coil, sample)."""
    scan = ScanFile(path)
    try:
        found = []
        for acquisition in scan.acquisitions():
            if acquisition.is_flag_set(NOISE_FLAG):
                continue
            idx = acquisition.head["idx"]
            key = int(idx["slice"]), int(idx["kspace_encode_step_1"]), int(idx["kspace_encode_step_2"])
            flags = [flag for flag in (ACS_FLAG, ACS_AND_IMAGING_FLAG) if acquisition.is_flag_set(flag)]
            found.append((key, sum(flags), acquisition.data))
        return found
    finally:
        scan.close()


def with_prior(recipe: Recipe, prior: str) -> Recipe:
    """A recipe with another prior; a file's is written with its whole path, so that the recipe can lie anywhere.

    Raises
    ------
    RecipeError
        If it takes none.
    """
    path = Path(prior)
    where = str(path.resolve()) if path.suffix and path.is_file() else prior
    return recipe_from(recipe.model_dump() | {"prior": where}, f"recipe {recipe.name!r} with the prior {prior!r}")


def write_report(
    out: Path,
    checks: list[Check],
    table: SamplingTable,
    psnrs: list[tuple[int, float, float]],
    recipe: str,
    played: str,
    picture: bool,
) -> Path:
    """`report.md` and `report.json`: what was checked and found."""
    mask = table.mask
    slab = ["- the slab's profile is not simulated: it holds the whole object"] if mask.kind == "points" else []
    slab.append("")
    lines = [
        f"# The circle: {mask.samples} {mask.kind} of {mask.mask.size}, R {mask.effective_r:.3f}",
        "",
        f"- mask {mask.sha256[:16]}, made by {mask.made_by}" + (f" for prior {mask.prior}" if mask.prior else ""),
        f"- played as {played}, {table.settings.name} order",
        f"- reconstructed by {recipe}, through the resident server",
        *slab,
        *(["![images](circle.png)", ""] if picture else []),
        "| check | holds | found |",
        "|---|---|---|",
        *(f"| {check.what} | {'yes' if check.holds else '**no**'} | {check.found} |" for check in checks),
        "",
        "| slice | PSNR of the circle, dB | of the direct simulation |",
        "|---|---|---|",
        *(f"| {number} | {one:.2f} | {other:.2f} |" for number, one, other in psnrs),
    ]
    (out / "report.json").write_text(
        json.dumps(
            {
                "mask": mask.sha256, "recipe": recipe, "sequence": played,
                "checks": [{"what": check.what, "holds": check.holds, "found": check.found} for check in checks],
                "psnr": [{"slice": number, "circle": one, "direct": other} for number, one, other in psnrs],
            },
            indent=1,
        )
        + "\n"
    )  # fmt: skip
    path = out / "report.md"
    path.write_text("\n".join(lines) + "\n")
    return path


def write_picture(path: Path, circle: Slices, direct: Slices, truth: np.ndarray) -> bool:
    """The middle slice: truth, the circle's image, its standard deviation, the direct image, their difference.

    False, and no file, where there is not an image for each slice.
    """
    from matplotlib.figure import Figure

    if not {circle.image.shape, direct.image.shape} == {truth.shape}:
        path.unlink(missing_ok=True)  # that of an earlier run
        return False
    middle = len(truth) // 2
    true, one, other = np.abs(truth[middle]), circle.image[middle], direct.image[middle]
    top = float(np.percentile(true, 99.7))
    columns = [("truth", true, "gray"), ("sequence, server", one, "gray")]
    if circle.std.shape == truth.shape:
        columns.append(("its standard deviation, x 5", circle.std[middle] * 5, "magma"))
    columns += [("mask, simulated directly", other, "gray"), ("difference, x 5", np.abs(one - other) * 5, "gray")]
    figure = Figure(figsize=(2.6 * len(columns), 3.0), dpi=110, layout="constrained")
    for axes, (title, picture, colours) in zip(figure.subplots(1, len(columns)), columns, strict=True):
        axes.imshow(picture, cmap=colours, vmin=0, vmax=top)
        axes.set_title(title, fontsize=9)
        axes.axis("off")
    figure.savefig(path)
    return True
