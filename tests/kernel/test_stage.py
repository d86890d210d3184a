"""Phases of a stage against the oracle; a row's bits depend on nothing that shares its call."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numba import config

from kernels.errors import InputError
from kernels.jit import JIT_DISABLED
from kernels.layout import Geometry, WeightFormat
from kernels.pool import Pool
from kernels.stage import StageKernels
from kernels.sync_words import FIRST, STOP, THREAD_WORDS, THREADS, WHOLE
from tests import naive
from tests.kernel_models import PackedModel, compiled_slowly, geometry, make_model, make_stage

F32 = npt.NDArray[np.float32]

# Weights, keys and values, int8 activations: each a specialisation that takes seconds to compile.
# Quick are those that agents of other tests need too.
FORMATS: list[Any] = [
    (WeightFormat.F32, np.float32, False),
    compiled_slowly(WeightFormat.F16, np.float32, False),
    compiled_slowly(WeightFormat.Q8, np.float32, False),
    compiled_slowly(WeightFormat.Q4, np.float32, False),
    compiled_slowly(WeightFormat.Q8, np.uint16, True),
    (WeightFormat.Q4, np.uint16, True),
    compiled_slowly(WeightFormat.Q4, np.int8, True),
]

SHAPES = [
    geometry(),
    geometry(hidden_size=64, n_heads=7, n_kv_heads=1, head_dim=8, n_columns=65, vocab_size=9),
    geometry(hidden_size=72, n_heads=3, n_kv_heads=3, head_dim=24, qkv_bias=True),
    geometry(hidden_size=33, n_heads=4, n_kv_heads=1, head_dim=48, qk_norm=True, n_columns=31),
    geometry(hidden_size=96, n_heads=2, n_kv_heads=2, head_dim=80, n_columns=32, vocab_size=257),
    geometry(hidden_size=64, n_heads=1, n_kv_heads=1, head_dim=64, n_layers=1),
    geometry(hidden_size=64, n_heads=2, n_kv_heads=1, head_dim=128, n_layers=1),
    geometry(hidden_size=40, n_heads=2, n_kv_heads=2, head_dim=10, n_layers=1),
]
if config.BOUNDSCHECK:  # test_matvec covers the other formats
    FORMATS = FORMATS[-2:]
if JIT_DISABLED:
    SHAPES = [replace(shape, n_layers=1) for shape in SHAPES[1:5]]

# More positions than one page where that is affordable.
N_TOKENS = 5 if JIT_DISABLED else 70


def rows(n: int, hidden: int, seed: int = 3) -> F32:
    return np.random.default_rng(seed).standard_normal((n, hidden)).astype(np.float32)


def begin(stage: StageKernels, slots: list[int], positions: list[int]) -> None:
    stage.begin(np.array(slots, np.int32), np.array(positions, np.int32))


def run_all(stage: StageKernels, x: F32, vocab_size: int) -> tuple[F32, F32]:
    """Return residual and logits of begun rows."""
    x = x.copy()
    stage.run_layers(x)
    out = np.full((len(x), vocab_size), np.nan, np.float32)
    stage.logits(x, out)
    return x, out


def oracle(model: PackedModel, kv_dtype: type, int8: bool) -> naive.NaiveModel:
    rounding = {np.uint16: np.float16, np.int8: np.int8}.get(kv_dtype, np.float64)
    return replace(model.naive, kv_dtype=rounding, int8=int8)


@pytest.mark.parametrize(("fmt", "kv_dtype", "int8"), FORMATS)
@pytest.mark.parametrize(
    "shape", SHAPES, ids=lambda g: f"d{g.head_dim}-H{g.n_heads}G{g.n_kv_heads}"
)
def test_whole_stage_equals_oracle(
    shape: Geometry, fmt: WeightFormat, kv_dtype: type, int8: bool
) -> None:
    model = make_model(replace(shape, fmt=fmt))
    stage = make_stage(model, kv_dtype=kv_dtype, max_rows=N_TOKENS, int8=int8)
    x = rows(N_TOKENS, shape.hidden_size)
    begin(stage, [0] * N_TOKENS, list(range(N_TOKENS)))
    residual, logits = run_all(stage, x, shape.vocab_size)
    exact, exact_logits = naive.forward(oracle(model, kv_dtype, int8), x.astype(np.float64))
    # Without what the kernels round to 8 bits; keys and values of f16 stay rounded.
    less = replace(model.naive, kv_dtype=np.float16) if int8 else model.naive
    unrounded = iter(naive.forward(less, x.astype(np.float64)))
    for actual, desired in ((residual, exact), (logits, exact_logits)):
        if kv_dtype == np.float32:
            np.testing.assert_allclose(actual, desired, atol=2e-4)
        elif int8:
            # Likewise for activations near the middle of two 8-bit numbers; but what the oracle
            # rounds away is far more than that.
            coarse = np.abs(desired - next(unrounded)).mean()
            assert np.abs(actual - desired).mean() < 0.4 * coarse
            np.testing.assert_allclose(actual, desired, atol=0.5)
        else:
            # A key near the middle of two float16 numbers may round the other way than the
            # oracle's, which moves single rows.
            np.testing.assert_allclose(actual, desired, atol=3e-2)
            assert np.abs(actual - desired).mean() < 5e-4


@pytest.mark.parametrize(("fmt", "kv_dtype", "int8"), FORMATS)
def test_partial_sums_of_any_placement(fmt: WeightFormat, kv_dtype: type, int8: bool) -> None:
    g = geometry(n_heads=6, n_kv_heads=3, fmt=fmt, qkv_bias=True)
    model = make_model(g)
    members = [  # the second holds nothing of layer 0's attention and of layer 1's MLP
        model.atoms([[0, 2], [1]], [[1], [0, 1]], [1]),
        model.atoms([[], [2, 0]], [[0], []], [0]),
        model.atoms([[1], []], [[], []], []),
    ]
    n = 4
    stages = [make_stage(model, atoms, kv_dtype=kv_dtype, int8=int8) for atoms in members]
    whole = make_stage(model, kv_dtype=kv_dtype, int8=int8)
    for stage in (*stages, whole):
        begin(stage, [0] * n, list(range(n)))
    x = rows(n, g.hidden_size)
    for layer in range(g.n_layers):
        for phase in ("attention", "mlp"):
            before = x.copy()
            parts = [np.full_like(x, np.nan) for _ in stages]
            one = np.full_like(x, np.nan)
            for stage, part in zip((*stages, whole), (*parts, one), strict=True):
                getattr(stage, phase)(layer, x, part)
            np.testing.assert_array_equal(x, before)
            np.testing.assert_allclose(sum(parts), one, atol=2e-5)
            x += one
    begin(whole, [0] * n, list(range(n)))
    residual, logits = run_all(whole, rows(n, g.hidden_size), g.vocab_size)
    np.testing.assert_array_equal(residual, x)  # the fused call rounds as the phases do
    for stage, columns in zip(stages[:2], (slice(128, None), slice(0, 128)), strict=True):
        part = np.zeros((n, stage.n_local_rows), np.float32)
        stage.logits(x, part)
        np.testing.assert_array_equal(part, logits[:, columns])
    nothing = np.ones((n, g.hidden_size), np.float32)
    stages[2].mlp(0, x, nothing)
    assert not nothing.any()


@pytest.mark.parametrize(("fmt", "kv_dtype", "int8"), FORMATS)
def test_rows_do_not_depend_on_chunks_or_batches(
    fmt: WeightFormat, kv_dtype: type, int8: bool
) -> None:
    n = N_TOKENS
    model = make_model(geometry(fmt=fmt))
    texts = [rows(n, 40, seed) for seed in range(3)]
    alone = []
    for x in texts:
        stage = make_stage(model, kv_dtype=kv_dtype, max_rows=n, int8=int8)
        begin(stage, [0] * n, list(range(n)))
        alone.append(run_all(stage, x, 131))
    stage = make_stage(model, kv_dtype=kv_dtype, n_slots=3, max_rows=3 * n, int8=int8)
    chunks = [1, 2, 4, 7, 1]
    start = 0
    while start < n:  # all three contexts share calls whose rows are interleaved
        stop = min(n, start + chunks[start % len(chunks)])
        table = [(slot, p) for p in range(start, stop) for slot in (2, 0, 1)]
        begin(stage, [slot for slot, _ in table], [p for _, p in table])
        x = np.stack([texts[slot][p] for slot, p in table])
        residual, logits = run_all(stage, x, 131)
        for i, (slot, p) in enumerate(table):
            np.testing.assert_array_equal(residual[i], alone[slot][0][p])
            np.testing.assert_array_equal(logits[i], alone[slot][1][p])
        start = stop


def test_writing_a_position_again_is_harmless() -> None:
    model = make_model(geometry())
    stage = make_stage(model)
    x = rows(3, 40)
    begin(stage, [0, 0, 0], [0, 1, 2])
    first = run_all(stage, x, 131)
    begin(stage, [0], [2])
    again = run_all(stage, x[2:], 131)
    np.testing.assert_array_equal(again[1][0], first[1][2])


@pytest.mark.parametrize("n_rows", [1, 3])
@pytest.mark.parametrize(("fmt", "kv_dtype", "int8"), [FORMATS[0], FORMATS[-2]])
def test_layers_and_logits_in_one_call_give_the_same_bits(
    fmt: WeightFormat, kv_dtype: type, int8: bool, n_rows: int
) -> None:
    pool = Pool(1 if JIT_DISABLED else 2)
    stage = make_stage(make_model(geometry(fmt=fmt)), None, pool, kv_dtype, int8=int8)
    begin(stage, [0] * n_rows, list(range(n_rows)))
    x, logits = rows(n_rows, 40), np.zeros((n_rows, 131), np.float32)
    apart = run_all(stage, x, 131)
    stage.run_all(x, logits)
    pool.close()
    np.testing.assert_array_equal(x, apart[0])
    np.testing.assert_array_equal(logits, apart[1])


@pytest.mark.skipif(JIT_DISABLED, reason="without JIT there is one thread")
@pytest.mark.parametrize("n_threads", [2, 3, 5])
@pytest.mark.parametrize(("fmt", "kv_dtype", "int8"), FORMATS)
def test_thread_count_changes_no_bit(
    n_threads: int, fmt: WeightFormat, kv_dtype: type, int8: bool
) -> None:
    # Heads of a group attend together, three as four or as a pair and one, as threads have work.
    g = geometry(n_heads={2: 9, 3: 6, 5: 12}[n_threads], n_kv_heads=3, fmt=fmt)
    model = make_model(g)
    x = rows(9, 40)
    results = []
    pool, uneven = Pool(n_threads), Pool(n_threads)
    ends = [0, *(WHOLE * (9 + tid / n_threads) / 10 for tid in range(1, n_threads)), WHOLE]
    for tid in range(n_threads):  # the first one gets nine tenths of everything
        words = uneven.sync[THREADS + THREAD_WORDS * tid :]
        words[FIRST], words[STOP] = ends[tid : tid + 2]
    for threads in (Pool(1), pool, uneven):
        stage = make_stage(model, None, threads, kv_dtype, int8=int8)
        begin(stage, [0] * 9, list(range(9)))
        results.append(run_all(stage, x, 131))
        part = np.zeros_like(x)
        stage.attention(1, x, part)
        results[-1] += (part,)
    pool.close()
    uneven.close()
    for one, many in [*zip(*results[:2], strict=True), *zip(*results[::2], strict=True)]:
        np.testing.assert_array_equal(one, many)


@pytest.mark.skipif(JIT_DISABLED, reason="without JIT there is one thread")
@pytest.mark.parametrize("n_rows", [1, 4])
def test_a_thread_without_a_share_adds_nothing(n_rows: int) -> None:
    """Its share begins behind the last element where the hidden size is no multiple of 8."""
    model = make_model(geometry(hidden_size=33, n_columns=32 * 20))
    x = rows(n_rows, 33)
    results = []
    for n_threads in (1, 3):
        pool = Pool(n_threads)
        for tid in range(1, n_threads):
            words = pool.sync[THREADS + THREAD_WORDS * tid :]
            words[FIRST], words[STOP] = WHOLE, WHOLE
        pool.sync[THREADS + STOP] = WHOLE
        stage = make_stage(model, None, pool)
        begin(stage, [0] * n_rows, list(range(n_rows)))
        results.append(run_all(stage, x, 131))
        pool.close()
    for one, many in zip(*results, strict=True):
        np.testing.assert_array_equal(one, many)


def test_store_may_be_a_mapped_file(tmp_path: object) -> None:
    model = make_model(geometry())
    path = f"{tmp_path}/weights.bin"
    model.store.tofile(path)
    mapped = replace(model, store=np.memmap(path, np.uint8, "r"))
    results = []
    for one in (model, mapped):
        stage = make_stage(one)
        begin(stage, [0], [0])
        results.append(run_all(stage, rows(1, 40), 131))
    for from_memory, from_file in zip(*results, strict=True):
        np.testing.assert_array_equal(from_memory, from_file)
    assert np.isfinite(results[0][0]).all()


def test_begin_refuses_bad_rows() -> None:
    stage = make_stage(make_model(geometry()), n_slots=2, max_rows=4, context_tokens=96)
    with pytest.raises(InputError, match=r"row 1: slot 2 is not in 0 .. 1"):
        begin(stage, [0, 2], [0, 0])
    with pytest.raises(InputError, match="position 96 is outside the context of 96 tokens"):
        begin(stage, [0], [96])
    with pytest.raises(InputError, match="position -1"):
        begin(stage, [0], [-1])
    with pytest.raises(InputError, match="1 to 4 rows"):
        begin(stage, [0] * 5, [0] * 5)
    with pytest.raises(InputError, match="1 to 4 rows"):
        begin(stage, [], [])
    with pytest.raises(InputError, match="1 slots and 2 positions"):
        begin(stage, [0], [0, 1])
    x = np.zeros((1, 40), np.float32)
    with pytest.raises(InputError, match="call begin"):
        stage.attention(0, x, x.copy())


def test_begin_refuses_missing_pages() -> None:
    model = make_model(geometry())
    stage = make_stage(model, context_tokens=130)
    table = stage._arrays[3]
    begin(stage, [0], [129])
    for bad in (-1, 10_000):
        table[0, 1, 2] = bad
        begin(stage, [0], [127])
        with pytest.raises(InputError, match="slot 0 has no page"):
            begin(stage, [0, 0], [127, 128])


def test_phases_refuse_wrong_arrays() -> None:
    model = make_model(geometry())
    stage = make_stage(model)
    begin(stage, [0, 0], [0, 1])
    x = np.zeros((2, 40), np.float32)
    out = np.zeros_like(x)
    with pytest.raises(InputError, match=r"layer index 2 is not in 0 .. 1"):
        stage.mlp(2, x, out)
    with pytest.raises(InputError, match=r"x must be .* shape \(2, 40\), got float32 of shape"):
        stage.attention(0, x[:1], out)
    with pytest.raises(InputError, match="got float64"):
        stage.attention(0, x, out.astype(np.float64))
    with pytest.raises(InputError, match="C-contiguous"):
        stage.attention(0, x, np.zeros((2, 80), np.float32)[:, ::2])
    unaligned = np.zeros(81 * 4, np.uint8)[1:321].view(np.float32).reshape(2, 40)
    with pytest.raises(InputError, match="aligned"):
        stage.attention(0, unaligned, out)
    with pytest.raises(InputError, match=r"out must be .* shape \(2, 131\)"):
        stage.logits(x, out)
    with pytest.raises(InputError, match=r"out must be .* shape \(2, 131\)"):
        stage.run_all(x, out)
    with pytest.raises(InputError, match="x must be"):
        stage.run_layers(x[:1])
    with pytest.raises(InputError, match="x must be"):
        stage.run_all(x[:1], np.zeros((2, 131), np.float32))


def test_members_without_vocab_or_whole_layers_say_so() -> None:
    model = make_model(geometry())
    stage = make_stage(model, model.atoms([[0], [0, 1]], vocab=[]))
    begin(stage, [0], [0])
    x = np.zeros((1, 40), np.float32)
    with pytest.raises(InputError, match="no vocabulary"):
        stage.logits(x, x)
    with pytest.raises(InputError, match="every atom"):
        stage.run_layers(x)
    with pytest.raises(InputError, match="every atom"):
        stage.run_all(x, np.zeros((1, 131), np.float32))
    stage = make_stage(model, model.atoms(vocab=[]))
    begin(stage, [0], [0])
    with pytest.raises(InputError, match="no vocabulary"):
        stage.run_all(x, np.zeros((1, 131), np.float32))
