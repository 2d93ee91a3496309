"""Keep what the model will be asked out of the training text: the run's own question sets, and benchmarks.

Question sets: a document is contaminated when its folded text contains the whole folded prompt of a "test" question. A
short prompt ("3 + 4 =") stands in innocent text too, so a prompt of fewer than `SHORT` folded bytes counts only
together with its right answer. A match neither begins nor ends inside an English word or a number.

Benchmarks: a document is contaminated when it shares an n-gram with an item (ngrams.py: 13 words or 26 Han characters
in a row). It is dropped, or the shared text is cut out with 200 characters on both sides, as for GPT-3 (Brown et al.
2020, appendix C): pieces of fewer than 200 characters go too, and a document of more than 10 pieces is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from xmodel.console import log
from xmodel.corpus.batches import alive, mark, with_column
from xmodel.corpus.benchmarks import Benchmark
from xmodel.corpus.folding import fold, fold_texts
from xmodel.corpus.ngrams import NGrams, index_texts, search
from xmodel.corpus.search import Phrases, find, index_phrases
from xmodel.corpus.utf8 import byte_lengths

SHORT = 40  # bytes: about seven English words or thirteen Han characters
MARGIN = 200  # characters cut on both sides of shared text, and the least that a remaining piece must have
MOST_PIECES = 10
OVERLAP = pa.list_(pa.int32())


def _phrases(questions: Iterable[dict[str, Any]]) -> dict[bytes, str]:
    """The folded phrases that no training document may contain, one per distinct test question, and each one's set."""
    tests = [question for question in questions if question["split"] == "test"]
    prompts = fold_texts([question["prompt"] for question in tests])
    solved = fold_texts([question["prompt"] + question["choices"][question["answer"]] for question in tests])
    phrases = (prompt if len(prompt) >= SHORT else whole for prompt, whole in zip(prompts, solved, strict=True))
    sets = (str(question.get("set", "questions")) for question in tests)
    return {phrase: name for phrase, name in zip(phrases, sets, strict=True) if phrase}


class Held:
    """What is held out: question sets and benchmarks, indexed. Items are numbered through all of them.

    Args:
        questions: the run's own question sets.
        benchmarks: of `load_benchmarks`.
    """

    def __init__(self, questions: Iterable[dict[str, Any]] = (), benchmarks: Iterable[Benchmark] = ()) -> None:
        phrases = _phrases(questions)
        ordered = sorted(phrases, key=lambda phrase: (phrases[phrase], phrase))
        self.names: list[str] = []  # of sets and benchmarks, in the order of their items
        self.items: list[int] = []  # how many items each has
        for name in dict.fromkeys(phrases[phrase] for phrase in ordered):
            self.names.append(name)
            self.items.append(sum(own == name for own in phrases.values()))
        self.phrases: Phrases | None = index_phrases(ordered) if ordered else None
        texts: list[str] = []
        owners: list[int] = []
        item = len(ordered)
        for benchmark in benchmarks:
            self.names.append(benchmark.name)
            self.items.append(len(benchmark.items))
            for own in benchmark.items:
                texts += own
                owners += [item] * len(own)
                item += 1
        self.ngrams: NGrams | None = index_texts(texts, np.array(owners)) if texts else None
        self.starts = np.concatenate(([0], np.cumsum(self.items))).astype(np.int64)  # first item of each
        searched = np.zeros(item, bool)  # items that can be found at all
        searched[: len(ordered)] = True
        if self.ngrams is not None:
            whole: dict[int, list[str]] = {}
            for text, owner in zip(texts, owners, strict=True):
                whole.setdefault(owner, []).append(text)
            for owner in whole.keys() - set(self.ngrams.items_E.tolist()):  # each text by itself is too short
                texts.append("\n".join(whole[owner]))
                owners.append(owner)
            self.ngrams = index_texts(texts, np.array(owners))
            searched[self.ngrams.items_E] = True
        self.searched = [int(searched[a:b].sum()) for a, b in zip(self.starts[:-1], self.starts[1:], strict=True)]


def decontamination(
    questions: Iterable[dict[str, Any]],
    benchmarks: Iterable[Benchmark] = (),
    contaminated: Literal["drop_document", "drop_span"] = "drop_document",
) -> Callable[[pa.RecordBatch], pa.RecordBatch]:
    """The stage of `decontaminating`, for these questions and benchmarks."""
    held = Held(questions, benchmarks)
    if not held.names:
        return lambda batch: batch
    return lambda batch: decontaminating(batch, held, contaminated)


