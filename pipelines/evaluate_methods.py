"""Which reconstructions an evaluation compares: recipes by name or path, with settings changed on the way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from scanprior.models.methods import METHODS
from scanprior.models.recipe import Recipe, RecipeError, load_recipe, read_recipe, recipe_from

TUNABLE = ("l1-wavelet", "tv", "vae")
"""Methods whose weight `lam` is chosen on training images, where an evaluation has some."""


@dataclass(frozen=True)
class Candidate:
    """One column of the comparison.

    Attributes
    ----------
    label
        What the tables call it: the recipe and what was changed.
    recipe
        With the changes.
    tunable
        Whether `lam` may be chosen on training images: a baseline whose weight the user did not give.
    """

    label: str
    recipe: Recipe
    tunable: bool = False

    def with_lam(self, lam: float) -> Candidate:
        """This one with another weight, under the same label."""
        data = self.recipe.model_dump()
        data["settings"] = data["settings"] | {"lam": lam}
        return Candidate(self.label, recipe_from(data, self.label), self.tunable)


def parse_methods(texts: Iterable[str], precision: str | None = None, device: str | None = None) -> list[Candidate]:
    """Candidates from `sense,tv,pnp-admm:samples=4`; each text may hold several.

    After a colon come changes of the method's settings (`steps=20`), of other keys of the recipe (`prior=mine`,
    `maps.crop=0.5`); values are YAML. `precision` and `device` override the recipes' where they are not None.

    Raises
    ------
    RecipeError
        When a recipe is not known, a change is not `key=value`, or the recipe refuses it, naming the key; or when two
        are the same.
    """
    found: list[Candidate] = []
    for name, changes in _split(texts):
        candidate = _candidate(name, changes, precision, device)
        if any(other.label == candidate.label for other in found):
            raise RecipeError(f"method {candidate.label!r} is given twice")
        found.append(candidate)
    if not found:
        raise RecipeError("no methods given")
    return found


def _split(texts: Iterable[str]) -> list[tuple[str, list[str]]]:
    """(recipe, changes) of each method. Commas divide methods and changes: a change has `=` and no colon before it."""
    found: list[tuple[str, list[str]]] = []
    for text in texts:
        for piece in (part.strip() for part in text.split(",") if part.strip()):
            key, equals, _ = piece.partition("=")
            if equals and ":" not in key:
                if not found:
                    raise RecipeError(f"method {piece!r}: expected a recipe before the first change")
                found[-1][1].append(piece)
            else:
                name, colon, change = piece.partition(":")
                found.append((name, [change] if colon else []))
    return found


def _candidate(name: str, changes: list[str], precision: str | None, device: str | None) -> Candidate:
    is_file = name.endswith((".yaml", ".yml"))
    recipe = read_recipe(Path(name)) if is_file else load_recipe(name)
    label = (Path(name).stem if is_file else name) + (":" + ",".join(changes) if changes else "")
    data = recipe.model_dump()
    given = set()
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key:
            raise RecipeError(f"method {label!r}: expected key=value, found {change!r}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise RecipeError(f"method {label!r}: the value of {key!r} is not YAML: {text!r}") from error
        _place(data, recipe.method, key, value, label)
        given.add(key)
    if precision is not None and data["prior"] is not None:
        data["precision"] = precision
    if device is not None:
        data["device"] = device
    return Candidate(label, recipe_from(data, f"method {label!r}"), recipe.method in TUNABLE and "lam" not in given)


def _place(data: dict[str, Any], method: str, key: str, value: Any, label: str) -> None:
    """Put a changed value where it belongs: the method's settings first, then the recipe's own keys."""
    section, dot, inner = key.partition(".")
    if dot:
        if not isinstance(data.get(section), dict):
            raise RecipeError(
                f"method {label!r}: {section!r} is no section of a recipe; there are: maps, outputs, settings"
            )
        data[section] = data[section] | {inner: value}
    elif key not in METHODS[method].settings.model_fields and key in Recipe.model_fields:
        data[key] = value
    else:
        # a key that is nobody's is refused by the recipe, which names those that there are
        data["settings"] = data["settings"] | {key: value}
