"""Attention of query heads over paged keys and values.

    score[p] = q . K[p] / sqrt(d)          p in 0 .. position, K and V rows (d,) of the same context
    out      = sum over p of exp(score[p] - max score) * V[p] / sum over p of exp(...)

Pages are those of `paging`; their dtype says the format: uint16 = float16 bits, float32, int8. Of
bytes B with scales s (see `kv_rows`) it is (q . B_K[p]) / sqrt(d) * s_K[p], and exp(...) * s_V[p]
times B_V[p]. Each score is one chain in rising j, the weighted sum of V one chain in rising p, and
the sum of exponentials runs in 8 lanes (p mod 8), then over the lanes: an order that depends on
nothing but the position.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kernels.emit import ZMM
from kernels.formats import MOST_HEADS
from kernels.half import from_stored
from kernels.jit import inner, merged
from kernels.kv_rows import keep_row, multiply_scales
from kernels.paging import PAGE_TOKENS
from kernels.simd import add, largest, less, load, max8, quotient, same, store, sum8, zero
from kernels.simd_exp import exp8
from kernels.simd_tile import add_columns
from kernels.simd_totals import no_columns, store_totals
from kernels.spans import F32Array, Rows, Span, row_of

__all__ = ["Context", "KvPages", "append_kv", "attend", "heads_together"]

_LOWEST = np.float32(-3.0e38)
_HEADS = MOST_HEADS if ZMM else 2  # as many as registers hold
BLOCKS = 4  # of 8 positions or dimensions that one step takes


class KvPages(NamedTuple):
    """The KV pool and who owns which page.

    Attributes:
        values: the pool, flat: page i starts at element i * page_size.
        scales: the pool as float32, for the scales of bytes.
        page_size: elements of a page.
        table: (n_slots, n_local_groups, max_pages) int32 page numbers.
    """

    values: npt.NDArray[Any]
    scales: F32Array
    page_size: int
    table: npt.NDArray[np.int32]


class Context(NamedTuple):
    """Positions 0 .. n - 1 of one context in one local group."""

    slot: int
    group: int
    n: int


@inner
def append_kv(kv: KvPages, page: int, p: int, head_dim: int, key: Span, value: Span) -> None:
    """Write one position's key (d,) and value (d,) into its page.

    Args:
        kv: the pool, written.
        page: page number.
        p: position counted from the page's start.
        head_dim: d.
        key: the rotated key.
        value: the value.
    """
    first = page * kv.page_size
    scale = _page_scales(kv, page, head_dim) + p
    to_k = first + p // 8 * 8 * head_dim + p % 8
    to_v = first + PAGE_TOKENS * head_dim + p * head_dim
    keep_row(kv.values, to_k, 8, kv.scales, scale, key, head_dim)
    keep_row(kv.values, to_v, 1, kv.scales, scale + PAGE_TOKENS, value, head_dim)


@inner
def heads_together(n_heads: int, n_groups: int, n_threads: int) -> int:
    """Return how many heads of a group should read keys and values together.

    Many, unless that leaves some thread more heads than pairs of them would.

    Args:
        n_heads: query heads of a group.
        n_groups: groups, times rows.
        n_threads: threads that share them.
    """
    of_pairs = _most_heads(2, n_heads, n_groups, n_threads)
    return _HEADS if _most_heads(_HEADS, n_heads, n_groups, n_threads) <= of_pairs else 2


@inner
def _most_heads(together: int, n_heads: int, n_groups: int, n_threads: int) -> int:
    """Return the heads of the thread that has most, where so many make a task."""
    n_tasks = n_groups * ((n_heads + together - 1) // together)
    return (n_tasks + n_threads - 1) // n_threads * together


@inner
def attend(
    kv: KvPages, context: Context, head_dim: int, q: Rows, n_heads: int, scores: Rows, out: Rows
) -> None:
    """Write the attention output (d,) of one row for up to four query heads of a group.

    Several read keys and values together.

    Args:
        kv: pages whose positions 0 .. n - 1 of the context are written.
        context: whose keys and values are read, and how many.
        head_dim: d.
        q: the rotated queries (n_heads, d).
        n_heads: 1 to 4.
        scores: scratch (n_heads, n rounded up to 32, and one more), in rows of scores.stride.
        out: (n_heads, d), written.
    """
    if n_heads > 1:
        _attend_together(kv, context, head_dim, q, n_heads, scores, out)
    else:
        _attend(kv, context, head_dim, q, n_heads, scores, out, 1)


@merged
def _in_fours(
    kv: KvPages, context: Context, head_dim: int, q: Rows, n_heads: int, scores: Rows, out: Rows
) -> None:
    """Do it for two heads, or for three or four."""
    if n_heads > 2:
        _attend(kv, context, head_dim, q, n_heads, scores, out, MOST_HEADS)
    else:
        _attend(kv, context, head_dim, q, n_heads, scores, out, 2)


@merged
def _in_pairs(
    kv: KvPages, context: Context, head_dim: int, q: Rows, n_heads: int, scores: Rows, out: Rows
) -> None:
    """Do it for two heads at a time."""
    for head in range(0, n_heads, 2):
        two = min(n_heads - head, 2)
        q_two, scores_two, out_two = _from(q, head), _from(scores, head), _from(out, head)
        _attend(kv, context, head_dim, q_two, two, scores_two, out_two, 2)


_attend_together = _in_fours if ZMM else _in_pairs


@merged
def _from(rows: Rows, head: int) -> Rows:
    """Return the rows of a head and those behind it."""
    return Rows(rows.values, rows.first + head * rows.stride, rows.stride)


@merged
def _attend(
    kv: KvPages, context: Context, head_dim: int, q: Rows, n_heads: int, scores: Rows, out: Rows,
    width: int,
) -> None:  # fmt: skip
    """Do it in steps of `width` heads, a literal: others stand in for those that are not there."""
    _scores(kv, context, head_dim, q, n_heads, scores, width)
    _weigh(kv, context, head_dim, n_heads, scores)
    _weighted_values(kv, context, head_dim, scores, n_heads, out, width)
    _finish(kv, context, head_dim, scores, n_heads, out)


@inner
def _weigh(kv: KvPages, context: Context, head_dim: int, n_heads: int, scores: Rows) -> None:
    """Replace scores by what values are multiplied with; the sums of weights go behind them."""
    _scale(kv, context, head_dim, 0, scores, n_heads)
    for head in range(n_heads):
        divisor = _exponentials(row_of(scores, head, 0), context.n)
        scores.values[scores.first + (head + 1) * scores.stride - 1] = divisor
    _scale(kv, context, head_dim, PAGE_TOKENS, scores, n_heads)


@merged
def _scores(
    kv: KvPages, context: Context, head_dim: int, q: Rows, n_heads: int, scores: Rows, width: int
) -> None:
    """Write the scaled scores of positions 0 .. n - 1, and anything up to whole fours of blocks.

    A page holds whole fours, and what lies behind position n - 1 in it may be read.
    """
    factor = np.float32(np.float32(1.0) / np.sqrt(np.float32(head_dim)))
    first_values = _values(kv, context, head_dim, 0)
    size = 8 * head_dim
    for p in range(0, context.n, 8 * BLOCKS):
        k = _keys(kv, context, head_dim, p)
        # Meanwhile the next blocks are asked for, and at last the first values.
        more = p + 8 * BLOCKS < context.n
        ahead = _keys(kv, context, head_dim, p + 8 * BLOCKS) if more else first_values
        totals = no_columns(BLOCKS, width)
        n_blocks = min(BLOCKS, (context.n - p + 7) // 8)
        totals = add_columns(
            totals, kv.values, k, 8, size, n_blocks, head_dim, q.values, q.first, q.stride, n_heads,
            ahead, 8 * BLOCKS,
        )  # fmt: skip
        store_totals(
            scores.values, scores.first + p, scores.stride, totals, BLOCKS, n_heads, factor
        )


@inner
def _exponentials(scores: Span, n: int) -> np.float32:
    """Replace n scores by exp(score - max score), up to a whole 8 by 0, and return the sum."""
    s, first = scores.values, scores.first
    n_padded = (n + 7) // 8 * 8
    for p in range(n, n_padded):
        s[first + p] = _LOWEST
    top = load(s, first)
    for p in range(8, n_padded, 8):
        top = largest(load(s, first + p), top)
    highest = same(max8(top))
    total = zero()
    for p in range(0, n_padded, 8):  # the padding becomes exp(lowest) = 0
        weights = exp8(less(load(s, first + p), highest))
        store(s, first + p, weights)
        total = add(total, weights)
    return sum8(total)


@merged
def _weighted_values(
    kv: KvPages, context: Context, head_dim: int, weights: Rows, n_heads: int, out: Rows, width: int
) -> None:
    """Write the sum over p < n of weights[p] * V[p], in rising p, but for the last d % 8."""
    for j in range(0, head_dim - 7, 8 * BLOCKS):
        n_tiles = min(BLOCKS, (head_dim - j) // 8)
        totals = no_columns(BLOCKS, width)
        for p in range(0, context.n, PAGE_TOKENS):
            v = _values(kv, context, head_dim, p) + j
            more = p + PAGE_TOKENS < context.n
            ahead = _values(kv, context, head_dim, p + PAGE_TOKENS) + j if more else v
            totals = add_columns(
                totals, kv.values, v, head_dim, 8, n_tiles, min(PAGE_TOKENS, context.n - p),
                weights.values, weights.first + p, weights.stride, n_heads, ahead, head_dim,
            )  # fmt: skip
        one = np.float32(1.0)
        store_totals(out.values, out.first + j, out.stride, totals, n_tiles, n_heads, one)


@inner
def _finish(
    kv: KvPages, context: Context, head_dim: int, weights: Rows, n_heads: int, out: Rows
) -> None:
    """Add up the last head_dim % 8 elements, and divide all by the sums of weights."""
    for head in range(n_heads):
        w, one = row_of(weights, head, 0), row_of(out, head, 0)
        for j in range(head_dim - head_dim % 8, head_dim):
            total = np.float32(0.0)
            for p in range(context.n):
                start = p - p % PAGE_TOKENS
                v = _values(kv, context, head_dim, start) + (p - start) * head_dim + j
                product = np.float32(w.values[w.first + p] * from_stored(kv.values, v))
                total = np.float32(total + product)
            one.values[one.first + j] = total
        divisor = w.values[w.first + weights.stride - 1]
        for j in range(0, head_dim - 7, 8):
            at = one.first + j
            store(one.values, at, quotient(load(one.values, at), same(divisor)))
        for j in range(head_dim - head_dim % 8, head_dim):
            one.values[one.first + j] = np.float32(one.values[one.first + j] / divisor)


@merged
def _scale(
    kv: KvPages, context: Context, head_dim: int, skip: int, scores: Rows, n_heads: int
) -> None:
    """Multiply numbers of positions by the scales of their keys, or values: skip = PAGE_TOKENS."""
    for p in range(0, context.n, PAGE_TOKENS):
        page = kv.table[context.slot, context.group, p // PAGE_TOKENS]
        at, n = _page_scales(kv, page, head_dim) + skip, min(PAGE_TOKENS, context.n - p)
        for head in range(n_heads):
            i = scores.first + head * scores.stride + p
            multiply_scales(kv.values, kv.scales, at, scores.values, i, n)


@merged
def _page_scales(kv: KvPages, page: int, head_dim: int) -> int:
    """Return where a page of bytes has the scale of its first key, in kv.scales."""
    return int((page * kv.page_size + 2 * PAGE_TOKENS * head_dim) // 4)


@merged
def _values(kv: KvPages, context: Context, head_dim: int, start: int) -> int:
    """Return where the values of the page that begins at position `start` lie in the pool."""
    page = kv.table[context.slot, context.group, start // PAGE_TOKENS]
    return int(page * kv.page_size + PAGE_TOKENS * head_dim)


@merged
def _keys(kv: KvPages, context: Context, head_dim: int, p: int) -> int:
    """Return where the keys of a block that begins at position p lie in the pool."""
    page = kv.table[context.slot, context.group, p // PAGE_TOKENS]
    return int(page * kv.page_size + p % PAGE_TOKENS * head_dim)
