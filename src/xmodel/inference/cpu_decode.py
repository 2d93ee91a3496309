"""One decoding step of a Llama on a CPU: every row's newest token through all layers, in one compiled function.

A step reads every weight once, so it is as fast as memory, if nothing else takes time. Therefore all of it runs here,
without an operation of PyTorch between two layers, and several threads run it together: a phase (a norm, a product,
attention) is cut into chunks, and each thread takes the next chunk until none is left. Nobody waits for a thread that
comes late or was stopped by the system: the others do its share. The sums inside a chunk have a fixed order, so the
result is the same whoever computes it, and the same for a row whatever other rows there are.

Norms, rotary positions, softmax and the residual stream are in float32; what enters a product is rounded to the dtype
of the model.

Legend of the shape suffixes: N rows, D hidden width, H query heads, K key/value heads, G = H / K, C head size, F width
of the SwiGLU, O outputs of a product, L layers, S cached and new tokens, V vocabulary. Addresses are int64.
"""

# pyright: reportCallIssue=false, reportPrivateImportUsage=false
# numba gives an intrinsic its first argument by itself.
from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from xmodel.inference.cpu_dots import LANES, MIXED, OUTPUTS, ROWS, make_mix, make_tile

KERNEL: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}
FLOAT32, BFLOAT16, INT8 = 0, 1, 2  # how weights are kept
CHUNK_BYTES = 1 << 18  # of weights
PHASES = 7  # of a layer
Q, K, V, OUT, GATE, UP, DOWN = range(7)  # columns of the tables of weights
NEXT, DONE, STRIDE = 0, 8, 16  # of a phase's counters: a cache line each

_float_1, _float_8 = (make_tile("float32", "float32", rows) for rows in (1, ROWS))
_bfloat_1, _bfloat_8 = (make_tile("bfloat16", "bfloat16", rows) for rows in (1, ROWS))
_int8_float_1, _int8_float_8 = (make_tile("int8", "float32", rows) for rows in (1, ROWS))
_int8_bfloat_1, _int8_bfloat_8 = (make_tile("int8", "bfloat16", rows) for rows in (1, ROWS))
_mix_float_1, _mix_float_4 = (make_mix("float32", rows) for rows in (1, MIXED))
_mix_bfloat_1, _mix_bfloat_4 = (make_mix("bfloat16", rows) for rows in (1, MIXED))
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
_from_bits = _cast(types.uint32, types.float32, ir.FloatType())


@numba.njit(inline="always")
def _floats(address, size):
    return numba.carray(_pointer(address), size, np.float32)


@numba.njit(inline="always")
def _halves(address, size):
    return numba.carray(_pointer(address), size, np.uint16)


