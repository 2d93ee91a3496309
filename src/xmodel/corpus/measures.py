"""One pass over the UTF-8 of a batch: what each document consists of, in counts that the filter rules are ratios of.

Every code point falls into one class, by a table made from Unicode's general categories; lines are told apart by a hash
of their visible characters. The kernel reads Arrow's buffers where they lie.
"""

from __future__ import annotations

import unicodedata
from enum import IntEnum
from functools import cache

import numba
import numpy as np
import pyarrow as pa

from xmodel.corpus.utf8 import code_point, utf8_buffers


class Measure(IntEnum):
    """Columns of the counts. The first nine are the classes of code points, in characters."""

    SPACES = 0  # white space
    LATIN = 1  # Latin letters
    HAN = 2  # Han characters
    KANA = 3  # Japanese syllables
    FOREIGN = 4  # letters of any other script
    DIGITS = 5
    PUNCTUATION = 6  # what prose is punctuated with, ASCII and Chinese
    SYMBOLS = 7  # everything else: mathematical signs, currency, emoji, box drawing, the operators of code
    DAMAGED = 8  # U+FFFD, controls, and what hardly occurs but by a wrong decoding
    MISREAD = 9  # characters of two to four that are the UTF-8 of one, read as Windows-1252 or Latin-1
    LINES = 10  # lines with a visible character
    REPEATED_LINES = 11  # lines that equal an earlier line of the document, white space aside
    REPEATED_CHARACTERS = 12  # visible characters of such lines
    ITEM_LINES = 13  # lines of at most ITEM_WORDS words and ITEM_WIDTH columns that end without punctuation
    BULLET_LINES = 14  # lines that begin with a sign of `BULLETS`
    ENDED_LINES = 15  # lines that end with a sign of `ENDINGS`
    ELLIPSIS_LINES = 16  # lines that end with an ellipsis, in one sign or in three full stops
    SHORT_LINES = 17  # lines of at most SHORT_WIDTH visible characters, where a Han character counts as two
    PARAGRAPHS = 18  # runs of lines with a visible character; lines without one separate them
    REPEATED_PARAGRAPHS = 19  # paragraphs that equal an earlier one of the document, white space aside
    REPEATED_PARAGRAPH_CHARACTERS = 20  # visible characters of such paragraphs
    WORDS = 21  # runs of visible characters other than Han that are not all punctuation
    ALPHABETIC_WORDS = 22  # such runs that hold a letter
    HASHES = 23  # number signs
    ELLIPSES = 24  # ellipses, in one sign or in three full stops


SPACES, HAN, PUNCTUATION, SYMBOLS = map(int, (Measure.SPACES, Measure.HAN, Measure.PUNCTUATION, Measure.SYMBOLS))
LATIN, FOREIGN, DIGITS, MISREAD = map(int, (Measure.LATIN, Measure.FOREIGN, Measure.DIGITS, Measure.MISREAD))
LINES, ITEM_LINES, BULLET_LINES = map(int, (Measure.LINES, Measure.ITEM_LINES, Measure.BULLET_LINES))
ENDED_LINES, ELLIPSIS_LINES = map(int, (Measure.ENDED_LINES, Measure.ELLIPSIS_LINES))
SHORT_LINES, PARAGRAPHS = map(int, (Measure.SHORT_LINES, Measure.PARAGRAPHS))
REPEATED_LINES, REPEATED_CHARACTERS = map(int, (Measure.REPEATED_LINES, Measure.REPEATED_CHARACTERS))
REPEATED_PARAGRAPHS = int(Measure.REPEATED_PARAGRAPHS)
REPEATED_PARAGRAPH_CHARACTERS = int(Measure.REPEATED_PARAGRAPH_CHARACTERS)
WORDS, ALPHABETIC_WORDS = map(int, (Measure.WORDS, Measure.ALPHABETIC_WORDS))
HASHES, ELLIPSES = map(int, (Measure.HASHES, Measure.ELLIPSES))
MEASURES = len(Measure)

ITEM_WORDS = 4
ITEM_WIDTH = 24  # visible characters; a Han character counts as four, about a word
SHORT_WIDTH = 30

CLASS = 0x0F  # the low bits of a table entry are the class; above them are flags:
BULLET = 0x10
ENDING = 0x20
CONTINUES = 0x40  # what a continuation byte of UTF-8 looks like when it is read as Windows-1252 or Latin-1

BULLETS = frozenset("-*•‣◦●○■□▪▫◆◇★☆·")
ENDINGS = frozenset(".!?…:;。！？：；\"'”’」』")
PRIME = np.uint64(0x9E3779B97F4A7C15)

COMMON = frozenset(".,;:!?'\"()[]-/…‘’“”–—·、，。；：！？（）《》〈〉「」『』【】～％")
# Han characters that come from a wrong decoding: 锟斤拷 is U+FFFD read as GBK, the others are how the UTF-8 of frequent
# characters (，。的“在) begins when it is read as GBK. Text, even classical, has next to none of them.
GBK_DAMAGE = frozenset("锟锛銆鐨鈥鍦")


@cache
def class_table() -> np.ndarray:
    """Class and flags of the first 65,536 code points: uint8 [65536]."""
    continuations = {bytes([byte]).decode("cp1252", "ignore") for byte in range(0x80, 0xC0)}
    continuations |= {chr(byte) for byte in range(0x80, 0xC0)}
    table = np.array([_class_of(chr(point)) for point in range(0x10000)], np.uint8)
    for characters, flag in ((continuations, CONTINUES), (BULLETS, BULLET), (ENDINGS, ENDING)):
        table[[ord(character) for character in characters if character]] |= flag
    return table


