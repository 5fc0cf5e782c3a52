"""What a real Gadgetron and a real FIRE client once sent, served to its end by the real reconstruction."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scanprior.gadgets import mrd
from scanprior.gadgets.engine import Engine
from scanprior.gadgets.frames import FrameReader, to_bytes
from scanprior.gadgets.link import LinkSettings, serve_scan
from scanprior.models.recipe import recipe_from
from support import recorded_stream
from wire_helpers import kinds, with_properties

SETTINGS = LinkSettings(idle_s=10, stall_s=10)
RSS = recipe_from({"name": "rss", "method": "zero-filled", "whitening": "none", "settings": {"combine": "rss"}}, "test")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    running = Engine(RSS, device="cpu")
    yield running
    running.close()


def serve(engine: Engine, stream: bytes, **parameters: str) -> list[Any]:
    """All messages that come back; the stream's own parameters count only where none are given."""

    def factory(header: str, given: dict[str, Any], send: Any, tell: Any) -> Any:
        return engine.open_session(header, parameters, send, tell)

    source, out = io.BytesIO(stream), io.BytesIO()
    report = serve_scan(source, out, factory, SETTINGS)
    assert report.failure is None
    assert source.read() == b"", "the input was not read to its end"
    messages = [frame.message for frame in FrameReader(io.BytesIO(out.getvalue()))]
    assert len(to_bytes(*messages)) == len(out.getvalue()), "CLOSE is the last"
    assert messages[-1] == mrd.Close()
    return messages


def by_key(messages: list[Any]) -> dict[tuple[int, int], mrd.Image]:
    """Images by slice and repetition."""
    images = [message for message in messages if isinstance(message, mrd.Image)]
    found = {(int(image.head["slice"]), int(image.head["repetition"])): image for image in images}
    assert len(found) == len(images)
    return found


KEYS = {(0, 0), (1, 0), (0, 1), (1, 1)}


@pytest.mark.parametrize(
    ("case", "waveforms"),
    [
        ("gt_acq_noise/to_external", 8),
        ("gt_acq_passthrough/to_external", 8),
        ("gt_error/to_external", 8),
        ("gt_client/to_gadgetron", 8),
        ("fire_config_name/to_external", 0),
        ("fire_config_text/to_external", 0),
        ("fire_config_json/to_external", 0),
        ("stdio/hdf5_to_stream_small", 8),
        ("gt_recondata_to_images/to_external", 0),
        ("gt_recondata_to_imagearray/to_external", 0),
        ("gt_recondata_nosplit/to_external", 0),
        ("gt_bucket/to_external", 0),
        ("gt_bucket_sorted/to_external", 0),
    ],
)
def test_raw_data_become_images(engine: Engine, case: str, waveforms: int) -> None:
    messages = serve(engine, recorded_stream(case))
    found = by_key(messages)
    assert set(found) == KEYS
    for image in found.values():
        assert image.data.shape == (1, 1, 64, 64)
        assert (image.head["image_type"], image.head["data_type"], image.head["image_series_index"]) == (1, 5, 1)
        assert np.allclose(image.head["field_of_view"][:2], 224)
    # 7.5 mm between the slices, 20 degrees oblique
    shift = found[1, 0].head["position"] - found[0, 0].head["position"]
    assert np.allclose(shift, 7.5 * found[0, 0].head["slice_dir"], atol=1e-4)
    assert kinds(messages).count("Waveform") == waveforms


@pytest.mark.parametrize("case", ["gt_acq_passthrough/to_external", "stdio/hdf5_to_stream_small"])
def test_waveforms_pass_in_order_and_unchanged(engine: Engine, case: str) -> None:
    stream = recorded_stream(case)
    sent = [frame for frame in FrameReader(io.BytesIO(stream)) if isinstance(frame.message, mrd.Waveform)]
    back = [message for message in serve(engine, stream) if isinstance(message, mrd.Waveform)]
    for theirs, ours in zip(sent, back, strict=True):
        np.testing.assert_array_equal(ours.data, theirs.message.data)
        assert ours.head.tobytes() == theirs.message.head.tobytes(), "padding included: the bytes are handed on"


@pytest.mark.parametrize("case", ["gt_images_midchain", "gt_images_meta_midchain", "gt_imagearray_midchain"])
def test_images_and_image_arrays_pass_unchanged(engine: Engine, case: str) -> None:
    stream = recorded_stream(f"{case}/to_external")
    sent = [frame for frame in FrameReader(io.BytesIO(stream)) if isinstance(frame.message, mrd.Image | mrd.ImageArray)]
    assert len(sent) == (6 if "meta" in case else 4)
    out = io.BytesIO()
    serve_scan(io.BytesIO(stream), out, engine.open_session, SETTINGS)
    assert out.getvalue() == to_bytes(*sent, mrd.Close())


