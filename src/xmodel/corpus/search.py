"""Find many phrases in many documents at once: which documents hold which of some thousand byte strings.

Each phrase is known by one window of its bytes, the one that the fewest other phrases share (its anchor). A rolling
polynomial hash (Karp and Rabin, 1987) of the same width slides over the text; where it meets an anchor's hash, the
whole phrase is compared byte by byte. Time does not grow with the number of phrases as long as anchors are rare.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import numba
import numpy as np
import pyarrow as pa

from xmodel.corpus.utf8 import utf8_buffers

WINDOW = 12  # bytes of an anchor: two English words, four Han characters
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that every byte of the window stays in the hash
MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Phrases:
    """An index of P phrases; made by `index_phrases`."""

    window: int  # bytes hashed
    starts_P1: np.ndarray  # int64: phrase p is data_X[starts_P1[p] : starts_P1[p + 1]]
    data_X: np.ndarray  # uint8
    anchors_P: np.ndarray  # int64: where in the phrase its anchor begins
    hashes_P: np.ndarray  # uint64: hash of the anchor
    slots_S: np.ndarray  # int32, S a power of two: first phrase of the slot, -1 for none
    next_P: np.ndarray  # int32: the next phrase of the same slot, -1 for none


def _hash(window: bytes) -> int:
    value = 0
    for byte in window:
        value = (value * int(BASE) + byte + 1) & MASK
    return value


def index_phrases(phrases: list[bytes]) -> Phrases:
    """Index phrases, given folded, none of them empty."""
    width = min([WINDOW, *map(len, phrases)])
    windows = [[phrase[start : start + width] for start in range(len(phrase) - width + 1)] for phrase in phrases]
    sharing: Counter[bytes] = Counter(window for own in windows for window in set(own))
    anchors = [min(range(len(own)), key=lambda start, own=own: sharing[own[start]]) for own in windows]
    hashes = [_hash(own[anchor]) for own, anchor in zip(windows, anchors, strict=True)]

    slots = np.full(1 << max(12, (16 * len(phrases)).bit_length()), -1, np.int32)  # sparse: most look-ups end here
    following = np.full(len(phrases), -1, np.int32)
    by_slot: dict[int, list[int]] = defaultdict(list)
    for phrase, value in enumerate(hashes):
        by_slot[(value >> 20) & (len(slots) - 1)].append(phrase)
    for slot, members in by_slot.items():
        slots[slot] = members[0]
        following[members[:-1]] = members[1:]
    starts = np.zeros(len(phrases) + 1, np.int64)
    np.cumsum([len(phrase) for phrase in phrases], out=starts[1:])
    data = np.frombuffer(b"".join(phrases), np.uint8)
    return Phrases(width, starts, data, np.array(anchors), np.array(hashes, np.uint64), slots, following)


@numba.njit(cache=True, nogil=True)
def _is_word(byte):
    """ASCII letter or digit (folded text has no capitals): next to these, a phrase may begin or end inside a word."""
    return (97 <= byte <= 122) or (48 <= byte <= 57)


@numba.njit(cache=True, nogil=True)
def _find(offsets_D1, data_X, window, starts_P1, phrase_X, anchors_P, hashes_P, slots_S, next_P):
    documents = len(offsets_D1) - 1
    covered_D = np.zeros(documents, np.int64)
    firsts_D = np.full(documents, -1, np.int32)
    slot_mask = np.uint64(len(slots_S) - 1)
    oldest = np.uint64(1)
    for _ in range(window):
        oldest *= BASE
    for document in range(documents):
        begin = np.int64(offsets_D1[document])
        end = np.int64(offsets_D1[document + 1])
        value = np.uint64(0)
        for position in range(begin, end):
            value = value * BASE + np.uint64(data_X[position]) + np.uint64(1)
            if position - begin >= window:
                value -= oldest * (np.uint64(data_X[position - window]) + np.uint64(1))
            elif position - begin < window - 1:
                continue
            phrase = slots_S[(value >> np.uint64(20)) & slot_mask]
            while phrase >= 0:
                if hashes_P[phrase] == value:
                    length = starts_P1[phrase + 1] - starts_P1[phrase]
                    first = position - window + 1 - anchors_P[phrase]
                    last = first + length
                    same = first >= begin and last <= end
                    index = 0
                    while same and index < length:
                        same = data_X[first + index] == phrase_X[starts_P1[phrase] + index]
                        index += 1
                    if same and first > begin and _is_word(data_X[first]) and _is_word(data_X[first - 1]):
                        same = False
                    if same and last < end and _is_word(data_X[last - 1]) and _is_word(data_X[last]):
                        same = False
                    if same:
                        if covered_D[document] == 0:
                            firsts_D[document] = phrase
                        covered_D[document] += length
                phrase = next_P[phrase]
    return covered_D, firsts_D


def find(folded: pa.Array, phrases: Phrases) -> tuple[np.ndarray, np.ndarray]:
    """Search D folded documents for whole phrases: a match neither begins nor ends inside an English word or a number.

    Returns:
        covered_D: int64, bytes that phrases cover; a byte in two phrases counts twice.
        firsts_D: int32, the phrase that was met first; -1 for none.
    """
    index = phrases
    return _find(
        *utf8_buffers(folded), index.window, index.starts_P1, index.data_X,
        index.anchors_P, index.hashes_P, index.slots_S, index.next_P,
    )  # fmt: skip
