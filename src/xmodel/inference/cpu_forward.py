"""Tokens through all layers of a Llama on a CPU, in one compiled function: decoding steps and prompts alike.

A row is a new token of some text: the newest one of each text in a decoding step, and many of one text while its
prompt is read. A row knows its text's place in the cache and its own column there, so rows of any texts may go through
together: what a row gets depends on its text alone, to the bit.

A decoding step reads every weight once, so it is as fast as memory, if nothing else takes time. Therefore all of it
runs here, without an operation of PyTorch between two layers. Several threads run it together, phase by phase
(cpu_products.py): a phase is a norm, a product, the filling of the cache, or attention.

Norms, rotary positions, softmax and the residual stream are in float32; what enters a product is rounded to the dtype
of the model.

Legend of the shape suffixes: N rows, D hidden width, H query heads, K key/value heads, G = H / K, C head size, F width
of the SwiGLU, O outputs of a product, L layers, S cached and new tokens, R and O rows and outputs of a tile. Addresses
are int64.
"""

# pyright: reportCallIssue=false, reportPrivateImportUsage=false
# numba gives an intrinsic its first argument by itself.
from __future__ import annotations

import math

import numba
import numpy as np

from xmodel.inference.cpu_dots import LANES, MIXED, OUTPUTS, ROWS, make_mix
from xmodel.inference.cpu_products import (
    BFLOAT16,
    FLOAT32,
    KERNEL,
    floats_at,
    from_bits,
    halves_at,
    outputs_of_chunk,
    products,
    put,
    rows_of_block,
    take,
    tile,
    wait,
    write,
)

PHASES = 8  # of a layer
Q, K, V, OUT, GATE, UP, DOWN = range(7)  # columns of the tables of weights

_mix_float_1, _mix_float_4 = (make_mix("float32", rows) for rows in (1, MIXED))
_mix_bfloat_1, _mix_bfloat_4 = (make_mix("bfloat16", rows) for rows in (1, MIXED))


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
    return p * from_bits(np.uint32(np.int32(n) + np.int32(127)) << np.uint32(23))


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
def _mix(wide, values, length, size, groups, weights_GS, first, out_GC):
    """Sums of the values of `length` keys, by their weights from `first` on."""
    unit, stride = 4 if wide else 2, weights_GS.shape[1]
    weights, out = weights_GS.ctypes.data + first * 4, out_GC.ctypes.data
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
                at = values + (s * size + i) * unit
                value = floats_at(at, 1)[0] if wide else from_bits(np.uint32(halves_at(at, 1)[0]) << np.uint32(16))
                total += weights_GS[g, first + s] * value
            out_GC[g * size + i] = total


@numba.njit(**KERNEL)
def _score(wide, queries, groups, size, keys, length, scores_GS, first, result_RO):
    """Products of G queries with `length` keys, into scores_GS[:, first:]."""
    unit, result, kind = 4 if wide else 2, result_RO.ctypes.data, FLOAT32 if wide else BFLOAT16
    stride = scores_GS.strides[0]
    for s in range(0, length, OUTPUTS):
        count = min(OUTPUTS, length - s)
        g = 0
        while g < groups:
            together = tile(
                kind, wide, keys + s * size * unit, count, queries + g * size * unit, groups - g, size, result
            )
            if together == ROWS and count == OUTPUTS:
                put(result, 0, scores_GS.ctypes.data + g * stride + (first + s) * 4, stride)
            else:
                for r in range(together):
                    for o in range(count):
                        scores_GS[g + r, first + s + o] = result_RO[r, o]
            g += together


