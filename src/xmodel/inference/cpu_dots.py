"""Inner products of a few vectors with a few rows of weights: the innermost loop of decoding, as LLVM vector code.

numba vectorises a loop as it likes, and differently for one vector than for four. Here the order of a sum is written
down instead: 16 lanes, which run along the row and are added up at its end, the same for every product. So what comes
out for a vector has the same bits whatever stands beside it. LLVM makes of a vector of 16 floats what a processor has:
one AVX-512 register, two of AVX2, four of NEON.

Weights and vectors in bfloat16 are read as 16 pairs. A processor with AVX512-BF16 multiplies and adds a pair in one
instruction (vdpbf16ps); elsewhere the two halves are widened to float32, which is a shift and a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

OUTPUTS = 4  # rows of weights in a tile: as many independent sums as hide the latency of one multiplication
ROWS = 4  # vectors in a tile
LANES = 16
AHEAD = 1  # tiles

I8, I16, I32, I64, F32 = (*(ir.IntType(bits) for bits in (8, 16, 32, 64)), ir.FloatType())
FLOATS, WORDS = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)
SIZES = {"float32": 4, "bfloat16": 2, "int8": 1}
llvmlite.binding.initialize_native_asmparser()
HAS_BF16_PAIRS = bool(llvmlite.binding.get_host_cpu_features().get("avx512bf16"))


def _splat(value: int) -> ir.Constant:
    return ir.Constant(WORDS, [value] * LANES)


def _halves(builder: ir.IRBuilder, pairs: ir.Value) -> list[ir.Value]:
    """Pairs of bfloat16 as two vectors of float32."""
    low, high = builder.shl(pairs, _splat(16)), builder.and_(pairs, _splat(0xFFFF0000))
    return [builder.bitcast(low, FLOATS), builder.bitcast(high, FLOATS)]


def _read(builder: ir.IRBuilder, address: ir.Value, kind: str, pairs: bool) -> list[ir.Value]:
    """The next 16 or 32 numbers as factors: one vector of bfloat16 pairs, or vectors of float32."""

    def load(vector: ir.VectorType) -> ir.Value:
        return builder.load(builder.inttoptr(address, vector.as_pointer()), align=1)

    if kind == "float32":
        return [load(FLOATS)]
    if kind == "bfloat16":
        return [load(WORDS)] if HAS_BF16_PAIRS else _halves(builder, load(WORDS))
    if not pairs:
        return [builder.sitofp(builder.sext(load(ir.VectorType(I8, LANES)), WORDS), FLOATS)]
    bytes_ = load(ir.VectorType(I16, LANES))
    words = builder.sext(bytes_, WORDS)
    low = builder.sitofp(builder.ashr(builder.shl(words, _splat(24)), _splat(24)), FLOATS)
    high = builder.sitofp(builder.ashr(words, _splat(8)), FLOATS)
    if not HAS_BF16_PAIRS:
        return [low, high]
    # Integers of 8 bits are bfloat16 numbers: the lower half of the float32 is zero.
    return [builder.or_(builder.lshr(builder.bitcast(low, WORDS), _splat(16)), builder.bitcast(high, WORDS))]


def _add_product(builder: ir.IRBuilder, total: ir.Value, left: ir.Value, right: ir.Value) -> ir.Value:
    if left.type == WORDS:
        signature = ir.FunctionType(FLOATS, [FLOATS, WORDS, WORDS])
        asm = ir.InlineAsm(signature, "vdpbf16ps $3, $2, $0", "=v,0,v,v", side_effect=False)
        return builder.call(asm, [total, left, right])
    signature = ir.FunctionType(FLOATS, [FLOATS, FLOATS, FLOATS])
    function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.fmuladd.v{LANES}f32")
    return builder.call(function, [left, right, total])


def _sum(builder: ir.IRBuilder, vector: ir.Value) -> ir.Value:
    width = LANES
    while width > 1:
        width //= 2
        both = [
            builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(I32, width), list(part)))
            for part in (range(width), range(width, 2 * width))
        ]
        vector = builder.fadd(*both)
    return builder.extract_element(vector, ir.Constant(I32, 0))


def make_tile(weight: str, vector: str, rows: int) -> Callable[..., Any]:
    """tile(weights, outputs, x, size, result): result[r, o] = x[r] · weights[o] for `rows` r and OUTPUTS o.

    Arguments of the function that is made are all int64:
        weights, x, result: addresses of dense arrays, of `weight` [outputs, size], of `vector` [rows, size] and of
            float32 [rows, OUTPUTS].
        outputs: rows of weights that are there; when they are fewer than OUTPUTS the last one is taken again.
        size: of a row.
    """
    pairs = vector == "bfloat16"
    width = 2 * LANES if pairs else LANES

    @intrinsic
    def tile(typing: Any, weights: Any, outputs: Any, x: Any, size: Any, result: Any) -> Any:
        def code(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
            weights, outputs, x, size, result = arguments
            number = ir.Constant
            step_w, step_x = number(I64, SIZES[weight] * width), number(I64, SIZES[vector] * width)
            bytes_w = builder.mul(size, number(I64, SIZES[weight]))
            bytes_x = builder.mul(size, number(I64, SIZES[vector]))
            last = builder.sub(outputs, number(I64, 1))
            starts_w = []
            for output in range(OUTPUTS):
                index = number(I64, output)
                index = builder.select(builder.icmp_signed("<", index, last), index, last)
                starts_w.append(builder.add(weights, builder.mul(index, bytes_w)))
            starts_x = [builder.add(x, builder.mul(number(I64, row), bytes_x)) for row in range(rows)]
            totals = [
                [cgutils.alloca_once_value(builder, number(FLOATS, [0.0] * LANES)) for _ in range(OUTPUTS)]
                for _ in range(rows)
            ]
            for totals_O in totals:
                for total in totals_O:
                    builder.store(number(FLOATS, [0.0] * LANES), total)

            def step(addresses_w: list[ir.Value], addresses_x: list[ir.Value]) -> None:
                factors_w = [_read(builder, address, weight, pairs) for address in addresses_w]
                for address, totals_O in zip(addresses_x, totals, strict=True):
                    factors_x = _read(builder, address, vector, pairs)
                    for factors, total in zip(factors_w, totals_O, strict=True):
                        value = builder.load(total)
                        for left, right in zip(factors, factors_x, strict=True):
                            value = _add_product(builder, value, left, right)
                        builder.store(value, total)

            steps = builder.sdiv(size, number(I64, width))
            with cgutils.for_range(builder, steps) as loop:
                offset_w, offset_x = builder.mul(loop.index, step_w), builder.mul(loop.index, step_x)
                addresses_w = [builder.add(start, offset_w) for start in starts_w]
                if AHEAD:
                    for address in addresses_w:
                        ahead = builder.add(address, builder.mul(bytes_w, number(I64, OUTPUTS * AHEAD)))
                        _prefetch(builder, ahead)
                step(addresses_w, [builder.add(start, offset_x) for start in starts_x])
            done = builder.mul(steps, number(I64, width))
            rest = builder.sub(size, done)
            with builder.if_then(builder.icmp_signed(">", rest, number(I64, 0)), likely=False):

                def padded(start: ir.Value, kind: str) -> ir.Value:
                    """The rest of a row, copied to where zeros follow it."""
                    room = ir.ArrayType(I8, SIZES[kind] * width)
                    place = cgutils.alloca_once(builder, room)
                    builder.store(number(room, None), place)
                    unit = number(I64, SIZES[kind])
                    source = builder.inttoptr(builder.add(start, builder.mul(done, unit)), I8.as_pointer())
                    target = builder.bitcast(place, I8.as_pointer())
                    cgutils.raw_memcpy(builder, target, source, builder.mul(rest, unit), 1)
                    return builder.ptrtoint(place, I64)

                step([padded(start, weight) for start in starts_w], [padded(start, vector) for start in starts_x])
            target = builder.inttoptr(result, F32.as_pointer())
            for row, totals_O in enumerate(totals):
                for output, total in enumerate(totals_O):
                    place = builder.gep(target, [number(I64, row * OUTPUTS + output)])
                    builder.store(_sum(builder, builder.load(total)), place)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), code

    return tile


def _prefetch(builder: ir.IRBuilder, address: ir.Value) -> None:
    pointer = builder.inttoptr(address, I8.as_pointer())
    signature = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
    builder.call(function, [pointer, *(ir.Constant(I32, value) for value in (0, 3, 1))])
