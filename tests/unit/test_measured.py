"""What the coordinator makes of heartbeats: smooth, quick after lasting changes, no nonsense."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agent.ids import AgentName, Epoch, InstanceId
from agent.messages import Heartbeat, Hello
from agent.read_rate import ASSUMED_CALL_S
from agent.versions import our_versions
from coordinator.measured import ALIKE, Measured, Smooth
from coordinator.membership import Agent
from coordinator.offers import LOOPBACK, SOFTWARE_S, costs_of, link_of, offers_of

VALUES = st.floats(1e-9, 1e15)


def after(*values: float | None) -> Smooth:
    smooth = Smooth()
    for value in values:
        smooth = smooth.after(value)
    return smooth


@given(VALUES, st.integers(1, 20))
def test_a_steady_value_is_taken_as_it_is(value: float, n: int):
    assert after(*[value] * n).value == pytest.approx(value)


@given(VALUES, VALUES, st.integers(1, 5))
def test_one_odd_value_hardly_moves_it(value: float, odd: float, n: int):
    found = after(*[value] * n, odd).value
    assert found is not None
    assert value / 1.08 <= found <= value * 1.08


@given(VALUES, VALUES)
def test_a_lasting_change_is_taken_over_at_its_second_sighting(before: float, now: float):
    # A change to between 1.25 and 1.35 times may look alike after the first small step.
    assume(not 1 / 1.4 < now / before < 1.4)
    assert after(*[before] * 5, now, now).value == pytest.approx(now)


@given(st.lists(VALUES, min_size=1, max_size=40))
def test_it_stays_between_what_came(values: list[float]):
    found = after(*values).value
    assert found is not None
    assert min(values) * (1 - 1e-9) <= found <= max(values) * (1 + 1e-9)


@given(VALUES, st.lists(st.floats(-ALIKE + 1, ALIKE - 1), min_size=60, max_size=60))
def test_noise_within_a_quarter_is_averaged(value: float, noise: list[float]):
    found = after(value, *[value * (1 + x / 3) for x in noise]).value
    assert found == pytest.approx(value, rel=0.09)


@pytest.mark.parametrize("nonsense", [None, 0.0, -1.0, math.nan, math.inf])
def test_what_cannot_be_changes_nothing(nonsense: float | None):
    assert after(nonsense) == Smooth()
    assert after(5.0, nonsense) == Smooth(5.0)


def beat(**fields: object) -> Heartbeat:
    return Heartbeat(0, 1 << 30, 0, **fields)  # type: ignore[arg-type]


def test_goodput_counts_when_it_was_measured_anew():
    first = Measured().after(beat(goodput_bytes_per_s=1e8, n_goodput=3), 10.0)
    again = first.after(beat(goodput_bytes_per_s=1e8, n_goodput=3), 11.0)
    assert (again.goodput.value, again.goodput_s) == (1e8, 10.0)
    newer = again.after(beat(goodput_bytes_per_s=2e8, n_goodput=4), 12.0)
    assert (newer.goodput.value, newer.goodput_s) == (2e8, 12.0)


def test_faults_add_up_and_a_fixed_cost_is_kept():
    found = Measured().after(beat(major_faults=2, bytes_per_s=1e9, call_s=3e-5), 1.0)
    found = found.after(beat(major_faults=5, bytes_per_s=1e9), 2.0)
    assert found.n_faults == 7
    assert found.call_s == pytest.approx(3e-5)
    assert Measured().call_s == ASSUMED_CALL_S


def agent(name: str, at_start: float, *beats: Heartbeat) -> Agent:
    hello = Hello(AgentName(name), InstanceId("1"), our_versions(), 4, 4, 1 << 30, at_start)
    measured = Measured()
    for one in beats:
        measured = measured.after(one, 1.0)
    return Agent(b"link", hello, 0.0, epoch=Epoch(0), measured=measured)


def test_offers_use_what_was_measured_and_scale_what_was_not():
    worked = agent("a", 8e9, *[beat(bytes_per_s=4e9)] * 3)
    slowed = agent("b", 8e9, beat(bytes_per_s=4e9), *[beat(bytes_per_s=1.2e9)] * 2)
    new, silent = agent("c", 6e9), agent("d", 0.0)
    rates = [o.bytes_per_s for o in offers_of([worked, slowed, new, silent])]
    assert rates[:2] == pytest.approx([4e9, 1.2e9])
    # Half and 0.15 of the start's: the median of both.
    assert rates[2] == pytest.approx(6e9 * (0.5 + 0.15) / 2)
    assert rates[3] == 0.0
    assert offers_of([new])[0].bytes_per_s == 6e9


def test_a_plan_reckons_with_the_slowest_of_its_links():
    near = agent("a", 1e9, beat(round_trip_s=4e-4, goodput_bytes_per_s=1.1e8, n_goodput=1))
    far = agent("b", 1e9, beat(round_trip_s=6e-4, goodput_bytes_per_s=1.1e7, n_goodput=1))
    agents = [near, far, agent("c", 1e9)]
    assert link_of(agents).hop_s == pytest.approx((6e-4 + SOFTWARE_S) / 2)
    assert link_of(agents).bytes_per_s == pytest.approx(1.1e7)
    assert link_of(agents, [AgentName("a")]).bytes_per_s == pytest.approx(1.1e8)
    assert link_of(agents, [AgentName("c")]) == LOOPBACK
    # A round trip within the machine takes nothing from what software needs.
    assert link_of([agent("l", 1e9, beat(round_trip_s=1e-5))]) == LOOPBACK


def test_the_fixed_cost_of_a_call_goes_with_the_measured_rates():
    assert costs_of([agent("a", 1e9)]).call_s == ASSUMED_CALL_S
    told = beat(bytes_per_s=1e9, call_s=5e-5)
    assert costs_of([agent("a", 1e9, told), agent("b", 1e9)]).call_s == pytest.approx(5e-5)
