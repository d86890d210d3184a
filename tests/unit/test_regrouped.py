"""Plans with one head group of each layer elsewhere."""

import pytest

from agent.ids import AgentName, ModelId
from coordinator.migration_parts import move_parts
from coordinator.plan import check_plan
from coordinator.planner.cost import Link, Offer, PlanRequest
from coordinator.planner.place import make_plan
from kernels.errors import PlanError
from kernels.layout import Geometry, WeightFormat
from tools.migration.regrouped import regrouped

GEOMETRY = Geometry(512, 6, 8, 4, 64, 1376, 8192, WeightFormat.Q8, 1e-5)
NAMES = [AgentName(name) for name in "abc"]
OFFERS = [Offer(name, 1 << 30, 1e9) for name in NAMES]


def test_one_group_of_every_layer_moves_and_nothing_else() -> None:
    request = PlanRequest(512, 512, place="spread")
    plan = make_plan(ModelId("m"), GEOMETRY, OFFERS[:2], request, Link(1e-4, 1e8)).plan
    there = regrouped(plan, *NAMES[:2])
    check_plan(there, GEOMETRY)
    parts = move_parts(plan, there)
    assert parts.moved_groups() == GEOMETRY.n_layers
    moved = [s for s in parts.shares if not s.local]
    assert {(s.source, s.target) for s in moved} == {("a", "b")}
    assert move_parts(there, plan).moved_groups() == GEOMETRY.n_layers
    gave_all = regrouped(there, *NAMES[:2])
    with pytest.raises(PlanError, match="no head group of layer 0"):
        regrouped(gave_all, *NAMES[:2])
    with pytest.raises(PlanError, match="no stage has both"):
        regrouped(plan, NAMES[0], NAMES[2])