@numba.njit(**KERNEL)
def _write(values, start, size, address, wide):
    """values[start : start + size] to an address, as float32 or rounded to bfloat16."""
    if wide:
        floats = _floats(address, size)
        for i in range(size):
            floats[i] = values[start + i]
    else:
        halves = _halves(address, size)
        for i in range(size):
            bits = _bits(values[start + i])
            halves[i] = np.uint16(
                (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
            )


@numba.njit(inline="always")
def _exp(x):
    """e to the x in float32 to 1 unit in the last place, without a call or a branch: loops of it become vector code."""
    x = max(min(x, np.float32(88.0)), np.float32(-87.0))
    n = math.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    n = np.float32(n)
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    return p * _from_bits(np.uint32(np.int32(n) + np.int32(127)) << np.uint32(23))


@numba.njit(**KERNEL)
def _take(counters, phase, finished):
    """The next chunk of a phase, after `finished` (0 or 1) of those taken before."""
    _fetch_add(counters, phase * STRIDE + DONE, finished)
    return _fetch_add(counters, phase * STRIDE + NEXT, 1)


@numba.njit(**KERNEL)
def _wait(counters, phase, chunks):
    """Until all chunks of a phase are done."""
    turns = 0
    while _load_acquire(counters, phase * STRIDE + DONE) < chunks:
        turns += 1
        if turns > 200:
            _sched_yield()


@numba.njit(**KERNEL)
def _tile(kind, wide, weights, outputs, x, rows, size, result):
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


@numba.njit(**KERNEL)
def outputs_of_chunk(kind, size):
    """How many outputs of a product over `size` numbers make a chunk."""
    row_bytes = size * (4 if kind == FLOAT32 else 2 if kind == BFLOAT16 else 1)
    return max(1, CHUNK_BYTES // (row_bytes * OUTPUTS)) * OUTPUTS


@numba.njit(**KERNEL)
def _products(kind, wide, weights, scales, outputs, size, x, rows, chunk, per, out_NO, column, add, result_RO):
    """x[N, size] · weights[O, size]ᵀ for one chunk of `per` outputs, into out_NO[:, column:] or added to it."""
    weight_bytes = size * (4 if kind == FLOAT32 else 2 if kind == BFLOAT16 else 1)
    x_bytes = size * (4 if wide else 2)
    scales_O, result = _floats(scales, outputs), result_RO.ctypes.data
    for first in range(chunk * per, min((chunk + 1) * per, outputs), OUTPUTS):
        count = min(OUTPUTS, outputs - first)
        row = 0
        while row < rows:
            together = _tile(
                kind, wide, weights + first * weight_bytes, count, x + row * x_bytes, rows - row, size, result
            )
            for r in range(together):
                for o in range(count):
                    value = result_RO[r, o] * scales_O[first + o] if kind == INT8 else result_RO[r, o]
                    if add:
                        out_NO[row + r, column + first + o] += value
                    else:
                        out_NO[row + r, column + first + o] = value
            row += together


@numba.njit(**KERNEL, fastmath={"reassoc", "contract", "nsz", "arcp"})
def _norm(values, size, weight, eps, out):
    total = np.float32(0.0)
    for i in range(size):
        total += values[i] * values[i]
    scale = np.float32(1.0) / np.float32(math.sqrt(total / np.float32(size) + eps))
    for i in range(size):
        out[i] = values[i] * scale * weight[i]


@numba.njit(**KERNEL, fastmath={"contract"})
def _turn(values, size, cos, sin):
    """Rotary positions of one head, in place: (x[i], x[i + C/2]) by their angle."""
    half = size // 2
    for i in range(half):
        left, right = values[i], values[half + i]
        values[i] = left * cos[i] - right * sin[i]
        values[half + i] = right * cos[i] + left * sin[i]


@numba.njit(**KERNEL, fastmath={"reassoc", "contract", "nsz"})
def _softmax(scores_S, length, scale):
    """Weights of `length` keys, in place, without the division; their sum."""
    top = np.float32(-np.inf)
    for s in range(length):
        top = max(top, scores_S[s])
    total = np.float32(0.0)
    for s in range(length):
        scores_S[s] = _exp((scores_S[s] - top) * scale)
        total += scores_S[s]
    return total


@numba.njit(**KERNEL)
def _mix(wide, values, length, size, groups, weights_GS, out_GC):
    """Weighted sums of the values of `length` keys."""
    unit, stride = 4 if wide else 2, weights_GS.shape[1]
    weights, out = weights_GS.ctypes.data, out_GC.ctypes.data
    wholes = size // LANES * LANES
    for column in range(0, wholes, LANES):
        g = 0
        while g < groups:
            place, into = weights + g * stride * 4, out + (g * size + column) * 4
            if groups - g >= MIXED:
                if wide:
                    _mix_float_4(values + column * unit, length, size, place, stride, into)
                else:
                    _mix_bfloat_4(values + column * unit, length, size, place, stride, into)
                g += MIXED
            else:
                if wide:
                    _mix_float_1(values + column * unit, length, size, place, stride, into)
                else:
                    _mix_bfloat_1(values + column * unit, length, size, place, stride, into)
                g += 1
    for g in range(groups):
        for i in range(wholes, size):
            total = np.float32(0.0)
            for s in range(length):
                place = values + (s * size + i) * unit
                value = _floats(place, 1)[0] if wide else _from_bits(np.uint32(_halves(place, 1)[0]) << np.uint32(16))
                total += weights_GS[g, s] * value
            out_GC[g * size + i] = total


@numba.njit(**KERNEL)
def _attend(
    wide, qkv_O, heads, kv_heads, head, size, qk_norm, eps, cos_C, sin_C, keys, values, column, length, seen_S,
    out, head_C, queries, scores_GS, sums_GC, result_RO,
):  # fmt: skip
    """One row's new token in one group of heads that share a key: its key and value to the cache, and what it sees.

    Args:
        keys, values: addresses of this row's and head's [S, C].
        seen_S: which keys it sees; empty: all `length`.
        out: address of the row's attention output [H, C].
    """
    groups, unit = heads // kv_heads, 4 if wide else 2
    for g in range(groups + 1):  # the queries, then the key
        start = (head * groups + g if g < groups else heads + head) * size
        for i in range(size):
            head_C[i] = qkv_O[start + i]
        if len(qk_norm):
            _norm(head_C, size, qk_norm[0 if g < groups else 1], eps, head_C)
        _turn(head_C, size, cos_C, sin_C)
        place = queries + g * size * unit if g < groups else keys + column * size * unit
        _write(head_C, 0, size, place, wide)
    _write(qkv_O, (heads + kv_heads + head) * size, size, values + column * size * unit, wide)
    result = result_RO.ctypes.data
    kind = FLOAT32 if wide else BFLOAT16
    for s in range(0, length, OUTPUTS):
        count = min(OUTPUTS, length - s)
        g = 0
        while g < groups:
            place, query = keys + s * size * unit, queries + g * size * unit
            together = _tile(kind, wide, place, count, query, groups - g, size, result)
            for r in range(together):
                for o in range(count):
                    scores_GS[g + r, s + o] = result_RO[r, o]
            g += together
    if len(seen_S):
        for s in range(length):
            if not seen_S[s]:
                for g in range(groups):
                    scores_GS[g, s] = -np.inf
    scale = np.float32(1.0 / math.sqrt(size))
    for g in range(groups):
        total = _softmax(scores_GS[g], length, scale)
        for s in range(length):
            scores_GS[g, s] /= total
    _mix(wide, values, length, size, groups, scores_GS, sums_GC)
    _write(sums_GC, 0, groups * size, out + head * groups * size * unit, wide)


@numba.njit(**KERNEL, fastmath={"contract"})
def _swiglu(gate, up, first, last):
    for i in range(first, last):
        gate[i] = gate[i] / (np.float32(1.0) + _exp(-gate[i])) * up[i]


@numba.njit(**KERNEL)
def decode(
    counters, kind, wide, heads, kv_heads, eps, weights_L7, scales_L7, norms_L2D, qk_norms_LXC, final_D, rotary_2PC,
    positions_N, columns_N, seen_NS, length, keys, values, starts_N, strides_2, x_ND, normed_ND, qkv_NO, gate_NF,
    up_NF, gated_NF, out,
):  # fmt: skip
    """One step. Every thread calls it with the same arguments; each returns when all is done.

    Args:
        counters: int64 zeros, STRIDE for each of L · PHASES + 1 phases: how many chunks are taken and done.
        kind: of the weights; wide: whether activations and cache are float32, not bfloat16.
        weights_L7, scales_L7: addresses of weights and (int8 only) of the scales of their outputs.
        qk_norms_LXC: X is 2 (query, key), or 0 without.
        rotary_2PC: cosines and sines, [2, positions, C / 2].
        seen_NS: uint8, which cached and new tokens a row sees; empty: all `length`.
        keys, values: addresses of the cache; starts_N: bytes to each row; strides_2: from a layer and head to the next.
        x_ND: float32, the embedded tokens; it becomes the residual stream.
        normed_ND, qkv_NO, gate_NF, up_NF, gated_NF: float32, room to work.
        out: address of the final states, [N, D] in the model's dtype.
    """
    rows, hidden = x_ND.shape
    size, ffn = hidden // heads, gate_NF.shape[1]
    groups, unit, kv_width = heads // kv_heads, 4 if wide else 2, kv_heads * size
    per, per_down = outputs_of_chunk(kind, hidden), outputs_of_chunk(kind, ffn)
    chunks_q, chunks_kv = -(-hidden // per), -(-kv_width // per)
    chunks_ffn, chunks_down = -(-ffn // per), -(-hidden // per_down)
    line_D, head_C = np.empty(hidden, np.float32), np.empty(size, np.float32)
    queries_GC, sums_GC = np.empty(groups * size, np.float32), np.empty(groups * size, np.float32)
    scores_GS, result_RO = np.empty((groups, length), np.float32), np.empty((ROWS, OUTPUTS), np.float32)
    normed, gated = normed_ND.ctypes.data, gated_NF.ctypes.data
    for layer in range(len(weights_L7)):
        weights, scales = weights_L7[layer], scales_L7[layer]
        phase = layer * PHASES

        c = _take(counters, phase, 0)
        while c < rows:
            _norm(x_ND[c], hidden, norms_L2D[layer, 0], eps, line_D)
            _write(line_D, 0, hidden, normed + c * hidden * unit, wide)
            c = _take(counters, phase, 1)
        _wait(counters, phase, rows)

        phase += 1
        chunks = chunks_q + 2 * chunks_kv
        c = _take(counters, phase, 0)
        while c < chunks:
            if c < chunks_q:
                which, chunk, outputs, column = Q, c, hidden, 0
            elif c < chunks_q + chunks_kv:
                which, chunk, outputs, column = K, c - chunks_q, kv_width, hidden
            else:
                which, chunk, outputs, column = V, c - chunks_q - chunks_kv, kv_width, hidden + kv_width
            _products(
                kind, wide, weights[which], scales[which], outputs, hidden, normed, rows, chunk, per, qkv_NO, column,
                False, result_RO,
            )  # fmt: skip
            c = _take(counters, phase, 1)
        _wait(counters, phase, chunks)

        phase += 1
        chunks = rows * kv_heads
        c = _take(counters, phase, 0)
        while c < chunks:
            row, head = c // kv_heads, c % kv_heads
            offset = layer * strides_2[0] + starts_N[row] + head * strides_2[1]
            seen_S = seen_NS[row % len(seen_NS)]
            end = length
            while len(seen_S) and end > 1 and not seen_S[end - 1]:
                end -= 1
            position = positions_N[row]
            _attend(
                wide, qkv_NO[row], heads, kv_heads, head, size, qk_norms_LXC[layer], eps, rotary_2PC[0, position],
                rotary_2PC[1, position], keys + offset, values + offset, columns_N[row], end, seen_S,
                normed + row * hidden * unit, head_C, queries_GC.ctypes.data, scores_GS, sums_GC, result_RO,
            )  # fmt: skip
            c = _take(counters, phase, 1)
        _wait(counters, phase, chunks)

        phase += 1
        c = _take(counters, phase, 0)
        while c < chunks_q:
            _products(
                kind, wide, weights[OUT], scales[OUT], hidden, hidden, normed, rows, c, per, x_ND, 0,
                True, result_RO,
            )  # fmt: skip
            c = _take(counters, phase, 1)
        _wait(counters, phase, chunks_q)

        phase += 1
        c = _take(counters, phase, 0)
        while c < rows:
            _norm(x_ND[c], hidden, norms_L2D[layer, 1], eps, line_D)
            _write(line_D, 0, hidden, normed + c * hidden * unit, wide)
            c = _take(counters, phase, 1)
        _wait(counters, phase, rows)

        phase += 1
        c = _take(counters, phase, 0)
        while c < chunks_ffn:
            for which, out_NF in ((GATE, gate_NF), (UP, up_NF)):
                _products(
                    kind, wide, weights[which], scales[which], ffn, hidden, normed, rows, c, per, out_NF, 0, False,
                    result_RO,
                )  # fmt: skip
            first, last = c * per, min((c + 1) * per, ffn)
            for row in range(rows):
                _swiglu(gate_NF[row], up_NF[row], first, last)
                _write(gate_NF[row], first, last - first, gated + (row * ffn + first) * unit, wide)
            c = _take(counters, phase, 1)
        _wait(counters, phase, chunks_ffn)

        phase += 1
        c = _take(counters, phase, 0)
        while c < chunks_down:
            _products(
                kind, wide, weights[DOWN], scales[DOWN], hidden, ffn, gated, rows, c, per_down, x_ND, 0,
                True, result_RO,
            )  # fmt: skip
            c = _take(counters, phase, 1)
        _wait(counters, phase, chunks_down)

    phase = len(weights_L7) * PHASES
    c = _take(counters, phase, 0)
    while c < rows:
        _norm(x_ND[c], hidden, final_D, eps, line_D)
        _write(line_D, 0, hidden, out + c * hidden * unit, wide)
        c = _take(counters, phase, 1)
    _wait(counters, phase, rows)


@numba.njit(**KERNEL)
def multiply(counters, kind, wide, weights, scales, outputs, size, x, rows, sums_NO, out):
    """x[N, size] · weights[O, size]ᵀ by several threads, as `decode`, to address `out`; `sums_NO` is room to work."""
    per, unit = outputs_of_chunk(kind, size), 4 if wide else 2
    chunks = -(-outputs // per)
    result_RO = np.empty((ROWS, OUTPUTS), np.float32)
    c = _take(counters, 0, 0)
    while c < chunks:
        _products(kind, wide, weights, scales, outputs, size, x, rows, c, per, sums_NO, 0, False, result_RO)
        first, last = c * per, min((c + 1) * per, outputs)
        for row in range(rows):
            _write(sums_NO[row], first, last - first, out + (row * outputs + first) * unit, wide)
        c = _take(counters, 0, 1)
    _wait(counters, 0, chunks)
