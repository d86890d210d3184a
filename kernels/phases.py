"""The phases of a stage for the atoms of one member, run by all threads of a pool together.

    attention   out[row] = sum over the member's groups g of  W_o[g] attend(rope(q), rope(k), v)
                with (q, k, v) = W_qkv[g] rms_norm(x[row]) + bias[g]
    mlp         out[row] = sum over the member's column atoms c of  down[c] act[c, row]
    logits      out[row] = vocabulary rows . rms_norm(x[row])

x and out are (n_rows, D), logits (n_rows, n_local_rows). Threads split output rows, columns or
heads, never what is one sum (`mlp_phase`), and meet at barriers; the last one ends each phase. What
the member holds and where scratch lies is in `table`, indexed by the names of `tables`.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from kernels import tables as at
from kernels.attention import Context, KvPages, append_kv, attend, heads_together
from kernels.balance import Team, meet, share_of
from kernels.barrier import wait
from kernels.formats import ATTENTION, BLOCK_FLOATS, LOGITS, MLP, MOST_HEADS, RESIDUAL
from kernels.jit import kernel, merged
from kernels.layout import TILE_K, TILE_ROWS, VOCAB_ROWS_PER_ATOM
from kernels.matvec import matvec, stream_step
from kernels.member import Member, add_rows, kept, norm_rows, preset, quantise_rows
from kernels.mlp_phase import run_mlp
from kernels.native import floats_at
from kernels.norm import rms_norm
from kernels.paging import PAGE_TOKENS
from kernels.quantise import quantises
from kernels.rope import rotate
from kernels.spans import F32Array, Matrix, Rows, Span, row_of
from kernels.team import SEEN, begin_job, end_job, finish_job, is_dismissed, next_job, read_job

__all__ = ["run_stage"]

I64Array = npt.NDArray[np.int64]


@kernel
def run_stage(
    tid: int,
    n_threads: int,
    sync: I64Array,
    what: int,
    first_layer: int,
    stop_layer: int,
    n_rows: int,
    x_address: int,
    out_address: int,
    out_columns: int,
    w: npt.NDArray[Any],
    floats: F32Array,
    pages: npt.NDArray[Any],
    page_table: npt.NDArray[np.int32],
    table: I64Array,
    scratch: F32Array,
) -> None:
    """Run the phases named by `what` for layers [first_layer, stop_layer).

    With RESIDUAL each partial sum is added to x in place (the member holds whole layers) and out
    is for logits, if they are asked for; else out receives the single phase that is named. x is
    (n_rows, D) and out (n_rows, out_columns) float32, C-contiguous, given by their addresses.

    Thread 0 runs one job. The others stay, do their share of every job that thread 0 runs, and
    return when they are dismissed; the numbers they are called with are of no account (`team`).
    """
    seen = sync[SEEN]
    while True:
        if tid == 0:
            begin_job(
                sync, n_threads, what, first_layer, stop_layer, n_rows, x_address, out_address,
                out_columns,
            )  # fmt: skip
        else:
            next_job(sync, tid, seen)
            seen += 1
            if is_dismissed(sync):
                return
        values = pages.reshape(-1)
        kv = KvPages(values, values.view(np.float32), pages.shape[1], page_table)
        member = Member(w, floats, kv, table, scratch)
        _run_phases(Team(tid, n_threads, sync), member)
        if tid == 0:
            end_job(sync, n_threads)
            return
        finish_job(sync)


@merged
def _run_phases(team: Team, m: Member) -> None:
    """Do one thread's share of the job that is published."""
    what, first_layer, stop_layer, n_rows, x_address, out_address, columns = read_job(team.sync)
    hidden = m.table[at.HIDDEN]
    x = Rows(floats_at(x_address, n_rows * hidden), 0, hidden)
    out = Rows(floats_at(out_address, n_rows * columns), 0, columns)
    in_place = what & RESIDUAL != 0
    partial = Rows(m.scratch, m.table[at.PARTIAL], hidden) if in_place else out
    for layer in range(first_layer, stop_layer):
        if what & ATTENTION:
            _attention(team, m, layer, n_rows, x, partial, in_place)
        if what & MLP:
            run_mlp(team, m, layer, n_rows, x, partial, in_place)
    if what & LOGITS:
        _logits(team, m, n_rows, x, out)


