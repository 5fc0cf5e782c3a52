"""How Gadgetron, FIRE and a pipe differ: the first frames of a stream, its parameters, and how the operator is told."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal
from xml.etree.ElementTree import Element

import defusedxml.ElementTree
from defusedxml import DefusedXmlException
from scanprior.gadgets.errors import ScanError
from scanprior.gadgets.frames import Frame, FrameReader, Message, MessageId
from scanprior.gadgets.message_codec import decode_text
from scanprior.gadgets.mrd import Close, ConfigName, ConfigText, ErrorText, Header, Query, Response, Text

Level = Literal["info", "warning", "error"]

DUMMY_HEADER = "Dummy XML header"
"""What a FIRE client sends as the header of images that have none."""

_FIRE_LEVELS: dict[Level, str] = {"info": "DBG", "warning": "WRN", "error": "ERR"}
_LONGEST_TEXT = 16_000


@dataclass(frozen=True)
class Dialect:
    """How one kind of peer is spoken to.

    Attributes
    ----------
    name
        For the log.
    failure_by
        How a failure is told: an ERROR message, a TEXT message, or the log alone.
    at_once
        Whether a failure may be told while input still arrives. Gadgetron's server crashes over that.
    settle_s
        Seconds between reading CLOSE and telling a failure: an ERROR in the instant of the CLOSE crashes
        Gadgetron's server in one of three cases, one of 1 ms or later in none.
    echoes_header
        Whether the header opens the stream of replies.
    returns_waveforms
        Whether the waveforms of a scan that is reconstructed go on to the peer. Gadgetron's next gadgets may want them
        (one that nobody takes is dropped without a word). FIRE's scanner has them already and awaits images.
    """

    name: str
    failure_by: Literal["error", "text", "log"]
    at_once: bool = False
    settle_s: float = 0.0
    echoes_header: bool = False
    returns_waveforms: bool = True

    def failure(self, text: str) -> list[Message]:
        """The messages that tell the operator of a failure."""
        if self.failure_by == "error":
            return [ErrorText(_presentable(text))]
        note = self.note("error", text)
        return [] if note is None else [note]

    def note(self, level: Level, text: str) -> Message | None:
        """The message that shows `text` on the operator's console, or None where only the log can take it."""
        if self.failure_by != "text":
            return None
        # FIRE's strings end with a NUL, and the level stands in the first 8 characters
        return Text(f"{_FIRE_LEVELS[level]:<8}{_presentable(text)}\0")


GADGETRON = Dialect("Gadgetron", failure_by="error", settle_s=0.05)
FIRE = Dialect("FIRE", failure_by="text", at_once=True, returns_waveforms=False)
PIPE = Dialect("pipe", failure_by="log", echoes_header=True)


def _presentable(text: str) -> str:
    return text.replace("\0", "")[:_LONGEST_TEXT]


