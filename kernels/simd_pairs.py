"""Two streams of each of two matrices times one row each: the step of two column atoms at once.

    totals[a, lane] += sum over inputs k of  W[a, lane, k] * x[a // 2, k]          a = 0 .. 3

Tiles 0 and 1 are of the first matrix, 2 and 3 of the second one, whose tiles lie pair_step elements
behind those of the first. Only for rows of 8-bit blocks: what the weights say and how sums are
rounded is as in `simd_tile`, whose totals of four tiles and one row these are.
"""

from typing import Any

import numpy as np
from numba import types

from kernels.lowering import F32X8, element_address, operation
from kernels.simd import AnyArray, _end
from kernels.simd_tile import INT8, add_tiles, fetch, skip_ahead, tile_sizes
from kernels.simd_totals import Totals, TotalsType, same_totals
from kernels.tile_code import integer_products

__all__ = ["add_pairs", "add_pairs_to"]


# What each operation means.


def add_pairs(
    totals: Totals,
    w: AnyArray,
    tile: int,
    tile_step: int,
    pair_step: int,
    x: AnyArray,
    i: int,
    row_step: int,
    end: int,
    following: int,
    following_step: int,
    following_pair_step: int,
) -> Totals:
    """Return totals + the products of each of four tiles with its pair's row.

    Tile a is at w[tile + a % 2 * tile_step + a // 2 * pair_step], its row, a block, at
    x[i + a // 2 * row_step]. Memory some way ahead of the tiles is asked for. They are streams: the
    first one reads on at w[following] after w[end - 1], each other one has its end as far behind
    its tile as the first one; where they read on is as for tiles, with steps of its own.
    """
    halves = [
        add_tiles(
            totals[2 * p : 2 * p + 2], w, tile + p * pair_step, tile_step, 2, x, i + p * row_step,
            0, 1, end, following, following_step, True,
        )
        for p in range(2)
    ]  # fmt: skip
    return np.concatenate(halves)


def add_pairs_to(
    out: AnyArray, i: int, tile_step: int, pair_step: int, totals: Totals, n_pairs: int
) -> None:
    """Add the totals of the first n_pairs pairs to a float32 array in place, one after the other.

    Tile a goes to the 8 elements from out[i + a % 2 * tile_step + a // 2 * pair_step] on; pairs
    may go to the same ones.
    """
    for a in range(2 * n_pairs):
        at = i + a % 2 * tile_step + a // 2 * pair_step
        out[at : _end(out, at, 8)] += totals[a, 0]


# How compiled code does it.


def _places(builder: Any, first: Any, tile_step: Any, pair_step: Any) -> list[Any]:
    """Return where the four tiles are."""
    second = builder.add(first, pair_step)
    return [first, builder.add(first, tile_step), second, builder.add(second, tile_step)]


@operation(
    add_pairs, same_totals, TotalsType, types.Array, types.Integer, types.Integer, types.Integer,
    types.Array, types.Integer, types.Integer, types.Integer, types.Integer, types.Integer,
    types.Integer,
)  # fmt: skip
def _add_pairs(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    totals, w, tile, tile_step, pair_step, x, i, row_step = args[:8]
    end, following, following_step, following_pair_step = args[8:]
    shape, w_type, x_type = sig.args[0], sig.args[1], sig.args[5]
    dtype = str(w_type.dtype)
    assert dtype in INT8
    assert (shape.n_tiles, shape.n_rows) == (4, 1)
    n_bytes, row_bytes = tile_sizes(w_type)
    places = _places(builder, tile, tile_step, pair_step)
    is_inside, skip = skip_ahead(builder, w_type, tile, end, following)
    beyond = _places(builder, tile, following_step, following_pair_step)
    for here, there in zip(places, beyond, strict=True):
        at = builder.add(builder.select(is_inside, here, there), skip)
        fetch(context, builder, w_type, w, at, n_bytes)
    tiles = [element_address(context, builder, w_type, w, at, n_bytes) for at in places]
    rows = [
        element_address(context, builder, x_type, x, at, row_bytes)
        for at in (i, builder.add(i, row_step))
    ]
    old, new = shape.unpack(builder, totals), []
    for p in range(2):
        pair = slice(2 * p, 2 * p + 2)
        new += integer_products(builder, dtype == "int64", tiles[pair], [rows[p]], old[pair])
    return shape.pack(builder, new)


@operation(
    add_pairs_to, types.none, types.Array, types.Integer, types.Integer, types.Integer, TotalsType,
    types.Integer,
)  # fmt: skip
def _add_pairs_to(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    out, i, tile_step, pair_step, totals, n_pairs = args
    shape = sig.args[4]
    assert (shape.n_tiles, shape.n_rows) == (4, 1)
    vectors = shape.unpack(builder, totals)
    places = _places(builder, i, tile_step, pair_step)

    def add(pair: slice) -> None:
        for at, vector in zip(places[pair], vectors[pair], strict=True):
            pointer = element_address(context, builder, sig.args[0], out, at, 32)
            pointer = builder.bitcast(pointer, F32X8.as_pointer())
            builder.store(builder.fadd(builder.load(pointer, align=1), vector), pointer, align=1)

    add(slice(0, 2))
    with builder.if_then(builder.icmp_signed("<", n_pairs.type(1), n_pairs)):
        add(slice(2, 4))
    return context.get_dummy_value()
