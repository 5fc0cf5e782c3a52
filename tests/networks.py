"""Small networks of every name, with random weights, for the tests of all that is made of networks."""

from __future__ import annotations

from typing import Any

import torch
from scanprior.models.networks import build_network
from torch import nn

SMALL: dict[str, dict[str, Any]] = {
    "unet": {"name": "unet", "widths": [8, 16], "blocks": [1, 1], "embedding": 16},
    "ncsnv2": {"name": "ncsnv2", "widths": [8, 16, 16, 16]},
    "ncsnpp": {"name": "ncsnpp", "widths": [8, 16, 16], "blocks": 1, "attention": [2]},
}


def small_network(name: str, channels: int = 2, seed: int = 0, **arguments: Any) -> nn.Module:
    """A network of a few thousand weights, none of them zero: layers that start at zero would hide mistakes."""
    torch.manual_seed(seed)
    network = build_network(SMALL[name] | {"image_channels": channels} | arguments)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network.eval()