def test_images_of_a_fire_client_without_a_header_pass_unchanged(engine: Engine) -> None:
    stream = recorded_stream("fire_images_in/to_external")
    messages = serve(engine, stream)
    assert kinds(messages) == ["Image"] * 4 + ["Close"]
    assert stream.endswith(to_bytes(*messages))


def test_an_empty_scan_is_closed(engine: Engine) -> None:
    assert serve(engine, recorded_stream("gt_empty_scan/to_external")) == [mrd.Close()]


@pytest.mark.parametrize("case", ["gt_recondata_to_images", "gt_recondata_nosplit", "gt_bucket", "gt_bucket_sorted"])
@pytest.mark.parametrize("recipe", ["", "sense"])
def test_sorted_upstream_or_here_is_the_same_image(engine: Engine, case: str, recipe: str) -> None:
    """The same scan as acquisitions and as Gadgetron sorted it. Its RemoveROOversampling is orthonormal, as our crop.

    The buffers hold no noise: with `whitened` both are taken as they are.
    """
    parameters = {"recipe": recipe, "whitened": "true"} if recipe else {}
    ours = by_key(serve(engine, recorded_stream("gt_acq_passthrough/to_external"), **parameters))
    theirs = by_key(serve(engine, recorded_stream(f"{case}/to_external"), **parameters))
    assert set(ours) == set(theirs) == KEYS
    for key, image in ours.items():
        error = np.linalg.norm(theirs[key].data - image.data) / np.linalg.norm(image.data)
        assert error < (1e-5 if recipe else 1e-6), f"{case} {key}: {error:.1e}"
        for name in ("position", "read_dir", "phase_dir", "slice_dir", "image_type", "image_series_index"):
            np.testing.assert_array_equal(theirs[key].head[name], image.head[name])


def test_whitened_upstream_is_not_whitened_twice(engine: Engine) -> None:
    """Whitening changes small_noise's image, `whitened` keeps it as it came."""
    stream = recorded_stream("gt_acq_noise/to_external")
    plain = by_key(serve(engine, stream))[0, 0]
    upstream = by_key(serve(engine, stream, recipe="zero-filled", whitened="true"))[0, 0]
    whitened = by_key(serve(engine, stream, recipe="zero-filled"))[0, 0]
    np.testing.assert_array_equal(plain.data, upstream.data)
    assert "noise whitened upstream" in upstream.meta
    assert "noise from the noise scan" in whitened.meta
    # in SNR units: other units, and here another mixture of coils
    ratio = whitened.data / plain.data
    assert ratio.std() / ratio.mean() > 0.01


def test_a_chain_with_extract_gets_complex_images_alone(engine: Engine) -> None:
    """ExtractGadget takes complex float only, and makes the magnitude itself: one image a slice, in series 1."""
    stream = recorded_stream("gt_recondata_to_images/to_external")
    chain = {"whitened": "true", "output": "complex", "std": "false"}  # as pipelines/gadgetron has it
    complex_images = by_key(serve(engine, stream, **chain))
    magnitudes = by_key(serve(engine, stream, whitened="true"))
    assert set(complex_images) == KEYS
    for key, image in complex_images.items():
        assert (image.head["image_type"], image.head["data_type"], image.head["image_series_index"]) == (5, 7, 1)
        np.testing.assert_allclose(np.abs(image.data), magnitudes[key].data, rtol=1e-6)


@pytest.mark.parametrize(
    ("case", "properties"),
    [
        ("gt_recondata_to_images", {"whitened": "true", "output": "complex", "std": "false"}),
        ("gt_acq_noise", {"output": "magnitude"}),
    ],
)
def test_dds_of_a_recorded_stream(engine: Engine, case: str, properties: dict[str, str]) -> None:
    """The learned method, by the parameters in the stream itself."""
    stream = with_properties(case, recipe="dds", steps="2", samples="2", device="cpu", **properties)
    out = io.BytesIO()
    report = serve_scan(io.BytesIO(stream), out, engine.open_session, SETTINGS)
    assert report.failure is None
    images = [m.message for m in FrameReader(io.BytesIO(out.getvalue())) if isinstance(m.message, mrd.Image)]
    series = [int(image.head["image_series_index"]) for image in images]
    types = {(int(image.head["image_series_index"]), image.data.dtype.name) for image in images}
    if "std" in properties:
        assert series == [1] * 4
        assert types == {(1, "complex64")}
    else:
        assert series == [1, 2] * 4
        assert types == {(1, "float32"), (2, "float32")}
    for image in images:
        assert "nfe 2" in image.meta
        assert np.isfinite(image.data).all()
