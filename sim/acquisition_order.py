"""In which order a sequence measures the points of a mask, and which echo of which shot measures each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scanprior.sim.masks import distance_from_dc

ORDERS = ("linear", "centre-out", "interleaved")


@dataclass(frozen=True)
class OrderSettings:
    """How the points of a mask are ordered.

    Attributes
    ----------
    name
        `linear`: ky rising, kz by kz; a shot takes neighbours. `centre-out`: by distance from DC. `interleaved`: ky
        rising, but a shot takes points spread over all of k-space. The last two cut the sorted points into as many
        bands as a train has echoes; every shot takes one point of each band.
    echo_train
        Points measured by a shot; 1: every point is a shot.
    effective_echo
        Echo (from 0) that measures the band of DC; None: bands follow the echoes. `interleaved` then turns the bands
        round, `centre-out` gives the bands to the echoes as they lie around this one.
    """

    name: str = "linear"
    echo_train: int = 1
    effective_echo: int | None = None

    def __post_init__(self) -> None:
        if self.name not in ORDERS:
            raise ValueError(f"acquisition order: expected one of {', '.join(ORDERS)}, got {self.name!r}")
        if self.echo_train < 1:
            raise ValueError(f"echo train: expected at least 1, got {self.echo_train}")
        if self.effective_echo is None:
            return
        if not 0 <= self.effective_echo < self.echo_train:
            raise ValueError(f"effective echo: expected 0 to {self.echo_train - 1}, got {self.effective_echo}")
        if self.name == "linear" and self.echo_train > 1:
            raise ValueError("acquisition order: an effective TE needs interleaved or centre-out, got 'linear'")


@dataclass(frozen=True)
class Order:
    """Points in order of time.

    Attributes
    ----------
    points
        (n, 2) int64, ky and kz from 0; kz is 0 for a mask of lines. DC is (ny // 2, nz // 2).
    shot, echo
        (n,) int64, from 0. A train that has no point left for an echo does not list it.
    """

    points: np.ndarray
    shot: np.ndarray
    echo: np.ndarray


def acquisition_order(mask: np.ndarray, settings: OrderSettings | None = None) -> Order:
    """Order the points of a mask.

    Parameters
    ----------
    mask
        bool, (ky, kz); one kz for a mask of lines.
    settings
        Linear, every point a shot, if not given.

    Returns
    -------
    Order
        Each point once. With an `effective_echo`, DC (or the point nearest to it: `nearest_to_dc`) is measured by that
        echo.

    Raises
    ------
    ValueError
        If the mask is not of these axes or has no point.
    """
    settings = settings or OrderSettings()
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype != bool:
        raise ValueError(f"mask: expected bool of (ky, kz), got {mask.dtype} of shape {mask.shape}")
    kz, ky = np.nonzero(mask.T)  # kz by kz, ky rising
    if not len(ky):
        raise ValueError("mask: expected at least one point, got none")
    points = np.stack([ky, kz], 1)
    train = settings.echo_train
    if settings.name == "linear":
        index = np.arange(len(points))
        return Order(points, index // train, index % train)
    if settings.name == "centre-out":
        points = points[np.argsort(distance_from_dc(mask.shape)[tuple(points.T)], kind="stable")]

    bands = np.array_split(np.arange(len(points)), train)
    band = np.concatenate([np.full(len(members), b) for b, members in enumerate(bands)])
    shot = np.concatenate([np.arange(len(members)) for members in bands])
    echo = band
    if settings.effective_echo is not None:
        echoes = np.arange(train)
        if settings.name == "interleaved":
            echo_of_band = (echoes - band[nearest_to_dc(points, mask.shape)] + settings.effective_echo) % train
        else:
            echo_of_band = np.lexsort((echoes, np.abs(echoes - settings.effective_echo)))
        echo = echo_of_band[band]
    time = np.lexsort((echo, shot))
    return Order(points[time], shot[time], echo[time])


def nearest_to_dc(points: np.ndarray, shape: tuple[int, ...]) -> int:
    """Which of the points (n, 2) is the centre of k-space: DC, or in a mask without it the nearest one.

    Of those equally near it is that of the lowest kz, then of the lowest ky, whatever the order of the points.
    """
    return int(np.lexsort((*points.T, distance_from_dc(shape)[tuple(points.T)]))[0])
