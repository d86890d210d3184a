"""One MLP phase of a member: its column atoms, added up in parts.

    sum of part p = sum over its atoms c, rising, of  down[c] act[c]        act: `mlp`
    out           = sum over parts p, rising, of the sums of parts

A row of out and the sum of a part are (D,), act[c] is (32,), down[c] is (D, 32), all float32.
The parts follow from the number of atoms alone, and so do the bits of out. A single row goes atom
by atom, or two at a time, gate and up, then down, through memory as it lies: a thread has atoms of
its own, in whole parts but for those at the ends, which two threads add up one after the other.
Several rows, or few atoms, have all activations first; then threads split the rows of down. Both
give the same bits.
"""

from typing import Any, NamedTuple

from numba.extending import overload

from kernels import tables as at
from kernels.balance import Team, meet, share_of
from kernels.barrier import wait
from kernels.column_pair import ColumnPair, Onward, activate_pair, add_down_pair
from kernels.formats import BLOCK_FLOATS, LEAST_SUMS
from kernels.jit import merged
from kernels.layout import COLUMNS_PER_ATOM, TILE_ROWS
from kernels.matvec import matvec, stream_step
from kernels.member import Member, add_rows, kept, norm_rows, preset, quantise_rows
from kernels.mlp import gate_up
from kernels.quantise import quantise, quantises
from kernels.relay import await_thread, pass_on, stamp_of
from kernels.simd_tile import INT8, N_STREAMS
from kernels.spans import Matrix, Rows, Span, share

__all__ = ["run_mlp"]

_PAIRS = COLUMNS_PER_ATOM // TILE_ROWS
_ATOMS_A_THREAD = 4


class Columns(NamedTuple):
    """The column atoms of one layer.

    Attributes:
        first: of them, counted over all layers.
        n_atoms: how many.
        part: atoms of a part.
        by_atoms: whether threads take atoms, gate, up and down, for one row.
    """

    first: int
    n_atoms: int
    part: int
    by_atoms: bool


