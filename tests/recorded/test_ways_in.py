"""Replay and the four ways in give the same images, to the bit, for every recorded scan.

The peers read and write by ismrmrd and gadgetron-python. All processes have the same environment and so the same
number of threads, whatever that is: a sum in another order has other last bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from peers import (
    ImageBytes,
    PeerScan,
    Replies,
    ServerProcess,
    by_connect,
    by_execute,
    by_fire,
    by_pipe,
    read_scan,
    scan_file,
    serving,
)
from scanprior.gadgets.engine import Engine
from scanprior.gadgets.errors import HeaderError
from scanprior.pipelines.replay import replay

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving("--recipe", "zero-filled") as running:
        yield running


def by_replay(path: Path, recipe: str, **parameters: object) -> list[ImageBytes]:
    engine = Engine("zero-filled")
    try:
        given = {name: str(value) for name, value in parameters.items()}
        images, _ = replay(path, engine, None, parameters={"recipe": recipe, **given})
    finally:
        engine.close()
    return [(image.head.tobytes(), image.meta.encode(), image.data.tobytes()) for image in images]


def by_all_ways(server: ServerProcess, scan: PeerScan, recipe: str, **parameters: object) -> dict[str, Replies]:
    """All of them at once, which also is a test of the server."""
    with ThreadPoolExecutor() as pool:
        running = {
            "connect": pool.submit(by_connect, server.port, scan, recipe, **parameters),
            "fire": pool.submit(by_fire, server.port, scan, recipe, **parameters),
            "execute": pool.submit(by_execute, scan, recipe, **parameters),
            "pipe": pool.submit(by_pipe, scan, recipe, **parameters),
        }
        return {way: future.result() for way, future in running.items()}


@pytest.mark.parametrize(
    ("name", "recipe", "parameters", "count"),
    [
        ("siemens_gre_phantom", "zero-filled", {}, 1),
        ("brain8ch_poisson_r8", "zero-filled", {}, 1),
        ("brain_t2_1ch_full", "zero-filled", {"output": "complex"}, 1),
        ("brain_t2_8ch_full", "zero-filled", {}, 1),
        ("brain_t2_8ch_r4", "sense", {"steps": 5}, 1),
        ("brain_t2_multislice_r3", "zero-filled", {}, 12),
        ("phantom16ch_grappa", "sense", {}, 1),
        ("small", "dds", {"steps": 2, "samples": 2}, 8),
        ("small_noise", "dds", {"steps": 2, "samples": 2}, 8),
    ],
)
def test_all_ways_give_the_same_images(
    server: ServerProcess, tmp_path: Path, name: str, recipe: str, parameters: dict[str, object], count: int
) -> None:
    path = scan_file(name, tmp_path)
    expected = by_replay(path, recipe, **parameters)
    assert len(expected) == count
    scan = read_scan(path)
    for way, replies in by_all_ways(server, scan, recipe, **parameters).items():
        assert replies.closed, way
        assert not replies.errors + replies.texts, way
        assert replies.status in (None, 0), (way, replies.log)
        for number, (found, wanted) in enumerate(zip(replies.bits, expected, strict=True)):
            for what, ours, theirs in zip(("header", "meta", "pixels"), wanted, found, strict=True):
                same = ours == theirs  # apart, so that pytest does not set out to explain how megabytes differ
                assert same, f"{way}: {what} of image {number}"


def test_epi_is_refused_the_same_on_all_ways(server: ServerProcess, tmp_path: Path) -> None:
    path = scan_file("siemens_epi_phantom", tmp_path)
    with pytest.raises(HeaderError) as refusal:
        by_replay(path, "zero-filled")
    told = str(refusal.value)
    assert told == "trajectory 'epi' is not supported; supported: Cartesian 2-D and 3-D scans with one encoding space"
    scan = read_scan(path)
    ways = by_all_ways(server, scan, "zero-filled")
    connect, fire, execute, pipe = (ways[way] for way in ("connect", "fire", "execute", "pipe"))
    assert (connect.errors, connect.texts) == ([told], [])
    assert (execute.errors, execute.texts) == ([told], [])
    assert (fire.errors, fire.texts) == ([], [f"ERR     {told}\0"])
    assert (pipe.errors, pipe.texts, pipe.status) == ([], [], 1)
    assert told in pipe.log
    for replies in ways.values():
        assert not replies.images
        assert replies.closed
    # and the server is none the worse
    good = by_connect(server.port, read_scan(scan_file("siemens_gre_phantom", tmp_path)), "zero-filled")
    assert len(good.images) == 1
