"""What compiled code does with vectors, in LLVM's own terms.

Numba leaves it to LLVM to find vectors in scalar loops, and LLVM does not keep a block of results
in registers over a loop of taps. The innermost functions of the run kernels are therefore emitted
here: a *vector* is 64 bytes (LLVM splits it where registers are shorter), a *block* is ``BLOCK``
vectors of results, one above the other, all of which every loaded vector is added to.

Kernels name these functions by `emitted` and leave out their first argument, Numba's own. This
module imports Numba, so it is imported when a kernel is compiled and not before.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ._layout import BLOCK, VECTOR_BYTES

# Lines of so many taps have code of their own; others are added in groups.
_WHOLE_LINES = (3, 5, 7)
_GROUP = 8

_INT = ir.IntType(64)


class Vectors:
    """Emits loads, stores, shuffles and sums of the vectors of one dtype."""

    def __init__(self, context: Any, builder: Any, dtype: Any) -> None:
        self.context, self.builder = context, builder
        self.scalar = context.get_value_type(dtype)
        self.bytes = dtype.bitwidth // 8
        self.lanes = VECTOR_BYTES // self.bytes
        self.vector = ir.VectorType(self.scalar, self.lanes)
        self.zero = ir.Constant(self.vector, [0.0] * self.lanes)

    def pointer(self, kind: Any, array: Any, at: Any) -> Any:
        data = self.context.make_array(kind)(self.context, self.builder, array).data
        return self.builder.gep(data, [at])

    def ahead(self, pointer: Any, count: Any, stride: Any) -> Any:
        if isinstance(count, int):
            count = ir.Constant(_INT, count)
        return self.builder.gep(pointer, [self.builder.mul(count, stride)])

    def load(self, pointer: Any, lanes: int) -> Any:
        kind = ir.VectorType(self.scalar, lanes).as_pointer()
        return self.builder.load(self.builder.bitcast(pointer, kind), align=self.bytes)

    def store(self, vector: Any, pointer: Any) -> None:
        pointer = self.builder.bitcast(pointer, vector.type.as_pointer())
        self.builder.store(vector, pointer, align=self.bytes)

    def shuffle(self, a: Any, b: Any, lanes: list[int]) -> Any:
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
        return self.builder.shuffle_vector(a, b, mask)

    def broadcast(self, scalar: Any) -> Any:
        one = self.builder.insert_element(self.zero, scalar, ir.Constant(ir.IntType(32), 0))
        return self.shuffle(one, self.zero, [0] * self.lanes)

    def variables(self, values: list[Any]) -> list[Any]:
        return [cgutils.alloca_once_value(self.builder, value) for value in values]

    def values(self, variables: list[Any]) -> list[Any]:
        return [self.builder.load(variable) for variable in variables]

    def assign(self, variables: list[Any], values: list[Any]) -> None:
        for variable, value in zip(variables, values, strict=True):
            self.builder.store(value, variable)

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """a·b + c, in one rounding where the processor can."""
        name = f"llvm.fmuladd.v{self.lanes}f{8 * self.bytes}"
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, [a, b, c])

    def tap(self, taps: Any, index: int) -> Any:
        return self.broadcast(self.builder.load(self.builder.gep(taps, [_INT(index)])))

    def with_taps(self, sums: list[Any], rows: list[Any], weights: list[Any]) -> list[Any]:
        """Σ_g weights[g]·rows[r + g] added to the r-th of ``sums``."""
        for g, weight in enumerate(weights):
            block = zip(rows[g : g + BLOCK], sums, strict=True)
            sums = [self.multiply_add(weight, row, total) for row, total in block]
        return sums

    def add_taps(self, totals: list[Any], rows: list[Any], taps: Any) -> None:
        """Add Σ_g taps[g]·rows[r + g] to the r-th of the variables ``totals``."""
        weights = [self.tap(taps, g) for g in range(len(rows) - BLOCK + 1)]
        self.assign(totals, self.with_taps(self.values(totals), rows, weights))

    def below(self, a: Any, b: Any) -> Any:
        """Ordered: a NaN is not below anything."""
        return self.builder.fcmp_ordered("<", a, b)

    def least(self, a: Any, b: Any) -> Any:
        """One instruction; b where one of them is a NaN."""
        return self.builder.select(self.below(a, b), a, b)

    def store_block(self, sums: list[Any], pointer: Any, stride: Any, least: Any) -> None:
        """Store a block of rows, with 0 for what is below ``least``, where that is above 0.

        Comparing and selecting every vector would take 16 instructions from the units that
        multiply, a sixth of what 3 × 3 taps have for them. Blocks in which nothing is below the
        limit need 10: their minima begin with the limit, so that no NaN hides another number.
        """
        builder = self.builder
        stored = self.variables(sums)
        limit = self.broadcast(least)
        cuts = builder.fcmp_ordered(">", least, ir.Constant(self.scalar, 0.0))
        with builder.if_then(cuts):
            lows = [limit, limit]
            for r, total in enumerate(sums):
                lows[r % 2] = self.least(total, lows[r % 2])
            found = self.any(self.below(self.least(*lows), limit))
            with builder.if_then(found, likely=False):
                cut = [builder.select(self.below(x, limit), self.zero, x) for x in sums]
                self.assign(stored, cut)
        for total in self.values(stored):
            self.store(total, pointer)
            pointer = builder.gep(pointer, [stride])

    def any(self, lanes: Any) -> Any:
        bits = ir.IntType(self.lanes)
        return self.builder.icmp_unsigned("!=", self.builder.bitcast(lanes, bits), bits(0))

    def rows(self, source: Any, stride: Any, count: int) -> list[Any]:
        rows = []
        for _ in range(count):
            rows.append(self.load(source, self.lanes))
            source = self.builder.gep(source, [stride])
        return rows

    def add_line(self, totals: list[Any], source: Any, stride: Any, taps: Any, count: Any) -> None:
        """Add Σ_{t<count} taps[t]·source[(r + t)·stride …] to the r-th of the variables ``totals``.

        Every vector is loaded once. The usual sizes of kernels have code of their own; for all
        others, BLOCK − 1 vectors stay in registers from one group of taps to the next.
        """
        builder = self.builder
        after = builder.append_basic_block("line.after")
        general = builder.append_basic_block("line.general")
        choice = builder.switch(count, general)
        for size in _WHOLE_LINES:
            block = builder.append_basic_block(f"line.{size}")
            choice.add_case(ir.Constant(_INT, size), block)
            builder.position_at_end(block)
            self.add_taps(totals, self.rows(source, stride, size + BLOCK - 1), taps)
            builder.branch(after)
        builder.position_at_end(general)
        held = self.variables(self.rows(source, stride, BLOCK - 1))
        moving = self.variables([self.ahead(source, BLOCK - 1, stride), taps])

        def add(size: int) -> None:
            at, tap = self.values(moving)
            rows = self.values(held) + self.rows(at, stride, size)
            self.add_taps(totals, rows, tap)
            self.assign(held, rows[size:])
            next_tap = builder.gep(tap, [ir.Constant(_INT, size)])
            self.assign(moving, [self.ahead(at, size, stride), next_tap])

        group = ir.Constant(_INT, _GROUP)
        with cgutils.for_range(builder, builder.udiv(count, group)):
            add(_GROUP)
        with cgutils.for_range(builder, builder.urem(count, group)):
            add(1)
        builder.branch(after)
        builder.position_at_end(after)

    def turned(self, rows: list[Any]) -> list[Any]:
        """Every 8 × 8 square of a block transposed: shuffles of two vectors (Eklundh, 1972)."""
        lanes, rows = range(self.lanes), list(rows)
        for s in (1, 2, 4):
            upper = [self.lanes + j - s if j & s else j for j in lanes]
            lower = [self.lanes + j if j & s else j + s for j in lanes]
            for i in (i for i in range(BLOCK) if not i & s):
                a, b = rows[i], rows[i + s]
                rows[i], rows[i + s] = self.shuffle(a, b, upper), self.shuffle(a, b, lower)
        return rows


@intrinsic
def elements(typing, f, size):  # type: ignore[no-untyped-def]
    """Elements of f in ``size`` bytes: to LLVM a constant, which f.itemsize is not."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.udiv(values[1], ir.Constant(_INT, f.dtype.bitwidth // 8))

    return types.int64(f, types.int64), generate


