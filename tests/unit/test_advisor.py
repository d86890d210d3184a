"""When a better plan is asked for, and what the planner is told of rates and weights."""

import numpy as np
import pytest

from agent.ids import AgentName, Epoch, InstanceId, ModelId
from agent.messages import Heartbeat, Hello, Ready
from agent.versions import our_versions
from coordinator.advisor import LOOK_S, Advisor
from coordinator.known_agent import Agent
from coordinator.plan import Plan
from coordinator.planner.cost import Link, Offer, PlanRequest
from coordinator.planner.place import make_plan
from kernels.layout import Geometry, WeightFormat

GEOMETRY = Geometry(512, 6, 8, 4, 64, 1376, 8192, WeightFormat.Q8, 1e-5)
A, B = AgentName("a"), AgentName("b")
OFFERS = [Offer(A, 1 << 30, 1e9), Offer(B, 1 << 30, 1e9)]


def agent(name: AgentName, rate: float | None, pulled_bytes: int = 0) -> Agent:
    hello = Hello(name, InstanceId("1"), our_versions(), 4, 4, 1 << 30, 1e9)
    ready = Ready(Epoch(1), 1000, 0, pulled_bytes, 0.1)
    beat = Heartbeat(1, 1 << 30, 0, bytes_per_s=rate)
    return Agent(b"link", hello, 0.0, epoch=Epoch(1), heartbeat=beat, ready=ready)


def watched(n_beats: int = 10) -> Advisor:
    """An advisor that has seen both boards at 1e9 for a while, and was asked just now."""
    advisor = Advisor(GEOMETRY)
    for i in range(n_beats):
        advisor.look([agent(A, 1e9), agent(B, 1e9)], 0.4 * i)
    assert advisor.is_due(0.4 * n_beats)
    return advisor


def test_nothing_is_due_soon_while_boards_stay_as_they_are() -> None:
    advisor = watched()
    advisor.look([agent(A, 1.05e9), agent(B, 0.97e9)], 4.4)
    assert not advisor.is_due(4.4)
    assert not advisor.is_due(4.0 + LOOK_S - 0.1)
    assert advisor.is_due(4.0 + LOOK_S)
    assert not advisor.is_due(4.0 + LOOK_S)


def test_a_board_that_becomes_slow_is_told_of_at_once_and_with_its_new_rate() -> None:
    advisor = watched()
    advisor.look([agent(A, 0.3e9), agent(B, 1e9)], 4.4)
    assert advisor.is_due(4.4)
    slow, same = advisor.estimated(OFFERS)
    assert slow.bytes_per_s == pytest.approx(0.3e9)
    assert same.bytes_per_s == pytest.approx(1e9)


def test_what_has_changed_while_nobody_asked_is_not_forgotten() -> None:
    advisor = watched()
    advisor.look([agent(A, 0.3e9), agent(B, 1e9)], 4.4)
    advisor.look([agent(A, 0.3e9), agent(B, 1e9)], 4.8)
    assert advisor.is_due(5.2)
    assert not advisor.is_due(5.2)


def planned(*rates: float) -> Plan:
    offers = [o._replace(bytes_per_s=rate) for o, rate in zip(OFFERS, rates, strict=True)]
    request = PlanRequest(256, 256, place="spread")
    return make_plan(ModelId("m"), GEOMETRY, offers, request, Link(1e-4, 1e9)).plan


def test_another_plan_may_be_the_first_part_of_a_change() -> None:
    advisor = watched()
    advisor.moved(planned(1e9, 1e9), planned(1e9, 1e9), 4.05)
    assert not advisor.is_due(4.1)  # nobody has told how it does
    assert advisor.is_due(5.1)
    assert not advisor.is_due(5.1)


def test_a_board_that_is_fast_as_soon_as_it_has_less_is_told_of_as_it_was() -> None:
    advisor = watched()
    advisor.look([agent(A, 0.3e9), agent(B, 1e9)], 4.4)
    assert advisor.estimated(OFFERS)[0].bytes_per_s == pytest.approx(0.3e9)
    advisor.moved(planned(1e9, 1e9), planned(0.3e9, 1e9), 5.0)
    advisor.look([agent(A, 1e9), agent(B, 1e9)], 5.6)
    slow, same = advisor.estimated(OFFERS)
    assert slow.bytes_per_s == pytest.approx(0.3e9)
    assert same.bytes_per_s == pytest.approx(1e9)
    # One that was given more is what it says.
    advisor.moved(planned(0.3e9, 1e9), planned(1e9, 1e9), 60.0)
    advisor.look([agent(A, 1e9), agent(B, 1e9)], 60.6)
    assert advisor.estimated(OFFERS)[0].bytes_per_s == pytest.approx(1e9, rel=0.05)


