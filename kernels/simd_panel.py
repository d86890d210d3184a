"""Panels: a block of weights as float32, laid out for vectors of 16 lanes, times many rows.

    panel[k][lane] = W[lane, k]                       lanes: the 64 outputs of 8 tiles
    totals[a, r, lane] += sum over inputs k of  panel[k][8 * a + lane] * x[r, k]

Weights become exact float32 values, whatever their format, once for all rows. Each lane's sum is
one chain in rising k, as in `simd_tile`: the bits are the same.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from kernels.emit import I64
from kernels.lowering import element_address, make_array, operation
from kernels.simd import AnyArray, _end
from kernels.simd_tile import clamped, tile_bytes, unpacked
from kernels.simd_totals import Totals, TotalsType, same_totals
from kernels.tile_code import panel_products, unpack_columns

__all__ = ["PANEL_ROWS", "PANEL_TILES", "add_panel", "no_panel_totals", "unpack_tiles"]

PANEL_TILES = 8
# With one more, LLVM no longer keeps everything in 32 registers.
PANEL_ROWS = 5


# What each operation means.


def no_panel_totals() -> Totals:
    """Return zeros for `add_panel`."""
    return np.zeros((PANEL_TILES, PANEL_ROWS, 8), np.float32)


def unpack_tiles(
    panel: AnyArray, p: int, w: AnyArray, tile: int, tile_step: int, n_tiles: int
) -> None:
    """Write 32 inputs of tiles w[tile], w[tile + tile_step], .. to a float32 panel at panel[p].

    Only n_tiles tiles are there; the last one stands in for those behind it.
    """
    to = panel[p : _end(panel, p, 32 * 8 * PANEL_TILES)].reshape(32, PANEL_TILES, 8)
    for a in range(PANEL_TILES):
        numbers, scales = unpacked(w, tile + min(a, n_tiles - 1) * tile_step)
        to[:, a] = numbers * scales


def add_panel(
    totals: Totals, panel: AnyArray, p: int, n_inputs: int, x: AnyArray, i: int, row_step: int,
    n_rows: int, w: AnyArray, ahead: int,
) -> Totals:  # fmt: skip
    """Return totals + the panel at panel[p] times n_inputs inputs of rows.

    Row r starts at x[i + r * row_step]. Only n_rows rows are there; the last one stands in for
    those behind it. Meanwhile as many inputs of the tile at w[ahead], and of those behind it, are
    asked for, wherever that is.
    """
    n = 8 * PANEL_TILES
    columns = panel[p : _end(panel, p, n * n_inputs)].reshape(n_inputs, PANEL_TILES, 8)
    result = totals.copy()
    for r in range(PANEL_ROWS):
        at = i + min(r, n_rows - 1) * row_step
        for k, value in enumerate(x[at : _end(x, at, n_inputs)]):
            products = columns[k].astype(np.float64) * np.float64(value)
            result[:, r] = (products + result[:, r]).astype(np.float32)
    return result


# How compiled code does it.


@operation(no_panel_totals, TotalsType(PANEL_TILES, PANEL_ROWS))
def _no_panel_totals(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return ir.Constant(sig.return_type.llvm_type, None)


@operation(
    unpack_tiles, types.none, types.Array, types.Integer, types.Array, types.Integer,
    types.Integer, types.Integer,
)  # fmt: skip
def _unpack_tiles(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    panel, p, w, tile, tile_step, n_tiles = args
    w_type = sig.args[2]
    tiles = []
    for a in range(PANEL_TILES):
        at = builder.add(tile, builder.mul(tile_step, clamped(builder, a, n_tiles)))
        tiles.append(element_address(context, builder, w_type, w, at, tile_bytes(w_type)))
    n_bytes = 32 * 32 * PANEL_TILES
    to = element_address(context, builder, sig.args[0], panel, p, n_bytes)
    unpack_columns(builder, str(w_type.dtype), tiles, to)
    return context.get_dummy_value()


@operation(
    add_panel, same_totals, TotalsType, types.Array, types.Integer, types.Integer, types.Array,
    types.Integer, types.Integer, types.Integer, types.Array, types.Integer,
)  # fmt: skip
def _add_panel(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    totals, panel, p, n_inputs, x, i, row_step, n_rows, w, ahead = args
    shape, panel_type, x_type, w_type = (sig.args[j] for j in (0, 1, 4, 8))
    first = element_address(context, builder, panel_type, panel, p, 4)
    last = builder.sub(builder.mul(n_inputs, I64(8 * PANEL_TILES)), I64(1))
    element_address(context, builder, panel_type, panel, builder.add(p, last), 4)  # checked as well
    rows = []
    for r in range(PANEL_ROWS):
        at = builder.add(i, builder.mul(row_step, clamped(builder, r, n_rows)))
        rows.append(element_address(context, builder, x_type, x, at, 4))
        end = builder.add(at, builder.sub(n_inputs, I64(1)))
        element_address(context, builder, x_type, x, end, 4)
    more = builder.gep(make_array(w_type)(context, builder, w).data, [ahead])
    step_bytes = I64(tile_bytes(w_type) // 32)
    old = shape.unpack(builder, totals)
    new = panel_products(builder, first, n_inputs, rows, old, more, step_bytes)
    return shape.pack(builder, new)
