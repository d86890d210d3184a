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

from kernels.elementary import exp_f32
from kernels.half import from_stored, to_stored
from kernels.jit import inner, merged
from kernels.paging import PAGE_TOKENS
from kernels.simd import add, largest, load, madd, max8, store, sum8, zero
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
    for p in range(n_padded):  # the padding becomes exp(lowest) = 0
        s[first + p] = exp_f32(np.float32(s[first + p] - highest))
    total = zero()
    for p in range(0, n_padded, 8):
        total = add(total, load(s, first + p))
    _weighted_values(kv, context, head_dim, scores, out)
    divisor = sum8(total)
    for j in range(head_dim):
        out.values[out.first + j] = np.float32(out.values[out.first + j] / divisor)


@merged
def _scores(kv: KvPages, context: Context, head_dim: int, q: Span, scores: Span) -> None:
    """Write the scaled scores of positions 0 .. n - 1, rounded up to whole blocks of 8."""
    factor = np.float32(np.float32(1.0) / np.sqrt(np.float32(head_dim)))
    for p in range(0, context.n, 8):
        page = kv.table[context.slot, context.group, p // PAGE_TOKENS]
        k = page * 2 * PAGE_TOKENS * head_dim + p % PAGE_TOKENS * head_dim
        block = zero()
        for j in range(head_dim):
            block = madd(block, load(kv.values, k + 8 * j), q.values, q.first + j)
        store(scores.values, scores.first + p, block)
    for p in range(context.n):
        at = scores.first + p
        scores.values[at] = np.float32(scores.values[at] * factor)


@merged
def _weighted_values(
    kv: KvPages, context: Context, head_dim: int, weights: Span, out: Span
) -> None:
    """Write the sum over p < n of weights[p] * V[p], in rising p."""
    for j in range(head_dim):
        out.values[out.first + j] = np.float32(0.0)
    n_lanes = head_dim - head_dim % 8
    for p in range(context.n):
        page = kv.table[context.slot, context.group, p // PAGE_TOKENS]
        v = (page * 2 + 1) * PAGE_TOKENS * head_dim + p % PAGE_TOKENS * head_dim
        w = weights.first + p
        for j in range(0, n_lanes, 8):
            so_far = load(out.values, out.first + j)
            so_far = madd(so_far, load(kv.values, v + j), weights.values, w)
            store(out.values, out.first + j, so_far)
        for j in range(n_lanes, head_dim):
            product = np.float32(weights.values[w] * from_stored(kv.values, v + j))
            out.values[out.first + j] = np.float32(out.values[out.first + j] + product)
