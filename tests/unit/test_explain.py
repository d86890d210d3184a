"""What is said about a plan is what the cost model says."""

import pytest

from agent.ids import AgentName, ModelId
from coordinator.planner.cost import Link, Offer, PlanRequest
from coordinator.planner.explain import Explanation, explain
from coordinator.planner.place import make_plan
from kernels.layout import Geometry, WeightFormat

TINYLLAMA = Geometry(2048, 22, 32, 4, 64, 5632, 32000, WeightFormat.Q8, 1e-5)
GBIT = Link(hop_s=150e-6, bytes_per_s=117e6)
REQUEST = PlanRequest(2048, 2048)


def explained(*pairs: tuple[float, float]) -> Explanation:
    """Explain the plan for agents given as (MiB, GB/s)."""
    offers = [
        Offer(AgentName(f"pi-{i}"), int(mib * 2**20), gb * 1e9) for i, (mib, gb) in enumerate(pairs)
    ]
    planned = make_plan(ModelId("m"), TINYLLAMA, offers, REQUEST, GBIT)
    found = explain(planned, TINYLLAMA, offers, REQUEST, GBIT)
    assert sum(p.seconds for p in found.parts) == pytest.approx(planned.token_s)
    assert all(p.seconds > 0 for p in found.parts)
    return found


def test_unequal_boards_beat_equal_slices() -> None:
    found = explained((4096, 8), (4096, 4), (4096, 2))
    assert found.full == found.equal_lacks == ()
    assert found.roomy_s is None
    assert found.equal_s > 1.3 * found.token_s
    assert any("% slower" in line for line in found.lines())


def test_full_boards_and_what_they_cost() -> None:
    found = explained((300, 8), (2000, 2), (2000, 2))
    assert found.full == ("pi-0",)
    assert found.roomy_s is not None
    assert found.roomy_s < found.token_s
    assert found.equal_lacks == ("pi-0",)
    text = "\n".join(found.lines())
    assert "full: pi-0" in text
    assert "could not hold theirs" in text


def test_a_board_that_would_only_slow_is_named() -> None:
    found = explained((4096, 9), (4096, 0.01))
    assert found.idle == ("pi-1",)
    assert [p.slowest for p in found.parts] == [None] * 4
    assert "not used: pi-1" in "\n".join(found.lines())
