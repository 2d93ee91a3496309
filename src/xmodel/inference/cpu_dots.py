"""The innermost loops of decoding, written as LLVM vector code: inner products of a few vectors with a few rows of
weights, and weighted sums of rows.

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
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

OUTPUTS = 3  # rows of weights in a tile
ROWS = 8  # vectors in a tile, when there are several: 24 sums, 3 weights and a vector are 28 of AVX-512's 32 registers
MIXED = 4  # rows of weights in a sum of values, when there are several
LANES = 16
LINE = 64  # bytes that memory delivers at once

Builder = Value = Any  # llvmlite says nothing of its types
I8, I16, I32, I64, F32 = (*(ir.IntType(bits) for bits in (8, 16, 32, 64)), ir.FloatType())
FLOATS, WORDS = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)
SIZES = {"float32": 4, "bfloat16": 2, "int8": 1}
llvmlite.binding.initialize_native_asmparser()  # for vdpbf16ps
HAS_BF16_PAIRS = bool(llvmlite.binding.get_host_cpu_features().get("avx512bf16"))


def _splat(value: int) -> ir.Constant:
    return ir.Constant(WORDS, [value] * LANES)


def _halves(builder: Builder, pairs: Value) -> list[Value]:
    """Pairs of bfloat16 as two vectors of float32."""
    low, high = builder.shl(pairs, _splat(16)), builder.and_(pairs, _splat(0xFFFF0000))
    return [builder.bitcast(low, FLOATS), builder.bitcast(high, FLOATS)]


def _read(builder: Builder, address: Value, kind: str, pairs: bool) -> list[Value]:
    """The next 16 or 32 numbers as factors: one vector of bfloat16 pairs, or vectors of float32."""

    def load(vector: ir.VectorType) -> Value:
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


def _add_product(builder: Builder, total: Value, left: Value, right: Value) -> Value:
    if left.type == WORDS:
        signature = ir.FunctionType(FLOATS, [FLOATS, WORDS, WORDS])
        asm = ir.InlineAsm(signature, "vdpbf16ps $3, $2, $0", "=v,0,v,v", side_effect=False)
        return builder.call(asm, [total, left, right])
    signature = ir.FunctionType(FLOATS, [FLOATS, FLOATS, FLOATS])
    function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.fmuladd.v{LANES}f32")
    return builder.call(function, [left, right, total])


def _sums(builder: Builder, vectors: list[Value]) -> list[tuple[int, Value]]:
    """The sum of each vector's lanes: lane i and i + 8 first, then i and i + 4, and so on.

    Vectors are added up two by two, side by side in one register, which takes a third of the instructions.

    Returns:
        Vectors of these sums, in order, each with the number of the first one in it.
    """
    half = LANES
    while half > 1:
        half //= 2
        if len(vectors) % 2:
            vectors = [*vectors, vectors[-1]]
        # Every part of 2 · half lanes is a vector whose lanes are still to be added up.
        starts = range(0, LANES, 2 * half)
        low = [start + lane for start in starts for lane in range(half)]
        masks = [
            ir.Constant(WORDS, [lane + shift + other for other in (0, LANES) for lane in low]) for shift in (0, half)
        ]
        vectors = [
            builder.fadd(*(builder.shuffle_vector(left, right, mask) for mask in masks))
            for left, right in zip(vectors[::2], vectors[1::2], strict=True)
        ]
    return [(LANES * number, vector) for number, vector in enumerate(vectors)]


def _function(name: str, arguments: int, body: Callable[[Builder], None]) -> Callable[..., Any]:
    """What numba can call: an LLVM function of int64 arguments without a result."""

    def code(context: Any, builder: Builder, signature: Any, values: Any) -> Value:
        kind = ir.FunctionType(ir.VoidType(), [I64] * arguments)
        function = cgutils.get_or_insert_function(builder.module, kind, f"xmodel_{name}")
        if function.is_declaration:
            function.linkage = "linkonce_odr"
            function.attributes.add("noinline")  # or LLVM optimises it again at every place that calls it
            inner = ir.IRBuilder(function.append_basic_block())
            body(inner)
            inner.ret_void()
        builder.call(function, values)
        return context.get_dummy_value()

    signature = types.void(*[types.int64] * arguments)
    parameters = [f"a{number}" for number in range(arguments)]  # numba wants as many names as there are arguments
    typing = eval(f"lambda typing, {', '.join(parameters)}: (signature, code)", {"signature": signature, "code": code})
    return intrinsic(typing)


def make_tile(weight: str, vector: str, rows: int) -> Callable[..., Any]:
    """tile(weights, outputs, x, vectors, size, result): result[r, o] = x[r] · weights[o], `rows` r and OUTPUTS o.

    Arguments of the function that is made are int64:
        weights, x, result: addresses of dense arrays: of type `weight` [outputs, size], of type `vector` [rows, size],
            of float32 [rows, OUTPUTS].
        outputs, vectors: how many are there; when they are fewer than the tile has, the last one is taken again.
    """
    pairs = vector == "bfloat16"
    width = 2 * LANES if pairs else LANES

    def body(builder: Builder) -> None:
        weights, outputs, x, vectors, size, result = builder.function.args
        bytes_w = builder.mul(size, _number(SIZES[weight]))
        bytes_x = builder.mul(size, _number(SIZES[vector]))
        starts_w = _starts(builder, weights, bytes_w, OUTPUTS, outputs)
        starts_x = _starts(builder, x, bytes_x, rows, vectors)
        sums = [[_zeros(builder) for _ in range(OUTPUTS)] for _ in range(rows)]

        def step(places_w: list[Value], places_x: list[Value]) -> None:
            factors_w = [_read(builder, place, weight, pairs) for place in places_w]
            for place, sums_O in zip(places_x, sums, strict=True):
                factors_x = _read(builder, place, vector, pairs)
                for factors, total in zip(factors_w, sums_O, strict=True):
                    value = builder.load(total)
                    for left, right in zip(factors, factors_x, strict=True):
                        value = _add_product(builder, value, left, right)
                    builder.store(value, total)

        steps = builder.sdiv(size, _number(width))
        step_bytes = SIZES[weight] * width
        # The next tile, line after line: row beside row, as the products read, memory delivers a quarter less.
        next_tile = builder.add(weights, builder.mul(bytes_w, _number(OUTPUTS)))
        with cgutils.for_range(builder, steps) as loop:
            ahead = builder.add(next_tile, builder.mul(loop.index, _number(step_bytes * OUTPUTS)))
            for offset in range(0, step_bytes * OUTPUTS, LINE):
                _prefetch(builder, builder.add(ahead, _number(offset)))
            offset_w = builder.mul(loop.index, _number(step_bytes))
            offset_x = builder.mul(loop.index, _number(SIZES[vector] * width))
            step(
                [builder.add(start, offset_w) for start in starts_w],
                [builder.add(start, offset_x) for start in starts_x],
            )
        done = builder.mul(steps, _number(width))
        rest = builder.sub(size, done)
        with builder.if_then(builder.icmp_signed(">", rest, _number(0)), likely=False):

            def padded(start: Value, kind: str) -> Value:
                """The rest of a row, copied to where zeros follow it."""
                room = ir.ArrayType(I8, SIZES[kind] * width)
                place = cgutils.alloca_once(builder, room)
                builder.store(ir.Constant(room, None), place)
                source = builder.inttoptr(builder.add(start, builder.mul(done, _number(SIZES[kind]))), I8.as_pointer())
                target = builder.bitcast(place, I8.as_pointer())
                cgutils.raw_memcpy(builder, target, source, builder.mul(rest, _number(SIZES[kind])), 1)
                return builder.ptrtoint(place, I64)

            step([padded(start, weight) for start in starts_w], [padded(start, vector) for start in starts_x])
        totals = [builder.load(total) for sums_O in sums for total in sums_O]
        for first, found in _sums(builder, totals):
            count = min(LANES, len(totals) - first)
            part = ir.Constant(ir.VectorType(I32, count), list(range(count)))
            place = builder.add(result, _number(SIZES["float32"] * first))
            target = builder.inttoptr(place, ir.VectorType(F32, count).as_pointer())
            builder.store(builder.shuffle_vector(found, found, part), target, align=4)

    return _function(f"tile_{weight}_{vector}_{rows}", 6, body)


def make_put(scaled: bool, add: bool) -> Callable[..., Any]:
    """put(result, scales, out, stride): a full tile's sums to where they belong, or added to what is there.

    A tile of a short product takes less time than a loop over its 24 numbers, so this is one: pairs and single ones.

    Arguments of the function that is made are int64:
        result: address of float32 [ROWS, OUTPUTS].
        scales: address of float32 [OUTPUTS], the factors of each output, if `scaled`.
        out: address of the first number of float32 rows that are `stride` bytes apart.
    """

    def body(builder: Builder) -> None:
        result, scales, out, stride = builder.function.args
        parts = [(o, ir.VectorType(F32, min(2, OUTPUTS - o))) for o in range(0, OUTPUTS, 2)]

        def place(address: Value, o: int, kind: ir.VectorType) -> Value:
            return builder.inttoptr(builder.add(address, _number(SIZES["float32"] * o)), kind.as_pointer())

        factors = [builder.load(place(scales, o, kind), align=4) if scaled else None for o, kind in parts]
        for r in range(ROWS):
            row = builder.add(out, builder.mul(stride, _number(r)))
            for (o, kind), factor in zip(parts, factors, strict=True):
                value = builder.load(place(result, r * OUTPUTS + o, kind), align=4)
                if factor is not None:
                    value = builder.fmul(value, factor)
                target = place(row, o, kind)
                builder.store(builder.fadd(builder.load(target, align=4), value) if add else value, target, align=4)

    return _function(f"put_{scaled}_{add}", 4, body)


def make_mix(kind: str, rows: int) -> Callable[..., Any]:
    """mix(values, length, width, weights, stride, result): result[r, :16] = Σ weights[r, s] · values[s, :16].

    Arguments of the function that is made are int64:
        values: address of `kind` [length, width], of which 16 columns are meant.
        weights: address of float32 [rows, stride].
        result: address of float32 [rows, width].
    """

    def body(builder: Builder) -> None:
        values, length, width, weights, stride, result = builder.function.args
        sums = [_zeros(builder) for _ in range(rows)]
        row_bytes = builder.mul(width, _number(SIZES[kind]))
        floats = F32.as_pointer()
        with cgutils.for_range(builder, length) as loop:
            place = builder.add(values, builder.mul(loop.index, row_bytes))
            if kind == "float32":
                line = builder.load(builder.inttoptr(place, FLOATS.as_pointer()), align=1)
            else:
                halves = builder.load(builder.inttoptr(place, ir.VectorType(I16, LANES).as_pointer()), align=1)
                line = builder.bitcast(builder.shl(builder.zext(halves, WORDS), _splat(16)), FLOATS)
            for row, total in enumerate(sums):
                index = builder.add(loop.index, builder.mul(stride, _number(row)))
                weight = builder.load(builder.gep(builder.inttoptr(weights, floats), [index]))
                spread = builder.insert_element(ir.Constant(FLOATS, ir.Undefined), weight, ir.Constant(I32, 0))
                spread = builder.shuffle_vector(spread, spread, ir.Constant(WORDS, [0] * LANES))
                builder.store(_add_product(builder, builder.load(total), spread, line), total)
        for row, total in enumerate(sums):
            place = builder.gep(builder.inttoptr(result, floats), [builder.mul(width, _number(row))])
            builder.store(builder.load(total), builder.bitcast(place, FLOATS.as_pointer()), align=4)

    return _function(f"mix_{kind}_{rows}", 6, body)


def _starts(builder: Builder, first: Value, row_bytes: Value, count: int, there: Value) -> list[Value]:
    """Addresses of `count` rows, of which `there` exist."""
    last = builder.sub(there, _number(1))
    indices = [builder.select(builder.icmp_signed("<", _number(i), last), _number(i), last) for i in range(count)]
    return [builder.add(first, builder.mul(index, row_bytes)) for index in indices]


def _number(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


def _zeros(builder: Builder) -> Value:
    """A place for 16 sums; LLVM makes a register of it."""
    return cgutils.alloca_once_value(builder, ir.Constant(FLOATS, [0.0] * LANES))


def _prefetch(builder: Builder, address: Value) -> None:
    pointer = builder.inttoptr(address, I8.as_pointer())
    signature = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
    builder.call(function, [pointer, *(ir.Constant(I32, value) for value in (0, 2, 1))])
