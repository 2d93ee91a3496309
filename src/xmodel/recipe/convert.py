"""From the text of a recipe to typed settings, driven by the dataclasses' annotations; every problem is collected."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from xmodel.recipe.document import Node, Place
from xmodel.recipe.settings import Recipe
from xmodel.recipe.tree import item_name

COUNT = re.compile(r"([+-]?[0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?) ?([kKmMbBtT]?)")
LAST = re.compile(r"(^|\.)[^.\[\]]+$|\[[0-9]+\]$")  # the last step of a dotted path
SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
INVALID: Any = object()  # stands for a value that was refused; never reaches a Recipe

# What people coming from other code bases write, and what it is called here.
_FOREIGN = {
    "model.heads": "attention_heads n_head num_attention_heads num_heads",
    "model.kv_heads": "num_key_value_heads n_kv_heads n_query_groups",
    "model.layers": "n_layer n_layers num_layers num_hidden_layers",
    "model.hidden": "d_model dim hidden_size n_embd",
    "model.ffn": "d_ff intermediate_size",
    "model.rope_base": "rope_theta",
    "model.norm_eps": "rms_norm_eps",
    "model.context_length": "block_size seq_len sequence_length",
    "model.position_table": "max_position_embeddings",
    "model.tied_embeddings": "tie_word_embeddings",
    "pretrain.peak_lr": "learning_rate lr max_lr",
    "pretrain.final_lr": "min_lr",
    "pretrain.steps": "iterations max_steps train_steps",
    "pretrain.warmup_steps": "warmup warmup_iters",
    "pretrain.global_batch": "batch_size",
    "pretrain.micro_batch": "device_batch_size",
    "pretrain.clip": "grad_clip max_grad_norm gradient_clip",
    "pretrain.weight_decay": "decay",
    "pretrain.precision": "dtype",
    "pretrain.beta1": "adam_beta1",
    "pretrain.beta2": "adam_beta2",
    "pretrain.eps": "adam_eps",
    "corpus.deduplicate": "dedup",
    "corpus.sources": "datasets data",
    "corpus.validation": "val_data",
}
ALIASES = {word: here for here, words in _FOREIGN.items() for word in words.split()}


@dataclass
class Reading:
    """What became of a tree: problems so far, where each setting was written, and which settings were refused.

    Keys of `places` and `refused` are dotted paths with list indices (`corpus.sources[0].weight`); `names` gives the
    list items that have a name the path that people know them by (`corpus.sources.sandbox-en`).
    """

    file: str = ""
    problems: list[str] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    names: dict[str, str] = field(default_factory=dict)

    def shown(self, path: str) -> str:
        """The path as people write it."""
        return next((name + path[len(key) :] for key, name in self.names.items() if path.startswith(key)), path)

    def place(self, path: str) -> Place | None:
        """Where the setting, or the nearest section around it, was written."""
        while path:
            if path in self.places:
                return self.places[path]
            path = LAST.sub("", path)
        return None

    def report(self, path: str, message: str) -> None:
        """Note a problem with a setting that is there, or ought to be."""
        place = self.place(path)
        label, shown = place.label if place else self.file, self.shown(path)
        if label.startswith(f"override {shown}="):
            self.problems.append(f"{label}: {message}")
        else:
            self.problems.append(": ".join(part for part in (label, shown, message) if part))

    def refuse(self, path: str, message: str) -> Any:
        """Note a problem with a value that cannot be used."""
        self.report(path, message)
        self.refused.add(path)
        return INVALID

    def sound(self, *paths: str) -> bool:
        """True if none of the settings, nor a section around one, nor (for a list) an item of one was refused."""
        return not any(_within(path, refused) or _within(refused, path) for path in paths for refused in self.refused)


def _within(path: str, outer: str) -> bool:
    return path == outer or path.startswith((outer + ".", outer + "["))


@cache
def hints(cls: type) -> Mapping[str, Any]:
    """Name and type of each setting of a section."""
    return get_type_hints(cls)


def build(cls: type, node: Node, path: str, reading: Reading) -> Any:
    """A section's dataclass from its node; what is refused keeps its default, and the problem is noted."""
    if node.empty:
        return cls()
    if not isinstance(node.value, dict):
        return reading.refuse(path, f"expected settings such as `{next(iter(hints(cls)))}: ...`, got {_seen(node)}")
    values: dict[str, Any] = {}
    fields = {setting.name: setting for setting in dataclasses.fields(cls)}
    for key, child in node.value.items():
        inner = f"{path}.{key}" if path else key
        reading.places[inner] = child.place
        if key not in fields:
            reading.report(inner, f"unknown setting{_did_you_mean(key, cls, path, reading)}")
            continue
        value = convert(hints(cls)[key], child, inner, reading, fields[key].metadata)
        if value is not INVALID:
            values[key] = value
    return cls(**values)


def convert(kind: Any, node: Node, path: str, reading: Reading, bounds: Mapping[str, Any]) -> Any:
    """The node as a value of the annotated type, or INVALID with the problem noted."""
    origin, choices = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return build(kind, node, path, reading)
    if NoneType in choices:
        return None if node.empty else convert(choices[0], node, path, reading, bounds)
    if origin is list:
        return _list(choices[0], node, path, reading, bounds)
    if origin is dict:
        return _mapping(choices[1], node, path, reading, bounds)
    if not isinstance(node.value, str):
        return reading.refuse(path, f"expected {_wanted(kind)}, got {_seen(node)}")
    if node.empty:
        return reading.refuse(path, f"expected {_wanted(kind)}, got nothing; give a value or remove the line")
    if origin is Literal:
        return node.value if node.value in choices else reading.refuse(path, f"{_choose(node.value, choices)}")
    if kind is str:
        return node.value
    value = SCALARS[kind](node.value)
    if value is None:
        return reading.refuse(path, f"expected {_wanted(kind)}, got `{node.value}`")
    return _bounded(value, bounds, node.value, path, reading)


