"""Text to ids: the units that n-grams are made of, and their vocabulary.

Units are read from the folded form of the text (folding.py). A run of letters, marks and numbers is one unit, every
Han character, kana, punctuation mark and symbol is a unit of its own, white space only separates: so English goes by
word and Chinese by code point, in one document as well. ASCII digits count as 0, and a run is cut at 32 bytes, so that
numbers and base64 do not fill the vocabulary. A line is a paragraph: it ends with `</s>`; an empty line is none.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Literal

import numba
import numpy as np
import pyarrow as pa

from xmodel.corpus.folding import fold_table
from xmodel.corpus.utf8 import code_point, utf8_buffers

UNKNOWN, BEGIN, END = 0, 1, 2  # ids of <unk>, <s> and </s>, as in KenLM
SPECIAL = (b"<unk>", b"<s>", b"</s>")
FOLDED_BYTES = 32  # longest unit of folded text
PLAIN_BYTES = 1 << 16  # longest unit of plain text
ROOM = 64  # units and bytes for one code point more
ASTRAL = 0x10000  # code points from here on share one entry in the table of kinds

SPACE, LETTER, SINGLE, LINE_END = 0, 1, 2, 3  # kinds of code points
SEED = np.uint64(0xCBF29CE484222325)
PRIME = np.uint64(0x9E3779B97F4A7C15)

UnitKind = Literal["folded", "plain"]


@dataclass
class Vocabulary:
    """Words and their ids. Two words of one 64-bit hash would share an id: among 10^7 words a chance of 10^-6."""

    slots_S2: np.ndarray  # uint64, S a power of two, at most half full: hash of the word (0: free), its id
    words_X: np.ndarray  # uint8: the words' UTF-8, one after another, and room behind
    ends_V: np.ndarray  # int64: where word v ends; and room behind
    size: int

    def words(self) -> list[str]:
        """All words, for people and tests."""
        ends = [0, *self.ends_V[: self.size].tolist()]
        data = self.words_X[: ends[-1]].tobytes()
        return [data[begin:end].decode() for begin, end in pairwise(ends)]


def new_vocabulary() -> Vocabulary:
    """A vocabulary of `<unk>`, `<s>` and `</s>` alone."""
    slots_S2 = np.zeros((1 << 12, 2), np.uint64)
    for number, word in enumerate(SPECIAL):
        _put(slots_S2, np.uint64(hash_word(np.frombuffer(word, np.uint8))), np.uint64(number))
    words_X = np.zeros(1 << 12, np.uint8)
    data = b"".join(SPECIAL)
    words_X[: len(data)] = np.frombuffer(data, np.uint8)
    ends_V = np.zeros(1 << 10, np.int64)
    ends_V[:3] = np.cumsum([len(word) for word in SPECIAL])
    return Vocabulary(slots_S2, words_X, ends_V, 3)


@cache
def _tables(kind: UnitKind) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Folding table (starts int32 [65537], pieces uint8), kinds of code points uint8 [65537], longest unit in bytes."""
    if kind == "plain":
        encoded = [chr(point).encode("utf-8", "ignore") for point in range(ASTRAL)]
        starts = np.zeros(len(encoded) + 1, np.int32)
        np.cumsum([len(piece) for piece in encoded], out=starts[1:])
        kinds = np.full(ASTRAL + 1, LETTER, np.uint8)
        kinds[[0, 9, 13, 32]] = SPACE
        kinds[10] = LINE_END
        return starts, np.frombuffer(b"".join(encoded), np.uint8), kinds, PLAIN_BYTES
    starts, pieces = fold_table()
    digits = (pieces >= ord("0")) & (pieces <= ord("9"))
    pieces = np.frombuffer(np.where(digits, ord("0"), pieces).astype(np.uint8).tobytes(), np.uint8)
    kinds = np.array([*(_kind(chr(point)) for point in range(ASTRAL)), SINGLE], np.uint8)
    kinds[10] = LINE_END
    return starts, pieces, kinds, FOLDED_BYTES


def _kind(character: str) -> int:
    if character.isspace():
        return SPACE
    if unicodedata.category(character)[0] not in "LMN":
        return SINGLE
    name = unicodedata.name(character, "")
    return (
        SINGLE if name.startswith("CJK") or "KATAKANA" in name or "HIRAGANA" in name or character in "〇々" else LETTER
    )


@numba.njit(cache=True, nogil=True)
def hash_word(word_X):
    value = SEED
    for byte in word_X:
        value = (value ^ np.uint64(byte)) * PRIME
    return value


@numba.njit(cache=True, nogil=True)
def find_word(slots_S2, value):
    """Where a hash stands in the table, or where it would."""
    mask = np.uint64(len(slots_S2) - 1)
    slot = (value >> np.uint64(32)) & mask
    while slots_S2[slot, 0] != 0 and slots_S2[slot, 0] != value:
        slot = (slot + np.uint64(1)) & mask
    return slot


@numba.njit(cache=True, nogil=True)
def _put(slots_S2, value, number):
    slot = find_word(slots_S2, value)
    slots_S2[slot, 0] = value
    slots_S2[slot, 1] = number


@numba.njit(cache=True, nogil=True)
def add_word(slots_S2, words_X, ends_V, size, word_X, value):
    """Make a word that is not in a vocabulary its word number `size`; there has to be room for it."""
    begin = ends_V[size - 1]
    words_X[begin : begin + len(word_X)] = word_X
    ends_V[size] = begin + len(word_X)
    _put(slots_S2, value, np.uint64(size))


@numba.njit(cache=True, nogil=True)
def _rehash(slots_S2, larger_S2):
    for slot in range(len(slots_S2)):
        if slots_S2[slot, 0] != 0:
            _put(larger_S2, slots_S2[slot, 0], slots_S2[slot, 1])


