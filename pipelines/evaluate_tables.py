"""The numbers of an evaluation: one row a case, and the mean and spread over images; CSV, JSON and Markdown."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scanprior.sim.evaluation import CALIBRATION
from scanprior.sim.mask_families import FAMILIES

Record = dict[str, Any]

CASE_COLUMNS = (
    "image", "mask", "r", "effective_r", "acs", "snr_db", "noise", "coils", "method", "lam", "tuned", "psnr", "ssim",
    "nmse", "seconds", "maps_seconds", "nfe", "samples", "evaluations", *CALIBRATION, "sigma",
)  # fmt: skip
"""Columns of cases.csv."""

SPREAD = ("psnr", "ssim", "nmse", "seconds")
"""Measures with a standard deviation over images in the summary (`psnr_sd`, ...)."""

AVERAGED = ("effective_r", *SPREAD, *CALIBRATION)
"""Measures averaged over the images."""

SUMMARY_COLUMNS = (
    "mask", "snr_db", "noise", "r", "effective_r", "acs", "method", "lam", "tuned", "images",
    *(name for measure in SPREAD for name in (measure, f"{measure}_sd")), "nfe", "samples",
    "evaluations", *CALIBRATION,
)  # fmt: skip
"""Columns of summary.csv."""


def summarise(records: Sequence[Record]) -> list[Record]:
    """A row for each mask, noise level, R and method, in the order of the records: means over images.

    `<measure>_sd` is the sample standard deviation over images, None for one image.
    """
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        key = tuple(record.get(name) for name in ("mask", "snr_db", "noise", "r", "method"))
        groups.setdefault(key, []).append(record)
    rows = []
    for (mask, snr_db, noise, r, method), group in groups.items():
        first = group[0]
        row: Record = {"mask": mask, "snr_db": snr_db, "noise": noise, "r": r, "method": method, "images": len(group)}
        row |= {name: first.get(name) for name in ("acs", "lam", "tuned", "nfe", "samples", "evaluations")}
        for name in AVERAGED:
            values = [record[name] for record in group if record[name] is not None]
            row[name] = float(np.mean(values)) if values else None
            if name in SPREAD:
                row[f"{name}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
        rows.append({name: row[name] for name in SUMMARY_COLUMNS})
    # methods of one condition side by side: masks, then noise levels, then R, as they first came
    order = {_condition(row): number for number, row in reversed(list(enumerate(rows)))}
    return sorted(rows, key=lambda row: (order[_condition(row)], row["r"]))


def _condition(row: Record) -> tuple[Any, ...]:
    """What has a table of its own."""
    return row["mask"], row["snr_db"], row["noise"]


def write_tables(out: Path, records: Sequence[Record], about: dict[str, Any]) -> list[Record]:
    """Write cases.csv, summary.csv, summary.json (with `about`) and summary.md; returns the summary."""
    rows = summarise(records)
    _write_csv(out / "cases.csv", CASE_COLUMNS, records)
    _write_csv(out / "summary.csv", SUMMARY_COLUMNS, rows)
    content = {"about": about, "summary": rows, "cases": list(records)}
    (out / "summary.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    lines = ["# Evaluation", "", *(f"- {key}: {value}" for key, value in about.items()), ""]
    for title, part in by_condition(rows):
        lines += [f"## {title}", "", *markdown(part), ""]
    (out / "summary.md").write_text("\n".join(lines), encoding="utf-8")
    return rows


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Record]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def by_condition(rows: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    """The rows of each mask and noise level, with a title."""
    parts: dict[tuple[Any, ...], list[Record]] = {}
    for row in rows:
        parts.setdefault(_condition(row), []).append(row)
    return [(title(*condition), part) for condition, part in parts.items()]


def title(mask: str, snr_db: float | None, noise: float | None = None) -> str:
    """A mask and its noise level in words."""
    return mask if mask.startswith("recorded") else f"{mask}, {noise_level(snr_db, noise)}"


def noise_level(snr_db: float | None, noise: float | None) -> str:
    """The noise of a condition in words."""
    if noise is not None:
        return f"noise {noise:g}"
    return "no noise" if snr_db is None else f"SNR {snr_db:g} dB"


def amount(mask: str, r: float) -> str:
    """How much a mask measures, as its family says it: `R 4`, `25 spokes`."""
    kind = FAMILIES[mask].amount if mask in FAMILIES else "R"
    return f"{r:g} {kind}" if kind == "spokes" else f"{kind} {r:g}"


def header(rows: Sequence[Record]) -> list[str]:
    """Column titles of `cells`."""
    uncertain = any(row["cover50"] is not None for row in rows)
    more = ["in 50 / 80 / 95 % band", "error / std", "corr."] if uncertain else []
    return ["R (true)", "method", "PSNR dB", "SSIM", "NMSE", "s", "evaluations", *more]


def cells(row: Record, uncertain: bool) -> list[str]:
    """One row of a table as text."""
    line = [
        f"{amount(row['mask'], row['r']).removeprefix('R ')} ({row['effective_r']:.2f})",
        row["method"] + _weight(row),
        *(_spread(row, name, digits) for name, digits in (("psnr", 2), ("ssim", 4), ("nmse", 5), ("seconds", 2))),
        row["evaluations"] or (f"{row['nfe']} x {row['samples'] or 1}" if row["nfe"] else "-"),
    ]
    if not uncertain:
        return line
    if row["cover50"] is None:
        return [*line, "-", "-", "-"]
    bands = " / ".join(f"{100 * row[name]:.0f}" for name in ("cover50", "cover80", "cover95"))
    return [*line, bands, _number(row["error_over_std"]), _number(row["error_std_corr"])]


def markdown(rows: Sequence[Record]) -> list[str]:
    """A Markdown table of `rows`."""
    titles = header(rows)
    uncertain = len(titles) > 7
    lines = [titles, ["---"] * len(titles), *(cells(row, uncertain) for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _weight(row: Record) -> str:
    """The weight of a baseline whose weight can be tuned, and where it comes from."""
    if row["tuned"] is None:
        return ""
    return f" (lam {row['lam']:.3g}, {'tuned' if row['tuned'] else 'shipped'})"


def _spread(row: Record, name: str, digits: int) -> str:
    sd = row[f"{name}_sd"]
    return f"{row[name]:.{digits}f}" + ("" if sd is None else f" ± {sd:.{digits}f}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
