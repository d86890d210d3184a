"""Weight tiles times rows of activations: the innermost step of every product and of attention.

    totals[a, r, lane] += sum over inputs k of  W[a, lane, k] * x[r, k]

`totals` are those of `simd_totals`: what one step reads serves all its tiles and rows. Each lane's
sum is one chain in rising k, whatever their numbers, and each step of it is rounded once (FMA).

The dtype of the weights says their format (see `matvec`). Integer sums (int64: q8, uint64: q4) are
exact, so a CPU may compute them in any order; with B the bytes of `quantise`, s and t the scales:

    totals += (sum over k of N[lane, k] * B[r, k]) * s[lane] * t[r]

Where instructions want unsigned weights, N + 128 or N + 8 is multiplied and the sum starts at -128
or -8 times the sum of B, which `quantise` keeps. `tile_code` has the instructions.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types

from kernels import emit
from kernels.emit import I64, ZMM
from kernels.formats import BLOCK_FLOATS
from kernels.lowering import N_LANES, element_address, make_array, operation
from kernels.simd import AnyArray, _end
from kernels.simd_totals import Totals, TotalsType, same_totals
from kernels.target import has
from kernels.tile_code import Columns, column_products, dequantised_products, integer_products

__all__ = [
    "INT8",
    "N_STREAMS",
    "add_adjoining",
    "add_columns",
    "add_tiles",
    "clamped",
    "fetch",
    "n_tiles_for",
    "no_totals",
    "skip_ahead",
    "tile_bytes",
    "tile_sizes",
    "unpacked",
]

TILE_BYTES = {"float32": 1024, "uint16": 512, "int32": 272, "uint32": 144, "int64": 272,
              "uint64": 144}  # fmt: skip
INT8 = ("int64", "uint64")
SCALE = 8  # element of a quantised block, see BLOCK_FLOATS
# How far ahead memory is asked for, and at how many places one row reads integer weights at once:
# measured on x86 (docs/decisions.md); no board has been.
AHEAD_BYTES, N_STREAMS = (2304, 4) if has("x86") else (1152, 1)


# What each operation means.


def n_tiles_for(w: AnyArray, n_rows: int, is_short: int) -> int:
    """Return how many tiles one step takes for the dtype of w; the numbers are literals.

    With is_short = 1 a tile has all inputs of its rows: what surrounds it weighs more.
    """
    return _n_tiles(w.dtype.name, n_rows, is_short)


def no_totals(w: AnyArray, n_rows: int, is_short: int) -> Totals:
    """Return zeros for `add_tiles`; arguments as for `n_tiles_for`."""
    return np.zeros((n_tiles_for(w, n_rows, is_short), n_rows, N_LANES), np.float32)


def add_tiles(
    totals: Totals,
    w: AnyArray,
    tile: int,
    tile_step: int,
    n_tiles: int,
    x: AnyArray,
    i: int,
    row_step: int,
    n_rows: int,
    end: int,
    following: int,
    following_step: int,
    asks: bool,
) -> Totals:
    """Return totals + the products of tiles w[tile], w[tile + tile_step], .. with the rows.

    Row r starts at x[i + r * row_step]: 32 float32 values, or BLOCK_FLOATS elements of a quantised
    block if the dtype asks for it. Only n_tiles tiles and n_rows rows are there; the last one
    of each stands in for those behind it. If `asks`, memory some way ahead of the tiles is asked
    for. They are streams: the first one reads on at w[following] after w[end - 1], each other one
    has its end as far behind its tile as the first one, and reads on following_step elements
    behind where the one before it does.
    """
    result = totals.copy()
    is_int8 = w.dtype.name in INT8
    for a in range(totals.shape[0]):
        numbers, scales = unpacked(w, tile + min(a, n_tiles - 1) * tile_step)
        for r in range(totals.shape[1]):
            at = i + min(r, n_rows - 1) * row_step
            if is_int8:
                block = x[at : _end(x, at, BLOCK_FLOATS)]
                products = numbers.astype(np.int32).T @ block[:8].view(np.int8).astype(np.int32)
                scaled = products.astype(np.float32) * scales
                result[a, r] = _multiply_add(scaled, block[SCALE], result[a, r])
                continue
            for k, value in enumerate(x[at : _end(x, at, 32)]):
                result[a, r] = _multiply_add(numbers[k] * scales, value, result[a, r])
    return result


def add_adjoining(
    totals: Totals, w: AnyArray, tile: int, x: AnyArray, i: int, end: int, following: int
) -> Totals:
    """Do what `add_tiles` does for one row and tiles that are all there, one behind the other."""
    step, n = TILE_BYTES[w.dtype.name] // w.itemsize, totals.shape[0]
    return add_tiles(totals, w, tile, step, n, x, i, 0, 1, end, following, step, True)


def add_columns(
    totals: Totals,
    w: AnyArray,
    first: int,
    input_step: int,
    tile_step: int,
    n_tiles: int,
    n_inputs: int,
    x: AnyArray,
    i: int,
    row_step: int,
    n_rows: int,
    ahead: int,
    ahead_step: int,
) -> Totals:
    """Return totals + the products of columns of float32, float16 bits or int8 with the rows.

    The column of tile a and input k is w[first + a * tile_step + k * input_step] and the 7 behind
    it; row r is x[i + r * row_step] and the n_inputs - 1 behind it. Only n_tiles of the tiles are
    there; the last one stands in for those behind it. With each input k the memory at
    w[ahead + k * ahead_step] is asked for.
    """
    result = totals.copy()
    for a in range(totals.shape[0]):
        tile = first + min(a, n_tiles - 1) * tile_step
        for k in range(n_inputs):
            at = tile + k * input_step
            column = w[at : _end(w, at, N_LANES)]
            if w.dtype == np.uint16:
                column = column.view(np.float16)
            column = column.astype(np.float32)
            for r in range(totals.shape[1]):
                at = i + min(r, n_rows - 1) * row_step + k
                result[a, r] = _multiply_add(column, x[at : _end(x, at, 1)][0], result[a, r])
    return result


def _multiply_add(a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c, rounded to float32 once, or twice where float64 cannot hold it."""
    return (a.astype(np.float64) * np.float64(b) + c).astype(np.float32)


