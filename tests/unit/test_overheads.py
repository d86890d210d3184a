"""Exchanges and the coordinator's own work, learnt from the steps of real plans."""

import random

import pytest

from agent.frames import Phase, Wire
from agent.ids import AgentName, ModelId, Rank
from coordinator.overheads import MIN_STEPS, Overheads, StepLog
from coordinator.plan import Plan
from coordinator.planner.cost import Costs, Link, Offer, PlanRequest
from coordinator.planner.place import assess, make_plan
from coordinator.schedule import Dispatch, make_schedule
from kernels.layout import Geometry, WeightFormat

GEOMETRY = Geometry(512, 6, 8, 4, 64, 1376, 8192, WeightFormat.Q8, 1e-5)
LINK = Link(hop_s=2e-4, bytes_per_s=1e8)
COSTS = Costs()
REQUEST = PlanRequest(512, 512, place="spread")


def offers(n: int) -> list[Offer]:
    return [Offer(AgentName(f"b{i}"), 1 << 30, 1e9) for i in range(n)]


def plan(n: int) -> Plan:
    return make_plan(ModelId("m"), GEOMETRY, offers(n), REQUEST, LINK, COSTS).plan


def log_of(plan: Plan) -> StepLog:
    return StepLog(make_schedule(plan, GEOMETRY), GEOMETRY.hidden_size, Wire.F16)


def promised(plan: Plan, n: int, costs: Costs = COSTS) -> float:
    time = assess(plan, GEOMETRY, offers(n), REQUEST, LINK, costs).time
    return time.exchange_s - costs.sample_s


def test_what_is_promised_is_what_the_planner_reckons_with() -> None:
    """Exchanges that take what the links promise change nothing."""
    overheads, made = Overheads(), plan(3)
    log = log_of(made)
    for _ in range(MIN_STEPS):
        log.note(1, promised(made, 3), COSTS.sample_s)
    overheads.learn(log, LINK, COSTS)
    known = overheads.known(COSTS)
    assert known.exchange_factor == pytest.approx(1.0)
    assert known.sample_s == pytest.approx(COSTS.sample_s)


def test_slow_exchanges_of_one_plan_foretell_those_of_others() -> None:
    overheads, made, rng = Overheads(), plan(4), random.Random(1)
    log = log_of(made)
    for _ in range(MIN_STEPS + 3):
        log.note(1, 4.0 * promised(made, 4) * rng.uniform(0.95, 1.05), 1e-3)
    # One step in which a process was stopped, and a chunk of a prompt.
    log.note(1, 5.0, 5.0)
    log.note(8, 9.0, 9.0)
    overheads.learn(log, LINK, COSTS)
    known = overheads.known(COSTS)
    assert known.exchange_factor == pytest.approx(4.0, rel=0.05)
    assert known.sample_s == pytest.approx(1e-3)
    other = plan(2)
    assert promised(other, 2, known) == pytest.approx(4.0 * promised(other, 2), rel=0.05)


def test_few_steps_say_nothing_and_none_counts_twice() -> None:
    overheads, made = Overheads(), plan(3)
    log = log_of(made)
    for _ in range(MIN_STEPS - 1):
        log.note(1, 1.0, 1.0)
    overheads.learn(log, LINK, COSTS)
    assert overheads.known(COSTS) == COSTS
    log.note(1, 1.0, 1.0)
    overheads.learn(log, LINK, COSTS)
    once = overheads.known(COSTS)
    assert once.sample_s == 1.0
    overheads.learn(log, LINK, COSTS)
    assert overheads.known(COSTS) == once


def test_a_single_board_tells_of_the_coordinator_alone() -> None:
    overheads = Overheads()
    log = StepLog([Dispatch(Phase.STAGE, 0, (Rank(0),), vocab_after=True)], 512, Wire.F32)
    assert log.payload_bytes == 2048
    for _ in range(MIN_STEPS):
        log.note(1, 0.5, 2e-3)
    overheads.learn(log, LINK, COSTS)
    assert overheads.known(COSTS) == COSTS._replace(sample_s=2e-3)


def test_the_factor_is_of_exchanges_only() -> None:
    made = plan(4)
    one, three = (
        assess(
            made, GEOMETRY, offers(4), REQUEST, LINK, COSTS._replace(exchange_factor=factor)
        ).time
        for factor in (1.0, 3.0)
    )
    assert one.kernels_s == three.kernels_s
    own_s = COSTS.sample_s
    assert three.exchange_s - own_s == pytest.approx(3.0 * (one.exchange_s - own_s))
