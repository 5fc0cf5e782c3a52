"""Sampling masks and tables for the tests of exports."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from scanprior.sim.acquisition_order import ORDERS, OrderSettings
from scanprior.sim.mask_file import SamplingMask
from scanprior.sim.sampling_table import SamplingTable


def lines_mask(lines: int = 32, acs: int = 6, seed: int = 0, columns: int = 40) -> SamplingMask:
    """A quarter of the lines, at random, besides the ACS."""
    return random_mask((lines, 1), (acs, 1), seed, columns)


def points_mask(shape: tuple[int, int] = (12, 10), acs: int = 4, seed: int = 0, columns: int = 24) -> SamplingMask:
    """A quarter of the points of a plane, at random, besides the ACS."""
    return random_mask(shape, (acs, acs), seed, columns)


def random_mask(shape: tuple[int, int], acs: tuple[int, int], seed: int, columns: int = 40) -> SamplingMask:
    """A quarter of the points, DC and a box of ACS."""
    mask = np.random.default_rng(seed).random(shape) < 0.25
    mask[shape[0] // 2, shape[1] // 2] = True
    box = np.zeros(shape, bool)
    y, z = (size // 2 - edge // 2 for size, edge in zip(shape, acs, strict=True))
    box[y : y + acs[0], z : z + acs[1]] = True
    return SamplingMask(
        mask | box, box, (columns, *shape), (220.0, 200.0, 5.0 if shape[1] == 1 else 60.0), "random", {"power": 2},
        4.0, seed, "phantoms", "small", "0" * 64,
    )  # fmt: skip


@st.composite
def tables(draw: st.DrawFn, product: bool = False) -> SamplingTable:
    """Tables of small random masks, of lines and of points, in any order; `product`: only lines, ky rising."""
    shape = (draw(st.integers(4, 24)), 1 if product else draw(st.sampled_from([1, 1, 4, 7])))
    acs = tuple(draw(st.integers(1, min(3, size))) for size in shape)
    mask = random_mask(shape, acs, draw(st.integers(0, 999)), draw(st.integers(2, 64)))  # type: ignore[arg-type]
    train = draw(st.integers(1, 6))
    name = draw(st.sampled_from(ORDERS))
    effective = None if name == "linear" else draw(st.none() | st.integers(0, train - 1))
    return SamplingTable(mask, OrderSettings(name, train, effective))