def _n_tiles(dtype: str, n_rows: int, is_short: int) -> int:
    if n_rows > 1 and ZMM:
        return 2 if dtype in ("int32", "uint32", *INT8) else 4
    if n_rows > 1:
        return 1
    if is_short:
        return 4
    # A single chain of float additions would be slower than memory is.
    return N_STREAMS if dtype in INT8 else 2


def unpacked(w: AnyArray, tile: int) -> tuple[npt.NDArray[np.float32], Any]:
    """Return the numbers (32, 8) of a tile and the scales (8,) that they are to be times."""
    n = TILE_BYTES[w.dtype.name] // w.itemsize
    raw = np.ascontiguousarray(w[tile : _end(w, tile, n)]).view(np.uint8)
    one = np.float32(1)
    if w.dtype == np.float32:
        return raw.view(np.float32).reshape(32, 8), one
    if w.dtype == np.uint16:
        return raw.view(np.float16).reshape(32, 8).astype(np.float32), one
    scales = raw[-16:].view(np.float16).astype(np.float32)
    if w.dtype in (np.int32, np.int64):
        numbers = raw[:256].view(np.int8)
    else:
        numbers = np.concatenate([raw[:128] & 15, raw[:128] >> 4]).astype(np.int8) - np.int8(8)
    by_input = numbers.reshape(8, 8, 4).transpose(0, 2, 1).reshape(32, 8)
    return by_input.astype(np.float32), scales


# How compiled code does it.


def _totals_type(w: Any, n_rows: Any, is_short: Any) -> Any:
    if not isinstance(n_rows, types.IntegerLiteral) or not isinstance(
        is_short, types.IntegerLiteral
    ):
        return None
    return TotalsType(
        _n_tiles(str(w.dtype), n_rows.literal_value, is_short.literal_value), n_rows.literal_value
    )


def _tiles_type(w: Any, n_rows: Any, is_short: Any) -> Any:
    return None if _totals_type(w, n_rows, is_short) is None else types.int64


