"""What the corpus stages pass to each other, and the contract that a stage keeps.

A stage is a function from a `pyarrow.RecordBatch` to a `pyarrow.RecordBatch` with the same rows in the same order. It
adds columns, or gives rows a `reason` to be dropped; a row that has a reason already keeps it. Rows are separated,
counted and written in one place, at the end (finish.py), so a document is never lost without a reason and the funnel
sums up by construction. Stages are pure, so any engine that maps batches can run them (mapping.py).

| column      | type           | made by         | meaning                                                       |
|-------------|----------------|-----------------|---------------------------------------------------------------|
| `id`        | string         | sources         | where the document comes from                                 |
| `text`      | string         | sources         | the document, as its author wrote it; lines may drop lines    |
| `label`     | string or null | sources         | class of labelled dirt; null: a document like any other       |
| `reason`    | string or null | every stage     | why the document is dropped; null: it is not                  |
| `folded`    | binary         | folding         | the text in the form in which texts are compared              |
| `lines_removed` | int64      | lines           | lines that were dropped from `text`                           |
| `furniture` | int64          | lines           | bytes of `folded` that are phrases of web page furniture      |
| `language`  | string         | filters         | "en" or "zh"                                                  |
| `signature` | binary(16)     | deduplicate     | 128-bit hash of `folded`                                      |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa

BATCH_CHARACTERS = 4 << 20  # a batch is closed at the first document that takes it to this many characters ...
BATCH_DOCUMENTS = 4096  # ... or when it holds this many documents
# Arrow's string offsets have 31 bits, and text folds to at most 11 times its bytes: 11 * (160 MiB + a batch) fits.
MAX_DOCUMENT_BYTES = 160 << 20

Stage = Callable[[pa.RecordBatch], pa.RecordBatch]

RAW = pa.schema([("id", pa.string()), ("text", pa.string()), ("label", pa.string()), ("reason", pa.string())])


def batched(documents: Iterable[tuple[str, str, str | None]]) -> Iterator[pa.RecordBatch]:
    """Gather (id, text, label) documents into batches of bounded size."""
    ids: list[str] = []
    texts: list[str] = []
    labels: list[str | None] = []
    size = 0
    for document, text, label in documents:
        ids.append(document)
        texts.append(text)
        labels.append(label)
        size += len(text)
        if size >= BATCH_CHARACTERS or len(ids) == BATCH_DOCUMENTS:
            yield raw_batch(ids, texts, labels)
            ids, texts, labels, size = [], [], [], 0
    if ids:
        yield raw_batch(ids, texts, labels)


def raw_batch(ids: list[str], texts: list[str], labels: list[str | None] | None = None) -> pa.RecordBatch:
    """A batch of documents that no stage has seen yet."""
    nothing = pa.nulls(len(ids), pa.string())
    marks = nothing if labels is None else pa.array(labels, pa.string())
    return pa.record_batch([pa.array(ids, pa.string()), pa.array(texts, pa.string()), marks, nothing], schema=RAW)


def with_column(batch: pa.RecordBatch, name: str, column: pa.Array) -> pa.RecordBatch:
    """The batch with one more column, or with that column replaced."""
    index = batch.schema.get_field_index(name)
    return batch.append_column(name, column) if index < 0 else batch.set_column(index, name, column)


def alive(batch: pa.RecordBatch) -> np.ndarray:
    """Which documents have no reason to be dropped yet: bool [D]."""
    return np.logical_not(batch["reason"].is_valid().to_numpy(zero_copy_only=False))


def mark(batch: pa.RecordBatch, reasons: list[str], which_D: np.ndarray) -> pa.RecordBatch:
    """Give reasons to documents that have none yet.

    Args:
        batch: D documents.
        reasons: names of reasons.
        which_D: integers [D], index into `reasons`; -1 where there is nothing to say.
    """
    found = pa.array(reasons, pa.string()).take(pa.array(which_D, pa.int32(), mask=which_D < 0))
    return with_column(batch, "reason", batch["reason"].fill_null(found))
