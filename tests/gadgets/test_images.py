"""Images: header, meta and matrix of what goes back to the scanner."""

from __future__ import annotations

import ismrmrd
import numpy as np
import pytest
from acquisitions import acquisition, header_xml, recorded, smooth_object
from defusedxml.ElementTree import fromstring
from hypothesis import given
from hypothesis import strategies as st
from scanprior.gadgets.encoding import Encoding
from scanprior.gadgets.fourier import crop_field_of_view, fft, ifft, interpolate, resize
from scanprior.gadgets.images import assemble, fit_recon_matrix, make_images
from scanprior.gadgets.meta import history, to_xml
from scanprior.gadgets.preparation import Problem, prepare, whitening_for
from scanprior.gadgets.slices import SliceData, SliceReady
from scanprior.gadgets.sorting import Sorter

INFO = {"method": "dds", "prior": "brain-small", "nfe": 20}


def scan_of(name: str) -> tuple[Encoding, list[tuple[Problem, SliceData]]]:
    scan = recorded(name)
    target = Sorter(scan.encoding)
    events = [event for one in scan.acquisitions for event in target.add(one)]
    slices = [event.slice_data for event in events if isinstance(event, SliceReady)]
    noise = target.noise.noise()
    return scan.encoding, [(prepare(s, scan.encoding, whitening_for(s, scan.encoding, noise)), s) for s in slices]


def entries(meta: str) -> dict[str, list[str]]:
    return {
        entry.find("name").text: [value.text or "" for value in entry.findall("value")]  # type: ignore[union-attr]
        for entry in fromstring(meta)
    }


def combined(problem: Problem) -> np.ndarray:
    return ifft(problem.kspace, (-2, -1)).sum(-3)


def test_header_has_the_geometry_and_time_of_the_centre_line() -> None:
    encoding, slices = scan_of("brain_t2_multislice_r3")
    problem, source = slices[7]
    image = combined(problem)
    magnitude, std = make_images(
        image, np.abs(image) / 10, problem=problem, source=source, encoding=encoding, info=INFO, index=8
    )
    centre = next(
        one.head
        for one in recorded("brain_t2_multislice_r3").acquisitions
        if tuple(one.head["idx"][name] for name in ("slice", "repetition", "kspace_encode_step_1"))
        == (problem.key.slice, problem.key.repetition, 90)
        and int(one.head["number_of_samples"]) == 360
    )
    for made in (magnitude, std):
        for name in ("position", "read_dir", "phase_dir", "slice_dir", "patient_table_position",
                     "acquisition_time_stamp", "physiology_time_stamp", "measurement_uid"):  # fmt: skip
            assert np.array_equal(made.head[name], centre[name]), name
        assert (made.head["slice"], made.head["repetition"]) == (problem.key.slice, 1)
        assert tuple(made.head["matrix_size"]) == (180, 180, 1)
        assert tuple(made.head["field_of_view"]) == (230.0, 230.0, 4.0)
        assert (made.head["image_type"], made.head["data_type"], made.head["channels"]) == (1, 5, 1)
        assert made.head["image_index"] == 8
        assert made.head["attribute_string_len"] == len(made.meta)
        assert made.data.shape == (1, 1, 180, 180)
        assert made.data.dtype == np.float32
    assert (magnitude.head["image_series_index"], std.head["image_series_index"]) == (1, 2)
    assert np.allclose(magnitude.data[0, 0], np.abs(image))
    assert np.allclose(std.data[0, 0], np.abs(image) / 10)


def test_a_complex_image_takes_the_place_of_the_magnitude() -> None:
    encoding, [(problem, source)] = scan_of("siemens_gre_phantom")
    images = make_images(
        combined(problem), None, problem=problem, source=source, encoding=encoding, info=INFO, index=1,
        complex_image=True,
    )  # fmt: skip
    assert len(images) == 1
    head = images[0].head
    assert (head["image_type"], head["data_type"], head["image_series_index"]) == (5, 7, 1)
    assert images[0].data.dtype == np.complex64
    assert np.allclose(images[0].data[0, 0], combined(problem))
    assert head["patient_table_position"][2] == -1040015


def test_meta_speaks_both_dialects() -> None:
    encoding, [(problem, source)] = scan_of("siemens_gre_phantom")
    image = combined(problem)
    magnitude, std = make_images(
        image, np.abs(image), problem=problem, source=source, encoding=encoding, info=INFO, index=1
    )
    meta = entries(magnitude.meta)
    assert meta["GADGETRON_DataRole"] == meta["DataRole"] == ["Image"]
    assert meta["Keep_image_geometry"] == ["1"]
    for name, direction in (("ImageRowDir", "read_dir"), ("ImageColumnDir", "phase_dir")):
        assert np.allclose([float(value) for value in meta[name]], source.head[direction], atol=1e-12)
    assert meta["GADGETRON_ImageProcessingHistory"] == meta["ImageProcessingHistory"]
    told = meta["ImageProcessingHistory"]
    for statement in ("method dds", "prior brain-small", "nfe 20", "effective R 1.00"):
        assert statement in told
    assert "noise estimated from the edge of k-space (no noise scan)" in told
    assert 0 < float(meta["WindowCenter"][0]) < float(magnitude.data.max())
    assert meta["ProtocolName"] == ["gre"]
    meta = entries(std.meta)
    assert (meta["GADGETRON_DataRole"], meta["DataRole"]) == (["STD_MAP"], ["Quantitative"])
    assert meta["RescaleSlope"] == ["1"]
    assert all(ord(character) < 128 for character in magnitude.meta + std.meta)


