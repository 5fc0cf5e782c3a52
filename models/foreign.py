"""Other people's weights as priors: a safetensors file, and a mapping file that says which tensor is which.

The network must be one of ours in all but the names (see docs/priors.md for what published networks correspond to).
Nothing is ever unpickled: checkpoints of other formats have to be made safetensors by those who trust them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import torch
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from .diffusion_prior import DiffusionPrior
from .prior_description import PriorDescription
from .weights_description import explain
from .weights_file import PriorError

_SHOWN = 10  # mistakes of a kind that a message names


def _expression(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"{value!r} is no regular expression: {error}") from None
    return value


Expression = Annotated[str, AfterValidator(_expression)]


class TensorRule(BaseModel):
    """What is done to some of their tensors, in this order: take, permute, scale."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ours: Expression = Field(description="regular expression that the whole (renamed) name of ours must match")
    theirs: str = Field(description="their name; \\1, \\2 are groups of `ours`")
    take: tuple[int, int] | None = Field(None, description="[first, step]: rows of theirs (fused q, k, v: step 3)")
    permute: tuple[int, ...] | None = Field(None, description="order of their axes")
    scale: float = Field(1.0, description="factor")

    def apply(self, tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Theirs as ours; axes of length 1 are added or dropped to make it `shape`.

        Raises
        ------
        ValueError
            When it cannot be made that shape.
        """
        changed = tensor
        if self.take is not None:
            changed = changed[self.take[0] :: self.take[1]]
        if self.permute is not None:
            if sorted(self.permute) != list(range(changed.ndim)):
                raise ValueError(f"permute {list(self.permute)} does not fit theirs of shape {tuple(tensor.shape)}")
            changed = changed.permute(self.permute)
        if [n for n in changed.shape if n != 1] != [n for n in shape if n != 1]:
            after = "" if changed.shape == tensor.shape else f", {tuple(changed.shape)} after the rule"
            raise ValueError(f"expected shape {tuple(shape)}, found {tuple(tensor.shape)}{after}")
        return self.scale * changed.float().reshape(shape)


_AS_IT_IS = TensorRule(ours="", theirs="", take=None, permute=None, scale=1.0)


class ForeignMapping(PriorDescription):
    """A mapping file: the description of a prior, and where its tensors come from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: str = Field(description="path of the safetensors file, from the folder of the mapping file")
    rename: list[tuple[Expression, str]] = Field(
        default_factory=list, description="[expression, replacement]: what all together make their names of ours"
    )
    tensors: list[TensorRule] = Field(default_factory=list, description="the first rule that fits is taken")
    ignore: list[Expression] = Field(
        default_factory=list, description="their tensors without use, as regular expressions"
    )

    def source(self, name: str) -> tuple[str, TensorRule | None]:
        """Their name for our tensor `name`, and the rule for it if there is one.

        Raises
        ------
        PriorError
            When a replacement refers to a group that its expression does not have.
        """
        try:
            for pattern, replacement in self.rename:
                name = re.sub(pattern, replacement, name)
            for rule in self.tensors:
                found = re.fullmatch(rule.ours, name)
                if found:
                    return found.expand(rule.theirs), rule
        except (re.error, IndexError) as error:
            raise PriorError(f"a rule for our tensor {name}: {error}") from None
        return name, None


def load_foreign(mapping: Path) -> DiffusionPrior:
    """The prior that a mapping file (YAML or JSON) and the weights that it names make.

    Raises
    ------
    PriorError
        Naming the file and what is wrong: the description, tensors that their file lacks, of another shape, or that
        are left over.
    """
    # JSON is YAML too
    try:
        data = yaml.safe_load(mapping.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PriorError(f"{mapping}: a mapping file that cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise PriorError(f"{mapping}: expected a mapping of keys to values, found {type(data).__name__}")
    try:
        rules = ForeignMapping.model_validate(data)
        denoiser = rules.denoiser()
    except ValidationError as error:
        known = ", ".join(ForeignMapping.model_fields)
        raise PriorError(f"{mapping}: {explain(error)}; the keys are: {known}") from None
    except ValueError as error:
        raise PriorError(f"{mapping}: {error}") from error
    path = mapping.parent / rules.weights
    try:
        theirs = load_file(path)
    except (SafetensorError, OSError) as error:
        raise PriorError(f"{path}: not a safetensors file that can be read: {error}") from error
    denoiser.network.load_state_dict(_translate(rules, theirs, denoiser.network.state_dict(), mapping))
    return rules.prior(denoiser, mapping.stem)


def _translate(
    rules: ForeignMapping, theirs: dict[str, torch.Tensor], ours: dict[str, torch.Tensor], origin: Path
) -> dict[str, torch.Tensor]:
    """Our state dict out of theirs; all mistakes are told together."""
    made, used = {}, set()
    missing, misshaped = [], []
    for name, tensor in ours.items():
        theirs_name, rule = rules.source(name)
        if theirs_name not in theirs:
            missing.append(f"{theirs_name} (for our {name})")
            continue
        used.add(theirs_name)
        try:
            made[name] = (rule or _AS_IT_IS).apply(theirs[theirs_name], tensor.shape)
        except ValueError as error:
            misshaped.append(f"{theirs_name} (for our {name}): {error}")
    left = [
        name for name in theirs if name not in used and not any(re.fullmatch(pattern, name) for pattern in rules.ignore)
    ]
    told = [
        _told("tensors that their file lacks", missing),
        _told("tensors of another shape", misshaped),
        _told("their tensors that none of ours is made of and `ignore` does not name", left),
    ]
    if any(told):
        raise PriorError(f"{origin}: " + "; ".join(line for line in told if line))
    return made


def _told(what: str, names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{what}: {', '.join(names[:_SHOWN])}{more}" if names else ""
