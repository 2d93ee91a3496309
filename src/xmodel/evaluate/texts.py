"""Texts to score, from files that people have: JSON lines (plain, .gz, .zst), Parquet, plain text, folders of them."""

from __future__ import annotations

import glob
import io
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xmodel.errors import UserError
from xmodel.tokenizer.compare import language_of

LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson")
PARQUET = (".parquet",)
PLAIN = (".txt", ".md", ".rst")  # in folders; a file that is named may have any other name
OPEN_FILES = 64  # read in turn at a time


class Text(NamedTuple):
    """A document to score."""

    id: str
    text: str
    language: str  # what the record states; else `zh` or `en` by the share of Han letters
    source: str  # what the record states; else the name of the file or folder that was given
    place: tuple[int, int]  # number of the file, number of the record in it


def text_files(arguments: Sequence[str]) -> list[tuple[Path, str]]:
    """The files that `arguments` (files, folders, patterns) mean, each with the name of its argument as its source.

    Raises:
        UserError: an argument that matches nothing, or a folder without a text file.
    """
    found: list[tuple[Path, str]] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            paths = sorted(file for file in path.rglob("*") if file.name.endswith(LINES + PARQUET + PLAIN))
            if not paths:
                kinds = ", ".join(LINES + PARQUET + PLAIN)
                raise UserError(f"--text {argument}: the folder holds no text ({kinds})")
        else:
            paths = [path] if path.is_file() else sorted(map(Path, glob.glob(argument, recursive=True)))  # noqa: PTH207
            if not paths:
                raise UserError(f"--text {argument}: no such file or folder")
        named = path.resolve().name if path.is_dir() else ""
        found += [(file, named or file.name.split(".")[0]) for file in paths]
    return found


def read_texts(files: Sequence[tuple[Path, str]], field: str = "text", spread: bool = False) -> Iterator[Text]:
    """The documents of `text_files`; empty ones are left out.

    Args:
        field: holds the text in JSON lines and Parquet.
        spread: for who will not read to the end: take a document of each file in turn, and a Parquet file's rows spread
            evenly over it. Otherwise file by file.

    Raises:
        UserError: a file that cannot be read, or a record without the field (file and line are named).
    """
    numbered = list(enumerate(files))
    if not spread:
        for number, (path, source) in numbered:
            yield from _documents(number, path, source, field, spread)
        return
    waiting = iter(numbered)
    with ExitStack() as stack:
        going: list[Iterator[Text]] = []
        while True:
            for number, (path, source) in islice(waiting, OPEN_FILES - len(going)):
                documents = _documents(number, path, source, field, spread)
                stack.callback(documents.close)  # pyright: ignore[reportAttributeAccessIssue] - it is a generator
                going.append(documents)
            if not going:
                return
            left = []
            for documents in going:
                if (text := next(documents, None)) is not None:
                    left.append(documents)
                    yield text
            going = left


def _documents(number: int, path: Path, source: str, field: str, spread: bool) -> Iterator[Text]:
    if path.name.endswith(PARQUET):
        records = _parquet(path, field, spread)
    elif path.name.endswith(LINES):
        records = _lines(path, field)
    else:
        records = iter([(0, {"id": str(path), field: _whole(path)})])
    for row, record in records:
        text = record[field]
        if not text.strip():
            continue
        stated = {key: value for key in ("id", "language", "source") if isinstance(value := record.get(key), str)}
        name = stated.get("id") or f"{path.name}:{row + 1}"
        language = stated.get("language") or language_of(text)
        yield Text(name, text, language, stated.get("source") or source, (number, row))


def _whole(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: invalid UTF-8 at byte {error.start}; save it as UTF-8") from None


def _lines(path: Path, field: str) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa

    compression = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
    number = 0
    try:
        with pa.input_stream(str(path), compression=compression) as packed, io.BufferedReader(packed) as stream:
            for number, line in enumerate(stream):
                if not line.strip():
                    continue
                where = f"{path}, line {number + 1}"
                try:
                    record = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
                except (json.JSONDecodeError, UnicodeDecodeError) as error:
                    raise UserError(f"{where}: not JSON ({error})") from None
                if not isinstance(record, dict) or not isinstance(record.get(field), str):
                    raise UserError(_without_field(where, field, record if isinstance(record, dict) else {}))
                try:
                    record[field].encode()
                except UnicodeEncodeError as error:
                    code = f"U+{ord(error.object[error.start]):04X}"
                    raise UserError(f"{where}: the lone surrogate {code}, which UTF-8 cannot represent") from None
                yield number, record
    except (OSError, pa.ArrowInvalid) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path}, line {number + 1}: cannot be read on ({reason})") from None


def _parquet(path: Path, field: str, spread: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if field not in names:
                raise UserError(_without_field(str(path), field, dict.fromkeys(names, "")))
            columns = [name for name in dict.fromkeys([field, "id", "language", "source"]) if name in names]
            rows = spread_rows(file, columns) if spread else _rows_in_order(file, columns)
            for number, record in rows:
                if not isinstance(record[field], str):
                    raise UserError(f"{path}, row {number + 1}: {field} is not a text")
                yield number, record
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: not a Parquet file ({' '.join(str(error).split())[:120]})") from None


def _without_field(where: str, field: str, record: dict[str, Any]) -> str:
    strings = [str(name) for name, value in record.items() if isinstance(value, str)]
    has = f"it has {', '.join(strings)}; --text-field names the text's" if strings else "no field holds a text"
    return f"{where}: no text in the field {field!r} ({has})"


def _rows_in_order(file: Any, columns: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = (record for batch in file.iter_batches(1024, columns=columns) for record in batch.to_pylist())
    yield from enumerate(rows)


def spread_rows(file: Any, columns: list[str], block: int = 256) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row, record) of every row once, in an order of which any beginning is spread evenly: golden-section steps."""
    rows = file.metadata.num_rows
    stride = round(rows * (math.sqrt(5) - 1) / 2)
    while math.gcd(stride, rows) > 1:
        stride += 1
    order_R = np.arange(rows) * stride % max(rows, 1)
    starts = np.cumsum([0, *(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))])
    for first in range(0, rows, block):
        chosen = order_R[first : first + block]
        records = {}
        groups = np.searchsorted(starts, chosen, side="right") - 1
        for group in np.unique(groups):
            table = file.read_row_group(group, columns=columns)
            for row in chosen[groups == group]:
                index = int(row - starts[group])
                records[row] = {name: table[name][index].as_py() for name in columns}
        yield from ((int(row), records[row]) for row in chosen)