def make_room(vocabulary: Vocabulary, words: int, size: int) -> None:
    """Make room for so many more words of so many bytes together."""
    needed = vocabulary.size + words
    if 2 * needed > len(vocabulary.slots_S2):
        larger_S2 = np.zeros((1 << (4 * needed).bit_length(), 2), np.uint64)
        _rehash(vocabulary.slots_S2, larger_S2)
        vocabulary.slots_S2 = larger_S2
    if needed > len(vocabulary.ends_V):
        vocabulary.ends_V = _longer(vocabulary.ends_V, vocabulary.size, needed)
    used = int(vocabulary.ends_V[vocabulary.size - 1])
    if used + size > len(vocabulary.words_X):
        vocabulary.words_X = _longer(vocabulary.words_X, used, used + size)


def _longer(array: np.ndarray, used: int, needed: int) -> np.ndarray:
    longer = np.empty(max(2 * len(array), needed), array.dtype)
    longer[:used] = array[:used]
    return longer


@numba.njit(cache=True, nogil=True)
def _identify(
    offsets_D1, data_X, starts, pieces, kinds, slots_S2, words_X, ends_V, grow, state_7, unit, ids_T, ends_D1
):
    """Read on until the end or until there is no room; numba counts references wherever an array is bound anew, so
    that arrays which grow within the loop would cost ten times the rest.

    state_7: document, place in the data, bytes of the unit being read, kind of the last code point, units so far, where
        the line began among them, words of the vocabulary.

    Returns:
        Whether all is read.
    """
    documents = len(offsets_D1) - 1
    document, position, length, last, count, line_begin, size = state_7
    value = hash_word(unit[:length])
    longest = len(unit)
    line_end = len(pieces)
    source_X = np.empty(line_end + 5, np.uint8)  # what is folded to: the table's pieces, a line end, a rare code point
    source_X[:line_end] = pieces
    source_X[line_end] = 10
    while document < documents:
        end = np.int64(offsets_D1[document + 1])
        while position <= end:
            full = grow and (
                2 * (size + ROOM) > len(slots_S2)
                or size + ROOM > len(ends_V)
                or ends_V[size - 1] + longest + ROOM > len(words_X)
            )
            if full or count + ROOM > len(ids_T):
                state_7[:] = (document, position, length, last, count, line_begin, size)
                return False
            if position == end or data_X[position] == 10:  # whatever the text folds to, its lines stay lines
                first, behind = line_end, line_end + 1
                position += 1
            else:
                point, width = code_point(data_X, position)
                position += width
                if point < ASTRAL:
                    first, behind = np.int64(starts[point]), np.int64(starts[point + 1])
                else:
                    first, behind = line_end + 1, line_end + 5
                    for at in range(4):
                        source_X[first + at] = data_X[position - 4 + at]
            while first < behind:
                point, width = code_point(source_X, first)
                kind = kinds[min(point, ASTRAL)]
                if length > 0 and (kind != LETTER or last != LETTER or length + width > longest):
                    slot = find_word(slots_S2, value)
                    number = np.int64(slots_S2[slot, 1])  # 0, unknown, where the slot is free
                    if grow and slots_S2[slot, 0] == 0:
                        add_word(slots_S2, words_X, ends_V, size, unit[:length], value)
                        number = size
                        size += 1
                    ids_T[count] = number if number > END else UNKNOWN
                    count += 1
                    length = 0
                    value = SEED
                if kind in (LETTER, SINGLE):
                    for at in range(first, first + width):
                        unit[length] = source_X[at]
                        length += 1
                        value = (value ^ np.uint64(source_X[at])) * PRIME
                elif kind == LINE_END and count > line_begin:
                    ids_T[count] = END
                    count += 1
                    line_begin = count
                last = np.int64(kind)
                first += width
        document += 1
        position = end
        line_begin = count
        ends_D1[document] = count
    state_7[4], state_7[6] = count, size
    return True


def identify(
    column: pa.Array, vocabulary: Vocabulary, *, kind: UnitKind = "folded", grow: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The ids of the units of D documents.

    Args:
        column: string column of D documents.
        vocabulary: its words; new ones are added when `grow`, otherwise they are `UNKNOWN`.
        kind: "folded" as described above; "plain": whatever white space separates, as it stands.
        grow: for training.

    Returns:
        ids_T: int32; every line with a unit ends with `END`. The reserved words, met in plain text, are `UNKNOWN`.
        ends_D1: int64; the units of document d are ids_T[ends_D1[d] : ends_D1[d + 1]].
    """
    if len(column) == 0:
        return np.zeros(0, np.int32), np.zeros(1, np.int64)
    offsets_D1, data_X = utf8_buffers(column)
    starts, pieces, kinds, longest = _tables(kind)
    unit = np.empty(longest, np.uint8)
    ids_T = np.empty(int(offsets_D1[-1] - offsets_D1[0]) // 3 + ROOM, np.int32)
    ends_D1 = np.zeros(len(column) + 1, np.int64)
    state_7 = np.array([0, offsets_D1[0], 0, SPACE, 0, 0, vocabulary.size])
    while not _identify(
        offsets_D1, data_X, starts, pieces, kinds,
        vocabulary.slots_S2, vocabulary.words_X, vocabulary.ends_V, grow, state_7, unit, ids_T, ends_D1,
    ):  # fmt: skip
        count, vocabulary.size = int(state_7[4]), int(state_7[6])
        if count + ROOM > len(ids_T):
            ids_T = _longer(ids_T, count, count + ROOM)
        if grow:
            make_room(vocabulary, ROOM, longest + ROOM)
    vocabulary.size = int(state_7[6])
    return ids_T[: state_7[4]], ends_D1
