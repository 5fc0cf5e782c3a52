"""What a file of weights says of itself, whichever family its prior is of, and what may be wrong with it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ValidationError

from .weights_file import PriorError


def _is_a_scale(value: tuple[float, float]) -> tuple[float, float]:
    if not (0 < value[0] <= 100 and value[1] > 0):
        raise ValueError(f"expected [percentile up to 100, value above 0], found {list(value)}")
    return value


Scale = Annotated[tuple[float, float], AfterValidator(_is_a_scale)]
"""(percentile, value): which percentile of a magnitude image has which value for the network."""


def one_of(names: Collection[str]) -> AfterValidator:
    """For the annotation of a field that must be one of these names."""

    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"{value!r} is not known; there are: {', '.join(names)}")
        return value

    return AfterValidator(check)


@contextmanager
def describing(path: Path) -> Iterator[None]:
    """Within it a network is made of a file's description, and filled with the file's weights.

    Raises
    ------
    PriorError
        Naming the file, and what of its description is wrong, or that its weights do not fit the network.
    """
    try:
        yield
    except ValidationError as error:
        raise PriorError(f"{path}: its description lacks something or is wrong: {explain(error)}") from None
    except ValueError as error:
        raise PriorError(f"{path}: its description lacks something or is wrong: {error}") from error
    except RuntimeError as error:
        raise PriorError(f"{path}: weights do not fit the network it describes: {error}") from error


def explain(error: ValidationError) -> str:
    """The keys at fault, what is wrong with each, and what was found."""
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        found = "" if item["type"] in ("missing", "value_error") else f", found {item['input']!r}"
        lines.append(f"{key}: {message}{found}" if key else message)
    return "; ".join(lines)
