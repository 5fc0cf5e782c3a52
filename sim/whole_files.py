"""Files that are there as a whole or not at all, however their writing ends."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_files(folder: Path) -> Iterator[Path]:
    """A folder to write files in, which take their places in `folder` when the block ends without an error.

    Until then nothing in `folder` is touched: those that were there stay if the block fails, and whoever watches them
    never sees a half. `folder` is made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".scanprior-", suffix=".partial", dir=folder) as name:
        partial = Path(name)
        yield partial
        for file in sorted(partial.iterdir()):
            file.replace(folder / file.name)
