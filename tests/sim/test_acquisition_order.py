"""The order of acquisition: every point once, sorted as told, DC at the effective echo."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scanprior.sim.acquisition_order import ORDERS, OrderSettings, acquisition_order, nearest_to_dc


def lines(size: int, *measured: int) -> np.ndarray:
    mask = np.zeros((size, 1), bool)
    mask[list(measured)] = True
    return mask


def listed(mask: np.ndarray, *arguments: object) -> list[tuple[int, int, int]]:
    """(ky, shot, echo) in order."""
    order = acquisition_order(mask, OrderSettings(*arguments))
    return [(int(k[0]), int(s), int(e)) for k, s, e in zip(order.points, order.shot, order.echo, strict=True)]


def test_orders_of_single_lines() -> None:
    mask = lines(12, 1, 4, 6, 7, 11)
    assert [k for k, _, _ in listed(mask, "linear")] == [1, 4, 6, 7, 11]
    assert [k for k, _, _ in listed(mask, "centre-out")] == [6, 7, 4, 1, 11]
    assert [k for k, _, _ in listed(mask, "interleaved")] == [1, 4, 6, 7, 11]


def test_shots_of_trains() -> None:
    mask = lines(12, 1, 4, 6, 7, 9, 11)
    assert listed(mask, "linear", 3) == [(1, 0, 0), (4, 0, 1), (6, 0, 2), (7, 1, 0), (9, 1, 1), (11, 1, 2)]
    assert listed(mask, "interleaved", 3) == [(1, 0, 0), (6, 0, 1), (9, 0, 2), (4, 1, 0), (7, 1, 1), (11, 1, 2)]
    # distances of 6, 7, 4, 9, 1, 11 are 0, 1, 2, 3, 5, 5: every shot goes outwards
    assert listed(mask, "centre-out", 3) == [(6, 0, 0), (4, 0, 1), (1, 0, 2), (7, 1, 0), (9, 1, 1), (11, 1, 2)]


def test_effective_echo_turns_the_bands_round() -> None:
    mask = lines(12, 1, 4, 6, 7, 9, 11)
    assert listed(mask, "interleaved", 3, 0) == [(6, 0, 0), (9, 0, 1), (1, 0, 2), (7, 1, 0), (11, 1, 1), (4, 1, 2)]
    # bands (6, 7), (4, 9), (1, 11) go to echo 1, then to its neighbours 0 and 2
    assert listed(mask, "centre-out", 3, 1) == [(4, 0, 0), (6, 0, 1), (1, 0, 2), (9, 1, 0), (7, 1, 1), (11, 1, 2)]


def test_planes_go_partition_by_partition() -> None:
    mask = np.zeros((3, 2), bool)
    mask[[0, 2, 1, 2], [0, 0, 1, 1]] = True
    assert acquisition_order(mask).points.tolist() == [[0, 0], [2, 0], [1, 1], [2, 1]]


@settings(max_examples=100, deadline=None)
@given(
    data=st.data(),
    ny=st.integers(1, 20),
    nz=st.integers(1, 6),
    train=st.integers(1, 9),
    name=st.sampled_from(ORDERS),
    seed=st.integers(0, 99),
)
def test_every_point_once_and_dc_at_the_effective_echo(
    data: st.DataObject, ny: int, nz: int, train: int, name: str, seed: int
) -> None:
    mask = np.random.default_rng(seed).random((ny, nz)) < 0.4
    mask[ny // 2, nz // 2] = True
    effective = None if name == "linear" else data.draw(st.none() | st.integers(0, train - 1))
    order = acquisition_order(mask, OrderSettings(name, train, effective))
    back = np.zeros((ny, nz), int)
    np.add.at(back, tuple(order.points.T), 1)
    assert np.array_equal(back, mask.astype(int))
    # one point an echo, in order of time, no more shots than needed
    time = order.shot * train + order.echo
    assert (np.diff(time) > 0).all()
    assert order.echo.max() < train
    assert order.shot.max() + 1 == -(-len(order.points) // train)
    if effective is not None:
        centre = (order.points == [ny // 2, nz // 2]).all(1)
        assert order.echo[centre].tolist() == [effective]


def test_the_nearest_to_dc_does_not_depend_on_the_order() -> None:
    shape = (12, 8)  # DC is (6, 4)
    points = np.array([[7, 4], [5, 4], [6, 6], [0, 0], [9, 4], [6, 2], [3, 4]])
    rng = np.random.default_rng(0)
    for _ in range(20):
        shuffled = points[rng.permutation(len(points))]
        assert shuffled[nearest_to_dc(shuffled, shape)].tolist() == [5, 4]
    # 3 of 12 lines and 2 of 8 partitions are as far: the lowest kz, then the lowest ky
    assert points[nearest_to_dc(points, shape)].tolist() == [5, 4]
    for rows, first in (([2, 4, 5, 6], [6, 2]), ([2, 4, 6], [3, 4]), ([2, 4], [9, 4])):
        assert points[rows][nearest_to_dc(points[rows], shape)].tolist() == first


@pytest.mark.parametrize("effective", range(4))
@pytest.mark.parametrize("name", ["centre-out", "interleaved"])
def test_without_dc_the_lower_of_two_equal_lines_is_the_centre(name: str, effective: int) -> None:
    order = acquisition_order(lines(16, 0, 2, 5, 7, 9, 11, 13, 15), OrderSettings(name, 4, effective))
    assert order.echo[order.points[:, 0] == 7].tolist() == [effective]
    assert order.points[nearest_to_dc(order.points, (16, 1))].tolist() == [7, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("spiral",), "one of linear, centre-out, interleaved, got 'spiral'"),
        (("linear", 0), "echo train: expected at least 1, got 0"),
        (("interleaved", 4, 4), "effective echo: expected 0 to 3, got 4"),
        (("linear", 4, 1), "needs interleaved or centre-out"),
    ],
)
def test_settings_that_cannot_be(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OrderSettings(*arguments)


@pytest.mark.parametrize("mask", [np.zeros((4, 1), bool), np.ones((4, 1)), np.ones(4, bool)])
def test_masks_that_cannot_be(mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match="mask: expected"):
        acquisition_order(mask)
