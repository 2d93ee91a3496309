"""Products of activations with weights on a CPU, and what several threads need to share one.

Several threads run one compiled function together: a phase of it is cut into chunks, and each thread takes the next
chunk until none is left. Nobody waits for a thread that comes late or was stopped by the system: the others do its
share. The sums inside a chunk have a fixed order, so a result is the same whoever computes it, and the same for a row
whatever other rows there are.

Legend of the shape suffixes: N rows, O outputs of a product, R and O rows and outputs of a tile. Addresses are int64.
"""

# pyright: reportCallIssue=false, reportPrivateImportUsage=false
# numba gives an intrinsic its first argument by itself.
from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from xmodel.inference.cpu_dots import OUTPUTS, ROWS, make_put, make_tile

KERNEL: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}
FLOAT32, BFLOAT16, INT8 = 0, 1, 2  # how weights are kept
CHUNK_BYTES = 1 << 18  # of weights
BLOCK_BYTES = 1 << 18  # of activations that are multiplied with a chunk: both stay in the second cache
BLOCK_ROWS = 64
NEXT, DONE, STRIDE = 0, 8, 16  # of a phase's counters: a cache line each

_float_1, _float_8 = (make_tile("float32", "float32", rows) for rows in (1, ROWS))
_bfloat_1, _bfloat_8 = (make_tile("bfloat16", "bfloat16", rows) for rows in (1, ROWS))
_int8_float_1, _int8_float_8 = (make_tile("int8", "float32", rows) for rows in (1, ROWS))
_int8_bfloat_1, _int8_bfloat_8 = (make_tile("int8", "bfloat16", rows) for rows in (1, ROWS))
put, _put_scaled = (make_put(scaled, add=False) for scaled in (False, True))
_add, _add_scaled = (make_put(scaled, add=True) for scaled in (False, True))
_sched_yield = types.ExternalFunction("sched_yield", types.int32())


@intrinsic
def _fetch_add(typing: Any, counters: Any, index: Any, value: Any) -> Any:
    """Add to counters[index], whatever other threads do; what it was."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", builder.gep(data, [arguments[1]]), arguments[2], "acq_rel")

    return types.int64(counters, types.int64, types.int64), code


@intrinsic
def _load_acquire(typing: Any, counters: Any, index: Any) -> Any:
    """counters[index], and with it all that the threads wrote before they counted."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.load_atomic(builder.gep(data, [arguments[1]]), "acquire", 8)

    return types.int64(counters, types.int64), code


@intrinsic
def _pointer(typing: Any, address: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), code


def _cast(source: Any, target: Any, kind: ir.Type) -> Any:
    @intrinsic
    def cast(typing: Any, value: Any) -> Any:
        return target(source), lambda context, builder, signature, arguments: builder.bitcast(arguments[0], kind)

    return cast


_bits = _cast(types.float32, types.uint32, ir.IntType(32))
from_bits = _cast(types.uint32, types.float32, ir.FloatType())


@numba.njit(inline="always")
def floats_at(address, size):
    return numba.carray(_pointer(address), size, np.float32)


@numba.njit(inline="always")
def halves_at(address, size):
    return numba.carray(_pointer(address), size, np.uint16)


