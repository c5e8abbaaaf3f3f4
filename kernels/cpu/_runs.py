"""Vector code for runs of layers: register-blocked sums of taps times rows, and transposition.

Numba compiles loops over scalars and leaves it to LLVM to find vectors in them; it does not keep a
block of results in registers over a loop of taps. These functions are therefore written in LLVM's
own terms: a *vector* is 64 bytes, whatever the processor has (LLVM splits it where registers are
shorter), and a *block* is eight vectors of results.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

# Vectors of results held in registers: eight independent sums hide the latency (4 cycles) of two
# multiply-adds a cycle, and every vector loaded is used eight times.
BLOCK = 8
VECTOR_BYTES = 64
# Taps between two rotations of the loaded vectors.
_UNROLL = 8

_INT = ir.IntType(64)


class _Vectors:
    """Emits loads, stores and sums of one array's vectors."""

    def __init__(self, context: Any, builder: Any, array_type: Any) -> None:
        self.context, self.builder = context, builder
        self.scalar = context.get_value_type(array_type.dtype)
        self.bytes = 4 if isinstance(self.scalar, ir.FloatType) else 8
        self.lanes = VECTOR_BYTES // self.bytes
        self.vector = ir.VectorType(self.scalar, self.lanes)

    def pointer(self, array_type: Any, array: Any, at: Any) -> Any:
        data = self.context.make_array(array_type)(self.context, self.builder, array).data
        return self.builder.gep(data, [at])

    def load(self, pointer: Any, lanes: int | None = None) -> Any:
        kind = ir.VectorType(self.scalar, lanes or self.lanes)
        pointer = self.builder.bitcast(pointer, kind.as_pointer())
        return self.builder.load(pointer, align=self.bytes)

    def store(self, vector: Any, pointer: Any) -> None:
        pointer = self.builder.bitcast(pointer, vector.type.as_pointer())
        self.builder.store(vector, pointer, align=self.bytes)

    def shuffle(self, a: Any, b: Any, lanes: list[int]) -> Any:
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
        return self.builder.shuffle_vector(a, b, mask)

    def broadcast(self, scalar: Any) -> Any:
        undefined = ir.Constant(self.vector, ir.Undefined)
        one = self.builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
        return self.shuffle(one, undefined, [0] * self.lanes)

    def step(self, pointer: Any, count: int, stride: Any) -> Any:
        return self.builder.gep(pointer, [self.builder.mul(ir.Constant(_INT, count), stride)])

    def sums(self, source: Any, stride: Any, taps: Any, count: Any) -> list[Any]:
        """``BLOCK`` vectors, the r-th Σ_{t<count} taps[t]·source[(r + t)·stride …].

        Every vector of the source is loaded once; BLOCK − 1 of them stay in registers from one
        group of taps to the next. The order of the sum is that of the taps, the same for every r.
        """
        builder = self.builder
        zero = ir.Constant(self.vector, [0.0] * self.lanes)
        totals = [cgutils.alloca_once_value(builder, zero) for _ in range(BLOCK)]
        held = [
            cgutils.alloca_once_value(builder, self.load(self.step(source, r, stride)))
            for r in range(BLOCK - 1)
        ]
        ahead = cgutils.alloca_once_value(builder, self.step(source, BLOCK - 1, stride))
        tap = cgutils.alloca_once_value(builder, taps)
        name = f"llvm.fmuladd.v{self.lanes}f{8 * self.bytes}"
        signature = ir.FunctionType(self.vector, [self.vector] * 3)
        multiply_add = cgutils.get_or_insert_function(builder.module, signature, name)

        def group(size: int) -> None:
            at, weight = builder.load(ahead), builder.load(tap)
            rows = [builder.load(slot) for slot in held]
            rows += [self.load(self.step(at, g, stride)) for g in range(size)]
            sums = [builder.load(slot) for slot in totals]
            for g in range(size):
                w = self.broadcast(builder.load(builder.gep(weight, [ir.Constant(_INT, g)])))
                sums = [
                    builder.call(multiply_add, [w, row, total])
                    for row, total in zip(rows[g : g + BLOCK], sums, strict=True)
                ]
            for slot, value in zip(totals + held, sums + rows[size:], strict=True):
                builder.store(value, slot)
            builder.store(self.step(at, size, stride), ahead)
            builder.store(builder.gep(weight, [ir.Constant(_INT, size)]), tap)

        unroll = ir.Constant(_INT, _UNROLL)
        with cgutils.for_range(builder, builder.udiv(count, unroll)):
            group(_UNROLL)
        with cgutils.for_range(builder, builder.urem(count, unroll)):
            group(1)
        return [builder.load(slot) for slot in totals]

    def turned(self, rows: list[Any]) -> list[Any]:
        """Transposes each 8 × 8 square of ``BLOCK`` vectors (Eklundh 1972): two-input shuffles."""
        s = 1
        while s < BLOCK:
            for i in range(BLOCK):
                if i & s:
                    continue
                a, b = rows[i], rows[i + s]
                low = [j if not j & s else self.lanes + j - s for j in range(self.lanes)]
                high = [j + s if not j & s else self.lanes + j for j in range(self.lanes)]
                rows[i], rows[i + s] = self.shuffle(a, b, low), self.shuffle(a, b, high)
            s *= 2
        return rows


