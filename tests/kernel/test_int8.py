"""Quantised rows and integer products against NumPy, on this CPU and on one without features."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from numba import config

from kernels.formats import BLOCK_FLOATS, kept_floats, weight_dtype
from kernels.jit import JIT_DISABLED
from kernels.layout import TILE_BYTES, WeightFormat
from kernels.matvec import matvec
from kernels.quantise import quantise
from kernels.spans import Matrix, Rows, Span
from kernels.target import PLAIN_VARIABLE
from kernels.tiles import pack_matrix, unpack_matrix
from tests.kernel_models import callable_from_python, compiled_slowly

ROOT = Path(__file__).parents[2]
F32 = npt.NDArray[np.float32]


def quantised(x: F32) -> F32:
    """Return the blocks of rows x (n, 32 b), (n, BLOCK_FLOATS b)."""
    n, n_blocks = len(x), x.shape[1] // 32
    q = np.full((n, BLOCK_FLOATS * n_blocks), np.nan, np.float32)
    run = callable_from_python(quantise)
    for row in range(n):
        run(Span(x[row], 0), n_blocks, Span(q[row], 0))
    return q


def parts(q: F32) -> tuple[npt.NDArray[np.int8], F32, npt.NDArray[np.int32]]:
    """Return bytes (n, b, 32), scales (n, b) and origins (n, b, 2) of quantised rows."""
    blocks = q.reshape(len(q), -1, BLOCK_FLOATS)
    numbers = np.ascontiguousarray(blocks[:, :, :8]).view(np.int8)
    return numbers, blocks[:, :, 8], np.ascontiguousarray(blocks[:, :, 9:]).view(np.int32)


def test_blocks_follow_their_equation() -> None:
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((3, 128)) * 10.0 ** rng.integers(-20, 20, (3, 128))).astype(np.float32)
    x[1, 32:64] = 0
    numbers, scales, origins = parts(quantised(x))
    blocks = x.reshape(3, 4, 32).astype(np.float64)
    largest = np.abs(blocks).max(axis=2)
    np.testing.assert_allclose(scales, largest / 127, rtol=1e-6)
    assert (np.abs(numbers.astype(int)).max(axis=2) == 127)[largest > 0].all()
    error = np.abs(numbers * scales[..., None].astype(np.float64) - blocks)
    assert (error <= 0.501 * scales[..., None]).all()
    sums = numbers.sum(axis=2, dtype=np.int32)
    np.testing.assert_array_equal(origins, np.stack([-128 * sums, -8 * sums], axis=2))


def test_blocks_too_small_to_scale_count_as_zeros() -> None:
    x = np.zeros((1, 64), np.float32)
    x[0, 3], x[0, 40] = 1e-40, -1e-37
    numbers, scales, origins = parts(quantised(x))
    assert not numbers.any()
    assert not origins.any()
    assert (scales < 1e-30).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    x = np.ones((1, 96), np.float32)
    x[0, 40] = bad
    with np.errstate(invalid="ignore"):
        _, scales, _ = parts(quantised(x))
    np.testing.assert_array_equal(np.isnan(scales), [[False, True, False]])


@pytest.mark.parametrize("fmt", [compiled_slowly(WeightFormat.Q8), WeightFormat.Q4])
@pytest.mark.parametrize(("n_out", "n_k"), [(8, 32), (13, 40), (3, 70)])
def test_products_are_exact_up_to_the_last_sums(fmt: WeightFormat, n_out: int, n_k: int) -> None:
    rng = np.random.default_rng(n_out)
    n_rows, k_tiles = 6, -(-n_k // 32)
    blob = pack_matrix(rng.standard_normal((n_out, n_k)).astype(np.float32), fmt)
    dtype = np.dtype(weight_dtype(fmt, int8=True))
    w = np.concatenate([np.zeros(64, np.uint8), blob, np.zeros(-blob.size % 8, np.uint8)])
    matrix = Matrix(w.view(dtype), 8, TILE_BYTES[fmt] // 8, k_tiles, n_out, -1, 0)
    x = np.zeros((n_rows, 32 * k_tiles), np.float32)
    x[:, :n_k] = rng.standard_normal((n_rows, n_k))
    q = quantised(x)
    out = np.ones((n_rows, n_out + 5), np.float32)
    run = callable_from_python(matvec)
    n_tiles = -(-n_out // 8)
    rows = Rows(q.reshape(-1), 0, q.shape[1])
    kept = Span(np.zeros(kept_floats(n_rows), np.float32), 0)
    run(matrix, 0, n_tiles, rows, Rows(out.reshape(-1), 5, n_out + 5), n_rows, kept)
    numbers, scales, _ = parts(q)
    read = (numbers * scales[..., None].astype(np.float64)).reshape(n_rows, -1)[:, :n_k]
    exact = read @ unpack_matrix(blob, n_out, n_k, fmt).T.astype(np.float64)
    np.testing.assert_allclose(out[:, 5:], 1 + exact, rtol=1e-5, atol=1e-6)
    assert (out[:, :5] == 1).all()
    for row in range(n_rows):  # a row alone gives the same bits
        one = np.ones((1, n_out), np.float32)
        alone = Rows(q[row], 0, q.shape[1])
        run(matrix, 0, n_tiles, alone, Rows(one.reshape(-1), 0, n_out), 1, kept)
        np.testing.assert_array_equal(one[0], out[row, 5:])


@pytest.mark.parametrize("fmt", [WeightFormat.Q8, WeightFormat.Q4])
def test_extreme_numbers_do_not_overflow(fmt: WeightFormat) -> None:
    """Every product at its largest, all of one sign, in both signs of both factors."""
    n_k = 4096
    for sign_w in (1, -1):
        for sign_x in (1, -1):
            w = np.full((8, n_k), sign_w, np.float32)
            x = np.full((1, n_k), sign_x, np.float32)
            blob = pack_matrix(w, fmt)
            weights = blob.view(weight_dtype(fmt, int8=True))
            matrix = Matrix(weights, 0, TILE_BYTES[fmt] // 8, n_k // 32, 8, -1, 0)
            out, q = np.zeros(8, np.float32), quantised(x)
            run = callable_from_python(matvec)
            kept = Span(np.zeros(0, np.float32), 0)  # of a single row nothing is kept
            run(matrix, 0, 1, Rows(q.reshape(-1), 0, q.shape[1]), Rows(out, 0, 8), 1, kept)
            exact = unpack_matrix(blob, 8, n_k, fmt).sum(axis=1) * sign_x
            np.testing.assert_allclose(out, exact, rtol=1e-5)


STEP = """
import numpy as np
from kernels.layout import WeightFormat
from tests.kernel_models import geometry, step_bits
for fmt, kv_dtype in ((WeightFormat.Q8, np.uint16), (WeightFormat.Q4, np.int8)):
    print(step_bits(geometry(fmt=fmt, n_columns=150), kv_dtype, int8=True))
"""


def printed_bits(**environment: str) -> str:
    env = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run(
        [sys.executable, "-c", STEP], env=env, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# Slow: each target compiles everything anew.
@pytest.mark.slow
@pytest.mark.skipif(JIT_DISABLED or bool(config.BOUNDSCHECK), reason="starts other modes")
@pytest.mark.parametrize(
    "environment",
    [
        {PLAIN_VARIABLE: "plain"},
        {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
        {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+f16c,+sse4.2"},
    ],
)
def test_every_target_gives_the_same_bits(environment: dict[str, str], tmp_path: Path) -> None:
    other = printed_bits(NUMBA_CACHE_DIR=str(tmp_path), **environment)
    assert other == printed_bits()
