"""Signatures: the 128-bit hash of a document's folded text, by which exact duplicates are found (exact.py).

MurmurHash3 x64 128 (Austin Appleby, 2011, public domain): among 10^10 documents a false duplicate has a chance below
10^-18.
"""

from __future__ import annotations

import numba
import numpy as np
import pyarrow as pa

from xmodel.corpus.batches import with_column
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