@intrinsic
def sum_blocks(typing, f, at, stride, lines, taps, count, out, to, out_stride, blocks, tiny):  # type: ignore[no-untyped-def]
    """Blocks of ``Σ_{l, t<count} taps[l·count + t]·f[at + lines[l] + (r + t)·stride]``, r < BLOCK.

    A block's r-th vector goes to ``out[to + r·out_stride]``, with 0 for what is below ``tiny``; the
    next of the ``blocks`` is one vector to the right, here and there. The order of the sum is the
    same for all elements. ``out`` may overlap what only later blocks would read.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        source, begin, step, offsets, weights, n, target_, end, target_step, many, least = values
        kinds = signature.args
        v = Vectors(context, builder, kinds[0].dtype)
        source = v.pointer(kinds[0], source, begin)
        target_ = v.pointer(kinds[6], target_, end)
        weights = v.pointer(kinds[4], weights, _INT(0))
        table = context.make_array(kinds[3])(context, builder, offsets)
        size = builder.extract_value(table.shape, 0)

        def line(index: Any) -> Any:
            return builder.load(builder.gep(table.data, [index]))

        three = [builder.icmp_signed("==", number, _INT(3)) for number in (size, n)]
        with builder.if_else(builder.and_(*three)) as (whole, general):
            # All of 3 × 3 taps, and where their lines begin, stay in registers.
            with whole:
                starts = [line(_INT(i)) for i in range(3)]
                held = [v.tap(weights, i) for i in range(9)]
                with cgutils.for_range(builder, many) as loop:
                    here = builder.mul(loop.index, _INT(v.lanes))
                    sums = [v.zero] * BLOCK
                    for i, start in enumerate(starts):
                        first = builder.gep(source, [builder.add(here, start)])
                        rows = v.rows(first, step, BLOCK + 2)
                        sums = v.with_taps(sums, rows, held[3 * i : 3 * i + 3])
                    v.store_block(sums, builder.gep(target_, [here]), target_step, least)
            with general, cgutils.for_range(builder, many) as loop:
                here = builder.mul(loop.index, _INT(v.lanes))
                totals = v.variables([v.zero] * BLOCK)
                with cgutils.for_range(builder, size) as each:
                    first = builder.gep(source, [builder.add(here, line(each.index))])
                    v.add_line(totals, first, step, v.ahead(weights, each.index, n), n)
                v.store_block(v.values(totals), builder.gep(target_, [here]), target_step, least)
        return context.get_dummy_value()

    n = types.int64
    return types.void(f, n, n, lines, taps, n, out, n, n, n, f.dtype), generate


@intrinsic
def sum_turned(typing, f, at, taps, count, out, to, out_stride):  # type: ignore[no-untyped-def]
    """``out[to + l·out_stride + r] = Σ_{t<count} taps[t]·f[at + (r + t)·lanes + l]``, r < BLOCK."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        source, begin, weights, n, target_, end, target_step = values
        kinds = signature.args
        v = Vectors(context, builder, kinds[0].dtype)
        source = v.pointer(kinds[0], source, begin)
        target_ = v.pointer(kinds[4], target_, end)
        weights = v.pointer(kinds[2], weights, ir.Constant(_INT, 0))
        totals = v.variables([v.zero] * BLOCK)
        v.add_line(totals, source, ir.Constant(_INT, v.lanes), weights, n)
        for r, row in enumerate(v.turned(v.values(totals))):
            for square in range(0, v.lanes, BLOCK):
                part = v.shuffle(row, row, list(range(square, square + BLOCK)))
                v.store(part, v.ahead(target_, square + r, target_step))
        return context.get_dummy_value()

    n = types.int64
    return types.void(f, n, taps, n, out, n, n), generate


