"""From what a reader found to batches of bounded size, with every row that cannot be used refused or marked.

A batch that leaves a source has the columns of `batches.RAW` and four more, which the record or the recipe states:

| column       | type           | meaning                                                                    |
|--------------|----------------|----------------------------------------------------------------------------|
| `language`   | string or null | as stated for the document; null: not stated, the filters decide           |
| `category`   | string         | kind of text                                                               |
| `provenance` | string or null | where the text comes from: an address, a file name                         |
| `licence`    | string or null | null: not known                                                            |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from xmodel.corpus import batches
from xmodel.corpus.batches import MAX_DOCUMENT_BYTES, RAW
from xmodel.corpus.sources.fields import CARRIED, language_code
from xmodel.corpus.utf8 import byte_lengths, utf8_buffers
from xmodel.errors import UserError
from xmodel.recipe.settings import Source

SCHEMA = pa.schema([*RAW, *((name, pa.string()) for name in CARRIED)])
LARGEST = f"{MAX_DOCUMENT_BYTES >> 20} MiB"
SHOWN_BYTES = 1 << 16  # of a row that is dropped because it cannot be read, so much is kept as its text

# Why a record is dropped at the source, when `bad_rows` says drop; nul_bytes always.
REASONS = {
    "not_json": "the line is not a JSON object",
    "not_utf8": "invalid UTF-8 or half a surrogate pair; the text shows U+FFFD in its place",
    "no_text": "the text's field is missing, null or not a string",
    "too_large": f"more than {LARGEST}; only its beginning is kept aside",
    "truncated_file": "the compressed file ends, or is damaged, inside this record",
    "duplicate_id": "another record of the same part of the input has this id",
    "nul_bytes": "NUL characters: binary data, or UTF-16 taken for UTF-8",
}


class Intake:
    """Makes one shard's batches: fills in what the recipe states, and judges the rows.

    Args:
        source: its settings.
        where: its place in the recipe, for messages.
    """

    def __init__(self, source: Source, where: str) -> None:
        self.source, self.where = source, where
        self.seen: set[int] = set()  # hashes of the ids that records of this shard brought along

    def bad(self, reason: str, at: str, message: str) -> str:
        """The reason for a row that cannot be used.

        Raises:
            UserError: the source's `bad_rows` is refuse.
        """
        if self.source.bad_rows == "refuse":
            raise UserError(f"{at}: {message}, or set {self.where}.bad_rows=drop to drop such records")
        return reason

    def batches(
        self,
        ids: pa.Array,
        texts: pa.Array,
        *,
        at: Callable[[int], str],
        own_D: np.ndarray | None = None,
        reasons: pa.Array | None = None,
        labels: pa.Array | None = None,
        carried: dict[str, pa.Array] | None = None,
        valid: bool = False,
    ) -> Iterator[pa.RecordBatch]:
        """Batches of bounded size from D rows; null texts become dropped rows.

        Args:
            ids, texts: string [D]; the bytes of `texts` may be anything.
            at: the place of row d, for messages.
            own_D: bool [D], which ids come from the records; None: no one.
            reasons, labels, carried: columns as in SCHEMA, null where there is nothing to say.
            valid: the texts are known to be UTF-8.
        """
        texts, found = self._judge(texts, at, valid)
        nothing = pa.nulls(len(texts), pa.string())
        reason = found if reasons is None else reasons.fill_null(found)
        if own_D is not None:
            reason = self._repeated(ids, own_D, reason, at)
        columns: dict[str, Any] = {"id": ids, "text": texts, "label": nothing if labels is None else labels}
        columns |= {"reason": reason} | {name: (carried or {}).get(name, nothing) for name in CARRIED}
        stated = {"language": self.source.language, "category": self.source.category, "licence": self.source.licence}
        for name, value in stated.items():
            if value and value != "auto":
                columns[name] = columns[name].fill_null(value)
        if carried and "language" in carried and columns["language"].null_count < len(texts):
            codes = columns["language"].dictionary_encode()
            names = pa.array([language_code(code) for code in codes.dictionary.to_pylist()], pa.string())
            columns["language"] = names.take(codes.indices)
        yield from split(pa.record_batch([columns[name] for name in SCHEMA.names], schema=SCHEMA))

    def _judge(self, texts: pa.Array, at: Callable[[int], str], valid: bool) -> tuple[pa.Array, pa.Array]:
        """The texts as valid UTF-8, and the reasons of those that cannot be used as they are."""
        field = self.source.text_field
        reasons: dict[int, str] = {}
        replaced: dict[int, str] = {}
        for row in np.flatnonzero(texts.is_null().to_numpy(zero_copy_only=False)) if texts.null_count else ():
            message = f"the field {field!r} is empty (null); name another field in {self.where}.text_field"
            reasons[int(row)] = self.bad("no_text", at(int(row)), message)
            replaced[int(row)] = ""
        lengths_D = byte_lengths(texts) if len(texts) else np.zeros(0, np.int64)
        for row in np.flatnonzero(lengths_D > MAX_DOCUMENT_BYTES):
            message = f"a document of more than {LARGEST}; split the document"
            reasons[int(row)] = self.bad("too_large", at(int(row)), message)
            replaced[int(row)] = _bytes(texts, int(row))[:SHOWN_BYTES].decode("utf-8", "replace")
        try:
            texts.validate(full=not valid)
        except (pa.ArrowInvalid, UnicodeDecodeError):
            for row in range(len(texts)):
                data = _bytes(texts, row)
                try:
                    data.decode()
                except UnicodeDecodeError as error:
                    message = f"invalid UTF-8 at byte {error.start} of {field!r}; re-save as UTF-8"
                    reasons[row] = self.bad("not_utf8", at(row), message)
                    replaced[row] = data.decode("utf-8", "replace")
        for row in _with_nul(texts):
            reasons.setdefault(row, "nul_bytes")
        if replaced:
            rows = texts.cast(pa.binary()).to_pylist()
            texts = pa.array([replaced.get(row, rows[row]) for row in range(len(rows))], pa.string())
        found = np.full(len(texts), None, object)
        for row, reason in reasons.items():
            found[row] = reason
        return texts, pa.array(found, pa.string())

    def _repeated(self, ids: pa.Array, own_D: np.ndarray, reason: pa.Array, at: Callable[[int], str]) -> pa.Array:
        again: list[int] = []
        for row, name in enumerate(ids.to_pylist()):
            if own_D[row]:
                before = len(self.seen)
                self.seen.add(hash(name))
                if len(self.seen) == before:
                    again.append(row)
        if not again:
            return reason
        message = (
            f'the id {ids[again[0]].as_py()!r} stands twice; name another field in {self.where}.fields.id ("" for none)'
        )
        self.bad("duplicate_id", at(again[0]), message)
        marks = np.full(len(ids), None, object)
        marks[again] = "duplicate_id"
        return reason.fill_null(pa.array(marks, pa.string()))


def _bytes(texts: pa.Array, row: int) -> bytes:
    offsets_D1, data_X = utf8_buffers(texts)
    return data_X[offsets_D1[row] : offsets_D1[row + 1]].tobytes()


def _with_nul(texts: pa.Array) -> list[int]:
    if len(texts) == 0:
        return []
    offsets_D1, data_X = utf8_buffers(texts)
    data_X = data_X[offsets_D1[0] : offsets_D1[-1]]
    if len(data_X) == 0 or data_X.min() > 0:
        return []
    found = np.flatnonzero(data_X == 0) + offsets_D1[0]
    return sorted({int(row) for row in np.searchsorted(offsets_D1, found, side="right") - 1})


def split(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Cut a batch where its texts reach the bounds of `batches`."""
    if len(batch) <= batches.BATCH_DOCUMENTS and batch["text"].nbytes <= batches.BATCH_CHARACTERS:
        if len(batch):
            yield batch
        return
    offsets_D1, _ = utf8_buffers(batch["text"])
    first = 0
    while first < len(batch):
        full = np.searchsorted(offsets_D1, offsets_D1[first] + batches.BATCH_CHARACTERS)
        last = min(int(full), first + batches.BATCH_DOCUMENTS, len(batch))
        yield batch.slice(first, last - first)
        first = last


def gathered(documents: Iterator[tuple[str, str, str | None, str | None]], intake: Intake) -> Iterator[pa.RecordBatch]:
    """Batches from (id, text, label, reason) of a reader that makes one document at a time."""
    held: list[tuple[str, str, str | None, str | None]] = []
    size = 0

    def close() -> Iterator[pa.RecordBatch]:
        ids, texts, labels, reasons = (pa.array(column, pa.string()) for column in zip(*held, strict=True))
        at = [document[0] for document in held].__getitem__
        yield from intake.batches(ids, texts, at=at, labels=labels, reasons=reasons)

    for document in documents:
        held.append(document)
        size += len(document[1])
        if size >= batches.BATCH_CHARACTERS or len(held) == batches.BATCH_DOCUMENTS:
            yield from close()
            held, size = [], 0
    if held:
        yield from close()
