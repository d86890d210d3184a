"""Attention of one query head over paged keys and values.

    score[p] = q . K[p] / sqrt(d)          p in 0 .. position, K and V rows (d,) of the same context
    out      = sum over p of exp(score[p] - max score) * V[p] / sum over p of exp(...)

Pages are those of `paging`; their dtype says the format: uint16 = float16 bits, float32. Each
score is one chain in rising j, the weighted sum of V one chain in rising p, and the sum of
exponentials runs in 8 lanes (p mod 8), then over the lanes: an order that depends on nothing but
the position.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kernels.half import from_stored, to_stored
from kernels.jit import inner, merged
from kernels.paging import PAGE_TOKENS
from kernels.simd import add, largest, load, madd, max8, store, sum8, zero
from kernels.simd_exp import exp8, less, times
from kernels.spans import Span

__all__ = ["Context", "KvPages", "append_kv", "attend"]

_LOWEST = np.float32(-3.0e38)


class KvPages(NamedTuple):
    """The KV pool and who owns which page.

    Attributes:
        values: the pool, flat: page i starts at element i * 2 * PAGE_TOKENS * d.
        table: (n_slots, n_local_groups, max_pages) int32 page numbers.
    """

    values: npt.NDArray[Any]
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
    first = page * 2 * PAGE_TOKENS * head_dim
    to_k = first + p // 8 * 8 * head_dim + p % 8
    to_v = first + PAGE_TOKENS * head_dim + p * head_dim
    for j in range(head_dim):
        kv.values[to_k + 8 * j] = to_stored(kv.values, key.values[key.first + j])
    for j in range(head_dim):
        kv.values[to_v + j] = to_stored(kv.values, value.values[value.first + j])


@inner
def attend(kv: KvPages, context: Context, head_dim: int, q: Span, scores: Span, out: Span) -> None:
    """Write the attention output (d,) of one row and query head.

    Args:
        kv: pages whose positions 0 .. n - 1 of the context are written.
        context: whose keys and values are read, and how many.
        head_dim: d.
        q: the rotated query (d,).
        scores: scratch of n values rounded up to 8.
        out: written.
    """
    n = context.n
    n_padded = (n + 7) // 8 * 8
    _scores(kv, context, head_dim, q, scores)
    s, first = scores.values, scores.first
    for p in range(n, n_padded):
        s[first + p] = _LOWEST
    top = load(s, first)
    for p in range(8, n_padded, 8):
        top = largest(load(s, first + p), top)
    highest = max8(top)
    total = zero()
    for p in range(0, n_padded, 8):  # the padding becomes exp(lowest) = 0
        weights = exp8(less(load(s, first + p), highest))
        store(s, first + p, weights)
        total = add(total, weights)
    _weighted_values(kv, context, head_dim, scores, out)
    divisor = sum8(total)
    for j in range(head_dim):
        out.values[out.first + j] = np.float32(out.values[out.first + j] / divisor)


@merged
def _scores(kv: KvPages, context: Context, head_dim: int, q: Span, scores: Span) -> None:
    """Write the scaled scores of positions 0 .. n - 1, rounded up to whole blocks of 8.

    Four blocks at a time: their sums are independent, so none waits for another's additions. A
    page holds whole fours, and what lies behind position n - 1 in it may be read.
    """
    factor = np.float32(np.float32(1.0) / np.sqrt(np.float32(head_dim)))
    n, size = context.n, 8 * head_dim
    p = 0
    while p < n:
        page = kv.table[context.slot, context.group, p // PAGE_TOKENS]
        k = page * 2 * PAGE_TOKENS * head_dim + p % PAGE_TOKENS * head_dim
        a, b, c, d = zero(), zero(), zero(), zero()
        if p + 8 < n:
            for j in range(head_dim):
                at, x = k + 8 * j, q.first + j
                a = madd(a, load(kv.values, at), q.values, x)
                b = madd(b, load(kv.values, at + size), q.values, x)
                c = madd(c, load(kv.values, at + 2 * size), q.values, x)
                d = madd(d, load(kv.values, at + 3 * size), q.values, x)
        else:
            for j in range(head_dim):
                a = madd(a, load(kv.values, k + 8 * j), q.values, q.first + j)
        store(scores.values, scores.first + p, times(a, factor))
        if p + 8 < n:
            store(scores.values, scores.first + p + 8, times(b, factor))
        if p + 16 < n:
            store(scores.values, scores.first + p + 16, times(c, factor))
        if p + 24 < n:
            store(scores.values, scores.first + p + 24, times(d, factor))
        p += 32 if p + 8 < n else 8


@merged
def _weighted_values(
    kv: KvPages, context: Context, head_dim: int, weights: Span, out: Span
) -> None:
    """Write the sum over p < n of weights[p] * V[p], in rising p."""
    j = 0
    while j + 32 <= head_dim:
        _weighted_lanes(kv, context, head_dim, weights, out, j)
        j += 32
    while j + 8 <= head_dim:
        _weighted_eight(kv, context, head_dim, weights, out, j)
        j += 8
    for i in range(j, head_dim):
        total = np.float32(0.0)
        for p in range(context.n):
            start = p - p % PAGE_TOKENS
            v = _values(kv, context, head_dim, start) + (p - start) * head_dim + i
            product = np.float32(weights.values[weights.first + p] * from_stored(kv.values, v))
            total = np.float32(total + product)
        out.values[out.first + i] = total


@merged
def _weighted_lanes(
    kv: KvPages, context: Context, head_dim: int, weights: Span, out: Span, j: int
) -> None:
    """Do it for dimensions j .. j + 31."""
    a, b, c, d = zero(), zero(), zero(), zero()
    for start in range(0, context.n, PAGE_TOKENS):
        v = _values(kv, context, head_dim, start) + j
        w = weights.first + start
        for _ in range(min(PAGE_TOKENS, context.n - start)):
            a = madd(a, load(kv.values, v), weights.values, w)
            b = madd(b, load(kv.values, v + 8), weights.values, w)
            c = madd(c, load(kv.values, v + 16), weights.values, w)
            d = madd(d, load(kv.values, v + 24), weights.values, w)
            v += head_dim
            w += 1
    store(out.values, out.first + j, a)
    store(out.values, out.first + j + 8, b)
    store(out.values, out.first + j + 16, c)
    store(out.values, out.first + j + 24, d)


@merged
def _weighted_eight(
    kv: KvPages, context: Context, head_dim: int, weights: Span, out: Span, j: int
) -> None:
    """Do it for dimensions j .. j + 7."""
    a = zero()
    for start in range(0, context.n, PAGE_TOKENS):
        v = _values(kv, context, head_dim, start) + j
        for p in range(min(PAGE_TOKENS, context.n - start)):
            a = madd(
                a, load(kv.values, v + p * head_dim), weights.values, weights.first + start + p
            )
    store(out.values, out.first + j, a)


@merged
def _values(kv: KvPages, context: Context, head_dim: int, start: int) -> int:
    """Return where the values of the page that begins at position `start` lie in the pool."""
    page = kv.table[context.slot, context.group, start // PAGE_TOKENS]
    return int((page * 2 + 1) * PAGE_TOKENS * head_dim)
