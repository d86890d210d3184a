"""One MLP phase of a member: its column atoms, added up in parts.

    sum of part p = sum over its atoms c, rising, of  down[c] act[c]        act: `mlp`
    out           = sum over parts p, rising, of the sums of parts

A row of out and the sum of a part are (D,), act[c] is (32,), down[c] is (D, 32), all float32.
The parts follow from the number of atoms alone, and so do the bits of out. A single row goes atom
by atom, gate and up, then down, through memory as it lies: a thread has atoms of its own, in whole
parts but for those at the ends, which two threads add up one after the other. Several rows, or few
atoms, have all activations first; then threads split the rows of down. Both give the same bits.
"""

from typing import NamedTuple

from kernels import tables as at
from kernels.balance import Team, meet, share_of
from kernels.barrier import wait
from kernels.formats import BLOCK_FLOATS, LEAST_SUMS
from kernels.jit import merged
from kernels.layout import COLUMNS_PER_ATOM, TILE_ROWS
from kernels.matvec import matvec, stream_step
from kernels.member import Member, add_rows, kept, norm_rows, preset, quantise_rows
from kernels.mlp import gate_up
from kernels.quantise import quantise, quantises
from kernels.relay import await_thread, pass_on, stamp_of
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

    In the first case the sums of parts are left where they are. Whoever has the beginning of a part
    does that first, and whoever has the rest does it last: threads seldom wait for one another.
    """
    n_atoms, part = columns.n_atoms, columns.part
    first_atom, stop_atom = 0, n_atoms
    if columns.by_atoms:
        first_atom, stop_atom = share_of(team, n_atoms)
        start, stop = 0, m.table[at.HIDDEN]
    stamp = stamp_of(team, layer)
    # What belongs to the part of the thread before, and to that of the thread behind.
    head_stop = (first_atom + part - 1) // part * part
    tail_start = stop_atom // part * part if stop_atom < n_atoms else stop_atom
    is_within = stop_atom < head_stop  # of one part, and neither its beginning nor its end
    n_whole = max(tail_start - head_stop + part - 1, 0) // part
    for piece in range(-1, n_whole + 1):
        begin = head_stop + piece * part
        end = min(begin + part, tail_start)
        if piece < 0:
            begin, end = (stop_atom if is_within else tail_start), stop_atom
        if piece == n_whole:
            begin, end = first_atom, min(head_stop, stop_atom)
            if begin < head_stop:
                await_thread(team, team.tid - 1, stamp)
        if begin < end:
            total = _sum_of(m, begin // part if columns.by_atoms else 0)
            _add_atoms(team, m, columns, begin, end, n_rows, h, start, stop, total)
            if not columns.by_atoms:
                add_rows(out, total, n_rows, start, stop)
        if piece == (n_whole if is_within else -1):
            pass_on(team, stamp)


@merged
def _add_atoms(
    team: Team, m: Member, columns: Columns, begin: int, end: int, n_rows: int, h: Rows,
    start: int, stop: int, total: Rows,
) -> None:  # fmt: skip
    """Add atoms begin .. end - 1 of one part to elements start .. stop - 1 of its sum."""
    t = m.table
    if begin % columns.part == 0:
        preset(total, n_rows, start, stop, m, -1)
    tile, end_tile = start // TILE_ROWS, (stop + TILE_ROWS - 1) // TILE_ROWS
    size = t[at.TILE_SIZE]
    step = stream_step(m.w, size, 1, end_tile - tile)
    if columns.by_atoms:  # the next atom's gate and up follow, else its down
        step = stream_step(m.w, size, t[at.K_TILES], 2 * _PAIRS)
    for c in range(begin, end):
        at_atom = t[at.COLUMNS] + columns.first + c
        following = t[at_atom + 1] if c + 1 < columns.n_atoms else -1
        if columns.by_atoms:
            _activate_whole(team, m, columns, c, n_rows, h)
        elif following >= 0:
            following += t[at.DOWN_SKIP] + tile * size
        down = Matrix(m.w, t[at_atom] + t[at.DOWN_SKIP], size, 1, t[at.HIDDEN], following, step)
        matvec(down, tile, end_tile, _activations(m, c), total, n_rows, kept(team, m))


@merged
def _activate_whole(team: Team, m: Member, columns: Columns, c: int, n_rows: int, h: Rows) -> None:
    """Write all activations of one column atom for the only row, quantised if the weights ask."""
    t = m.table
    down = t[t[at.COLUMNS] + columns.first + c] + t[at.DOWN_SKIP]
    step = stream_step(m.w, t[at.TILE_SIZE], 1, (t[at.HIDDEN] + TILE_ROWS - 1) // TILE_ROWS)
    # All pairs; numbers that numba knows, as 1 for n_rows, would have all of it compiled once more.
    pair, end_pair = share(_PAIRS, 0, 1)
    _activate_atom(team, m, columns.first, c, pair, end_pair, n_rows, h, down, step)
    if quantises(m.w):
        act = Span(m.scratch, t[at.ACT] + c * COLUMNS_PER_ATOM)
        quantise(act, 1, Span(m.scratch, t[at.ACT_Q] + c * BLOCK_FLOATS))


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
