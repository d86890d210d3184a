"""The estimators of a board's speed and of a link: they converge, and noise does not fool them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.goodput import MIN_BYTES, WINDOW_BYTES, WINDOW_S, Goodput
from agent.read_rate import ASSUMED_CALL_S, MIN_CALLS, ReadRate, read_rate
from agent.samples import Samples
from coordinator.probing import PROBE_BYTES

RATES = st.floats(1e7, 1e11)
CALLS = st.floats(0.0, 1e-3)
# Attention and MLP of a layer differ in size.
SMALL, LARGE = 1_500_000, 9_000_000


def calls(rate: float, call_s: float, n: int = 64, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """Return the samples of a board of a known speed; noise only ever makes a call longer."""
    rng = np.random.default_rng(seed)
    n_bytes = np.where(np.arange(n) % 2, LARGE, SMALL)
    took_s = (call_s + n_bytes / rate) * (1 + noise * rng.exponential(size=n))
    return np.stack([n_bytes, np.maximum(1e9 * took_s, 1)], axis=1).astype(np.int64)


@given(RATES, CALLS)
def test_rate_and_call_are_told_apart_where_calls_differ_in_size(rate: float, call_s: float):
    found = read_rate(calls(rate, call_s))
    assert found is not None
    assert found.bytes_per_s == pytest.approx(rate, rel=0.02)
    assert found.call_s == pytest.approx(call_s, rel=0.02, abs=0.01 * SMALL / rate + 2e-9)


@given(RATES, st.integers(0, 15))
def test_calls_that_were_interrupted_do_not_count(rate: float, n_odd: int):
    samples = calls(rate, 20e-6)
    samples[:n_odd, 1] += 50_000_000
    found = read_rate(samples)
    assert found is not None
    assert found.bytes_per_s == pytest.approx(rate, rel=0.02)


def stopped(samples: np.ndarray, every: int, for_ns: int) -> np.ndarray:
    """Return the calls of a board of which each so many-th one is stopped for a while."""
    found = samples.copy()
    found[every - 1 :: every, 1] += for_ns
    return found


@pytest.mark.parametrize("every", [2, 3, 4])
@given(rate=RATES)
def test_a_board_that_is_stopped_all_the_time_is_as_fast_as_all_its_calls(rate: float, every: int):
    samples = calls(rate, 20e-6, 72)
    mean_ns = float(samples[:, 1].mean())
    samples = stopped(samples, every, int(every * 2 * mean_ns))
    found = read_rate(samples)
    assert found is not None
    call_s = ASSUMED_CALL_S if found.call_s is None else found.call_s
    told_ns = 1e9 * (72 * call_s + samples[:, 0].sum() / found.bytes_per_s)
    # All its calls take three times as long.
    assert told_ns == pytest.approx(samples[:, 1].sum(), rel=0.1)


@given(RATES, st.integers(0, 1000))
def test_noise_of_a_tenth_moves_the_time_of_a_token_by_less_than_that(rate: float, seed: int):
    found = read_rate(calls(rate, 0.0, 400, 0.1, seed))
    assert found is not None
    assert found.call_s is not None
    predicted_s = 2 * found.call_s + (SMALL + LARGE) / found.bytes_per_s
    # The median of the noise is 7 %.
    assert predicted_s == pytest.approx(1.07 * (SMALL + LARGE) / rate, rel=0.04)


@given(RATES)
def test_calls_of_one_size_suppose_the_planners_cost_of_a_call(rate: float):
    samples = calls(rate, ASSUMED_CALL_S)
    found = read_rate(samples[samples[:, 0] == LARGE])
    assert found is not None
    assert found.call_s is None
    # Where reading takes less than the call, at least half of the time is taken for reading.
    least_s = max(LARGE / rate, (LARGE / rate + ASSUMED_CALL_S) / 2)
    assert found.bytes_per_s == pytest.approx(LARGE / least_s, rel=0.01)


@given(st.lists(st.tuples(st.integers(-5, 2**40), st.integers(-5, 2**40)), max_size=80))
def test_whatever_comes_a_rate_is_positive(pairs: list[tuple[int, int]]):
    found = read_rate(np.array(pairs, np.int64).reshape(-1, 2))
    assert found is None or isinstance(found, ReadRate)
    if found is not None:
        assert 0.0 < found.bytes_per_s < float("inf")
        assert found.call_s is None or 0.0 <= found.call_s < float("inf")


def test_few_calls_say_nothing():
    assert read_rate(calls(1e9, 0.0, MIN_CALLS - 1)) is None
    assert read_rate(np.empty((0, 2), np.int64)) is None


@given(st.lists(st.integers(0, 30), max_size=12))
def test_samples_are_taken_once_and_the_newest_are_kept(bursts: list[int]):
    samples, n = Samples(capacity=8), 0
    for burst in bursts:
        for _ in range(burst):
            samples.add(n, -n)
            n += 1
        expected = range(n - min(burst, 8), n)
        assert samples.take().tolist() == [[i, -i] for i in expected]


def run_of_chunks(goodput: Goodput, rate: float, n: int, chunk: int, at_s: float = 0.0) -> float:
    """Feed back-to-back chunks of a link of that rate; return when the last one came."""
    for i in range(n):
        at_s += chunk / rate
        goodput.on_chunk(chunk, 1 << 20 if i < n - 1 else 0, at_s)
    return at_s


@given(st.floats(2e6, 2e9), st.sampled_from([16 << 10, 64 << 10, 256 << 10]))
def test_back_to_back_chunks_show_what_the_link_carries(rate: float, chunk: int):
    goodput = Goodput()
    run_of_chunks(goodput, rate, (8 << 20) // chunk, chunk)
    assert goodput.bytes_per_s == pytest.approx(rate, rel=1e-6)
    assert goodput.n_windows > 2


def test_a_receiver_that_pauses_now_and_then_is_not_taken_for_a_slow_link():
    goodput, rate, chunk, at_s = Goodput(), 1e8, 256 << 10, 0.0
    for i in range(160):
        paused = i % 16 == 0
        # What came during the pause is there at once, and makes up for it.
        at_s += chunk / rate * (5 if paused else 0.01 if i % 16 < 5 else 1)
        goodput.on_chunk(chunk, 1 << 20, at_s)
    assert goodput.bytes_per_s == pytest.approx(rate, rel=0.02)


def test_a_later_probe_outvotes_one_for_which_the_machine_stood_still():
    goodput, chunk = Goodput(), 256 << 10
    at_s = run_of_chunks(goodput, 0.8e8, PROBE_BYTES // chunk, chunk)
    assert goodput.bytes_per_s == pytest.approx(0.8e8)
    run_of_chunks(goodput, 1e8, PROBE_BYTES // chunk, chunk, at_s + 10.0)
    assert goodput.bytes_per_s == pytest.approx(1e8)


def test_chunks_that_nothing_waited_for_say_nothing():
    goodput = Goodput()
    for i in range(100):
        # The last of a pull, or one of few small objects.
        goodput.on_chunk(256 << 10, 30_000 * (i % 4), 3.0 * i)
    assert goodput.bytes_per_s is None
    # Nor does a pause between two runs count.
    at_s = run_of_chunks(goodput, 1e8, 20, 256 << 10)
    run_of_chunks(goodput, 1e8, 20, 256 << 10, at_s + 60.0)
    assert goodput.bytes_per_s == pytest.approx(1e8)


def test_a_slow_link_is_measured_by_time_and_small_windows_not_at_all():
    goodput = Goodput()
    run_of_chunks(goodput, 1e6, 40, 16 << 10)
    assert goodput.bytes_per_s == pytest.approx(1e6)
    tiny = Goodput()
    # The first chunks are cold, and the rest is neither long nor large.
    run_of_chunks(tiny, WINDOW_BYTES / WINDOW_S, 6, MIN_BYTES - 1)
    assert tiny.bytes_per_s is None


@given(st.lists(st.tuples(st.integers(1, 1 << 20), st.integers(0, 1 << 20), st.floats(-1, 10))))
def test_whatever_comes_a_goodput_is_positive(chunks: list[tuple[int, int, float]]):
    goodput, at_s = Goodput(), 0.0
    for n_bytes, open_bytes, step_s in chunks:
        at_s += step_s
        goodput.on_chunk(n_bytes, open_bytes, at_s)
    assert goodput.bytes_per_s is None or goodput.bytes_per_s > 0.0
