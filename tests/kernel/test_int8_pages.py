"""Pages of bytes: what is kept of a key and a value, and attention over it, against NumPy."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from kernels.attention import Context, KvPages, append_kv, attend
from kernels.paging import PAGE_TOKENS, page_elements
from kernels.spans import Rows, Span
from tests.kernel_models import callable_from_python

F32 = npt.NDArray[np.float32]

D = 18  # two lanes over a whole eight
N_PAGES = 2
FILL = 55


class Page(NamedTuple):
    """The parts of a page in the order of positions, and what is left: nothing."""

    k: npt.NDArray[np.int8]  # (64, d)
    v: npt.NDArray[np.int8]
    k_scales: F32  # (64,)
    v_scales: F32


def parts(page: npt.NDArray[np.int8], d: int) -> Page:
    """Take a page apart as the drawing in docs/kernels.md has it."""
    n = PAGE_TOKENS * d
    assert page.size == 2 * n + 2 * 4 * PAGE_TOKENS
    k = page[:n].reshape(PAGE_TOKENS // 8, d, 8).transpose(0, 2, 1).reshape(PAGE_TOKENS, d)
    scales = page[2 * n :].copy().view(np.float32)
    return Page(k, page[n : 2 * n].reshape(PAGE_TOKENS, d), *np.split(scales, 2))


def new_pool(d: int = D) -> KvPages:
    """Return pages whose numbers nobody may read: bytes of one kind and NaN for scales."""
    size = page_elements(d, np.int8)
    pages = np.full((N_PAGES, size), FILL, np.int8)
    pages.view(np.float32)[:, -2 * PAGE_TOKENS :] = np.nan
    table = np.array([[[1, 0]]], np.int32)
    values = pages.reshape(-1)
    return KvPages(values, values.view(np.float32), size, table)


def page_of(kv: KvPages, number: int) -> npt.NDArray[np.int8]:
    return kv.values.reshape(N_PAGES, -1)[number]


def append(kv: KvPages, p: int, key: F32, value: F32) -> None:
    number = int(kv.table[0, 0, p // PAGE_TOKENS])
    callable_from_python(append_kv)(
        kv, number, p % PAGE_TOKENS, len(key), Span(key, 0), Span(value, 0)
    )


def test_bytes_and_scales_follow_their_equation() -> None:
    rng = np.random.default_rng(1)
    kv = new_pool()
    size = 10.0 ** rng.integers(-20, 20, (2, PAGE_TOKENS, 1))
    x = (rng.standard_normal((2, PAGE_TOKENS, D)) * size).astype(np.float32)
    x[:, 5] = 0
    for p in range(PAGE_TOKENS):
        append(kv, p, x[0, p], x[1, p])
    page = parts(page_of(kv, 1), D)
    for numbers, scales, exact in zip(page[:2], page[2:], x.astype(np.float64), strict=True):
        largest = np.abs(exact).max(axis=1)
        np.testing.assert_allclose(scales, largest / 127, rtol=1e-6)
        assert (np.abs(numbers.astype(int)).max(axis=1) == 127)[largest > 0].all()
        error = np.abs(numbers * scales[:, None].astype(np.float64) - exact)
        assert (error <= 0.501 * scales[:, None]).all()
    assert (page_of(kv, 0)[: page_elements(D, np.float32)] == FILL).all()


def test_halves_are_rounded_to_even() -> None:
    kv = new_pool()
    x = np.zeros(D, np.float32)
    x[:7] = [127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]
    append(kv, 9, x, -x)
    page = parts(page_of(kv, 1), D)
    assert page.k[9, :8].tolist() == [127, 0, 2, 2, 0, -2, -2, 0]
    assert page.v[9, :8].tolist() == [-127, 0, -2, -2, 0, 2, 2, 0]
    assert (page.k_scales[9], page.v_scales[9]) == (1, 1)


def test_one_position_touches_no_other() -> None:
    kv = new_pool()
    append(kv, 13, np.ones(D, np.float32), np.ones(D, np.float32))
    page = parts(page_of(kv, 1), D)
    others = np.arange(PAGE_TOKENS) != 13
    assert (page.k[13] == 127).all()
    assert (page.v[13] == 127).all()
    assert (page.k[others] == FILL).all()
    assert (page.v[others] == FILL).all()
    assert np.isnan(page.k_scales[others]).all()
    assert np.isnan(page.v_scales[others]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    kv = new_pool()
    x = np.ones(D, np.float32)
    x[3] = bad
    append(kv, 0, x, np.ones(D, np.float32))
    append(kv, 1, np.ones(D, np.float32), x)
    page = parts(page_of(kv, 1), D)
    assert np.isnan(page.k_scales[:2]).tolist() == [True, False]
    assert np.isnan(page.v_scales[:2]).tolist() == [False, True]
    assert not page.k[0].any()
    assert not page.v[1].any()


def test_rows_too_small_to_scale_count_as_zeros() -> None:
    kv = new_pool()
    x = np.full(D, 1e-40, np.float32)
    append(kv, 2, x, -x)
    page = parts(page_of(kv, 1), D)
    assert not page.k[2].any()
    assert not page.v[2].any()
    assert (np.abs([page.k_scales[2], page.v_scales[2]]) < 1e-30).all()


@pytest.mark.slow  # compiles for three seconds
@pytest.mark.parametrize("n_heads", [1, 2, 3, 4])
@pytest.mark.parametrize("n", [1, 8, 33, PAGE_TOKENS, PAGE_TOKENS + 9])
def test_attention_is_that_over_what_is_kept(n: int, n_heads: int) -> None:
    rng = np.random.default_rng(n)
    kv = new_pool()
    size = 10.0 ** rng.integers(-1, 2, (2, n, 1))  # each position has a scale of its own
    x = (rng.standard_normal((2, n, D)) * size).astype(np.float32)
    q = rng.standard_normal((n_heads, D)).astype(np.float32)
    for p in range(n):
        append(kv, p, x[0, p], x[1, p])
    stride = -(-n // 32) * 32 + 1
    scores, out = (np.full(n_heads * width, np.nan, np.float32) for width in (stride, D))
    callable_from_python(attend)(
        kv, Context(0, 0, n), D, Rows(q.reshape(-1), 0, D), n_heads, Rows(scores, 0, stride),
        Rows(out, 0, D),
    )  # fmt: skip
    pages = [parts(page_of(kv, number), D) for number in kv.table[0, 0]]
    k = np.concatenate([p.k * p.k_scales[:, None].astype(np.float64) for p in pages])[:n]
    v = np.concatenate([p.v * p.v_scales[:, None].astype(np.float64) for p in pages])[:n]
    logits = q @ k.T / np.sqrt(D)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    exact = weights / weights.sum(axis=1, keepdims=True) @ v
    np.testing.assert_allclose(out.reshape(n_heads, D), exact, atol=2e-5 * np.abs(v).max())