@intrinsic
def turn(typing, f, at, stride, out, to):  # type: ignore[no-untyped-def]
    """``out[to + c·lanes + l] = f[at + l·stride + c]`` for c < BLOCK: a vector from each column."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        source, begin, step, target_, end = values
        kinds = signature.args
        v = Vectors(context, builder, kinds[0].dtype)
        source = v.pointer(kinds[0], source, begin)
        target_ = v.pointer(kinds[3], target_, end)
        rows = [v.load(v.ahead(source, r, step), BLOCK) for r in range(v.lanes)]
        if v.lanes == 2 * BLOCK:
            pairs = zip(rows[:BLOCK], rows[BLOCK:], strict=True)
            rows = [v.shuffle(a, b, list(range(v.lanes))) for a, b in pairs]
        for c, column in enumerate(v.turned(rows)):
            v.store(column, v.ahead(target_, c, ir.Constant(_INT, v.lanes)))
        return context.get_dummy_value()

    n = types.int64
    return types.void(f, n, n, out, n), generate


@intrinsic
def copy(typing, f, at, out, to, count):  # type: ignore[no-untyped-def]
    """``out[to : to + count] = f[at : at + count]``; Numba's own loop moves a number at a time."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        source, begin, target_, end, size = values
        kinds = signature.args
        v = Vectors(context, builder, kinds[0].dtype)
        source, target_ = v.pointer(kinds[0], source, begin), v.pointer(kinds[2], target_, end)
        cgutils.raw_memmove(builder, target_, source, size, v.bytes)
        return context.get_dummy_value()

    n = types.int64
    return types.void(f, n, out, n, n), generate


