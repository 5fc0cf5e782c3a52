"""The rules of the house: who may import whom, and what nobody may do. Each rule is also shown to catch a breach."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "models": {"models"},
    "gadgets": {"gadgets", "models"},
    "sim": {"sim", "models"},
    "pipelines": {"models", "gadgets", "sim", "pipelines"},
}
UNPICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
# these only build XML, or name its types; whatever reads it comes from defusedxml
BUILD_XML = {f"xml.etree.ElementTree.{name}" for name in ("Element", "SubElement", "tostring", "indent")}
MACHINE_PATH = re.compile(r"(?<![\w.~$})-])/(?:home|root|Users|work|mnt|tmp|scratch)/\w")
TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".xml", ".txt", ".json", ".cfg", ""}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(tree: ast.AST, package: str = "") -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything imported, relative imports resolved against `package`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def foreign_imports(tree: ast.AST, layer: str, package: str = "") -> Iterator[tuple[int, str]]:
    """Imports of our own packages that `layer` may not make."""
    for line, name in imports(tree, package):
        top, _, rest = name.partition(".")
        if top == "scanprior" and rest.split(".")[0] not in MAY_IMPORT[layer]:
            yield line, name
        if top in MAY_IMPORT:
            yield line, f"{name} (imported without scanprior.)"


def unsafe(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """What could run code that came as data, or read XML without a guard."""
    for line, name in imports(tree):
        if name.split(".")[0] in UNPICKLERS:
            yield line, f"import of {name}"
        if name.split(".")[0] in {"xml", "lxml"} and name not in BUILD_XML and "xml.sax.saxutils" not in name:
            yield line, f"import of {name}: XML is read by defusedxml"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called in {"eval", "exec", "__import__", "compile"} or called.endswith("import_module"):
            yield node.lineno, f"{called}()"
        if called == "torch.load" and keywords.get("weights_only") != "True":
            yield node.lineno, "torch.load without weights_only=True"
        if keywords.get("allow_pickle", "False") != "False" or keywords.get("weights_only", "True") != "True":
            yield node.lineno, f"{called}() that unpickles"
        if called in {"yaml.load", "yaml.unsafe_load", "yaml.full_load"}:
            yield node.lineno, f"{called}(): use yaml.safe_load"


def breaches(found: Iterator[tuple[int, str]], path: Path) -> list[str]:
    return [f"{path.relative_to(ROOT)}:{line}: {what}" for line, what in found]


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_layers_import_only_what_they_may(layer: str) -> None:
    found = []
    for path in sources(layer):
        package = ".".join(["scanprior", *path.relative_to(ROOT).parent.parts])
        found += breaches(foreign_imports(ast.parse(path.read_text()), layer, package), path)
    assert not found


def test_no_unpickling_no_eval_no_unguarded_xml() -> None:
    paths = sources(*MAY_IMPORT)
    assert len(paths) > 10
    assert not [line for path in paths for line in breaches(unsafe(ast.parse(path.read_text())), path)]


def test_no_path_of_a_machine() -> None:
    folders = (*MAY_IMPORT, "tests", "docs", "docker", "benchmarks", ".ci")
    paths = [p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file() and p.suffix in TEXT]
    paths += [p for p in ROOT.iterdir() if p.is_file() and p.suffix in TEXT and p.name != ".git"]
    found = []
    for path in paths:
        if "__pycache__" not in path.parts:
            lines = path.read_text(encoding="utf-8").splitlines()
            found += breaches(((n, line) for n, line in enumerate(lines, 1) if MACHINE_PATH.search(line)), path)
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "import scanprior.pipelines.cli",
        "from scanprior.gadgets import mrd",
        "from scanprior import gadgets",
        "from ..gadgets import mrd",
        "import gadgets.mrd",
        "def f():\n    from scanprior.sim.scan import simulate",
    ],
)
def test_the_layer_rule_catches(line: str) -> None:
    assert list(foreign_imports(ast.parse(line), "models", "scanprior.models"))


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import xml.etree.ElementTree as ET",
        "from xml.etree.ElementTree import fromstring",
        "from xml.dom import minidom",
        "from lxml import etree",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "Module.load_from_checkpoint(path, weights_only=False)",
        "eval(text)",
        "importlib.import_module(name)",
        "yaml.load(text, Loader=loader)",
    ],
)
def test_the_safety_rule_catches(line: str) -> None:
    assert list(unsafe(ast.parse(line)))


def test_the_rules_let_good_code_pass() -> None:
    good = (
        "from scanprior.models.scan import Scan\nfrom defusedxml import ElementTree\nimport re\n"
        "from xml.etree.ElementTree import Element, tostring\n"
        "torch.load(p, weights_only=True)\nnp.load(p, allow_pickle=False)\nyaml.safe_load(t)\nmodel.eval()\n"
        "re.compile('a')\ntorch.compile(model)"
    )
    assert not list(unsafe(ast.parse(good)))
    assert not list(foreign_imports(ast.parse(good), "sim", "scanprior.sim"))


@pytest.mark.parametrize(
    ("line", "caught"),
    [
        ("/" + "home/anna/scan.h5", True),
        ("open('/" + "tmp/x')", True),
        ("models/home/x", False),
        ("a/work/b", False),
        ("../shared/data", False),
        ("https://host/home/page", False),
    ],
)
def test_the_path_rule_catches(line: str, caught: bool) -> None:
    assert bool(MACHINE_PATH.search(line)) == caught
