"""Placements that predictions are judged by: legal, different, and as described."""

import pytest

from agent.ids import AgentName, ModelId
from agent.share import count_atoms
from coordinator.plan import Plan, check_plan
from coordinator.planner.cost import counts_of
from kernels.layout import Geometry, WeightFormat
from tools.prediction.placements import FITTED, JUDGED, N_BOARDS, Placement, placed

TINYLLAMA = Geometry(2048, 22, 32, 4, 64, 5632, 32000, WeightFormat.Q8, 1e-5)
NAMES = [AgentName(f"b{i}") for i in range(N_BOARDS)]
LIKE = Plan(ModelId("m"), (), wire="f32", kv="int8", context_tokens=512)


def plan_of(placement: Placement) -> Plan:
    return placed(placement, TINYLLAMA, NAMES, LIKE)


@pytest.mark.parametrize("placement", [*FITTED, *JUDGED], ids=lambda p: p.name)
def test_every_atom_has_one_holder_and_parts_are_kept(placement: Placement) -> None:
    plan = plan_of(placement)
    check_plan(plan, TINYLLAMA)
    assert (plan.wire, plan.kv, plan.context_tokens) == ("f32", "int8", 512)
    used = [any(parts) for parts in zip(placement.groups, placement.columns, placement.vocab,
                                        strict=True)]  # fmt: skip
    assert [m.agent for m in plan.members] == [n for n, u in zip(NAMES, used, strict=True) if u]
    counts = counts_of(plan, TINYLLAMA)
    held = dict(zip([m.agent for m in plan.members], counts.columns[0].tolist(), strict=True))
    for name, part in zip(NAMES, placement.columns, strict=True):
        exact = TINYLLAMA.n_column_atoms * part / sum(placement.columns)
        assert held.get(name, 0) == pytest.approx(exact, abs=1.0)


def test_what_judges_is_not_what_was_fitted_on() -> None:
    plans = [plan_of(p) for p in (*FITTED, *JUDGED)]
    assert all(a != b for i, a in enumerate(plans) for b in plans[:i])
    assert len(JUDGED) >= 6
    assert {len(plan_of(p).members) for p in JUDGED} == {1, 2, 3, 4}
    assert any(p.is_long for p in JUDGED)


def test_scattered_atoms_lie_in_many_runs() -> None:
    (scattered,) = (p for p in JUDGED if p.scattered)
    shares = [share for m in plan_of(scattered).members for share in m.layers]
    assert sum(len(share.columns) for share in shares) > 5 * len(shares)
    assert sum(count_atoms(share.columns) for share in shares) == 22 * TINYLLAMA.n_column_atoms
    whole = plan_of(scattered._replace(scattered=False))
    assert all(len(share.columns) <= 1 for m in whole.members for share in m.layers)
