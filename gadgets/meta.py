"""Image meta: the XML attributes that go with an MRD image, in the dialects of Gadgetron and of MRD / FIRE."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

import numpy as np

Value = str | int | float | bool
CONTROL = re.compile(r"[^\x09\x0a\x0d\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # not allowed in XML 1.0
NOISE_SOURCES = {
    "scan": "noise from the noise scan",
    "estimated": "noise estimated from the edge of k-space (no noise scan)",
    "upstream": "noise whitened upstream",
    "not whitened": "noise not whitened",
}


def to_xml(fields: Mapping[str, Value | Iterable[Value]]) -> str:
    """Meta as XML: ASCII only (other characters as references), one `meta` per key, one `value` per value."""
    root = Element("ismrmrdMeta")
    for name, values in fields.items():
        entry = SubElement(root, "meta")
        SubElement(entry, "name").text = name
        for value in [values] if isinstance(values, str | int | float | bool) else values:
            SubElement(entry, "value").text = CONTROL.sub("?", _text(value))
    return tostring(root, encoding="us-ascii").decode("ascii")


def history(info: Mapping[str, Any], notes: Mapping[str, Any]) -> list[str]:
    """What was done to an image, one statement each.

    Parameters
    ----------
    info
        `Reconstruction.info`: method, prior, nfe, iterations, seconds, fallback, ...; all of it is told.
    notes
        `Problem.notes`; the known ones are told in words, the rest as it is.
    """
    told = ["Scanprior"]
    # how long it took is for the log: the same scan shall give the same meta
    told += [f"{name} {_text(value)}" for name, value in info.items() if isinstance(value, Value) and name != "seconds"]
    rest = dict(notes)
    told.append(NOISE_SOURCES.get(str(rest.get("noise")), f"noise {rest.get('noise', 'unknown')}"))
    rest.pop("noise", None)
    if "effective_r" in rest:
        told.append(f"effective R {rest.pop('effective_r'):.2f}")
    for name in ("partial_fourier", "partial_echo"):
        if rest.pop(name, 1.0) < 1.0:
            told.append(f"{name.replace('_', ' ')} {notes[name]:.2f}")
    told += [f"{name.replace('_', ' ')} {_text(value)}" for name, value in rest.items()]
    return told


def image_meta(
    *,
    quantitative: bool,
    letter: str,
    suffix: str,
    comment: str,
    steps: list[str],
    head: np.void,
    window: tuple[float, float] | None,
    protocol: str = "",
    patient_position: str = "",
) -> str:
    """Meta of an image (or, if `quantitative`, of a map whose values the scanner must leave alone).

    Parameters
    ----------
    letter
        Third value of the DICOM image type: M magnitude, C complex, STD standard deviation.
    suffix
        Appended by the scanner to the name of the series.
    steps
        Processing history.
    head
        Image or acquisition header with read_dir and phase_dir.
    window
        Centre and width of the display window, or None to leave it to the display.
    """
    gadgetron_role, role = ("STD_MAP", "Quantitative") if quantitative else ("Image", "Image")
    fields: dict[str, Value | Iterable[Value]] = {
        "GADGETRON_DataRole": gadgetron_role,
        "DataRole": role,
        "GADGETRON_ImageComment": comment,
        "ImageComments": comment,
        "GADGETRON_ImageProcessingHistory": steps,
        "ImageProcessingHistory": steps,
        "GADGETRON_SeqDescription": "_" + suffix,
        "SeriesDescriptionAdditional": suffix,
        "SequenceDescriptionAdditional": suffix,
        "ImageType": ["DERIVED", "PRIMARY", letter, suffix.upper()],
        "ImageRowDir": [f"{value:.18f}" for value in head["read_dir"]],
        "ImageColumnDir": [f"{value:.18f}" for value in head["phase_dir"]],
        "Keep_image_geometry": 1,
    }
    if quantitative:
        fields |= {
            "Skip_processing_after_recon": "true",
            "GADGETRON_ScaleRatio": 1.0,
            "GADGETRON_ScaleOffset": 0.0,
            "RescaleSlope": 1.0,
            "RescaleIntercept": 0.0,
        }
    if window is not None:
        for prefix in ("GADGETRON_", ""):
            fields |= {prefix + "WindowCenter": window[0], prefix + "WindowWidth": window[1]}
    if protocol:
        fields["ProtocolName"] = protocol
    if patient_position:
        fields["PatientPosition"] = patient_position
    return to_xml(fields)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
