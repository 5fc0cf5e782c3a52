"""A scan unlike those that a supervised network was trained on: the operator's log and the image itself say so."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from scanprior.gadgets.engine import Engine
from scanprior.models.recipe import load_recipe
from scanprior.pipelines.replay import replay
from scanprior.sim.scan import simulate


def test_a_network_used_on_another_kind_of_scan_says_so_where_it_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scan = simulate(tmp_path / "scan.h5", matrix=64, coils=4, mask="uniform", r=2, acs=16, snr_db=40)
    engine = Engine(load_recipe("varnet").on("cpu"), threads=1)
    try:
        with caplog.at_level(logging.WARNING, logger="scanprior"):
            (image,), _ = replay(scan.path, engine, None)
    finally:
        engine.close()
    told = "not what the prior was trained on: mask of lines (trained on points)"
    assert f"Scanprior varnet; {told}" in image.meta, "the comment, which a viewer shows"
    assert any(told in record.getMessage() and record.levelno == logging.WARNING for record in caplog.records)


def test_an_image_made_as_asked_carries_no_warning(tmp_path: Path) -> None:
    scan = simulate(tmp_path / "scan.h5", matrix=64, coils=4, mask="uniform", r=2, acs=16, snr_db=40)
    engine = Engine(load_recipe("sense").on("cpu"), threads=1)
    try:
        (image,), _ = replay(scan.path, engine, None)
    finally:
        engine.close()
    assert "<value>Scanprior sense</value>" in image.meta
    assert "warning" not in image.meta
