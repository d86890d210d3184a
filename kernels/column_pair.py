"""Two column atoms at once for one row: each is read in two streams.

    act[c]  = silu(gate[c] . h) * (up[c] . h)                            c = first atom, second atom
    sum[c] += down[c] act[c]

h is a quantised row (D,), act[c] is (32,), down[c] (D, 32), sum[c] (D,), by the equations of `mlp`
and to the same bits. Four streams of one atom would each be a quarter of it long: where its
neighbour is not read next, memory is slow again and again until it has seen where each goes on. Of
two atoms they are twice as long (docs/decisions.md).
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kernels.formats import BLOCK_FLOATS
from kernels.jit import merged
from kernels.layout import COLUMNS_PER_ATOM, TILE_ROWS
from kernels.quantise import quantise
from kernels.simd import load, scale, store
from kernels.simd_exp import silu8
from kernels.simd_pairs import add_pairs, add_pairs_to
from kernels.simd_totals import keep_totals, no_columns, store_totals
from kernels.spans import Span

__all__ = ["PAIR_FLOATS", "ColumnPair", "Onward", "activate_pair", "add_down_pair"]

_STREAM_TILES = COLUMNS_PER_ATOM // TILE_ROWS  # row tiles of gate and up that each stream has
# Scratch: gates and ups, then activations of both atoms, then what `keep_totals` writes.
_ACT, _KEPT = 4 * COLUMNS_PER_ATOM, 6 * COLUMNS_PER_ATOM
PAIR_FLOATS = _KEPT + 4 * TILE_ROWS


class ColumnPair(NamedTuple):
    """Two column atoms of a store, or one, which stands in for a second one that is not there.

    It is then multiplied twice, in the same steps, and added once.

    Attributes:
        w: the store as elements of `weight_dtype`, with 8-bit activations.
        first: element where the first atom starts.
        apart: elements from there to the second one; 0 if there is none.
        n_atoms: 2 or 1.
        tile_size: elements of a tile.
        k_tiles: tiles of a row tile of gate and up.
        down_skip: elements from an atom's start to its down matrix.
        hidden: D, rows of down.
    """

    w: npt.NDArray[Any]
    first: int
    apart: int
    n_atoms: int
    tile_size: int
    k_tiles: int
    down_skip: int
    hidden: int


class Onward(NamedTuple):
    """Where the thread reads on behind a pair of atoms, for prefetch.

    Attributes:
        at: element where the next pair starts; negative: unknown, reading goes on behind this one.
        apart: elements from there to its second atom.
    """

    at: int
    apart: int


@merged
def activate_pair(p: ColumnPair, h: Span, scratch: Span, q: Span) -> None:
    """Write the quantised activations of the atoms.

    Args:
        p: the atoms.
        h: the normalised row, quantised blocks up to whole tiles.
        scratch: PAIR_FLOATS elements of this thread.
        q: written, a block for each atom.
    """
    stream = _STREAM_TILES * p.k_tiles * p.tile_size
    down = p.first + p.down_skip
    for t in range(_STREAM_TILES):
        totals = no_columns(4, 1)
        tile = p.first + t * p.k_tiles * p.tile_size
        at = h.first
        for _ in range(p.k_tiles):
            totals = add_pairs(
                totals, p.w, tile, stream, p.apart, h.values, at, 0, p.first + stream, down,
                _down_step(p), p.apart,
            )  # fmt: skip
            tile += p.tile_size
            at += BLOCK_FLOATS
        to = scratch.first + 4 * TILE_ROWS * t
        store_totals(scratch.values, to, 0, totals, 4, 1, np.float32(1.0))
    # Gates and ups alternate: of stream a they are rows 2 i and 2 i + 1 of [t][a][8].
    for i in range(_STREAM_TILES // 2):
        for a in range(4):
            gate = scratch.first + TILE_ROWS * (8 * i + a)
            up = load(scratch.values, gate + 4 * TILE_ROWS)
            pair = a * (_STREAM_TILES // 2) + i
            act = scale(silu8(load(scratch.values, gate)), up)
            store(scratch.values, scratch.first + _ACT + TILE_ROWS * pair, act)
    quantise(Span(scratch.values, scratch.first + _ACT), p.n_atoms, q)


@merged
def add_down_pair(
    p: ColumnPair, q: Span, total: Span, total_step: int, onward: Onward, scratch: Span
) -> None:
    """Add each atom's products to the sum of its part, the first atom's first.

    Args:
        p: the atoms.
        q: their activations, a block for each.
        total: the first atom's sum (D,), in place.
        total_step: elements from there to the second one's (D,), in place; 0: both have the same.
        onward: what is read next.
        scratch: PAIR_FLOATS elements of this thread.
    """
    # Both streams have as many tiles: of an odd number the one in the middle is read by both.
    second = _down_tiles(p) // 2
    n_steps = _down_tiles(p) - second
    is_even = n_steps == second
    begin, step = p.first + p.down_skip, _down_step(p)
    end = begin + n_steps * p.tile_size
    onward_at = end if onward.at < 0 else onward.at
    onward_step = step if onward.at < 0 else _STREAM_TILES * p.k_tiles * p.tile_size
    onward_apart = p.apart if onward.at < 0 else onward.apart
    row_step = BLOCK_FLOATS if p.n_atoms > 1 else 0
    for t in range(n_steps):
        totals = add_pairs(
            no_columns(4, 1), p.w, begin + t * p.tile_size, step, p.apart, q.values, q.first,
            row_step, end, onward_at, onward_step, onward_apart,
        )  # fmt: skip
        at = total.first + TILE_ROWS * t
        if (t > 0 or is_even) and TILE_ROWS * (second + t + 1) <= p.hidden:
            add_pairs_to(total.values, at, TILE_ROWS * second, total_step, totals, p.n_atoms)
        else:
            keep_totals(scratch.values, scratch.first + _KEPT, totals)
            kept = Span(scratch.values, scratch.first + _KEPT)
            _add_some(p, t, kept, Span(total.values, at), total_step)


@merged
def _down_tiles(p: ColumnPair) -> int:
    """Return the row tiles of down."""
    return (p.hidden + TILE_ROWS - 1) // TILE_ROWS


@merged
def _down_step(p: ColumnPair) -> int:
    """Return the elements from where an atom's first stream of down begins to its second one."""
    return _down_tiles(p) // 2 * p.tile_size


@merged
def _add_some(p: ColumnPair, t: int, kept: Span, total: Span, total_step: int) -> None:
    """Add what is there of totals of step t: not the middle tile twice, no rows behind the last."""
    n_tiles = _down_tiles(p)
    second = n_tiles // 2
    for a in range(2 * p.n_atoms):
        skip = a % 2 * TILE_ROWS * second
        n = min(p.hidden - TILE_ROWS * t - skip, TILE_ROWS)
        if a % 2 == 1 and t == 0 and n_tiles % 2 == 1:
            n = 0
        for lane in range(n):
            to = total.first + a // 2 * total_step + skip + lane
            addend = kept.values[kept.first + TILE_ROWS * a + lane]
            total.values[to] = np.float32(total.values[to] + addend)
