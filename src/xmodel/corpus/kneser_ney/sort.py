"""External merge sort of fixed-size records, in an amount of memory that is given (Knuth, TAOCP 3, section 5.4).

Records are rows of unsigned 64-bit words: the first two are a 128-bit key, high word first, the others go along. Memory
is filled, sorted by least significant digit (radix sort) and written as a run; runs are merged block by block. What
fits into memory at once never touches the disk. Where keys differ, the result does not depend on the memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numba
import numpy as np

DIGIT = 11  # bits
FAN_IN = 64  # runs merged at a time
LEAST_ROWS = 64  # of a run in memory while merging


@numba.njit(cache=True, nogil=True)
def _digit(high, low, shift):
    if shift >= 64:
        value = high >> np.uint64(shift - 64)
    elif shift == 0:
        value = low
    else:
        value = (low >> np.uint64(shift)) | (high << np.uint64(64 - shift))
    return np.int64(value & np.uint64((1 << DIGIT) - 1))


@numba.njit(cache=True, nogil=True)
def _radix_sort(records_RC, scratch_RC, bits):
    """Sort by the lowest `bits` bits of the key; returns the array of the two that holds the result."""
    rows, columns = records_RC.shape
    passes = (bits + DIGIT - 1) // DIGIT
    counts_PD = np.zeros((passes, 1 << DIGIT), np.int64)
    for row in range(rows):
        for number in range(passes):
            counts_PD[number, _digit(records_RC[row, 0], records_RC[row, 1], number * DIGIT)] += 1
    source_RC, target_RC = records_RC, scratch_RC
    for number in range(passes):
        starts_D = np.zeros(1 << DIGIT, np.int64)
        largest = counts_PD[number, 0]
        for digit in range(1, 1 << DIGIT):
            starts_D[digit] = starts_D[digit - 1] + counts_PD[number, digit - 1]
            largest = max(largest, counts_PD[number, digit])
        if largest == rows:
            continue
        for row in range(rows):
            digit = _digit(source_RC[row, 0], source_RC[row, 1], number * DIGIT)
            place = starts_D[digit]
            starts_D[digit] = place + 1
            for column in range(columns):
                target_RC[place, column] = source_RC[row, column]
        source_RC, target_RC = target_RC, source_RC
    return source_RC


@numba.njit(cache=True, nogil=True)
def _add_up(records_RC):
    """Join neighbours of one key, adding their third words, in place; returns how many rows are left."""
    kept = 0
    for row in range(len(records_RC)):
        same = kept > 0
        for column in range(2):
            same &= records_RC[kept - 1, column] == records_RC[row, column]
        if same:
            records_RC[kept - 1, 2] += records_RC[row, 2]
        else:
            for column in range(records_RC.shape[1]):
                records_RC[kept, column] = records_RC[row, column]
            kept += 1
    return kept


@numba.njit(cache=True, nogil=True)
def _merge(one_RC, other_RC):
    rows = len(one_RC) + len(other_RC)
    columns = one_RC.shape[1]
    merged_RC = np.empty((rows, columns), np.uint64)
    left = right = 0
    for row in range(rows):
        if right == len(other_RC):
            take_left = True
        elif left == len(one_RC):
            take_left = False
        else:
            high, other_high = one_RC[left, 0], other_RC[right, 0]
            take_left = high < other_high or (high == other_high and one_RC[left, 1] <= other_RC[right, 1])
        if take_left:
            for column in range(columns):
                merged_RC[row, column] = one_RC[left, column]
            left += 1
        else:
            for column in range(columns):
                merged_RC[row, column] = other_RC[right, column]
            right += 1
    return merged_RC


@numba.njit(cache=True, nogil=True)
def _rows_up_to(records_RC, high, low):
    """Rows of a sorted array whose key is at most (high, low)."""
    begin, end = 0, len(records_RC)
    while begin < end:
        middle = (begin + end) // 2
        if records_RC[middle, 0] < high or (records_RC[middle, 0] == high and records_RC[middle, 1] <= low):
            begin = middle + 1
        else:
            end = middle
    return begin


def read_records(path: Path, columns: int, rows: int) -> Iterator[np.ndarray]:
    """The records of a file, in blocks of at most `rows` rows: uint64 [R, columns]."""
    with open(path, "rb", buffering=0) as stream:
        while len(block := np.fromfile(stream, np.uint64, rows * columns)):
            yield block.reshape(-1, columns)


def external_sort(
    blocks: Iterable[np.ndarray], columns: int, *, bits: int, memory: int, folder: Path, add_up: bool = False
) -> Iterator[np.ndarray]:
    """Sort records by their keys.

    Args:
        blocks: uint64 [R, columns] each; left as they are.
        columns: words of a record, at least 3 when `add_up`.
        bits: of the key that are used; the others are 0.
        memory: bytes for what is held here: two copies of the records of a run, later blocks of all runs.
        folder: for the runs, an existing folder; removed once merged.
        add_up: join records of one key to one, whose third word is the sum of theirs.

    Yields:
        The sorted records, in blocks of a size to suit the memory; those of one key in any order.
    """
    rows = max(LEAST_ROWS, memory // (2 * 8 * columns))
    buffer_RC: np.ndarray | None = None
    filled = 0
    runs: list[Path] = []

    def sorted_rows() -> np.ndarray:
        assert buffer_RC is not None
        result = _radix_sort(buffer_RC[:filled], np.empty((filled, columns), np.uint64), bits)
        return result[: _add_up(result)] if add_up else result

    def spill(parts: Iterable[np.ndarray]) -> None:
        path = folder / f"run-{len(runs):06d}"
        with open(path, "wb", buffering=0) as stream:
            for part in parts:
                part.tofile(stream)
        runs.append(path)

    for block in blocks:
        if buffer_RC is None:
            buffer_RC = np.empty((rows, columns), np.uint64)
        begin = 0
        while begin < len(block):
            taken = min(len(block) - begin, rows - filled)
            buffer_RC[filled : filled + taken] = block[begin : begin + taken]
            filled += taken
            begin += taken
            if filled == rows:
                spill([sorted_rows()])
                filled = 0
    if not runs:
        if filled:
            yield sorted_rows()
        return
    if filled:
        spill([sorted_rows()])
    buffer_RC = None
    window = max(LEAST_ROWS, memory // (3 * 8 * columns * FAN_IN))
    merged = 0  # runs before this one are gone
    while len(runs) - merged > FAN_IN:
        group = runs[merged : merged + FAN_IN]
        spill(_merge_runs(group, columns, window, add_up))
        merged += len(group)
    window = max(LEAST_ROWS, memory // (3 * 8 * columns * (len(runs) - merged)))
    yield from _merge_runs(runs[merged:], columns, window, add_up)


def _merge_runs(paths: list[Path], columns: int, rows: int, add_up: bool) -> Iterator[np.ndarray]:
    """Merge sorted files, `rows` rows of each in memory, and remove them."""
    with ExitStack() as files:
        for path in paths:
            files.callback(path.unlink)
        streams = [files.enter_context(open(path, "rb", buffering=0)) for path in paths]
        windows = [np.zeros((0, columns), np.uint64) for _ in paths]
        more = [True] * len(paths)
        while True:
            for number, stream in enumerate(streams):
                if more[number]:
                    wanted = rows - len(windows[number])
                    fresh = np.fromfile(stream, np.uint64, wanted * columns).reshape(-1, columns)
                    more[number] = len(fresh) == wanted
                    windows[number] = np.concatenate([windows[number], fresh])
            # Up to the least of the last keys, nothing can come any more that is not in memory.
            last = [tuple(window[-1, :2].tolist()) for window, unread in zip(windows, more, strict=True) if unread]
            bound = min(last) if last else (2**64 - 1, 2**64 - 1)
            cuts = [_rows_up_to(window, np.uint64(bound[0]), np.uint64(bound[1])) for window in windows]
            parts = [window[:cut] for window, cut in zip(windows, cuts, strict=True) if cut]
            windows = [window[cut:] for window, cut in zip(windows, cuts, strict=True)]
            while len(parts) > 1:
                pairs = zip(parts[::2], parts[1::2], strict=False)
                parts = [_merge(*pair) for pair in pairs] + parts[len(parts) & ~1 :]
            if parts:
                yield parts[0][: _add_up(parts[0])] if add_up else parts[0]
            if not last:
                return
