"""The shipped Gadgetron chains: what a Gadgetron 4.7 needs to accept them, and what our side reads from them."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree.ElementTree import Element

import pytest
import scanprior.pipelines
from defusedxml import ElementTree
from scanprior.models.recipe import DEFAULT_RECIPE

FOLDER = Path(next(iter(scanprior.pipelines.__path__))) / "gadgetron"
CHAINS = sorted(FOLDER.glob("*.xml"))
DOCS = Path(__file__).resolve().parents[2] / "docs" / "gadgetron.md"

ACTIONS = {
    "scanprior_execute": ("execute", {"name": "scanprior.gadgets", "target": "reconstruct", "type": "python"}),
    "scanprior_connect": ("connect", {"address": "127.0.0.1", "port": "9002"}),
    "scanprior_connect_buffers": ("connect", {"address": "127.0.0.1", "port": "9002"}),
}
UPSTREAM = ["NoiseAdjust", "RemoveROOversampling", "AcquisitionAccumulateTrigger", "BucketToBuffer"]
DOWNSTREAM = ["Extract", "AutoScale", "FloatToUShort", "ImageFinish"]


def chain(path: Path) -> Element:
    return ElementTree.parse(path).getroot()


def stream(path: Path) -> list[Element]:
    node = chain(path).find("stream")
    assert node is not None
    return list(node)


def properties(path: Path) -> dict[str, str]:
    found = chain(path).findall("stream/external/configuration/property")
    return {p.attrib["name"]: p.attrib["value"] for p in found}


def documented() -> dict[str, str]:
    """Property names and their descriptions, from the table of the page that users read."""
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", DOCS.read_text(), re.MULTILINE)
    return dict(rows)


def test_the_three_chains_are_there() -> None:
    assert {path.stem for path in CHAINS} == set(ACTIONS)


@pytest.mark.parametrize("path", CHAINS, ids=lambda p: p.stem)
def test_chain_has_version_readers_and_writer(path: Path) -> None:
    root = chain(path)
    assert root.tag == "configuration"
    assert root.findtext("version") == "2"
    readers = [(r.findtext("dll"), r.findtext("classname")) for r in root.findall("readers/reader")]
    assert readers == [("gadgetron_core_readers", "AcquisitionReader"), ("gadgetron_core_readers", "WaveformReader")]
    writers = [(w.findtext("dll"), w.findtext("classname")) for w in root.findall("writers/writer")]
    assert writers == [("gadgetron_core_writers", "ImageWriter")]


@pytest.mark.parametrize("path", CHAINS, ids=lambda p: p.stem)
def test_external_has_one_action_and_a_configuration(path: Path) -> None:
    externals = [node for node in stream(path) if node.tag == "external"]
    assert len(externals) == 1
    tag, attributes = ACTIONS[path.stem]
    assert [child.tag for child in externals[0]] == [tag, "configuration"]
    assert externals[0][0].attrib == attributes


@pytest.mark.parametrize("path", CHAINS, ids=lambda p: p.stem)
def test_properties_are_those_we_document(path: Path) -> None:
    """Gadgetron hands on the attribute form alone; names and values are those of the page."""
    for node in chain(path).findall("stream/external/configuration/*"):
        assert node.tag == "property"
        assert set(node.attrib) == {"name", "value"}
    table = documented()
    assert set(table) == {"recipe", "whitened", "samples", "steps", "device", "output", "std"}
    for name, value in properties(path).items():
        assert f"`{value}`" in table[name], f"{name}={value} is not among: {table[name]}"


def test_buffers_chain_whitens_once_and_matches_what_stands_behind() -> None:
    path = FOLDER / "scanprior_connect_buffers.xml"
    nodes = stream(path)
    names = [(n.findtext("classname") or "external").removesuffix("Gadget") for n in nodes]
    assert names == [*UPSTREAM, "external", *DOWNSTREAM]
    assert {n.findtext("dll") for n in nodes if n.tag == "gadget"} == {"gadgetron_mricore"}
    # NoiseAdjust stands upstream; Extract takes complex images only; AutoScale would spoil a standard deviation
    assert properties(path) == {"recipe": DEFAULT_RECIPE, "whitened": "true", "output": "complex", "std": "false"}


@pytest.mark.parametrize("name", ["scanprior_execute", "scanprior_connect"])
def test_acquisition_chains_hold_nothing_else(name: str) -> None:
    assert [node.tag for node in stream(FOLDER / f"{name}.xml")] == ["external"]
    assert properties(FOLDER / f"{name}.xml").get("whitened", "false") == "false"
