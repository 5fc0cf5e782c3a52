"""What the command line says of the scans that a supervised network is trained on."""

from __future__ import annotations

from typing import Any

import pytest
from scanprior.pipelines.cli import app
from scanprior.pipelines.train_scans import scans
from typer.testing import CliRunner


def given(**options: Any) -> dict[str, Any]:
    usual = dict.fromkeys(("mask", "r", "spokes", "probability", "acs", "noise", "coils", "error"))
    return scans(**(usual | options))


def test_what_nothing_is_said_of() -> None:
    assert given() == {
        "mask": "gaussian-1d", "amount": 4.0, "acs": None, "noise": (0.01, 0.01), "coils": (8, 8), "error": "mse",
    }  # fmt: skip
    assert given(mask="radial")["amount"] == 25
    assert given(mask="horizontal")["amount"] == 0.2


def test_ranges_and_amounts() -> None:
    found = given(mask="radial", spokes=45, noise="0.01,0.1", coils="1,8", error="l1", acs=4)
    assert found == {
        "mask": "radial", "amount": 45.0, "acs": 4, "noise": (0.01, 0.1), "coils": (1, 8), "error": "l1",
    }  # fmt: skip
    assert given(mask="horizontal", probability=0.0)["amount"] == 0.0


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"mask": "spiral"}, "--mask: 'spiral' is not known; there are: uniform-1d"),
        ({"mask": "radial", "r": 4.0}, "--r: the mask radial goes by --spokes"),
        ({"spokes": 4}, "--spokes: the mask gaussian-1d goes by --r"),
        ({"noise": "loud"}, "--noise: expected a number, or a least and a greatest with a comma between, found 'loud'"),
        ({"noise": "1,2,3"}, "--noise: expected a number"),
        ({"coils": "1.5"}, "--coils: expected whole numbers, found '1.5'"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        given(**options)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--loss", "supervised", "--widths", "8,16"], "--widths is not for loss 'supervised'"),
        (["--mask", "radial"], "--mask is not for loss 'edm'"),
        (["--rounds", "3"], "--rounds is not for loss 'edm'"),
        (["--loss", "vae", "--method", "em"], "--method is not for loss 'vae'"),
        (["--loss", "ve", "--network", "ncsnv2", "--method", "em"], "method 'em': expected loss 'edm'"),
        (["--method", "em", "--held", "0.3"], "--held is not for method 'em'"),
        (["--method", "split", "--rounds", "3"], "--rounds is not for method 'split'"),
        (["--method", "split", "--error", "l1"], "--error is not for method 'split'"),
        (["--method", "sure", "--r", "2"], "expected --r 1, found 2"),
        (["--loss", "supervised", "--network", "ncsnpp"], "expected one of varnet, unet"),
    ],
)
def test_options_of_another_loss_are_refused(arguments: list[str], complaint: str) -> None:
    result = CliRunner().invoke(app, ["train", "--data", "x", "--out", "y", *arguments], env={"COLUMNS": "400"})
    assert result.exit_code == 2
    assert complaint in " ".join(result.output.replace("│", " ").split())
