"""A recipe written out again, and what of it decides the result of a run."""

from __future__ import annotations

import dataclasses
from typing import Any


def dump_recipe(recipe: Any) -> str:
    """YAML with every setting of the recipe (or of a section); `load_recipe` reads it back to an equal Recipe."""
    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return yaml.dump(dataclasses.asdict(recipe), Dumper=dumper, sort_keys=False, allow_unicode=True, width=120)


def identity_settings(settings: Any) -> dict[str, Any]:
    """A section as plain dicts and lists, without the settings that do not change what comes out (identity=False)."""
    return _plain(settings, identity_only=True)


def _plain(value: Any, identity_only: bool) -> Any:
    if isinstance(value, list):
        return [_plain(item, identity_only) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    return {
        setting.name: _plain(getattr(value, setting.name), identity_only)
        for setting in dataclasses.fields(value)
        if not identity_only or setting.metadata.get("identity", True)
    }


def recipe_diff(old: Any, new: Any, *, identity_only: bool = False, path: str = "") -> list[str]:
    """What differs between two recipes (or two equal sections), as lines `pretrain.peak_lr: 0.0006 -> 0.0003`.

    Args:
        identity_only: leave out settings that may change on resume.
        path: prefix of the shown paths, for sections ("pretrain").
    """
    return _diff(_plain(old, identity_only), _plain(new, identity_only), path)


def _diff(old: Any, new: Any, path: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        lines: list[str] = []
        for key in dict.fromkeys((*old, *new)):
            inner = f"{path}.{key}" if path else key
            if key not in old or key not in new:
                lines.append(f"{inner}: {'added' if key in new else 'removed'}")
            else:
                lines += _diff(old[key], new[key], inner)
        return lines
    if isinstance(old, list) and isinstance(new, list) and _named(old) and _named(new):
        lines = _diff({item["name"]: item for item in old}, {item["name"]: item for item in new}, path)
        moved = not lines and [item["name"] for item in old] != [item["name"] for item in new]
        return [f"{path}: in another order"] if moved else lines
    return [] if old == new else [f"{path}: {_shown(old)} -> {_shown(new)}"]


def _named(items: list[Any]) -> bool:
    return all(isinstance(item, dict) and "name" in item for item in items)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and value else str(value) if value != "" else "(empty)"
