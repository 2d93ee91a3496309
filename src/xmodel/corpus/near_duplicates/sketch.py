"""What near duplicates are found by: a SimHash and a MinHash sketch of a document's character 5-grams.

Both are made in one pass over the folded text, of the same 64-bit hashes of 5-grams (code points, not bytes):

- SimHash-64 (Charikar 2002; Manku et al. 2007, section 2): bit b is set where more 5-grams have bit b set than not.
- MinHash (Broder 1997) by one permutation (Li, Owen, Zhang 2012): the hash space is cut into K slots, and a slot keeps
  the smallest hash that falls into it. A slot that stays empty borrows from another one (optimal densification,
  Shrivastava 2017), so that short documents have K values as well. The share of equal slots of two documents estimates
  the Jaccard similarity of their 5-gram sets. Beside each value stands where in the document it was
  found first, so that a pair can be verified for order as well.
"""

from __future__ import annotations

import numba
import numpy as np
import pyarrow as pa

from xmodel.corpus.batches import with_column
from xmodel.corpus.utf8 import code_point, utf8_buffers
from xmodel.recipe.settings import NearDuplicates

WIDTH = 5  # characters of a shingle
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that every character of the shingle stays in the hash
OLDEST = np.uint64(pow(int(BASE), WIDTH, 2**64))
EMPTY = np.uint64(2**64 - 1)
POSITION_BITS = np.uint64(28)  # more characters than a document can have (batches.MAX_DOCUMENT_BYTES)
POSITION_MASK = np.uint64((1 << 28) - 1)
PLANES = 8  # bits of the counters that are carried along before they are emptied
COLUMN = "sketch"


def sketch_dtype(permutations: int) -> np.dtype:
    """A sketch as it is stored: `positions` are in 256ths of the document; aligned, as kernels want it."""
    fields = [
        ("simhash", "<u8"),
        ("characters", "<u4"),
        ("values", "<u2", permutations),
        ("positions", "u1", permutations),
    ]
    return np.dtype(fields, align=True)  # fmt: skip


@numba.njit(cache=True, nogil=True)
def mix(value):
    """The finaliser of splitmix64 (Steele et al. 2014): every bit of the result depends on every bit of the value."""
    value ^= value >> np.uint64(30)
    value *= np.uint64(0xBF58476D1CE4E5B9)
    value ^= value >> np.uint64(27)
    value *= np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@numba.njit(cache=True, nogil=True)
def _empty_planes(planes_P, counts_B):
    for plane in range(PLANES):
        bits = planes_P[plane]
        planes_P[plane] = np.uint64(0)
        for bit in range(64):
            counts_B[bit] += np.int64((bits >> np.uint64(bit)) & np.uint64(1)) << plane


@numba.njit(cache=True, nogil=True)
def _sketch(offsets_D1, data_X, simhashes_D, characters_D, values_DK, positions_DK):
    documents, slots = values_DK.shape
    smallest_K = np.empty(slots, np.uint64)
    counts_B = np.zeros(64, np.int64)
    planes_P = np.zeros(PLANES, np.uint64)
    recent = np.zeros(8, np.uint64)  # the last characters, as a ring
    for document in range(documents):
        position = np.int64(offsets_D1[document])
        end = np.int64(offsets_D1[document + 1])
        smallest_K[:] = EMPTY
        counts_B[:] = 0
        recent[:] = np.uint64(0)
        rolling = np.uint64(0)
        characters = 0
        while position < end:
            point, width = code_point(data_X, position)
            position += width
            # A character counts one more than its code point, so that U+0000 is not nothing.
            rolling = rolling * BASE + np.uint64(point + 1) - recent[(characters + 8 - WIDTH) & 7] * OLDEST
            recent[characters & 7] = np.uint64(point + 1)
            characters += 1
            if characters < WIDTH:
                continue
            value = mix(rolling)
            # 64 counters side by side, a bit of each in every plane: adding is a ripple of carries.
            carry = value
            for plane in range(PLANES):
                overflow = planes_P[plane] & carry
                planes_P[plane] ^= carry
                carry = overflow
            if (characters - WIDTH + 1) % ((1 << PLANES) - 1) == 0:
                _empty_planes(planes_P, counts_B)
            slot = ((value >> np.uint64(40)) * np.uint64(slots)) >> np.uint64(24)
            packed = (value << POSITION_BITS) | np.uint64(characters - WIDTH)
            if packed < smallest_K[slot]:
                smallest_K[slot] = packed
        _empty_planes(planes_P, counts_B)

        shingles = max(characters - WIDTH + 1, 0)
        simhash = np.uint64(0)
        for bit in range(64):
            if 2 * counts_B[bit] > shingles:
                simhash |= np.uint64(1) << np.uint64(bit)
        simhashes_D[document] = simhash
        characters_D[document] = characters
        for slot in range(slots):
            lender, attempt = slot, 0
            while shingles > 0 and smallest_K[lender] == EMPTY:
                attempt += 1
                lender = np.int64(mix(np.uint64(slot * 65536 + attempt)) % np.uint64(slots))
            packed = smallest_K[lender]
            values_DK[document, slot] = np.uint16((packed >> POSITION_BITS) & np.uint64(0xFFFF))
            positions_DK[document, slot] = (packed & POSITION_MASK) * np.uint64(256) // np.uint64(max(characters, 1))


def sketch(folded: pa.Array, permutations: int) -> np.ndarray:
    """Sketches of D folded documents: [D] of `sketch_dtype(permutations)`."""
    sketches_D = np.zeros(len(folded), sketch_dtype(permutations))
    offsets_D1, data_X = utf8_buffers(folded)
    if len(folded):
        names = ("simhash", "characters", "values", "positions")
        _sketch(offsets_D1, data_X, *(sketches_D[name] for name in names))
    return sketches_D


def sketching(batch: pa.RecordBatch, settings: NearDuplicates) -> pa.RecordBatch:
    """The stage that adds the column `sketch` (fixed-size binary) from the column `folded`."""
    sketches_D = sketch(batch["folded"], settings.permutations)
    kind = pa.binary(sketches_D.dtype.itemsize)
    column = pa.FixedSizeBinaryArray.from_buffers(kind, len(batch), [None, pa.py_buffer(sketches_D)])
    return with_column(batch, COLUMN, column)


def sketches(column: pa.FixedSizeBinaryArray, permutations: int) -> np.ndarray:
    """The column `sketch` as numpy [D]; no copy."""
    kind = sketch_dtype(permutations)
    assert column.type.byte_width == kind.itemsize, "sketches of another number of permutations"
    return np.frombuffer(column.buffers()[1], kind)[column.offset : column.offset + len(column)]