@dataclass
class Opening:
    """What a stream says before its data.

    Attributes
    ----------
    dialect
        How the peer is spoken to; a guess until `read` has returned. Set it with `fixed` where the way in decides.
    fixed
        Whether `dialect` stands whatever the frames look like.
    given
        Configuration and header where they were read before, by gadgetron-python.
    header_xml
        The MRD header, or None where the peer has none (images alone).
    parameters
        Run-time parameters by name: Gadgetron's properties, FIRE's JSON parameters. The name of a
        configuration, where one is given, is the parameter `config`: a wish, since many clients always send one.
    replies
        What is to be sent before anything else.
    ahead
        Frames that had to be read beyond the opening.
    """

    dialect: Dialect = GADGETRON
    fixed: bool = False
    given: tuple[bytes, bytes] | None = None
    header_xml: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    replies: list[Message | Frame] = field(default_factory=list)
    ahead: list[Frame] = field(default_factory=list)

    def read(self, reader: FrameReader) -> bool:
        """Reads the first frames. False where the stream ends before a header: a FIRE dependency query.

        Raises
        ------
        ScanError
            If data come before a header, or configuration, header or parameters cannot be understood.
        """
        if self.given is not None:
            self._take_config(decode_text(self.given[0], "configuration"))
            self._take_header(decode_text(self.given[1], "header"))
            return True
        configured = False
        while True:
            frame = reader.read()
            message = frame.message
            if isinstance(message, Close):
                return False
            if isinstance(message, Query):
                self.replies.append(Response(message.number, f"unknown query: {message.text[:200]}"))
            elif isinstance(message, ConfigName):
                configured = True
                if message.name:
                    self.parameters["config"] = message.name
            elif isinstance(message, ConfigText):
                configured = True
                self._recognise(FIRE if _ends_with_nul(frame) else GADGETRON)
                self._take_config(message.text)
            elif isinstance(message, Header):
                break
            else:
                raise ScanError(
                    f"{MessageId(frame.id).name.lower()} (id {frame.id}) came before the header; "
                    "expected a configuration (id 1 or 2) and a header (id 3) first"
                )
        if _ends_with_nul(frame):
            self._recognise(FIRE)
        elif not configured:
            self._recognise(PIPE)
        if self.dialect.echoes_header:
            self.replies.append(frame)
        if self.dialect is FIRE:
            # its parameters come behind the header, or not at all, which only the next frame tells
            following = reader.read()
            if isinstance(following.message, Text) and following.message.text.lstrip().startswith("{"):
                self._take_json(following.message.text)
            else:
                self.ahead.append(following)
        self._take_header(message.xml)
        return True

    def _recognise(self, dialect: Dialect) -> None:
        if not self.fixed:
            self.dialect = dialect

    def _take_header(self, xml: str) -> None:
        if xml.strip() == DUMMY_HEADER:
            return
        root = _parse(xml, "header")
        name = root.tag.rsplit("}", 1)[-1]
        if name != "ismrmrdHeader":
            raise ScanError(f"the header's root element is <{name}>; expected <ismrmrdHeader>")
        self.header_xml = xml

    def _take_config(self, text: str) -> None:
        if text.lstrip().startswith("{"):
            self._take_json(text)
            return
        if re.fullmatch(r"\s*(<\?xml[^>]*\?>)?\s*", text):  # Gadgetron's form of no configuration at all
            return
        root = _parse(text, "configuration")
        if root.tag != "configuration":
            raise ScanError(f"the configuration's root element is <{root.tag}>; expected <configuration>")
        for element in root.iter("property"):
            name, value = element.get("name"), element.get("value")
            if not name or value is None:
                raise ScanError(
                    "a <property> of the configuration lacks its name or value; "
                    'expected <property name="..." value="..."/>'
                )
            if name in self.parameters:
                raise ScanError(f"the configuration sets the property {name!r} twice")
            self.parameters[name] = value

    def _take_json(self, text: str) -> None:
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ScanError(f"the parameters are not JSON: {error}") from error
        parameters = document.get("parameters", {})
        if not isinstance(parameters, dict):
            raise ScanError(f"the JSON's `parameters` is a {type(parameters).__name__}; expected an object")
        # `customconfig` is the field that FIRE's user types what shall run into
        recipe = parameters.get("recipe") or parameters.pop("customconfig", None)
        parameters.pop("customconfig", None)
        if not parameters.get("config"):
            parameters.pop("config", None)
        self.parameters.update(parameters)
        if recipe:
            self.parameters["recipe"] = recipe


def _ends_with_nul(frame: Frame) -> bool:
    return bool(frame.pieces[-1].size) and frame.pieces[-1][-1] == 0


def _parse(xml: str, what: str) -> Element:
    try:
        # bytes, because a declared encoding no longer holds for text
        return defusedxml.ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", xml).strip())
    except (defusedxml.ElementTree.ParseError, DefusedXmlException, ValueError) as error:
        raise ScanError(f"the {what} is not XML that can be read: {error}; it begins with {xml[:60]!r}") from error
