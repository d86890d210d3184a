"""Tiled matrix times rows, for all weight formats.

    out[row, r] += sum over k of W[r, k] * x[row, k]        W (n_out, n_k), x (n_rows, n_k)

One lane is one output r: its sum is one chain of additions in rising k that starts at zero, each
rounded once (FMA), whatever else shares the call. Weights become exact float32 values in
registers (a quantised weight has at most 19 significant bits), or stay integers if the rows of x
are quantised: then a chain has one product for each block of 32 inputs.

The dtype of `w` says the format, so that each format is a specialisation of its own: float32 = F32,
uint16 = F16, int32 = Q8, uint32 = Q4, and with quantised rows int64 = Q8, uint64 = Q4. `layout`
has the tiles, `quantise` the rows, `simd_tile` what one step does.
"""

from typing import Any, NamedTuple

import numpy.typing as npt
from numba.extending import overload

from kernels.emit import ZMM
from kernels.formats import BLOCK_FLOATS
from kernels.jit import inner, merged
from kernels.matmul import multiply
from kernels.quantise import quantises
from kernels.simd_tile import INT8, add_adjoining, add_tiles, n_tiles_for, no_totals
from kernels.simd_totals import add_totals, keep_totals, kept_totals
from kernels.spans import Matrix, Rows, Span

__all__ = ["Matrix", "matvec", "stream_step"]


class Walk(NamedTuple):
    """In which order a call reads a matrix.

    Attributes:
        apart: row tiles from one tile of a step to the next one.
        end: element where the first of them ends to read on; for others see `add_tiles`.
        following: element that it reads then.
        following_step: from there to where the second one reads on, and so on.
    """

    apart: int
    end: int
    following: int
    following_step: int


MANY_ROWS = 8  # of one step, as many as registers hold
# What many rows read of the weights before they go on, half of a small L1 cache.
BLOCK_BYTES = 16384


