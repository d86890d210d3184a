"""Rates from noisy measurements, changes, and how long a rate lasts."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.ids import AgentName
from coordinator.planner.watch import Horizon, RateWatch

PI = AgentName("pi")


def noisy(rng: random.Random, rate: float) -> float:
    return rate * rng.gauss(1.0, 0.07)


def test_noise_alone_is_hardly_ever_a_change() -> None:
    """Where the first measurements are far off on one side, the later ones look like a change."""
    n_changes = 0
    for seed in range(60):
        rng, watch = random.Random(seed), RateWatch()
        assert watch.measure(PI, noisy(rng, 4e9), 0.0)
        n_changes += sum(watch.measure(PI, noisy(rng, 4e9), 0.1 * k) for k in range(1, 300))
        assert watch.settled(PI)
        assert watch.rate(PI) == pytest.approx(4e9, rel=0.08)
        assert watch.horizon.mean_s > 40
    assert n_changes <= 1


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 999), factor=st.sampled_from([0.1, 0.35, 0.6, 1.6, 2.9]))
def test_a_change_is_seen_within_a_few_measurements(seed: int, factor: float) -> None:
    rng, watch = random.Random(seed), RateWatch()
    for k in range(40):
        watch.measure(PI, noisy(rng, 4e9), 0.1 * k)
    seen = [watch.measure(PI, noisy(rng, factor * 4e9), 4.0 + 0.1 * k) for k in range(6)]
    assert any(seen)
    assert watch.rate(PI) == pytest.approx(factor * 4e9, rel=0.25)


def test_one_odd_measurement_is_passed_over_and_two_in_a_row_are_not() -> None:
    watch = RateWatch()
    for k in range(20):
        watch.measure(PI, 4e9, float(k))
    assert not watch.measure(PI, 2.9e9, 20.0)
    assert not watch.measure(PI, 4e9, 21.0)
    assert not watch.measure(PI, 2.9e9, 22.0)
    assert not watch.measure(PI, 5.2e9, 23.0)
    assert watch.rate(PI) == pytest.approx(4e9)
    # The second one of the same sign.
    assert watch.measure(PI, 5.2e9, 24.0)
    assert watch.rate(PI) == pytest.approx(5.2e9)


def test_a_board_goes_back_to_the_rate_it_had() -> None:
    watch = RateWatch()
    for k in range(30):
        watch.measure(PI, 4e9, float(k))
    assert watch.measure(PI, 1.4e9, 30.0)
    assert not watch.settled(PI)
    for k in range(10):
        watch.measure(PI, 1.4e9, 31.0 + k)
    assert watch.measure(PI, 4.4e9, 50.0)
    assert watch.settled(PI)
    assert watch.rate(PI) == pytest.approx(4e9, rel=0.02)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_measurements_that_are_no_rates_are_passed_over(bad: float) -> None:
    watch = RateWatch()
    assert not watch.measure(PI, bad, 0.0)
    assert watch.rate(PI) == 0
    watch.measure(PI, 1e9, 1.0)
    assert not watch.measure(PI, bad, 2.0)
    assert watch.rate(PI) == 1e9
    watch.forget(PI)
    assert watch.rate(PI) == 0


@pytest.mark.parametrize("dwell_s", [3.0, 15.0, 60.0, 300.0])
def test_the_horizon_finds_the_mean_time_between_changes(dwell_s: float) -> None:
    found = []
    for seed in range(20):
        rng, horizon = random.Random(seed), Horizon()
        for _ in range(60):
            horizon.watch(rng.expovariate(1 / dwell_s))
            horizon.change()
        found.append(horizon.mean_s)
    assert sum(found) / len(found) == pytest.approx(dwell_s, rel=1.0 if dwell_s < 5 else 0.3)


def test_the_horizon_is_bounded_and_quiet_time_counts() -> None:
    horizon = Horizon(guess_s=60, least_s=1, most_s=900)
    assert horizon.mean_s == 60
    horizon.watch(100)
    assert horizon.mean_s == 160
    horizon.watch(1e9)
    assert horizon.mean_s == 900
    hectic = Horizon(guess_s=60, least_s=5)
    for _ in range(1000):
        hectic.watch(1e-3)
        hectic.change()
    assert hectic.mean_s == 5


def test_rest_shows_no_habits() -> None:
    rested, fresh = RateWatch(), RateWatch()
    for watch, began_s in ((rested, 8 * 3600.0), (fresh, 1.0)):
        watch.measure(PI, 1e9, 0.0)
        for i in range(12):
            watch.measure(PI, 3e8 if i % 2 else 1e9, began_s + 20.0 * i)
    assert rested.horizon.mean_s < 1.2 * fresh.horizon.mean_s < 60.0
