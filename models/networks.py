"""The registry of networks that priors are made of: one name each, all called as `network(x, ln(sigma) / 4)`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from .ncsnpp import NCSNpp
from .ncsnv2 import NCSNv2
from .unet import UNet

NETWORKS: dict[str, type[nn.Module]] = {"unet": UNet, "ncsnv2": NCSNv2, "ncsnpp": NCSNpp}


def network_name(network: nn.Module) -> str:
    """The name that `network` is registered under.

    Raises
    ------
    ValueError
        When it is not registered.
    """
    for name, kind in NETWORKS.items():
        if type(network) is kind:
            return name
    raise ValueError(f"network {type(network).__name__} is not known; there are: {', '.join(NETWORKS)}")


def build_network(description: Mapping[str, Any]) -> nn.Module:
    """A network from `{"name": ..., **arguments}`; without a name it is a `unet`.

    Raises
    ------
    ValueError
        When the name or an argument is not known, naming those that are, or a value does not do.
    """
    arguments = dict(description)
    return build_from(NETWORKS, arguments.pop("name", "unet"), arguments)


def build_from(registry: Mapping[str, type[nn.Module]], name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The network of that name in a registry.

    Raises
    ------
    ValueError
        When the name or an argument is not known, naming those that are, or a value does not do.
    """
    if name not in registry:
        raise ValueError(f"network {name!r} is not known; there are: {', '.join(registry)}")
    kind = registry[name]
    check_arguments(kind, name, arguments)
    try:
        return kind(**arguments)
    except (TypeError, RuntimeError, IndexError) as error:
        raise ValueError(f"network {name!r} cannot be made with {dict(arguments)}: {error}") from error


def check_arguments(kind: type[nn.Module], name: str, arguments: Mapping[str, Any]) -> None:
    """Make sure that a network has all these arguments.

    Raises
    ------
    ValueError
        Naming the first that it has not, and those that it has.
    """
    known = list(inspect.signature(kind).parameters)
    for key in arguments:
        if key not in known:
            raise ValueError(f"network {name!r} has no argument {key!r}; there are: {', '.join(known)}")
