"""The header: what is read, what is refused, and in which words."""

from __future__ import annotations

import pytest
from acquisitions import header_xml, read_file, recorded
from hypothesis import given
from hypothesis import strategies as st
from scanprior.gadgets.encoding import Encoding
from scanprior.gadgets.errors import HeaderError
from support import data_dir


def test_recorded_multislice_header() -> None:
    encoding = recorded("brain_t2_multislice_r3").encoding
    assert encoding.encoded.matrix == (360, 180, 1)
    assert encoding.recon.fov == (230.0, 230.0, 4.0)
    assert encoding.readout_cropped == 180
    assert encoding.calibration == "embedded"
    assert encoding.acceleration == (3.0, 1.0)
    assert encoding.receiver_channels == 6
    assert encoding.noise_bandwidth == 1.0
    assert encoding.limits["repetition"].maximum == 1
    assert encoding.sequence["TE"] == "95.0"
    assert (encoding.protocol_name, encoding.patient_position) == ("brain_t2_multislice_r3", "HFS")


def test_missing_step_0_limits_and_bandwidth_are_derived() -> None:
    encoding = recorded("siemens_gre_phantom").encoding
    limit = encoding.limits["kspace_encoding_step_0"]
    assert (limit.minimum, limit.maximum, limit.center, limit.given) == (0, 319, 160, False)
    assert Encoding.from_header(header_xml()).noise_bandwidth == 0.793
    assert not Encoding.from_header(header_xml()).limits["average"].given


def test_epi_file_is_refused() -> None:
    xml, _ = read_file(data_dir() / "recorded" / "siemens_epi_phantom.h5")
    with pytest.raises(HeaderError, match=r"trajectory 'epi' is not supported; supported: Cartesian"):
        Encoding.from_header(xml)


@pytest.mark.parametrize("trajectory", ["radial", "spiral", "goldenangle", "epi", "other"])
def test_other_trajectories_are_refused(trajectory: str) -> None:
    with pytest.raises(HeaderError, match=f"'{trajectory}' is not supported; supported"):
        Encoding.from_header(header_xml(trajectory=trajectory))


def test_second_encoding_is_refused() -> None:
    xml = header_xml()
    start, stop = xml.index("<encoding>"), xml.index("</encoding>") + len("</encoding>")
    with pytest.raises(HeaderError, match=r"2 encoding spaces; supported: .* one encoding space"):
        Encoding.from_header(xml[:stop] + xml[start:stop] + xml[stop:])


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("", "is empty"),
        (b"Dummy XML header\0", "not XML"),
        ("<ismrmrdHeader>", "not XML"),
        ("<html/>", "expected <ismrmrdHeader>"),
        ("<ismrmrdHeader/>", "no <encoding>"),
        (header_xml().replace("<trajectory>cartesian</trajectory>", ""), "no encoding/trajectory"),
        (header_xml().replace("reconSpace", "otherSpace"), "no reconSpace/matrixSize/x"),
        (header_xml().replace("<x>240.0</x>", ""), "no encodedSpace/fieldOfView_mm/x"),
        (header_xml(encoded=(32, 24, 0)), "matrixSize/z is 0"),
        (header_xml(encoded=(99999, 24, 1)), "matrixSize/x is 99999, supported: 1 to"),
        (header_xml().replace("<x>32</x>", "<x>many</x>"), "'many', expected a number"),
        (header_xml().replace("<x>32</x>", "<x>31.5</x>"), "31.5, expected a whole number"),
        (header_xml(fov=(240.0, -1.0, 5.0)), "fieldOfView_mm/y is -1.0"),
        (header_xml(fov=(float("nan"), 1.0, 5.0)), "expected a number"),
        (header_xml(calibration="magic"), "'magic' is not one of embedded"),
        (header_xml(limits={"slice": (3, 2, 0)}), "encodingLimits/slice is 3..2"),
        (header_xml(limits={"kspace_encoding_step_1": (0, 23, 3)}), "does not fit into an encoded matrix of 24"),
        (header_xml(channels=5000), "receiverChannels is 5000"),
    ],
)
def test_bad_headers_say_what_is_wrong(xml: str | bytes, message: str) -> None:
    with pytest.raises(HeaderError, match=message):
        Encoding.from_header(xml)


def test_entities_are_not_expanded() -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>' + header_xml()
    with pytest.raises(HeaderError, match="not XML"):
        Encoding.from_header(bomb)


def test_waveform_information_without_user_parameters_is_read() -> None:
    waveform = "<waveformName>ECG</waveformName><waveformType>ecg</waveformType>"
    waveform = f"<waveformInformation>{waveform}</waveformInformation>"
    assert Encoding.from_header(header_xml(extra=waveform)).encoded.matrix == (32, 24, 1)


def test_nul_terminated_bytes_and_text_are_the_same() -> None:
    xml = header_xml(reference_lines=24)
    assert Encoding.from_header(xml) == Encoding.from_header(xml.encode() + b"\0")
    assert Encoding.from_header(xml).reference_lines == (24, None)


def test_partial_fourier_centre_moves_the_lines() -> None:
    # 18 of 24 lines, the centre at the 6th: the missing ones are at low ky
    encoding = Encoding.from_header(header_xml(limits={"kspace_encoding_step_1": (0, 17, 6)}))
    assert [encoding.position(1, line) for line in (0, 6, 17)] == [6, 12, 23]


def test_a_centre_that_was_left_out_is_the_middle() -> None:
    encoding = Encoding.from_header(header_xml(limits={"kspace_encoding_step_1": (0, 23, 0)}))
    assert encoding.position(1, 12) == 12


def test_phase_oversampling_is_cropped_by_the_ratio_of_fields_of_view() -> None:
    xml = header_xml(encoded=(64, 60, 1), recon=(32, 40, 1), fov=(480, 360, 5), recon_fov=(240, 240, 5))
    encoding = Encoding.from_header(xml)
    assert (encoding.cropped(0), encoding.cropped(1)) == (32, 40)
    same = Encoding.from_header(header_xml(encoded=(64, 60, 1), recon=(32, 40, 1)))
    assert same.readout_cropped == 64


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_garbage_is_a_header_error(garbage: bytes | str) -> None:
    with pytest.raises(HeaderError):
        Encoding.from_header(garbage)
