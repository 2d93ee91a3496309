"""Runs of words that documents share with given texts: the index of n-grams behind decontamination.

A text is a sequence of units: words (letters and digits of any alphabet) and single Han or kana characters; white
space, punctuation and symbols stand between units and do not matter. A word weighs 2, a character 1, and an n-gram is
the shortest run of units that weighs `SPAN` = 26: 13 words, the number of GPT-3 (Brown et al. 2020, appendix C), or
26 Han characters. Thirteen characters are too few: a Chinese word has about one and a half to two of them, so 13
characters are 7 or 8 words, and turns of phrase of that length stand in unrelated documents: in 14 MB of Chinese prose
1.1 % of runs of 80 characters have 13 in a row in common with another document, 0.1 % have 20 or more, which are
quotations (benchmarks/decontaminate.py); a real corpus is 10^5 times as long, so the span stays well above that.
A text lighter than `SPAN`, but not lighter than `SHORT` = 16 (8 words), is one n-gram as a whole.

Units are hashed, and a polynomial hash (Karp and Rabin, 1987) of the units slides over the document; 64 bits, compared
without looking at the text again: a million n-grams against 10^12 words meet by chance with probability 0.05.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import pyarrow as pa

from xmodel.corpus.folding import fold
from xmodel.corpus.utf8 import utf8_buffers

WORD, CHARACTER = 2, 1
SPAN = 26
SHORT = 16
COMMON = 10  # an n-gram of more items than this is a template of its benchmark ("which of the following ...")
RING = 64  # units remembered; an n-gram has at most SPAN of them
BASE = np.uint64(0x9E3779B97F4A7C15)
MIX = np.uint64(0xD6E8FEB86659FD93)


@dataclass(frozen=True)
class NGrams:
    """An index of E entries; made by `index_texts`."""

    keys_E: np.ndarray  # uint64: hash of the n-gram, or of the end of a short text
    wholes_E: np.ndarray  # uint64: hash of the whole short text; 0 for an n-gram
    units_E: np.ndarray  # int32: units of the whole short text, or of the n-gram
    items_E: np.ndarray  # int32: which item the entry belongs to
    next_E: np.ndarray  # int32: the next entry of the same slot, -1 for none
    slots_S: np.ndarray  # int32, S a power of two: first entry of the slot, -1 for none
    bits_B: np.ndarray  # uint8, B a power of two: a bit for each key, looked at first since it fits the cache


@numba.njit(cache=True, nogil=True)
def _mixed(value):
    value ^= value >> np.uint64(32)
    value *= MIX
    return value ^ (value >> np.uint64(29))


@numba.njit(cache=True, nogil=True)
def _next_unit(data_X, position, end):
    """The next unit from `position` on: (hash, weight, first byte, byte after it); weight 0: none is left."""
    value = np.uint64(0)
    first = position
    inside = False
    while position < end:
        lead = data_X[position]
        if lead < 0x80:
            if (97 <= lead <= 122) or (48 <= lead <= 57) or (65 <= lead <= 90):
                if not inside:
                    first = position
                    inside = True
                value = (value ^ np.uint64(lead)) * BASE
                position += 1
                continue
            position += 1
            if inside:
                return _mixed(value), WORD, first, position - 1
            continue
        width = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
        second = data_X[position + 1]
        # U+3040 to U+9FFF and the planes of rare Han characters: a unit each
        if (0xE4 <= lead <= 0xE9) or (lead == 0xE3 and second > 0x80) or (lead == 0xF0 and 0xA0 <= second <= 0xB3):
            if inside:
                return _mixed(value), WORD, first, position
            for index in range(width):
                value = (value ^ np.uint64(data_X[position + index])) * BASE
            return _mixed(value), CHARACTER, position, position + width
        # Latin-1's signs, general punctuation and symbols, Chinese punctuation, presentation forms, emoji
        if lead == 0xC2 or lead == 0xE2 or lead == 0xE3 or lead == 0xEF or (lead == 0xF0 and second == 0x9F):
            if inside:
                return _mixed(value), WORD, first, position
            position += width
            continue
        if not inside:
            first = position
            inside = True
        for index in range(width):
            value = (value ^ np.uint64(data_X[position + index])) * BASE
        position += width
    if inside:
        return _mixed(value), WORD, first, end
    return value, 0, end, end


@numba.njit(cache=True, nogil=True)
def _keys(offsets_T1, data_X):
    """Every n-gram of T texts, and the short texts: (texts, keys, wholes, units), one row each."""
    room = np.int64(offsets_T1[-1] - offsets_T1[0]) + len(offsets_T1)
    texts = np.empty(room, np.int32)
    keys = np.empty(room, np.uint64)
    wholes = np.empty(room, np.uint64)
    units = np.empty(room, np.int32)
    count = 0
    prefix = np.zeros(room + 1, np.uint64)
    weight = np.zeros(room + 1, np.int64)
    for text in range(len(offsets_T1) - 1):
        position, end = np.int64(offsets_T1[text]), np.int64(offsets_T1[text + 1])
        number = 0
        left = 0
        found = False
        while True:
            value, heavy, _, position = _next_unit(data_X, position, end)
            if heavy == 0:
                break
            prefix[number + 1] = prefix[number] * BASE + value
            weight[number + 1] = weight[number] + heavy
            number += 1
            if weight[number] - weight[left] < SPAN:
                continue
            while weight[number] - weight[left + 1] >= SPAN:
                left += 1
            texts[count], keys[count] = text, _run(prefix, left, number)
            wholes[count], units[count] = 0, number - left
            count += 1
            found = True
        if not found and weight[number] >= SHORT:
            left = 0
            while weight[number] - weight[left + 1] >= SHORT:
                left += 1
            texts[count], keys[count] = text, _run(prefix, left, number)
            wholes[count], units[count] = _run(prefix, 0, number), number
            count += 1
    return texts[:count], keys[:count], wholes[:count], units[:count]


@numba.njit(cache=True, nogil=True)
def _run(prefix, left, right):
    """Hash of the units in (left, right]; never 0."""
    power = np.uint64(1)
    for _ in range(right - left):
        power *= BASE
    return _mixed(prefix[right] - prefix[left] * power + np.uint64(right - left)) | np.uint64(1)


def index_texts(texts: list[str], items_T: np.ndarray) -> NGrams:
    """Index T texts of the items `items_T` (int [T]); n-grams of more than `COMMON` items are left out."""
    texts_E, keys_E, wholes_E, units_E = _keys(*utf8_buffers(fold(pa.array([*texts, ""], pa.string()))))
    own_E = np.asarray(items_T, np.int32)[texts_E]
    order = np.lexsort((own_E, wholes_E, keys_E))
    keys_E, wholes_E, units_E, own_E = keys_E[order], wholes_E[order], units_E[order], own_E[order]
    new_key = np.ones(len(keys_E), bool)
    new_key[1:] = (keys_E[1:] != keys_E[:-1]) | (wholes_E[1:] != wholes_E[:-1])
    new = new_key.copy()
    new[1:] |= own_E[1:] != own_E[:-1]
    group = np.cumsum(new_key) - 1
    sharing = np.bincount(group[new], minlength=len(keys_E))
    kept = new & (sharing[group] <= COMMON) if len(keys_E) else new
    keys_E, wholes_E, units_E, own_E = keys_E[kept], wholes_E[kept], units_E[kept], own_E[kept]
    size = max(12, (2 * len(keys_E)).bit_length())
    slots_S, next_E, bits_B = _slots(keys_E, size)
    return NGrams(keys_E, wholes_E, units_E, own_E, next_E, slots_S, bits_B)


@numba.njit(cache=True, nogil=True)
def _slots(keys_E, size):
    slots_S = np.full(1 << size, -1, np.int32)
    next_E = np.full(len(keys_E), -1, np.int32)
    bits_B = np.zeros(1 << min(size, 22), np.uint8)  # eight to sixteen bits a key, 4 MB at most
    for entry in range(len(keys_E) - 1, -1, -1):
        key = keys_E[entry]
        slot = (key >> np.uint64(8)) & np.uint64(len(slots_S) - 1)
        next_E[entry] = slots_S[slot]
        slots_S[slot] = entry
        bits_B[(key >> np.uint64(11)) & np.uint64(len(bits_B) - 1)] |= np.uint8(1) << np.uint8(
            (key >> np.uint64(8)) & np.uint64(7)
        )
    return slots_S, next_E, bits_B


@numba.njit(cache=True, nogil=True)
def _search(offsets_D1, data_X, wanted_D, keys_E, wholes_E, units_E, items_E, next_E, slots_S, bits_B):
    hits = np.empty((64, 4), np.int32)  # document, item, first byte, byte after the last
    count = 0
    prefix = np.zeros(RING, np.uint64)
    weight = np.zeros(RING, np.int64)
    firsts = np.zeros(RING, np.int64)
    powers = np.ones(RING, np.uint64)
    for index in range(1, RING):
        powers[index] = powers[index - 1] * BASE
    for document in range(len(offsets_D1) - 1):
        if not wanted_D[document]:
            continue
        position, end = np.int64(offsets_D1[document]), np.int64(offsets_D1[document + 1])
        number = 0
        lefts = np.zeros(2, np.int64)  # where the n-gram and the short text's end begin
        prefix[0] = 0
        weight[0] = 0
        while True:
            value, heavy, first, position = _next_unit(data_X, position, end)
            if heavy == 0:
                break
            firsts[number & (RING - 1)] = first
            prefix[(number + 1) & (RING - 1)] = prefix[number & (RING - 1)] * BASE + value
            weight[(number + 1) & (RING - 1)] = weight[number & (RING - 1)] + heavy
            number += 1
            total = weight[number & (RING - 1)]
            for which in range(2):
                least = SPAN if which == 0 else SHORT
                left = lefts[which]
                if total - weight[left & (RING - 1)] < least:
                    continue
                while total - weight[(left + 1) & (RING - 1)] >= least:
                    left += 1
                lefts[which] = left
                run = prefix[number & (RING - 1)] - prefix[left & (RING - 1)] * powers[number - left]
                key = _mixed(run + np.uint64(number - left)) | np.uint64(1)
                bit = np.uint8(1) << np.uint8((key >> np.uint64(8)) & np.uint64(7))
                if bits_B[(key >> np.uint64(11)) & np.uint64(len(bits_B) - 1)] & bit == 0:
                    continue
                entry = slots_S[(key >> np.uint64(8)) & np.uint64(len(slots_S) - 1)]
                while entry >= 0:
                    if keys_E[entry] == key and (wholes_E[entry] == 0) == (which == 0):
                        begin = number - units_E[entry]
                        same = True
                        if which == 1:
                            same = begin >= 0
                            if same:
                                run = prefix[number & (RING - 1)] - prefix[begin & (RING - 1)] * powers[number - begin]
                                same = _mixed(run + np.uint64(number - begin)) | np.uint64(1) == wholes_E[entry]
                        if same:
                            if count == len(hits):
                                larger = np.empty((2 * count, 4), np.int32)
                                larger[:count] = hits
                                hits = larger
                            hits[count, 0] = document
                            hits[count, 1] = items_E[entry]
                            hits[count, 2] = firsts[begin & (RING - 1)] - offsets_D1[document]
                            hits[count, 3] = position - offsets_D1[document]
                            count += 1
                    entry = next_E[entry]
    return hits[:count]


def search(folded: pa.Array, wanted_D: np.ndarray, index: NGrams) -> np.ndarray:
    """The n-grams of the index that D folded documents hold.

    Args:
        wanted_D: bool [D], the documents to look at.

    Returns:
        int32 [H, 4]: document, item, first byte and byte after the last in the folded document; by document and place.
    """
    return _search(
        *utf8_buffers(folded), wanted_D, index.keys_E, index.wholes_E, index.units_E, index.items_E,
        index.next_E, index.slots_S, index.bits_B,
    )  # fmt: skip