@merged
def _attention(
    team: Team, m: Member, layer: int, n_rows: int, x: Rows, out: Rows, in_place: bool
) -> None:
    """Write this member's partial sum of one attention phase, and add it to x if in_place."""
    t = m.table
    first = t[t[at.GROUP_BOUNDS] + layer]
    n_groups = t[t[at.GROUP_BOUNDS] + layer + 1] - first
    qkv = Rows(m.scratch, t[at.QKV], t[at.QKV_STRIDE])
    if n_groups > 0:
        h = norm_rows(team, m, n_rows, x, t[t[at.NORMS] + layer])
        wait(team.sync, team.n_threads)
        _project_qkv(team, m, first, n_groups, n_rows, h, qkv)
        meet(team)
        _place_in_context(team, m, layer, first, n_groups, n_rows, qkv)
        wait(team.sync, team.n_threads)
        _attend_all(team, m, first, n_groups, n_rows, qkv)
        wait(team.sync, team.n_threads)
        if quantises(m.w):
            mixed = Rows(m.scratch, t[at.MIXED], t[at.MIXED_STRIDE])
            mixed_q = Rows(m.scratch, t[at.MIXED_Q], t[at.MIXED_Q_STRIDE])
            quantise_rows(team, m, n_rows, n_groups, t[at.O_K_TILES], mixed, mixed_q)
            wait(team.sync, team.n_threads)
    start, stop = share_of(team, (t[at.HIDDEN] + TILE_ROWS - 1) // TILE_ROWS)
    _project_out(m, first, n_groups, start, stop, n_rows, out, kept(team, m))
    if in_place:  # nobody reads x before the next phase
        add_rows(x, out, n_rows, start * TILE_ROWS, min(stop * TILE_ROWS, t[at.HIDDEN]))
    meet(team)


@merged
def _project_qkv(
    team: Team, m: Member, first: int, n_groups: int, n_rows: int, h: Rows, qkv: Rows
) -> None:
    """Write q, k and v of every group and row: bias plus product."""
    t = m.table
    n_out = t[at.QKV_ROWS]
    n_tiles = (n_out + TILE_ROWS - 1) // TILE_ROWS
    start, stop = share_of(team, n_groups * n_tiles)
    for g in range(n_groups):
        tile, end_tile = max(start - g * n_tiles, 0), min(stop - g * n_tiles, n_tiles)
        if tile < end_tile:
            target = Rows(qkv.values, qkv.first + g * n_out, qkv.stride)
            bias = t[t[at.BIASES] + first + g] if t[at.QKV_BIAS] else -1
            preset(target, n_rows, tile * TILE_ROWS, min(end_tile * TILE_ROWS, n_out), m, bias)
            w = t[t[at.GROUPS] + first + g]
            following = t[t[at.GROUPS] + first + g + 1] if g + 1 < n_groups else -1
            more = min(stop - (g + 1) * n_tiles, n_tiles)
            step = stream_step(m.w, t[at.TILE_SIZE], t[at.K_TILES], more)
            matrix = Matrix(m.w, w, t[at.TILE_SIZE], t[at.K_TILES], n_out, following, step)
            matvec(matrix, tile, end_tile, h, target, n_rows, kept(team, m))


@merged
def _place_in_context(
    team: Team, m: Member, layer: int, first: int, n_groups: int, n_rows: int, qkv: Rows
) -> None:
    """Normalise (if the model does) and rotate q and k, then write k and v into their pages."""
    t = m.table
    d, n_q = t[at.HEAD_DIM], t[at.HEADS_PER_GROUP]
    q_gain = t[t[at.NORMS] + layer] + 2 * t[at.HIDDEN]
    for task in range(team.tid, n_rows * n_groups, team.n_threads):
        row, g = task // n_groups, task % n_groups
        turn = Span(m.scratch, t[at.TURNS] + row * d)
        skip = g * t[at.QKV_ROWS]
        for head in range(n_q + 1):  # the last one is k
            one = row_of(qkv, row, skip + head * d)
            if t[at.QK_NORM]:
                gain = Span(m.floats, q_gain + d if head == n_q else q_gain)
                rms_norm(one, gain, d, m.scratch[at.EPS], one)
            rotate(one, d, turn)
        slot, position = t[t[at.SLOTS] + row], t[t[at.POSITIONS] + row]
        page = m.kv.table[slot, first + g, position // PAGE_TOKENS]
        key, value = row_of(qkv, row, skip + n_q * d), row_of(qkv, row, skip + (n_q + 1) * d)
        append_kv(m.kv, int(page), position % PAGE_TOKENS, d, key, value)


@merged
def _attend_all(team: Team, m: Member, first: int, n_groups: int, n_rows: int, qkv: Rows) -> None:
    """Write the attention output of every row and query head."""
    t = m.table
    d, n_q = t[at.HEAD_DIM], t[at.HEADS_PER_GROUP]
    mixed = Rows(m.scratch, t[at.MIXED], t[at.MIXED_STRIDE])
    padded = t[at.O_K_TILES] * TILE_K
    stride = t[at.SCORES_STRIDE]
    scores = Rows(m.scratch, t[at.SCORES] + team.tid * MOST_HEADS * stride, stride)
    heads = heads_together(n_q, n_groups * n_rows, team.n_threads)
    n_parts = (n_q + heads - 1) // heads
    # Neighbours, so that threads seldom read the same group; of its heads all rows one after the
    # other, so that no thread has long contexts only.
    first_task, stop_task = share_of(team, n_groups * n_parts * n_rows)
    for task in range(first_task, stop_task):
        row, part = task % n_rows, task // n_rows
        g, head = part // n_parts, part % n_parts * heads
        n = t[t[at.POSITIONS] + row] + 1
        context = Context(t[t[at.SLOTS] + row], first + g, n)
        q = row_of(qkv, row, g * t[at.QKV_ROWS] + head * d)
        to = row_of(mixed, row, g * padded + head * d)
        attend(
            m.kv, context, d, Rows(q.values, q.first, d), min(heads, n_q - head), scores,
            Rows(to.values, to.first, d),
        )  # fmt: skip


@merged
def _project_out(
    m: Member, first: int, n_groups: int, start: int, stop: int, n_rows: int, out: Rows, keep: Span
) -> None:
    """Write row tiles start .. stop - 1 of the sum over groups of W_o times attention's output."""
    t = m.table
    hidden, n_blocks = t[at.HIDDEN], t[at.O_K_TILES]
    size = t[at.O_K_TILES] * t[at.TILE_SIZE]
    preset(out, n_rows, start * TILE_ROWS, min(stop * TILE_ROWS, hidden), m, -1)
    step = stream_step(m.w, t[at.TILE_SIZE], n_blocks, stop - start)
    for g in range(n_groups):
        w = t[t[at.GROUPS] + first + g] + t[at.O_SKIP]
        if quantises(m.w):
            skip = g * n_blocks * BLOCK_FLOATS
            mixed = Rows(m.scratch, t[at.MIXED_Q] + skip, t[at.MIXED_Q_STRIDE])
        else:
            mixed = Rows(m.scratch, t[at.MIXED] + g * n_blocks * TILE_K, t[at.MIXED_STRIDE])
        following = -1
        if g + 1 < n_groups:
            following = t[t[at.GROUPS] + first + g + 1] + t[at.O_SKIP] + start * size
        matrix = Matrix(m.w, w, t[at.TILE_SIZE], t[at.O_K_TILES], hidden, following, step)
        matvec(matrix, start, stop, mixed, out, n_rows, keep)


@merged
def _logits(team: Team, m: Member, n_rows: int, x: Rows, out: Rows) -> None:
    """Write the logits of every held vocabulary row, atom after atom."""
    t = m.table
    h = norm_rows(team, m, n_rows, x, t[at.FINAL_NORM])
    wait(team.sync, team.n_threads)
    whole = VOCAB_ROWS_PER_ATOM // TILE_ROWS
    start, stop = share_of(team, t[at.N_VOCAB] * whole)
    skip = 0
    for v in range(t[at.N_VOCAB]):
        n_out = t[t[at.VOCAB_ROWS] + v]
        n_tiles = (n_out + TILE_ROWS - 1) // TILE_ROWS
        tile, end = max(start - v * whole, 0), min(stop - v * whole, n_tiles)
        if tile < end:
            target = Rows(out.values, out.first + skip, out.stride)
            preset(target, n_rows, tile * TILE_ROWS, min(end * TILE_ROWS, n_out), m, -1)
            w = t[t[at.VOCAB] + v]
            following = t[t[at.VOCAB] + v + 1] if v + 1 < t[at.N_VOCAB] else -1
            step = stream_step(
                m.w, t[at.TILE_SIZE], t[at.K_TILES], min(stop - (v + 1) * whole, whole)
            )
            matrix = Matrix(m.w, w, t[at.TILE_SIZE], t[at.K_TILES], n_out, following, step)
            matvec(matrix, tile, end, h, target, n_rows, kept(team, m))
        skip += int(n_out)
    meet(team)
