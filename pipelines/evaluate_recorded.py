"""`scanprior evaluate` on a recorded scan: through the stream core, against the truth that it was made of.

A reconstruction comes in the units of whitened k-space: image times |W C|, with W the whitening matrix of the noise
scan and C the coil sensitivities of the truth. The image is divided by this smooth field before it is compared; nothing
is fitted to the truth.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scanprior.gadgets.encoding import Encoding
from scanprior.gadgets.engine import Engine
from scanprior.gadgets.errors import ScanError
from scanprior.gadgets.images import STD_SERIES
from scanprior.gadgets.mrd import Image
from scanprior.gadgets.noise import NoiseScan
from scanprior.sim.evaluation import CALIBRATION, evaluations_of, score

from .evaluate_figures import Shown
from .evaluate_methods import Candidate
from .evaluate_plan import EvaluationError, own_version
from .evaluate_report import Grid, about_machine, about_methods
from .evaluate_store import Store, WeightsHash, load_picture, save_picture
from .evaluate_tables import Record
from .replay import ScanFile, ScanFileError, replay

NOISE_FLAG = 19


@dataclass(frozen=True)
class Truth:
    """What a recorded scan was made of.

    Attributes
    ----------
    path
        Its file.
    images
        (repetition, slice, y, x) magnitude.
    field
        (slice, y, x): |W C|, what turns the truth into a reconstruction's units.
    """

    path: Path
    images: np.ndarray
    field: np.ndarray


def load_truth(path: Path, scan: Path) -> Truth:
    """The truth of a scan: an npz with `image` and `maps`, as `scanprior simulate` writes it.

    `image` is (repetition, slice, y, x), (slice, y, x) or (y, x); `maps` (slice, coil, y, x) or (coil, y, x). Both are
    complex, or real with a last axis of real and imaginary parts. In place of `maps`, `maps_cheb` (slice, coil,
    degree y, degree x) holds Chebyshev coefficients over the field of view, of maps that are then normalised to a
    root sum of squares of 1. `scale`, where it is there, is that of the file over that of `image`. `lesion`
    (slice, y, x), where it is there, was added to the magnitude in all repetitions but the first.

    Raises
    ------
    EvaluationError
        When a file is missing or is not what it should be, or the scan has no noise scan.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            data = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path}: not a truth (npz) that can be read: {error}") from error
    if "image" not in data or not {"maps", "maps_cheb"} & set(data):
        raise EvaluationError(f"{path}: expected the arrays 'image' and 'maps', found {', '.join(sorted(data))}")
    image = _complex(data["image"])
    if not 2 <= image.ndim <= 4:
        raise EvaluationError(f"{path}: image: expected (repetition, slice, y, x), got shape {image.shape}")
    images = image.reshape((1,) * (4 - image.ndim) + image.shape)
    magnitude = np.abs(images)
    if "lesion" in data:
        magnitude = np.concatenate([magnitude, magnitude + np.abs(data["lesion"].astype(np.float32))])
    maps = (
        _complex(data["maps"]) if "maps" in data else _chebyshev(data["maps_cheb"], (images.shape[2], images.shape[3]))
    )
    maps = maps[None] if maps.ndim == 3 else maps
    if maps.ndim != 4 or maps.shape[-2:] != images.shape[-2:] or len(maps) != images.shape[1]:
        raise EvaluationError(
            f"{path}: maps: expected (slice, coil, y, x) for images {images.shape}, got shape {maps.shape}"
        )
    matrix = whitening_matrix(scan) * float(data.get("scale", 1.0))
    if matrix.shape[1] != maps.shape[1]:
        raise EvaluationError(f"{path}: maps of {maps.shape[1]} coils, {scan.name} has {matrix.shape[1]} channels")
    field = np.sqrt((np.abs(np.einsum("dc,scyx->sdyx", matrix, maps)) ** 2).sum(1))
    return Truth(path, magnitude.astype(np.float32), field)


