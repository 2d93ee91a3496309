"""Writing a recipe out again, and what decides a run's result."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xmodel.errors import UserError
from xmodel.recipe.convert import Reading, build, hints, setting_paths
from xmodel.recipe.document import Place, parse
from xmodel.recipe.dump import dump_recipe, identity_settings, recipe_diff
from xmodel.recipe.load import load_recipe
from xmodel.recipe.presets import PRESETS
from xmodel.recipe.schema import reference, schema
from xmodel.recipe.settings import Model, Recipe

RECIPES = Path(__file__).parents[2] / "recipes"

# What YAML can hold: no surrogates, no other control characters than tab and newline.
TEXT = st.text(
    st.characters(exclude_categories=("Cs", "Cc", "Cn", "Co")) | st.sampled_from("\n\t"), max_size=30
) | st.sampled_from(
    [
        "no",
        "null",
        "~",
        "on",
        "3e-4",
        "2T",
        "1_000",
        "a: b",
        "# x",
        "- x",
        "'",
        '"',
        "*a",
        "&a",
        "!t",
        "{",
        "[",
        "中国",
        " x ",
        "\n",
        "=",
        "<<",
    ]
)


def values(kind: Any, metadata: Any) -> st.SearchStrategy[Any]:
    """Anything that the type and bounds of a setting allow."""
    least, most = metadata.get("least"), metadata.get("most")
    choices = get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return sections(kind)
    if NoneType in choices:
        return st.none() | values(choices[0], metadata)
    if get_origin(kind) is Literal:
        return st.sampled_from(choices)
    if get_origin(kind) is list:
        return st.lists(values(choices[0], metadata), max_size=3)
    if get_origin(kind) is dict:
        return st.dictionaries(TEXT.filter(bool), values(choices[1], metadata), max_size=3)
    if kind is int:
        return st.integers(int(least or 0), int(most or 10**17))
    if kind is float:
        return st.floats(least or 0, most, allow_infinity=False, allow_nan=False)
    return st.booleans() if kind is bool else TEXT


def sections(cls: type) -> st.SearchStrategy[Any]:
    return st.builds(cls, **{f.name: values(hints(cls)[f.name], f.metadata) for f in dataclasses.fields(cls)})


@given(sections(Recipe))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_recipe_survives_being_written_and_read(recipe: Recipe) -> None:
    text = dump_recipe(recipe)
    problems: list[str] = []
    reading = Reading(problems=problems)
    assert build(Recipe, parse(text, Place("x.yaml", Path()), problems), "", reading) == recipe
    assert not problems
    assert yaml.safe_load(text) == dataclasses.asdict(recipe), "any other YAML reader reads the same"


@pytest.mark.parametrize("name", [path.name for path in sorted(RECIPES.glob("*.yaml"))])
@pytest.mark.parametrize("overrides", [[], ["model.preset=nano", "model.layers=3", "corpus.root=/elsewhere"]])
def test_resolved_recipes_are_read_back_equal(name: str, overrides: list[str], tmp_path: Path) -> None:
    recipe = load_recipe(RECIPES / name, overrides)
    copied = tmp_path / "recipe.yaml"
    copied.write_text(dump_recipe(recipe), encoding="utf-8")
    again = load_recipe(copied)
    again.corpus.root = recipe.corpus.root  # where a recipe without a root lies is not a part of it
    assert again == recipe
    assert not recipe_diff(recipe, again)


def test_identity_leaves_out_how_a_run_is_carried_out() -> None:
    recipe = load_recipe(RECIPES / "xmodel-lm-1.1b.yaml")
    plain = identity_settings(recipe)
    assert "peak_lr" in plain["pretrain"]
    assert not {"micro_batch", "device", "keep", "log_every", "compile"} & set(plain["pretrain"])
    assert plain["corpus"]["sources"][0]["name"] == "redpajama-arxiv"
    assert "tokens" not in plain["corpus"]["sources"][0]
    json.dumps(plain)


def test_diff() -> None:
    old = load_recipe(RECIPES / "quickstart.yaml")
    new = copy.deepcopy(old)
    assert recipe_diff(old, new) == []
    new.pretrain.peak_lr = 3e-4
    new.pretrain.log_every = 1
    new.corpus.sources[0].weight = 0.5
    new.corpus.sources.pop()
    new.evaluate.shots = [0]
    new.corpus.validation = [copy.deepcopy(old.corpus.sources[3])]
    assert recipe_diff(old, new, identity_only=True) == [
        f"corpus.sources.sandbox-en.weight: {old.corpus.sources[0].weight} -> 0.5",
        "corpus.sources.python-stdlib: removed",
        "corpus.validation.python-stdlib: added",
        f"pretrain.peak_lr: {old.pretrain.peak_lr} -> 0.0003",
        "evaluate.shots: [0, 3] -> [0]",
    ]
    assert f"pretrain.log_every: {old.pretrain.log_every} -> 1" in recipe_diff(old, new)
    new = copy.deepcopy(old)
    new.corpus.sources.reverse()
    assert recipe_diff(old, new) == ["corpus.sources: in another order"]
    assert recipe_diff(old.pretrain, new.pretrain) == []


def accepts(shape: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    """The part of JSON Schema that `schema()` uses."""
    import re

    if "$ref" in shape:
        return accepts(root["$defs"][shape["$ref"].rpartition("/")[2]], value, root)
    if "anyOf" in shape:
        return any(accepts(option, value, root) for option in shape["anyOf"])
    if "enum" in shape:
        return value in shape["enum"]
    match shape["type"]:
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "string":
            return isinstance(value, str) and re.search(shape.get("pattern", ""), value) is not None
        case "array":
            return isinstance(value, list) and all(accepts(shape["items"], item, root) for item in value)
        case "object":
            return isinstance(value, dict) and all(
                key in shape["properties"] and accepts(shape["properties"][key], item, root)
                for key, item in value.items()
            )
        case "integer" | "number":
            whole = isinstance(value, int | float) and not isinstance(value, bool)
            return (
                whole
                and (shape["type"] == "number" or value == int(value))
                and shape.get("minimum", value) <= value <= shape.get("maximum", value)
            )
    raise AssertionError(shape)


def test_schema_takes_what_the_loader_takes(tmp_path: Path) -> None:
    made = schema()
    json.dumps(made)
    for path in RECIPES.glob("*.yaml"):
        assert accepts(made, yaml.safe_load(path.read_text(encoding="utf-8")), made), path
        assert accepts(made, dataclasses.asdict(load_recipe(path)), made), path
    for text in (
        "{pretrain: {peak_lrr: 1}}",
        "{seed: x}",
        "{seed: -1}",
        "{pretrain: {compile: maybe}}",
        "{model: 3}",
        "{corpus: {sources: {}}}",
    ):
        assert not accepts(made, yaml.safe_load(text), made), text
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(UserError):
            load_recipe(tmp_path / "x.yaml")


def test_schema_and_reference_have_every_setting() -> None:
    text = reference()
    for path in setting_paths():
        if not path.startswith("corpus.validation.NAME"):  # the same settings as corpus.sources.NAME
            assert f"`{path}`" in text or f"## {path}\n" in text, path
    properties = schema()["$defs"]["Pretrain"]["properties"]
    assert properties["global_batch"]["default"] == 840
    assert properties["global_batch"]["anyOf"][0] == {"type": "integer", "minimum": 1}
    assert set(properties) == {field.name for field in dataclasses.fields(Recipe().pretrain)}
    assert all(shape["description"] for shape in properties.values())


def test_preset_names_are_the_ones_that_a_recipe_may_name() -> None:
    assert ["", *PRESETS] == list(get_args(hints(Model)["preset"]))
