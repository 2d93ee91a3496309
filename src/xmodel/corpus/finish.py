"""The last phase: every document goes where it belongs, in the order of the corpus, and is counted there.

    train/<source>.parquet   validation/<language>.parquet   dropped/<source>.parquet

What a source's files hold follows from its shards and the ledger, so sources are written by any number of workers. Rows
are gathered into row groups of about `ROW_GROUP_BYTES`; nothing else is held in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xmodel.corpus.batches import alive, mark, with_column
from xmodel.corpus.deduplicate import signatures
from xmodel.corpus.funnel import LANGUAGES, Counts
from xmodel.corpus.holdout import held_out
from xmodel.corpus.ledger import EARLIER, REASONS, Ledger
from xmodel.corpus.mapping import DESCRIPTION, Job, shard_batches, shard_figures
from xmodel.corpus.shards import Shard, in_order
from xmodel.corpus.utf8 import byte_lengths
from xmodel.files import atomic_write
from xmodel.recipe.settings import Source

TEXT = pa.string()
# `place` is where a document stands in its source: source/shard/row.
KEPT = pa.schema(
    [
        *((name, TEXT) for name in ("id", "text", "language", "source", *DESCRIPTION, "place")),
        ("perplexity", pa.float32()),
    ]
)
# Of a duplicate that was dropped, `equals` is the place of the one that is kept, by which `xmodel corpus why` finds it
# again; the text of what was dropped is there only with corpus.keep_dropped.
DROPPED = pa.schema([*KEPT, ("reason", TEXT), ("label", TEXT), ("bytes", pa.int64()), ("equals", TEXT)])
EARLIER_PLACE = "corpus.index"  # in place of a source's name: the number of a document of the earlier index
ROW_GROUP_BYTES = 16 << 20


def write_source(job: Job, shards: Sequence[Shard], folder: Path, source: int) -> Counts:
    """Write one source's documents into `folder`, except that its validation text goes to `held_file`s for now.

    Args:
        shards: all shards of the corpus; their files and the ledger stand.
        folder: of the corpus.
        source: index into `shards.in_order`.
    """
    kind, _, settings = in_order(job.settings)[source]
    ledger, counts = Ledger(job, shards), Counts()
    with ExitStack() as files:
        train = files.enter_context(RowWriter(folder / "train" / f"{settings.name}.parquet", KEPT))
        dropped = files.enter_context(RowWriter(folder / "dropped" / f"{settings.name}.parquet", DROPPED))
        held = {code: files.enter_context(RowWriter(held_file(job, source, code), KEPT)) for code in LANGUAGES}
        for shard, first in zip(shards, ledger.starts_S1.tolist(), strict=False):
            if shard.source != source:
                continue
            figures = shard_figures(job, shard)
            counts.read += figures["read"]
            counts.cut += figures["cut"]
            start = first
            signed = shard_batches(job.path(shard, "signatures.arrow"), ["signature"])
            for batch, signature in zip(shard_batches(job.path(shard, "documents.arrow")), signed, strict=True):
                rows = slice(start, start + len(batch))
                batch = mark(batch, list(REASONS), _decided(ledger.reason_N[rows]))
                batch = _placed(batch, settings, shard, start - first)
                alive_D = alive(batch)
                if kind == "validation":
                    validation_D = alive_D
                else:
                    validation_D = alive_D & held_out(signatures(signature), job.settings.holdout, job.seed)
                counts.add(batch, validation_D)
                train.write(batch, alive_D & ~validation_D)
                language_D = batch["language"].to_numpy(zero_copy_only=False)
                for code, writer in held.items():
                    writer.write(batch, validation_D & (language_D == code))
                if not alive_D.all():
                    gone_D = np.flatnonzero(~alive_D)
                    dropped.write(_evidence(job, ledger, batch, gone_D, start), None)
                start += len(batch)
    return counts


def held_file(job: Job, source: int, language: str) -> Path:
    """Where a source's validation text waits until `join_validation` puts it together."""
    return job.work / "held" / f"{source:04d}-{language}.parquet"


def join_validation(job: Job, folder: Path) -> None:
    """Write validation/<language>.parquet from what the sources have held out, in their order."""
    for code in LANGUAGES:
        with RowWriter(folder / "validation" / f"{code}.parquet", KEPT) as writer:
            for source in range(len(in_order(job.settings))):
                path = held_file(job, source, code)
                if path.exists():
                    with pq.ParquetFile(path) as file:
                        for batch in file.iter_batches(batch_size=4096):
                            writer.write(batch, None)


class RowWriter:
    """A Parquet file in row groups of bounded size; it comes to exist with its first row."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema = path, schema
        self.files = ExitStack()
        self.writer: pq.ParquetWriter | None = None
        self.rows: list[pa.RecordBatch] = []
        self.bytes = 0
        path.unlink(missing_ok=True)  # of an attempt that was cut off

    def write(self, batch: pa.RecordBatch, chosen_D: np.ndarray | None) -> None:
        """Append rows (None: all), with the columns of the schema."""
        if chosen_D is not None:
            if not chosen_D.any():
                return
            batch = batch.filter(pa.array(chosen_D))
        self.rows.append(batch.select(self.schema.names))
        self.bytes += self.rows[-1].nbytes
        if self.bytes >= ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self.rows:
            return
        if self.writer is None:
            coded = ["source", "language", "category", "licence"]
            options: dict[str, Any] = {"compression": "zstd", "use_dictionary": coded}
            stream = self.files.enter_context(atomic_write(self.path, shared=True))
            writer = pq.ParquetWriter(stream, self.schema, write_statistics=False, **options)
            self.writer = self.files.enter_context(writer)
        table = pa.Table.from_batches(self.rows).cast(self.schema)
        self.writer.write_table(table, row_group_size=max(1, table.num_rows))
        self.rows, self.bytes = [], 0

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        with self.files:
            if error is not None:
                raise error
            self._flush()


def _decided(reason_D: np.ndarray) -> np.ndarray:
    return np.where(reason_D == 0, -1, reason_D.astype(np.int64))


def _placed(batch: pa.RecordBatch, source: Source, shard: Shard, first: int) -> pa.RecordBatch:
    """The batch with its source, and the places of its documents; it begins at row `first` of its shard."""
    batch = with_column(batch, "source", pa.repeat(source.name, len(batch)))
    places = [f"{source.name}/{shard.number}/{row}" for row in range(first, first + len(batch))]
    return with_column(batch, "place", pa.array(places, TEXT))


def _evidence(job: Job, ledger: Ledger, batch: pa.RecordBatch, gone_K: np.ndarray, first: int) -> pa.RecordBatch:
    """The rows gone_K with the columns that only dropped documents have; `first`: ordinal of the batch's first one."""
    names = [source.name for _, _, source in in_order(job.settings)]

    def place(ordinal: int) -> str | None:
        if ordinal < 0:
            return None
        if ordinal >= EARLIER:
            return f"{EARLIER_PLACE}/0/{ordinal - EARLIER}"
        shard, row = ledger.place(ordinal)
        return f"{names[shard.source]}/{shard.number}/{row}"

    lost = batch.take(pa.array(gone_K))
    lost = with_column(lost, "bytes", pa.array(byte_lengths(lost["text"])))
    equals = [place(ordinal) for ordinal in ledger.equals_N[first : first + len(batch)][gone_K].tolist()]
    lost = with_column(lost, "equals", pa.array(equals, TEXT))
    return lost if job.settings.keep_dropped else with_column(lost, "text", pa.nulls(len(lost), TEXT))
