"""One pass over the words of a batch: repeated n-grams (the Gopher family), and function words by language.

The unit is the word in English and the character in Chinese: a unit is one Han character, or a run of letters and
digits of other scripts (with underscores inside: an identifier is one word), ASCII capitals taken as small letters.
Punctuation, signs and white space separate units and
are none, so a table's rules and dot leaders repeat nothing. n-grams are compared by 64-bit hashes.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cache

import numba
import numpy as np
import pyarrow as pa

from xmodel.corpus.languages import LANGUAGES, function_words
from xmodel.corpus.measures import CLASS, DIGITS, HAN, LATIN, SYMBOLS, class_table
from xmodel.corpus.utf8 import code_point, utf8_buffers

TOP_NGRAMS = (2, 3, 4)  # of these the commonest is looked for
DUPLICATE_NGRAMS = (5, 6, 7, 8, 9, 10)  # of these all that occur again
MOST_UNITS = 1 << 20  # of a longer document only so many are looked at, so that memory stays bounded


class Repetition(IntEnum):
    """Columns of the counts."""

    UNITS = 0
    UNIT_CHARACTERS = 1  # characters of all units
    TOP_2 = 2  # characters of the commonest bigram times its occurrences (if two or more); of equals, the longest
    TOP_3 = 3
    TOP_4 = 4
    DUPLICATE_5 = 5  # characters of 5-grams that stood before, going on behind each that is found
    DUPLICATE_6 = 6
    DUPLICATE_7 = 7
    DUPLICATE_8 = 8
    DUPLICATE_9 = 9
    DUPLICATE_10 = 10
    ENGLISH_WORDS = 11  # function words of English
    OTHER_WORDS = 12  # function words of that other language in Latin script which has most
    STOP_WORDS_EN = 13  # different stop words met
    STOP_WORDS_ZH = 14


UNITS, UNIT_CHARACTERS = int(Repetition.UNITS), int(Repetition.UNIT_CHARACTERS)
TOP_2, DUPLICATE_5, ENGLISH_WORDS = int(Repetition.TOP_2), int(Repetition.DUPLICATE_5), int(Repetition.ENGLISH_WORDS)
OTHER_WORDS = int(Repetition.OTHER_WORDS)
STOP_WORDS_EN, STOP_WORDS_ZH = int(Repetition.STOP_WORDS_EN), int(Repetition.STOP_WORDS_ZH)
COUNTS = len(Repetition)
SPOKEN = len(LANGUAGES)

UNDERSCORE = 95
BASE = np.uint64(0xD6E8FEB86659FD93)
SPREAD = np.uint64(0x9E3779B97F4A7C15)
START = np.uint64(0xCBF29CE484222325)


def _unit_hash(unit: str) -> int:
    """What `_repetition` makes of a unit."""
    value = int(START)
    for character in unit:
        value = (value ^ ord(character)) * int(BASE) % 2**64
    return value ^ value >> 31


@cache
def function_word_table() -> tuple[np.ndarray, np.ndarray]:
    """Open addressing by hash, 0 for a free slot: keys_S uint64, and values_S2 uint32, as `function_words` has them."""
    words = function_words()
    keys_S, values_S2 = np.zeros(1 << 13, np.uint64), np.zeros((1 << 13, 2), np.uint32)
    for word, value in words.items():
        key = _unit_hash(word)
        slot = key & (len(keys_S) - 1)
        while keys_S[slot]:
            slot = (slot + 1) & (len(keys_S) - 1)
        keys_S[slot], values_S2[slot] = key, value
    return keys_S, values_S2


@numba.njit(cache=True, nogil=True)
def _slot(keys_S, shift, value):
    """Where the hash is, or the free slot where it belongs."""
    slot = (value * SPREAD) >> shift
    while keys_S[slot] != 0 and keys_S[slot] != value:
        slot = (slot + np.uint64(1)) & np.uint64(len(keys_S) - 1)
    return slot


@numba.njit(cache=True, nogil=True)
def _power(n):
    power = np.uint64(1)
    for _ in range(n):
        power *= BASE
    return power


@numba.njit(cache=True, nogil=True)
def _top_ngram(prefix_U1, ends_U1, units, n, keys_S, numbers_S, shift):
    """Occurrences of the commonest n-gram, and its characters; of equals, the longest."""
    power = _power(n)
    keys_S[:] = 0
    most = longest = 0
    for unit in range(units - n + 1):
        value = (prefix_U1[unit + n] - prefix_U1[unit] * power) | np.uint64(1)
        slot = _slot(keys_S, shift, value)
        number = numbers_S[slot] + 1 if keys_S[slot] != 0 else 1
        keys_S[slot] = value
        numbers_S[slot] = number
        if number >= most:
            length = ends_U1[unit + n] - ends_U1[unit]
            if number > most or length > longest:
                most = number
                longest = length
    return most, longest


@numba.njit(cache=True, nogil=True)
def _duplicate_ngrams(prefix_U1, ends_U1, units, n, keys_S, shift):
    """Characters of n-grams that stood before; what is found is passed over as a whole, so none is counted twice."""
    power = _power(n)
    keys_S[:] = 0
    characters = 0
    unit = 0
    while unit <= units - n:
        value = (prefix_U1[unit + n] - prefix_U1[unit] * power) | np.uint64(1)
        slot = _slot(keys_S, shift, value)
        if keys_S[slot] == 0:
            keys_S[slot] = value
            unit += 1
        else:
            characters += ends_U1[unit + n] - ends_U1[unit]
            unit += n
    return characters


@numba.njit(cache=True, nogil=True)
def _repetition(offsets_D1, data_X, classes, word_keys_S, word_values_S2):
    documents = len(offsets_D1) - 1
    counts_DR = np.zeros((documents, COUNTS), np.int64)
    longest = 0
    for document in range(documents):
        longest = max(longest, offsets_D1[document + 1] - offsets_D1[document])
    capacity = min(longest, MOST_UNITS) + 1
    prefix_U1 = np.zeros(capacity, np.uint64)  # polynomial hash of the units up to each one
    ends_U1 = np.zeros(capacity, np.int64)  # their characters
    slots = 64
    while slots < 2 * capacity:
        slots *= 2
    keys_S = np.zeros(slots, np.uint64)
    numbers_S = np.zeros(slots, np.int32)
    spoken_L = np.zeros(SPOKEN, np.int64)
    word_mask = np.uint64(len(word_keys_S) - 1)

    for document in range(documents):
        counts = counts_DR[document]
        position = offsets_D1[document]
        end = offsets_D1[document + 1]
        units = 0
        value = START
        length = 0  # characters of the unit
        spoken_L[:] = 0
        stops = np.uint32(0)
        while position <= end and units < capacity - 1:
            point, width = (np.int64(10), 1) if position == end else code_point(data_X, position)
            kind = classes[point] & CLASS if point < 0x10000 else (HAN if 0x20000 <= point < 0x40000 else SYMBOLS)
            if (LATIN <= kind <= DIGITS and (kind != HAN or length == 0)) or (point == UNDERSCORE and length > 0):
                value = (value ^ np.uint64(point + 32 if 65 <= point <= 90 else point)) * BASE
                length += 1
                position += width
                if kind != HAN:
                    continue
            elif kind != HAN:
                position += width
            if length > 0:  # the unit is complete; a Han character that ended it is read again
                value ^= value >> np.uint64(31)
                prefix_U1[units + 1] = prefix_U1[units] * BASE + value
                ends_U1[units + 1] = ends_U1[units] + length
                units += 1
                slot = value & word_mask
                while word_keys_S[slot] != 0 and word_keys_S[slot] != value:
                    slot = (slot + np.uint64(1)) & word_mask
                if word_keys_S[slot] != 0:
                    stops |= word_values_S2[slot, 1]
                    languages = word_values_S2[slot, 0]
                    language = 0
                    while languages != 0:
                        spoken_L[language] += languages & np.uint32(1)
                        languages >>= np.uint32(1)
                        language += 1
                value = START
                length = 0

        counts[UNITS] = units
        counts[UNIT_CHARACTERS] = ends_U1[units]
        counts[ENGLISH_WORDS] = spoken_L[0]
        counts[OTHER_WORDS] = spoken_L[1:].max()
        for bit in range(8):
            counts[STOP_WORDS_EN] += (stops >> np.uint32(bit)) & np.uint32(1)
            counts[STOP_WORDS_ZH] += (stops >> np.uint32(bit + 8)) & np.uint32(1)

        bits = 6
        while (1 << bits) < 2 * units:
            bits += 1
        shift = np.uint64(64 - bits)
        own_S = keys_S[: 1 << bits]  # a small document has a small table, which stays in the cache
        for n in TOP_NGRAMS:
            most, characters = _top_ngram(prefix_U1, ends_U1, units, n, own_S, numbers_S, shift)
            if most < 2:  # then no longer n-gram occurs twice either
                break
            counts[TOP_2 + n - 2] = most * characters
        else:
            for n in DUPLICATE_NGRAMS:
                counts[DUPLICATE_5 + n - 5] = _duplicate_ngrams(prefix_U1, ends_U1, units, n, own_S, shift)
                if counts[DUPLICATE_5 + n - 5] == 0:
                    break
    return counts_DR


def repetition(column: pa.Array) -> np.ndarray:
    """Count in D documents; source of the definitions: Rae et al. 2021 (Gopher), appendix A.1.1.

    Returns:
        counts_DR: int64 [D, len(Repetition)].
    """
    return _repetition(*utf8_buffers(column), class_table(), *function_word_table())
