"""What the MRD header says about the encoding: matrices, fields of view, limits, calibration, receiver."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring
from scanprior.gadgets.errors import HeaderError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

log = logging.getLogger(__name__)

MAX_HEADER_BYTES = 32 << 20
MAX_MATRIX = 8192
SUPPORTED = "Cartesian 2-D and 3-D scans with one encoding space"
STEPS = ("kspace_encoding_step_0", "kspace_encoding_step_1", "kspace_encoding_step_2")
COUNTERS = ("average", "slice", "contrast", "phase", "repetition", "set", "segment")
CALIBRATION_MODES = ("embedded", "interleaved", "separate", "external", "other")
DEFAULT_NOISE_BANDWIDTH = 0.793  # what Gadgetron takes where the header is silent


@dataclass(frozen=True)
class Limit:
    """Range of an encoding counter, both ends included, and the k-space centre in it.

    `given` is false where the header has no such limit and the range follows from the matrix.
    """

    minimum: int
    maximum: int
    center: int
    given: bool = True


@dataclass(frozen=True)
class Space:
    """Matrix size and field of view in mm, each (x, y, z); x is the readout."""

    matrix: tuple[int, int, int]
    fov: tuple[float, float, float]


@dataclass(frozen=True)
class Encoding:
    """The part of an MRD header that decides how acquisitions become k-space.

    Attributes
    ----------
    encoded, recon
        The encoded and the reconstructed space.
    limits
        Limit per name: `kspace_encoding_step_0` to `_2`, `average`, `slice`, `contrast`, `phase`,
        `repetition`, `set`, `segment`. All are there; see `Limit.given`.
    trajectory
        Always "cartesian".
    calibration
        "embedded", "interleaved", "separate", "external" or "other" ("other" where the header has none).
    acceleration
        Nominal acceleration along (step 1, step 2).
    reference_lines
        Number of embedded reference lines along (step 1, step 2), None where the header does not say.
    receiver_channels
        Number of channels, None where the header does not say.
    noise_bandwidth
        relativeReceiverNoiseBandwidth; 0.793 where absent, as Gadgetron does.
    dependencies
        measurementDependency: type in lower case to measurement id.
    protocol_name, patient_position, measurement_id, system, field_strength_t
        What the image meta repeats; "" or None where absent. `system` is vendor and model.
    sequence
        Numbers and texts of sequenceParameters that stand there once (TR, TE, sequence_type, ...), as text.
    """

    encoded: Space
    recon: Space
    limits: Mapping[str, Limit]
    trajectory: str = "cartesian"
    calibration: str = "other"
    acceleration: tuple[float, float] = (1.0, 1.0)
    reference_lines: tuple[int | None, int | None] = (None, None)
    receiver_channels: int | None = None
    noise_bandwidth: float = DEFAULT_NOISE_BANDWIDTH
    dependencies: Mapping[str, str] = field(default_factory=dict)
    protocol_name: str = ""
    patient_position: str = ""
    measurement_id: str = ""
    system: str = ""
    field_strength_t: float | None = None
    sequence: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_header(cls, xml: str | bytes) -> Encoding:
        """Read an MRD header.

        Elements are looked up by local name, so that a missing namespace or an element that the schema
        does not know (or one whose optional child is missing, which the schema classes refuse) does no harm.

        Raises
        ------
        HeaderError
            Not XML, an element missing or absurd, or a scan that is not supported.
        """
        root = _parse(xml)
        if _name(root) != "ismrmrdHeader":
            raise HeaderError(f"the MRD header starts with <{_name(root)}>, expected <ismrmrdHeader>")
        encodings = _all(root, "encoding")
        if not encodings:
            raise HeaderError("the MRD header has no <encoding>")
        if len(encodings) > 1:
            raise HeaderError(f"the MRD header has {len(encodings)} encoding spaces; supported: {SUPPORTED}")
        encoding = encodings[0]
        trajectory = (_text(encoding, "trajectory") or "").lower()
        if not trajectory:
            raise HeaderError("the MRD header has no encoding/trajectory")
        if trajectory != "cartesian":
            raise HeaderError(f"trajectory {trajectory!r} is not supported; supported: {SUPPORTED}")

        encoded, recon = _space(encoding, "encodedSpace"), _space(encoding, "reconSpace")
        calibration = (_text(encoding, "parallelImaging/calibrationMode") or "other").lower()
        if calibration not in CALIBRATION_MODES:
            raise HeaderError(f"calibrationMode {calibration!r} is not one of {', '.join(CALIBRATION_MODES)}")
        acceleration = "parallelImaging/accelerationFactor/kspace_encoding_step_"
        channels = _integer(root, "acquisitionSystemInformation/receiverChannels")
        if channels is not None and not 1 <= channels <= 1024:
            raise HeaderError(f"receiverChannels is {channels}, expected 1 to 1024")
        bandwidth = _number(root, "acquisitionSystemInformation/relativeReceiverNoiseBandwidth")
        if bandwidth is not None and not 0 < bandwidth <= 10:
            raise HeaderError(f"relativeReceiverNoiseBandwidth is {bandwidth}, expected above 0 (near 1)")
        user = _user_integers(root)
        system = [_text(root, f"acquisitionSystemInformation/{name}") for name in ("systemVendor", "systemModel")]
        return cls(
            encoded=encoded,
            recon=recon,
            limits=_limits(encoding, encoded),
            trajectory=trajectory,
            calibration=calibration,
            acceleration=(_number(encoding, acceleration + "1") or 1.0, _number(encoding, acceleration + "2") or 1.0),
            # the names that siemens_to_ismrmrd writes and Gadgetron reads
            reference_lines=(user.get("EmbeddedRefLinesE1"), user.get("EmbeddedRefLinesE2")),
            receiver_channels=channels,
            noise_bandwidth=bandwidth or DEFAULT_NOISE_BANDWIDTH,
            dependencies=_dependencies(root),
            protocol_name=_text(root, "measurementInformation/protocolName") or "",
            patient_position=_text(root, "measurementInformation/patientPosition") or "",
            measurement_id=_text(root, "measurementInformation/measurementID") or "",
            system=" ".join(part for part in system if part),
            field_strength_t=_number(root, "acquisitionSystemInformation/systemFieldStrength_T"),
            sequence=_sequence(root),
        )

    @property
    def averages(self) -> int:
        """Number of averages the header announces (1 where it does not say)."""
        limit = self.limits["average"]
        return limit.maximum + 1 if limit.given else 1

    @property
    def volume(self) -> bool:
        """Whether the scan is phase-encoded along z, too (3-D)."""
        return self.encoded.matrix[2] > 1

    @property
    def readout_cropped(self) -> int:
        """Length of the readout without its oversampling: encoded matrix times the ratio of fields of view.

        Oversampling is what the encoded field of view has beyond the reconstructed one. A larger encoded matrix
        alone is no oversampling, and the crop keeps the resolution of the encoded matrix.
        """
        return self.cropped(0)

    def cropped(self, axis: int) -> int:
        """Matrix along `axis` (0 x, 1 y, 2 z) cut to the reconstructed field of view at the encoded resolution."""
        encoded, recon, size = self.encoded.fov[axis], self.recon.fov[axis], self.encoded.matrix[axis]
        if encoded <= recon * (1 + 1e-3):
            return size
        return max(1, min(size, round(size * recon / encoded)))

    def position(self, step: int, index: int) -> int:
        """Where the matrix holds the line with counter `index` of encoding step 1 or 2 (DC at matrix // 2).

        Partial Fourier scans have their centre elsewhere than in the middle of their limits.
        """
        return index - self.limits[STEPS[step]].center + self.encoded.matrix[step] // 2


def _parse(xml: str | bytes) -> Element:
    if len(xml) > MAX_HEADER_BYTES:
        raise HeaderError(f"the MRD header has {len(xml)} bytes, at most {MAX_HEADER_BYTES} are read")
    # FIRE clients end their strings with NUL
    text = xml.rstrip(b"\0 \r\n\t") if isinstance(xml, bytes) else xml.rstrip("\0 \r\n\t")
    if not text:
        raise HeaderError("the MRD header is empty")
    try:
        return fromstring(text, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        start = text[:40]
        raise HeaderError(f"the MRD header is not XML ({error}); it starts with {start!r}") from error


def _name(element: Element) -> str:
    return str(element.tag).rsplit("}", 1)[-1]


def _all(element: Element, name: str) -> list[Element]:
    return [child for child in element if _name(child) == name]


def _find(element: Element, path: str) -> Element | None:
    found: Element | None = element
    for name in path.split("/"):
        if found is None:
            return None
        found = next(iter(_all(found, name)), None)
    return found


def _text(element: Element, path: str) -> str | None:
    found = _find(element, path)
    text = (found.text or "").strip() if found is not None else ""
    return text or None


def _number(element: Element, path: str) -> float | None:
    text = _text(element, path)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise HeaderError(f"{path} in the MRD header is {text!r}, expected a number")
    return value


def _integer(element: Element, path: str) -> int | None:
    value = _number(element, path)
    if value is None:
        return None
    if value != int(value):
        raise HeaderError(f"{path} in the MRD header is {value}, expected a whole number")
    return int(value)


def _space(encoding: Element, name: str) -> Space:
    matrix, fov = [], []
    for axis in "xyz":
        size = _integer(encoding, f"{name}/matrixSize/{axis}")
        length = _number(encoding, f"{name}/fieldOfView_mm/{axis}")
        if size is None or length is None:
            missing = "matrixSize" if size is None else "fieldOfView_mm"
            raise HeaderError(f"the MRD header has no {name}/{missing}/{axis}")
        if not 1 <= size <= MAX_MATRIX:
            raise HeaderError(f"{name}/matrixSize/{axis} is {size}, supported: 1 to {MAX_MATRIX}")
        if not 0 < length < 1e5:
            raise HeaderError(f"{name}/fieldOfView_mm/{axis} is {length}, expected above 0 and below 100 m")
        matrix.append(size)
        fov.append(length)
    return Space((matrix[0], matrix[1], matrix[2]), (fov[0], fov[1], fov[2]))


def _limits(encoding: Element, encoded: Space) -> Mapping[str, Limit]:
    limits = {}
    for axis, name in enumerate(STEPS):
        size = encoded.matrix[axis]
        limit = _limit(encoding, name) or Limit(0, size - 1, size // 2, given=False)
        outside = limit.maximum - limit.center + size // 2 > size - 1 or limit.minimum - limit.center + size // 2 < 0
        # 0 is what the schema puts in for a centre that its writer left out
        if axis and limit.center == 0 and outside and limit.maximum < size:
            log.warning("encodingLimits/%s has centre 0, which its matrix of %d cannot hold; taken as %d",
                        name, size, size // 2)  # fmt: skip
            limit = Limit(limit.minimum, limit.maximum, size // 2)
        elif axis and limit.given and outside:
            raise HeaderError(
                f"encodingLimits/{name} {limit.minimum}..{limit.maximum} with centre {limit.center} "
                f"does not fit into an encoded matrix of {size}"
            )
        limits[name] = limit
    for name in COUNTERS:
        limits[name] = _limit(encoding, name) or Limit(0, 0xFFFF, 0, given=False)
    return MappingProxyType(limits)


def _limit(encoding: Element, name: str) -> Limit | None:
    path = f"encodingLimits/{name}"
    if _find(encoding, path) is None:
        return None
    values = [_integer(encoding, f"{path}/{key}") or 0 for key in ("minimum", "maximum", "center")]
    if not 0 <= values[0] <= values[1] <= 0xFFFF or not 0 <= values[2] <= 0xFFFF:
        raise HeaderError(
            f"{path} is {values[0]}..{values[1]} with centre {values[2]}, expected 0 <= minimum <= maximum <= 65535"
        )
    return Limit(values[0], values[1], values[2])


def _user_integers(root: Element) -> dict[str, int]:
    values = {}
    parameters = _find(root, "userParameters")
    for parameter in _all(parameters, "userParameterLong") if parameters is not None else []:
        name, value = _text(parameter, "name"), _integer(parameter, "value")
        if name and value is not None and value > 0:
            values[name] = value
    return values


def _dependencies(root: Element) -> Mapping[str, str]:
    information = _find(root, "measurementInformation")
    found = {}
    for dependency in _all(information, "measurementDependency") if information is not None else []:
        kind = (_text(dependency, "dependencyType") or "").lower()
        found[kind] = _text(dependency, "measurementID") or ""
    return MappingProxyType(found)


def _sequence(root: Element) -> Mapping[str, str]:
    parameters = _find(root, "sequenceParameters")
    found: dict[str, str] = {}
    for child in parameters if parameters is not None else []:
        text = (child.text or "").strip()
        if text and len(text) <= 200:
            found.setdefault(_name(child), text)
    return MappingProxyType(found)