def whitening_matrix(path: Path) -> np.ndarray:
    """(coil, coil): the whitening of a scan from its noise scan, as the stream core makes it.

    Raises
    ------
    EvaluationError
        When the file is no MRD file, or has no noise scan before its image.
    """
    try:
        scan = ScanFile(path)
        try:
            encoding, noise = Encoding.from_header(scan.header), NoiseScan()
            for acquisition in scan.acquisitions():
                if acquisition.is_flag_set(NOISE_FLAG):
                    noise.add(acquisition)
                    continue
                found = noise.noise()
                if found is None:
                    break
                dwell = float(acquisition.head["sample_time_us"])
                return found.whitening(dwell, encoding.noise_bandwidth).matrix
        finally:
            scan.close()
    except (ScanFileError, ScanError) as error:
        raise EvaluationError(f"{path.name}: {error}") from error
    raise EvaluationError(f"{path.name}: no noise scan, so images cannot be brought to the truth's units")


def recorded_records(
    scan: Path, truth: Truth, candidates: list[Candidate], out: Path, threads: int, show: int,
    tell: Callable[[str, int], None] = lambda what, done: None,
) -> tuple[list[Record], list[Grid], list[str]]:  # fmt: skip
    """Every candidate on the scan: a record for each image, grids of the first `show` images, and what failed.

    What each candidate gave is kept in `out` as it goes, so that a cut run goes on with the next.
    `seconds` is the time of the whole replay over the number of images.

    Raises
    ------
    EvaluationError
        When a recipe does not whiten by the noise scan, so that its units are not known.
    """
    for candidate in candidates:
        if candidate.recipe.whitening not in ("auto", "scan"):
            raise EvaluationError(
                f"method {candidate.label!r}: whitening {candidate.recipe.whitening!r}; a recorded scan is compared "
                "in whitened units: use auto or scan"
            )
    (out / "images").mkdir(parents=True, exist_ok=True)
    store, weights = Store(out / "recorded.jsonl"), WeightsHash()
    files = {path.name: _hash(path) for path in (scan, truth.path)}
    records: list[Record] = []
    failures: list[str] = []
    shown: dict[tuple[int, int], list[Shown]] = {}
    for candidate in candidates:
        tell(candidate.label, 0)
        recipe = candidate.recipe
        engine = Engine(recipe, threads=threads)
        try:
            parts = {
                "scanprior": own_version(), "files": files, "device": str(engine.device(recipe)),
                "recipe": recipe.model_dump(exclude={"name", "description", "device"}),
                "settings": recipe.method_settings.model_dump(), "weights": weights(engine.prior(recipe)),
            }  # fmt: skip
            case = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]
            pictures = [out / "images" / f"{case}_{number}.npz" for number in range(show)]
            kept = store.records.get(case)
            if kept is None or not all(path.exists() for path in pictures[: len(kept["records"])]):
                kept = {"case": case, "records": _run(scan, truth, candidate, engine, pictures)}
                store.add(kept)
        except (ScanError, ValueError, RuntimeError) as error:
            failures.append(f"{scan.name}, {candidate.label}: {error}")
            continue
        finally:
            engine.close()
            tell("", 1)
        records += [record | {"method": candidate.label} for record in kept["records"]]
        for record, path in zip(kept["records"], pictures, strict=False):
            at = record["repetition"], record["slice"]
            shown.setdefault(at, []).append(Shown(candidate.label, *load_picture(path)))
    grids = [
        Grid(f"{scan.name}, {_name(at)}", truth.images[at], np.zeros((0, 0), bool), part) for at, part in shown.items()
    ]
    return records, grids, failures