@inner
def matvec(
    m: Matrix, first_tile: int, stop_tile: int, x: Rows, out: Rows, n_rows: int, kept: Span
) -> None:
    """Add to out the products of row tiles [first_tile, stop_tile) with every row of x.

    x rows are read up to the padded k (32 * k_tiles), so their padding must be finite; they are
    quantised ones (see `quantise`) if the dtype of m.w says so. Rows share one pass over the
    weights; `kept` is this thread's scratch while several do, see `formats.kept_floats`.
    """
    t = first_tile
    if n_rows == 1 and _adjoins(m.w, m.k_tiles):
        n_whole = min(m.n_out // 8, stop_tile)
        end = m.first + stop_tile * m.tile_size
        walk = Walk(1, end, end if m.following < 0 else m.following, 0)
        while t + n_tiles_for(m.w, 1, 1) <= n_whole:
            _step(m, t, stop_tile, 0, 1, walk, x, out, 0, 1, kept, 1, 1)
            t += n_tiles_for(m.w, 1, 1)
    if t < stop_tile:
        if n_rows == 1:
            _in_streams(m, t, stop_tile, x, out, kept)
        else:
            _several(m, t, stop_tile, x, out, n_rows, kept)


@inner
def stream_step(w: npt.NDArray[Any], tile_size: int, k_tiles: int, n_tiles: int) -> int:
    """Return the elements from where one stream begins to the next one, for one row.

    Of a call with n_tiles row tiles of k_tiles tiles; 0 if there is one stream.
    """
    if _adjoins(w, k_tiles):
        return 0
    return _apart(w, n_tiles) * k_tiles * tile_size


@inner
def _adjoins(w: npt.NDArray[Any], k_tiles: int) -> bool:
    """Tell whether steps of one row take tiles that lie side by side, as many as pay."""
    return k_tiles == 1 and n_tiles_for(w, 1, 1) > n_tiles_for(w, 1, 0)


@inner
def _apart(w: npt.NDArray[Any], n_tiles: int) -> int:
    """Return how many of n_tiles row tiles each stream has, the last one perhaps fewer."""
    n_streams = n_tiles_for(w, 1, 0)
    return (n_tiles + n_streams - 1) // n_streams


@merged
def _in_streams(m: Matrix, first_tile: int, stop_tile: int, x: Rows, out: Rows, kept: Span) -> None:
    """Do it for one row: each tile of a step comes from a part of its own, read from end to end."""
    apart = _apart(m.w, stop_tile - first_tile)
    end = m.first + (first_tile + apart) * m.k_tiles * m.tile_size
    walk = Walk(apart, end, end, apart * m.k_tiles * m.tile_size)
    if m.following >= 0:
        walk = Walk(apart, end, m.following, m.following_step)
    for t in range(first_tile, first_tile + apart):
        _step(m, t, stop_tile, 0, m.k_tiles, walk, x, out, 0, 1, kept, 1, 0)


def _several(
    m: Matrix, first_tile: int, stop_tile: int, x: Rows, out: Rows, n_rows: int, kept: Span
) -> None:
    """Do it for several rows."""
    if ZMM and n_rows > MANY_ROWS and not quantises(m.w):
        multiply(m, first_tile, stop_tile, x, out, n_rows, kept)
    else:
        _in_blocks(m, first_tile, stop_tile, x, out, n_rows, kept)


@overload(_several)
def _compiled_several(
    m: Matrix, first_tile: int, stop_tile: int, x: Rows, out: Rows, n_rows: int, kept: Span
) -> Any:
    """Leave `multiply` out where it is never used: it takes seconds to compile."""
    return _several if ZMM and str(m[0].dtype) not in INT8 else _only_blocks


def _only_blocks(
    m: Matrix, first_tile: int, stop_tile: int, x: Rows, out: Rows, n_rows: int, kept: Span
) -> None:
    _in_blocks(m, first_tile, stop_tile, x, out, n_rows, kept)


@inner
def _in_blocks(
    m: Matrix, first_tile: int, stop_tile: int, x: Rows, out: Rows, n_rows: int, kept: Span
) -> None:
    """Do it for several rows that go over a block of inputs together."""
    n_tiles = n_tiles_for(m.w, MANY_ROWS, 0)
    block = m.k_tiles
    if n_rows > MANY_ROWS:
        block = max(BLOCK_BYTES // (n_tiles * m.tile_size * m.w.itemsize), 1)
    tile_step = m.k_tiles * m.tile_size
    for t in range(first_tile, stop_tile, n_tiles):
        following = m.first + (t + n_tiles) * tile_step
        if t + n_tiles >= stop_tile and m.following >= 0:
            following = m.following
        walk = Walk(1, m.first + (t + 1) * tile_step, following, tile_step)
        for k in range(0, m.k_tiles, block):
            stop_k = min(k + block, m.k_tiles)
            for row in range(0, n_rows, MANY_ROWS):
                _step(m, t, stop_tile, k, stop_k, walk, x, out, row, n_rows, kept, MANY_ROWS, 0)


@merged
def _step(
    m: Matrix, t: int, stop_tile: int, k: int, stop_k: int, walk: Walk, x: Rows, out: Rows,
    row: int, stop_row: int, kept: Span, n_rows: int, is_short: int,
) -> None:  # fmt: skip
    """Do it for row tile t and the others that one step takes, tiles k .. stop_k - 1 of each.

    Literals: n_rows that one step takes, from `row` on; for is_short see `n_tiles_for`. Tiles
    behind stop_tile and rows behind stop_row are not there: others stand in for them.
    """
    tile_step = m.k_tiles * m.tile_size
    tile = m.first + t * tile_step + k * m.tile_size
    skip = BLOCK_FLOATS if quantises(m.w) else 32
    at = x.first + row * x.stride + k * skip
    n_tiles = n_tiles_for(m.w, n_rows, is_short)
    n_there = stop_row - row
    keep = kept.first + row * 8 * n_tiles
    totals = no_totals(m.w, n_rows, is_short)
    if is_short:
        totals = add_adjoining(totals, m.w, tile, x.values, at, walk.end, walk.following)
    else:
        if k > 0:
            totals = kept_totals(totals, kept.values, keep)
        n_tiles_there = (stop_tile - t + walk.apart - 1) // walk.apart
        for _ in range(k, stop_k):
            totals = add_tiles(
                totals, m.w, tile, walk.apart * tile_step, n_tiles_there, x.values, at, x.stride,
                n_there, walk.end, walk.following, walk.following_step, row == 0,
            )  # fmt: skip
            tile += m.tile_size
            at += skip
    if stop_k < m.k_tiles:
        keep_totals(kept.values, keep, totals)
    else:
        to = out.first + row * out.stride + 8 * t
        n_lanes = min(m.n_out, 8 * stop_tile) - 8 * t
        if is_short:  # all of them are there
            n_lanes = 8 * n_tiles
        add_totals(out.values, to, out.stride, 8 * walk.apart, totals, n_lanes, n_there)
