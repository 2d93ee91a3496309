"""Field maps: where in a record the text stands, and what else of the record is carried along.

    text                one field
    meta.text           a field inside a field
    段落[].内容          that field of every item of a list, joined by a newline (the layout of MNBVC); items that lack
                        it are left out
    title, text         several fields, joined by an empty line; those that are missing or empty are left out

The same map reads a record of Python objects and whole columns of Arrow, and gives the same text.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.compute

from xmodel.recipe.settings import Source

pc: Any = pyarrow.compute  # its functions are made at run time, unknown to type checkers

Step = tuple[str, bool]  # name of a field, whether it is a list whose items are meant
Path = tuple[Step, ...]

CARRIED = ("language", "category", "provenance", "licence")
# What data sets write for the two languages; anything else is carried along as it is.
LANGUAGES: dict[str, str] = dict.fromkeys(("en", "eng", "english", "英文", "英语"), "en")
LANGUAGES |= dict.fromkeys(("zh", "zho", "chi", "cmn", "chinese", "中文", "汉语"), "zh")


@dataclass(frozen=True)
class Map:
    """The field map of a source: paths of the text, the id, and of each of `CARRIED` (empty: the record has none)."""

    text: tuple[Path, ...]
    id: Path
    carried: tuple[Path, ...]

    @property
    def paths(self) -> list[Path]:
        """Every path that is there."""
        return [path for path in (*self.text, self.id, *self.carried) if path]


def field_map(source: Source) -> Map:
    """The field map that a source's settings describe."""
    carried = tuple(parse(getattr(source.fields, name)) for name in CARRIED)
    return Map(tuple(map(parse, source.text_field.split(","))), parse(source.fields.id), carried)


@cache
def parse(written: str) -> Path:
    """The steps of a path as it is written: `段落[].内容` is (("段落", True), ("内容", False))."""
    names = [name.strip() for name in written.strip().split(".")] if written.strip() else []
    return tuple((name.removesuffix("[]"), name.endswith("[]")) for name in names)


class Wrong(Exception):
    """What is wrong with a field of a record, in words that follow the place."""


def look_up(record: Any, path: Path, written: str) -> str | None:
    """The string at a path of a record of Python objects; None where the path is not there.

    Raises:
        Wrong: there is something else than a string.
    """
    if not path:
        if record is None or isinstance(record, str):
            return record
        raise Wrong(f"the field {written!r} must be a string, not {type(record).__name__}")
    (name, each), rest = path[0], path[1:]
    if record is None:
        return None
    if not isinstance(record, dict) or name not in record:
        return None
    value = record[name]
    if not each:
        return look_up(value, rest, written)
    if value is None:
        return None
    if not isinstance(value, list):
        raise Wrong(f"the field {written!r} must be a list at {name!r}, not {type(value).__name__}")
    parts = (look_up(item, rest, written) for item in value)
    return "\n".join(part for part in parts if part is not None)


def text_of(record: Any, fields: Map, written: str) -> str:
    """The text of a record.

    Raises:
        Wrong: it has none.
    """
    names = [name.strip() for name in written.split(",")]
    parts = [look_up(record, path, name) for path, name in zip(fields.text, names, strict=True)]
    if all(part is None for part in parts):
        if not isinstance(record, dict) or not _present(record, fields.text[0]):
            has = ", ".join(map(str, list(record)[:8])) if isinstance(record, dict) else f"a {type(record).__name__}"
            raise Wrong(f"no field {written!r} (the record has: {has})")
        raise Wrong(f"the field {written!r} must be a string, not NoneType")
    return parts[0] or "" if len(parts) == 1 else "\n\n".join(part for part in parts if part)


def _present(record: Any, path: Path) -> bool:
    if not path:
        return True
    (name, each), rest = path[0], path[1:]
    if not isinstance(record, dict) or name not in record:
        return False
    return each or _present(record[name], rest)


def scalar_of(record: Any, path: Path) -> str | None:
    """What is carried along of a record: a string, a number as its digits, the items of a list joined; else None."""
    value = record
    for number, (name, each) in enumerate(path):
        value = value.get(name) if isinstance(value, dict) else None
        if each:
            items = value if isinstance(value, list) else []
            found = (scalar_of(item, path[number + 1 :]) for item in items)
            return "\n".join(item for item in found if item is not None)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value)


def language_code(stated: str | None) -> str | None:
    """`zh` for zh-CN, cmn_Hani, Chinese; `en` likewise; other languages as they are written."""
    if stated is None:
        return None
    return LANGUAGES.get(stated.strip().lower().replace("_", "-").split("-")[0], stated)


# ── The same over Arrow's columns ────────────────────────────────────────────────────────────────────────────────────


def pluck(column: pa.Array, path: Path) -> pa.Array | None:
    """The strings at a path below a column: string [D] with nulls; None where the type has no such field."""
    if not path:
        return _strings(column)
    (name, each), rest = path[0], path[1:]
    if not pa.types.is_struct(column.type) or column.type.get_field_index(name) < 0:
        return None
    inner = pc.struct_field(column, [name])
    if not each:
        return pluck(inner, rest)
    if pa.types.is_null(inner.type):
        return pa.nulls(len(inner), pa.string())
    if not (pa.types.is_list(inner.type) or pa.types.is_large_list(inner.type)):
        return None
    items = pluck(inner.flatten(), rest)
    if items is None:
        return None
    lengths = pc.fill_null(pc.list_value_length(inner), 0)
    ends = pc.cumulative_sum(lengths.cast(pa.int64()))
    starts = pa.concat_arrays([pa.array([0], pa.int64()), ends]).cast(pa.int32())
    if items.null_count == 0:
        joined = pc.binary_join(pa.ListArray.from_arrays(starts, items), "\n")
    else:  # binary_join would lose the whole document
        rows = pa.ListArray.from_arrays(starts, items).to_pylist()
        joined = pa.array(["\n".join(item for item in row if item is not None) for row in rows], pa.string())
    return pc.if_else(inner.is_valid(), joined, pa.scalar(None, pa.string()))


def _strings(column: pa.Array) -> pa.Array | None:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if pa.types.is_string(kind):
        return column
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind):
        return column.cast(pa.string())
    if pa.types.is_integer(kind):
        return column.cast(pa.string())
    return None


def join_parts(parts: list[pa.Array]) -> pa.Array:
    """Several fields of D documents as one text each, as `text_of` joins them."""
    if len(parts) == 1:
        return parts[0]
    rows = zip(*(part.to_pylist() for part in parts), strict=True)
    texts = [None if all(p is None for p in row) else "\n\n".join(p for p in row if p) for row in rows]
    return pa.array(texts, pa.string())
