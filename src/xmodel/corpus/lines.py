"""Line-level cleaning: drop a line, keep the document.

Three kinds of lines go: web furniture (a menu, a cookie banner, a footer), lines that stand in many documents of their
source, and, if asked for, copies of a line within a document. Only whole lines of text are judged by their frequency:
not headings, not code, not rows of a table, which repeat for good reasons.

How many documents hold a line is counted in a first pass by a count-min sketch (Cormode and Muthukrishnan, 2005): 8 MB
whatever the corpus. Its counts are sums, so they do not depend on how documents are shared among workers, or in which
order the workers' counts are added:

    counts = collect(batches)                      # or one per worker, added up: counts + counts
    batch = cleaning(batch, settings, counts)      # after folding, before filtering
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numba
import numpy as np
import pyarrow as pa

from xmodel.corpus.batches import alive, mark, with_column
from xmodel.corpus.folding import fold
from xmodel.corpus.furniture import furniture_phrases
from xmodel.corpus.measures import CLASS, DIGITS, FOREIGN, HAN, LATIN, PRIME, SPACES, SYMBOLS, class_table
from xmodel.corpus.search import find
from xmodel.corpus.utf8 import byte_lengths, code_point, utf8_buffers
from xmodel.recipe.settings import LineFilters

ROWS, WIDTH = 2, 1 << 20  # of the sketch: counts are too high by more than 3 in a million lines for one line in seven
INDENTATION = 4  # columns from which on a line counts as code
LEAST_WORDS = 6  # of a line of text; a Han character counts as half a word
LETTERS = 0.6  # share of the visible characters of a line of text that are letters


@numba.njit(cache=True, nogil=True)
def _split(offsets_D1, data_X, classes):
    """The lines of D documents, each with its line end.

    Returns:
        starts_L1: int32, line l is data_X[starts_L1[l] : starts_L1[l + 1]].
        documents_L: int32.
        visible_L: int32, visible characters.
        hashes_L: uint64 of the visible characters; 0 for a line that is not one of text.
        headings_L: bool, lines that begin with a number sign.
    """
    documents = len(offsets_D1) - 1
    most = documents
    for position in range(offsets_D1[0], offsets_D1[documents]):
        most += data_X[position] == 10
    starts_L1 = np.zeros(most + 1, np.int32)
    documents_L = np.zeros(most, np.int32)
    visible_L = np.zeros(most, np.int32)
    hashes_L = np.zeros(most, np.uint64)
    headings_L = np.zeros(most, np.bool_)
    line = 0
    starts_L1[0] = offsets_D1[0]
    for document in range(documents):
        position = np.int64(offsets_D1[document])
        end = np.int64(offsets_D1[document + 1])
        fenced = False  # between the ``` of Markdown
        while position < end:
            fence = position + 2 < end and data_X[position] == 96 == data_X[position + 1] == data_X[position + 2]
            fenced ^= fence
            prose = not fenced
            value = np.uint64(1)
            visible = letters = han = words = indentation = 0
            inside = False  # a word
            point = np.int64(0)
            while position < end and point != 10:
                point, width = code_point(data_X, position)
                position += width
                kind = classes[point] & CLASS if point < 0x10000 else (HAN if 0x20000 <= point < 0x40000 else SYMBOLS)
                if kind == SPACES:
                    if visible == 0 and point != 10:
                        indentation += INDENTATION if point == 9 else 1
                    inside = False
                    continue
                if visible == 0:
                    headings_L[line] = point == 35
                    prose &= (LATIN <= kind <= DIGITS) or point >= 0x80  # not a sign of mark-up or of a comment
                visible += 1
                letters += LATIN <= kind <= FOREIGN
                han += kind == HAN
                words += not inside and kind != HAN
                inside = kind != HAN
                value = (value ^ np.uint64(point)) * PRIME
            documents_L[line] = document
            visible_L[line] = visible
            if (
                prose
                and indentation < INDENTATION
                and letters >= LETTERS * visible
                and 2 * words + han >= 2 * LEAST_WORDS
            ):
                hashes_L[line] = (value ^ (value >> np.uint64(32))) | np.uint64(1)
            line += 1
            starts_L1[line] = position
    return starts_L1[: line + 1], documents_L[:line], visible_L[:line], hashes_L[:line], headings_L[:line]


@numba.njit(cache=True, nogil=True)
def _copies(documents_L, hashes_L):
    """How often each line of text stood before in its document: int32 [L]; -1 where it is not one of text."""
    slots = 64
    while slots < 2 * len(hashes_L):
        slots *= 2
    keys_S = np.zeros(slots, np.uint64)
    owners_S = np.full(slots, -1, np.int32)
    numbers_S = np.zeros(slots, np.int32)
    copies_L = np.full(len(hashes_L), -1, np.int32)
    mask = np.uint64(slots - 1)
    for line in range(len(hashes_L)):
        value = hashes_L[line]
        document = documents_L[line]
        if value == 0:
            continue
        slot = (value * PRIME >> np.uint64(24)) & mask
        while owners_S[slot] == document and keys_S[slot] != value:
            slot = (slot + np.uint64(1)) & mask
        if owners_S[slot] != document:
            numbers_S[slot] = 0
        copies_L[line] = numbers_S[slot]
        keys_S[slot] = value
        owners_S[slot] = document
        numbers_S[slot] += 1
    return copies_L


@numba.njit(cache=True, nogil=True)
def _without(offsets_D1, starts_L1, documents_L, data_X, dropped_L):
    """The documents without the dropped lines: new offsets int32 [D + 1] and bytes."""
    ends = np.zeros(len(offsets_D1), np.int32)
    kept = np.empty(max(1, offsets_D1[-1] - offsets_D1[0]), np.uint8)
    size = 0
    for line in range(len(dropped_L)):
        if not dropped_L[line]:
            for position in range(starts_L1[line], starts_L1[line + 1]):
                kept[size] = data_X[position]
                size += 1
        ends[documents_L[line] + 1] = size
    for document in range(1, len(ends)):
        ends[document] = max(ends[document], ends[document - 1])  # those without a line
    return ends, kept[:size]


def _columns(hashes_L: np.ndarray) -> np.ndarray:
    """Where the lines are counted: int64 [ROWS, L]."""
    return np.stack([(hashes_L >> np.uint64(20 * row + 3)) & np.uint64(WIDTH - 1) for row in range(ROWS)]).astype(
        np.int64
    )


def _replaced(column_D: pa.Array, rows_K: np.ndarray, values_K: pa.Array) -> pa.Array:
    """The column with other values in K rows."""
    places_D = np.arange(len(column_D))
    places_D[rows_K] = len(column_D) + np.arange(len(rows_K))
    return pa.concat_arrays([column_D, values_K]).take(pa.array(places_D))


@dataclass
class LineCounts:
    """In how many documents lines stand; counts of parts of a source merge by addition."""

    documents: int
    sketch_RW: np.ndarray  # int32: the smallest of a line's ROWS counts is never too low, and seldom too high

    def __add__(self, other: LineCounts) -> LineCounts:
        return LineCounts(self.documents + other.documents, self.sketch_RW + other.sketch_RW)

    def save(self, stream: IO[bytes]) -> None:
        """Write the counts, without the places where nothing was counted."""
        places = np.flatnonzero(self.sketch_RW)
        np.savez(stream, documents=self.documents, places=places, counts=self.sketch_RW.flat[places])

    @staticmethod
    def load(path: Path) -> LineCounts:
        """Read what `save` wrote."""
        counts = LineCounts(0, np.zeros((ROWS, WIDTH), np.int32))
        with np.load(path) as file:
            counts.documents = int(file["documents"])
            counts.sketch_RW.flat[file["places"]] = file["counts"]
        return counts

    def of(self, hashes_L: np.ndarray) -> np.ndarray:
        """Documents that hold each line: int32 [L]."""
        return np.min([row[columns] for row, columns in zip(self.sketch_RW, _columns(hashes_L), strict=True)], axis=0)


def collect(batches: Iterable[pa.RecordBatch]) -> LineCounts:
    """The first pass: count each line of text once for each document that holds it."""
    counts = LineCounts(0, np.zeros((ROWS, WIDTH), np.int32))
    for batch in batches:
        _, documents_L, _, hashes_L, _ = _split(*utf8_buffers(batch["text"]), class_table())
        firsts_L = hashes_L[_copies(documents_L, hashes_L) == 0]
        for row, columns in zip(counts.sketch_RW, _columns(firsts_L), strict=True):
            np.add.at(row, columns, 1)
        counts.documents += len(batch)
    return counts


def dropped_lines(
    text: pa.Array, suspects_D: np.ndarray, settings: LineFilters, counts: LineCounts | None = None
) -> tuple[np.ndarray, ...]:
    """Which lines of D documents go.

    Args:
        suspects_D: bool, documents that hold a phrase of furniture at all.

    Returns:
        starts_L1, documents_L, visible_L: the lines, as `_split` has them.
        dropped_L: bool.
    """
    offsets_D1, data_X = utf8_buffers(text)
    starts_L1, documents_L, visible_L, hashes_L, headings_L = _split(offsets_D1, data_X, class_table())
    dropped_L = np.zeros(len(documents_L), bool)
    suspects_K = np.flatnonzero(suspects_D[documents_L] & ~headings_L)
    if len(suspects_K):
        buffers = [None, pa.py_buffer(starts_L1), pa.py_buffer(data_X)]
        lines = pa.BinaryArray.from_buffers(pa.binary(), len(documents_L), buffers)
        folded = fold(lines.take(pa.array(suspects_K)))
        covered_K, _ = find(folded, furniture_phrases())
        dropped_L[suspects_K] = covered_K > settings.max_furniture_share * byte_lengths(folded)
    if settings.max_copies > 0:
        dropped_L |= _copies(documents_L, hashes_L) >= settings.max_copies
    if counts is not None:
        limit = max(settings.min_documents, settings.max_document_share * counts.documents)
        dropped_L |= (hashes_L != 0) & (counts.of(hashes_L) > limit)
    return starts_L1, documents_L, visible_L, dropped_L


def cleaning(batch: pa.RecordBatch, settings: LineFilters, counts: LineCounts | None = None) -> pa.RecordBatch:
    """The stage that changes `text`, and `folded` with it.

    It adds the columns `lines_removed` and `furniture` (int64). A document that would lose more than
    `max_removed_share` of its visible characters is left as it is and marked "boilerplate"; one that has a reason
    already is left as it is.

    Args:
        batch: D documents with the column `folded`.
        settings: which lines go.
        counts: of the documents' source, from `collect`; None: lines are not judged by their frequency.
    """
    if len(batch) == 0:
        nothing = pa.array([], pa.int64())
        return with_column(with_column(batch, "lines_removed", nothing), "furniture", nothing)
    furniture_D, _ = find(batch["folded"], furniture_phrases())
    starts_L1, documents_L, visible_L, dropped_L = dropped_lines(batch["text"], furniture_D > 0, settings, counts)
    dropped_L &= alive(batch)[documents_L]

    def of_document(weights_L: np.ndarray) -> np.ndarray:
        return np.bincount(documents_L, weights_L, minlength=len(batch))

    lost_D = of_document(visible_L * dropped_L) / np.maximum(of_document(visible_L), 1)
    doomed_D = lost_D > settings.max_removed_share
    dropped_L &= ~doomed_D[documents_L]
    batch = mark(batch, ["boilerplate"], np.where(doomed_D, 0, -1))
    if dropped_L.any():
        offsets_D1, data_X = utf8_buffers(batch["text"])
        ends, kept = _without(offsets_D1, starts_L1, documents_L, data_X, dropped_L)
        buffers = [None, pa.py_buffer(ends), pa.py_buffer(kept)]
        text = pa.StringArray.from_buffers(len(batch), buffers[1], buffers[2])
        changed_K = np.unique(documents_L[dropped_L])
        folded = fold(text.take(pa.array(changed_K)))
        furniture_D[changed_K], _ = find(folded, furniture_phrases())
        batch = with_column(batch, "text", text)
        batch = with_column(batch, "folded", _replaced(batch["folded"], changed_K, folded))
    batch = with_column(batch, "furniture", pa.array(furniture_D))
    return with_column(batch, "lines_removed", pa.array(of_document(dropped_L).astype(np.int64)))
