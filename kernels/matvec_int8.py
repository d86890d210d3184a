"""Tiled matrix times quantised rows, in integers.

    out[row, r] += sum over b of (sum over k in b of W[r, k] * q[row, k]) * s[r, b] * t[row, b]

b are blocks of 32 inputs, W (n_out, n_k) the integers of q8 or q4 tiles and s their scales, q
(n_rows, n_k) the bytes of `quantise` and t their scales. The inner sums are exact; over blocks each
lane is one chain of additions in rising b that starts at zero, whatever else shares the call.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from kernels.jit import inner, merged
from kernels.quantise import BLOCK_FLOATS
from kernels.simd import F32x8, I32x8, add_to, load_f16, load_words, madd, prefetch, scale, zero
from kernels.simd_dot import (
    dot4,
    dot4_nibbles,
    factor,
    nibble_factor,
    nibble_origin,
    origin,
    sums_to_f32,
)
from kernels.spans import Matrix, Rows

__all__ = ["matvec_int8"]

Q = BLOCK_FLOATS


def words(w: Any, tile: int, k4: int) -> I32x8:
    """Return inputs 4 * k4 .. 4 * k4 + 3 of the tile at element `tile`, a byte each."""
    value: I32x8 = (_words_q8 if w.dtype == np.int64 else _words_q4)(w, tile, k4)
    return value


def start(w: Any, x: Any, i: int) -> I32x8:
    """Return where the sums of a block start whose sum of bytes is in x[i]."""
    value: I32x8 = (_start_q8 if w.dtype == np.int64 else _start_q4)(w, x, i)
    return value


def dot(w: Any, total: I32x8, factors: I32x8, x: Any, i: int) -> I32x8:
    """Return total + the products of 4 inputs of each lane with the 4 bytes of x[i]."""
    value: I32x8 = (_dot_q8 if w.dtype == np.int64 else _dot_q4)(w, total, factors, x, i)
    return value


def scales(w: Any, tile: int) -> F32x8:
    """Return the scales of the tile at element `tile`."""
    value: F32x8 = (_scales_q8 if w.dtype == np.int64 else _scales_q4)(w, tile)
    return value


def fetch_ahead(w: Any, tile: int) -> None:
    """Have the memory about 1 KiB after the tile at element `tile` fetched, as much as a tile."""


def _words_q8(w: Any, tile: int, k4: int) -> Any:
    return factor(load_words(w, tile + 4 * k4))


def _words_q4(w: Any, tile: int, k4: int) -> Any:
    return nibble_factor(load_words(w, tile + 4 * (k4 & 3)), k4 >> 2)


def _start_q8(w: Any, x: Any, i: int) -> Any:
    return origin(x, i)


def _start_q4(w: Any, x: Any, i: int) -> Any:
    return nibble_origin(x, i)


def _dot_q8(w: Any, total: Any, factors: Any, x: Any, i: int) -> Any:
    return dot4(total, factors, x, i)


def _dot_q4(w: Any, total: Any, factors: Any, x: Any, i: int) -> Any:
    return dot4_nibbles(total, factors, x, i)


def _scales_q8(w: Any, tile: int) -> Any:
    return load_f16(w, tile + 32)


def _scales_q4(w: Any, tile: int) -> Any:
    return load_f16(w, tile + 16)


def _fetch_q8(w: Any, tile: int) -> None:
    for line in range(5):
        prefetch(w, tile + 4 * 34 + 8 * line)


def _fetch_q4(w: Any, tile: int) -> None:
    for line in range(3):
        prefetch(w, tile + 8 * 18 + 8 * line)


# Picked by the dtype of w while compiling; numba wants the signatures repeated.


@overload(words)
def _words(w: Any, tile: int, k4: int) -> Any:
    return _words_q8 if w.dtype == types.int64 else _words_q4


@overload(start)
def _start(w: Any, x: Any, i: int) -> Any:
    return _start_q8 if w.dtype == types.int64 else _start_q4


@overload(dot)
def _dot(w: Any, total: Any, factors: Any, x: Any, i: int) -> Any:
    return _dot_q8 if w.dtype == types.int64 else _dot_q4


@overload(fetch_ahead)
def _fetch_ahead(w: Any, tile: int) -> Any:
    return _fetch_q8 if w.dtype == types.int64 else _fetch_q4


@overload(scales)
def _scales(w: Any, tile: int) -> Any:
    return _scales_q8 if w.dtype == types.int64 else _scales_q4


@inner
def matvec_int8(
    m: Matrix, first_tile: int, stop_tile: int, x: Rows, out: Rows, n_rows: int
) -> None:
    """Do what `matvec` does, for x quantised."""
    for t in range(first_tile, stop_tile):
        row = 0
        while row + 4 <= n_rows:
            _four_rows(m, t, x, out, row)
            row += 4
        while row < n_rows:
            _one_row(m, t, x, out, row)
            row += 1


@merged
def _one_row(m: Matrix, t: int, x: Rows, out: Rows, row: int) -> None:
    tile = m.first + t * m.k_tiles * m.tile_size
    at = x.first + row * x.stride
    a = zero()
    for _ in range(m.k_tiles):
        fetch_ahead(m.w, tile)
        d = start(m.w, x.values, at + 9)
        for k4 in range(8):
            d = dot(m.w, d, words(m.w, tile, k4), x.values, at + k4)
        a = madd(a, scale(sums_to_f32(d), scales(m.w, tile)), x.values, at + 8)
        tile += m.tile_size
        at += Q
    add_to(out.values, out.first + row * out.stride + 8 * t, a, m.n_out - 8 * t)


@merged
def _four_rows(m: Matrix, t: int, x: Rows, out: Rows, row: int) -> None:
    """Do the same for rows row to row + 3, reading each weight once."""
    tile = m.first + t * m.k_tiles * m.tile_size
    at0 = x.first + row * x.stride
    at1, at2, at3 = at0 + x.stride, at0 + 2 * x.stride, at0 + 3 * x.stride
    a, b, c, d = zero(), zero(), zero(), zero()
    for k_tile in range(m.k_tiles):
        fetch_ahead(m.w, tile)
        i = Q * k_tile
        a4, b4 = start(m.w, x.values, at0 + i + 9), start(m.w, x.values, at1 + i + 9)
        c4, d4 = start(m.w, x.values, at2 + i + 9), start(m.w, x.values, at3 + i + 9)
        for k4 in range(8):
            w = words(m.w, tile, k4)
            a4 = dot(m.w, a4, w, x.values, at0 + i + k4)
            b4 = dot(m.w, b4, w, x.values, at1 + i + k4)
            c4 = dot(m.w, c4, w, x.values, at2 + i + k4)
            d4 = dot(m.w, d4, w, x.values, at3 + i + k4)
        s = scales(m.w, tile)
        a = madd(a, scale(sums_to_f32(a4), s), x.values, at0 + i + 8)
        b = madd(b, scale(sums_to_f32(b4), s), x.values, at1 + i + 8)
        c = madd(c, scale(sums_to_f32(c4), s), x.values, at2 + i + 8)
        d = madd(d, scale(sums_to_f32(d4), s), x.values, at3 + i + 8)
        tile += m.tile_size
    to = out.first + row * out.stride + 8 * t
    n = m.n_out - 8 * t
    add_to(out.values, to, a, n)
    add_to(out.values, to + out.stride, b, n)
    add_to(out.values, to + 2 * out.stride, c, n)
    add_to(out.values, to + 3 * out.stride, d, n)