def decontaminating(
    batch: pa.RecordBatch, held: Held, contaminated: Literal["drop_document", "drop_span"] = "drop_document"
) -> pa.RecordBatch:
    """The stage that marks documents as "contaminated" or cuts out what they share; needs the column `folded`.

    Adds the column `overlap`, a list of the items met, numbered as in `held`: empty for most documents, and of the
    question sets the first that was met. Where text is cut out, `text` and `folded` are what is left, and the column
    `cut_bytes` says how many bytes of UTF-8 the text has lost (only with drop_span). Documents that have a reason to be
    dropped already are not looked at.
    """
    wanted_D = alive(batch)
    found: dict[int, list[int]] = {}
    drop_D = np.zeros(len(batch), bool)
    if held.phrases is not None:
        _, firsts_D = find(batch["folded"], held.phrases)
        drop_D = wanted_D & (firsts_D >= 0)
        found |= {int(row): [int(firsts_D[row])] for row in np.flatnonzero(drop_D)}
    texts: dict[int, str] = {}
    if held.ngrams is not None:
        hits_H4 = search(batch["folded"], wanted_D, held.ngrams)
        for row in np.unique(hits_H4[:, 0]).tolist():
            own_H4 = hits_H4[hits_H4[:, 0] == row]
            found.setdefault(row, []).extend(np.unique(own_H4[:, 1]).tolist())
            left = cut(batch["text"][row].as_py(), own_H4[:, 2:].tolist()) if contaminated == "drop_span" else ""
            if left:
                texts[row] = left
            else:
                drop_D[row] = True
    if contaminated == "drop_span":
        batch = _with_texts(batch, {row: text for row, text in texts.items() if not drop_D[row]})
    lists = pa.array([found.get(row, []) for row in range(len(batch))] if found else [[]] * len(batch), OVERLAP)
    return mark(with_column(batch, "overlap", lists), ["contaminated"], np.where(drop_D, 0, -1))


def _with_texts(batch: pa.RecordBatch, texts: dict[int, str]) -> pa.RecordBatch:
    before_D = byte_lengths(batch["text"]) if len(batch) else np.zeros(0, np.int64)
    if texts:
        column = pa.array([texts.get(row, text) for row, text in enumerate(batch["text"].to_pylist())], pa.string())
        batch = with_column(with_column(batch, "text", column), "folded", fold(column))
        return with_column(batch, "cut_bytes", pa.array(before_D - byte_lengths(column)))
    return with_column(batch, "cut_bytes", pa.array(np.zeros(len(batch), np.int64)))


def cut(text: str, spans: list[list[int]]) -> str:
    """The text without what lies within `MARGIN` characters of the spans; "" if too little or too many pieces remain.

    Args:
        spans: bytes [first, last) of the folded text.
    """
    pieces: list[str] = []
    begin = 0
    for first, last in _merged(text, sorted(spans)):
        pieces.append(text[begin:first])
        begin = last
    pieces.append(text[begin:])
    kept = [piece.strip() for piece in pieces if len(piece.strip()) >= MARGIN]
    return "\n\n".join(kept) if len(kept) <= MOST_PIECES else ""


def _merged(text: str, spans: list[list[int]]) -> list[tuple[int, int]]:
    """What is cut, in characters of the text, apart from each other."""
    folded: list[list[int]] = []
    for first, last in spans:
        if folded and first <= folded[-1][1]:
            folded[-1][1] = max(folded[-1][1], last)
        else:
            folded.append([first, last])
    merged: list[tuple[int, int]] = []
    for first, last in folded:
        start, stop = max(_character(text, first) - MARGIN, 0), _character(text, last) + MARGIN
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return merged


def _character(text: str, position: int) -> int:
    """How many characters of the text fold to at most `position` bytes: by bisection, since folding goes character by
    character and remembers no places."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if len(fold_texts([text[:middle]])[0]) <= position:
            low = middle
        else:
            high = middle - 1
    return low


class Overlaps:
    """What was found of each set and benchmark; counts of parts of a corpus merge by addition."""

    def __init__(self, held: Held) -> None:
        self.held = held
        self.met = np.zeros(int(held.starts[-1]), bool)  # items found
        self.documents = np.zeros(len(held.names), np.int64)  # documents that share text with one of its items

    def add(self, batch: pa.RecordBatch) -> None:
        """Count a batch that has gone through `decontaminating`."""
        column = batch["overlap"]
        items = column.flatten().to_numpy()
        if len(items) == 0:
            return
        self.met[items] = True
        documents = np.repeat(np.arange(len(batch)), column.value_lengths().to_numpy())
        owners = np.searchsorted(self.held.starts, items, side="right") - 1
        pairs = np.unique(np.stack([documents, owners]), axis=1)
        self.documents += np.bincount(pairs[1], minlength=len(self.documents))

    def __iadd__(self, other: Overlaps) -> Overlaps:
        self.met |= other.met
        self.documents += other.documents
        return self

    def describe(self) -> dict[str, Any]:
        """The funnel's section `decontamination`: for each set and benchmark its "items", how many of them are
        "searched" for (the others are shorter than 8 words or 16 characters, or made of templates), how many were
        "found", and how many "documents" hold one."""
        bounds = zip(self.held.starts[:-1], self.held.starts[1:], strict=True)
        found = [int(self.met[first:last].sum()) for first, last in bounds]
        rows = zip(self.held.names, self.held.items, self.held.searched, found, self.documents.tolist(), strict=True)
        return {
            name: {"items": items, "searched": searched, "found": met, "documents": documents}
            for name, items, searched, met, documents in rows
        }


def warn_of_unmatched(section: dict[str, Any]) -> None:
    """Say aloud which benchmarks were met nowhere: the corpus is clean of them, or they are not what they seem."""
    unmatched = [name for name, row in section.items() if not row["found"]]
    for name in unmatched:
        row = section[name]
        log(
            f"corpus: decontamination met none of the {row['items']} items of {name} ({row['searched']} long enough to "
            "be searched for); if that is a surprise, look at the folder's files"
        )
