"""Tiled matrix times rows, for all weight formats.

    out[row, r] += sum over k of W[r, k] * x[row, k]        W (n_out, n_k), x (n_rows, n_k)

One lane is one output r: its sum is one chain of additions in rising k that starts at zero, each
product and sum rounded, whatever else shares the call. Weights become exact float32 values in
registers (a quantised weight has at most 19 significant bits).

The dtype of `w` says the format, so that each format is a specialisation of its own:
float32 = F32, uint16 = F16, int32 = Q8, uint32 = Q4 (see `layout` for the tiles). With int64 = Q8
and uint64 = Q4 the rows of x are quantised too, see `matvec_int8`.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from kernels.jit import inner, merged
from kernels.layout import WeightFormat
from kernels.matvec_int8 import matvec_int8
from kernels.quantise import quantises
from kernels.simd import (
    F32x8,
    add_to,
    load,
    load_f16,
    load_words,
    madd,
    scale,
    signed_byte,
    signed_nibble,
    zero,
)
from kernels.spans import Matrix, Rows

__all__ = ["Matrix", "matvec", "weight_dtype"]

_DTYPES: dict[WeightFormat, Any] = {
    WeightFormat.F32: np.float32,
    WeightFormat.F16: np.uint16,
    WeightFormat.Q8: np.int32,
    WeightFormat.Q4: np.uint32,
}
_INT8_DTYPES: dict[WeightFormat, Any] = {WeightFormat.Q8: np.int64, WeightFormat.Q4: np.uint64}


def weight_dtype(fmt: WeightFormat, int8: bool) -> Any:
    """Return as what elements kernels see the store; `int8`: quantise activations if they can."""
    return _INT8_DTYPES.get(fmt, _DTYPES[fmt]) if int8 else _DTYPES[fmt]


def column(w: Any, tile: int, k4: int, k: int) -> F32x8:
    """Return the 8 weights of input 4 * k4 + k of the tile that starts at element `tile`."""
    bodies: dict[Any, Any] = {np.int32: _column_q8, np.uint32: _column_q4}
    value: F32x8 = bodies.get(w.dtype.type, _column_plain)(w, tile, k4, k)
    return value


def _column_plain(w: Any, tile: int, k4: int, k: int) -> Any:
    return load(w, tile + 32 * k4 + 8 * k)


def _column_q8(w: Any, tile: int, k4: int, k: int) -> Any:
    return scale(signed_byte(load_words(w, tile + 8 * k4), k), load_f16(w, tile + 64))


def _column_q4(w: Any, tile: int, k4: int, k: int) -> Any:
    words = load_words(w, tile + 8 * (k4 & 3))
    return scale(signed_nibble(words, 2 * k + (k4 >> 2)), load_f16(w, tile + 32))


@overload(column)
def _column_of_dtype(w: Any, tile: int, k4: int, k: int) -> Any:
    """Pick the body for the dtype of w while compiling; numba wants its signature repeated."""
    bodies = {types.int32: _column_q8, types.uint32: _column_q4}
    return bodies.get(w.dtype, _column_plain)


def matvec(m: Matrix, first_tile: int, stop_tile: int, x: Rows, out: Rows, n_rows: int) -> None:
    """Add to out the products of row tiles [first_tile, stop_tile) with every row of x.

    x rows are read up to the padded k (32 * k_tiles), so their padding must be finite; they are
    quantised ones (see `quantise`) if the dtype of m.w says so. Four rows share one pass over the
    weights.
    """
    body = matvec_int8 if quantises(m.w) else _matvec_f32
    body(m, first_tile, stop_tile, x, out, n_rows)


@overload(matvec)
def _matvec_of_dtype(m: Any, first_tile: int, stop_tile: int, x: Any, out: Any, n_rows: int) -> Any:
    """Pick the body for the dtype of m.w while compiling."""
    w = m.types[m.fields.index("w")]
    return _call_int8 if w.dtype in (types.int64, types.uint64) else _call_f32


def _call_int8(m: Any, first_tile: int, stop_tile: int, x: Any, out: Any, n_rows: int) -> None:
    matvec_int8(m, first_tile, stop_tile, x, out, n_rows)


def _call_f32(m: Any, first_tile: int, stop_tile: int, x: Any, out: Any, n_rows: int) -> None:
    _matvec_f32(m, first_tile, stop_tile, x, out, n_rows)


@inner
def _matvec_f32(
    m: Matrix, first_tile: int, stop_tile: int, x: Rows, out: Rows, n_rows: int
) -> None:
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
    """out[row, 8t : 8t + 8] += W[8t : 8t + 8] . x[row]."""
    tile = m.first + t * m.k_tiles * m.tile_size
    at = x.first + row * x.stride
    a = zero()
    for _ in range(m.k_tiles):
        for k4 in range(8):
            for k in range(4):
                a = madd(a, column(m.w, tile, k4, k), x.values, at + 4 * k4 + k)
        tile += m.tile_size
        at += 32
    add_to(out.values, out.first + row * out.stride + 8 * t, a, m.n_out - 8 * t)


@merged
def _four_rows(m: Matrix, t: int, x: Rows, out: Rows, row: int) -> None:
    """Do the same for rows row to row + 3, unpacking each weight once."""
    tile = m.first + t * m.k_tiles * m.tile_size
    at0 = x.first + row * x.stride
    at1, at2, at3 = at0 + x.stride, at0 + 2 * x.stride, at0 + 3 * x.stride
    a, b, c, d = zero(), zero(), zero(), zero()
    for k_tile in range(m.k_tiles):
        for k4 in range(8):
            for k in range(4):
                w = column(m.w, tile, k4, k)
                i = 32 * k_tile + 4 * k4 + k
                a = madd(a, w, x.values, at0 + i)
                b = madd(b, w, x.values, at1 + i)
                c = madd(c, w, x.values, at2 + i)
                d = madd(d, w, x.values, at3 + i)
        tile += m.tile_size
    to = out.first + row * out.stride + 8 * t
    n = m.n_out - 8 * t
    add_to(out.values, to, a, n)
    add_to(out.values, to + out.stride, b, n)
    add_to(out.values, to + 2 * out.stride, c, n)
    add_to(out.values, to + 3 * out.stride, d, n)
