"""The circle on small scans: learned, exported, played, streamed to a server of its own, compared."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from masks import lines_mask, points_mask
from scanprior.gadgets.engine import Engine
from scanprior.gadgets.errors import PeerGone
from scanprior.gadgets.frames import FrameReader, FrameWriter
from scanprior.gadgets.mrd import Close
from scanprior.models.recipe import RecipeError, load_recipe
from scanprior.pipelines.circle import (
    Slices,
    check_images,
    check_lines,
    check_prior,
    image_table,
    with_prior,
    write_picture,
)
from scanprior.pipelines.cli import app
from scanprior.pipelines.client import SendError, send_scan
from scanprior.pipelines.replay import replay
from scanprior.pipelines.resident import resident_server
from scanprior.pipelines.server import Server, ServerSettings
from scanprior.sim.acquisition_order import OrderSettings
from scanprior.sim.mask_file import SamplingMask, save_mask
from scanprior.sim.sampling_table import SamplingTable
from scanprior.sim.scan import simulate
from session_double import blank_image
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
    assert len(report["checks"]) == 9
    assert said.count("ok ") == 9
    prior = next(check for check in report["checks"] if check["what"] == "the recipe's prior is the mask's")
    assert json.loads((out / "learned/mask.json").read_text())["prior"]["sha256"][:16] in prior["found"]
    assert not (out / "recipe.yaml").exists()
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
    assert report["checks"][0]["found"] == "does not apply: sense has no prior, the mask is for small"


@pytest.mark.parametrize(
    ("mask", "options", "slices"),
    [
        (lines_mask(48, 16, seed=3, columns=32), ["--slices", "3", "--coils", "1"], 3),
        (points_mask((24, 12), 8, seed=2, columns=32), ["--coils", "3"], 12),
    ],
)
def test_the_circle_of_many_slices_with_one_coil_and_of_a_volume(
    tmp_path: Path, mask: SamplingMask, options: list[str], slices: int
) -> None:
    save_mask(tmp_path / "mine.npz", mask)
    out = tmp_path / "out"
    said = CliRunner().invoke(
        app,
        [
            "circle", "--mask", str(tmp_path / "mine.npz"), *options, "--recipe", "zero-filled", "--threads", "1",
            "--out", str(out),
        ],
    )  # fmt: skip
    assert said.exit_code == 1, said.output
    report = json.loads((out / "report.json").read_text())
    assert [check["what"] for check in report["checks"] if not check["holds"]] == [
        "a standard deviation map beside each"
    ]
    assert [row["slice"] for row in report["psnr"]] == list(range(slices))
    assert ("the slab's profile is not simulated" in (out / "report.md").read_text()) == (mask.kind == "points")


def test_mistakes_are_found_before_anything_is_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def learn(*_: object, **__: object) -> None:
        raise AssertionError("learned before the mistake was found")

    monkeypatch.setattr("scanprior.pipelines.cli_masks.learn_mask", learn)
    np.savez(tmp_path / "train.npz", slices=np.ones((1, 32, 32)))
    save_mask(tmp_path / "mine.npz", MASK)
    data, mine = ["--data", tmp_path / "train.npz"], ["--mask", tmp_path / "mine.npz"]
    for options, message in (
        ([*data, "--recipe", "nothing"], "recipe 'nothing' is not known"),
        ([*data, "--sequence", "epi"], "sequence: expected one of"),
        ([*data, "--order", "backwards"], "order"),
        ([*data, "--images", tmp_path / "train.npz", "--slices", 2], "the file has 1"),
        ([*mine, "--r", 3], "--r: of a mask to learn"),
        ([*mine, "--acs", 3, "--size", 64, "--train-images", 1], "--acs, --size, --train-images: of a mask to learn"),
        ([*mine, "--recipe", "sense", "--prior", "small"], "--prior: the recipe sense takes none"),
    ):
        result = CliRunner().invoke(app, ["circle", *map(str, options), "--out", str(tmp_path / "out")])
        assert result.exit_code != 0, options
        assert message in " ".join(result.output.replace("│", " ").split()), options
        assert not (tmp_path / "out").exists()


def test_simulate_refuses_what_a_mask_file_brings(tmp_path: Path) -> None:
    save_mask(tmp_path / "mine.npz", points_mask((24, 12), 8, seed=2, columns=32))
    result = CliRunner().invoke(
        app,
        [
            "simulate", str(tmp_path / "scan.h5"), "--mask", str(tmp_path / "mine.npz"), "--r", "2", "--slices", "3",
        ],
    )  # fmt: skip
    assert result.exit_code == 1
    assert "--r, --slices: the mask file" in result.output


def test_the_prior_that_is_asked_for_is_served_and_compared(tmp_path: Path) -> None:
    recipe = load_recipe("pnp-admm")
    assert with_prior(recipe, "base").prior == "base"
    (tmp_path / "own.safetensors").touch()
    assert with_prior(recipe, str(tmp_path / "own.safetensors")).prior == str(tmp_path / "own.safetensors")
    with pytest.raises(RecipeError, match="takes no 'prior'"):
        with_prior(load_recipe("sense"), "small")
    learned = replace(MASK, prior="small", prior_sha256="a" * 64)
    assert check_prior(learned, recipe, "a" * 64).holds
    assert not check_prior(learned, recipe, "b" * 64).holds
    drawn = replace(MASK, prior=None, prior_sha256=None)
    assert (
        check_prior(drawn, recipe, "a" * 64).found
        == f"does not apply: the mask, made by {MASK.made_by}, is for no prior"
    )
    assert "has no prior, the mask is for small" in check_prior(learned, load_recipe("sense"), None).found


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


@pytest.mark.parametrize("error", [RuntimeError("FINUFFT failed to allocate"), MemoryError()])
def test_what_play_cannot_hold_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    save_mask(tmp_path / "mine.npz", MASK)
    run("export-mask", tmp_path / "mine.npz", "--format", "pulseq", "--out", tmp_path / "mine.seq")

    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("finufft.nufft2d2", full)
    result = CliRunner().invoke(app, ["play", str(tmp_path / "mine.seq"), str(tmp_path / "scan.h5"), "--coils", "1"])
    assert result.exit_code == 1
    assert result.output.startswith(f"play: {error}" if str(error) else "play: not enough memory")
    assert not (tmp_path / "scan.h5").exists()


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
    assert "recipe 'nothing' is not known" in result.output


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
    assert not [thread for thread in threading.enumerate() if thread.name == "images"]
    with pytest.raises(SendError, match=f"no server at 127.0.0.1 port {port}"):
        send_scan(tmp_path / "scan.h5", "127.0.0.1", port, {})


class _Peer(threading.Thread):
    """Takes one connection and does with it what a test says."""

    def __init__(self, behave: Callable[[socket.socket], None]) -> None:
        super().__init__(daemon=True)
        self._behave = behave
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.start()

    def run(self) -> None:
        connection, _ = self._listener.accept()
        with connection, self._listener:
            self._behave(connection)


def _until_closed(connection: socket.socket) -> None:
    with contextlib.suppress(PeerGone):
        for frame in FrameReader(connection):
            if isinstance(frame.message, Close):
                return


def test_images_that_came_before_a_failure_are_kept(tmp_path: Path) -> None:
    scan = simulate(tmp_path / "scan.h5", matrix=32, coils=1, r=2, acs=16)
    image = blank_image(1.0, 32)

    def one_and_gone(connection: socket.socket) -> None:
        _until_closed(connection)
        FrameWriter(connection).send(image)

    with pytest.raises(SendError, match="after 1 images") as told:
        send_scan(scan.path, "127.0.0.1", _Peer(one_and_gone).port, {})
    assert len(told.value.received.images) == 1
    result = CliRunner().invoke(
        app, ["send", str(scan.path), "--port", str(_Peer(one_and_gone).port), "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 1
    assert (tmp_path / "out/images.h5").exists()


def test_a_server_may_be_silent_while_the_scan_is_sent_and_no_longer(tmp_path: Path) -> None:
    scan = simulate(tmp_path / "scan.h5", matrix=32, coils=1, r=2, acs=16)
    over = threading.Event()

    def never_answers(connection: socket.socket) -> None:
        _until_closed(connection)
        over.wait(30)

    def slow(done: int, total: int) -> None:
        if done == 1:
            time.sleep(1.5)  # a slow scanner: longer than the patience, and nobody's fault

    began = time.monotonic()
    with pytest.raises(SendError, match="has been silent for 1 s"):
        send_scan(scan.path, "127.0.0.1", _Peer(never_answers).port, {}, patience=1.0, progress=slow)
    assert time.monotonic() - began > 2.4
    over.set()


def test_an_error_of_our_own_while_sending_leaves_nothing_behind(tmp_path: Path) -> None:
    scan = simulate(tmp_path / "scan.h5", matrix=32, coils=1, r=2, acs=16)

    def wrong(done: int, total: int) -> None:
        raise KeyError("progress")

    with pytest.raises(KeyError):
        send_scan(scan.path, "127.0.0.1", _Peer(_until_closed).port, {}, progress=wrong)
    assert not [thread for thread in threading.enumerate() if thread.name == "images"]


def test_the_reader_tells_whatever_goes_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = simulate(tmp_path / "scan.h5", matrix=32, coils=1, r=2, acs=16)

    def full(self: FrameReader) -> None:
        raise MemoryError("no room for an image")

    monkeypatch.setattr("scanprior.pipelines.client.FrameReader.read", full)
    peer = _Peer(lambda one: [None for _ in iter(lambda: one.recv(65536), b"")] and None)
    with pytest.raises(SendError, match=r"no room for an image \(MemoryError\)"):
        send_scan(scan.path, "127.0.0.1", peer.port, {})


def test_a_resident_server_ends_with_its_parent(tmp_path: Path) -> None:
    program = (
        "import time\nfrom scanprior.pipelines.resident import resident_server\n"
        "with resident_server('sense', 1) as port:\n    print(port, flush=True)\n    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline())
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.2)
    pytest.fail("the server still listens")


def test_what_a_server_says_at_its_end_is_told(tmp_path: Path) -> None:
    with pytest.raises(SendError, match=r"did not start: (.|\n)*recipe 'nothing' is not known"):
        resident_server("nothing", 1).__enter__()
    with pytest.raises(SendError, match=r"was not ready within 0\.05 s"):
        resident_server("sense", 1, patience=0.05).__enter__()
    told = r"the connection broke; scanprior serve ended with status -?\d+: (.|\n)*stopped"
    with pytest.raises(SendError, match=told), resident_server("sense", 1) as port:
        _end(port)


def _end(port: int) -> None:
    os.kill(_listening(port), signal.SIGTERM)
    raise SendError("the connection broke")


def _listening(port: int) -> int:
    """Process id of our child that listens on a port."""
    inode = next(
        row.split()[9] for row in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if row.split()[1].endswith(f":{port:04X}") and row.split()[3] == "0A"
    )  # fmt: skip
    for child in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
        for number in child.read_text().split():
            for descriptor in Path(f"/proc/{number}/fd").iterdir():
                if os.readlink(descriptor) == f"socket:[{inode}]":
                    return int(number)
    raise AssertionError(f"no child listens on port {port}")


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


def test_the_checks_see_an_image_that_is_wrong(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((1, 32, 32)) + 0j
    std = np.full((1, 32, 32), 0.1)
    one, two, three = (Slices(np.abs(truth) + 0.1 * rng.standard_normal(truth.shape), std) for _ in range(3))
    assert all(check.holds for check in check_images(one, two, three, truth))
    shifted = Slices(np.roll(one.image, 1, -1), std)
    assert [check.holds for check in check_images(shifted, two, three, truth)] == [True, True, False]
    nothing = Slices(one.image[:0], std[:0])
    assert [check.holds for check in check_images(nothing, two, three, truth)] == [False, False]
    assert image_table(nothing, two, truth) == []
    assert not write_picture(tmp_path / "circle.png", nothing, two, truth)
    assert write_picture(tmp_path / "circle.png", one, two, truth)
    same = check_images(one, two, two, truth)
    assert [check.holds for check in same] == [True, True, False]
    assert "another draw changes nothing" in same[2].found
    spoilt = np.full_like(std, np.nan)
    spoilt[0, 0, 0] = 1.0
    assert not check_images(Slices(one.image, spoilt), two, three, truth)[1].holds
    twice = np.concatenate([truth, truth])
    empty = np.concatenate([std, 0 * std])
    pair = [Slices(np.concatenate([part.image] * 2), empty) for part in (one, two, three)]
    assert [check.holds for check in check_images(*pair, twice)] == [True, False, True]
    holes = one.image.copy()
    holes[0, 3, 3] = np.nan
    assert [check.holds for check in check_images(Slices(holes, std), two, three, truth)] == [False, True]
