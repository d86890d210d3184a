"""Tiled matrix times many rows of float32, where vectors have 16 lanes.

    out[row, r] += sum over k of W[r, k] * x[row, k]

A block of inputs of 8 tiles becomes a panel (`simd_panel`) that stays in the L1 cache while all
rows go over it; a row's totals wait in scratch for the next block, as they are. The sums are those
of `matvec`, bit by bit.
"""

from kernels.formats import KEPT_FLOATS, PANEL_FLOATS
from kernels.jit import inner, merged
from kernels.simd_panel import PANEL_ROWS, PANEL_TILES, add_panel, no_panel_totals, unpack_tiles
from kernels.simd_totals import add_totals, keep_totals, kept_totals
from kernels.spans import Matrix, Rows, Span

__all__ = ["PANEL_K_TILES", "multiply"]

PANEL_K_TILES = PANEL_FLOATS // (32 * 8 * PANEL_TILES)


@inner
def multiply(
    m: Matrix, first_tile: int, stop_tile: int, x: Rows, out: Rows, n_rows: int, kept: Span
) -> None:
    """Add to out the products of row tiles [first_tile, stop_tile) with every row of x.

    x rows are read up to the padded k; `kept` has room as `formats.kept_floats` says.
    """
    tile_step = m.k_tiles * m.tile_size
    for t in range(first_tile, stop_tile, PANEL_TILES):
        for k in range(0, m.k_tiles, PANEL_K_TILES):
            stop_k = min(k + PANEL_K_TILES, m.k_tiles)
            for i in range(k, stop_k):
                p = kept.first + (i - k) * 32 * 8 * PANEL_TILES
                tile = m.first + t * tile_step + i * m.tile_size
                unpack_tiles(kept.values, p, m.w, tile, tile_step, stop_tile - t)
            for row in range(0, n_rows, PANEL_ROWS):
                _add_block(m, t, stop_tile, k, stop_k, x, out, row, n_rows, kept)


@merged
def _add_block(
    m: Matrix, t: int, stop_tile: int, k: int, stop_k: int, x: Rows, out: Rows, row: int,
    n_rows: int, kept: Span,
) -> None:  # fmt: skip
    """Do it for the unpacked tiles, inputs 32 * k .. 32 * stop_k - 1, and rows from `row` on."""
    keep = kept.first + PANEL_FLOATS + KEPT_FLOATS * row
    totals = no_panel_totals()
    if k > 0:
        totals = kept_totals(totals, kept.values, keep)
    at = x.first + row * x.stride + 32 * k
    n_inputs = 32 * (stop_k - k)
    # One of the tiles that come next, by turns: their memory is asked for while there is time.
    tile_step, turn = m.k_tiles * m.tile_size, row // PANEL_ROWS % PANEL_TILES
    ahead = m.first + (t + turn) * tile_step + stop_k * m.tile_size
    if stop_k == m.k_tiles:
        ahead += (PANEL_TILES - 1) * tile_step
    totals = add_panel(
        totals, kept.values, kept.first, n_inputs, x.values, at, x.stride, n_rows - row, m.w, ahead
    )
    if stop_k < m.k_tiles:
        keep_totals(kept.values, keep, totals)
    else:
        to = out.first + row * out.stride + 8 * t
        n_lanes = min(m.n_out, 8 * stop_tile) - 8 * t
        add_totals(out.values, to, out.stride, 8, totals, n_lanes, n_rows - row)
