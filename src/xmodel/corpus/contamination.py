"""How much of what a model is asked stands in its training text: a report, long after the text was cleaned.

An item (a question with its right answer) is found in a document by the n-grams of decontamination (ngrams.py): folded
units, words and single Han characters, punctuation and case put aside. Overlapping n-grams of an item join to one run
of shared text. An item is *contaminated* where a run holds `WORDS` words, `CHARACTERS` Han characters, or a mixture in
proportion; a shorter item, where all of it stands in a document. Decontamination drops from 26 characters on, so what
is found here is what it was not asked to look for, or text that was not cleaned at all.

The corpus is read once, in batches that all cores search; of each item only its longest run is kept. Memory is that
of the items, and of two batches a core.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xmodel.corpus.folding import fold, fold_texts
from xmodel.corpus.ngrams import CHARACTER, NGrams, _next_unit, index_texts, search
from xmodel.corpus.utf8 import byte_lengths
from xmodel.errors import UserError

WORDS, CHARACTERS = 13, 30
EXAMPLES = 5  # of each set
SHOWN = 300  # characters of an example's text
BATCH_ROWS = 1024


class Asked(NamedTuple):
    """An item of an evaluation set, as the texts that give it away."""

    set: str
    id: str
    texts: list[str]


@numba.njit(cache=True, nogil=True)
def _amounts(data_X, first, last):
    """Words and single characters in data_X[first:last]."""
    words, characters = 0, 0
    position = first
    while True:
        _, weight, _, position = _next_unit(data_X, position, last)
        if weight == 0:
            return words, characters
        if weight == CHARACTER:
            characters += 1
        else:
            words += 1


def amounts(folded: bytes) -> tuple[int, int]:
    """Words and single characters of a folded text."""
    return _amounts(np.frombuffer(folded or b" ", np.uint8), 0, len(folded))


def scan(
    paths: Sequence[Path], asked: Sequence[Asked], done: Callable[[int], object] = lambda count: None
) -> dict[str, Any]:
    """Look for the items in the documents of Parquet files with the columns `id` and `text`.

    Args:
        done: called with the bytes of text that each batch had.

    Returns:
        sets: per set its "items", how many are "searched" for (the others have fewer than 8 words or 16 characters,
            or are made of phrases that more than 10 texts share), "found" (items that share any n-gram),
            "contaminated" (items, see the module), "documents" that hold a contaminated one.
        items: per contaminated item "set", "id", "share" (of its longest text, 0..1), "words", "characters" (of the
            longest run), "document" and "text" (folded, cut to `SHOWN` characters).
        examples: the first `EXAMPLES` of each set, by share.
        documents, bytes: what was read.

    Raises:
        UserError: nothing to look for, or a file without the columns.
    """
    if not asked:
        raise UserError("there is no item to look for")
    texts = [text for item in asked for text in item.texts]
    owners_T = np.repeat(np.arange(len(asked)), [len(item.texts) for item in asked])
    index = index_texts(texts, np.arange(len(texts)))
    sizes_T2 = np.array([amounts(folded) for folded in fold_texts(texts)], np.int64).reshape(-1, 2)
    best = _Best(asked, owners_T, sizes_T2)
    documents = 0
    for ids, folded, size, hits_H4 in _search_all(paths, index):
        best.add(ids, folded, hits_H4)
        documents += len(folded)
        best.bytes += size
        done(size)
    searched = np.zeros(len(asked), bool)
    searched[owners_T[np.unique(index.items_E)]] = True
    return best.describe(searched) | {"documents": documents, "bytes": best.bytes}


Searched = tuple[pa.Array, pa.Array, int, np.ndarray]  # ids, folded texts, bytes of text, rows of `search`


def _search_all(paths: Sequence[Path], index: NGrams) -> Iterator[Searched]:
    """Every batch of the files, in order. The kernels and Arrow hold no lock, so threads are enough."""

    def one(ids: pa.Array, column: pa.Array) -> Searched:
        folded = fold(column)
        size = int(byte_lengths(column).sum())
        return ids, folded, size, search(folded, np.ones(len(folded), bool), index)

    threads = os.cpu_count() or 1
    waiting: deque[Future[Searched]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for path in paths:
            for ids, column in _texts(path):
                waiting.append(pool.submit(one, ids, column))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _texts(path: Path) -> Iterator[tuple[pa.Array, pa.Array]]:
    with pq.ParquetFile(path) as file:
        if missing := {"id", "text"} - set(file.schema_arrow.names):
            raise UserError(f"{path}: has no column {' and no column '.join(sorted(missing))}")
        for batch in file.iter_batches(BATCH_ROWS, columns=["id", "text"]):
            yield batch["id"], batch["text"].cast(pa.string())


class _Best:
    """The longest run of each item so far, and the documents of each set."""

    def __init__(self, asked: Sequence[Asked], owners_T: np.ndarray, sizes_T2: np.ndarray) -> None:
        self.asked, self.owners_T, self.sizes_T2 = asked, owners_T, sizes_T2
        self.share_T = np.zeros(len(owners_T))
        self.runs: dict[int, dict[str, Any]] = {}  # of each text that was met its longest run
        self.met = np.zeros(len(asked), bool)
        self.sets = list(dict.fromkeys(item.set for item in asked))
        place = {name: number for number, name in enumerate(self.sets)}
        self.set_of = np.array([place[item.set] for item in asked])
        self.documents = np.zeros(len(self.sets), np.int64)
        self.bytes = 0

    def add(self, ids: pa.Array, folded: pa.Array, hits_H4: np.ndarray) -> None:
        """Take in the n-grams found in a batch: rows of document, text, first byte and byte after the last."""
        if not len(hits_H4):
            return
        hits_H4 = hits_H4[np.lexsort((hits_H4[:, 2], hits_H4[:, 1], hits_H4[:, 0]))]
        document_H, text_H, first_H, last_H = hits_H4.T
        self.met[self.owners_T[np.unique(text_H)]] = True
        new_H = np.ones(len(hits_H4), bool)  # where another run begins: another text, or a gap
        new_H[1:] = (document_H[1:] != document_H[:-1]) | (text_H[1:] != text_H[:-1]) | (first_H[1:] > last_H[:-1])
        starts = np.flatnonzero(new_H)
        ends_R = np.maximum.reduceat(last_H, starts)
        whole: int = -1
        data = b""
        touched: set[tuple[int, int]] = set()
        for start, end in zip(starts.tolist(), ends_R.tolist(), strict=True):
            document, text, first = int(document_H[start]), int(text_H[start]), int(first_H[start])
            if document != whole:
                whole, data = document, folded[document].as_py()
            run = data[first:end]
            words, characters = amounts(run)
            if _contaminates(words, characters, *self.sizes_T2[text]):
                touched.add((document, int(self.set_of[self.owners_T[text]])))
            share = min(1.0, (2 * words + characters) / max(1, 2 * self.sizes_T2[text, 0] + self.sizes_T2[text, 1]))
            if share > self.share_T[text]:
                self.share_T[text] = share
                self.runs[text] = {
                    "share": round(share, 4),
                    "words": words,
                    "characters": characters,
                    "document": str(ids[document].as_py()),
                    "text": run[: 4 * SHOWN].decode("utf-8", "ignore")[:SHOWN],
                }
        for _, number in touched:
            self.documents[number] += 1

    def describe(self, searched: np.ndarray) -> dict[str, Any]:
        """What `scan` returns of it."""
        longest: dict[int, dict[str, Any]] = {}
        for text, run in self.runs.items():
            item = int(self.owners_T[text])
            if _contaminates(run["words"], run["characters"], *self.sizes_T2[text]) and (
                item not in longest or run["share"] > longest[item]["share"]
            ):
                longest[item] = run
        items = [{"set": self.asked[item].set, "id": self.asked[item].id, **longest[item]} for item in sorted(longest)]
        sets, examples = [], []
        for number, name in enumerate(self.sets):
            own = self.set_of == number
            found = [row for row in items if row["set"] == name]
            sets.append(
                {
                    "set": name,
                    "items": int(own.sum()),
                    "searched": int((searched & own).sum()),
                    "found": int((self.met & own).sum()),
                    "contaminated": len(found),
                    "documents": int(self.documents[number]),
                }
            )
            examples += sorted(found, key=lambda row: -row["share"])[:EXAMPLES]
        return {"sets": sets, "items": items, "examples": examples}


def _contaminates(words: int, characters: int, all_words: int, all_characters: int) -> bool:
    """Whether a run of shared text is long enough, or the whole of a short text."""
    long = words * CHARACTERS + characters * WORDS >= WORDS * CHARACTERS
    return long or (words >= all_words and characters >= all_characters)
