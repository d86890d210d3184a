"""Rows that move between pools: the same bits, and nothing beside them."""

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.ids import KvId
from agent.kv import KvPool, KvShape
from agent.kv_ops import KvOp, KvOpCode
from agent.kv_rows import copy_rows, export_rows, import_rows, rows_bytes, token_bytes
from kernels.errors import ResourceError, WireError

P = 64
D = 6
DTYPES: list[Any] = [np.uint16, np.float32, np.int8]
TEXT = KvId(7)


def new_pool(dtype: Any, n_groups: int, seed: int = 0, n_open: int = 0) -> KvPool:
    """Return a pool full of random bytes; other contexts take its first pages."""
    pool = KvPool(KvShape(n_groups, D, dtype, 3 * P, 6 * P, 4))
    raw = np.random.default_rng(seed).integers(0, 256, pool.pages.nbytes, dtype=np.uint8)
    pool.pages.reshape(-1).view(np.uint8)[:] = raw
    for other in range(n_open):
        pool.apply([KvOp(KvOpCode.OPEN, KvId(100 + other), P)])
        pool.extend(KvId(100 + other), P)
    pool.apply([KvOp(KvOpCode.OPEN, TEXT, 3 * P)])
    return pool


def rows_of(pool: KvPool, group: int, n_tokens: int) -> list[bytes]:
    """Return each position of a group by the drawing in kernels/paging.py, element by element."""
    found = []
    for p in range(n_tokens):
        page = pool.pages[pool.pages_of(TEXT)[group, p // P]]
        q = p % P
        k = [page[(q // 8 * D + j) * 8 + q % 8] for j in range(D)]
        v = [page[P * D + q * D + j] for j in range(D)]
        row = np.array(k + v, page.dtype).tobytes()
        if page.dtype == np.int8:
            at = 2 * P * D + 4 * q
            row += page[at : at + 4].tobytes() + page[at + 4 * P : at + 4 * P + 4].tobytes()
        found.append(row)
    return found


def bits(pool: KvPool) -> npt.NDArray[np.uint8]:
    return pool.pages.reshape(-1).view(np.uint8).copy()


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    cuts=st.lists(st.integers(1, 3 * P - 1), max_size=5),
    order=st.randoms(use_true_random=False),
    picks=st.permutations(range(3)),
)
@settings(max_examples=25, deadline=None)
def test_rows_in_any_cut_and_order_arrive_bit_for_bit(
    dtype: Any, cuts: list[int], order: Any, picks: list[int]
) -> None:
    n_tokens = 2 * P + 37
    source, target = new_pool(dtype, 3, 1), new_pool(dtype, 2, 2, n_open=2)
    source.extend(TEXT, n_tokens)
    target.extend(TEXT, n_tokens)
    moved = picks[:2]
    edges = sorted({0, n_tokens, *(c for c in cuts if c < n_tokens)})
    pieces = [(a, b, i) for a, b in itertools.pairwise(edges) for i in range(2)]
    order.shuffle(pieces)
    for start, end, i in pieces:
        data = export_rows(source, TEXT, [moved[i]], start, end - start)
        assert len(data) == rows_bytes(source.shape, 1, end - start)
        import_rows(target, TEXT, [i], start, end - start, data)
    for i in range(2):
        assert rows_of(target, i, n_tokens) == rows_of(source, moved[i], n_tokens)
    target.check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("first", "n"), [(0, 1), (5, 9), (60, 10), (64, 64), (63, 66), (70, 1)])
def test_nothing_beside_the_rectangle_is_written(dtype: Any, first: int, n: int) -> None:
    source, target = new_pool(dtype, 3, 1), new_pool(dtype, 3, 2, n_open=1)
    source.extend(TEXT, 3 * P)
    target.extend(TEXT, 3 * P)
    before, rows_before = bits(target), [rows_of(target, g, 3 * P) for g in range(3)]
    import_rows(target, TEXT, [2, 0], first, n, export_rows(source, TEXT, [0, 1], first, n))
    for group, came_from in ((0, 1), (1, None), (2, 0)):
        expected = rows_before[group]
        if came_from is not None:
            expected[first : first + n] = rows_of(source, came_from, 3 * P)[first : first + n]
        assert rows_of(target, group, 3 * P) == expected
    # Every byte that changed is one of these rows: pages of other contexts are as they were.
    assert np.count_nonzero(before != bits(target)) <= rows_bytes(target.shape, 2, n)


@pytest.mark.parametrize("dtype", DTYPES)
def test_several_groups_at_once_are_the_same_bytes_as_a_copy(dtype: Any) -> None:
    source, far, near = (new_pool(dtype, 4, seed) for seed in (1, 2, 3))
    for pool in (source, far, near):
        pool.extend(TEXT, P + 20)
    import_rows(far, TEXT, [3, 1], 30, 50, export_rows(source, TEXT, [0, 2], 30, 50))
    copy_rows(source, [0, 2], near, [3, 1], TEXT, 30, 50)
    for group in (1, 3):
        assert rows_of(near, group, 80)[30:] == rows_of(far, group, 80)[30:]
    assert rows_of(far, 1, 80)[30:] == rows_of(source, 2, 80)[30:]


def test_a_position_takes_the_same_bytes_whole_pages_or_not() -> None:
    assert [token_bytes(KvShape(1, D, t, P, P, 1)) for t in DTYPES] == [4 * D, 8 * D, 2 * D + 8]


def test_what_is_not_here_is_refused() -> None:
    pool = new_pool(np.uint16, 2)
    pool.extend(TEXT, 10)
    for kv_id, groups, first, n, why in (
        (KvId(9), [0], 0, 1, "context 9 is not open"),
        (TEXT, [0], 5, 6, "context 7 has 10 tokens here; positions 5 to 10"),
        (TEXT, [0], -1, 2, "positions -1 to 0"),
        (TEXT, [2], 0, 1, "head groups"),
        (TEXT, [-1], 0, 1, "head groups"),
    ):
        with pytest.raises(WireError, match=why):
            export_rows(pool, kv_id, groups, first, n)
    with pytest.raises(WireError, match="23 bytes came for 1 positions of 1 head groups"):
        import_rows(pool, TEXT, [0], 0, 1, bytes(23))


def test_extend_takes_own_pages_for_what_is_shared() -> None:
    pool = new_pool(np.uint16, 1)
    pool.extend(TEXT, P + 5)
    fork = KvId(8)
    pool.apply([KvOp(KvOpCode.FORK, fork, TEXT, P), KvOp(KvOpCode.TRUNCATE, TEXT, 40)])
    before = rows_of(pool, 0, 40)
    kept = pool.pages[pool.pages_of(fork)[0, 0]].copy()
    pool.extend(TEXT, 60)
    import_rows(pool, TEXT, [0], 40, 20, bytes(20 * 4 * D))
    assert np.array_equal(pool.pages[pool.pages_of(fork)[0, 0]], kept)
    assert rows_of(pool, 0, 40) == before
    pool.extend(TEXT, 10)
    assert pool.n_tokens(TEXT) == 60
    pool.check()
    with pytest.raises(WireError, match="does not fit"):
        pool.extend(TEXT, 3 * P + 1)


def test_extend_says_when_pages_run_out() -> None:
    pool = KvPool(KvShape(1, D, np.uint16, 3 * P, P, 2))
    pool.apply([KvOp(KvOpCode.OPEN, TEXT, 1)])
    with pytest.raises(ResourceError, match="none is free"):
        pool.extend(TEXT, 3 * P)
