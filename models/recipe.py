"""Recipes: how a scan is to be reconstructed, in YAML. The same recipe drives every way in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .methods import METHODS
from .scan import Settings

# a folder of data beside this package; the recipes are files, nothing of that package is imported
RECIPE_FOLDER = Path(__file__).parent.parent / "pipelines" / "recipes"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


DEFAULT_RECIPE = "pnp-admm"
"""The recipe where none is named; benchmarks/papers.md says why it is this one."""

PARAMETERS = ("whitened", "samples", "steps", "device", "output", "std")
"""What a scan may change of its recipe."""


class RecipeError(ValueError):
    """A recipe, or a parameter of a scan, that cannot be followed. The message names the key and what is allowed."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Compression(_Section):
    """Coil compression by SVD: to a number of virtual coils, or to a share of the energy."""

    coils: int | None = Field(None, ge=1, description="virtual coils to keep")
    energy: float | None = Field(None, gt=0, le=1, description="keep coils until they hold this share of the energy")

    @model_validator(mode="after")
    def _one_of_both(self) -> Compression:
        if (self.coils is None) == (self.energy is None):
            raise ValueError("give either 'coils' or 'energy'")
        return self


class Maps(_Section):
    """ESPIRiT's settings."""

    kernel: int = Field(
        6, ge=3, le=12, description="edge of the k-space kernel in samples, where there are ACS lines enough"
    )
    threshold: float = Field(0.02, gt=0, lt=1, description="singular values kept, relative to the largest")
    crop: float = Field(0.8, ge=0, lt=1, description="maps are zero where the eigenvalue is below this")
    sets: int = Field(1, ge=1, le=4, description="sets of maps; 2 where the field of view is smaller than the head")


class Outputs(_Section):
    """What is sent downstream."""

    image: Literal["magnitude", "complex"] = Field("magnitude", description="type of the image")
    std: bool = Field(True, description="send the standard-deviation map where the method has one")


