"""From a reconstruction back to MRD images: matrix, header, meta."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scanprior.gadgets.encoding import Encoding
from scanprior.gadgets.fourier import interpolate, resize
from scanprior.gadgets.meta import history, image_meta
from scanprior.gadgets.mrd import IMAGE_HEADER, Image
from scanprior.gadgets.preparation import Problem
from scanprior.gadgets.slices import SliceData

MAGNITUDE, COMPLEX = 1, 5  # image_type; Gadgetron throws on 0
FLOAT32, COMPLEX64 = 5, 7  # data_type
IMAGE_SERIES, STD_SERIES = 1, 2  # a series holds one size and one pixel type only


def assemble(batch: np.ndarray, volume: bool) -> np.ndarray:
    """(z, y, x) from what a reconstruction makes of `Problem.kspace`: (y, x), or (x, z, y) of a volume."""
    return np.ascontiguousarray(np.moveaxis(batch, 0, -1)) if volume else batch[None]


def fit_recon_matrix(image: np.ndarray, encoding: Encoding) -> np.ndarray:
    """Bring an image from the encoded to the reconstructed field of view and matrix.

    First phase oversampling is cut in image space, then the matrix is changed by zero-padding or cutting k-space.
    Pixel values are kept (not energy), so that the noise of a pixel keeps its meaning.

    Parameters
    ----------
    image
        (z, y, x), complex or real; x already without readout oversampling. A real image stays real and, as it is a
        magnitude or a standard deviation, not negative.
    """
    fitted = image
    for axis, number in ((0, 2), (1, 1), (2, 0)):
        size = encoding.encoded.matrix[number]
        ratio = encoding.recon.fov[number] / encoding.encoded.fov[number]
        if size == 1:
            continue
        # the readout was cropped in preparation
        if abs(ratio - 1) > 1e-3 and (number or ratio > 1):
            fitted = resize(fitted, axis, max(1, round(size * ratio)))
        fitted = interpolate(fitted, encoding.recon.matrix[number], axis)
    if np.iscomplexobj(image):
        return fitted.astype(np.complex64)
    return np.maximum(fitted.real, 0).astype(np.float32)


def make_images(
    image: np.ndarray,
    std: np.ndarray | None,
    *,
    problem: Problem,
    source: SliceData,
    encoding: Encoding,
    info: Mapping[str, Any],
    index: int,
    complex_image: bool = False,
    window: bool = True,
) -> list[Image]:
    """MRD images of one reconstruction: the image (series 1), and the map of the standard deviation of its magnitude
    (series 2) if there is one.

    Parameters
    ----------
    image
        (y, x), or (x, z, y) for a volume, complex, as reconstructed from `problem`.
    std
        The same shape, real; or None. Where the notes of `problem` tell of a `partial_fourier_filling`, it is of the
        image before that, and its meta says so.
    info
        `Reconstruction.info`. Its `warning`, if there is one, stands in the comment too, which a viewer shows.
    complex_image
        Send the image complex, and not its magnitude: what Gadgetron's ExtractGadget takes. Not both, since a chain
        behind that makes the magnitude itself would end up with every image twice.
    index
        image_index, from 1, the same for all images of one slice.
    window
        Whether the meta has a display window. Not where Gadgetron's AutoScale follows: it changes the values only.

    Raises
    ------
    ValueError
        The image is not finite, or its shape is not that of the problem.
    """
    expected = (problem.kspace.shape[0], *problem.kspace.shape[-2:]) if problem.volume else problem.kspace.shape[-2:]
    for name, array in (("image", image), ("standard deviation", std)):
        if array is None:
            continue
        if array.shape != expected:
            raise ValueError(f"the {name} of {problem.key} is {array.shape}, expected {expected}")
        if not np.isfinite(array).all():
            raise ValueError(f"the {name} of {problem.key} has values that are not finite")
    method = str(info.get("method", "recon"))
    caution = f"; {info['warning']}" if "warning" in info else ""
    made = history(info, problem.notes)
    pixels = fit_recon_matrix(assemble(image, problem.volume), encoding)

    def message(
        array: np.ndarray, series: int, letter: str, suffix: str, comment: str, steps: list[str] = made
    ) -> Image:
        head = image_header(array, source, encoding, series=series, index=index)
        meta = image_meta(
            quantitative=letter == "STD", letter=letter, suffix=suffix, comment=comment, steps=steps, head=head,
            window=_window(array) if window and not np.iscomplexobj(array) else None,
            protocol=encoding.protocol_name, patient_position=encoding.patient_position,
        )  # fmt: skip
        head["attribute_string_len"] = len(meta)
        return Image(head, array[None], meta)

    if complex_image:
        images = [message(pixels, IMAGE_SERIES, "C", method, f"Scanprior {method}{caution}")]
    else:
        magnitude = np.abs(pixels).astype(np.float32)
        images = [message(magnitude, IMAGE_SERIES, "M", method, f"Scanprior {method}{caution}")]
    if std is not None:
        deviation = fit_recon_matrix(assemble(std, problem.volume), encoding)
        comment, steps = f"Scanprior {method}: standard deviation of the magnitude", made
        if filling := problem.notes.get("partial_fourier_filling"):
            comment += f" before {filling}"
            steps = [*made, f"standard deviation of the image before {filling}, which it did not pass through"]
        images.append(message(deviation, STD_SERIES, "STD", method + "_std", comment, steps))
    return images


def image_header(array: np.ndarray, source: SliceData, encoding: Encoding, *, series: int, index: int) -> np.void:
    """MRD image header of `array` (z, y, x) float32 or complex64, with geometry and time of the slice's centre line."""
    line = source.head
    head = np.zeros(1, IMAGE_HEADER)[0]
    is_complex = np.iscomplexobj(array)
    head["version"] = int(line["version"]) or 1
    head["data_type"] = COMPLEX64 if is_complex else FLOAT32
    head["image_type"] = COMPLEX if is_complex else MAGNITUDE
    head["measurement_uid"] = line["measurement_uid"]
    head["matrix_size"] = array.shape[::-1]
    head["field_of_view"] = encoding.recon.fov
    head["channels"] = 1
    for name in ("position", "read_dir", "phase_dir", "slice_dir", "patient_table_position"):
        head[name] = line[name]
    for name in ("acquisition_time_stamp", "physiology_time_stamp"):
        head[name] = line[name]
    for name, value in source.key._asdict().items():
        head[name] = value
    head["image_series_index"] = series
    head["image_index"] = index
    return head


def _window(array: np.ndarray) -> tuple[float, float]:
    high = float(np.percentile(array, 99.5))
    return (high / 2, high) if high > 0 else (0.5, 1.0)
