"""The tree of a recipe: its file, the file that it extends below it, the overrides on top."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from xmodel.errors import UserError
from xmodel.files import nearest_folder
from xmodel.recipe.document import Node, Place, parse

SHAPE = ("layers", "heads", "kv_heads", "hidden", "ffn")  # what a model preset stands for
SEGMENT = re.compile(r"[^.\[\]]+|\[[0-9]+\]")


def read_tree(path: Path, problems: list[str]) -> Node:
    """The mapping written in a recipe file, its `extends` merged in.

    Args:
        path: the YAML file; messages show it as it is given here.
        problems: receives one line for each duplicate key, alias, ...

    Raises:
        UserError: there is no such file, or it cannot be read as UTF-8 YAML at all.
    """
    return _read_chain(path, problems, ())


def _read_chain(path: Path, problems: list[str], children: tuple[Path, ...]) -> Node:
    tree = parse(_read_text(path), Place(str(path), path.parent), problems)
    if tree.empty:
        raise UserError(f"{path}: is empty; `xmodel init` writes a starter recipe")
    if not isinstance(tree.value, dict):
        raise UserError(f"{path}:1: expected settings such as `name: my-run`, one a line")
    extends = tree.value.pop("extends", None)
    if extends is None:
        return tree
    if not isinstance(extends.value, str) or extends.empty:
        problems.append(f"{extends.place.label}: extends: expected the path of one recipe file")
        return tree
    base = Path(os.path.normpath(path.parent / Path(extends.value).expanduser()))
    chain = (*children, path)
    if base.resolve() in {child.resolve() for child in chain}:
        circle = " -> ".join(str(file) for file in (*chain, base))
        raise UserError(f"{extends.place.label}: extends: goes round in a circle: {circle}")
    if not base.exists():
        raise UserError(f"{extends.place.label}: extends: no such recipe: {base}{_nearest_file(base)}")
    return merge(_read_chain(base, problems, chain), tree)


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"no such recipe: {path}{_nearest_file(path) or nearest_folder(path)}") from None
    except IsADirectoryError:
        raise UserError(
            f"{path}: is a folder; give the recipe file in it{_nearest_file(path / 'recipe.yaml')}"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8") from None


def _nearest_file(path: Path) -> str:
    names = [file.name for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, 1, 0.5)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def merge(base: Node, over: Node) -> Node:
    """`over` laid upon `base`: mappings key by key, everything else (lists too) replaced whole.

    A model preset in `over` also takes the place of the shape numbers in `base`.
    """
    if not isinstance(base.value, dict):
        return over
    if not isinstance(over.value, dict):
        return base if over.empty else over
    items = _without_shape(base.value) if "preset" in over.value else dict(base.value)
    for key, node in over.value.items():
        items[key] = merge(items[key], node) if key in items else node
    return Node(items, base.place)


def _without_shape(items: dict[str, Node]) -> dict[str, Node]:
    return {key: node for key, node in items.items() if key not in SHAPE}


def apply_overrides(tree: Node, overrides: Sequence[str], problems: list[str]) -> Node:
    """Lay `pretrain.peak_lr=3e-4`, `corpus.sources.NAME.weight=0.5` or `corpus.sources[0].weight=0.5` upon the tree.

    In order, but `model.preset` first, so that it never undoes a `model.layers=...` before it. A relative path in an
    override starts from the current folder, as shells complete it.
    """
    for text in sorted(overrides, key=lambda text: not text.startswith("model.preset=")):
        key, equals, raw = (part.strip() for part in text.partition("="))
        segments = key.replace("[", ".[").split(".")
        if not equals or not all(SEGMENT.fullmatch(segment) for segment in segments):
            problems.append(f"override {text}: expected SETTING=VALUE, as in pretrain.peak_lr=3e-4")
            continue
        place = Place(f"override {key}={raw if len(raw) <= 40 else raw[:39] + '…'}", Path.cwd())
        try:
            tree = _lay(tree, segments, _override_value(raw, place, problems), problems)
        except UserError as error:
            problems.append(str(error))
    return tree


def _override_value(raw: str, place: Place, problems: list[str]) -> Node:
    """Lists, mappings and quoted text are YAML; anything else is taken as it stands, an empty value as empty text."""
    if raw.startswith(("[", "{", '"', "'")):
        return parse(raw, place, problems, lines=False)
    return Node(raw, place, plain=raw != "")


def _lay(node: Node, segments: list[str], value: Node, problems: list[str]) -> Node:
    """`node` with `value` in the place that the segments lead to."""
    if not segments:
        return merge(node, value)
    head, *rest = segments
    if isinstance(node.value, dict):
        items = _without_shape(node.value) if head == "preset" else dict(node.value)
        items[head] = _lay(items.get(head, Node({}, value.place)), rest, value, problems)
        return Node(items, node.place)
    if isinstance(node.value, list):
        index = _item(node.value, head, value.place, problems)
        if index is not None:
            node.value[index] = _lay(node.value[index], rest, value, problems)
        return node
    if node.empty:
        return _lay(Node({}, value.place), segments, value, problems)
    problems.append(f"{value.place.label}: `{head}` stands inside a single value ({node.place.label})")
    return node


def _item(items: list[Node], segment: str, place: Place, problems: list[str]) -> int | None:
    """The list item that `[2]`, or the name of a source, means."""
    names = [item_name(item) for item in items]
    if segment in names:
        return names.index(segment)
    if segment.startswith("[") and int(segment[1:-1]) < len(items):
        return int(segment[1:-1])
    near = difflib.get_close_matches(segment, [name for name in names if name], 1, 0.5)
    known = ", ".join(name or f"[{index}]" for index, name in enumerate(names[:20]))
    hint = f"did you mean {near[0]}?" if near else f"there is {known}" if names else "the list is empty"
    problems.append(f"{place.label}: no item {segment}; {hint}")
    return None


def item_name(item: Node) -> str | None:
    """The `name` of a list item that has one."""
    name = item.value.get("name") if isinstance(item.value, dict) else None
    return name.value if name is not None and isinstance(name.value, str) and name.value else None
