"""Values of 8 lanes: the vocabulary in which the hot loops over tiles and KV pages are written.

A lane is one output row of a weight tile, or one position of a K block; lanes never mix. Each
operation is a Python function that says what it means in NumPy (this body runs with JIT off) and
a few lines of generic LLVM IR for compiled code: no target intrinsics, so every CPU that LLVM
knows can run it. numba's own loops cannot replace it: its SLP vectoriser is off by default.

Types: F32x8 and I32x8 are `<8 x float>` and `<8 x i32>` in compiled code, (8,) arrays else.
Loads and stores take an array and the index of its first element and need no alignment; under
NUMBA_BOUNDSCHECK=1 both ends are checked, else callers guarantee them. Indices are never negative.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types

from kernels.lowering import (
    F32X8,
    I16X8,
    I32X8,
    N_LANES,
    F32x8Type,
    I32x8Type,
    element_address,
    f32x8,
    i32x8,
    make_array,
    operation,
)
from kernels.target import has

__all__ = [
    "F32x8",
    "I32x8",
    "add",
    "add_to",
    "largest",
    "load",
    "load_f16",
    "load_words",
    "madd",
    "max8",
    "prefetch",
    "scale",
    "signed_byte",
    "signed_nibble",
    "store",
    "sum8",
    "zero",
]

F32x8 = npt.NDArray[np.float32]
I32x8 = npt.NDArray[np.int32]
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


def load_words(array: AnyArray, i: int) -> I32x8:
    """Return the 32 bytes that start at element i of an integer array, as int32."""
    return array[i : _end(array, i, 32 // array.itemsize)].view(np.int32).copy()


def store(array: AnyArray, i: int, value: F32x8) -> None:
    """Write array[i : i + 8] of a float32 array."""
    array[i : _end(array, i, N_LANES)] = value


def add_to(array: AnyArray, i: int, value: F32x8, n: int) -> None:
    """Add the first min(n, 8) lanes to array[i : i + n] of a float32 array in place."""
    n = min(n, N_LANES)
    array[i : _end(array, i, n)] += value[:n]


def add(a: F32x8, b: F32x8) -> F32x8:
    """Return a + b, lane by lane."""
    return a + b


def largest(a: F32x8, b: F32x8) -> F32x8:
    """Return the larger of a and b, lane by lane; b where they do not compare (NaN)."""
    value: F32x8 = np.where(a > b, a, b)
    return value


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


def signed_byte(words: I32x8, j: int) -> F32x8:
    """Return byte j (0 = lowest) of each word as a signed number."""
    value: F32x8 = ((words << (24 - 8 * j)) >> 24).astype(np.float32)
    return value


def signed_nibble(words: I32x8, j: int) -> F32x8:
    """Return nibble j (0 = lowest) of each word less 8."""
    value: F32x8 = (((words >> (4 * j)) & 15) - 8).astype(np.float32)
    return value


def prefetch(array: AnyArray, i: int) -> None:
    """Have the cache line of element i fetched, which may lie outside the array: no access."""


def _end(array: AnyArray, i: int, n: int) -> int:
    """Return i + n after checking that the array has these elements."""
    if i < 0 or i + n > array.size:
        raise IndexError(f"elements {i} to {i + n} of an array of {array.size}")
    return i + n


# How compiled code does it.


def _vector_address(
    context: Any, builder: Any, sig: Any, args: Any, vector: ir.VectorType, n_bytes: int = 32
) -> Any:
    """Return the address of element args[1] of array args[0] as a pointer to a vector."""
    address = element_address(context, builder, sig.args[0], args[0], args[1], n_bytes)
    return builder.bitcast(address, vector.as_pointer())


def _ints(value: int) -> ir.Constant:
    return ir.Constant(I32X8, [value] * N_LANES)


def _splat(builder: Any, value: Any, vector: ir.VectorType) -> Any:
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.IntType(32)(0))
    return builder.shuffle_vector(first, first, _ints(0))


def _shift_amount(builder: Any, value: Any, factor: int, offset: int) -> Any:
    """Return offset + factor * value in every int32 lane."""
    narrow = builder.trunc(value, ir.IntType(32))
    scaled = builder.add(builder.mul(narrow, narrow.type(factor)), narrow.type(offset))
    return _splat(builder, scaled, I32X8)


@operation(zero, f32x8)
def _zero(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return ir.Constant(F32X8, [0.0] * N_LANES)


@operation(load, f32x8, types.Array, types.Integer)
def _load(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    if sig.args[0].dtype == types.uint16:
        return _load_f16(context, builder, sig, args)
    address = _vector_address(context, builder, sig, args, F32X8)
    return builder.load(address, align=1)


@operation(load_words, i32x8, types.Array, types.Integer)
def _load_words(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    address = _vector_address(context, builder, sig, args, I32X8)
    return builder.load(address, align=1)


@operation(load_f16, f32x8, types.Array, types.Integer)
def _load_f16(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    address = _vector_address(context, builder, sig, args, I16X8, 16)
    if has("x86", "f16c") or has("arm64"):
        halves = builder.bitcast(address, ir.VectorType(ir.HalfType(), N_LANES).as_pointer())
        return builder.fpext(builder.load(halves, align=1), F32X8)
    # In integers, since not every CPU converts half precision. With m the exponent and mantissa
    # in float32's place: normal numbers and NaN only need another exponent, subnormal ones are
    # normalised by an exact subtraction.
    bits = builder.zext(builder.load(address, align=1), I32X8)
    m = builder.shl(builder.and_(bits, _ints(0x7FFF)), _ints(13))
    sign = builder.shl(builder.and_(bits, _ints(0x8000)), _ints(16))
    normal = builder.add(m, _ints(112 << 23))
    tiny = builder.bitcast(builder.add(m, _ints(113 << 23)), F32X8)
    tiny = builder.bitcast(builder.fsub(tiny, ir.Constant(F32X8, [2.0**-14] * N_LANES)), I32X8)
    special = builder.add(m, _ints((224 << 23) - (1 << 32)))
    is_tiny = builder.icmp_signed("<", m, _ints(1 << 23))
    is_special = builder.icmp_signed(">=", m, _ints(0x7C00 << 13))
    magnitude = builder.select(is_special, special, builder.select(is_tiny, tiny, normal))
    return builder.bitcast(builder.or_(magnitude, sign), F32X8)


@operation(store, types.none, types.Array, types.Integer, F32x8Type)
def _store(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    address = _vector_address(context, builder, sig, args, F32X8)
    builder.store(args[2], address, align=1)
    return context.get_dummy_value()


@operation(add_to, types.none, types.Array, types.Integer, F32x8Type, types.Integer)
def _add_to(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    array, i, value, n = args
    with builder.if_else(builder.icmp_signed(">=", n, n.type(N_LANES))) as (whole, part):
        with whole:
            address = _vector_address(context, builder, sig, args, F32X8)
            total = builder.fadd(builder.load(address, align=1), value)
            builder.store(total, address, align=1)
        with part:
            for lane in range(N_LANES):
                with builder.if_then(builder.icmp_signed("<", n.type(lane), n)):
                    at = builder.add(i, i.type(lane))
                    slot = element_address(context, builder, sig.args[0], array, at, 4)
                    addend = builder.extract_element(value, ir.IntType(32)(lane))
                    builder.store(builder.fadd(builder.load(slot), addend), slot)
    return context.get_dummy_value()


@operation(prefetch, types.none, types.Array, types.Integer)
def _prefetch(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    struct = make_array(sig.args[0])(context, builder, args[0])
    pointer = builder.bitcast(builder.gep(struct.data, [args[1]]), ir.IntType(8).as_pointer())
    i32 = ir.IntType(32)
    name = "llvm.prefetch.p0"
    ftype = ir.FunctionType(ir.VoidType(), [pointer.type, i32, i32, i32])
    function = builder.module.globals.get(name) or ir.Function(builder.module, ftype, name)
    # To be read, into all levels (only the last one is far slower, measured), data.
    builder.call(function, [pointer, i32(0), i32(3), i32(1)])
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
    x = _splat(builder, builder.load(address), F32X8)
    return builder.fadd(args[0], builder.fmul(args[1], x))


@operation(scale, f32x8, F32x8Type, F32x8Type)
def _scale(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.fmul(args[0], args[1])


@operation(signed_byte, f32x8, I32x8Type, types.Integer)
def _signed_byte(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    top = builder.shl(args[0], _shift_amount(builder, args[1], -8, 24))
    return builder.sitofp(builder.ashr(top, _ints(24)), F32X8)


@operation(signed_nibble, f32x8, I32x8Type, types.Integer)
def _signed_nibble(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    low = builder.lshr(args[0], _shift_amount(builder, args[1], 4, 0))
    return builder.sitofp(builder.sub(builder.and_(low, _ints(15)), _ints(8)), F32X8)