def _class_of(character: str) -> Measure:
    category = unicodedata.category(character)
    if character.isspace():
        return Measure.SPACES
    if category == "Cc" or character == "\ufffd" or character in GBK_DAMAGE:
        return Measure.DAMAGED
    if category == "Nd":
        return Measure.DIGITS
    if character in COMMON:
        return Measure.PUNCTUATION
    if category[0] not in "LM":
        return Measure.HAN if character == "〇" else Measure.SYMBOLS
    name = unicodedata.name(character, "")
    if name.startswith("CJK") or character == "々":
        return Measure.HAN
    if "KATAKANA" in name or "HIRAGANA" in name:
        return Measure.KANA
    return Measure.LATIN if "LATIN" in name or category == "Mn" else Measure.FOREIGN


@numba.njit(cache=True, nogil=True)
def _is_new(hashes_S, owners_S, document, value):
    """Put a hash into the table of one document; False when it is there already. A slot is free unless it is owned."""
    mask = np.uint64(len(hashes_S) - 1)
    slot = (value >> np.uint64(32)) & mask
    while owners_S[slot] == document:
        if hashes_S[slot] == value:
            return False
        slot = (slot + np.uint64(1)) & mask
    owners_S[slot] = document
    hashes_S[slot] = value
    return True


@numba.njit(cache=True, nogil=True)
def _measure(offsets_D1, data_X, classes):
    documents = len(offsets_D1) - 1
    counts_DM = np.zeros((documents, MEASURES), np.int64)
    most_lines = 0
    for document in range(documents):
        lines = 1
        for position in range(offsets_D1[document], offsets_D1[document + 1]):
            lines += data_X[position] == 10
        most_lines = max(most_lines, lines)
    slots = 64
    while slots < 4 * most_lines:
        slots *= 2
    hashes_S = np.zeros(slots, np.uint64)  # the lines and paragraphs of one document
    owners_S = np.full(slots, -1, np.int32)

    for document in range(documents):
        counts = counts_DM[document]
        position = offsets_D1[document]
        end = offsets_D1[document + 1]
        last_kind = SPACES
        line_hash = np.uint64(1)
        visible = 0  # of the line: its characters that are not white space, its columns, its words
        columns = 0
        words = 0
        ending = np.uint8(SPACES)  # entry of its last visible character
        stops = 0  # full stops that the visible characters so far end with; three for the sign of an ellipsis
        paragraph_hash = np.uint64(2)
        paragraph = 0  # its visible characters
        blank = False  # whether the last line had no visible character
        letter = False  # whether the word has a letter, and something else than punctuation
        content = False
        missing = 0  # continuations that a misread character still lacks, and how many of its characters were met
        met = 0
        while position <= end:
            point, width = (np.int64(10), 1) if position == end else code_point(data_X, position)  # a last line end
            position += width
            entry = classes[point] if point < 0x10000 else np.uint8(HAN if 0x20000 <= point < 0x40000 else SYMBOLS)
            kind = entry & CLASS
            counts[kind] += 1
            if kind in (SPACES, HAN):
                if content:
                    counts[WORDS] += 1
                    counts[ALPHABETIC_WORDS] += letter
                content = letter = False
            else:
                letter |= LATIN <= kind <= FOREIGN
                content |= kind != PUNCTUATION
            if kind != SPACES:
                if visible == 0 and entry & BULLET:
                    counts[BULLET_LINES] += 1
                visible += 1
                columns += 4 if kind == HAN else 1
                words += last_kind == SPACES
                ending = entry
                line_hash = (line_hash ^ np.uint64(point)) * PRIME
                if point == 46:
                    stops += 1
                    if stops == 3:
                        counts[ELLIPSES] += 1
                elif point == 0x2026:
                    counts[ELLIPSES] += 1
                    stops = 3
                else:
                    stops = 0
                    counts[HASHES] += point == 35
            elif point == 10 and visible > 0:
                blank = False
                counts[LINES] += 1
                counts[SHORT_LINES] += visible + (columns - visible) // 3 <= SHORT_WIDTH
                counts[ITEM_LINES] += words <= ITEM_WORDS and columns <= ITEM_WIDTH and ending & CLASS != PUNCTUATION
                counts[ENDED_LINES] += (ending & ENDING) != 0
                counts[ELLIPSIS_LINES] += stops >= 3
                if not _is_new(hashes_S, owners_S, document, line_hash):
                    counts[REPEATED_LINES] += 1
                    counts[REPEATED_CHARACTERS] += visible
                paragraph_hash = (paragraph_hash ^ line_hash) * PRIME
                paragraph += visible
                line_hash = np.uint64(1)
                visible = columns = words = stops = 0
            elif point == 10:
                blank = True
            if point == 10 and paragraph > 0 and (blank or position > end):
                counts[PARAGRAPHS] += 1
                if not _is_new(hashes_S, owners_S, document, paragraph_hash):
                    counts[REPEATED_PARAGRAPHS] += 1
                    counts[REPEATED_PARAGRAPH_CHARACTERS] += paragraph
                paragraph_hash = np.uint64(2)
                paragraph = 0
            if point >= 0x80:
                if missing > 0 and entry & CONTINUES:
                    missing -= 1
                    met += 1
                    if missing == 0:
                        counts[MISREAD] += met
                else:
                    met = 1
                    missing = 1 + (point >= 0xE0) + (point >= 0xF0) if 0xC2 <= point <= 0xF4 else 0
            else:
                missing = 0
            last_kind = kind
        counts[SPACES] -= 1  # the line end that was put behind the text
    return counts_DM


def measure(column: pa.Array) -> np.ndarray:
    """Measure D documents.

    Returns:
        counts_DM: int64 [D, len(Measure)].
    """
    return _measure(*utf8_buffers(column), class_table())
