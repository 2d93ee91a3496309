"""A model as it is used: memory-mapped files that all worker processes share, and the scoring of text.

| file             | holds                                                                                           |
|------------------|-------------------------------------------------------------------------------------------------|
| `manifest.json`  | format, order, n-grams per order, kind of units, size and checksum of the other files           |
| `vocabulary.npy` | uint64 [S, 2]: open-addressing table of word hashes and ids (units.py)                          |
| `words.npy`      | uint8: the words' UTF-8, one after another                                                      |
| `ends.npy`       | int64 [V]: where each word ends                                                                 |
| `unigrams.npy`   | float32 [V, 2]: log10 of probability and back-off of each word                                  |
| `ngrams.npy`     | uint64 [T, 2]: open-addressing table of all longer n-grams, two thirds full: 64-bit hash of the |
|                  | words (0: free), then log10 of probability and back-off as two float32                          |

An n-gram takes 24 bytes, and looking it up touches one cache line. Two n-grams of one hash are refused when the table
is built; one that is not in the model is taken for one that is with a chance of 10^-11 a look-up among 10^8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np
import pyarrow as pa

from xmodel.corpus.kneser_ney.estimate import NGrams
from xmodel.corpus.kneser_ney.units import BEGIN, END, UNKNOWN, UnitKind, Vocabulary, identify
from xmodel.errors import MachineError, UserError
from xmodel.files import atomic_folder, checksum, read_json, write_json

FORMAT = 1
FILES = ("vocabulary", "words", "ends", "unigrams", "ngrams")
CONTINUED = np.float32(-1e-30)  # a back-off of 1 of an n-gram that others begin with; 0: no other begins with it
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass
class LanguageModel:
    """A model, ready to score."""

    order: int
    counts: list[int]  # n-grams of each order
    units: UnitKind
    vocabulary: Vocabulary
    unigrams_V2: np.ndarray  # float32
    ngrams_T2: np.ndarray  # uint64


class Scores(NamedTuple):
    """Scores of D documents, which have L paragraphs (lines with a unit) and T units in all, ends of lines counted."""

    logs_T: np.ndarray  # float32: log10 of the probability of each unit after those before it
    logs_L: np.ndarray  # float64: log10 of the probability of each paragraph, its end included
    units_L: np.ndarray  # int64: units of each paragraph, its end included
    unknown_L: np.ndarray  # int64: units of each paragraph that are not in the vocabulary
    ends_D1: np.ndarray  # int64: the paragraphs of document d are ends_D1[d] to ends_D1[d + 1]


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────────────────


@numba.njit(cache=True, nogil=True)
def _longer_hash(value, word):
    """Hash of an n-gram from the hash of all its words but the first, and the first."""
    value = (value + np.uint64(word) + np.uint64(1)) * MULTIPLIER
    return value ^ (value >> np.uint64(32))


@numba.njit(cache=True, nogil=True)
def _find(ngrams_T2, value):
    """The slot where a hash stands or would stand."""
    slots = np.uint64(len(ngrams_T2))
    slot = ((value & np.uint64(0xFFFFFFFF)) * slots) >> np.uint64(32)
    while ngrams_T2[slot, 0] != 0 and ngrams_T2[slot, 0] != value:
        slot += np.uint64(1)
        if slot == slots:
            slot = np.uint64(0)
    return slot


@numba.njit(cache=True, nogil=True)
def _insert(words_Gn, logs_G2, unigrams_V2, ngrams_T2, logs_T4):
    """Put n-grams into the table, after all shorter ones.

    Returns:
        The row of an n-gram that is there already, or whose words but the first or but the last are not; else -1.
    """
    order = words_Gn.shape[1]
    for row in range(len(words_Gn)):
        value = np.uint64(0)
        context = np.uint64(0)
        for column in range(order - 1, 0, -1):
            value = _longer_hash(value, words_Gn[row, column])
            context = _longer_hash(context, words_Gn[row, column - 1])
        if order == 2:
            if unigrams_V2[words_Gn[row, 0], 1] == 0:
                unigrams_V2[words_Gn[row, 0], 1] = CONTINUED
        else:
            if ngrams_T2[_find(ngrams_T2, value), 0] == 0:
                return row
            slot = _find(ngrams_T2, context)
            if ngrams_T2[slot, 0] == 0:
                return row
            if logs_T4[slot, 3] == 0:
                logs_T4[slot, 3] = CONTINUED
        value = _longer_hash(value, words_Gn[row, 0])
        slot = _find(ngrams_T2, value)
        if ngrams_T2[slot, 0] != 0:
            return row
        ngrams_T2[slot, 0] = value
        logs_T4[slot, 2] = logs_G2[row, 0]
        logs_T4[slot, 3] = logs_G2[row, 1]
    return -1


def write_model(
    folder: Path,
    vocabulary: Vocabulary,
    counts: list[int],
    ngrams: Callable[[int], Iterable[NGrams]],
    *,
    units: UnitKind,
) -> None:
    """Write a model folder, atomically.

    Args:
        folder: replaced if it exists.
        vocabulary: of V words.
        counts: n-grams of each order; counts[0] is V.
        ngrams: order -> its n-grams in blocks (`Estimate.ngrams`, or those of `arpa.read_arpa`).
        units: what the text was split into.

    Raises:
        UserError: an n-gram stands there twice, or without the shorter ones that scoring needs.
    """
    size = vocabulary.size
    unigrams_V2 = np.full((size, 2), -99.0, np.float32)
    for block in ngrams(1):
        unigrams_V2[block.words_Gn[:, 0]] = block.logs_G2
    with atomic_folder(folder) as partial:
        path = partial / "ngrams.npy"
        shape = (sum(counts[1:]) * 3 // 2 + 1, 2)
        if shape[0] >= 1 << 32:
            raise UserError(f"{sum(counts[1:]):,} n-grams are too many for one model; prune more, or lower the order")
        ngrams_T2 = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint64, shape=shape)
        for order in range(2, len(counts) + 1):
            for block in ngrams(order):
                wrong = _insert(block.words_Gn, block.logs_G2, unigrams_V2, ngrams_T2, ngrams_T2.view(np.float32))
                if wrong >= 0:
                    words = vocabulary.words()
                    text = " ".join(words[number] for number in block.words_Gn[wrong])
                    raise UserError(
                        f"the n-gram `{text}` stands there twice, or the model lacks its beginning or its end"
                    )
        ngrams_T2.flush()
        del ngrams_T2
        np.save(partial / "vocabulary.npy", vocabulary.slots_S2)
        np.save(partial / "ends.npy", vocabulary.ends_V[:size])
        np.save(partial / "words.npy", vocabulary.words_X[: vocabulary.ends_V[size - 1]])
        np.save(partial / "unigrams.npy", unigrams_V2)
        files = {}
        for name in FILES:
            path = partial / f"{name}.npy"
            files[path.name] = {"bytes": path.stat().st_size, "blake2b": checksum(path)}
        manifest = {"format": FORMAT, "order": len(counts), "counts": counts, "units": units, "files": files}
        write_json(partial / "manifest.json", manifest)


def load_model(folder: Path) -> LanguageModel:
    """Open a model folder; its files are mapped, not read into memory.

    Raises:
        MachineError: a file is missing or is not what was written.
    """
    manifest = read_json(folder / "manifest.json")
    if manifest["format"] != FORMAT:
        raise MachineError(f"{folder}: a model of format {manifest['format']}, not {FORMAT}; make it anew")
    arrays = {}
    for name, written in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != written["bytes"] or checksum(path) != written["blake2b"]:
            raise MachineError(f"{path}: missing or damaged; make the model anew")
        # Copy on write: an array that may be written has the type that the kernels were compiled for.
        arrays[path.stem] = np.asarray(np.load(path, mmap_mode="c"))
    vocabulary = Vocabulary(arrays["vocabulary"], arrays["words"], arrays["ends"], len(arrays["ends"]))
    order, counts = manifest["order"], manifest["counts"]
    return LanguageModel(order, counts, manifest["units"], vocabulary, arrays["unigrams"], arrays["ngrams"])


# ── scoring ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@numba.njit(cache=True, nogil=True)
def _score(ids_T, ends_D1, order, unigrams_V2, ngrams_T2, logs_T4):
    lines = 0
    for token in range(len(ids_T)):
        lines += ids_T[token] == END
    logs_T = np.empty(len(ids_T), np.float32)
    logs_L = np.zeros(lines, np.float64)
    units_L = np.zeros(lines, np.int64)
    unknown_L = np.zeros(lines, np.int64)
    line_ends_D1 = np.zeros(len(ends_D1), np.int64)
    # What the next word is scored after: the last words, the latest first, as far as n-grams of the model begin with
    # them, and for each number of them the weight of not finding a longer n-gram.
    context_N = np.zeros(order + 1, np.int64)
    backoffs_N = np.zeros(order + 1, np.float32)
    begin_length = 1 if order > 1 and unigrams_V2[BEGIN, 1] != 0 else 0
    line = 0
    for document in range(len(ends_D1) - 1):
        length = begin_length
        context_N[0] = BEGIN
        backoffs_N[0] = unigrams_V2[BEGIN, 1]
        for token in range(ends_D1[document], ends_D1[document + 1]):
            word = ids_T[token]
            log = unigrams_V2[word, 0]
            backoff = unigrams_V2[word, 1]
            value = _longer_hash(np.uint64(0), word)
            next_length = 1 if backoff != 0 else 0
            known = 0  # words of the context that are part of the longest n-gram found
            while known < length:
                value = _longer_hash(value, context_N[known])
                slot = _find(ngrams_T2, value)
                if ngrams_T2[slot, 0] == 0:
                    break
                log = logs_T4[slot, 2]
                backoffs_N[known] = backoff  # this place is read no more: now it belongs to the next word's context
                backoff = logs_T4[slot, 3]
                known += 1
                if backoff != 0:
                    next_length = known + 1
            for number in range(known, length):
                log += backoffs_N[number]
            logs_T[token] = log
            logs_L[line] += log
            units_L[line] += 1
            unknown_L[line] += word == UNKNOWN
            if word == END:
                line += 1
                length = begin_length
                context_N[0] = BEGIN
                backoffs_N[0] = unigrams_V2[BEGIN, 1]
            else:
                backoffs_N[known] = backoff
                length = min(next_length, order - 1)
                for number in range(length - 1, 0, -1):
                    context_N[number] = context_N[number - 1]
                context_N[0] = word
        line_ends_D1[document + 1] = line
    return logs_T, logs_L, units_L, unknown_L, line_ends_D1


def score(column: pa.Array, model: LanguageModel) -> Scores:
    """Score D documents, given as a string column, paragraph by paragraph."""
    ids_T, ends_D1 = identify(column, model.vocabulary, kind=model.units)
    table = model.ngrams_T2
    return Scores(*_score(ids_T, ends_D1, model.order, model.unigrams_V2, table, table.view(np.float32)))


def perplexities(logs: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Perplexity per unit; NaN where there is no unit."""
    return np.where(units > 0, 10.0 ** (-logs / np.maximum(units, 1)), np.nan)


def document_sums(values_L: np.ndarray, ends_D1: np.ndarray) -> np.ndarray:
    """Sum the paragraphs' values of each document."""
    sums = np.concatenate([[0], np.cumsum(values_L)])
    return sums[ends_D1[1:]] - sums[ends_D1[:-1]]
