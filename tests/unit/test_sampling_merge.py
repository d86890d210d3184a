"""The token from the holders' best candidates is the one from all logits, or none at all."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.vocab_payload import TOP_CANDIDATES, TopRow
from coordinator.sampling import (
    NEED_FULL_LOGITS,
    SamplingOptions,
    best_of,
    choose,
    choose_from_logits,
    merge,
)
from kernels.errors import RemoteError


def holders(
    logits: np.ndarray, owners: np.ndarray, temperature: float, jitter: float = 0.0
) -> list[TopRow]:
    """What the vocab holders answer; `jitter` shifts their sums as other orders of adding do."""
    rows = []
    for owner in np.unique(owners):
        ids = np.flatnonzero(owners == owner)
        own = logits[ids].astype(np.float64) / (float(np.float32(temperature)) or 1.0)
        total = own.max() + np.log(np.exp(own - own.max()).sum()) + jitter
        best = np.lexsort((ids, -logits[ids]))[:TOP_CANDIDATES]
        rows.append(TopRow(float(total), ids[best].astype(np.uint32), logits[ids][best]))
    return rows


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_never_another_token_than_from_all_logits(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    n_vocab = data.draw(st.sampled_from([3, 200, 700, 3000]))
    spread = data.draw(st.sampled_from([0.1, 1.0, 3.0, 10.0]))
    logits = (spread * rng.standard_normal(n_vocab)).astype(np.float32)
    if data.draw(st.booleans()):
        logits = np.round(logits)  # many ties
    owners = rng.integers(0, data.draw(st.integers(1, 9)), n_vocab)
    options = SamplingOptions(
        temperature=data.draw(st.sampled_from([0.0, 0.3, 0.8, 1.0, 1.7])),
        top_k=data.draw(st.sampled_from([0, 0, 1, 40, 256, 300, 600, 5000])),
        top_p=data.draw(st.sampled_from([1.0, 1.0, 0.999, 0.95, 0.5, 0.01])),
        min_p=data.draw(st.sampled_from([0.0, 0.0, 0.01, 0.2, 1.0])),
    )
    u = data.draw(st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 1 - 2**-53])))
    jitter = data.draw(st.sampled_from([0.0, 1e-12, -1e-12, 3e-8, -3e-8]))
    found = choose(merge(holders(logits, owners, options.temperature, jitter)), options, u)
    assert found in (NEED_FULL_LOGITS, choose_from_logits(logits, options, u))


@pytest.mark.parametrize(
    ("options", "most_undecided"),
    [
        (SamplingOptions(), 0),
        (SamplingOptions(temperature=0.8, top_k=40), 0),
        (SamplingOptions(temperature=0.8, min_p=0.05), 0),
        (SamplingOptions(temperature=0.8, top_p=0.9), 0),
        (SamplingOptions(temperature=0.8, top_k=40, top_p=0.9, min_p=0.05), 0),
        # 256 candidates of each of 3 holders carry nearly all of this mass.
        (SamplingOptions(temperature=0.8), 0.05),
    ],
)
def test_usual_options_are_decided_by_the_candidates(
    options: SamplingOptions, most_undecided: float
) -> None:
    rng = np.random.default_rng(1)
    logits = (4 * rng.standard_normal(32000)).astype(np.float32)
    merged = merge(holders(logits, np.arange(32000) // 11000, options.temperature))
    found = [choose(merged, options, i / 200) for i in range(200)]
    assert found.count(NEED_FULL_LOGITS) <= most_undecided * 200


def test_flat_logits_need_all_of_them() -> None:
    logits = np.zeros(5000, np.float32)
    merged = merge(holders(logits, np.zeros(5000), 1.0))
    plain = SamplingOptions(temperature=1.0)
    assert choose(merged, plain, 0.5) == NEED_FULL_LOGITS
    assert choose(merged, plain, 0.0101) == 50
    # A mass that cannot be known: top-k beyond the candidates.
    assert choose(merged, SamplingOptions(temperature=1.0, top_k=1000), 0.2) == NEED_FULL_LOGITS
    assert choose(merged, SamplingOptions(temperature=1.0, top_k=100), 0.5) == 50


def test_a_cut_list_limits_what_is_certain() -> None:
    # The first holder keeps back rows better than all of the second one's.
    logits = np.concatenate([np.linspace(20, 10, 1000), np.linspace(5, 0, 100)])
    merged = merge(holders(logits.astype(np.float32), np.arange(1100) >= 1000, 1.0))
    assert merged.n_certain == TOP_CANDIDATES
    assert not merged.complete
    assert len(merged.ids) == TOP_CANDIDATES + 100


def test_merge_sorts_across_holders() -> None:
    logits = np.array([1, 5, -2, 5, 0.5, -7, 5], np.float32)
    for owners in ([0] * 7, [0, 1, 2, 3, 4, 5, 6], [1, 0, 1, 0, 1, 0, 1]):
        merged = merge(holders(logits, np.array(owners), 1.0))
        assert merged.ids.tolist() == [1, 3, 6, 0, 4, 2, 5]
        np.testing.assert_array_equal(merged.logits, logits[merged.ids])
        assert merged.complete
        assert merged.n_certain == 7
        assert merged.log_sum_exp == pytest.approx(np.log(np.exp(logits).sum()))


def test_merge_takes_read_only_views() -> None:
    ids = np.frombuffer(np.arange(3, dtype=np.uint32).tobytes(), np.uint32)
    logits = np.frombuffer(np.array([3, 2, 1], np.float32).tobytes(), np.float32)
    assert merge([TopRow(3.4, ids, logits)]).ids.tolist() == [0, 1, 2]


def test_same_seed_same_tokens_however_the_vocabulary_is_held() -> None:
    rng = np.random.default_rng(7)
    options = SamplingOptions(temperature=0.9, top_p=0.9)
    for _ in range(50):
        logits = (5 * rng.standard_normal(2000)).astype(np.float32)
        u = rng.random()
        found = {
            choose(merge(holders(logits, rng.integers(0, n, 2000), 0.9)), options, u)
            for n in (1, 3, 5, 12)
        } - {NEED_FULL_LOGITS}
        assert found <= {choose_from_logits(logits, options, u)}


@pytest.mark.parametrize("total", [float("nan"), float("inf"), -float("inf")])
def test_sums_that_are_not_finite_are_refused(total: float) -> None:
    row = TopRow(total, np.array([1], np.uint32), np.array([1.0], np.float32))
    fine = TopRow(1.0, np.array([0], np.uint32), np.array([1.0], np.float32))
    if total == -float("inf"):
        assert merge([fine, row]).log_sum_exp == 1.0
        return
    with pytest.raises(RemoteError, match="log-sum-exp nan"):
        merge([fine, row])


def test_answers_without_candidates_are_refused() -> None:
    empty = TopRow(0.0, np.empty(0, np.uint32), np.empty(0, np.float32))
    with pytest.raises(RemoteError, match="answered with \\[0\\] candidates"):
        merge([empty])
    with pytest.raises(RemoteError, match="answered with \\[\\] candidates"):
        merge([])


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_the_best_of_all_holders_is_what_merging_finds(seed: int, n_holders: int) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.permutation(40 * n_holders).astype(np.uint32)
    # Few different values, so that ties between holders are common.
    logits = rng.integers(-3, 4, len(ids)).astype(np.float32)
    rows = []
    for part in np.array_split(np.arange(len(ids)), n_holders):
        order = part[np.lexsort((ids[part], -logits[part]))]
        rows.append(TopRow(0.0, ids[order], logits[order]))
    best = [TopRow(row.log_sum_exp, row.ids[:1], row.logits[:1]) for row in rows]
    assert best_of(best) == best_of(rows) == choose(merge(rows), SamplingOptions(), 0.5)
