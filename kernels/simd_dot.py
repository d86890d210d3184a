"""Integer products of quantised weights and activations, exact on every CPU.

The lanes of `simd` again, seen as 4 bytes each: the layout of q8 and q4 tiles, where the bytes of a
lane are 4 consecutive inputs of one row. Sums are int32 and exact, so a target may compute them as
it likes:

    x86 with VNNI           vpdpbusd; its left factor is unsigned, so q8 weights are taken + 128
    x86 with AVX2           vpmaddubsw, vpmaddwd, vpaddd; for q8 vpsignb first
    aarch64 with dotprod    sdot
    any other CPU           shifts, multiplications, additions

What is added to weights is taken off again by where a sum starts: `origin` and `dot4` belong to
`factor`, `nibble_origin` and `dot4_nibbles` to `nibble_factor`.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from kernels.lowering import (
    F32X8,
    I32X8,
    N_LANES,
    F32x8Type,
    I32x8Type,
    element_address,
    f32x8,
    i32x8,
    operation,
)
from kernels.simd import AnyArray, F32x8, I32x8, _end, _ints, _splat
from kernels.target import has

__all__ = [
    "absolute",
    "byte_sum",
    "dot4",
    "dot4_nibbles",
    "factor",
    "nibble_factor",
    "nibble_origin",
    "origin",
    "store_bytes",
    "sums_to_f32",
]

VNNI = has("x86", "avx512vnni", "avx512vl") or has("x86", "avxvnni")

I8, I16, I32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)
I8X32, I16X16 = ir.VectorType(I8, 32), ir.VectorType(I16, 16)
I8X16, I32X4 = ir.VectorType(I8, 16), ir.VectorType(I32, 4)


# What each operation means.


def factor(words: I32x8) -> I32x8:
    """Return signed bytes of weights in the form that `dot4` multiplies."""
    return words


def origin(x: AnyArray, i: int) -> I32x8:
    """Return where sums of `dot4` start: x[i] holds the bits of the sum of their right factors."""
    return np.zeros(N_LANES, np.int32)


def dot4(total: I32x8, w: I32x8, x: AnyArray, i: int) -> I32x8:
    """Return total + the products of the 4 bytes of each lane of w with the 4 bytes of x[i].

    All bytes are signed and -128 is not among them; x is a float32 array that holds bits.
    """
    bytes_of_w = np.ascontiguousarray(w).view(np.int8).reshape(N_LANES, 4).astype(np.int32)
    bytes_of_x = x[i : i + 1].view(np.int8).astype(np.int32)
    value: I32x8 = total + bytes_of_w @ bytes_of_x
    return value


def nibble_factor(words: I32x8, high: int) -> I32x8:
    """Return the low (0) or high (1) nibbles of all bytes, as `dot4_nibbles` multiplies them."""
    return (words >> (4 * high)) & 0x0F0F0F0F


def nibble_origin(x: AnyArray, i: int) -> I32x8:
    """Do what `origin` does for nibbles, which stand for numbers less by 8."""
    return np.full(N_LANES, -8 * x[i : i + 1].view(np.int32)[0], np.int32)


def dot4_nibbles(total: I32x8, w: I32x8, x: AnyArray, i: int) -> I32x8:
    """Do what `dot4` does for nibbles."""
    return dot4(total, w, x, i)


def byte_sum(x: AnyArray, i: int, to: AnyArray, j: int) -> None:
    """Write the bits of the int32 sum of the 32 signed bytes at x[i : i + 8] to to[j]."""
    total = x[i : _end(x, i, N_LANES)].view(np.int8).sum(dtype=np.int32)
    to[j : j + 1] = np.array([total]).view(np.float32)


def sums_to_f32(value: I32x8) -> F32x8:
    """Return the lanes as float32; exact below 2^24."""
    return value.astype(np.float32)


def absolute(value: F32x8) -> F32x8:
    """Return the lanes without their sign."""
    return np.abs(value)


def store_bytes(x: AnyArray, i: int, factor: np.float32, to: AnyArray, j: int) -> None:
    """Write rint(x[i : i + 8] * factor) as 8 signed bytes to the bits of to[j : j + 2]; NaN as 0.

    The rounded products are within -127 and 127, or NaN.
    """
    rounded = np.nan_to_num(np.rint(x[i : _end(x, i, N_LANES)] * factor))
    to[j : _end(to, j, 2)] = rounded.astype(np.int8).view(np.float32)


# How compiled code does it.


def _intrinsic(builder: Any, name: str, result: Any, *args: Any) -> Any:
    module = builder.module
    ftype = ir.FunctionType(result, [a.type for a in args])
    function = module.globals.get(name) or ir.Function(module, ftype, name)
    return builder.call(function, args)


def _word_at(context: Any, builder: Any, array_type: Any, x: Any, i: Any) -> Any:
    address = element_address(context, builder, array_type, x, i, 4)
    return builder.load(builder.bitcast(address, I32.as_pointer()), align=4)


def _times(builder: Any, word: Any, number: int) -> Any:
    return _splat(builder, builder.mul(word, I32(number)), I32X8)


@operation(factor, i32x8, I32x8Type)
def _factor(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.xor(args[0], _ints(-0x7F7F7F80)) if VNNI else args[0]


@operation(origin, i32x8, types.Array, types.Integer)
def _origin(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    if not VNNI:
        return _ints(0)
    return _times(builder, _word_at(context, builder, sig.args[0], *args), -128)


@operation(nibble_factor, i32x8, I32x8Type, types.Integer)
def _nibble_factor(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    shift = builder.mul(builder.trunc(args[1], I32), I32(4))
    nibbles = builder.lshr(args[0], _splat(builder, shift, I32X8))
    return builder.and_(nibbles, _ints(0x0F0F0F0F))


@operation(nibble_origin, i32x8, types.Array, types.Integer)
def _nibble_origin(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return _times(builder, _word_at(context, builder, sig.args[0], *args), -8)


@operation(dot4, i32x8, I32x8Type, I32x8Type, types.Array, types.Integer)
def _dot4(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return _dot(context, builder, sig, args, _signed_products)


@operation(dot4_nibbles, i32x8, I32x8Type, I32x8Type, types.Array, types.Integer)
def _dot4_nibbles(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return _dot(context, builder, sig, args, _unsigned_products)


def _dot(context: Any, builder: Any, sig: Any, args: Any, products: Any) -> Any:
    total, w, x, i = args
    right = _splat(builder, _word_at(context, builder, sig.args[2], x, i), I32X8)
    if VNNI:
        return _intrinsic(builder, "llvm.x86.avx512.vpdpbusd.256", I32X8, total, w, right)
    if has("x86", "avx2"):
        # Two products of at most 127 * 127 fit an int16.
        pairs = products(builder, builder.bitcast(w, I8X32), builder.bitcast(right, I8X32))
        ones = ir.Constant(I16X16, [1] * 16)
        four = _intrinsic(builder, "llvm.x86.avx2.pmadd.wd", I32X8, pairs, ones)
        return builder.add(total, four)
    if has("arm64", "dotprod"):
        return _dot4_arm(builder, total, w, right)
    for byte in range(4):
        a, b = (_byte_of(builder, lanes, byte) for lanes in (w, right))
        total = builder.add(total, builder.mul(a, b))
    return total


def _signed_products(builder: Any, w: Any, x: Any) -> Any:
    # The left factor is unsigned: |x| it is, and w takes the sign of x.
    size = _intrinsic(builder, "llvm.abs.v32i8", I8X32, x, ir.Constant(ir.IntType(1), 0))
    signed = _intrinsic(builder, "llvm.x86.avx2.psign.b", I8X32, w, x)
    return _unsigned_products(builder, size, signed)


def _unsigned_products(builder: Any, w: Any, x: Any) -> Any:
    return _intrinsic(builder, "llvm.x86.avx2.pmadd.ub.sw", I16X16, w, x)


def _byte_of(builder: Any, lanes: Any, byte: int) -> Any:
    return builder.ashr(builder.shl(lanes, _ints(24 - 8 * byte)), _ints(24))


def _dot4_arm(builder: Any, total: Any, w: Any, x: Any) -> Any:
    halves = []
    for half in range(2):
        lanes = ir.Constant(I32X4, range(4 * half, 4 * half + 4))
        t, a, b = (builder.shuffle_vector(v, v, lanes) for v in (total, w, x))
        args = t, builder.bitcast(a, I8X16), builder.bitcast(b, I8X16)
        halves.append(_intrinsic(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", I32X4, *args))
    return builder.shuffle_vector(*halves, ir.Constant(I32X8, range(8)))


@operation(byte_sum, types.none, types.Array, types.Integer, types.Array, types.Integer)
def _byte_sum(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    x, i, to, j = args
    source = element_address(context, builder, sig.args[0], x, i, 32)
    values = builder.load(builder.bitcast(source, I8X32.as_pointer()), align=4)
    wide = builder.sext(values, ir.VectorType(I32, 32))
    total = _intrinsic(builder, "llvm.vector.reduce.add.v32i32", I32, wide)
    target = element_address(context, builder, sig.args[2], to, j, 4)
    builder.store(total, builder.bitcast(target, I32.as_pointer()), align=4)
    return context.get_dummy_value()


@operation(sums_to_f32, f32x8, I32x8Type)
def _sums_to_f32(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.sitofp(args[0], F32X8)


@operation(absolute, f32x8, F32x8Type)
def _absolute(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return _intrinsic(builder, "llvm.fabs.v8f32", F32X8, args[0])


@operation(
    store_bytes, types.none, types.Array, types.Integer, types.Float, types.Array, types.Integer
)
def _store_bytes(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    x, i, factor, to, j = args
    source = element_address(context, builder, sig.args[0], x, i, 32)
    values = builder.load(builder.bitcast(source, F32X8.as_pointer()), align=4)
    scaled = builder.fmul(values, _splat(builder, factor, F32X8))
    rounded = _intrinsic(builder, "llvm.rint.v8f32", F32X8, scaled)
    whole = _intrinsic(builder, "llvm.fptosi.sat.v8i32.v8f32", I32X8, rounded)
    small = builder.trunc(whole, ir.VectorType(I8, 8))
    target = element_address(context, builder, sig.args[3], to, j, 8)
    builder.store(small, builder.bitcast(target, small.type.as_pointer()), align=4)
    return context.get_dummy_value()
