"""When a board's speed is told at once, and which calls it is told by."""

import numpy as np
import pytest

from agent.read_rate import MIN_CALLS
from agent.samples import Samples
from agent.speedometer import NEWS_CALLS, Speedometer, is_news

CALL_S = 20e-6
# Attention and MLP of a layer differ in size.
SIZES = (1_000_000, 5_000_000)


def run(samples: Samples, rate: float, n: int = 2 * MIN_CALLS, odd: int = 0) -> None:
    """Let so many calls happen; `odd` of them were interrupted."""
    for i in range(n):
        n_bytes = SIZES[i % 2]
        took_s = CALL_S + n_bytes / rate + (0.05 if i < odd else 0.0)
        samples.add(n_bytes, round(1e9 * took_s))


def told(rate: float) -> tuple[Speedometer, Samples]:
    """A speedometer that has told this rate."""
    samples = Samples(256)
    speedometer = Speedometer(samples)
    run(samples, rate)
    found = speedometer.read()
    assert found is not None
    assert found.bytes_per_s == pytest.approx(rate, rel=1e-3)
    return speedometer, samples


@pytest.mark.parametrize(
    ("factor", "n_looks"), [(0.1, 1), (0.35, 1), (0.75, 2), (1.4, 2), (3.0, 2)]
)
def test_a_change_that_is_no_burst_is_news_and_told_without_the_calls_before(
    factor: float, n_looks: int
) -> None:
    speedometer, samples = told(1e9)
    run(samples, 1e9)
    assert not speedometer.look()
    for look in range(1, n_looks + 1):
        run(samples, factor * 1e9)
        assert speedometer.look() == (look == n_looks)
    found = speedometer.read()
    assert found is not None
    # The fixed cost of a call does not change with the rate; so few calls do not show it.
    assert found.bytes_per_s == pytest.approx(factor * 1e9, rel=0.06)
    assert found.call_s is None
    # It is news once.
    run(samples, factor * 1e9)
    assert not speedometer.look()
    later = speedometer.read()
    assert later is not None
    assert later.bytes_per_s == pytest.approx(factor * 1e9, rel=1e-3)
    assert later.call_s == pytest.approx(CALL_S, rel=0.05)


def test_calls_that_were_interrupted_are_no_news() -> None:
    speedometer, samples = told(1e9)
    run(samples, 1e9, odd=MIN_CALLS - 4)
    assert not speedometer.look()
    found = speedometer.read()
    assert found is not None
    assert found.bytes_per_s == pytest.approx(1e9, rel=1e-2)


def test_a_board_is_no_faster_between_the_stops_of_a_quota() -> None:
    samples = Samples(256)
    speedometer = Speedometer(samples)

    def run_under_quota(n: int) -> None:
        for i in range(n):
            n_bytes = SIZES[i % 2]
            stop_s = 0.03 if i % 4 == 3 else 0.0
            samples.add(n_bytes, round(1e9 * (CALL_S + n_bytes / 1e9 + stop_s)))

    run_under_quota(2 * MIN_CALLS)
    found = speedometer.read()
    assert found is not None
    assert found.bytes_per_s < 0.4e9
    for _ in range(5):
        run_under_quota(2 * NEWS_CALLS)
        assert not speedometer.look()
    for is_news_now in (False, True):
        run(samples, 1e9)
        assert speedometer.look() == is_news_now


def test_a_burst_is_no_news_but_counts() -> None:
    speedometer, samples = told(1e9)
    for rate in (0.7e9, 1e9, 1.6e9, 0.7e9, 1e9):
        run(samples, rate)
        assert not speedometer.look()
    found = speedometer.read()
    assert found is not None
    assert found.bytes_per_s == pytest.approx(1e9, rel=0.05)
    run(samples, 0.7e9)
    assert not speedometer.look()
    run(samples, 0.7e9)
    assert speedometer.look()


def test_a_few_calls_wait_for_more_and_nothing_is_told_twice() -> None:
    speedometer, samples = told(1e9)
    assert speedometer.read() is None
    run(samples, 3e8, n=NEWS_CALLS - 2)
    assert not speedometer.look()
    assert speedometer.is_running
    assert not speedometer.look()
    assert not speedometer.is_running
    run(samples, 3e8, n=2)
    assert not speedometer.look()
    run(samples, 3e8, n=NEWS_CALLS)
    assert speedometer.look()
    assert speedometer.read() is not None
    assert speedometer.read() is None


def test_calls_too_few_for_a_rate_are_kept_for_the_next_heartbeat() -> None:
    speedometer, samples = told(1e9)
    run(samples, 1.1e9, n=MIN_CALLS - 4)
    assert not speedometer.look()
    assert speedometer.read() is None
    run(samples, 1.1e9, n=MIN_CALLS)
    found = speedometer.read()
    assert found is not None
    assert found.bytes_per_s == pytest.approx(1.1e9, rel=1e-3)
    assert speedometer.read() is None


def test_what_was_never_told_is_no_news() -> None:
    samples = Samples(256)
    speedometer = Speedometer(samples)
    run(samples, 1e9)
    assert not speedometer.look()
    run(samples, 2e8)
    assert not speedometer.look()
    found = speedometer.read()
    assert found is not None
    assert 2e8 < found.bytes_per_s < 1e9


def test_calls_that_cannot_be_are_passed_over() -> None:
    speedometer, samples = told(1e9)
    for _ in range(2 * MIN_CALLS):
        samples.add(1_000_000, 0)
    assert not speedometer.look()
    assert speedometer.read() is None


def test_a_quarter_is_the_limit() -> None:
    found = [is_news(float(s)) for s in np.array([0.5, 0.79, 0.81, 1.0, 1.24, 1.26, 3.0])]
    assert found == [True, True, False, False, False, True, True]


def test_a_heartbeat_does_not_end_the_watch() -> None:
    speedometer, samples = told(1e9)
    run(samples, 1e9)
    assert not speedometer.look()
    assert speedometer.is_running
    # At once after it, as heartbeats are made: no call has ended since.
    speedometer.read()
    assert speedometer.is_running
    speedometer.look()
    assert not speedometer.is_running