def test_window_can_be_left_out() -> None:
    encoding, [(problem, source)] = scan_of("siemens_gre_phantom")
    [image] = make_images(
        combined(problem), None, problem=problem, source=source, encoding=encoding, info=INFO, index=1, window=False
    )
    assert not any("Window" in name for name in entries(image.meta))


@given(st.dictionaries(st.text("abcXYZ_", min_size=1), st.text() | st.integers() | st.lists(st.text()), max_size=5))
def test_any_text_makes_wellformed_ascii_that_ismrmrd_reads(fields: dict) -> None:
    xml = to_xml(fields)
    xml.encode("ascii")
    assert list(entries(xml)) == list(fields)
    ismrmrd.Meta.deserialize(xml)


def test_escaped_values_come_back() -> None:
    assert entries(to_xml({"a": 'R<4 & "T2" \u00fc\u4e2d'}))["a"] == ['R<4 & "T2" \u00fc\u4e2d']


def test_history_tells_what_is_unusual() -> None:
    told = history({"method": "dds"}, {"noise": "scan", "partial_fourier": 0.75, "partial_echo": 1.0, "averages": 2})
    assert told == ["Scanprior", "method dds", "noise from the noise scan", "partial fourier 0.75", "averages 2"]


def test_phase_oversampling_is_cut_and_pixels_interpolated_without_changing_values() -> None:
    encoding = Encoding.from_header(
        header_xml((64, 60, 1), (64, 80, 1), (480, 360, 5), (240, 240, 5))
    )  # readout 64 -> 32 -> 64, phase 60 -> 40 -> 80
    y = np.arange(60) - 30
    x = np.arange(32) - 16
    image = (np.exp(-((y / 8.0) ** 2))[:, None] * np.exp(-((x / 5.0) ** 2))).astype(np.complex64)[None]
    fitted = fit_recon_matrix(image, encoding)
    fine = np.exp(-(((np.arange(80) - 40) / 2 / 8.0) ** 2))[:, None] * np.exp(-(((np.arange(64) - 32) / 2 / 5.0) ** 2))
    assert fitted.shape == (1, 80, 64)
    assert np.allclose(fitted[0], fine, atol=2e-3)
    real = fit_recon_matrix(np.abs(image), encoding)
    assert real.dtype == np.float32
    assert (real >= 0).all()


def test_a_volume_is_one_image_with_z() -> None:
    encoding, [(problem, source)] = scan_of("brain8ch_poisson_r8")
    batch = combined(problem)
    [image] = make_images(batch, None, problem=problem, source=source, encoding=encoding, info=INFO, index=1)
    assert image.data.shape == (1, 180, 230, 1)
    assert tuple(image.head["matrix_size"]) == (1, 230, 180)
    assert np.allclose(image.data[0, :, :, 0], np.abs(batch[0]))
    assert assemble(np.zeros((3, 4, 5)), True).shape == (4, 5, 3)


def test_wrong_shapes_and_values_are_refused() -> None:
    encoding, [(problem, source)] = scan_of("siemens_gre_phantom")
    image = combined(problem)

    def make(image: np.ndarray, std: np.ndarray | None) -> None:
        make_images(image, std, problem=problem, source=source, encoding=encoding, info=INFO, index=1)

    with pytest.raises(ValueError, match=r"the image of .* is \(160, 159\), expected \(160, 160\)"):
        make(image[:, 1:], None)
    with pytest.raises(ValueError, match=r"standard deviation of .* not finite"):
        make(image, np.full(image.shape, np.nan))


@given(st.integers(1, 12), st.integers(1, 12))
def test_resize_keeps_the_centre(old: int, new: int) -> None:
    array = np.zeros(old)
    array[old // 2] = 1
    resized = resize(array, 0, new)
    assert resized.shape == (new,)
    assert resized[new // 2] == 1


@pytest.mark.parametrize("size", [15, 16])
def test_transforms_are_orthonormal_and_keep_single_precision(size: int) -> None:
    image = smooth_object(size, size + 1)
    kspace = fft(image, (-2, -1))
    assert kspace.dtype == np.complex64
    assert np.linalg.norm(kspace) == pytest.approx(np.linalg.norm(image), rel=1e-5)
    assert np.allclose(ifft(kspace, (-2, -1)), image, atol=1e-6)
    assert np.allclose(crop_field_of_view(kspace, size + 1), kspace)
    assert np.allclose(interpolate(interpolate(image, 40, 1), size, 1), interpolate(image, size, 1), atol=1e-5)


def test_acquisition_helper_matches_the_layout() -> None:
    assert acquisition(np.ones((2, 8)), 3, 21).is_flag_set(21)