@numba.njit(**KERNEL)
def write(values, start, size, address, wide):
    """values[start : start + size] to an address, as float32 or rounded to bfloat16."""
    if wide:
        floats = floats_at(address, size)
        for i in range(size):
            floats[i] = values[start + i]
    else:
        halves = halves_at(address, size)
        for i in range(size):
            bits = _bits(values[start + i])
            halves[i] = np.uint16(
                (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
            )


@numba.njit(**KERNEL)
def take(counters, phase, finished):
    """The next chunk of a phase, after `finished` (0 or 1) of those taken before."""
    _fetch_add(counters, phase * STRIDE + DONE, finished)
    return _fetch_add(counters, phase * STRIDE + NEXT, 1)


@numba.njit(**KERNEL)
def wait(counters, phase, chunks):
    """Until all chunks of a phase are done."""
    turns = 0
    while _load_acquire(counters, phase * STRIDE + DONE) < chunks:
        turns += 1
        if turns > 200:
            _sched_yield()


@numba.njit(**KERNEL)
def tile(kind, wide, weights, outputs, x, rows, size, result):
    """result[r, o] = x[r] · weights[o], for the next of `rows` rows; how many that were."""
    if rows < 4:  # one after the other costs less than a tile that is half empty
        if kind == BFLOAT16:
            _bfloat_1(weights, outputs, x, 1, size, result)
        elif kind == FLOAT32:
            _float_1(weights, outputs, x, 1, size, result)
        elif wide:
            _int8_float_1(weights, outputs, x, 1, size, result)
        else:
            _int8_bfloat_1(weights, outputs, x, 1, size, result)
        return 1
    if kind == BFLOAT16:
        _bfloat_8(weights, outputs, x, rows, size, result)
    elif kind == FLOAT32:
        _float_8(weights, outputs, x, rows, size, result)
    elif wide:
        _int8_float_8(weights, outputs, x, rows, size, result)
    else:
        _int8_bfloat_8(weights, outputs, x, rows, size, result)
    return min(ROWS, rows)


@numba.njit(inline="always")
def number_bytes(kind):
    return 4 if kind == FLOAT32 else 2 if kind == BFLOAT16 else 1


@numba.njit(**KERNEL)
def outputs_of_chunk(kind, size):
    """How many outputs of a product over `size` numbers make a chunk."""
    return max(1, CHUNK_BYTES // (size * number_bytes(kind) * OUTPUTS)) * OUTPUTS


@numba.njit(**KERNEL)
def rows_of_block(wide, size):
    """How many rows of `size` numbers are multiplied with a chunk before the next ones."""
    return max(ROWS, min(BLOCK_ROWS, BLOCK_BYTES // (size * (4 if wide else 2)) // ROWS * ROWS))


@numba.njit(**KERNEL)
def products(kind, wide, weights, scales, first, last, size, x, row, end, out_NO, column, add, result_RO):
    """x[N, size] · weights[O, size]ᵀ for rows row..end and outputs first..last, into out_NO[:, column:] or added to it.

    out_NO begins with row `row`, and its `column` is where output `first` goes.
    """
    weight_bytes, x_bytes = size * number_bytes(kind), size * (4 if wide else 2)
    scales_O, result = floats_at(scales, last), result_RO.ctypes.data
    out, stride = out_NO.ctypes.data, out_NO.strides[0]
    for output in range(first, last, OUTPUTS):
        count, r0 = min(OUTPUTS, last - output), row
        while r0 < end:
            together = tile(
                kind, wide, weights + output * weight_bytes, count, x + r0 * x_bytes, end - r0, size, result
            )
            if together == ROWS and count == OUTPUTS:
                place, scale = out + (r0 - row) * stride + (column + output - first) * 4, scales + output * 4
                if kind == INT8:
                    if add:
                        _add_scaled(result, scale, place, stride)
                    else:
                        _put_scaled(result, scale, place, stride)
                elif add:
                    _add(result, scale, place, stride)
                else:
                    put(result, scale, place, stride)
            else:
                for r in range(together):
                    for o in range(count):
                        value = result_RO[r, o] * scales_O[output + o] if kind == INT8 else result_RO[r, o]
                        place = column + output - first + o
                        if add:
                            out_NO[r0 - row + r, place] += value
                        else:
                            out_NO[r0 - row + r, place] = value
            r0 += together


@numba.njit(**KERNEL)
def multiply(counters, kind, wide, weights, scales, outputs, size, x, rows, out):
    """x[N, size] · weights[O, size]ᵀ by several threads, each of which calls it, to address `out`."""
    per, block, unit = min(outputs, outputs_of_chunk(kind, size)), rows_of_block(wide, size), 4 if wide else 2
    chunks = -(-outputs // per)
    sums_NO, result_RO = np.empty((min(block, rows), per), np.float32), np.empty((ROWS, OUTPUTS), np.float32)
    c = take(counters, 0, 0)
    while c < chunks:
        first, last = c * per, min((c + 1) * per, outputs)
        for row in range(0, rows, block):
            end = min(row + block, rows)
            products(kind, wide, weights, scales, first, last, size, x, row, end, sums_NO, 0, False, result_RO)
            for r in range(row, end):
                write(sums_NO[r - row], 0, last - first, out + (r * outputs + first) * unit, wide)
        c = take(counters, 0, 1)
    wait(counters, 0, chunks)