@numba.njit(**KERNEL)
def _attend(
    wide, queries, groups, size, stem_keys, stem_values, behind, keys, values, length, seen_S, scores_GS, sums_2GC,
    result_RO,
):  # fmt: skip
    """One row's queries of the heads that share a key, over `behind` keys that it has in common with other texts and
    the first `length` of its own; the result takes their place.

    Args:
        queries: address of [G, C]; the keys and values: addresses of [S, C].
        seen_S: which of its own keys the row sees; empty: all of them.
    """
    _score(wide, queries, groups, size, stem_keys, behind, scores_GS, 0, result_RO)
    _score(wide, queries, groups, size, keys, length, scores_GS, behind, result_RO)
    if len(seen_S):
        for s in range(length):
            if not seen_S[s]:
                for g in range(groups):
                    scores_GS[g, behind + s] = -np.inf
    scale = np.float32(1.0 / math.sqrt(size))
    for g in range(groups):
        total = _softmax(scores_GS[g], behind + length, scale)
        for s in range(behind + length):
            scores_GS[g, s] /= total
    _mix(wide, values, length, size, groups, scores_GS, behind, sums_2GC[0])
    if behind:
        _mix(wide, stem_values, behind, size, groups, scores_GS, 0, sums_2GC[1])
        for i in range(groups * size):
            sums_2GC[0, i] += sums_2GC[1, i]
    write(sums_2GC[0], 0, groups * size, queries, wide)


@numba.njit(**KERNEL, fastmath={"contract"})
def _swiglu(gate, up, size):
    for i in range(size):
        gate[i] = gate[i] / (np.float32(1.0) + _exp(-gate[i])) * up[i]


@numba.njit(**KERNEL)
def _norm_phase(counters, phase, wide, x_ND, weight_D, eps, line_D, out):
    """Every row of x, normed, to address `out`."""
    rows, size = x_ND.shape
    c = take(counters, phase, 0)
    while c < rows:
        _norm(x_ND[c], size, weight_D, eps, line_D)
        write(line_D, 0, size, out + c * size * (4 if wide else 2), wide)
        c = take(counters, phase, 1)
    wait(counters, phase, rows)


