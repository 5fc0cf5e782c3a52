"""Numbers with commas between, as options give them: whole sizes, and lengths in mm."""

from __future__ import annotations

import re


def sizes(option: str, text: str) -> list[int]:
    """Whole numbers from 1, such as `320,256`.

    Raises
    ------
    ValueError
        Naming the option and what was found.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,6}", part, re.ASCII) and int(part) for part in parts):
        raise ValueError(f"{option}: expected whole numbers from 1 with commas between, found {text!r}")
    return [int(part) for part in parts]


def lengths(option: str, text: str) -> tuple[float, float, float]:
    """Three lengths x,y,z in mm. Whether they are above 0 is for `SamplingMask` to say.

    Raises
    ------
    ValueError
        Naming the option and what was found.
    """
    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option}: expected three lengths x,y,z in mm, found {text!r}") from None
    return x, y, z