@intrinsic
def lowest(typing, f, at, vectors):  # type: ignore[no-untyped-def]
    """The least positive number of so many vectors; infinity where there is none."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        source, begin, count = values
        v = Vectors(context, builder, signature.args[0].dtype)
        source = v.pointer(signature.args[0], source, begin)
        infinity = ir.Constant(v.vector, [float("inf")] * v.lanes)
        low = v.variables([infinity])
        with cgutils.for_range(builder, count) as loop:
            x = v.load(v.ahead(source, loop.index, _INT(v.lanes)), v.lanes)
            positive = builder.select(v.below(v.zero, x), x, infinity)
            v.assign(low, [v.least(positive, *v.values(low))])
        name = f"llvm.vector.reduce.fmin.v{v.lanes}f{8 * v.bytes}"
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(v.scalar, [v.vector]), name
        )
        return builder.call(function, v.values(low))

    n = types.int64
    return f.dtype(f, n, n), generate


@intrinsic
def in_registers(typing, out, count):  # type: ignore[no-untyped-def]
    """``count`` multiply-adds to each of 2·BLOCK sums, which begin as the vector that out begins
    with: twice what hides their latency. All together goes there."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        array, repetitions = values
        v = Vectors(context, builder, signature.args[0].dtype)
        at = v.pointer(signature.args[0], array, ir.Constant(_INT, 0))
        factor = v.load(at, v.lanes)
        sums = v.variables([factor] * (2 * BLOCK))
        with cgutils.for_range(builder, repetitions):
            v.assign(sums, [v.multiply_add(x, factor, factor) for x in v.values(sums)])
        total = v.zero
        for x in v.values(sums):
            total = v.multiply_add(x, factor, total)
        v.store(total, at)
        return context.get_dummy_value()

    return types.void(out, types.int64), generate