@numba.njit(**KERNEL)
def _qkv_phase(counters, phase, kind, wide, weights_7, scales_7, kv_width, x, size, qkv_NO, result_RO):
    """Queries, keys and values side by side: [N, D + 2 · K · C]."""
    rows, per, block = len(qkv_NO), outputs_of_chunk(kind, size), rows_of_block(wide, size)
    chunks_q, chunks_kv = -(-size // per), -(-kv_width // per)
    chunks = chunks_q + 2 * chunks_kv
    c = take(counters, phase, 0)
    while c < chunks:
        if c < chunks_q:
            which, chunk, outputs, column = Q, c, size, 0
        elif c < chunks_q + chunks_kv:
            which, chunk, outputs, column = K, c - chunks_q, kv_width, size
        else:
            which, chunk, outputs, column = V, c - chunks_q - chunks_kv, kv_width, size + kv_width
        first, last = chunk * per, min((chunk + 1) * per, outputs)
        for row in range(0, rows, block):
            products(
                kind, wide, weights_7[which], scales_7[which], first, last, size, x, row, min(row + block, rows),
                qkv_NO[row:], column + first, False, result_RO,
            )  # fmt: skip
        c = take(counters, phase, 1)
    wait(counters, phase, chunks)


@numba.njit(**KERNEL)
def _place_phase(
    counters, phase, wide, qkv_NO, heads, kv_heads, qk_norm_XC, eps, rotary_2PC, positions_N, keys, values, starts_N,
    head_bytes, columns_N, head_C, queries,
):  # fmt: skip
    """Queries, turned by their positions, to address `queries`; keys, turned, and values to the cache."""
    rows, size, unit = len(qkv_NO), len(head_C), 4 if wide else 2
    row = take(counters, phase, 0)
    while row < rows:
        cos_C, sin_C = rotary_2PC[0, positions_N[row]], rotary_2PC[1, positions_N[row]]
        place = starts_N[row] + columns_N[row] * size * unit
        for head in range(heads + kv_heads):
            for i in range(size):
                head_C[i] = qkv_NO[row, head * size + i]
            if len(qk_norm_XC):
                _norm(head_C, size, qk_norm_XC[0 if head < heads else 1], eps, head_C)
            _turn(head_C, size, cos_C, sin_C)
            query, key = queries + (row * heads + head) * size * unit, keys + place + (head - heads) * head_bytes
            write(head_C, 0, size, query if head < heads else key, wide)
        for head in range(kv_heads):
            write(qkv_NO[row], (heads + kv_heads + head) * size, size, values + place + head * head_bytes, wide)
        row = take(counters, phase, 1)
    wait(counters, phase, rows)


@numba.njit(**KERNEL)
def _attention_phase(
    counters, phase, wide, queries, heads, kv_heads, layer, stems_N5, keys, values, starts_N, head_bytes, ends_N,
    seen_NS, scores_GS, sums_2GC, result_RO,
):  # fmt: skip
    """Attention of every row over the first ends_N[row] keys of its text, in the place of its queries.

    Head by head, so that the keys of a long text stay in the second cache from row to row.
    """
    rows, groups = len(starts_N), heads // kv_heads
    size, unit = sums_2GC.shape[1] // groups, 4 if wide else 2
    c = take(counters, phase, 0)
    while c < rows * kv_heads:
        row, head = c % rows, c // rows
        stem_5 = stems_N5[row % len(stems_N5)]
        offset, stem = starts_N[row] + head * head_bytes, layer * stem_5[2] + head * stem_5[3]
        _attend(
            wide, queries + (row * heads + head * groups) * size * unit, groups, size, stem_5[0] + stem,
            stem_5[1] + stem, stem_5[4], keys + offset, values + offset, ends_N[row], seen_NS[row % len(seen_NS)],
            scores_GS, sums_2GC, result_RO,
        )  # fmt: skip
        c = take(counters, phase, 1)
    wait(counters, phase, rows * kv_heads)


@numba.njit(**KERNEL)
def _add_phase(counters, phase, kind, wide, weights, scales, x, size, x_ND, result_RO):
    """x[N, size] · weights[D, size]ᵀ, added to the residual stream."""
    rows, outputs = x_ND.shape
    per, block = outputs_of_chunk(kind, size), rows_of_block(wide, size)
    chunks = -(-outputs // per)
    c = take(counters, phase, 0)
    while c < chunks:
        first, last = c * per, min((c + 1) * per, outputs)
        for row in range(0, rows, block):
            products(
                kind, wide, weights, scales, first, last, size, x, row, min(row + block, rows), x_ND[row:], first, True,
                result_RO,
            )  # fmt: skip
        c = take(counters, phase, 1)
    wait(counters, phase, chunks)


@numba.njit(**KERNEL)
def _swiglu_phase(counters, phase, kind, wide, weights_7, scales_7, ffn, x, rows, size, gate_NO, up_NO, result_RO, out):
    """silu(gate(x)) · up(x) to address `out`; gate_NO and up_NO hold a block of rows and a chunk of outputs."""
    per, block, unit = gate_NO.shape[1], rows_of_block(wide, size), 4 if wide else 2
    chunks = -(-ffn // per)
    c = take(counters, phase, 0)
    while c < chunks:
        first, last = c * per, min((c + 1) * per, ffn)
        for row in range(0, rows, block):
            end = min(row + block, rows)
            for which, out_NO in ((GATE, gate_NO), (UP, up_NO)):
                products(
                    kind, wide, weights_7[which], scales_7[which], first, last, size, x, row, end, out_NO, 0, False,
                    result_RO,
                )  # fmt: skip
            for r in range(row, end):
                _swiglu(gate_NO[r - row], up_NO[r - row], last - first)
                write(gate_NO[r - row], 0, last - first, out + (r * ffn + first) * unit, wide)
        c = take(counters, phase, 1)
    wait(counters, phase, chunks)


@numba.njit(**KERNEL)
def _choose_phase(counters, phase, wide, wanted_W, x_ND, width, queries):
    """The rows that are wanted become the first ones, of the residual stream and of the queries."""
    if take(counters, phase, 0) == 0:  # one thread, in rising order: no row is written before it has been read
        size = width if wide else width // 2
        queries_NI = floats_at(queries, len(x_ND) * size).reshape(len(x_ND), size)
        for to in range(len(wanted_W)):
            x_ND[to] = x_ND[wanted_W[to]]
            queries_NI[to] = queries_NI[wanted_W[to]]
        take(counters, phase, 1)
    wait(counters, phase, 1)


@numba.njit(**KERNEL)
def forward(
    counters, kind, wide, heads, kv_heads, ffn, eps, weights_L7, scales_L7, norms_L2D, qk_norms_LXC, final_D,
    rotary_2PC, positions_N, columns_N, ends_N, seen_NS, stems_N5, keys, values, starts_N, strides_2, wanted_W, x_ND,
    qkv_NO, normed, gated, out,
):  # fmt: skip
    """All layers. Every thread calls it with the same arguments; each returns when all is done.

    Args:
        counters: int64 zeros, STRIDE for each of L · PHASES + 2 phases: how many chunks are taken and done.
        kind: of the weights; wide: whether activations and cache are float32, not bfloat16.
        weights_L7, scales_L7: addresses of weights and (int8 only) of the scales of their outputs.
        qk_norms_LXC: X is 2 (query, key), or 0 without.
        rotary_2PC: cosines and sines, [2, positions, C / 2].
        positions_N, columns_N: what the rotary angles follow, and where in its text's cells a row's key goes.
        ends_N: how many keys of its text a row looks at; seen_NS: uint8, which of them it sees; [1, 0]: all.
        stems_N5: what a row sees before its own text, in another cache: addresses of keys and values, bytes to the next
            layer and to the next head, and how many; [1, 5] of zeros: nothing.
        keys, values: addresses of the cache; starts_N: bytes to each row's text; strides_2: to the next layer and head.
        wanted_W: the rows whose final states are asked for, rising; the last layer goes on with these alone.
        x_ND: float32, the embedded tokens; it becomes the residual stream.
        qkv_NO: float32, room to work; normed, gated: addresses of room in the model's dtype, [N, D] and [N, F].
        out: address of the final states, [W, D] in the model's dtype.
    """
    rows, hidden = x_ND.shape
    size, groups = hidden // heads, heads // kv_heads
    line_D, head_C = np.empty(hidden, np.float32), np.empty(size, np.float32)
    sums_2GC, result_RO = np.empty((2, groups * size), np.float32), np.empty((ROWS, OUTPUTS), np.float32)
    scores_GS = np.empty((groups, stems_N5[:, 4].max() + ends_N.max()), np.float32)
    block = min(rows, rows_of_block(wide, hidden)), min(ffn, outputs_of_chunk(kind, hidden))
    gate_NO, up_NO = np.empty(block, np.float32), np.empty(block, np.float32)
    last = len(weights_L7) - 1
    for layer in range(len(weights_L7)):
        weights_7, scales_7, phase = weights_L7[layer], scales_L7[layer], layer * PHASES
        layer_keys, layer_values = keys + layer * strides_2[0], values + layer * strides_2[0]
        _norm_phase(counters, phase, wide, x_ND, norms_L2D[layer, 0], eps, line_D, normed)
        _qkv_phase(
            counters, phase + 1, kind, wide, weights_7, scales_7, kv_heads * size, normed, hidden, qkv_NO, result_RO
        )
        _place_phase(
            counters, phase + 2, wide, qkv_NO, heads, kv_heads, qk_norms_LXC[layer], eps, rotary_2PC, positions_N,
            layer_keys, layer_values, starts_N, strides_2[1], columns_N, head_C, normed,
        )  # fmt: skip
        if layer == last and len(wanted_W) < rows:
            _choose_phase(counters, len(weights_L7) * PHASES + 1, wide, wanted_W, x_ND, hidden, normed)
            rows = len(wanted_W)
            x_ND, starts_N, ends_N = x_ND[:rows], starts_N[wanted_W], ends_N[wanted_W]
            seen_NS, stems_N5 = seen_NS[wanted_W % len(seen_NS)], stems_N5[wanted_W % len(stems_N5)]
        _attention_phase(
            counters, phase + 3, wide, normed, heads, kv_heads, layer, stems_N5, layer_keys, layer_values, starts_N,
            strides_2[1], ends_N, seen_NS, scores_GS, sums_2GC, result_RO,
        )  # fmt: skip
        _add_phase(counters, phase + 4, kind, wide, weights_7[OUT], scales_7[OUT], normed, hidden, x_ND, result_RO)
        _norm_phase(counters, phase + 5, wide, x_ND, norms_L2D[layer, 1], eps, line_D, normed)
        _swiglu_phase(
            counters, phase + 6, kind, wide, weights_7, scales_7, ffn, normed, rows, hidden, gate_NO, up_NO, result_RO,
            gated,
        )  # fmt: skip
        _add_phase(counters, phase + 7, kind, wide, weights_7[DOWN], scales_7[DOWN], gated, ffn, x_ND, result_RO)
    _norm_phase(counters, len(weights_L7) * PHASES, wide, x_ND, final_D, eps, line_D, out)
