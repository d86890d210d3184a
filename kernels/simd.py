"""Values of 8 lanes: the vocabulary in which the hot loops over tiles and KV pages are written.

A lane is one output row of a weight tile, or one position of a K block; lanes never mix. Each
operation is a Python function that says what it means in NumPy (this body runs with JIT off) and
a few lines of generic LLVM IR for compiled code: no target intrinsics, so every CPU that LLVM
knows can run it. numba's own loops cannot replace it: its SLP vectoriser is off by default.

F32x8 is `<8 x float>` in compiled code, a (8,) array else.
Loads and stores take an array and the index of its first element and need no alignment; under
NUMBA_BOUNDSCHECK=1 both ends are checked, else callers guarantee them. Indices are never negative.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types

from kernels import emit
from kernels.lowering import (
    F32X8,
    N_LANES,
    F32x8Type,
    element_address,
    f32x8,
    operation,
)

__all__ = [
    "F32x8",
    "add",
    "largest",
    "less",
    "load",
    "load_f16",
    "madd",
    "max8",
    "quotient",
    "same",
    "scale",
    "store",
    "sum8",
    "times",
    "zero",
]

F32x8 = npt.NDArray[np.float32]
AnyArray = npt.NDArray[Any]


# What each operation means.


def zero() -> F32x8:
    """Return 8 zeros."""
    return np.zeros(N_LANES, np.float32)


def load(array: AnyArray, i: int) -> F32x8:
    """Return array[i : i + 8] of a float32 array, or of a uint16 array of float16 bits."""
    if array.dtype == np.uint16:
        return load_f16(array, i)
    return array[i : _end(array, i, N_LANES)].copy()


def load_f16(array: AnyArray, i: int) -> F32x8:
    """Return the 16 bytes that start at element i, of any dtype, as 8 exact float16 values."""
    n = 16 // array.itemsize
    value: F32x8 = array[i : _end(array, i, n)].view(np.float16).astype(np.float32)
    return value


def store(array: AnyArray, i: int, value: F32x8) -> None:
    """Write array[i : i + 8] of a float32 array."""
    array[i : _end(array, i, N_LANES)] = value


def add(a: F32x8, b: F32x8) -> F32x8:
    """Return a + b, lane by lane."""
    return a + b


def largest(a: F32x8, b: F32x8) -> F32x8:
    """Return the larger of a and b, lane by lane; b where they do not compare (NaN)."""
    value: F32x8 = np.where(a > b, a, b)
    return value


def less(a: F32x8, b: F32x8) -> F32x8:
    """Return a - b, lane by lane."""
    return a - b


def quotient(a: F32x8, b: F32x8) -> F32x8:
    """Return a / b, lane by lane."""
    return a / b


def same(x: np.float32) -> F32x8:
    """Return 8 lanes that hold x."""
    return np.full(N_LANES, x, np.float32)


def times(value: F32x8, x: np.float32) -> F32x8:
    """Return value * x, lane by lane."""
    return value * x


def max8(value: F32x8) -> np.float32:
    """Return the largest lane; lanes that do not compare (NaN) may be passed over."""
    top = value[0]
    for lane in value[1:]:
        top = lane if lane > top else top
    return np.float32(top)


def sum8(value: F32x8) -> np.float32:
    """Return ((lane 0 + lane 1) + lane 2) + ... in rising order."""
    total = value[0]
    for lane in value[1:]:
        total = total + lane
    return np.float32(total)


def madd(total: F32x8, w: F32x8, x: AnyArray, i: int) -> F32x8:
    """Return total + w * x[i] of a float32 array x, product and sum rounded one by one."""
    value: F32x8 = total + w * x[i]
    return value


def scale(w: F32x8, factor: F32x8) -> F32x8:
    """Return w * factor, lane by lane."""
    return w * factor


def _end(array: AnyArray, i: int, n: int) -> int:
    """Return i + n after checking that the array has these elements."""
    if i < 0 or i + n > array.size:
        raise IndexError(f"elements {i} to {i + n} of an array of {array.size}")
    return i + n


# How compiled code does it.


def _vector_address(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """Return the address of element args[1] of array args[0] as a pointer to 8 float32."""
    address = element_address(context, builder, sig.args[0], args[0], args[1], 32)
    return builder.bitcast(address, F32X8.as_pointer())


@operation(zero, f32x8)
def _zero(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return ir.Constant(F32X8, [0.0] * N_LANES)


@operation(load, f32x8, types.Array, types.Integer)
def _load(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    if sig.args[0].dtype == types.uint16:
        return _load_f16(context, builder, sig, args)
    address = _vector_address(context, builder, sig, args)
    return builder.load(address, align=1)


@operation(load_f16, f32x8, types.Array, types.Integer)
def _load_f16(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    array, i = args
    address = element_address(context, builder, sig.args[0], array, i, 16)
    return emit.from_halves(builder, address)


@operation(store, types.none, types.Array, types.Integer, F32x8Type)
def _store(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    address = _vector_address(context, builder, sig, args)
    builder.store(args[2], address, align=1)
    return context.get_dummy_value()


@operation(add, f32x8, F32x8Type, F32x8Type)
def _add(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.fadd(args[0], args[1])


@operation(largest, f32x8, F32x8Type, F32x8Type)
def _largest(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", args[0], args[1]), args[0], args[1])


@operation(max8, types.float32, F32x8Type)
def _max8(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    top = builder.extract_element(args[0], ir.IntType(32)(0))
    for i in range(1, N_LANES):
        lane = builder.extract_element(args[0], ir.IntType(32)(i))
        top = builder.select(builder.fcmp_ordered(">", lane, top), lane, top)
    return top


@operation(sum8, types.float32, F32x8Type)
def _sum8(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    total = builder.extract_element(args[0], ir.IntType(32)(0))
    for lane in range(1, N_LANES):
        total = builder.fadd(total, builder.extract_element(args[0], ir.IntType(32)(lane)))
    return total


@operation(madd, f32x8, F32x8Type, F32x8Type, types.Array, types.Integer)
def _madd(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    address = element_address(context, builder, sig.args[2], args[2], args[3], 4)
    x = emit.splat(builder, builder.load(address))
    return builder.fadd(args[0], builder.fmul(args[1], x))


@operation(scale, f32x8, F32x8Type, F32x8Type)
def _scale(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.fmul(args[0], args[1])


@operation(less, f32x8, F32x8Type, F32x8Type)
def _less(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.fsub(args[0], args[1])


@operation(quotient, f32x8, F32x8Type, F32x8Type)
def _quotient(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.fdiv(args[0], args[1])


@operation(same, f32x8, types.Float)
def _same(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return emit.splat(builder, args[0])


@operation(times, f32x8, F32x8Type, types.Float)
def _times(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.fmul(args[0], emit.splat(builder, args[1]))
