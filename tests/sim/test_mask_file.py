"""The mask file: what is written is read, and nothing else passes for it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scanprior.sim.mask_file import MaskFileError, SamplingMask, load_mask, save_mask, sidecar_path
from scanprior.sim.masks import acs_lines


@st.composite
def sampling_masks(draw: st.DrawFn) -> SamplingMask:
    y = draw(st.integers(1, 40))
    z = draw(st.one_of(st.just(1), st.integers(2, 20)))
    acs = acs_lines(y, draw(st.integers(0, y)))[:, None] & acs_lines(z, draw(st.integers(0, z)))[None, :]
    bits = np.random.default_rng(draw(st.integers(0, 2**31))).random((y, z)) < draw(st.floats(0, 1))
    mask = bits | acs
    mask[y // 2, z // 2] = True  # something is sampled
    learned = draw(st.booleans())
    words = st.text(max_size=20)
    return SamplingMask(
        mask, acs, (draw(st.integers(1, 64)), y, z), tuple(draw(st.floats(0.5, 500)) for _ in range(3)),
        draw(st.text(min_size=1, max_size=20)),
        draw(st.dictionaries(words, st.one_of(st.integers(-5, 5), st.booleans(), words, st.none()), max_size=3)),
        draw(st.floats(1, 50)), draw(st.integers(0, 2**40)), draw(words), "small" if learned else None,
        "0a" * 32 if learned else None,
    )  # fmt: skip


def example() -> SamplingMask:
    acs = acs_lines(32, 8)[:, None]
    return SamplingMask(acs | (np.arange(32) % 4 == 0)[:, None], acs, (48, 32, 1), (220.0, 200.0, 4.0), "uniform-1d")


@given(mask=sampling_masks())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read(tmp_path: Path, mask: SamplingMask) -> None:
    save_mask(tmp_path / "m.npz", mask)
    back = load_mask(tmp_path / "m.npz")
    for name in SamplingMask.__dataclass_fields__:
        np.testing.assert_equal(getattr(back, name), getattr(mask, name), name)
    assert back.sha256 == mask.sha256
    assert back.effective_r == mask.mask.size / mask.mask.sum()
    assert not back.mask.flags.writeable
    assert {path.name for path in tmp_path.iterdir()} == {"m.npz", "m.json"}, "nothing partial is left"


@given(mask=sampling_masks(), place=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_changed_point_is_found(tmp_path: Path, mask: SamplingMask, place: int) -> None:
    save_mask(tmp_path / "m.npz", mask)
    changed = mask.mask.copy()
    changed.ravel()[place % changed.size] ^= True
    np.savez(tmp_path / "m.npz", mask=changed, acs=mask.acs)
    with pytest.raises(MaskFileError, match=r"has the hash|are not in the mask|nothing is sampled"):
        load_mask(tmp_path / "m.npz")


def test_the_facts_of_a_mask() -> None:
    mask = example()
    assert (mask.kind, mask.acs_extent, mask.samples) == ("lines", (8, 1), 14)  # 8 ACS lines, 2 of 8 regular ones in it
    assert mask.effective_r == 32 / 14
    flat = mask.sampling()
    assert flat.mask.shape == (32,)
    assert flat.effective_r == mask.effective_r
    other = replace(mask, acs=acs_lines(32, 6)[:, None])
    assert other.sha256 != mask.sha256, "the ACS is part of the pattern"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "expected version 1, found 2"),
        ({"version": "1"}, "expected version 1, found '1'"),
        ({"format": "other"}, "expected the format 'scanprior-mask'"),
        ({"matrix": [48, 31, 1]}, r"expected \(31, 1\) for the matrix .* found \(32, 1\)"),
        ({"mask_sha256": "0" * 64}, "has the hash"),
        ({"samples": 13}, "samples is 13, the mask has 14"),
        ({"effective_r": 4.0}, "effective_r is 4.0, the mask has 2.28"),
        ({"acs_extent": [6, 1]}, r"acs_extent is \(6, 1\), the mask has \(8, 1\)"),
        ({"kind": "points"}, "kind is points, the mask has lines"),
        ({"fov_mm": [220.0, 0.0, 4.0]}, "three lengths"),
        ({"fov_mm": [220.0, 4.0]}, "fov_mm"),
        ({"asked_r": 0.5}, "asked_r"),
        ({"colour": "red"}, "colour"),
        ({"prior": {"name": "small", "sha256": "12"}}, r"prior\.sha256"),
    ],
)
def test_a_description_that_does_not_fit(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = tmp_path / "m.npz"
    save_mask(path, example())
    sidecar = json.loads(sidecar_path(path).read_text())
    sidecar_path(path).write_text(json.dumps(sidecar | changes))
    with pytest.raises(MaskFileError, match=message):
        load_mask(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    with pytest.raises(MaskFileError, match=r"ends in \.npz"):
        save_mask(tmp_path / "m.txt", example())
    with pytest.raises(MaskFileError, match="no such file"):
        load_mask(path)
    save_mask(path, example())
    whole = path.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:cut])
        with pytest.raises(MaskFileError, match=r"not an \.npz archive"):
            load_mask(path)
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(MaskFileError, match="but a single array"):
        load_mask(path)
    with path.open("wb") as file:
        np.savez(file, mask=np.array([{}], dtype=object), acs=np.ones(3))  # an object needs a pickle
    with pytest.raises(MaskFileError, match=r"not an \.npz archive that can be read"):
        load_mask(path)
    np.savez(path, mask=np.ones((32, 1), bool))
    with pytest.raises(MaskFileError, match="expected the arrays mask and acs, found mask"):
        load_mask(path)
    path.write_bytes(whole)
    sidecar_path(path).write_text("{")
    with pytest.raises(MaskFileError, match="not JSON"):
        load_mask(path)
    sidecar_path(path).unlink()
    with pytest.raises(MaskFileError, match=r"m\.json: no such file"):
        load_mask(path)


def test_patterns_that_are_none() -> None:
    mask = example()
    with pytest.raises(MaskFileError, match=r"4 of 8 ACS lines are not in the mask|ACS lines are not in the mask"):
        replace(mask, mask=mask.mask & (np.arange(32) % 4 == 0)[:, None])
    with pytest.raises(MaskFileError, match="one full box around DC"):
        replace(mask, acs=mask.mask)
    with pytest.raises(MaskFileError, match="bool array"):
        replace(mask, mask=mask.mask.astype(np.uint8))
    with pytest.raises(MaskFileError, match="nothing is sampled"):
        replace(mask, mask=np.zeros((32, 1), bool), acs=np.zeros((32, 1), bool))
    with pytest.raises(MaskFileError, match="the shape of the mask"):
        replace(mask, acs=mask.acs[:-1])


def test_settings_that_json_cannot_hold(tmp_path: Path) -> None:
    for value in (float("nan"), {1, 2}, np.ones(2)):
        with pytest.raises(MaskFileError, match=r"cannot be described|JSON cannot hold"):
            save_mask(tmp_path / "m.npz", replace(example(), settings={"step": value}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ['{"echo": 3}', "[]", "", "[" * 9999, '{"format": "scanprior-table"}'])
def test_a_file_of_another_is_not_replaced(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(MaskFileError, match=r"m\.json: is there already and is no description of ours"):
        save_mask(tmp_path / "m.npz", example())
    assert (tmp_path / "m.json").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["m.json"]


def test_a_mask_of_ours_is_replaced(tmp_path: Path) -> None:
    save_mask(tmp_path / "m.npz", example())
    other = replace(example(), acs=acs_lines(32, 6)[:, None])
    save_mask(tmp_path / "m.npz", other)
    assert load_mask(tmp_path / "m.npz").sha256 == other.sha256
    assert next(iter(json.loads((tmp_path / "m.json").read_text()))) == "format", "it says first what it is"