@merged
def run_mlp(
    team: Team, m: Member, layer: int, n_rows: int, x: Rows, out: Rows, in_place: bool
) -> None:
    """Write this member's partial sum of one MLP phase, and add it to x if in_place."""
    t = m.table
    hidden = t[at.HIDDEN]
    first = t[t[at.COLUMN_BOUNDS] + layer]
    n_atoms = t[t[at.COLUMN_BOUNDS] + layer + 1] - first
    part = max(n_atoms // LEAST_SUMS, 1)
    # With few atoms a thread some would have too many, and more threads than parts wait in turn.
    is_enough = n_atoms >= _ATOMS_A_THREAD * team.n_threads and team.n_threads <= LEAST_SUMS
    columns = Columns(first, n_atoms, part, n_rows == 1 and is_enough)
    start, stop = share_of(team, (hidden + TILE_ROWS - 1) // TILE_ROWS)
    start, stop = start * TILE_ROWS, min(stop * TILE_ROWS, hidden)
    preset(out, n_rows, start, stop, m, -1)
    if n_atoms > 0:
        h = norm_rows(team, m, n_rows, x, t[t[at.NORMS] + layer] + hidden)
        wait(team.sync, team.n_threads)
        if not columns.by_atoms:
            _activate(team, m, first, n_atoms, n_rows, h)
            meet(team)
            _quantise(team, m, n_atoms, n_rows)
        _add_parts(team, m, layer, columns, n_rows, h, start, stop, out)
        if columns.by_atoms:
            meet(team)
            for p in range((n_atoms + part - 1) // part):
                add_rows(out, _sum_of(m, p), n_rows, start, stop)
    if in_place:  # nobody reads x before the next phase
        add_rows(x, out, n_rows, start, stop)
    meet(team)


@merged
def _sum_of(m: Member, p: int) -> Rows:
    """Return where the sum of part p is kept, for one row."""
    hidden = m.table[at.HIDDEN]
    return Rows(m.scratch, m.table[at.SUMS] + p * hidden, hidden)


@merged
def _add_parts(
    team: Team, m: Member, layer: int, columns: Columns, n_rows: int, h: Rows, start: int,
    stop: int, out: Rows,
) -> None:  # fmt: skip
    """Add up parts: this thread's atoms, if it takes atoms, else this thread's elements of out.

    In the first case the sums of parts are left where they are.
    """
    if columns.by_atoms:
        _add_own_atoms(team, m, layer, columns, h)
        return
    for begin in range(0, columns.n_atoms, columns.part):
        end = min(begin + columns.part, columns.n_atoms)
        total = _sum_of(m, 0)
        preset(total, n_rows, start, stop, m, -1)
        _add_atoms(team, m, columns, begin, end, n_rows, start, stop, total)
        add_rows(out, total, n_rows, start, stop)


@merged
def _add_own_atoms(team: Team, m: Member, layer: int, columns: Columns, h: Rows) -> None:
    """Add this thread's atoms to the sums of their parts, for one row.

    Whoever has the beginning of a part does that first, and whoever has the rest does it last:
    threads seldom wait for one another.
    """
    n_atoms, part = columns.n_atoms, columns.part
    first_atom, stop_atom = share_of(team, n_atoms)
    stamp = stamp_of(team, layer)
    # What belongs to the part of the thread before, and to that of the thread behind.
    head_stop = (first_atom + part - 1) // part * part
    tail_start = stop_atom // part * part if stop_atom < n_atoms else stop_atom
    is_within = stop_atom < head_stop  # of one part, and neither its beginning nor its end
    for piece in range(3):
        if piece == 0:
            begin, end = (stop_atom if is_within else tail_start), stop_atom
        elif piece == 1:
            begin, end = head_stop, tail_start
        else:
            begin, end = first_atom, min(head_stop, stop_atom)
            if begin < head_stop:
                await_thread(team, team.tid - 1, stamp)
        if begin < end:
            for c in range(begin, end):
                if c % part == 0:
                    preset(_sum_of(m, c // part), 1, 0, m.table[at.HIDDEN], m, -1)
            _add_whole_atoms(team, m, columns, begin, end, h)
        if piece == (2 if is_within else 0):
            pass_on(team, stamp)


def _add_whole_atoms(
    team: Team, m: Member, columns: Columns, begin: int, end: int, h: Rows
) -> None:
    """Add atoms begin .. end - 1 to the sums of their parts, gate and up, then down."""
    way = _by_pairs if _are_paired(m.w.dtype) else _one_by_one
    way(team, m, columns, begin, end, h)


@overload(_add_whole_atoms)
def _compiled_add_whole_atoms(
    team: Team, m: Member, columns: Columns, begin: int, end: int, h: Rows
) -> Any:
    """Leave out what is never used: it takes seconds to compile."""
    return _by_pairs if _are_paired(m[0].dtype) else _one_by_one


def _are_paired(dtype: Any) -> bool:
    """Return whether a row reads column atoms two at a time, by the dtype of weights."""
    return N_STREAMS == 4 and str(dtype) in INT8


def _by_pairs(team: Team, m: Member, columns: Columns, begin: int, end: int, h: Rows) -> None:
    """Do it for two atoms at a time."""
    t = m.table
    scratch = kept(team, m)
    for c in range(begin, end, 2):
        pair = ColumnPair(
            m.w, t[t[at.COLUMNS] + columns.first + c], _apart(m, columns, c, end), min(end - c, 2),
            t[at.TILE_SIZE], t[at.K_TILES], t[at.DOWN_SKIP], t[at.HIDDEN],
        )  # fmt: skip
        onward = Onward(-1, 0)
        if c + 2 < end:
            then = t[t[at.COLUMNS] + columns.first + c + 2]
            onward = Onward(then, _apart(m, columns, c + 2, end))
        q = Span(m.scratch, t[at.ACT_Q] + c * BLOCK_FLOATS)
        activate_pair(pair, Span(h.values, h.first), scratch, q)
        total = _sum_of(m, c // columns.part)
        total_step = ((c + 1) // columns.part - c // columns.part) * t[at.HIDDEN]
        add_down_pair(pair, q, Span(total.values, total.first), total_step, onward, scratch)


@merged
def _apart(m: Member, columns: Columns, c: int, end: int) -> int:
    """Return the elements from atom c to the next one, 0 if that is not before the end."""
    at_atom = m.table[at.COLUMNS] + columns.first + c
    return int(m.table[at_atom + 1] - m.table[at_atom]) if c + 1 < end else 0


def _one_by_one(team: Team, m: Member, columns: Columns, begin: int, end: int, h: Rows) -> None:
    """Do it for one atom at a time."""
    t = m.table
    n_tiles = (t[at.HIDDEN] + TILE_ROWS - 1) // TILE_ROWS
    down_step = stream_step(m.w, t[at.TILE_SIZE], 1, n_tiles)
    step = stream_step(m.w, t[at.TILE_SIZE], t[at.K_TILES], 2 * _PAIRS)
    # All pairs; numbers that numba knows, as 1 for n_rows, would have all of it compiled once more.
    pair, end_pair = share(_PAIRS, 0, 1)
    n_rows, start_tile = end_pair // _PAIRS, pair
    for c in range(begin, end):
        at_atom = t[at.COLUMNS] + columns.first + c
        following = t[at_atom + 1] if c + 1 < columns.n_atoms else -1
        down = t[at_atom] + t[at.DOWN_SKIP]
        _activate_atom(team, m, columns.first, c, pair, end_pair, n_rows, h, down, down_step)
        if quantises(m.w):
            act = Span(m.scratch, t[at.ACT] + c * COLUMNS_PER_ATOM)
            quantise(act, 1, Span(m.scratch, t[at.ACT_Q] + c * BLOCK_FLOATS))
        matrix = Matrix(m.w, down, t[at.TILE_SIZE], 1, t[at.HIDDEN], following, step)
        total = _sum_of(m, c // columns.part)
        matvec(matrix, start_tile, n_tiles, _activations(m, c), total, n_rows, kept(team, m))


@merged
def _add_atoms(
    team: Team, m: Member, columns: Columns, begin: int, end: int, n_rows: int, start: int,
    stop: int, total: Rows,
) -> None:  # fmt: skip
    """Add atoms begin .. end - 1, activated, to elements start .. stop - 1 of a part's sum."""
    t = m.table
    tile, end_tile = start // TILE_ROWS, (stop + TILE_ROWS - 1) // TILE_ROWS
    size = t[at.TILE_SIZE]
    step = stream_step(m.w, size, 1, end_tile - tile)
    for c in range(begin, end):
        at_atom = t[at.COLUMNS] + columns.first + c
        following = -1
        if c + 1 < columns.n_atoms:
            following = t[at_atom + 1] + t[at.DOWN_SKIP] + tile * size
        down = Matrix(m.w, t[at_atom] + t[at.DOWN_SKIP], size, 1, t[at.HIDDEN], following, step)
        matvec(down, tile, end_tile, _activations(m, c), total, n_rows, kept(team, m))


@merged
def _activations(m: Member, c: int) -> Rows:
    """Return the activations of atom c as `matvec` reads them."""
    t = m.table
    if quantises(m.w):
        return Rows(m.scratch, t[at.ACT_Q] + c * BLOCK_FLOATS, t[at.ACT_Q_STRIDE])
    return Rows(m.scratch, t[at.ACT] + c * COLUMNS_PER_ATOM, t[at.ACT_STRIDE])


@merged
def _activate(team: Team, m: Member, first: int, n_atoms: int, n_rows: int, h: Rows) -> None:
    """Write the activations of every column atom and row."""
    t = m.table
    start, stop = share_of(team, n_atoms * _PAIRS)
    for c in range(start // _PAIRS, n_atoms):
        pair, end = max(start - c * _PAIRS, 0), min(stop - c * _PAIRS, _PAIRS)
        if pair < end:
            following = t[t[at.COLUMNS] + first + c + 1] if c + 1 < n_atoms else -1
            step = stream_step(m.w, t[at.TILE_SIZE], t[at.K_TILES], 2 * _PAIRS)
            _activate_atom(team, m, first, c, pair, end, n_rows, h, following, step)


@merged
def _activate_atom(
    team: Team, m: Member, first: int, c: int, pair: int, end: int, n_rows: int, h: Rows,
    following: int, following_step: int,
) -> None:  # fmt: skip
    """Write activations 8 * pair .. 8 * end - 1 of one column atom for every row."""
    t = m.table
    buffer = Rows(m.scratch, t[at.GATE_UP] + team.tid * t[at.GATE_UP_STRIDE], 2 * COLUMNS_PER_ATOM)
    w, n_out = t[t[at.COLUMNS] + first + c], 2 * COLUMNS_PER_ATOM
    matrix = Matrix(m.w, w, t[at.TILE_SIZE], t[at.K_TILES], n_out, following, following_step)
    act = Rows(m.scratch, t[at.ACT] + c * COLUMNS_PER_ATOM, t[at.ACT_STRIDE])
    gate_up(matrix, pair, end, h, act, buffer, n_rows, kept(team, m))


@merged
def _quantise(team: Team, m: Member, n_atoms: int, n_rows: int) -> None:
    """Quantise the activations of all atoms and rows, if the weights ask for it."""
    t = m.table
    if quantises(m.w):
        act = Rows(m.scratch, t[at.ACT], t[at.ACT_STRIDE])
        act_q = Rows(m.scratch, t[at.ACT_Q], t[at.ACT_Q_STRIDE])
        quantise_rows(team, m, n_rows, n_atoms, 1, act, act_q)
        wait(team.sync, team.n_threads)
