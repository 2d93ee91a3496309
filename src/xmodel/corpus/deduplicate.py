"""Exact duplicates: documents whose folded texts are equal, within a source and across sources. The first one is kept.

"First" is the order of the recipe: validation sources, then training sources, each in reading order. Equality is that
of a 128-bit hash (MurmurHash3 x64 128, Austin Appleby, 2011, public domain): among 10^10 documents a false duplicate
has a chance below 10^-18. What is remembered is 16 bytes a document in a hash table that is
a quarter to half full: 64 MB for each million documents at most, the one thing here that grows with the corpus.
"""

from __future__ import annotations

import numba
import numpy as np
import pyarrow as pa

from xmodel.corpus.batches import alive, mark, with_column
from xmodel.corpus.utf8 import utf8_buffers

C1 = np.uint64(0x87C37B91114253D5)
C2 = np.uint64(0x4CF5AD432745937F)


@numba.njit(cache=True, nogil=True)
def _rotate(value, bits):
    return (value << np.uint64(bits)) | (value >> np.uint64(64 - bits))


@numba.njit(cache=True, nogil=True)
def _finish(value):
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xFF51AFD7ED558CCD)
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xC4CEB9FE1A85EC53)
    return value ^ (value >> np.uint64(33))


@numba.njit(cache=True, nogil=True)
def murmur3(offsets_D1, data_X):
    """MurmurHash3 x64 128 of each value of a column, as `utf8_buffers` gives it: uint64 [D, 2]."""
    hashes_D2 = np.empty((len(offsets_D1) - 1, 2), np.uint64)
    for document in range(len(offsets_D1) - 1):
        position = np.int64(offsets_D1[document])
        end = np.int64(offsets_D1[document + 1])
        low = high = np.uint64(0)
        length = np.uint64(end - position)
        while position < end:  # blocks of 16 bytes; the last one is filled up with zeros
            first = second = np.uint64(0)
            for index in range(min(8, end - position)):
                first |= np.uint64(data_X[position + index]) << np.uint64(8 * index)
            for index in range(min(8, end - position - 8)):
                second |= np.uint64(data_X[position + 8 + index]) << np.uint64(8 * index)
            low ^= _rotate(first * C1, 31) * C2
            if end - position >= 16:
                low = (_rotate(low, 27) + high) * np.uint64(5) + np.uint64(0x52DCE729)
            high ^= _rotate(second * C2, 33) * C1
            if end - position >= 16:
                high = (_rotate(high, 31) + low) * np.uint64(5) + np.uint64(0x38495AB5)
            position += 16
        low ^= length
        high ^= length
        low += high
        high += low
        low = _finish(low)
        high = _finish(high)
        low += high
        hashes_D2[document, 0] = low
        hashes_D2[document, 1] = high + low
    return hashes_D2


def signing(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The stage that adds the column `signature`: 16 bytes, the hash of the column `folded`."""
    hashes_D2 = murmur3(*utf8_buffers(batch["folded"]))
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(batch), [None, pa.py_buffer(hashes_D2)])
    return with_column(batch, "signature", column)


def signatures(batch: pa.RecordBatch) -> np.ndarray:
    """The column `signature` as uint64 [D, 2]."""
    column = batch["signature"]
    return np.frombuffer(column.buffers()[1], np.uint64).reshape(-1, 2)[column.offset : column.offset + len(column)]


@numba.njit(cache=True, nogil=True)
def _look_up(table_S2, hashes_D2, wanted_D, insert):
    """Which of the wanted hashes are new to an open-addressing table; they are put in when `insert`."""
    mask = np.uint64(len(table_S2) - 1)
    new_D = np.zeros(len(hashes_D2), np.bool_)
    for document in range(len(hashes_D2)):
        if not wanted_D[document]:
            continue
        low = hashes_D2[document, 0]
        high = hashes_D2[document, 1] | np.uint64(1)  # a free slot has 0 here; the mark costs one of the 128 bits
        slot = low & mask
        while table_S2[slot, 1] != 0 and (table_S2[slot, 0] != low or table_S2[slot, 1] != high):
            slot = (slot + np.uint64(1)) & mask
        if table_S2[slot, 1] == 0:
            new_D[document] = True
            if insert:
                table_S2[slot, 0] = low
                table_S2[slot, 1] = high
    return new_D


class Seen:
    """The signatures met so far."""

    def __init__(self) -> None:
        self.table_S2 = np.zeros((1 << 12, 2), np.uint64)
        self.count = 0

    def add(self, hashes_D2: np.ndarray, wanted_D: np.ndarray) -> np.ndarray:
        """Add the signatures where wanted_D; returns bool [D]: the ones that were wanted and not there before."""
        while 2 * (self.count + len(hashes_D2)) > len(self.table_S2):
            old_N2 = self.table_S2[self.table_S2[:, 1] != 0]
            old_N2.flags.writeable = False  # as those of Arrow's buffers are: one compiled kernel serves both
            self.table_S2 = np.zeros((2 * len(self.table_S2), 2), np.uint64)
            _look_up(self.table_S2, old_N2, np.ones(len(old_N2), np.bool_), True)
        new_D = _look_up(self.table_S2, hashes_D2, wanted_D, True)
        self.count += int(new_D.sum())
        return new_D

    def holds(self, hashes_D2: np.ndarray) -> np.ndarray:
        """Which signatures are there: bool [D]."""
        return ~_look_up(self.table_S2, hashes_D2, np.ones(len(hashes_D2), np.bool_), False)


def deduplicating(batch: pa.RecordBatch, seen: Seen) -> pa.RecordBatch:
    """The stage that marks a document as "duplicate" when its signature was seen before, and remembers the others'."""
    wanted_D = alive(batch)
    new_D = seen.add(signatures(batch), wanted_D)
    return mark(batch, ["duplicate"], np.where(wanted_D & ~new_D, 0, -1))


def excluding(batch: pa.RecordBatch, seen: Seen) -> pa.RecordBatch:
    """The stage that marks training documents whose text stands in a validation source as "in_validation"."""
    return mark(batch, ["in_validation"], np.where(seen.holds(signatures(batch)), 0, -1))
