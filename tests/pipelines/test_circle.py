"""The circle on small scans: learned, exported, played, streamed to a server of its own, compared."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from masks import lines_mask
from scanprior.gadgets.engine import Engine
from scanprior.pipelines.circle import Slices, check_images, check_lines
from scanprior.pipelines.cli import app
from scanprior.pipelines.client import SendError, send_scan
from scanprior.pipelines.replay import replay
from scanprior.pipelines.server import Server, ServerSettings
from scanprior.sim.acquisition_order import OrderSettings
from scanprior.sim.mask_file import save_mask
from scanprior.sim.sampling_table import SamplingTable
from scanprior.sim.scan import simulate
from typer.testing import CliRunner

MASK = lines_mask(64, 24, seed=3, columns=48)


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine("sense", threads=1)
    yield made
    made.close()


@pytest.fixture
def server(engine: Engine) -> Iterator[Server]:
    made = Server(engine.open_session, ServerSettings(port=0))
    thread = threading.Thread(target=made.run)
    thread.start()
    yield made
    made.stop()
    thread.join(30)


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_learned_mask_comes_back_as_an_image(tmp_path: Path) -> None:
    images = tmp_path / "train.npz"
    y, x = np.mgrid[-1:1:48j, -1:1:48j]
    stack = [np.hypot(y / (0.7 + 0.05 * n), x / 0.6) < 1 for n in range(2)]
    np.savez(images, slices=np.array(stack) * (1.0 + 0.5 * (np.hypot(y - 0.2, x) < 0.2)))
    out = tmp_path / "circle"
    said = run(
        "circle", "--data", images, "--train-images", 2, "--size", 48, "--r", 2, "--acs", 18, "--coils", 4, "--threads",
        1, "--recipe", "pnp-admm", "--out", out,
    )  # fmt: skip
    report = json.loads((out / "report.json").read_text())
    assert all(check["holds"] for check in report["checks"])
    assert len(report["checks"]) == 8
    assert said.count("ok ") == 8
    for name in ("learned/mask.npz", "mask.seq", "order.png", "played.h5", "circle/images.h5", "circle.png"):
        assert (out / name).stat().st_size > 0, name
    assert "pnp-admm" in (out / "report.md").read_text()


def test_the_circle_of_a_turbo_spin_echo_with_a_mask_of_ones_own(tmp_path: Path) -> None:
    save_mask(tmp_path / "mine.npz", MASK)
    said = CliRunner().invoke(
        app,
        [
            "circle", "--mask", str(tmp_path / "mine.npz"), "--sequence", "tse", "--echo-train", "8", "--slices", "2",
            "--coils", "3", "--recipe", "sense", "--threads", "1", "--out", str(tmp_path / "out"),
        ],
    )  # fmt: skip
    # least squares has no standard deviation: that check alone does not hold, and the command says so
    assert said.exit_code == 1
    report = json.loads((tmp_path / "out/report.json").read_text())
    failed = [check["what"] for check in report["checks"] if not check["holds"]]
    assert failed == ["a standard deviation map beside each"]


def test_play_and_send_are_commands_of_their_own(tmp_path: Path, server: Server, engine: Engine) -> None:
    save_mask(tmp_path / "mine.npz", MASK)
    run("export-mask", tmp_path / "mine.npz", "--format", "pulseq", "--out", tmp_path / "mine.seq")
    said = run("play", tmp_path / "mine.seq", tmp_path / "scan.h5", "--coils", 3)
    assert f"{16 + MASK.samples} readouts" in said
    run("send", tmp_path / "scan.h5", "--port", server.port, "--out", tmp_path / "images")
    assert (tmp_path / "images/images.h5").exists()
    sent = send_scan(tmp_path / "scan.h5", "127.0.0.1", server.port, {"recipe": "sense"})
    replayed, _ = replay(tmp_path / "scan.h5", engine, None)
    assert [np.array_equal(a.data, b.data) for a, b in zip(sent.images, replayed, strict=True)] == [True]


def test_what_the_server_refuses_is_told(tmp_path: Path, server: Server) -> None:
    simulate(tmp_path / "scan.h5", matrix=48, coils=2, r=2, acs=16)
    refused = send_scan(tmp_path / "scan.h5", "127.0.0.1", server.port, {"recipe": "nothing"})
    assert not refused.images
    assert "nothing" in refused.failures[0]
    result = CliRunner().invoke(
        app,
        [
            "send", str(tmp_path / "scan.h5"), "--port", str(server.port), "--recipe", "nothing", "--out",
            str(tmp_path / "images"),
        ],
    )  # fmt: skip
    assert result.exit_code == 1


def test_a_server_that_is_not_there_or_hangs_up_is_told(tmp_path: Path) -> None:
    simulate(tmp_path / "scan.h5", matrix=48, coils=2, r=2, acs=16)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def hang_up() -> None:
            connection, _ = listener.accept()
            connection.recv(100)
            connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(SendError, match="ended the scan after 0 images"):
            send_scan(tmp_path / "scan.h5", "127.0.0.1", port, {})
        thread.join()
    with pytest.raises(SendError, match=f"no server at 127.0.0.1 port {port}"):
        send_scan(tmp_path / "scan.h5", "127.0.0.1", port, {})


def test_the_checks_see_a_line_that_is_wrong(tmp_path: Path) -> None:
    made = [
        simulate(
            tmp_path / f"{seed}.h5", mask=MASK, matrix=64, columns=48, coils=3, noise_seed=seed, snr_db=snr, seed=0
        )
        for seed, snr in ((1, 25.0), (2, 25.0))
    ]
    noise = np.load(made[0].truth)["noise_cov"]
    table = SamplingTable(MASK, OrderSettings())
    right = check_lines(made[0].path, made[1].path, table, noise)
    assert all(check.holds for check in right)
    other_order = check_lines(made[0].path, made[1].path, SamplingTable(MASK, OrderSettings("centre-out")), noise)
    assert [check.holds for check in other_order] == [False, False, True, True, True]
    another = simulate(tmp_path / "other.h5", mask=MASK, matrix=64, columns=48, coils=3, contrast="t1", seed=0)
    wrong = check_lines(made[0].path, another.path, table, noise)
    assert [check.holds for check in wrong] == [True, True, True, True, False]
    fewer = lines_mask(64, 20, seed=3, columns=48)
    off = check_lines(made[0].path, made[1].path, SamplingTable(fewer, OrderSettings()), noise)
    assert [check.holds for check in off][2] is False


def test_the_checks_see_an_image_that_is_wrong() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((1, 32, 32)) + 0j
    std = np.full((1, 32, 32), 0.1)
    one, two, three = (Slices(np.abs(truth) + 0.1 * rng.standard_normal(truth.shape), std) for _ in range(3))
    assert all(check.holds for check in check_images(one, two, three, truth))
    shifted = Slices(np.roll(one.image, 1, -1), std)
    assert [check.holds for check in check_images(shifted, two, three, truth)] == [True, True, False]
    assert not check_images(Slices(one.image[:0], std), two, three, truth)[0].holds
