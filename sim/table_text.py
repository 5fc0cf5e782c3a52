"""What the readers of text tables share: lines of a file, whole numbers within bounds."""

from __future__ import annotations

import re
from pathlib import Path

from scanprior.sim.sampling_table import TableError

_WHOLE = re.compile(r"[+-]?[0-9]{1,9}", re.ASCII)


def read_lines(path: Path) -> list[str]:
    """Lines of an ASCII file, without their ends.

    Raises
    ------
    TableError
        If the file cannot be read or is no ASCII.
    """
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError as error:
        raise TableError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TableError(f"{path}: expected ASCII text") from None


def whole(text: str, where: str, least: int = -65535, most: int = 65535) -> int:
    """A whole number from `least` to `most`.

    Raises
    ------
    TableError
        Naming `where` the number stands.
    """
    if not _WHOLE.fullmatch(text.strip(" ")) or not least <= int(text) <= most:
        raise TableError(f"{where}: expected a whole number from {least} to {most}, found {text[:40]!r}")
    return int(text)