class Recipe(_Section):
    """A whole reconstruction.

    Attributes
    ----------
    whitening
        `auto`: noise scan, else estimated from the edges of k-space; `scan`: noise scan, else none; `none`;
        `upstream`: the data come whitened (NoiseAdjust).
    precision
        What the prior's network computes in. bfloat16 is faster on GPUs and on CPUs with AMX, slower on others.
    compile
        Compile the prior's network (torch.compile). Pays where many images of one size follow.
    """

    name: str = ""
    description: str = ""
    whitening: Literal["auto", "scan", "none", "upstream"] = "auto"
    compression: Compression | None = None
    maps: Maps = Field(default_factory=lambda: Maps.model_validate({}))
    partial_fourier: Literal["zero-fill", "pocs", "homodyne"] = "zero-fill"
    method: Literal[tuple(METHODS)]  # type: ignore[valid-type]
    prior: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    outputs: Outputs = Field(default_factory=lambda: Outputs.model_validate({}))
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False
    device: str = "auto"

    @field_validator("device")
    @classmethod
    def _device_is_known(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", value):
            raise ValueError(f"expected auto, cpu, cuda or cuda:<number> such as cuda:1, found {value[:64]!r}")
        return value

    @model_validator(mode="after")
    def _settings_fit_method(self) -> Recipe:
        method = METHODS[self.method]
        if method.needs_prior and self.prior is None:
            raise ValueError(f"method '{self.method}' needs a 'prior'")
        if not method.needs_prior and self.prior is not None:
            raise ValueError(f"method '{self.method}' takes no 'prior'")
        _ = self.method_settings
        return self

    @property
    def settings_to_run(self) -> Settings:
        """`method_settings`, less what would be done for a standard deviation that is not sent."""
        return self.method_settings if self.outputs.std else self.method_settings.without_std()

    @property
    def method_settings(self) -> Settings:
        """`settings`, checked against the method's own class."""
        kind = METHODS[self.method].settings
        try:
            return kind.model_validate(self.settings)
        except ValidationError as error:
            raise ValueError("; ".join(_explain(error, kind, "settings."))) from None

    @property
    def needs_maps(self) -> bool:
        """Whether coil maps have to be estimated."""
        return METHODS[self.method].needs_maps(self.method_settings)

    def on(self, device: str) -> Recipe:
        """This recipe on another device.

        Raises
        ------
        RecipeError
            When `device` is not auto, cpu, cuda or cuda:<number>.
        """
        return recipe_from(self.model_dump() | {"device": device}, f"recipe {self.name!r} on another device")

    def with_parameters(self, parameters: Mapping[str, Any]) -> Recipe:
        """This recipe with what the scan's own parameters ask for (Gadgetron properties, FIRE's JSON).

        Known are those in `PARAMETERS`: `whitened` (true: NoiseAdjust ran upstream; false: it did not, whatever the
        recipe says), `samples`, `steps`, `device`, `output` (magnitude, complex) and `std`. Others are left to whom
        they are meant for.

        Raises
        ------
        RecipeError
            When a value is not allowed, or the method has no such setting.
        """
        data = self.model_dump()
        for key, given in parameters.items():
            value = str(given).lower() if isinstance(given, bool) else str(given)
            if key in ("samples", "steps"):
                fields = METHODS[self.method].settings.model_fields
                setting = "iterations" if key == "steps" and "iterations" in fields else key
                if setting not in fields:
                    raise RecipeError(
                        f"parameter {key!r}: the method {self.method!r} of this recipe has no such setting"
                    )
                data["settings"][setting] = _number(key, value)
            elif key == "whitened":
                if _truth(key, value):
                    data["whitening"] = "upstream"
                elif data["whitening"] == "upstream":
                    data["whitening"] = "auto"
            elif key == "device":
                data["device"] = value
            elif key == "output":
                data["outputs"]["image"] = value
            elif key == "std":
                data["outputs"]["std"] = _truth(key, value)
        return recipe_from(data, f"recipe {self.name!r} with the scan's parameters")


def recipe_from(data: Any, origin: str) -> Recipe:
    """Validate a mapping.

    Raises
    ------
    RecipeError
        Naming `origin`, each wrong key, the value found and what is allowed.
    """
    if not isinstance(data, dict):
        raise RecipeError(f"{origin}: expected a mapping of keys to values, found {type(data).__name__}")
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"{origin}: " + "; ".join(_explain(error, Recipe, ""))) from None


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in RECIPE_FOLDER.glob("*.yaml"))


def load_recipe(name: str) -> Recipe:
    """A shipped recipe by name. Names are all that a network peer may give: a path is refused.

    Raises
    ------
    RecipeError
        When there is none of that name.
    """
    if not _NAME.fullmatch(name) or name not in recipe_names():
        raise RecipeError(f"recipe {name[:64]!r} is not known; there are: {', '.join(recipe_names())}")
    return read_recipe(RECIPE_FOLDER / f"{name}.yaml")


def read_recipe(path: Path) -> Recipe:
    """A recipe from a file of the user's own machine.

    Raises
    ------
    RecipeError
        When the file is not there, not YAML or not a recipe.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path.name}: cannot be read: {error}") from error
    if isinstance(data, dict):
        data.setdefault("name", path.stem)
    return recipe_from(data, path.name)


def _explain(error: ValidationError, kind: type[BaseModel], prefix: str) -> list[str]:
    """One line a mistake: the key, what is wrong, what was found, and which keys there are."""
    lines = []
    for item in error.errors():
        key = prefix + ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            owner: Any = kind
            for part in item["loc"][:-1]:
                owner = owner.model_fields[str(part)].annotation
                owner = next((a for a in getattr(owner, "__args__", ()) if hasattr(a, "model_fields")), owner)
            lines.append(f"unknown key {key!r}; there are: {', '.join(owner.model_fields)}")
        elif item["type"] in ("value_error", "missing"):
            lines.append(f"{key}: {message}" if key else message)
        else:
            lines.append(f"{key}: {message}, found {item['input']!r}")
    return lines


def _number(key: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise RecipeError(f"parameter {key!r}: expected a whole number, found {value[:64]!r}") from None


def _truth(key: str, value: str) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    try:
        return words[value.strip().lower()]
    except KeyError:
        raise RecipeError(f"parameter {key!r}: expected true or false, found {value[:64]!r}") from None