@operation(n_tiles_for, _tiles_type, types.Array, types.Integer, types.Integer)
def _n_tiles_for(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return I64(_n_tiles(str(sig.args[0].dtype), *(one.literal_value for one in sig.args[1:])))


@operation(no_totals, _totals_type, types.Array, types.Integer, types.Integer)
def _no_totals(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return ir.Constant(sig.return_type.llvm_type, None)


def fetch(context: Any, builder: Any, w_type: Any, w: Any, i: Any, n_bytes: int) -> None:
    """Have the memory at w[i], which may lie anywhere, fetched."""
    struct = make_array(w_type)(context, builder, w)
    pointer = builder.gep(struct.data, [i])
    for line in range(-(-n_bytes // 64)):
        emit.prefetch(builder, pointer, 64 * line)


def clamped(builder: Any, j: int, n: Any) -> Any:
    """Return j, or n - 1 if that is smaller."""
    last = builder.sub(n, n.type(1))
    smaller = builder.icmp_signed("<", last, last.type(j))
    return builder.select(smaller, last, last.type(j)) if j else last.type(0)


@operation(
    add_tiles, same_totals, TotalsType, types.Array, types.Integer, types.Integer, types.Integer,
    types.Array, types.Integer, types.Integer, types.Integer, types.Integer, types.Integer,
    types.Integer, types.Boolean,
)  # fmt: skip
def _add_tiles(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    totals, w, tile, tile_step, n_tiles, x, i, row_step, n_rows = args[:9]
    shape, w_type, x_type = sig.args[0], sig.args[1], sig.args[5]
    n_bytes, row_bytes = tile_sizes(w_type)
    places = [
        builder.add(tile, builder.mul(tile_step, clamped(builder, a, n_tiles)))
        for a in range(shape.n_tiles)
    ]
    end, following, following_step, asks = args[9:]
    with builder.if_then(asks):
        is_inside, skip = skip_ahead(builder, w_type, tile, end, following)
        for a, at in enumerate(places):
            beyond = builder.add(tile, builder.mul(following_step, tile.type(a)))
            at = builder.add(builder.select(is_inside, at, beyond), skip)
            fetch(context, builder, w_type, w, at, n_bytes)
    tiles = [element_address(context, builder, w_type, w, at, n_bytes) for at in places]
    rows = []
    for r in range(shape.n_rows):
        at = builder.add(i, builder.mul(row_step, clamped(builder, r, n_rows)))
        rows.append(element_address(context, builder, x_type, x, at, row_bytes))
    return _with_products(builder, shape, w_type, tiles, rows, totals)


@operation(
    add_adjoining, same_totals, TotalsType, types.Array, types.Integer, types.Array,
    types.Integer, types.Integer, types.Integer,
)  # fmt: skip
def _add_adjoining(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    totals, w, tile, x, i, end, following = args
    shape, w_type = sig.args[:2]
    n_bytes, row_bytes = tile_sizes(w_type)
    ahead = builder.add(tile, skip_ahead(builder, w_type, tile, end, following)[1])
    fetch(context, builder, w_type, w, ahead, n_bytes * shape.n_tiles)
    skip = n_bytes * 8 // w_type.dtype.bitwidth
    places = [builder.add(tile, tile.type(a * skip)) for a in range(shape.n_tiles)]
    tiles = [element_address(context, builder, w_type, w, at, n_bytes) for at in places]
    row = element_address(context, builder, sig.args[3], x, i, row_bytes)
    return _with_products(builder, shape, w_type, tiles, [row], totals)


def tile_bytes(w_type: Any) -> int:
    """Return the bytes of a tile of a store of this numba type."""
    return TILE_BYTES[str(w_type.dtype)]


def tile_sizes(w_type: Any) -> tuple[int, int]:
    """Return the bytes of a tile, and of the part of a row that it is multiplied with."""
    dtype = str(w_type.dtype)
    return TILE_BYTES[dtype], 4 * (BLOCK_FLOATS if dtype in INT8 else 32)


def skip_ahead(builder: Any, w_type: Any, at: Any, end: Any, following: Any) -> tuple[Any, Any]:
    """Return how many elements to look ahead of w[at], where w[following] follows w[end - 1].

    The first value tells whether that is before the end.
    """
    skip = at.type(8 * AHEAD_BYTES // w_type.dtype.bitwidth)
    inside = builder.icmp_signed("<", builder.add(at, skip), end)
    beyond = builder.add(builder.sub(following, end), skip)
    return inside, builder.select(inside, skip, beyond)


def _with_products(
    builder: Any, shape: Any, w_type: Any, tiles: list[Any], rows: list[Any], totals: Any
) -> Any:
    """Return totals + the products of the tiles and rows at these addresses."""
    old, dtype = shape.unpack(builder, totals), str(w_type.dtype)
    is_q8 = dtype in ("int32", "int64")
    if dtype in INT8:
        new = integer_products(builder, is_q8, tiles, rows, old)
    elif dtype in ("int32", "uint32"):
        new = dequantised_products(builder, is_q8, tiles, rows, old)
    else:
        n_bytes = TILE_BYTES[dtype]
        columns = Columns(tiles, I64(n_bytes // 32), n_bytes // 256)
        new = column_products(builder, columns, I64(32), rows, old)
    return shape.pack(builder, new)


@operation(
    add_columns, same_totals, TotalsType, types.Array, types.Integer, types.Integer,
    types.Integer, types.Integer, types.Integer, types.Array, types.Integer, types.Integer,
    types.Integer, types.Integer, types.Integer,
)  # fmt: skip
def _add_columns(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    totals, w, first, input_step, tile_step, n_tiles, n_inputs, x, i, row_step = args[:10]
    n_rows, ahead, ahead_step = args[10:]
    shape, w_type, x_type = sig.args[0], sig.args[1], sig.args[7]
    item_bytes = w_type.dtype.bitwidth // 8
    last_input = builder.sub(n_inputs, n_inputs.type(1))
    tiles, rows = [], []
    for a in range(shape.n_tiles):
        at = builder.add(first, builder.mul(tile_step, clamped(builder, a, n_tiles)))
        tiles.append(element_address(context, builder, w_type, w, at, 8 * item_bytes))
        end = builder.add(at, builder.mul(input_step, last_input))
        element_address(context, builder, w_type, w, end, 8 * item_bytes)  # checked as well
    for r in range(shape.n_rows):
        at = builder.add(i, builder.mul(row_step, clamped(builder, r, n_rows)))
        rows.append(element_address(context, builder, x_type, x, at, 4))
        element_address(context, builder, x_type, x, builder.add(at, last_input), 4)
    step_bytes = builder.mul(input_step, input_step.type(item_bytes))
    struct = make_array(w_type)(context, builder, w)
    next_bytes = builder.mul(ahead_step, ahead_step.type(item_bytes))
    pointer = builder.gep(struct.data, [ahead])
    columns = Columns(tiles, step_bytes, item_bytes, pointer, next_bytes)
    old = shape.unpack(builder, totals)
    return shape.pack(builder, column_products(builder, columns, n_inputs, rows, old))
