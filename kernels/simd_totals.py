"""Running totals of n_tiles x n_rows values of 8 lanes, which compiled code keeps in registers.

A tile gives 8 neighbouring elements of a row. Both numbers are literals where totals are made: each
shape is a type of its own.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import register_model

from kernels import emit
from kernels.emit import ZMM
from kernels.lowering import (
    F32X8,
    N_LANES,
    LoweredModel,
    LoweredType,
    cgutils,
    element_address,
    operation,
)
from kernels.simd import AnyArray, _end

__all__ = [
    "Totals",
    "TotalsType",
    "add_totals",
    "keep_totals",
    "kept_totals",
    "no_columns",
    "same_totals",
    "store_totals",
]

Totals = npt.NDArray[np.float32]


# What each operation means.


def no_columns(n_tiles: int, n_rows: int) -> Totals:
    """Return zeros for steps of literal numbers of tiles, an even one, and rows."""
    return np.zeros((n_tiles, n_rows, N_LANES), np.float32)


def add_totals(
    out: AnyArray, i: int, row_step: int, tile_step: int, totals: Totals, n: int, n_rows: int
) -> None:
    """Add totals to n_rows rows of a float32 array in place.

    Lane l of tile a and row r goes to out[i + r * row_step + a * tile_step + l] if
    a * tile_step + l < n. Totals of more than two rows are of neighbouring tiles: tile_step is 8.
    """
    for a in range(totals.shape[0]):
        n_lanes = min(max(n - a * tile_step, 0), N_LANES)
        for r in range(min(n_rows, totals.shape[1]) if n_lanes else 0):
            at = i + r * row_step + a * tile_step
            out[at : _end(out, at, n_lanes)] += totals[a, r, :n_lanes]


def store_totals(
    out: AnyArray, i: int, row_step: int, totals: Totals, n_tiles: int, n_rows: int,
    factor: np.float32,
) -> None:  # fmt: skip
    """Write the totals of n_tiles tiles and n_rows rows, times a factor, side by side in each row.

    Lane l of tile a and row r goes to out[i + r * row_step + 8 * a + l].
    """
    flat = totals[:n_tiles, :n_rows].transpose(1, 0, 2).reshape(n_rows, -1)
    for r in range(len(flat)):
        at = i + r * row_step
        out[at : _end(out, at, flat.shape[1])] = flat[r] * factor


def keep_totals(values: AnyArray, i: int, totals: Totals) -> None:
    """Write totals to a float32 array from values[i] on, in an order of their own."""
    values[i : _end(values, i, totals.size)] = totals.ravel()


def kept_totals(totals: Totals, values: AnyArray, i: int) -> Totals:
    """Return what `keep_totals` wrote of totals of the same shape."""
    return values[i : _end(values, i, totals.size)].reshape(totals.shape)


# How compiled code does it.


class TotalsType(LoweredType):
    """Totals of n_tiles tiles and n_rows rows: vectors in the order [tile][row].

    Where vectors have 16 lanes, one holds the totals of two tiles.
    """

    def __init__(self, n_tiles: int, n_rows: int) -> None:
        self.n_tiles, self.n_rows = n_tiles, n_rows
        self.wide = ZMM and n_tiles > 1 and n_rows > 2
        self.n_vectors = n_tiles * n_rows // (2 if self.wide else 1)
        vector = ir.VectorType(ir.FloatType(), 16 if self.wide else N_LANES)
        super().__init__(f"totals({n_tiles}, {n_rows})", ir.ArrayType(vector, self.n_vectors))

    def unpack(self, builder: Any, totals: Any) -> list[Any]:
        """Return the vectors."""
        return [builder.extract_value(totals, j) for j in range(self.n_vectors)]

    def pack(self, builder: Any, vectors: list[Any]) -> Any:
        """Return vectors as a value of this type."""
        totals = ir.Constant(self.llvm_type, ir.Undefined)
        for j, vector in enumerate(vectors):
            totals = builder.insert_value(totals, vector, j)
        return totals

    def lanes(self, builder: Any, totals: Any) -> dict[tuple[int, int], Any]:
        """Return the 8 lanes of every tile and row."""
        vectors = self.unpack(builder, totals)
        if not self.wide:
            return {divmod(j, self.n_rows): vector for j, vector in enumerate(vectors)}
        found = {}
        for j, vector in enumerate(vectors):
            pair, r = divmod(j, self.n_rows)
            found[2 * pair, r], found[2 * pair + 1, r] = emit.halves(builder, vector)
        return found


register_model(TotalsType)(LoweredModel)


def _columns_type(n_tiles: Any, n_rows: Any) -> Any:
    literal = isinstance(n_tiles, types.IntegerLiteral) and isinstance(n_rows, types.IntegerLiteral)
    return TotalsType(n_tiles.literal_value, n_rows.literal_value) if literal else None


@operation(no_columns, _columns_type, types.Integer, types.Integer)
def _no_columns(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return ir.Constant(sig.return_type.llvm_type, None)


@operation(
    add_totals, types.none, types.Array, types.Integer, types.Integer, types.Integer, TotalsType,
    types.Integer, types.Integer,
)  # fmt: skip
def _add_totals(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    out, i, row_step, tile_step, totals, n, n_rows = args
    shape, out_type = sig.args[4], sig.args[0]

    def address(a: int, r: int, n_bytes: int, lane: Any) -> Any:
        at = builder.add(i, builder.mul(row_step, row_step.type(r)))
        at = builder.add(builder.add(at, builder.mul(tile_step, tile_step.type(a))), lane)
        return element_address(context, builder, out_type, out, at, n_bytes)

    n = context.cast(builder, n, sig.args[5], types.intp)
    tile_step = context.cast(builder, tile_step, sig.args[3], types.intp)
    before_last = builder.mul(tile_step, tile_step.type(shape.n_tiles - 1))
    all_lanes = builder.icmp_signed(">=", n, builder.add(before_last, n.type(N_LANES)))
    all_rows = builder.icmp_signed(">=", n_rows, n_rows.type(shape.n_rows))
    temporary = cgutils.alloca_once(builder, F32X8)
    with builder.if_else(builder.and_(all_lanes, all_rows)) as (whole, part):
        with whole:
            for j, value in enumerate(shape.unpack(builder, totals)):
                pair, r = divmod(j, shape.n_rows)
                n_lanes = value.type.count
                pointer = address(pair * n_lanes // 8, r, 4 * n_lanes, i.type(0))
                pointer = builder.bitcast(pointer, value.type.as_pointer())
                builder.store(builder.fadd(builder.load(pointer, align=1), value), pointer, align=1)
        with part:
            numbers = builder.bitcast(temporary, ir.FloatType().as_pointer())
            for (a, r), value in shape.lanes(builder, totals).items():
                builder.store(value, temporary)
                left = builder.sub(n, builder.mul(tile_step, tile_step.type(a)))
                few = builder.icmp_signed("<", left, left.type(8))
                left = builder.select(few, left, left.type(8))
                there = builder.icmp_signed("<", n_rows.type(r), n_rows)
                with cgutils.for_range(builder, builder.select(there, left, left.type(0))) as loop:
                    slot = address(a, r, 4, loop.index)
                    addend = builder.load(builder.gep(numbers, [loop.index]))
                    builder.store(builder.fadd(builder.load(slot), addend), slot)
    return context.get_dummy_value()


@operation(
    store_totals, types.none, types.Array, types.Integer, types.Integer, TotalsType, types.Integer,
    types.Integer, types.Float,
)  # fmt: skip
def _store_totals(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    out, i, row_step, totals, n_tiles, n_rows, factor = args
    shape, out_type = sig.args[3], sig.args[0]
    factors = emit.splat(builder, factor)
    for (a, r), value in shape.lanes(builder, totals).items():
        is_there = builder.and_(
            builder.icmp_signed("<", n_tiles.type(a), n_tiles),
            builder.icmp_signed("<", n_rows.type(r), n_rows),
        )
        with builder.if_then(is_there):
            at = builder.add(i, builder.mul(row_step, row_step.type(r)))
            at = builder.add(at, at.type(8 * a))
            pointer = element_address(context, builder, out_type, out, at, 32)
            pointer = builder.bitcast(pointer, F32X8.as_pointer())
            builder.store(builder.fmul(value, factors), pointer, align=1)
    return context.get_dummy_value()


@operation(keep_totals, types.none, types.Array, types.Integer, TotalsType)
def _keep_totals(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    values, i, totals = args
    shape = sig.args[2]
    for j, vector in enumerate(shape.unpack(builder, totals)):
        n = vector.type.count
        at = builder.add(i, i.type(j * n))
        pointer = element_address(context, builder, sig.args[0], values, at, 4 * n)
        builder.store(vector, builder.bitcast(pointer, vector.type.as_pointer()), align=4)
    return context.get_dummy_value()


def same_totals(totals: Any, *others: Any) -> Any:
    """Return the type of the first argument: that of the result of an operation on totals."""
    return totals


@operation(kept_totals, same_totals, TotalsType, types.Array, types.Integer)
def _kept_totals(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    _, values, i = args
    shape = sig.args[0]
    vector = shape.llvm_type.element
    found = []
    for j in range(shape.n_vectors):
        at = builder.add(i, i.type(j * vector.count))
        pointer = element_address(context, builder, sig.args[1], values, at, 4 * vector.count)
        found.append(builder.load(builder.bitcast(pointer, vector.as_pointer()), align=4))
    return shape.pack(builder, found)