def _run(scan: Path, truth: Truth, candidate: Candidate, engine: Engine, pictures: list[Path]) -> list[Record]:
    """Records of all images, by repetition and slice; pictures of the first of them."""
    engine.warm_up()  # what a first call costs is not the method's time
    began = time.perf_counter()
    images, report = replay(scan, engine, None)
    seconds = (time.perf_counter() - began) / max(1, len(report["images"]))
    told = {(each["key"]["repetition"], each["key"]["slice"]): each for each in report["images"]}
    made = sorted(_placed(images, truth).items())
    for path, (_, (image, std)) in zip(pictures, made, strict=False):
        save_picture(path, image, std)
    return [
        _record(scan, at, candidate, told[at], seconds, score(image, std, truth.images[at]))
        for at, (image, std) in made
    ]


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _placed(images: list[Image], truth: Truth) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray | None]]:
    """(repetition, slice) -> magnitude and standard deviation (y, x) in the truth's units."""
    made: dict[tuple[int, int], tuple[np.ndarray, np.ndarray | None]] = {}
    for message in images:
        at = int(message.head["repetition"]), int(message.head["slice"])
        if at[0] >= len(truth.images) or at[1] >= truth.images.shape[1]:
            raise EvaluationError(f"image of {_name(at)}: the truth has images of shape {truth.images.shape} only")
        pixels = np.abs(message.data[0])
        if pixels.shape != (1, *truth.images.shape[-2:]):
            raise EvaluationError(f"image of {_name(at)}: expected {truth.images.shape[-2:]}, got {pixels.shape}")
        in_units = pixels[0] / truth.field[at[1]]
        if int(message.head["image_series_index"]) == STD_SERIES:
            made[at] = made[at][0], in_units
        else:
            made[at] = in_units, None
    return made


def _record(
    scan: Path, at: tuple[int, int], candidate: Candidate, told: dict[str, Any], seconds: float,
    scores: dict[str, float | None],
) -> Record:  # fmt: skip
    r = round(float(told["effective_r"]), 2)
    return {
        "image": f"{scan.name} {_name(at)}", "repetition": at[0], "slice": at[1],
        "mask": f"recorded {scan.stem}", "r": r, "snr_db": None, "noise": None,
        "effective_r": float(told["effective_r"]), "acs": None, "coils": int(told["coils"]), "method": candidate.label,
        "lam": getattr(candidate.recipe.method_settings, "lam", None), "tuned": False if candidate.tunable else None,
        "maps_seconds": None, "seconds": seconds, "nfe": told.get("nfe"), "samples": told.get("samples"),
        "evaluations": evaluations_of(told), "sigma": None,
        **dict.fromkeys(CALIBRATION), **scores,
    }  # fmt: skip


def _name(at: tuple[int, int]) -> str:
    return f"repetition {at[0]} slice {at[1]}"


def about_recorded(scan: Path, truth: Path, candidates: list[Candidate], threads: int) -> dict[str, Any]:
    """What was run, for the head of the tables."""
    return {
        "scan": scan.name,
        "truth": truth.name,
        **about_methods(candidates),
        "weights of l1-wavelet, tv and vae tuned": "no: shipped weights",
        "units": "images over |W C|, whitening times coil maps of the truth; nothing is fitted",
        **about_machine(threads),
    }


def _complex(array: np.ndarray) -> np.ndarray:
    """Complex as it is, or from a last axis of real and imaginary parts."""
    if array.dtype.kind == "c" or array.shape[-1] != 2:
        return array
    pairs = array.astype(np.float32)
    return pairs[..., 0] + 1j * pairs[..., 1]


def _chebyshev(coefficients: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Maps (slice, coil, y, x) of unit norm over coils from coefficients (slice, coil, degree y, degree x)."""
    if coefficients.ndim != 4:
        raise EvaluationError(f"maps_cheb: expected (slice, coil, degree, degree), got shape {coefficients.shape}")
    along_y, along_x = (
        np.polynomial.chebyshev.chebvander(np.linspace(-1, 1, size), degree - 1)
        for size, degree in zip(shape, coefficients.shape[-2:], strict=True)
    )
    maps = np.einsum("yi,scij,xj->scyx", along_y, coefficients, along_x)
    return maps / np.sqrt((np.abs(maps) ** 2).sum(1, keepdims=True))
