"""JSON lines, block by block: Arrow's parser where its answer is certainly Python's, else a line at a time.

Arrow reads a block in C++ and keeps only the fields of the map. It takes some things that `json.loads` does not: bytes
that are not UTF-8, several objects on a line, an object over several lines. So a block is left to it only if the block
is valid UTF-8, every line that is not empty begins with `{` and ends with `}`, and there are as many records as lines:
a line that ends with `}` inside an object must go on with a comma or a bracket, never with `{`, so then each line holds
exactly one object. Whatever Arrow refuses, or finds no text in, is read again line by line, to say what is wrong where.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as pj

from xmodel.corpus.batches import MAX_DOCUMENT_BYTES
from xmodel.corpus.sources.fields import CARRIED, Map, Wrong, field_map, join_parts, pc, pluck, scalar_of, text_of
from xmodel.corpus.sources.fields import Path as FieldPath
from xmodel.corpus.sources.files import SUFFIXES
from xmodel.corpus.sources.rows import LARGEST, SHOWN_BYTES, Intake
from xmodel.corpus.sources.streams import Block, blocks

MARK = b"\xef\xbb\xbf"  # byte order mark


def read_jsonl(path: Path, start: int, stop: int, intake: Intake) -> Iterator[pa.RecordBatch]:
    """Batches from the lines of a file that begin in [start, stop); 0, 0: all of it.

    An id that the record does not bring along is `FILE:LINE`, or in a part of a file `FILE@BYTE`.

    Raises:
        UserError: unreadable, or a bad record that the source refuses.
    """
    reader = _Lines(path, stop > 0, intake)
    for block in blocks(path, start, stop):
        yield from reader.batches(block)


class _Lines:
    """Reads the blocks of one file in order, so that it can number lines."""

    def __init__(self, path: Path, part: bool, intake: Intake) -> None:
        self.path, self.part, self.intake = path, part, intake
        self.fields: Map = field_map(intake.source)
        self.lines = 0  # before the block
        self.ends = 0  # ends of lines in the block that Arrow read
        self.schema: pa.Schema | None = None

    def batches(self, block: Block) -> Iterator[pa.RecordBatch]:
        if block.wrong:
            yield from self._wrong(block)
            return
        found = self._by_arrow(block)
        yield from self._slowly(block) if found is None else found
        self.lines += block.data.count(b"\n") if found is None else self.ends

    def _place(self, line: int, offset: int) -> str:
        """Where a line is: its number in the file, in a part of a file its first byte."""
        return f"{self.path}, line at byte {offset}" if self.part else f"{self.path}:{line}"

    def _name(self, line: int, offset: int) -> str:
        return f"{self.path.name}@{offset}" if self.part else f"{self.path.name}:{line}"

    def _wrong(self, block: Block) -> Iterator[pa.RecordBatch]:
        at = self._place(self.lines + 1, block.offset)
        if block.wrong == "long":
            reason = self.intake.bad("too_large", at, f"a line of more than {LARGEST}; split the document")
            self.lines += 1
        else:
            message = f"{block.detail} after line {self.lines}; copy it again"
            reason = self.intake.bad("truncated_file", str(self.path), message)
        shown = block.data[:SHOWN_BYTES].decode("utf-8", "replace")
        name = self._name(self.lines + (block.wrong == "cut"), block.offset)
        ids, texts, reasons = (pa.array([value], pa.string()) for value in (name, shown, reason))
        yield from self.intake.batches(ids, texts, at=lambda row: at, reasons=reasons)

    # ── Arrow ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _by_arrow(self, block: Block) -> Iterator[pa.RecordBatch] | None:
        """The block's batches; None where Python must have a look."""
        data = block.data[len(MARK) :] if block.offset == 0 and block.data.startswith(MARK) else block.data
        self.ends = 0
        if not data:
            return iter(())
        bytes_X = np.frombuffer(data, np.uint8)
        ends = np.flatnonzero(bytes_X == 10)
        self.ends = len(ends)
        if not data.endswith(b"\n"):
            ends = np.append(ends, len(data))
        starts = np.concatenate(([0], ends[:-1] + 1))
        returns = (ends > starts) & (bytes_X[np.maximum(ends - 1, 0)] == 13)
        lasts = ends - returns
        kept = np.flatnonzero(lasts > starts)
        if len(kept) == 0:
            return iter(())
        if (bytes_X[starts[kept]] != 123).any() or (bytes_X[lasts[kept] - 1] != 125).any() or not _is_utf8(data):
            return None
        if (lasts - starts).max() > MAX_DOCUMENT_BYTES:
            return None
        if self.schema is None:
            self.schema = self._schema(data[starts[kept[0]] : lasts[kept[0]]])
        try:
            table = pj.read_json(
                pa.BufferReader(data),
                read_options=pj.ReadOptions(use_threads=False, block_size=len(data) + 1),
                parse_options=pj.ParseOptions(explicit_schema=self.schema, unexpected_field_behavior="ignore"),
            )
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError):
            return None
        if len(table) != len(kept):
            return None
        root = table.to_struct_array().combine_chunks()
        if isinstance(root, pa.ChunkedArray):
            root = pa.concat_arrays(root.chunks)
        parts = [pluck(root, path) for path in self.fields.text]
        if any(part is None for part in parts):
            return None
        texts = join_parts([part for part in parts if part is not None])
        if texts.null_count:
            return None
        shift = len(block.data) - len(data)
        return self._rows(root, texts, kept, starts + shift + block.offset)

    def _rows(self, root: pa.Array, texts: pa.Array, kept: np.ndarray, offsets: np.ndarray) -> Iterator[pa.RecordBatch]:
        numbers = offsets[kept] if self.part else kept + 1 + self.lines
        prefix = f"{self.path.name}{'@' if self.part else ':'}"
        names = pc.binary_join_element_wise(prefix, pa.array(numbers).cast(pa.string()), "")
        own = pluck(root, self.fields.id) if self.fields.id else None
        carried = {name: pluck(root, path) for name, path in zip(CARRIED, self.fields.carried, strict=True) if path}
        before = self.lines
        return self.intake.batches(
            names if own is None else own.fill_null(names),
            texts,
            at=lambda row: self._place(before + int(kept[row]) + 1, int(offsets[kept[row]])),
            own_D=None if own is None else own.is_valid().to_numpy(zero_copy_only=False),
            carried={name: column for name, column in carried.items() if column is not None},
            valid=True,  # as the block is: Arrow refuses escapes that are no characters
        )

    def _schema(self, first: bytes) -> pa.Schema:
        """Arrow's types of the map's fields: strings, but where the first record has an integer."""
        try:
            record = json.loads(first)
        except (json.JSONDecodeError, RecursionError):
            record = {}
        tree: dict[str, Any] = {}
        for path in self.fields.paths:
            place: dict[Any, Any] = tree
            for name, each in path[:-1]:
                place = place.setdefault((name, each), {})
            place[path[-1]] = _leaf(record, path) if path not in self.fields.text else pa.string()
        return pa.schema(_arrow_fields(tree))

    # ── Python ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _slowly(self, block: Block) -> Iterator[pa.RecordBatch]:
        found: list[tuple[str, bool, str, str | None, list[str | None], str]] = []
        offset = block.offset
        for number, line in enumerate(_lines(block.data), start=1):
            place = (self.lines + number, offset)
            offset += len(line)
            if (line.removeprefix(MARK) if place[1] == 0 else line).strip():
                found.append(self._record(line, *place))
        if not found:
            return
        ids, own, texts, reasons, carried, at = zip(*found, strict=True)
        columns = [pa.array(column, pa.string()) for column in zip(*carried, strict=True)]
        yield from self.intake.batches(
            pa.array(ids, pa.string()),
            pa.array(texts, pa.string()),
            at=at.__getitem__,
            own_D=np.array(own),
            reasons=pa.array(reasons, pa.string()),
            carried=dict(zip(CARRIED, columns, strict=True)),
        )

    def _record(self, line: bytes, number: int, offset: int) -> tuple[Any, ...]:
        """(id, whether it is the record's own, text, reason, what is carried along, place) of a line."""
        at, name = self._place(number, offset), self._name(number, offset)
        source, where = self.intake.source, self.intake.where

        def bad(reason: str, message: str, text: str = "") -> tuple[Any, ...]:
            kept = text or line[:SHOWN_BYTES].decode("utf-8", "replace").rstrip("\r\n")
            return name, False, kept, self.intake.bad(reason, at, message), [None] * len(CARRIED), at

        if len(line) > MAX_DOCUMENT_BYTES:
            return bad("too_large", f"a line of more than {LARGEST}; split the document")
        try:
            record = json.loads(line.decode("utf-8-sig" if offset == 0 else "utf-8"))
        except UnicodeDecodeError as error:
            return bad("not_utf8", f"invalid UTF-8 at byte {error.start} of the line; re-save as UTF-8")
        except json.JSONDecodeError as error:
            problem = f"not JSON ({error.msg}, column {error.colno}); every line must be one JSON object"
            plain = self.path.name.endswith(SUFFIXES["text"])  # whoever names such a file forgot to say how it is read
            return bad("not_json", problem + (f" (plain text: set {where}.reader=text)" if plain else ""))
        except RecursionError:
            return bad("not_json", "not JSON that can be read (nested too deeply)")
        try:
            text = text_of(record, self.fields, source.text_field)
        except Wrong as error:
            return bad("no_text", f"{error}; set {where}.text_field to the text's field")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"half a surrogate pair, \\u{ord(text[error.start]):04x}, at character {error.start}"
            replaced = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
            return bad("not_utf8", f"invalid Unicode in {source.text_field!r} ({half}); re-save as UTF-8", replaced)
        own = scalar_of(record, self.fields.id) if self.fields.id else None
        carried = [_clean(scalar_of(record, path)) if path else None for path in self.fields.carried]
        return name if own is None else _clean(own), own is not None, text, None, carried, at


