import numpy as np
import pytest
from numba import config

from kernels.attention import heads_together
from kernels.elementary import exp_f32
from kernels.emit import ZMM
from kernels.formats import kept_floats, weight_dtype
from kernels.jit import JIT_DISABLED
from kernels.layout import TILE_BYTES, WeightFormat
from kernels.matvec import BLOCK_BYTES, Matrix, matvec
from kernels.mlp import swiglu8
from kernels.norm import rms_norm
from kernels.rope import rotate, rotation_row
from kernels.simd_tile import n_tiles_for
from kernels.spans import Rows, Span, share
from kernels.tiles import pack_matrix, unpack_matrix
from tests import naive
from tests.kernel_models import callable_from_python, compiled_slowly

FORMATS = [
    WeightFormat.F32,
    compiled_slowly(WeightFormat.F16),
    compiled_slowly(WeightFormat.Q8),
    WeightFormat.Q4,
]


def test_exp_f32_is_within_two_ulp() -> None:
    exp = callable_from_python(exp_f32)
    for x in np.linspace(-87, 88, 701).astype(np.float32):
        exact = np.exp(np.float64(x))
        assert abs(float(exp(x)) - exact) <= 3e-7 * exact
    assert exp(np.float32(-100)) == 0
    assert np.isfinite(exp(np.float32(1e30)))
    assert exp(np.float32(-np.inf)) == 0
    assert np.isnan(exp(np.float32(np.nan)))


@pytest.mark.parametrize(
    ("n_heads", "n_groups", "n_threads", "fours"),
    [(8, 4, 1, True), (8, 4, 3, True), (4, 8, 3, True), (7, 2, 3, False), (2, 8, 1, False),
     (1, 6, 2, False), (4, 1, 2, False), (3, 5, 5, True)],
)  # fmt: skip
def test_heads_read_keys_together_unless_a_thread_gets_more_of_them(
    n_heads: int, n_groups: int, n_threads: int, fours: bool
) -> None:
    found = callable_from_python(heads_together)(n_heads, n_groups, n_threads)
    assert found == (4 if fours and ZMM else 2)


def test_swiglu() -> None:
    run = callable_from_python(swiglu8)
    for x in np.linspace(-100, 100, 208).astype(np.float32).reshape(-1, 8):
        gate_up, act = np.concatenate([[0], x, np.arange(8) - 3]).astype(np.float32), np.zeros(10)
        act = act.astype(np.float32)
        run(Span(gate_up, 1), Span(act, 2))
        expected = naive.silu(x.astype(np.float64)) * (np.arange(8) - 3)
        np.testing.assert_allclose(act[2:], expected, rtol=1e-6, atol=1e-30)
        assert not act[:2].any()


@pytest.mark.parametrize("n", [1, 7, 8, 40, 67])
def test_rms_norm(n: int) -> None:
    rng = np.random.default_rng(n)
    x, gain = rng.standard_normal((2, n + 3)).astype(np.float32)
    y = np.zeros(n + 3, np.float32)
    callable_from_python(rms_norm)(Span(x, 2), Span(gain, 1), n, 1e-5, Span(y, 3))
    expected = naive.rms_norm(x[2 : n + 2].astype(float), gain[1 : n + 1].astype(float), 1e-5)
    np.testing.assert_allclose(y[3:], expected, rtol=2e-6, atol=1e-6)
    assert not y[:3].any()


@pytest.mark.parametrize("d", [2, 8, 24, 80])
def test_rope(d: int) -> None:
    rng = np.random.default_rng(d)
    inv_freq = 10000.0 ** -(np.arange(0, d, 2) / d)
    x = rng.standard_normal(d).astype(np.float32)
    expected = naive.rope(x.astype(float)[None, None], np.array([1000.0]), inv_freq, 0.75)[0, 0]
    turn = np.zeros(d, np.float32)
    callable_from_python(rotation_row)(inv_freq, 1000, 0.75, Span(turn, 0))
    callable_from_python(rotate)(Span(x, 0), d, Span(turn, 0))
    np.testing.assert_allclose(x, expected, atol=1e-6)


