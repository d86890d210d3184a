"""The MLP phase of one row: neither threads nor where atoms lie change a bit of it."""

from dataclasses import replace

import numpy as np
import pytest

from kernels.aligned import aligned_zeros
from kernels.jit import JIT_DISABLED
from kernels.layout import WeightFormat
from kernels.pool import Pool
from kernels.sync_words import FIRST, STOP, THREAD_WORDS, THREADS, WHOLE
from tests.kernel_models import PackedModel, compiled_slowly, geometry, make_model, make_stage

# Parts of 1, 2, 3, 4 and 5 atoms: pairs of atoms end at their bounds, or lie across some or all.
N_ATOMS = [5] if JIT_DISABLED else [1, 7, 16, 35, 50, 70, 85]
GAP_BYTES = 256


def scattered(model: PackedModel) -> PackedModel:
    """Return the model with its column atoms behind all else, in any order and with gaps.

    Gaps are bytes of 255: numbers nan or large, which nobody should multiply with.
    """
    n_bytes, rng = model.geometry.column_bytes, np.random.default_rng(1)
    n_layers, n_atoms = len(model.columns), len(model.columns[0])
    end, size = -(-model.store.size // GAP_BYTES) * GAP_BYTES, n_bytes + GAP_BYTES
    store = aligned_zeros(end + size * n_layers * n_atoms, np.uint8)
    store[:] = 255
    store[: model.store.size] = model.store
    places = end + size * rng.permutation(n_layers * n_atoms).reshape(n_layers, n_atoms)
    for old, new in zip(np.ravel(model.columns), places.ravel(), strict=True):
        store[new : new + n_bytes] = model.store[old : old + n_bytes]
        store[old : old + n_bytes] = 255
    return replace(model, store=store, columns=[[int(at) for at in one] for one in places])


@pytest.mark.parametrize("n_atoms", N_ATOMS)
@pytest.mark.parametrize("fmt", [WeightFormat.Q4, compiled_slowly(WeightFormat.Q8)])
def test_atoms_anywhere_and_threads_that_share_parts_change_no_bit(
    fmt: WeightFormat, n_atoms: int
) -> None:
    model = make_model(geometry(n_columns=32 * n_atoms - 5, fmt=fmt))
    x = np.random.default_rng(3).standard_normal((4, 40)).astype(np.float32)
    n_threads = 1 if JIT_DISABLED else 4
    stage = make_stage(model, kv_dtype=np.uint16, int8=True)
    stage.begin(np.zeros(4, np.int32), np.arange(4, dtype=np.int32))
    together = np.zeros_like(x)
    stage.mlp(1, x, together)  # several rows add up in another way
    pool, rng = Pool(n_threads), np.random.default_rng(n_atoms)
    stages = [
        make_stage(one, None, pool, np.uint16, int8=True) for one in (model, scattered(model))
    ]
    for case in range(12 if n_threads > 1 else 1):
        # Ends anywhere, also within parts, with threads that have nothing among them.
        ends = np.sort(rng.integers(0, n_atoms + 1, n_threads - 1))
        if case == 0:
            ends = np.array([0, 0, n_atoms])[: n_threads - 1]
        bounds = [0, *(WHOLE * int(end) // n_atoms for end in ends), WHOLE]
        one = np.zeros_like(x[:1])
        for i in range(4):
            for stage in stages:
                for tid in range(n_threads):  # each job changes them
                    words = pool.sync[THREADS + THREAD_WORDS * tid :]
                    words[FIRST], words[STOP] = bounds[tid : tid + 2]
                stage.begin(np.zeros(1, np.int32), np.full(1, i, np.int32))
                stage.mlp(1, x[i : i + 1], one)
                np.testing.assert_array_equal(one[0], together[i])
    pool.close()