def _clean(text: str | None) -> str | None:
    return text if text is None or text.isascii() else text.encode("utf-8", "replace").decode()


def _lines(data: bytes) -> list[bytes]:
    lines = data.split(b"\n")
    return [line + b"\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])


def _is_utf8(data: bytes) -> bool:
    """Whether bytes are valid UTF-8, by Arrow's validator: faster than decoding them."""
    offsets = np.array([0, len(data)], np.int32)
    try:
        pa.StringArray.from_buffers(1, pa.py_buffer(offsets), pa.py_buffer(data)).validate(full=True)
    except (pa.ArrowInvalid, UnicodeDecodeError):
        return False
    return True


def _leaf(record: Any, path: FieldPath) -> pa.DataType:
    """The type that the first record has at a path: integers as they are, anything else as a string."""
    value = record
    for name, each in path:
        value = value.get(name) if isinstance(value, dict) else None
        if each:
            value = value[0] if isinstance(value, list) and value else None
    return pa.int64() if isinstance(value, int) and not isinstance(value, bool) else pa.string()


def _arrow_fields(tree: dict[Any, Any]) -> list[pa.Field]:
    fields = []
    for (name, each), inside in tree.items():
        kind = pa.struct(_arrow_fields(inside)) if isinstance(inside, dict) else inside
        fields.append(pa.field(name, pa.list_(kind) if each else kind))
    return fields
