"""The recipe's JSON Schema, so that editors complete and check, and its Markdown reference: both from `settings`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from xmodel.recipe.convert import COUNT, hints, number, path_inside, section_of
from xmodel.recipe.settings import Recipe

COUNT_PATTERN = f"^{COUNT.pattern}$"
FLOAT_PATTERN = r"^[+-]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a recipe file."""
    definitions: dict[str, Any] = {}
    section = _section(Recipe, definitions)
    extends = {
        "type": "string",
        "description": "another recipe, which this one changes; relative to this file's folder",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "xmodel recipe",
        **section,
        "properties": {"extends": extends, **section["properties"]},
        "$defs": definitions,
    }


def _section(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    properties = {}
    for setting in dataclasses.fields(cls):
        shape = _type(hints(cls)[setting.name], setting.metadata, definitions)
        properties[setting.name] = {**shape, "description": setting.metadata["doc"]}
        default = _default(setting)
        if default is not dataclasses.MISSING:
            properties[setting.name]["default"] = default
    doc = (cls.__doc__ or "").split("\n")[0]
    return {"type": "object", "description": doc, "properties": properties, "additionalProperties": False}


def _type(kind: Any, bounds: Mapping[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    limits = {
        key: bounds[name] for key, name in (("minimum", "least"), ("maximum", "most")) if bounds.get(name) is not None
    }
    choices = get_args(kind)
    if NoneType in choices:
        return {"anyOf": [_type(choices[0], bounds, definitions), {"type": "null"}]}
    if get_origin(kind) is Literal:
        return {"enum": list(choices)}
    if get_origin(kind) is list:
        return {"type": "array", "items": _type(choices[0], bounds, definitions)}
    if get_origin(kind) is dict:
        return {"type": "object", "additionalProperties": _type(choices[1], bounds, definitions)}
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        if kind.__name__ not in definitions:
            definitions[kind.__name__] = _section(kind, definitions)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    if kind is int:
        return {"anyOf": [{"type": "integer", **limits}, {"type": "string", "pattern": COUNT_PATTERN}]}
    if kind is float:
        return {"anyOf": [{"type": "number", **limits}, {"type": "string", "pattern": FLOAT_PATTERN}]}
    return {"type": "boolean"} if kind is bool else {"type": "string"}


def _default(setting: dataclasses.Field[Any]) -> Any:
    """The value when the recipe is silent; MISSING for a section, which has no single one."""
    if setting.default is not dataclasses.MISSING:
        return setting.default
    assert setting.default_factory is not dataclasses.MISSING
    made = setting.default_factory()
    return dataclasses.MISSING if dataclasses.is_dataclass(made) else made


def reference() -> str:
    """Every setting in Markdown, a table for each section, for docs/reference/recipe.md."""
    parts = [
        "# Recipe reference",
        "A recipe is a YAML file. `extends: other.yaml` starts from another recipe, whose mappings are merged with "
        "this one's and whose lists are replaced; `xmodel run recipe.yaml pretrain.peak_lr=3e-4` overrides on the "
        "command line, list items by name or index (`corpus.sources.NAME.weight=0.5`, `corpus.sources[0].weight=0.5`). "
        "Counts may be written `2T`, `1.5B`, `600k`, `2e12` or `600_000`. A setting marked † does not by itself change "
        "what comes out, so it may differ when a run goes on.",
    ]
    return "\n\n".join(parts + _tables(Recipe, "")) + "\n"


def _tables(cls: type, path: str) -> list[str]:
    rows: list[str] = []
    below: dict[type, str] = {}
    for setting in dataclasses.fields(cls):
        kind = hints(cls)[setting.name]
        inner = f"{path}.{setting.name}" if path else setting.name
        inside = section_of(kind)
        if inside is not None:
            below.setdefault(inside, path_inside(inner, kind, inside))
        if inside is None or inside is not kind:
            mark = "" if setting.metadata["identity"] else " †"
            rows.append(f"| `{inner}`{mark} | {_kind(kind)} | {_shown(_default(setting))} | {_meaning(setting)} |")
    doc = (cls.__doc__ or "").split("\n")[0]
    heading = f"## {path}" if path else "## The run"
    head = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    parts = [heading, doc, "\n".join(head + rows)]
    for inside, inner in below.items():
        parts += _tables(inside, inner)
    return parts


def _kind(kind: Any) -> str:
    choices = get_args(kind)
    if NoneType in choices:
        return f"{_kind(choices[0])} or null"
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in choices if choice)
    if get_origin(kind) is list:
        return f"list of {_kind(choices[0])}"
    if get_origin(kind) is dict:
        return f"{_kind(choices[1])} by name"
    return {int: "count", float: "number", bool: "true, false", str: "text"}.get(kind, f"{kind.__name__.lower()}s")


def _shown(value: Any) -> str:
    if value is None:
        return "`null`"
    if value in ("", [], {}):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list):
        return "`[" + ", ".join(str(item) for item in value) + "]`"
    return f"`{number(value)}`" if isinstance(value, int | float) else f"`{value}`"


def _meaning(setting: dataclasses.Field[Any]) -> str:
    least, most = setting.metadata["least"], setting.metadata["most"]
    bounds = [f"at least {number(least)}"] if least else []
    bounds += [f"at most {number(most)}"] if most is not None else []
    return setting.metadata["doc"].replace("|", "\\|").replace("<", "&lt;") + (
        f" ({', '.join(bounds)})" if bounds else ""
    )