def test_what_boards_show_while_a_plan_is_changed_and_just_after_says_nothing() -> None:
    advisor = watched()
    slow, fine = agent(A, 0.3e9), agent(B, 1e9)
    advisor.look([slow, fine], 4.4, is_moving=True)
    advisor.moved(planned(1e9, 1e9), planned(1e9, 1e9), 4.7)
    advisor.look([agent(A, 0.3e9), fine], 5.1)
    assert advisor.estimated(OFFERS)[0].bytes_per_s == pytest.approx(1e9, rel=0.05)
    advisor.look([agent(A, 0.3e9), fine], 5.3)
    assert advisor.estimated(OFFERS)[0].bytes_per_s == pytest.approx(0.3e9)


def test_a_heartbeat_counts_once_and_one_without_a_rate_not_at_all() -> None:
    advisor = watched()
    odd, fine = agent(A, 0.7e9), agent(B, 1e9)
    # Off by less than what is sure: a second sighting is waited for, and this is none.
    for i in range(3):
        advisor.look([odd, fine], 4.4 + 0.1 * i)
    advisor.look([agent(A, None), fine], 4.8)
    assert not advisor.is_due(4.8)
    assert advisor.estimated(OFFERS)[0].bytes_per_s == pytest.approx(1e9)
    advisor.look([agent(A, 0.7e9), fine], 5.2)
    assert advisor.is_due(5.2)


def test_a_board_that_left_begins_anew() -> None:
    advisor = watched()
    advisor.look([agent(B, 1e9)], 4.4)
    assert advisor.estimated(OFFERS)[0] == OFFERS[0]
    advisor.look([agent(A, 5e8), agent(B, 1e9)], 4.8)
    assert advisor.is_due(4.8)
    assert advisor.estimated(OFFERS)[0].bytes_per_s == pytest.approx(5e8)


def test_who_pulled_nothing_has_the_model_and_others_what_they_hold() -> None:
    request = PlanRequest(512, 512, place="spread")
    plan = make_plan(ModelId("m"), GEOMETRY, OFFERS, request, Link(1e-4, 1e8)).plan
    advisor = Advisor(GEOMETRY)
    advisor.look([agent(A, 1e9), agent(B, 1e9, pulled_bytes=500)], 0.0)
    now = advisor.conditions(plan, OFFERS, 77, [B])
    assert (now.n_tokens, now.barred, now.joined) == (77, {B}, frozenset())
    assert now.resident is not None
    for part in (now.resident.groups, now.resident.columns, now.resident.vocab):
        assert part[0].all()
        assert part[1].any()
        assert not part[1].all()
    # It was given another part since, and had to pull that.
    advisor.look([agent(A, 1e9, pulled_bytes=1)], 1.0)
    again = advisor.conditions(plan, OFFERS, 77, []).resident
    assert again is not None
    assert not again.groups[0].all()
    assert np.array_equal(again.groups[1], now.resident.groups[1])


def test_who_has_just_come_is_told_of_once() -> None:
    request = PlanRequest(512, 512, place="spread")
    plan = make_plan(ModelId("m"), GEOMETRY, OFFERS[:1], request, Link(1e-4, 1e8)).plan
    advisor = Advisor(GEOMETRY)
    assert advisor.conditions(plan, OFFERS, 0, []).joined == {B}
    # Asked again, with other memory.
    assert advisor.conditions(plan, OFFERS, 0, []).joined == {B}
    advisor.answered(OFFERS)
    assert advisor.conditions(plan, OFFERS, 0, []).joined == frozenset()
    assert advisor.conditions(plan, OFFERS[:1], 0, []).joined == frozenset()
    advisor.answered(OFFERS[:1])
    assert advisor.conditions(plan, OFFERS, 0, [B]).joined == frozenset()
