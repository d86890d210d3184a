"""What one member of a plan holds, and what its phases do to rows of activations between products.

A row is (D,), or a row of scratch that `tables` places; threads take rows or blocks in turns.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kernels import tables as at
from kernels.attention import KvPages
from kernels.balance import Team
from kernels.formats import BLOCK_FLOATS
from kernels.jit import inner, merged
from kernels.layout import TILE_K
from kernels.norm import rms_norm
from kernels.quantise import quantise, quantises
from kernels.simd import add, load, store, zero
from kernels.spans import F32Array, Rows, Span, row_of

__all__ = ["Member", "add_rows", "kept", "norm_rows", "preset", "quantise_rows"]

I64Array = npt.NDArray[np.int64]


class Member(NamedTuple):
    """What one member holds.

    Attributes:
        w: the store as elements of its weight format.
        floats: the store as float32, for norms and biases.
        kv: pages.
        table: shapes, offsets and the row table, see `tables`.
        scratch: float32, see `tables`.
    """

    w: npt.NDArray[Any]
    floats: F32Array
    kv: KvPages
    table: I64Array
    scratch: F32Array


@inner
def norm_rows(team: Team, m: Member, n_rows: int, x: Rows, gain: int) -> Rows:
    """Return the normalised rows of x in scratch, as `matvec` reads them; gain: in m.floats."""
    h = Rows(m.scratch, m.table[at.NORMED], m.table[at.NORMED_STRIDE])
    q = Rows(m.scratch, m.table[at.NORMED_Q], m.table[at.NORMED_Q_STRIDE])
    hidden, eps = m.table[at.HIDDEN], m.scratch[at.EPS]
    for row in range(team.tid, n_rows, team.n_threads):
        rms_norm(row_of(x, row, 0), Span(m.floats, gain), hidden, eps, row_of(h, row, 0))
        if quantises(m.w):
            quantise(row_of(h, row, 0), m.table[at.K_TILES], row_of(q, row, 0))
    return q if quantises(m.w) else h


@merged
def quantise_rows(
    team: Team, m: Member, n_rows: int, n_pieces: int, n_blocks: int, x: Rows, q: Rows
) -> None:
    """Quantise n_pieces pieces of n_blocks blocks of every row."""
    for task in range(team.tid, n_rows * n_pieces, team.n_threads):
        row, piece = task // n_pieces, task % n_pieces
        source = row_of(x, row, piece * n_blocks * TILE_K)
        quantise(source, n_blocks, row_of(q, row, piece * n_blocks * BLOCK_FLOATS))


@inner
def preset(rows: Rows, n_rows: int, start: int, stop: int, m: Member, bias: int) -> None:
    """Set elements start .. stop - 1 of each row to the bias at m.floats[bias], 0 if bias < 0."""
    for row in range(n_rows if start < stop else 0):
        first = rows.first + row * rows.stride
        for i in range(start, stop - 7, 8):
            store(rows.values, first + i, load(m.floats, bias + i) if bias >= 0 else zero())
        for i in range(stop - (stop - start) % 8, stop):
            rows.values[first + i] = m.floats[bias + i] if bias >= 0 else np.float32(0.0)


@inner
def add_rows(out: Rows, addend: Rows, n_rows: int, start: int, stop: int) -> None:
    """Add elements start .. stop - 1 of each row of `addend` to those of `out`."""
    for row in range(n_rows):
        to, source = row_of(out, row, start), row_of(addend, row, start)
        n = max(stop - start, 0)  # a share that is empty may begin behind the last element
        for i in range(0, n - 7, 8):
            both = add(load(to.values, to.first + i), load(source.values, source.first + i))
            store(to.values, to.first + i, both)
        for i in range(n - n % 8, n):
            one = source.values[source.first + i]
            to.values[to.first + i] = np.float32(to.values[to.first + i] + one)


@merged
def kept(team: Team, m: Member) -> Span:
    """Return this thread's scratch for `matvec` and `column_pair`."""
    return Span(m.scratch, m.table[at.KEPT] + team.tid * m.table[at.KEPT_STRIDE])
