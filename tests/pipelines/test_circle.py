"""The circle on small scans: learned, exported, played, streamed to a server of its own, compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from masks import lines_mask, points_mask
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
from scanprior.sim.acquisition_order import OrderSettings
from scanprior.sim.mask_file import SamplingMask, save_mask
from scanprior.sim.sampling_table import SamplingTable
from scanprior.sim.scan import simulate
from typer.testing import CliRunner

MASK = lines_mask(64, 24, seed=3, columns=48)


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
