"""What scans `scanprior train` trains on (--loss supervised, --method ...), from what the command line says."""

from __future__ import annotations

from typing import Any

from scanprior.sim.mask_families import FAMILIES

USUAL = {"R": 4.0, "spokes": 25.0, "probability": 0.2}
"""How much is measured where nothing else is asked for, by what the family of masks goes by."""


def scans(
    mask: str | None, r: float | None, spokes: int | None, probability: float | None, acs: int | None,
    noise: str | None, coils: str | None, error: str | None,
) -> dict[str, Any]:  # fmt: skip
    """Arguments of `SupervisedTraining` that tell its scans; None where nothing is said.

    Raises
    ------
    ValueError
        When the mask is not known or does not go by an option that was given, or a range is none.
    """
    mask = mask or "gaussian-1d"
    if mask not in FAMILIES:
        raise ValueError(f"--mask: {mask!r} is not known; there are: {', '.join(FAMILIES)}")
    kind = FAMILIES[mask].amount
    given = {"R": ("--r", r), "spokes": ("--spokes", spokes), "probability": ("--probability", probability)}
    for name, (option, value) in given.items():
        if value is not None and name != kind:
            raise ValueError(f"{option}: the mask {mask} goes by {given[kind][0]}")
    amount = given[kind][1]
    low, high = _range("--noise", noise or "0.01")
    fewest, most = _range("--coils", coils or "8")
    if fewest != int(fewest) or most != int(most):
        raise ValueError(f"--coils: expected whole numbers, found {coils!r}")
    return {
        "mask": mask,
        "amount": USUAL[kind] if amount is None else float(amount),
        "acs": acs,
        "noise": (low, high),
        "coils": (int(fewest), int(most)),
        "error": error or "mse",
    }


def unsupervised(
    method: str, told: dict[str, Any], given: dict[str, Any], held: float | None, rounds: int | None
) -> dict[str, Any]:
    """Arguments of `UnsupervisedTraining` that tell its method and scans.

    Parameters
    ----------
    told
        As `scans` returns it.
    given
        The options that were given, by name; None where nothing was said.

    Raises
    ------
    ValueError
        When an option was given that the method does not read.
    """
    for option, value, reader in (("--held", held, "split"), ("--rounds", rounds, "em")):
        if value is not None and method != reader:
            raise ValueError(f"{option} is not for method {method!r}")
    if given["--error"] is not None:
        raise ValueError(f"--error is not for method {method!r}")
    found = {name: value for name, value in told.items() if name != "error"}
    if method == "sure" and all(given[option] is None for option in ("--r", "--spokes", "--probability")):
        found["amount"] = 1.0
    chosen = {"held": held, "rounds": rounds}
    return {"method": method} | found | {name: value for name, value in chosen.items() if value is not None}


def _range(option: str, text: str) -> tuple[float, float]:
    """`0.05`, or `0.01,0.1`: least and greatest."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 2):
        raise ValueError(f"{option}: expected a number, or a least and a greatest with a comma between, found {text!r}")
    return values[0], values[-1]
