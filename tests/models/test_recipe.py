"""Recipes: what is refused, and in which words; those that are shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scanprior.models.recipe import DEFAULT_RECIPE, RecipeError, load_recipe, read_recipe, recipe_from, recipe_names

SHIPPED = (DEFAULT_RECIPE, "dds", "l1-wavelet", "sense", "tv", "zero-filled")


def message(data: Any) -> str:
    with pytest.raises(RecipeError) as refusal:
        recipe_from(data, "mine.yaml")
    return str(refusal.value)


def test_those_that_are_promised_are_shipped() -> None:
    assert set(SHIPPED) <= set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description.endswith(".")
    assert recipe.method_settings is not None
    assert recipe_from(recipe.model_dump(), "again") == recipe


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"method": "sense", "whitenning": "auto"}, ["unknown key 'whitenning'; there are: ", "whitening", "method"]),
        ({"method": "sense", "maps": {"kernal": 6}}, ["unknown key 'maps.kernal'; there are: kernel, threshold, crop"]),
        ({"method": "sense", "compression": {"coil": 6}}, ["unknown key 'compression.coil'; there are: coils, energy"]),
        ({"method": "sense", "outputs": {"map": 1}}, ["unknown key 'outputs.map'; there are: image, std"]),
        ({"method": "sense", "settings": {"lamda": 1}}, ["unknown key 'settings.lamda'; there are: ", "lam"]),
        ({"method": "grappa"}, ["method: Input should be 'zero-filled', 'sense'", "found 'grappa'"]),
        ({}, ["method: Field required"]),
        ({"method": "sense", "whitening": "maybe"}, ["whitening: Input should be 'auto', 'scan'", "found 'maybe'"]),
        ({"method": "sense", "maps": {"kernel": 2}}, ["maps.kernel: ", "greater than or equal to 3, found 2"]),
        ({"method": "sense", "maps": {"threshold": 1.5}}, ["maps.threshold: ", "less than 1, found 1.5"]),
        ({"method": "sense", "settings": {"iterations": 0}}, ["settings.iterations: ", "found 0"]),
        ({"method": "dds", "prior": "small", "settings": {"eta": 2}}, ["settings.eta: ", "found 2"]),
        ({"method": "dds"}, ["method 'dds' needs a 'prior'"]),
        ({"method": "sense", "prior": "small"}, ["method 'sense' takes no 'prior'"]),
        ({"method": "sense", "compression": {}}, ["compression: give either 'coils' or 'energy'"]),
        ({"method": "sense", "compression": {"coils": 4, "energy": 0.9}}, ["give either 'coils' or 'energy'"]),
        ({"method": "sense", "device": "gpu"}, ["device: ", "found 'gpu'"]),
        ({"method": "sense", "precision": "int8"}, ["precision: Input should be 'float32'", "found 'int8'"]),
        (["method"], ["expected a mapping of keys to values, found list"]),
    ],
)
def test_mistakes_are_named(data: Any, expected: list[str]) -> None:
    text = message(data)
    assert text.startswith("mine.yaml: ")
    for part in expected:
        assert part in text
    assert "\n" not in text


def test_all_mistakes_are_named_at_once() -> None:
    text = message({"method": "sense", "whitening": "x", "maps": {"kernel": 1}, "colour": "red"})
    assert all(key in text for key in ("whitening", "maps.kernel", "'colour'"))


def test_settings_are_those_of_the_method() -> None:
    """What one method knows another does not."""
    assert "unknown key 'settings.samples'" in message({"method": "sense", "settings": {"samples": 4}})
    dds = {"method": "dds", "prior": "small", "settings": {"samples": 4}}
    assert recipe_from(dds, "mine").method_settings.samples == 4  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "name", ["nobody", "../recipes/dds", "/etc/passwd", "dds.yaml", "", "dds\0", "a" * 300, ".", "DDS"]
)
def test_names_from_the_network_are_names_alone(name: str) -> None:
    with pytest.raises(RecipeError, match="is not known; there are: " + ", ".join(recipe_names())) as refusal:
        load_recipe(name)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"method: [", "mine.yaml: cannot be read: "),
        (b"\xff\xfe", "mine.yaml: cannot be read: "),
        (b"sense", "mine.yaml: expected a mapping of keys to values, found str"),
        (b"!!python/object/apply:os.system ['true']", "mine.yaml: cannot be read: could not determine a constructor"),
    ],
)
def test_bad_files(tmp_path: Path, text: bytes, complaint: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text)
    with pytest.raises(RecipeError) as refusal:
        read_recipe(path)
    assert str(refusal.value).startswith(complaint)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nothing.yaml: cannot be read: .*No such file"):
        read_recipe(tmp_path / "nothing.yaml")


def test_a_file_of_ones_own_has_its_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("method: sense\nmaps: {sets: 2}\n")
    recipe = read_recipe(path)
    assert (recipe.name, recipe.maps.sets) == ("mine", 2)


def test_parameters_of_a_scan() -> None:
    dds = load_recipe("dds")
    changed = dds.with_parameters(
        {
            "samples": "2",
            "steps": 7,
            "whitened": True,
            "device": "cpu",
            "output": "complex",
            "std": "no",
            "patient": "x",
        }
    )
    assert (changed.settings["samples"], changed.settings["steps"]) == (2, 7)
    assert (changed.whitening, changed.device) == ("upstream", "cpu")
    assert (changed.outputs.image, changed.outputs.std) == ("complex", False)
    assert dds == load_recipe("dds"), "the recipe itself stays"
    assert dds.with_parameters({}) == dds
    assert dds.with_parameters({"whitened": "false"}).whitening == "auto"
    upstream = dds.model_copy(update={"whitening": "upstream"})
    assert upstream.with_parameters({"whitened": "false"}).whitening == "auto", "the scan knows what ran before"
    assert load_recipe("zero-filled").with_parameters({"whitened": "false"}).whitening == "scan"


def test_steps_are_iterations_of_the_other_methods() -> None:
    assert load_recipe("sense").with_parameters({"steps": "9"}).method_settings.iterations == 9  # type: ignore[attr-defined]
    assert load_recipe("daps").with_parameters({"steps": "9"}).method_settings.steps == 9  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("recipe", "parameters", "complaint"),
    [
        (
            "zero-filled",
            {"steps": "3"},
            "parameter 'steps': the method 'zero-filled' of this recipe has no such setting",
        ),
        ("sense", {"samples": "3"}, "parameter 'samples': the method 'sense' of this recipe has no such setting"),
        ("dds", {"samples": "many"}, "parameter 'samples': expected a whole number, found 'many'"),
        ("dds", {"samples": "0"}, "recipe 'dds' with the scan's parameters: settings.samples: "),
        ("dds", {"whitened": "perhaps"}, "parameter 'whitened': expected true or false, found 'perhaps'"),
        ("dds", {"output": "phase"}, "outputs.image: Input should be 'magnitude' or 'complex', found 'phase'"),
        ("dds", {"device": "cuda:x"}, "device: expected auto, cpu, cuda or cuda:<number> such as cuda:1, found"),
    ],
)
def test_wrong_parameters_of_a_scan(recipe: str, parameters: dict[str, str], complaint: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        load_recipe(recipe).with_parameters(parameters)
    assert complaint in str(refusal.value)


def test_another_device() -> None:
    assert load_recipe("dds").on("cuda:1").device == "cuda:1"
    with pytest.raises(RecipeError, match="recipe 'dds' on another device: device: expected auto, cpu, cuda or cuda:"):
        load_recipe("dds").on("gpu0")


def test_noise_levels_of_dds_fall() -> None:
    wrong = {"method": "dds", "prior": "small", "settings": {"sigma_start": 0.01}}
    assert "sigma_end (0.0125) must be below sigma_start (0.01)" in message(wrong)
