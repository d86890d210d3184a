"""float16 numbers kept as uint16 bits, in integer arithmetic that every CPU has.

Rounds to nearest, ties to even; subnormals and infinities are exact, NaN stays NaN.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import overload

from kernels.jit import inner
from kernels.lowering import operation

__all__ = ["bits_of", "float_of", "from_half", "from_stored", "to_half", "to_stored"]

# Every literal is a typed scalar: numba widens mixed widths to int64, NumPy warns on overflow.
U32 = np.uint32
_MAGNITUDE = U32(0x7FFFFFFF)
_TOO_LARGE = U32(0x47800000)  # 65536.0, the first number past every rounding to 65504
_INFINITY = U32(0x7F800000)
_SMALLEST_NORMAL = U32(113 << 23)  # 2 ** -14
_REBIAS = U32(112 << 23)
_TINY_MAGIC = U32(126 << 23)  # 0.5: its last mantissa bit weighs as much as half's smallest step


def float_of(bits: Any) -> Any:
    """Return the float32 with these uint32 bits."""
    return bits.view(np.float32)


def bits_of(x: Any) -> Any:
    """Return the uint32 bits of a float32."""
    return x.view(np.uint32)


@operation(float_of, types.float32, types.Integer)
def _float_of(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.bitcast(args[0], ir.FloatType())


@operation(bits_of, types.uint32, types.Float)
def _bits_of(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.bitcast(args[0], ir.IntType(32))


@inner
def to_half(x: Any) -> Any:
    """Return the float16 bits (uint16) nearest to a float32."""
    bits = bits_of(x)
    m = U32(bits & _MAGNITUDE)
    if m >= _TOO_LARGE:
        h = U32(0x7E00) if m > _INFINITY else U32(0x7C00)
    elif m < _SMALLEST_NORMAL:
        h = U32(bits_of(np.float32(float_of(m) + np.float32(0.5))) - _TINY_MAGIC)
    else:
        odd = U32(U32(m >> U32(13)) & U32(1))
        h = U32(U32(U32(m - _REBIAS) + U32(0xFFF) + odd) >> U32(13))
    sign = U32(U32(bits >> U32(16)) & U32(0x8000))
    return np.uint16(h | sign)


@inner
def from_half(h: Any) -> Any:
    """Return the float32 value of float16 bits (uint16)."""
    m = U32(U32(U32(h) & U32(0x7FFF)) << U32(13))
    if m >= U32(0x7C00 << 13):
        bits = U32(m + U32(_REBIAS + _REBIAS))
    elif m < U32(1 << 23):
        bits = bits_of(np.float32(float_of(U32(m + _SMALLEST_NORMAL)) - np.float32(2.0**-14)))
    else:
        bits = U32(m + _REBIAS)
    sign = U32(U32(U32(h) & U32(0x8000)) << U32(16))
    return float_of(U32(bits | sign))


def to_stored(values: Any, x: Any) -> Any:
    """Return a float32 in the form that the array `values` keeps: itself, or float16 bits."""
    return to_half(x) if values.dtype == np.uint16 else x


@overload(to_stored)
def _to_stored_dtype(values: Any, x: Any) -> Any:
    return _to_half_of if values.dtype == types.uint16 else _plain_of


def _to_half_of(values: Any, x: Any) -> Any:
    return to_half(x)


def _plain_of(values: Any, x: Any) -> Any:
    return x


def from_stored(values: Any, i: int) -> Any:
    """Return element i of an array of float32, float16 bits (uint16) or int8 as a float32."""
    return from_half(values[i]) if values.dtype == np.uint16 else np.float32(values[i])


@overload(from_stored)
def _from_stored_dtype(values: Any, i: int) -> Any:
    if values.dtype == types.int8:
        return _from_byte_at
    return _from_half_at if values.dtype == types.uint16 else _plain_at


def _from_half_at(values: Any, i: int) -> Any:
    return from_half(values[i])


def _from_byte_at(values: Any, i: int) -> Any:
    return np.float32(values[i])


def _plain_at(values: Any, i: int) -> Any:
    return values[i]
