"""Records in columns: Parquet, Arrow files as `datasets` saves them, data sets streamed from the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xmodel.corpus import batches
from xmodel.corpus.sources.fields import CARRIED, Map, field_map, join_parts, pluck
from xmodel.corpus.sources.fields import Path as FieldPath
from xmodel.corpus.sources.rows import Intake
from xmodel.errors import MachineError, UserError
from xmodel.recipe.settings import Source

SLICE = 8 << 20  # bytes of text that are decoded at a time, about


def parquet_file(path: Path) -> pq.ParquetFile:
    """The file, opened.

    Raises:
        UserError: it is not Parquet, damaged or unreadable.
    """
    try:
        return pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        problem = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: not a Parquet file, or damaged ({problem}); copy it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or ' '.join(str(error).split())})") from None


def read_parquet(path: Path, start: int, stop: int, intake: Intake) -> Iterator[pa.RecordBatch]:
    """Batches from the row groups [start, stop) of a Parquet file; 0, 0: all of them.

    An id that a row does not bring along is `FILE:ROW`, counted from 1. Only the columns of the field map are read.

    Raises:
        UserError: not Parquet, damaged, or without the fields of the map.
    """
    with parquet_file(path) as file:
        fields = field_map(intake.source)
        check_schema(file.schema_arrow, fields, str(path), intake)
        names = {name[0][0] for name in fields.paths} & set(file.schema_arrow.names)
        stop = stop or file.num_row_groups
        row = sum(file.metadata.row_group(group).num_rows for group in range(start))
        for group in range(start, stop):
            held = file.metadata.row_group(group)
            each = max(held.total_byte_size // max(held.num_rows, 1), 1)
            size = max(1, min(batches.BATCH_DOCUMENTS, SLICE // each))
            try:
                for batch in file.iter_batches(size, row_groups=[group], columns=sorted(names)):
                    yield from rows(batch, row, str(path), path.name, fields, intake)
                    row += len(batch)
            except (pa.ArrowInvalid, OSError) as error:
                problem = " ".join(str(error).split())[:120]
                raise UserError(f"{path}: damaged after row {row} ({problem}); copy it again") from None


def read_arrow(path: Path, intake: Intake) -> Iterator[pa.RecordBatch]:
    """Batches from an Arrow file, in the stream format (what `datasets` writes) or the file format.

    Raises:
        UserError: not Arrow, damaged, or without the fields of the map.
    """
    fields = field_map(intake.source)
    row = 0
    try:
        with pa.memory_map(str(path)) as stored:
            reader = arrow_batches(stored)
            check_schema(reader.schema, fields, str(path), intake)
            for batch in reader:
                for first in range(0, len(batch), batches.BATCH_DOCUMENTS):
                    part = batch.slice(first, batches.BATCH_DOCUMENTS)
                    yield from rows(part, row, str(path), path.name, fields, intake)
                    row += len(part)
    except (pa.ArrowInvalid, OSError) as error:
        problem = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: not an Arrow file, or damaged after row {row} ({problem})") from None


def arrow_batches(stored: pa.MemoryMappedFile) -> Any:
    """The record batches of an Arrow file, in the stream or the file format."""
    if stored.read(6) == b"ARROW1":
        file = pa.ipc.open_file(stored)
        return pa.RecordBatchReader.from_batches(file.schema, map(file.get_batch, range(file.num_record_batches)))
    stored.seek(0)
    return pa.ipc.open_stream(stored)


def rows(
    batch: pa.RecordBatch, first: int, at: str, name: str, fields: Map, intake: Intake
) -> Iterator[pa.RecordBatch]:
    """Batches from rows in columns.

    Args:
        first: number of rows of the file before these.
        at: the file, for messages.
        name: the file, for ids.
    """
    root = pa.StructArray.from_arrays(batch.columns, fields=list(batch.schema)) if batch.num_columns else None
    if root is None or len(batch) == 0:
        return
    texts = join_parts([column for path in fields.text if (column := pluck(root, path)) is not None])
    numbers = np.arange(first + 1, first + 1 + len(batch))
    names = pa.array([f"{name}:{number}" for number in numbers], pa.string())
    own = pluck(root, fields.id) if fields.id else None
    carried = {key: pluck(root, path) for key, path in zip(CARRIED, fields.carried, strict=True) if path}
    yield from intake.batches(
        names if own is None else own.fill_null(names),
        texts,
        at=lambda row: f"{at}:{numbers[row]}",
        own_D=None if own is None else own.is_valid().to_numpy(zero_copy_only=False),
        carried={key: column for key, column in carried.items() if column is not None},
    )


def check_schema(schema: pa.Schema, fields: Map, at: str, intake: Intake) -> None:
    """Refuse a file that has another schema than the field map expects.

    Raises:
        UserError: it lacks a field of the map, or the text is not a string. The default id may be missing.
    """
    source, where = intake.source, intake.where
    written = [name.strip() for name in source.text_field.split(",")]
    empty = pa.StructArray.from_arrays([pa.nulls(0, field.type) for field in schema], fields=list(schema))
    has = ", ".join(f"{field.name} {str(field.type)[:40]}" for field in list(schema)[:12])
    for path, name in zip(fields.text, written, strict=True):
        problem = _mismatch(schema, empty, path)
        if problem:
            raise UserError(
                f"{at}: {problem} {name!r} (the file has: {has}); set {where}.text_field to the text's field"
            )
    expected = [(fields.id, "id", source.fields.id if source.fields.id != "id" else "")]
    expected += [(path, key, getattr(source.fields, key)) for path, key in zip(fields.carried, CARRIED, strict=True)]
    for path, key, name in expected:
        if name and (problem := _mismatch(schema, empty, path, text=False)):
            raise UserError(f"{at}: {problem} {name!r} (the file has: {has}); mend {where}.fields.{key}")


def _mismatch(schema: pa.Schema, empty: pa.Array, path: FieldPath, text: bool = True) -> str:
    if schema.get_field_index(path[0][0]) < 0:
        return "no field"
    found = pluck(empty, path)
    if found is None:
        return "no text in the field" if text else "no such field, or no string in it:"
    kind = empty.type.field(path[0][0]).type
    return "no text in the field" if text and len(path) == 1 and pa.types.is_integer(kind) else ""


# ── The hub ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def hub_dataset(source: Source, name: str, where: str) -> Any:
    """A data set of the hub (or a folder that `datasets` can load), streamed: its `num_shards` parts are independent.

    Raises:
        UserError: `datasets` is not installed, there is no such data set, subset or split.
        MachineError: the hub cannot be reached.
    """
    try:
        import datasets  # pyright: ignore[reportMissingImports] - the extra
    except ImportError:
        raise UserError(
            f"{where} ({source.name}): {name} is no local folder, and streaming it from the hub needs the package "
            "`datasets`: pip install 'xmodel[datasets]'"
        ) from None
    options: dict[str, Any] = {"revision": source.revision} if source.revision else {}
    try:
        data = datasets.load_dataset(name, source.subset or None, split=source.split, streaming=True, **options)
    except ConnectionError as error:
        raise MachineError(f"{where} ({source.name}): the hub cannot be reached for {name} ({error})") from None
    except (ValueError, FileNotFoundError) as error:  # its DatasetNotFoundError is a FileNotFoundError
        raise UserError(f"{where} ({source.name}): {name}: {' '.join(str(error).split())[:300]}") from None
    return data.with_format("arrow")


def read_hub(source: Source, name: str, start: int, stop: int, intake: Intake) -> Iterator[pa.RecordBatch]:
    """Batches from the parts [start, stop) of a streamed data set; an id that a row does not bring along is
    `OWNER/NAME#PART:ROW`."""
    fields = field_map(source)
    data = hub_dataset(source, name, intake.where)
    for part in range(start, stop):
        row = 0
        for table in data.shard(num_shards=data.num_shards, index=part).iter(batch_size=1000):
            for batch in table.combine_chunks().to_batches():
                if row == 0:
                    check_schema(batch.schema, fields, f"{name}#{part}", intake)
                yield from rows(batch, row, f"{name}#{part}", f"{name}#{part}", fields, intake)
                row += len(batch)
