"""Compiled kernels between inaccessible pages: they touch nothing outside, and give the plain bits.

A read or write outside a buffer ends the test process, so a failure here is a crash.
"""

import ctypes
import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numba import config

from kernels.attention import Context, KvPages, append_kv, attend
from kernels.column_pair import PAIR_FLOATS, Onward
from kernels.formats import BLOCK_FLOATS, kept_floats, weight_dtype
from kernels.jit import JIT_DISABLED
from kernels.layout import TILE_BYTES, WeightFormat
from kernels.matvec import matvec
from kernels.mlp import swiglu8
from kernels.norm import rms_norm
from kernels.paging import PAGE_DTYPES, PAGE_TOKENS, page_elements
from kernels.quantise import quantise
from kernels.rope import rotate
from kernels.simd_bytes import store_block
from kernels.simd_tile import add_tiles
from kernels.simd_totals import add_totals
from kernels.spans import Matrix, Rows, Span
from kernels.tiles import pack_matrix
from tests.kernel.column_pairs import FORMATS, SIZES, TwoAtoms, run_pair
from tests.kernel_models import callable_from_python

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(JIT_DISABLED or bool(config.BOUNDSCHECK), reason="is about compiled code"),
]

PAGE = mmap.PAGESIZE
PROT_NONE = 0
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Guarded:
    """Copies of arrays, each between two pages that nobody may touch."""

    def __init__(self, at_end: bool) -> None:
        self.at_end = at_end
        self._maps: list[tuple[mmap.mmap, int, int]] = []

    def __call__(self, array: npt.NDArray[Any], read_only: bool = False) -> npt.NDArray[Any]:
        inside = -(-array.nbytes // PAGE) * PAGE
        memory = mmap.mmap(-1, inside + 2 * PAGE)
        whole = np.frombuffer(memory, np.uint8)
        base = whole.ctypes.data
        for page in (base, base + PAGE + inside):
            assert libc.mprotect(page, PAGE, PROT_NONE) == 0
        self._maps.append((memory, base, inside))
        start = PAGE + (inside - array.nbytes if self.at_end else 0)
        copy = whole[start : start + array.nbytes].view(array.dtype)
        copy[:] = array.reshape(-1)
        copy.flags.writeable = not read_only
        return copy

    def release(self) -> None:
        for _, base, inside in self._maps:
            libc.mprotect(base, inside + 2 * PAGE, mmap.PROT_READ | mmap.PROT_WRITE)


@pytest.fixture(params=[False, True], ids=["at-start", "at-end"])
def guarded(request: pytest.FixtureRequest) -> Iterator[Guarded]:
    pages = Guarded(request.param)
    yield pages
    pages.release()


def plain_matvec(m: Matrix, x: Rows, out: Rows, n_rows: int, block: int) -> None:
    """Do it one tile and row at a time with what the operations mean in Python."""
    for t in range(-(-m.n_out // 8)):
        for row in range(n_rows):
            tile, at = m.first + t * m.k_tiles * m.tile_size, x.first + row * x.stride
            totals = np.zeros((1, 1, 8), np.float32)
            for _ in range(m.k_tiles):
                totals = add_tiles(totals, m.w, tile, 0, 1, x.values, at, 0, 1, 0, 0, 0, True)
                tile, at = tile + m.tile_size, at + block
            to = out.first + row * out.stride + 8 * t
            add_totals(out.values, to, out.stride, 8, totals, m.n_out - 8 * t, 1)


@pytest.mark.parametrize("n_rows", [1, 3, 8, 13])
@pytest.mark.parametrize(("n_out", "n_k"), [(8, 32), (41, 32), (109, 32), (70, 70), (9, 1900)])
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("fmt", list(WeightFormat))
def test_matvec(
    fmt: WeightFormat, int8: bool, n_out: int, n_k: int, n_rows: int, guarded: Guarded
) -> None:
    if int8 and fmt in (WeightFormat.F32, WeightFormat.F16):
        pytest.skip("these formats have no 8-bit activations")
    rng = np.random.default_rng(n_rows)
    k_tiles = -(-n_k // 32)
    x = np.zeros((n_rows, 32 * k_tiles), np.float32)
    x[:, :n_k] = rng.standard_normal((n_rows, n_k))
    block = 32
    if int8:
        block = BLOCK_FLOATS
        blocks = np.zeros((n_rows, k_tiles * block), np.float32)
        for row in range(n_rows):
            for b in range(k_tiles):
                store_block(x[row], 32 * b, blocks[row], block * b)
        x = blocks
    blob = pack_matrix(rng.standard_normal((n_out, n_k)).astype(np.float32), fmt)
    w = guarded(blob.view(weight_dtype(fmt, int8)), read_only=True)
    matrix = Matrix(w, 0, TILE_BYTES[fmt] // w.itemsize, k_tiles, n_out, -1, 0)
    rows = Rows(guarded(x), 0, x.shape[1])
    out, expected = guarded(np.ones((n_rows, n_out), np.float32)), np.ones((n_rows, n_out))
    expected = expected.astype(np.float32).reshape(-1)
    kept = Span(guarded(np.zeros(kept_floats(n_rows), np.float32)), 0)
    # In two parts, as two threads would: the second one begins within the matrix.
    run, n_tiles = callable_from_python(matvec), -(-n_out // 8)
    for first, stop in ((0, n_tiles // 3), (n_tiles // 3, n_tiles)):
        run(matrix, first, stop, rows, Rows(out, 0, n_out), n_rows, kept)
    plain_matvec(matrix, rows, Rows(expected, 0, n_out), n_rows, block)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("n_atoms", [1, 2])
@pytest.mark.parametrize("hidden", SIZES)
@pytest.mark.parametrize("fmt", FORMATS)
def test_column_pair(fmt: WeightFormat, hidden: int, n_atoms: int, guarded: Guarded) -> None:
    case = TwoAtoms(fmt, hidden)
    q, sums = guarded(np.zeros(n_atoms * BLOCK_FLOATS, np.float32)), guarded(case.sums)
    scratch, h = Span(guarded(np.zeros(PAIR_FLOATS, np.float32)), 0), Span(guarded(case.h), 0)
    pair = case.pair(guarded(case.w, read_only=True), n_atoms)
    run_pair(pair, h, Span(q, 0), Span(sums, 0), hidden, Onward(-1, 0), scratch)
    expected_q, expected_sums = case.one_by_one(n_atoms, hidden)
    np.testing.assert_array_equal(q.view(np.uint32), expected_q.view(np.uint32))
    np.testing.assert_array_equal(sums, expected_sums)


@pytest.mark.parametrize("n_blocks", [1, 5])
def test_quantise(n_blocks: int, guarded: Guarded) -> None:
    x = np.random.default_rng(1).standard_normal(32 * n_blocks).astype(np.float32)
    x[:32] *= 1e-20
    q = guarded(np.zeros(BLOCK_FLOATS * n_blocks, np.float32))
    callable_from_python(quantise)(Span(guarded(x), 0), n_blocks, Span(q, 0))
    expected = np.zeros_like(q)
    for b in range(n_blocks):
        store_block(x, 32 * b, expected, BLOCK_FLOATS * b)
    np.testing.assert_array_equal(q.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("d", [10, 64, 80])
def test_rows_of_floats(d: int, guarded: Guarded) -> None:
    x, gain = np.random.default_rng(d).standard_normal((2, d)).astype(np.float32)
    y = guarded(np.zeros(d, np.float32))
    callable_from_python(rms_norm)(Span(guarded(x), 0), Span(guarded(gain), 0), d, 1e-5, Span(y, 0))
    exact = x / np.sqrt(np.mean(x.astype(np.float64) ** 2) + 1e-5) * gain
    np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-6)
    turned, turn = guarded(x), guarded(np.ones(d, np.float32))
    callable_from_python(rotate)(Span(turned, 0), d, Span(turn, 0))
    half = d // 2
    exact = np.concatenate([x[:half] - x[half:], x[half:] + x[:half]])
    np.testing.assert_allclose(turned, exact, rtol=1e-6, atol=1e-6)
    act = guarded(np.zeros(8, np.float32))
    callable_from_python(swiglu8)(Span(guarded(np.ones(16, np.float32)), 0), Span(act, 0))
    np.testing.assert_allclose(act, 1 / (1 + np.exp(-1.0)), rtol=1e-6)


@pytest.mark.parametrize("n", [1, 33, PAGE_TOKENS + 9])
@pytest.mark.parametrize("d", [10, 48, 64])
@pytest.mark.parametrize("n_heads", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", list(PAGE_DTYPES.values()))
def test_attention(dtype: type, n_heads: int, d: int, n: int, guarded: Guarded) -> None:
    rng = np.random.default_rng(n)
    k, v = rng.standard_normal((2, n, d)).astype(np.float16).astype(np.float32)
    if dtype is np.int8:  # whole numbers whose largest is 127 are kept as they are
        k, v = np.clip(np.rint(40 * np.stack([k, v])), -126, 126).astype(np.float32)
        k[:, 0], v[:, 0] = 127, -127
        k, v = k / 64, v / 32
    q = rng.standard_normal((n_heads, d)).astype(np.float32)
    n_pages = -(-n // PAGE_TOKENS)
    size = page_elements(d, dtype)
    pages = guarded(np.zeros(n_pages * size, dtype))
    table = np.arange(n_pages, dtype=np.int32)[::-1].copy().reshape(1, 1, -1)
    kv = KvPages(pages, pages.view(np.float32), size, table)
    append = callable_from_python(append_kv)
    for p in range(n):
        key, value = Span(guarded(k[p]), 0), Span(guarded(v[p]), 0)
        append(kv, int(table[0, 0, p // PAGE_TOKENS]), p % PAGE_TOKENS, d, key, value)
    stride = -(-n // 32) * 32 + 1
    scores, out = (guarded(np.zeros((n_heads, width), np.float32)) for width in (stride, d))
    run = callable_from_python(attend)
    queries = Rows(guarded(q), 0, d)
    run(kv, Context(0, 0, n), d, queries, n_heads, Rows(scores, 0, stride), Rows(out, 0, d))
    logits = (q.astype(np.float64) @ k.T) / np.sqrt(d)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    exact = weights / weights.sum(axis=1, keepdims=True) @ v
    np.testing.assert_allclose(out.reshape(n_heads, d), exact, atol=1e-5)
    for head in range(n_heads):  # a head alone gives the same bits
        alone = np.zeros(d, np.float32)
        query = Rows(q[head], 0, d)
        run(kv, Context(0, 0, n), d, query, 1, Rows(scores, 0, stride), Rows(alone, 0, d))
        np.testing.assert_array_equal(alone, out[head * d : (head + 1) * d])