def _list(kind: Any, node: Node, path: str, reading: Reading, bounds: Mapping[str, Any]) -> Any:
    if node.empty:
        return []
    if not isinstance(node.value, list):
        return reading.refuse(path, f"expected a list, got {_seen(node)}; write [{_example(node)}]")
    values = []
    for index, item in enumerate(node.value):
        inner = f"{path}[{index}]"
        reading.places[inner] = item.place
        name = item_name(item)
        if name:
            reading.names[inner] = f"{path}.{name}"
        values.append(convert(kind, item, inner, reading, bounds))
    return INVALID if any(value is INVALID for value in values) else values


def _mapping(kind: Any, node: Node, path: str, reading: Reading, bounds: Mapping[str, Any]) -> Any:
    """Names that the user chooses, each with a value of one type."""
    if node.empty:
        return {}
    if not isinstance(node.value, dict):
        return reading.refuse(path, f"expected NAME: value pairs, got {_seen(node)}")
    values = {}
    for key, child in node.value.items():
        reading.places[f"{path}.{key}"] = child.place
        values[key] = convert(kind, child, f"{path}.{key}", reading, bounds)
    return INVALID if any(value is INVALID for value in values.values()) else values


def _int(text: str) -> int | None:
    match = COUNT.fullmatch(text)
    if not match:
        return None
    value = Decimal(match[1].replace("_", "")) * SUFFIXES[match[2].lower()]
    return int(value) if abs(value) < 10**18 and value == value.to_integral_value() else None


def _float(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and text.isascii() else None


SCALARS: dict[Any, Callable[[str], Any]] = {int: _int, float: _float, bool: lambda text: BOOLEANS.get(text.lower())}


def _bounded(value: Any, bounds: Mapping[str, Any], written: str, path: str, reading: Reading) -> Any:
    least, most = bounds.get("least"), bounds.get("most")
    if (least is None or value >= least) and (most is None or value <= most):
        return value
    if least is not None and most is not None:
        wanted = f"between {number(least)} and {number(most)}"
    else:
        wanted = f"at most {number(most)}" if least is None else f"at least {number(least)}"
    return reading.refuse(path, f"must be {wanted}, got {written}")


def number(value: Any) -> str:
    """A number as a person would write it: 32,000; 0.0003."""
    return f"{value:,}" if isinstance(value, int) else f"{value:g}".replace("e-0", "e-")


def _wanted(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(filter(None, get_args(kind)))
    return {
        int: "a whole number such as 600000, 600k or 2T",
        float: "a number such as 0.1 or 3e-4",
        bool: "true or false",
        str: "text",
    }[kind]


def _seen(node: Node) -> str:
    if isinstance(node.value, str):
        return f"`{node.value}`" if node.value else "nothing"
    return "a list" if isinstance(node.value, list) else "a section of settings"


def _example(node: Node) -> str:
    return node.value if isinstance(node.value, str) else "..."


def _choose(value: str, choices: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(value, choices, 1, 0.5)
    return f"`{value}` is not one of {', '.join(filter(None, choices))}" + (
        f"; did you mean {near[0]}?" if near else ""
    )


def setting_paths(cls: type = Recipe, path: str = "") -> Iterator[str]:
    """The dotted path of every setting and section below `cls`; see `path_inside` for list items."""
    for name, kind in hints(cls).items():
        inner = f"{path}.{name}" if path else name
        yield inner
        inside = section_of(kind)
        if inside:
            yield from setting_paths(inside, path_inside(inner, kind, inside))


def path_inside(path: str, kind: Any, section: type) -> str:
    """Path of a section; of the items of a list as `corpus.sources.NAME`, or `pretrain.phases[N]` without a name."""
    if section is kind:
        return path
    return f"{path}.NAME" if "name" in hints(section) else f"{path}[N]"


def section_of(kind: Any) -> type | None:
    """The dataclass that a setting's type is, or is a list of."""
    found = (
        inside for inside in (kind, *get_args(kind)) if isinstance(inside, type) and dataclasses.is_dataclass(inside)
    )
    return next(found, None)


def _did_you_mean(key: str, cls: type, path: str, reading: Reading) -> str:
    """The nearest setting of the same section, or the one of that name in another section."""
    section = reading.shown(path)
    elsewhere = [other for other in setting_paths() if other.rsplit(".", 1)[-1] == key]
    near = difflib.get_close_matches(key, hints(cls), 1, 0.6)
    alias = ALIASES.get(key)
    if alias and (alias.rpartition(".")[0] == path or (not near and not elsewhere)):
        found = [alias]
    else:
        found = [f"{section}.{near[0]}" if section else near[0]] if near else []
        found += elsewhere[:1]
    if not found:
        leaves = {other.rsplit(".", 1)[-1]: other for other in setting_paths()}
        found = [leaves[name] for name in difflib.get_close_matches(key, leaves, 1, 0.75)]
    if found:
        return f"; did you mean {' or '.join(found)}?"
    known = ", ".join(hints(cls))
    return f"; {section or 'a recipe'} has {known}"
