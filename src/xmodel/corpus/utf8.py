"""Arrow's string columns as numba kernels see them: offsets and UTF-8 bytes."""

from __future__ import annotations

import numba
import numpy as np
import pyarrow as pa


def utf8_buffers(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The Arrow buffers of a string or binary column, without a copy.

    Returns:
        offsets_D1: int32, D + 1 positions; document d is data_X[offsets_D1[d] : offsets_D1[d + 1]].
        data_X: uint8, the bytes of all documents (and of what lies around a slice).
    """
    _, offsets, data = column.buffers()
    starts = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    return starts, np.frombuffer(data or b"", np.uint8)


def byte_lengths(column: pa.Array) -> np.ndarray:
    """UTF-8 bytes of each document: int64 [D]."""
    return np.diff(utf8_buffers(column)[0]).astype(np.int64)


@numba.njit(cache=True, nogil=True)
def code_point(data_X, position):
    """The code point that begins at `position` of valid UTF-8, and its number of bytes."""
    lead = np.int64(data_X[position])
    if lead < 0x80:
        return lead, 1
    if lead < 0xE0:
        return (lead & 0x1F) << 6 | (data_X[position + 1] & 0x3F), 2
    point = (lead & 0x0F) << 12 | (data_X[position + 1] & 0x3F) << 6 | (data_X[position + 2] & 0x3F)
    if lead < 0xF0:
        return point, 3
    return (point & 0x7FFF) << 6 | (data_X[position + 3] & 0x3F), 4
