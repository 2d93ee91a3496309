"""YAML text as a tree in which every value knows where it was written, so that every problem can say where it is.

Scalars stay text: YAML's own guesses (`no` is False, `3e-4` is a string) never apply; `convert` goes by the setting's
type instead. The tree is grown from PyYAML's events, not from its nodes: libyaml's composer overflows the stack on
deeply nested text, and events let aliases, tags and doubled keys be refused where they stand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xmodel.errors import UserError

DEEPEST = 20  # nested levels; a recipe has four


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value was written: a label for messages and the folder that relative paths there start from."""

    label: str
    folder: Path


@dataclass(slots=True)
class Node:
    """A scalar (text), a list of nodes or a mapping of nodes, with its place. `plain`: a scalar without quotes."""

    value: str | list[Node] | dict[str, Node]
    place: Place
    plain: bool = True

    @property
    def empty(self) -> bool:
        """Nothing was written, or null."""
        return self.plain and self.value in ("", "~", "null", "Null", "NULL")


def parse(text: str, place: Place, problems: list[str], *, lines: bool = True) -> Node:
    """The tree of a YAML document; an empty one is an empty scalar.

    Args:
        place: the label of the whole; a value's own is `LABEL:LINE`.
        problems: receives one line for each tag, doubled key and key that is not a name.
        lines: False for an override, which has none: every value has the label of the whole.

    Raises:
        UserError: the text is not one YAML document, is nested too deeply or has an alias.
    """
    import yaml  # here, because `xmodel --help` needs no YAML

    loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # in C: ten times as fast
    events = (event for event in yaml.parse(text, Loader=loader) if not isinstance(event, yaml.StreamStartEvent))
    try:
        if isinstance(next(events), yaml.StreamEndEvent):
            return Node("", place)
        root = _grow(next(events), events, place, problems, 0, lines)
        next(events)  # the document's end
        more = next(events)
    except yaml.MarkedYAMLError as error:
        raise UserError(_syntax_error(error, text, place.label, lines)) from None
    except yaml.YAMLError as error:  # a character that YAML forbids
        raise UserError(f"{place.label}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(more, yaml.StreamEndEvent):
        raise UserError(f"{place.label}:{more.start_mark.line + 1}: a second YAML document (---); a recipe is one")
    return root


def _grow(event: Any, events: Iterator[Any], around: Place, problems: list[str], depth: int, lines: bool) -> Node:
    """The node that begins with `event`, its events consumed. `around`: the place of the node's key or of the whole."""
    whole = around.label.rpartition(":")[0] if lines and depth else around.label

    def here(start: Any) -> Place:
        return Place(f"{whole}:{start.start_mark.line + 1}", around.folder) if lines else around

    kind = type(event).__name__
    if depth > DEEPEST:
        raise UserError(f"{here(event).label}: nested too deeply")
    if kind == "AliasEvent":
        raise UserError(f"{here(event).label}: aliases (*name) are not read here; write the value out")
    if event.tag is not None:
        problems.append(f"{here(event).label}: tags ({event.tag}) are not read here; remove it")
    if kind == "ScalarEvent":
        return Node(event.value, around, plain=not event.style)
    if kind == "SequenceStartEvent":
        items = []
        while type(start := next(events)).__name__ != "SequenceEndEvent":
            items.append(_grow(start, events, here(start), problems, depth + 1, lines))
        return Node(items, around)
    settings: dict[str, Node] = {}
    while type(start := next(events)).__name__ != "MappingEndEvent":
        place = here(start)
        key = _grow(start, events, place, problems, depth + 1, lines).value
        value = _grow(next(events), events, place, problems, depth + 1, lines)
        if not isinstance(key, str):
            problems.append(f"{place.label}: expected the name of a setting before the colon")
        elif key in settings:
            problems.append(f"{place.label}: {key}: given twice, first at {settings[key].place.label}; keep one")
        else:
            settings[key] = value
    return Node(settings, around)


def _syntax_error(error: Any, text: str, label: str, numbered: bool) -> str:
    mark = error.problem_mark or error.context_mark
    problem = error.problem or error.context
    if mark is None or not numbered:
        return f"{label}: not valid YAML: {problem}"
    lines = text.split("\n")
    line = lines[mark.line] if mark.line < len(lines) else ""
    if re.match(r" *\t", line):
        return f"{label}:{mark.line + 1}: a tab cannot indent in YAML; use spaces"
    near = f" (near `{line.strip()[:60]}`)" if line.strip() else ""
    hint = "; put the value in quotes" if "mapping values" in problem else ""
    return f"{label}:{mark.line + 1}: not valid YAML: {problem}{near}{hint}"
