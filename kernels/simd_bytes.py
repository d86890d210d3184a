"""Lanes to bytes: one block of `quantise`, in few instructions."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from kernels import emit
from kernels.emit import I32
from kernels.lowering import F32X8, I32X8, N_LANES, element_address, operation
from kernels.simd import AnyArray, _end

__all__ = ["store_block"]

# Below it 127 / max could overflow; such a block counts as zeros.
_TINY = float(np.float32(1e-30))
_INFINITY = 0x7F800000


def store_block(x: AnyArray, i: int, q: AnyArray, j: int) -> None:
    """Write the quantised block of x[i : i + 32] to q[j : j + 11], see `quantise`."""
    values, block = x[i : _end(x, i, 32)], q[j : _end(q, j, 11)]
    largest = np.abs(values).max()  # NaN, if there is one
    finite = bool(np.isfinite(largest))
    factor = np.float32(127) / largest if finite and largest > _TINY else np.float32(0)
    numbers = np.rint(values * factor).astype(np.int8) if finite else np.zeros(32, np.int8)
    total = numbers.sum(dtype=np.int32)
    block[:8] = numbers.view(np.float32)
    block[8] = largest / np.float32(127) if finite else np.nan
    block[9:] = np.array([-128 * total, -8 * total], np.int32).view(np.float32)


@operation(store_block, types.none, types.Array, types.Integer, types.Array, types.Integer)
def _store_block(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    x, i, q, j = args
    source = element_address(context, builder, sig.args[0], x, i, 128)
    target = element_address(context, builder, sig.args[2], q, j, 44)
    lanes = [emit.load(builder, source, F32X8, 32 * part) for part in range(4)]
    # As integers, sizes are in the order of their numbers, with infinity and NaN behind them.
    bits = [builder.and_(builder.bitcast(v, I32X8), emit.ints(0x7FFFFFFF)) for v in lanes]
    while len(bits) > 1:
        a, b, *rest = bits
        bits = [*rest, emit.call(builder, "llvm.smax.v8i32", I32X8, a, b)]
    top_bits = emit.call(builder, "llvm.vector.reduce.smax.v8i32", I32, bits[0])
    finite = builder.icmp_signed("<", top_bits, I32(_INFINITY))
    f32 = ir.FloatType()
    largest = builder.bitcast(top_bits, f32)
    usable = builder.and_(finite, builder.fcmp_ordered(">", largest, f32(_TINY)))
    factor = builder.select(usable, builder.fdiv(f32(127.0), largest), f32(0.0))
    factors = emit.splat(builder, factor)
    number = ir.Constant(F32X8, [0.0] * N_LANES)
    numbers = []
    for value in lanes:
        value = builder.select(
            emit.splat(builder, finite, ir.VectorType(ir.IntType(1), 8)), value, number
        )
        rounded = emit.call(builder, "llvm.rint.v8f32", F32X8, builder.fmul(value, factors))
        numbers.append(builder.fptosi(rounded, I32X8))
    for part, whole in enumerate(numbers):
        small = builder.trunc(whole, ir.VectorType(ir.IntType(8), 8))
        emit.store(builder, small, target, 8 * part)
    a, b, c, d = numbers
    total = builder.add(builder.add(a, b), builder.add(c, d))
    total = emit.call(builder, "llvm.vector.reduce.add.v8i32", I32, total)
    scale = builder.fdiv(largest, f32(127.0))
    emit.store(builder, builder.select(finite, scale, f32(float("nan"))), target, 32)
    emit.store(builder, builder.mul(total, I32(-128)), target, 36)
    emit.store(builder, builder.mul(total, I32(-8)), target, 40)
    return context.get_dummy_value()
