"""Tables: each is read back to the same mask and order; what was edited, cut or made up is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import h5py
import ismrmrd
import numpy as np
import pytest
from bart import bart
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from masks import lines_mask, points_mask, random_mask, tables
from scanprior.sim.acquisition_order import OrderSettings
from scanprior.sim.mask_file import SamplingMask
from scanprior.sim.sampling_table import SamplingTable, TableError, sidecar_path
from scanprior.sim.tables import TABLE_FORMATS, read_table, write_table

SMALL = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXT = ("csv", "mrsolutions", "ge", "bruker")
TRAIN = OrderSettings("interleaved", 3, 1)


def written(folder: Path, table: SamplingTable, name: str) -> Path:
    path = folder / f"table{TABLE_FORMATS[name].suffix}"
    write_table(path, table, name)
    return path


def assert_same(found: SamplingTable, expected: SamplingTable) -> None:
    assert found.mask.sha256 == expected.mask.sha256
    for name in ("mask", "acs"):
        assert np.array_equal(getattr(found.mask, name), getattr(expected.mask, name))
    for name in ("matrix", "fov_mm", "made_by", "settings", "asked_r", "seed", "data", "prior", "prior_sha256"):
        assert getattr(found.mask, name) == getattr(expected.mask, name)
    assert found.settings == expected.settings
    for name in ("points", "shot", "echo"):
        assert np.array_equal(getattr(found.order, name), getattr(expected.order, name))


@pytest.mark.parametrize("name", ["csv", "mrsolutions", "ge", "mrd", "bart"])
@SMALL
@given(table=tables())
def test_round_trip(tmp_path: Path, name: str, table: SamplingTable) -> None:
    assert_same(read_table(written(tmp_path, table, name))[0], table)


@SMALL
@given(table=tables(product=True))
def test_round_trip_of_bruker_lines(tmp_path: Path, table: SamplingTable) -> None:
    assert_same(read_table(written(tmp_path, table, "bruker"))[0], table)


def test_bruker_holds_products_and_nothing_else(tmp_path: Path) -> None:
    whole = np.zeros((6, 4), bool)
    whole[np.ix_([0, 3, 4], [1, 2])] = True
    acs = np.zeros((6, 4), bool)
    acs[3, 2] = True
    mask = SamplingMask(whole, acs, (8, 6, 4), (200.0, 200.0, 40.0), "product")
    table = SamplingTable(mask, OrderSettings())
    path = written(tmp_path, table, "bruker")
    assert "##$PVM_EncSteps1=( 3 )\n-3 0 1\n##$PVM_EncSteps2=( 2 )\n-1 0\n" in path.read_text()
    assert_same(read_table(path)[0], table)
    for bad in (
        SamplingTable(points_mask(), OrderSettings()),
        SamplingTable(mask, OrderSettings("centre-out")),  # the mask is a product, its order is not
    ):
        with pytest.raises(TableError, match=r"no such product\. Lines .* linear; .* another format, such as csv"):
            written(tmp_path, bad, "bruker")


def small_table() -> SamplingTable:
    """Lines 1, 3, 4, 6 of 8, the ACS being 3 and 4; DC is 4."""
    mask = np.zeros((8, 1), bool)
    mask[[1, 3, 4, 6]] = True
    acs = np.zeros((8, 1), bool)
    acs[[3, 4]] = True
    return SamplingTable(SamplingMask(mask, acs, (10, 8, 1), (200.0, 200.0, 5.0), "hand"), OrderSettings("centre-out"))


def test_csv_text(tmp_path: Path) -> None:
    text = written(tmp_path, small_table(), "csv").read_text()
    assert text == "index,shot,echo,ky,kz,acs\n0,0,0,4,0,1\n1,1,0,3,0,1\n2,2,0,6,0,0\n3,3,0,1,0,0\n"


def test_mrsolutions_text(tmp_path: Path) -> None:
    text = written(tmp_path, small_table(), "mrsolutions").read_text()
    assert text.split() == ["4", "0", "0", "0", "-1", "0", "2", "0", "-3", "0"]


def test_mrsolutions_counts_past_16_bits(tmp_path: Path) -> None:
    full = np.ones((300, 300), bool)
    mask = SamplingMask(full, np.zeros_like(full), (8, 300, 300), (200.0, 200.0, 200.0), "full")
    table = SamplingTable(mask, OrderSettings())
    path = written(tmp_path, table, "mrsolutions")
    assert path.read_text().split()[:4] == [str(90000 - 65536), "1", "-150", "-150"]
    assert_same(read_table(path)[0], table)


def test_ge_text(tmp_path: Path) -> None:
    lines = written(tmp_path, small_table(), "ge").read_text().splitlines()
    assert lines[:5] == [
        "GE_KTACQ\t201\t0",
        "num_sampling_patterns\t2",
        "num_mask_patterns\t0",
        "kx_peak_pos\t5",
        "---",
    ]
    assert lines[7:10] == ["RECON_SCHEDULE\t1\t7", "---", "0\t0\t1\t0\t0\t0\t-1"]
    assert lines[12:16] == ["SAMPLING_PATTERN\t4\t4", "max_stride\t2\t1", "pattern_dimensions\t8\t1", "---"]
    assert lines[16:20] == ["5\t0\t4\t0", "4\t0\t3\t0", "7\t0\t6\t0", "2\t0\t1\t0"]
    assert lines[22:29] == [
        "SAMPLING_PATTERN\t2\t4", "pattern_dimensions\t8\t1", "fully_sampled_start\t3\t0",
        "fully_sampled_length\t2\t1", "---", "5\t0\t4\t0", "4\t0\t3\t0",
    ]  # fmt: skip


def test_bart_bytes(tmp_path: Path) -> None:
    mask = np.zeros((3, 2), bool)
    mask[1, 1] = mask[2, 0] = True
    table = SamplingTable(
        SamplingMask(mask, np.zeros_like(mask), (4, 3, 2), (200.0, 200.0, 40.0), "hand"), OrderSettings()
    )
    path = written(tmp_path, table, "bart")
    assert path.with_suffix(".hdr").read_text() == "# Dimensions\n1 3 2\n"
    assert np.frombuffer(path.read_bytes(), "<f4").tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize("mask", [lines_mask(), points_mask((12, 8))], ids=["lines", "points"])
def test_bart_reads_the_pattern(tmp_path: Path, mask: SamplingMask) -> None:
    path = written(tmp_path, SamplingTable(mask, OrderSettings()), "bart")
    # BART's fmac multiplies k-space (x, y, z) by the pattern and keeps what is measured
    rng = np.random.default_rng(0)
    kspace = (rng.standard_normal((*mask.mask.T.shape, 8)) + 1j).astype(np.complex64)
    kept = bart(tmp_path, f"fmac {path.with_suffix('')}", kspace)
    assert np.array_equal(kept.reshape(kspace.shape), kspace * mask.mask.T[..., None])
    # pics wants it along the readout too; with one flat coil and a ridge of 0.1 the answer is known
    pattern = bart(tmp_path, f"repmat 0 8 {path.with_suffix('')}").reshape(kspace.shape)
    measured = kspace * mask.mask.T[..., None]
    (tmp_path / "out.hdr").rename(tmp_path / "pattern.hdr")
    (tmp_path / "out.cfl").rename(tmp_path / "pattern.cfl")
    image = bart(tmp_path, "pics -w1 -i20 -l2 -r0.1 -p pattern", measured[None], np.ones_like(measured)[None])
    back = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(image.reshape(kspace.shape)), norm="ortho"))
    assert np.array_equal(pattern, np.broadcast_to(mask.mask.T[..., None], kspace.shape))
    assert np.abs(back - measured / 1.1).max() < 1e-4 * np.abs(measured).max()


@pytest.mark.parametrize("mask", [lines_mask(), points_mask((12, 10))], ids=["lines", "points"])
def test_mrd_template_by_ismrmrd(tmp_path: Path, mask: SamplingMask) -> None:
    """Read by the reader of the ismrmrd package, not by ours."""
    table = SamplingTable(mask, TRAIN)
    file = ismrmrd.Dataset(str(written(tmp_path, table, "mrd")), "dataset", False)
    header = ismrmrd.xsd.CreateFromDocument(file.read_xml_header())
    encoding = header.encoding[0]
    for space in (encoding.encodedSpace, encoding.reconSpace):
        assert (space.matrixSize.x, space.matrixSize.y, space.matrixSize.z) == mask.matrix
        assert (space.fieldOfView_mm.x, space.fieldOfView_mm.y, space.fieldOfView_mm.z) == mask.fov_mm
    columns, rows, partitions = mask.matrix
    for limit, size in (
        (encoding.encodingLimits.kspace_encoding_step_1, rows),
        (encoding.encodingLimits.kspace_encoding_step_2, partitions),
    ):
        assert (limit.minimum, limit.center, limit.maximum) == (0, size // 2, size - 1)
    assert encoding.trajectory.value == "cartesian"
    assert encoding.echoTrainLength == 3
    assert header.userParameters.userParameterString[0].value == mask.sha256
    assert header.userParameters.userParameterDouble[0].value == mask.effective_r
    # nothing that a mask cannot know
    assert header.measurementInformation is None
    assert header.acquisitionSystemInformation is None
    assert header.sequenceParameters is None
    assert file.number_of_acquisitions() == mask.samples
    for i, (point, echo, acs) in enumerate(zip(table.order.points, table.order.echo, table.in_acs, strict=True)):
        acquisition = file.read_acquisition(i)
        assert acquisition.data.shape == (0, columns)
        assert acquisition.center_sample == columns // 2
        assert (acquisition.idx.kspace_encode_step_1, acquisition.idx.kspace_encode_step_2) == tuple(point)
        assert acquisition.idx.segment == echo
        assert acquisition.scan_counter == i + 1
        assert acquisition.is_flag_set(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING) == acs
        assert not acquisition.is_flag_set(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
        assert acquisition.is_flag_set(ismrmrd.ACQ_LAST_IN_MEASUREMENT) == (i == mask.samples - 1)


@pytest.mark.parametrize(
    ("shape", "samples", "factors"),
    [
        ((32, 1), 8, (4, 1)),
        ((12, 12), 36, (2, 2)),
        ((12, 12), 12, (3, 4)),
        ((10, 10), 20, (1, 5)),
        ((6, 4), 24, (1, 1)),
    ],
)
def test_mrd_acceleration(tmp_path: Path, shape: tuple[int, int], samples: int, factors: tuple[int, int]) -> None:
    mask, acs = np.zeros(shape, bool), np.zeros(shape, bool)
    acs[shape[0] // 2, shape[1] // 2] = True
    away = np.argsort(acs.ravel(), kind="stable")[::-1]  # DC first
    mask.ravel()[away[:samples]] = True
    for inner, expected in ((acs, factors), (np.zeros_like(acs), factors if shape[1] == 1 else None)):
        whole = SamplingMask(mask, inner, (16, *shape), (200.0, 200.0, 100.0), "hand")
        file = ismrmrd.Dataset(str(written(tmp_path, SamplingTable(whole, OrderSettings()), "mrd")), "dataset", False)
        found = ismrmrd.xsd.CreateFromDocument(file.read_xml_header()).encoding[0].parallelImaging
        if expected is None:
            assert found is None
            continue
        factor = found.accelerationFactor
        assert (factor.kspace_encoding_step_1, factor.kspace_encoding_step_2) == expected
        assert found.calibrationMode.value == ("embedded" if inner.any() else "other")


def test_mrd_line_with_flag_20_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, small_table(), "mrd")
    with h5py.File(path, "r+") as file:
        rows = file["dataset/data"][:]
        rows["head"]["flags"][1] |= np.uint64(1 << (ismrmrd.ACQ_IS_PARALLEL_CALIBRATION - 1))
        file["dataset/data"][:] = rows
    with pytest.raises(TableError, match="acquisition 1 carries flag 20"):
        read_table(path)


@pytest.mark.parametrize("name", TEXT)
@SMALL
@given(data=st.data())
def test_an_edited_text_is_refused_or_says_the_same(tmp_path: Path, name: str, data: st.DataObject) -> None:
    table = SamplingTable(lines_mask(12, 3), TRAIN)
    path = written(tmp_path, table, name)
    text = path.read_text()
    at = data.draw(st.integers(0, len(text)))
    gone = data.draw(st.integers(0, 6))
    put = data.draw(st.text(st.sampled_from("0123456789-,\t\n #$=()ky\u00e9\x00"), max_size=6))
    path.write_text(text[:at] + put + text[at + gone :], encoding="utf-8")
    try:
        found = read_table(path)[0]
    except TableError:
        return
    assert_same(found, table)


@pytest.mark.parametrize("name", TEXT)
@given(content=st.binary(max_size=300))
@SMALL
def test_any_bytes_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = written(tmp_path, small_table(), name)
    path.write_bytes(content)
    with pytest.raises(TableError, match=r"table\."):
        read_table(path)


@pytest.mark.parametrize("name", ["mrd", "bart"])
@given(data=st.data())
@SMALL
def test_edited_bytes_are_refused_or_say_the_same(tmp_path: Path, name: str, data: st.DataObject) -> None:
    table = SamplingTable(lines_mask(12, 3), TRAIN)
    path = written(tmp_path, table, name)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        found = read_table(path)[0]
    except TableError:
        return
    assert_same(found, table)


@pytest.mark.parametrize("name", [*TEXT, "mrd", "bart"])
def test_a_table_of_another_mask_is_refused(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, SamplingTable(random_mask((12, 1), (3, 1), 1), OrderSettings()), name)
    other = sidecar_path(path).read_text()
    write_table(path, SamplingTable(random_mask((12, 1), (3, 1), 2), OrderSettings()), name)
    sidecar_path(path).write_text(other)
    with pytest.raises(TableError, match=r"expected \d+ points, found|one of the two was changed"):
        read_table(path)


@pytest.mark.parametrize("name", [*TEXT, "mrd"])
def test_another_order_is_refused(tmp_path: Path, name: str) -> None:
    table = SamplingTable(lines_mask(12, 3), OrderSettings())
    path = written(tmp_path, table, name)
    sidecar = json.loads(sidecar_path(path).read_text())
    sidecar["order"]["name"] = "centre-out"
    sidecar_path(path).write_text(json.dumps(sidecar))
    with pytest.raises(TableError, match="the order that table"):
        read_table(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"matrix": [10, 9, 1]}, "table.csv"),
        ({"matrix": [10, 65535, 65535]}, "at most 16777216 phase encodings"),
        ({"matrix": [10, 0, 1]}, "matrix"),
        ({"order": {"name": "spiral", "echo_train": 1, "effective_echo": None}}, "acquisition order"),
        ({"acs_start": [2, 0]}, "ACS|acs"),
        ({"samples": 5}, "expected 5 points, found 4"),
        ({"table": "excel"}, "table: expected one of pulseq, csv"),
        ({"version": 2}, "version"),
        ({"more": 1}, "more"),
        ({"mask_sha256": "0" * 64}, "one of the two was changed"),
    ],
)
def test_a_sidecar_that_does_not_fit_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    path = written(tmp_path, small_table(), "csv")
    sidecar_path(path).write_text(json.dumps(json.loads(sidecar_path(path).read_text()) | change))
    with pytest.raises(TableError, match=message):
        read_table(path)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 9999, "null"])
def test_a_sidecar_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, small_table(), "csv")
    sidecar_path(path).write_text(text)
    with pytest.raises(TableError, match=r"table\.csv\.json"):
        read_table(path)


def test_names_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="table ends in"):
        write_table(tmp_path / "table.txt", small_table(), "csv")
    with pytest.raises(TableError, match="expected one of pulseq, csv"):
        write_table(tmp_path / "table.txt", small_table(), "excel")
    with pytest.raises(TableError, match="no such file"):
        read_table(tmp_path / "none.csv")
    path = written(tmp_path, small_table(), "bart")
    path.with_suffix(".hdr").unlink()
    with pytest.raises(TableError, match="cannot be read"):
        read_table(path)
    sidecar_path(path).unlink()
    with pytest.raises(TableError, match="has this file beside it"):
        read_table(path)


@pytest.mark.parametrize("name", [name for name in TABLE_FORMATS if name != "pulseq"])
def test_a_table_that_does_not_read_back_leaves_what_was_there(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, small_table(), name)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    other = SamplingTable(random_mask((8, 1), (2, 1), 5), OrderSettings())
    own = TABLE_FORMATS[name].write

    def wrong(target: Path, table: SamplingTable) -> None:
        own(target, small_table())

    with pytest.raises(TableError) as refused:
        write_table(path, other, name, wrong)
    assert str(refused.value).startswith(f"{tmp_path}/table")
    assert ".partial" not in str(refused.value)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_file_of_another_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "table.csv.json").write_text('{"format": "other"}')
    with pytest.raises(TableError, match=r"table\.csv\.json: is there already"):
        written(tmp_path, small_table(), "csv")
    assert [file.name for file in tmp_path.iterdir()] == ["table.csv.json"]


def test_a_name_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TableError, match=r"^table\.txt: a Bruker table"):
        write_table(Path("table.txt"), SamplingTable(points_mask(), OrderSettings()), "bruker")
    write_table(Path("table.csv"), small_table(), "csv")
    assert {file.name for file in tmp_path.iterdir()} == {"table.csv", "table.csv.json"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"asked_r": 0.5}, r"table\.csv: cannot be described: asked_r"),
        ({"settings": {"step": float("nan")}}, r"table\.csv: settings that JSON cannot hold"),
        ({"settings": {"step": np.ones(2)}}, r"table\.csv: (cannot be described|settings that JSON cannot hold)"),
    ],
)
def test_facts_that_the_sidecar_cannot_hold(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(TableError, match=message):
        written(tmp_path, SamplingTable(replace(small_table().mask, **change), OrderSettings()), "csv")
    assert not list(tmp_path.iterdir())
