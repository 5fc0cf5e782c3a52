"""One self-contained HTML page of an evaluation: tables and figures, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from .evaluate_tables import Record, by_condition, cells, header

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; color: #1a1a1a; }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em }
table { border-collapse: collapse; margin: .6em 0 }
.wide { overflow-x: auto } th, td { padding: .25em .7em; text-align: right; white-space: nowrap }
th { border-bottom: 2px solid #888 } .name { text-align: left } .first td { border-top: 1px solid #ccc }
.best { font-weight: 600 } img { max-width: 100%; height: auto; margin: .8em 0 } dt { font-weight: 600 }
dd { margin: 0 0 .4em 1em; overflow-wrap: anywhere } .failed { color: #a00 } figcaption { color: #555; font-size: .9em }
"""

NOTES = (
    "PSNR, SSIM (Gaussian window, sigma 1.5) and NMSE are of the magnitude; the data range is the truth's maximum, "
    "nothing is rescaled. ± is the standard deviation over images; the best mean of each R is bold.",
    "R counts the ACS; the true R is in brackets. Coil maps come from the noisy ACS by ESPIRiT. Seconds are those of "
    "the method alone, without the maps.",
    "Bands: fraction of object pixels (truth above 5 % of its maximum) where the truth lies within z standard "
    "deviations of the image, z for 50, 80 and 95 % of a Gaussian. Error / std: their root mean squares over the "
    "object; above 1 a method is too sure of itself. Corr.: Pearson's, of the absolute error with the std.",
)


def write_page(
    path: Path,
    about: dict[str, Any],
    rows: Sequence[Record],
    figures: Sequence[tuple[str, Path]],
    failures: Sequence[str] = (),
) -> Path:
    """Write the page.

    Parameters
    ----------
    about
        What was run: names and values.
    rows
        The summary.
    figures
        (caption, PNG file), in order.
    failures
        Cases that failed.
    """
    parts = [
        "<!DOCTYPE html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">', "<title>Scanprior evaluation</title>",
        f"<style>{_STYLE}</style>", "</head>", "<body>", "<h1>Scanprior evaluation</h1>",
    ]  # fmt: skip
    if failures:
        parts += ['<section class="failed">', f"<h2>{len(failures)} cases failed</h2>", "<ul>"]
        parts += [f"<li>{escape(failure)}</li>" for failure in failures] + ["</ul>", "</section>"]
    for title, part in by_condition(rows):
        parts += [f"<h2>{escape(title)}</h2>", '<div class="wide">', *_table(part), "</div>"]
    parts += [f"<p>{escape(note)}</p>" for note in NOTES]
    for caption, file in figures:
        data = base64.b64encode(file.read_bytes()).decode("ascii")
        parts += [
            "<figure>", f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}">',
            f"<figcaption>{escape(caption)}</figcaption>", "</figure>",
        ]  # fmt: skip
    parts += ["<h2>What was run</h2>", "<dl>"]
    parts += [f"<dt>{escape(str(key))}</dt><dd>{escape(str(value))}</dd>" for key, value in about.items()]
    parts += ["</dl>", "</body>", "</html>"]
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")
    return path


def _table(rows: Sequence[Record]) -> list[str]:
    titles = header(rows)
    uncertain = len(titles) > 7
    lines = ["<table>", "<thead><tr>"]
    lines += [f"<th{_left(number)}>{escape(text)}</th>" for number, text in enumerate(titles)]
    lines += ["</tr></thead>", "<tbody>"]
    best = {
        (name, r): better(row[name] for row in rows if row["r"] == r)
        for name, better in (("psnr", max), ("ssim", max), ("nmse", min))
        for r in {row["r"] for row in rows}
    }
    previous = None
    for row in rows:
        lines.append('<tr class="first">' if row["r"] != previous else "<tr>")
        previous = row["r"]
        for number, text in enumerate(cells(row, uncertain)):
            name = {2: "psnr", 3: "ssim", 4: "nmse"}.get(number)
            bold = name is not None and row[name] == best[name, row["r"]]
            lines.append(f"<td{' class=best' if bold else _left(number)}>{escape(text)}</td>")
        lines.append("</tr>")
    return [*lines, "</tbody>", "</table>"]


def _left(number: int) -> str:
    return " class=name" if number < 2 else ""
