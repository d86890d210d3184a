import numpy as np
import pytest

from coordinator.sampling import MASS_TOLERANCE
from kernels.mode import JIT_DISABLED
from kernels.vocab import log_sum_exp, penalise, top_candidates


def test_penalise_follows_hugging_face() -> None:
    logits = np.array([2.0, -1.0, 0.0, 4.0, -3.0], np.float32)
    # Two atoms: ids 128 .. 130 and 0 .. 1; 131 and 7 are held elsewhere.
    first, n_rows = np.array([128, 0], np.int64), np.array([3, 2], np.int64)
    ids = np.array([129, 130, 0, 131, 7], np.uint32)
    penalise(logits, first, n_rows, ids, 2.0)
    np.testing.assert_array_equal(logits, np.array([2.0, -2.0, 0.0, 2.0, -3.0], np.float32))


@pytest.mark.parametrize("temperature", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("n", [1, 255, 256, 700, 3000])
def test_log_sum_exp(n: int, temperature: float) -> None:
    logits = (np.random.default_rng(n).standard_normal(n) * 10).astype(np.float32)
    scaled = logits.astype(np.float64) / temperature
    expected = scaled.max() + np.log(np.exp(scaled - scaled.max()).sum())
    assert log_sum_exp(logits, temperature) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("temperature", [0.5, 0.75, 1.0, 3.0])
@pytest.mark.parametrize("n", [300] if JIT_DISABLED else [32_000, 151_936])
def test_log_sum_exp_where_the_same_error_is_made_often(n: int, temperature: float) -> None:
    """Many equal logits that are worth one tenth of the best, as much, or ten times as much."""
    for share in (0.1, 1.0, 10.0):
        for best in np.linspace(0.1, 9.0, 7):
            logits = np.full(n, best - temperature * np.log(n / share), np.float32)
            logits[0] = best
            scaled = logits.astype(np.float64) / temperature
            expected = scaled.max() + np.log(np.exp(scaled - scaled.max()).sum())
            assert abs(log_sum_exp(logits, temperature) - expected) < 0.5 * MASS_TOLERANCE


def test_log_sum_exp_of_nothing_and_of_nan() -> None:
    assert log_sum_exp(np.zeros(0, np.float32), 1.0) == -np.inf
    assert log_sum_exp(np.full(3, -np.inf, np.float32), 1.0) == -np.inf
    assert log_sum_exp(np.full(20, np.nan, np.float32), 1.0) == -np.inf
    for n, bad in ((2, np.nan), (20, np.nan), (20, np.inf)):  # in the last few, and in whole 8
        for at in (0, n - 1):
            logits = np.zeros(n, np.float32)
            logits[at] = bad
            assert np.isnan(log_sum_exp(logits, 1.0))


@pytest.mark.parametrize("n", [1, 5, 16, 17, 500])
def test_top_candidates_sort_by_logit_then_id(n: int) -> None:
    rng = np.random.default_rng(n)
    logits = rng.integers(-20, 20, n).astype(np.float32)  # many ties
    ids = rng.permutation(1000)[:n].astype(np.uint32)
    out_ids, out_logits = np.zeros(16, np.uint32), np.zeros(16, np.float32)
    count = top_candidates(logits, ids, 16, out_ids, out_logits)
    order = np.lexsort((ids, -logits))[:16]
    assert count == min(n, 16)
    np.testing.assert_array_equal(out_ids[:count], ids[order])
    np.testing.assert_array_equal(out_logits[:count], logits[order])


@pytest.mark.parametrize("k", [0, 1, 3])
def test_top_candidates_find_what_lies_among_nan(k: int) -> None:
    for best in range(40):
        logits = np.full(40, np.nan, np.float32)
        logits[[0, 9, 39]] = 1.0, 3.0, 2.0
        logits[best] = 5.0
        out_ids, out_logits = np.zeros(3, np.uint32), np.zeros(3, np.float32)
        count = top_candidates(logits, np.arange(40, dtype=np.uint32), k, out_ids, out_logits)
        kept = np.flatnonzero(~np.isnan(logits))
        order = kept[np.argsort(-logits[kept])][:k]
        assert out_ids[:count].tolist() == order.tolist()


def test_top_candidates_pass_over_nan() -> None:
    logits = np.array([np.nan, 1, np.nan, 3], np.float32)
    out_ids, out_logits = np.zeros(8, np.uint32), np.zeros(8, np.float32)
    count = top_candidates(logits, np.arange(4, dtype=np.uint32), 8, out_ids, out_logits)
    assert out_ids[:count].tolist() == [3, 1]
