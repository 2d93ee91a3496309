"""Read text where people have it, as a stream of `pyarrow.RecordBatch`es of bounded size (schema: rows.SCHEMA).

    files.py      which files a source means                streams.py    their bytes, unpacked, in whole lines
    fields.py     where in a record the text stands         rows.py       rows judged, batches of bounded size
    jsonl.py  columnar.py  plain.py                         the formats

A source is read in shards: runs of files, byte ranges of large JSON lines, row groups of Parquet. Which shards there
are depends on the input alone, and each can be read by itself, so any number of workers makes the same documents.
Whatever is wrong with the input is a `UserError` that names the recipe key or the file, and the line or byte; or, where
the source says `bad_rows: drop`, a row with a reason (rows.REASONS).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

import pyarrow as pa

from xmodel.corpus.sources import columnar
from xmodel.corpus.sources.files import FORMATS, SUFFIXES, dataset_files, expand, is_hub_id
from xmodel.corpus.sources.jsonl import read_jsonl
from xmodel.corpus.sources.plain import STDLIB_BYTES, Document, split_code, stdlib_file, stdlib_files, text_file
from xmodel.corpus.sources.rows import REASONS, SCHEMA, Intake, gathered
from xmodel.errors import UserError
from xmodel.recipe.settings import Corpus, Source, source_lists

__all__ = ["REASONS", "SANDBOX_DOCUMENTS", "SCHEMA", "SHARD_BYTES", "STDLIB_BYTES", "SUFFIXES", "Piece", "Shard"]
__all__ += ["files", "input_files", "read", "read_shard", "shards", "split_code"]

SANDBOX_DOCUMENTS = 20_000
SHARD_BYTES = 64 << 20  # of input; a shard is closed when it holds this much
SHARD_DOCUMENTS = 20_000  # of the sandbox


@dataclass(frozen=True)
class Piece:
    """What is read of one input: bytes [start, stop) of plain JSON lines, row groups of Parquet, parts of a hub data
    set, documents of a part of the sandbox; 0, 0 for a whole file."""

    path: str
    start: int = 0
    stop: int = 0


@dataclass(frozen=True)
class Shard:
    """A part of a source that is read by itself. `size`: bytes on disk, documents of the sandbox, parts on the hub."""

    number: int
    pieces: tuple[Piece, ...]
    size: int


def read(source: Source, where: str, *, seed: int, dirt: float = 0.0) -> Iterator[pa.RecordBatch]:
    """Read one source: its shards one after the other.

    Args:
        source: its settings, paths absolute.
        where: the source's place in the recipe ("corpus.sources[2]"), for messages.
        seed: of the sandbox.
        dirt: share of labelled dirt in a sandbox source.

    Raises:
        UserError: nothing to read, or something that cannot be read; the message says where.
    """
    empty = True
    for shard in shards(source, where):
        for batch in read_shard(shard, source, where, seed=seed, dirt=dirt):
            empty = False
            yield batch
    if empty:
        raise UserError(f"{where} ({source.name}): holds no document; take it out of the recipe or add text to it")


def shards(source: Source, where: str, shard_bytes: int = SHARD_BYTES) -> list[Shard]:
    """The shards of a source, in reading order; they depend on the input and `shard_bytes` alone.

    A source with a limit of `documents` is one shard, since the limit counts through all of it.

    Raises:
        UserError: no paths given, or one that matches no file.
    """
    measured = list(_pieces(source, where, shard_bytes))
    limited = source.documents is not None and source.reader != "sandbox"
    found: list[Shard] = []
    held: list[Piece] = []
    size = 0
    for index, (piece, amount, alone) in enumerate(measured):
        held.append(piece)
        size += amount
        last = index + 1 == len(measured)
        if last or (not limited and (alone or size >= shard_bytes)):
            found.append(Shard(len(found), tuple(held), size))
            held, size = [], 0
    return found


def _pieces(source: Source, where: str, shard_bytes: int) -> Iterator[tuple[Piece, int, bool]]:
    """(piece, size, whether it must be a shard of its own) of a source."""
    if source.reader == "sandbox":
        yield from ((piece, piece.stop - piece.start, True) for piece in _sandbox_pieces(source, where))
        return
    for number, path in enumerate(source.paths):
        if is_hub_id(source, path):
            count = columnar.hub_dataset(source, path, f"{where}.paths[{number}]").num_shards
            yield from ((Piece(path, part, part + 1), 1, True) for part in range(count))
    for path in files(source, where):
        size = path.stat().st_size
        kind = _format(path, source)
        count = 1
        if size > shard_bytes and kind == "jsonl" and path.suffix == ".jsonl":
            count, units = -(-size // shard_bytes), size
        elif size > shard_bytes and kind == "parquet":
            units = columnar.parquet_file(path).num_row_groups
            count = min(-(-size // shard_bytes), max(units, 1))
        else:
            units = 0
        for part in range(count):
            start, stop = (units * edge // count for edge in (part, part + 1))
            amount = round(size * stop / units) - round(size * start / units) if units else size
            yield Piece(str(path), start, stop), amount, count > 1


def read_shard(
    shard: Shard,
    source: Source,
    where: str,
    *,
    seed: int,
    dirt: float = 0.0,
) -> Iterator[pa.RecordBatch]:
    """Batches of one shard (schema: rows.SCHEMA); the same whoever reads it, and possibly none.

    Args and Raises as for `read`.
    """
    intake = Intake(source, where)
    if source.reader == "sandbox":
        found = gathered(_sandbox(shard, seed, dirt), intake)
    elif source.reader in ("text", "code", "stdlib"):
        reader = stdlib_file if source.reader == "stdlib" else partial(text_file, intake=intake)
        documents = (document for piece in shard.pieces for document in reader(Path(piece.path)))
        found = gathered(islice(documents, source.documents), intake)
    else:
        found = (batch for piece in shard.pieces for batch in _records(piece, source, intake))
    yield from found if source.documents is None else _at_most(found, source.documents)


def _records(piece: Piece, source: Source, intake: Intake) -> Iterator[pa.RecordBatch]:
    if is_hub_id(source, piece.path):
        yield from columnar.read_hub(source, piece.path, piece.start, piece.stop, intake)
        return
    path = Path(piece.path)
    kind = _format(path, source)
    if kind == "arrow":
        yield from columnar.read_arrow(path, intake)
    else:
        reader = columnar.read_parquet if kind == "parquet" else read_jsonl
        yield from reader(path, piece.start, piece.stop, intake)


def _format(path: Path, source: Source) -> str:
    if source.reader != "hf":
        return source.reader
    return next((reader for suffix, reader in FORMATS.items() if path.name.endswith(suffix)), "jsonl")


def _at_most(found: Iterator[pa.RecordBatch], limit: int) -> Iterator[pa.RecordBatch]:
    for batch in found:
        yield batch.slice(0, limit)
        limit -= len(batch)
        if limit <= 0:
            return


def input_files(corpus: Corpus) -> list[Path]:
    """Every file that the corpus stage reads, sorted; a change of one makes the stage stale.

    Raises:
        UserError: a path or pattern that matches nothing.
    """
    from xmodel.corpus.benchmarks import benchmark_files  # which reads with the readers of this folder

    found: set[Path] = set()
    for kind, sources in source_lists(corpus).items():
        for index, source in enumerate(sources):
            found.update(files(source, f"corpus.{kind}[{index}]"))
    found.update(benchmark_files(corpus.benchmarks))
    found.update(path for path in [Path(corpus.index, "documents.parquet")] if corpus.index and path.is_file())
    return sorted(found)


def files(source: Source, where: str) -> list[Path]:
    """The local files of a source in reading order: paths in the order given, the files of a folder or pattern sorted.

    Raises:
        UserError: no paths given, or one that matches no file.
    """
    if source.reader == "sandbox":
        return []
    if source.reader == "stdlib":
        return stdlib_files()
    if not source.paths:
        raise UserError(f"{where}.paths ({source.name}): is empty; name files, folders or glob patterns")
    found: dict[Path, None] = {}
    for number, path in enumerate(source.paths):
        key = f"{where}.paths[{number}] ({source.name})"
        if is_hub_id(source, path):
            continue
        if source.reader == "hf":
            found.update(dict.fromkeys(dataset_files(Path(path), source, key)))
        else:
            found.update(dict.fromkeys(expand(path, SUFFIXES[source.reader], key)))
    return list(found)


def _sandbox_pieces(source: Source, where: str) -> list[Piece]:
    from xmodel.corpus import sandbox

    wrong = [part for part in source.paths if part not in sandbox.PARTS]
    if wrong or not source.paths:
        named = f"{wrong[0]!r} is no part of the sandbox" if wrong else "is empty"
        raise UserError(f"{where}.paths ({source.name}): {named}; name some of {', '.join(sandbox.PARTS)}")
    count, parts = source.documents or SANDBOX_DOCUMENTS, len(source.paths)
    pieces: list[Piece] = []
    for number, part in enumerate(source.paths):
        share = count * (number + 1) // parts - count * number // parts
        bounds = [*range(0, share, SHARD_DOCUMENTS), share]
        pieces += (Piece(part, start, stop) for start, stop in pairwise(bounds))
    return pieces


def _sandbox(shard: Shard, seed: int, dirt: float) -> Iterator[Document]:
    from xmodel.corpus import sandbox

    for piece in shard.pieces:
        for made in sandbox.documents(piece.path, piece.stop, seed, dirt, first=piece.start):
            yield made.id, made.text, None if made.label == "clean" else made.label, None