def test_share_covers_all_units_once() -> None:
    run = callable_from_python(share)
    for n in (0, 1, 5, 64):
        for n_threads in (1, 2, 3, 7):
            parts = [run(n, tid, n_threads) for tid in range(n_threads)]
            assert [i for start, stop in parts for i in range(start, stop)] == list(range(n))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(("n_out", "n_k"), [(8, 32), (13, 40), (3, 70)])
def test_matvec(fmt: WeightFormat, n_out: int, n_k: int) -> None:
    check_matvec(fmt, n_out, n_k, 6)


@pytest.mark.parametrize("fmt", FORMATS)
def test_matvec_in_blocks_of_inputs(fmt: WeightFormat) -> None:
    """Many rows go on to the next block of inputs together; here two blocks and a part."""
    n_tiles = n_tiles_for(np.zeros(1, weight_dtype(fmt, int8=False)), 8, 0)
    n_k = 32 * 2 * (BLOCK_BYTES // (n_tiles * TILE_BYTES[fmt])) + 70
    check_matvec(fmt, 13, n_k, 9 if JIT_DISABLED else 21)


def check_matvec(fmt: WeightFormat, n_out: int, n_k: int, n_rows: int) -> None:
    rng = np.random.default_rng(n_out)
    k_tiles = -(-n_k // 32)
    blob = pack_matrix(rng.standard_normal((n_out, n_k)).astype(np.float32), fmt)
    dtype = np.dtype(weight_dtype(fmt, int8=False))
    tile_size = TILE_BYTES[fmt] // dtype.itemsize
    w = np.concatenate([np.zeros(64, np.uint8), blob]).view(dtype)
    w.flags.writeable = False
    x = np.zeros((n_rows, 32 * k_tiles), np.float32)
    x[:, :n_k] = rng.standard_normal((n_rows, n_k))
    out = np.ones((n_rows, n_out + 5), np.float32)
    run = callable_from_python(matvec)
    matrix = Matrix(w, 64 // w.itemsize, tile_size, k_tiles, n_out, -1, 0)
    n_tiles = -(-n_out // 8)
    kept = Span(np.full(kept_floats(n_rows), np.nan, np.float32), 0)
    run(matrix, 0, n_tiles, _rows(x), Rows(out.reshape(-1), 5, n_out + 5), n_rows, kept)
    exact = unpack_matrix(blob, n_out, n_k, fmt).astype(np.float64)
    np.testing.assert_allclose(
        out[:, 5:], 1 + x[:, :n_k] @ exact.T, rtol=1e-5, atol=1e-5 * max(1, n_k / 256)
    )
    assert (out[:, :5] == 1).all()
    for row in range(n_rows):  # a row alone gives the same bits
        one = np.ones((1, n_out), np.float32)
        run(matrix, 0, n_tiles, _rows(x[row : row + 1]), _rows(one), 1, kept)
        np.testing.assert_array_equal(one[0], out[row, 5:])


def _rows(x: np.ndarray) -> Rows:
    return Rows(x.reshape(-1), 0, x.shape[1])


@pytest.mark.skipif(not (JIT_DISABLED or config.BOUNDSCHECK), reason="checks cost speed")
def test_lanes_outside_an_array_are_caught() -> None:
    x = np.ones(16, np.float32)
    norm = callable_from_python(rms_norm)
    norm(Span(x, 8), Span(x, 8), 8, 1e-5, Span(x, 8))
    with pytest.raises(IndexError):
        norm(Span(x, 9), Span(x, 8), 8, 1e-5, Span(x, 8))
    with pytest.raises(IndexError):
        norm(Span(x, 8), Span(x, 8), 8, 1e-5, Span(x, 9))