@intrinsic
def sum_rows(typing_context, source, at, stride, taps, count, out, to, out_stride, tiny):  # type: ignore[no-untyped-def]
    """One block: ``out[to + r·out_stride + l] = Σ_{t<count} taps[t]·source[at + (r+t)·stride + l]``
    for r < BLOCK and l < lanes; 0 where that is below ``tiny``."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        f, f_at, step, w, n, g, g_at, g_step, least = values
        v = _Vectors(context, builder, signature.args[0])
        begin = v.pointer(signature.args[0], f, f_at)
        first = v.pointer(signature.args[3], w, ir.Constant(_INT, 0))
        target = v.pointer(signature.args[5], g, g_at)
        zero = ir.Constant(v.vector, [0.0] * v.lanes)
        limit = v.broadcast(least)
        for r, total in enumerate(v.sums(begin, step, first, n)):
            below = builder.fcmp_ordered("<", total, limit)
            v.store(builder.select(below, zero, total), v.step(target, r, g_step))
        return context.get_dummy_value()

    n = types.int64
    return types.void(source, n, n, taps, n, out, n, n, source.dtype), generate


@intrinsic
def sum_turned(typing_context, source, at, taps, count, out, to, out_stride):  # type: ignore[no-untyped-def]
    """One block of contiguous vectors, transposed:
    ``out[to + l·out_stride + r] = Σ_{t<count} taps[t]·source[at + (r + t)·lanes + l]``."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        f, f_at, w, n, g, g_at, g_step = values
        v = _Vectors(context, builder, signature.args[0])
        begin = v.pointer(signature.args[0], f, f_at)
        first = v.pointer(signature.args[2], w, ir.Constant(_INT, 0))
        target = v.pointer(signature.args[4], g, g_at)
        for r, row in enumerate(v.turned(v.sums(begin, ir.Constant(_INT, v.lanes), first, n))):
            for part in range(0, v.lanes, BLOCK):
                piece = v.shuffle(row, row, list(range(part, part + BLOCK)))
                v.store(piece, v.step(target, part + r, g_step))
        return context.get_dummy_value()

    n = types.int64
    return types.void(source, n, taps, n, out, n, n), generate


@intrinsic
def turn(typing_context, source, at, stride, out, to):  # type: ignore[no-untyped-def]
    """Transpose ``lanes`` rows of BLOCK columns: ``out[to + c·lanes + l] = source[at + l·stride +
    c]``."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        f, f_at, step, g, g_at = values
        v = _Vectors(context, builder, signature.args[0])
        begin = v.pointer(signature.args[0], f, f_at)
        target = v.pointer(signature.args[3], g, g_at)
        rows = []
        for r in range(BLOCK):
            row = v.load(v.step(begin, r, step), BLOCK)
            if v.lanes == 2 * BLOCK:
                other = v.load(v.step(begin, BLOCK + r, step), BLOCK)
                row = v.shuffle(row, other, list(range(v.lanes)))
            rows.append(row)
        for c, column in enumerate(v.turned(rows)):
            v.store(column, v.step(target, c, ir.Constant(_INT, v.lanes)))
        return context.get_dummy_value()

    n = types.int64
    return types.void(source, n, n, out, n), generate
