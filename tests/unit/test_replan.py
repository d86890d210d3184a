"""Re-planning: what must never happen, when a change pays, and what forces one."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.ids import AgentName, ModelId
from coordinator.plan import Plan, check_plan
from coordinator.planner.change import redealt
from coordinator.planner.cost import Link, Offer, PlanRequest
from coordinator.planner.fill import _deal
from coordinator.planner.holdings import Resident, holdings_of
from coordinator.planner.place import assess, make_plan
from coordinator.planner.replan import LEAST_GAIN, Conditions, Replan, replan
from coordinator.random_plan import random_plan
from kernels.errors import ResourceError
from kernels.layout import Geometry, WeightFormat
from tools import cli

MODEL = ModelId("m")
SMALL = Geometry(512, 6, 8, 4, 64, 1376, 8192, WeightFormat.Q8, 1e-5)
TINYLLAMA = Geometry(2048, 22, 32, 4, 64, 5632, 32000, WeightFormat.Q8, 1e-5)
GBIT = Link(hop_s=150e-6, bytes_per_s=117e6)
MIB = 1 << 20
REQUEST = PlanRequest(2048, 2048, n_contexts=1)


def offers(*pairs: tuple[float, float]) -> list[Offer]:
    """Agents from (MiB, GB/s) pairs."""
    return [
        Offer(AgentName(f"pi-{i}"), int(mib * MIB), gb * 1e9) for i, (mib, gb) in enumerate(pairs)
    ]


def plan_for(boards: list[Offer], geometry: Geometry = TINYLLAMA) -> Plan:
    return make_plan(MODEL, geometry, boards, REQUEST, GBIT).plan


def resident(boards: list[Offer], geometry: Geometry = TINYLLAMA) -> Resident:
    return Resident.everything(len(boards), geometry)


def again(
    plan: Plan, boards: list[Offer], now: Conditions, geometry: Geometry = TINYLLAMA
) -> Replan:
    found = replan(plan, geometry, boards, REQUEST, GBIT, now)
    check(found, plan, boards, now, geometry)
    return found


def check(
    found: Replan, plan: Plan, boards: list[Offer], now: Conditions, geometry: Geometry
) -> None:
    """Invariants of every re-plan."""
    check_plan(found.plan, geometry)
    assessed = assess(found.plan, geometry, boards, REQUEST, GBIT)
    assert assessed.token_s == pytest.approx(found.after.total_s)
    assert not {m.agent for m in found.plan.members} & now.barred
    names = [o.name for o in boards]
    old, new = (holdings_of(p, geometry, names) for p in (plan, found.plan))
    n_changed = sum(int((a != b).sum()) for a, b in zip(old, new, strict=True))
    assert n_changed == sum(r.count for m in found.moves for r in m.atoms)
    assert (found.reason == "stay") == (not found.moves)
    assert (found.price.stall_s == 0) == (not found.moves)
    if found.moves:
        assert all(m.total_bytes <= m.budget_bytes for m in assessed.members)
        assert not found.options[0].rejected
        assert all(o.rejected for o in found.options[1:])
    if found.reason in ("faster", "join"):
        assert found.before is not None
        assert found.after.total_s < (1 - LEAST_GAIN) * found.before.total_s
        assert found.options[0].worth_s > 0


@settings(max_examples=30, deadline=None)
@given(data=st.data(), n=st.integers(1, 6), seed=st.integers(0, 999))
def test_invariants_from_any_plan(data: st.DataObject, n: int, seed: int) -> None:
    roomy = data.draw(st.floats(1.2, 4.0))
    need = assess_bytes()
    shares = data.draw(st.lists(st.floats(0.2, 1), min_size=n, max_size=n))
    boards = offers(
        *((roomy * need * s / sum(shares) / MIB, data.draw(st.floats(0.5, 9))) for s in shares)
    )
    names = [o.name for o in boards]
    plan = random_plan(random.Random(seed), MODEL, SMALL, names, max_stages=2)
    # The wire and KV types of the request are those of the plan here.
    plan = replace_types(plan)
    lost = data.draw(st.integers(0, n - 1))
    now = Conditions(
        horizon_s=data.draw(st.floats(1, 900)),
        n_tokens=data.draw(st.integers(0, 2048)),
        barred=frozenset(names[:lost]) if data.draw(st.booleans()) else frozenset(),
    )
    here = boards[lost:] if data.draw(st.booleans()) else boards
    try:
        found = again(plan, here, now, SMALL)
    except ResourceError:
        allowed = [o for o in here if o.name not in now.barred]
        # Of what is left there must truly be too little, or nearly so.
        assert sum(o.memory_bytes for o in allowed) < 1.5 * need
        return
    if found.moves:
        # What forced a change is over with it.
        assert replan(found.plan, SMALL, here, REQUEST, GBIT, now).reason in ("stay", "faster")


def assess_bytes() -> int:
    one = make_plan(MODEL, SMALL, offers((1 << 20, 1.0)), REQUEST, GBIT)
    return one.members[0].total_bytes


def replace_types(plan: Plan) -> Plan:
    return Plan(plan.model_id, plan.stages, REQUEST.wire, REQUEST.kv, context_tokens=2048)


def test_the_best_plan_stays() -> None:
    boards = offers((4096, 4), (4096, 4), (4096, 2))
    found = again(plan_for(boards), boards, Conditions(900.0, resident=resident(boards)))
    assert found.reason == "stay"
    assert found.moves == ()
    assert found.options[0].name == "stay"


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999))
def test_settled_noise_alone_moves_nothing(seed: int) -> None:
    rng = random.Random(seed)
    boards = offers(*[(4096, 4.0)] * 4)
    plan = plan_for(boards)
    # 7 % of a measurement are less than 2 % once 16 were averaged.
    seen = [o._replace(bytes_per_s=o.bytes_per_s * rng.gauss(1, 0.07 / 4)) for o in boards]
    assert again(plan, seen, Conditions(900.0, 1000, resident(boards))).reason == "stay"


def test_a_slowed_board_gives_atoms_away_and_the_others_keep_theirs() -> None:
    boards = offers(*[(4096, 4.0)] * 4)
    plan = plan_for(boards)
    slow = [boards[0], boards[1]._replace(bytes_per_s=1.4e9), *boards[2:]]
    found = again(plan, slow, Conditions(60.0, 1000))
    best = make_plan(MODEL, TINYLLAMA, slow, REQUEST, GBIT)
    assert found.reason == "faster"
    assert found.after.total_s < 1.03 * best.token_s
    assert {m.source for m in found.moves} == {AgentName("pi-1")}
    assert "reason=faster" in found.line()
    assert found.price.copy_s > 0.1


def test_what_a_change_is_worth_decides() -> None:
    boards = offers(*[(4096, 4.0)] * 4)
    plan = plan_for(boards)
    slow = [boards[0], boards[1]._replace(bytes_per_s=1.4e9), *boards[2:]]
    # Copies of more than a second do not pay if rates last no longer.
    assert again(plan, slow, Conditions(0.3, 1000)).reason == "stay"
    # With weights at hand little more is enough; what needs no KV is changed first.
    first = again(plan, slow, Conditions(3.0, 1000, resident(boards)))
    assert first.reason == "faster"
    assert first.again
    assert first.price.copy_s == 0
    second = again(first.plan, slow, Conditions(60.0, 1000, resident(boards)))
    assert not second.again
    assert {m.kind for m in second.moves} == {"group"}


def test_a_small_gain_is_within_what_sensors_err() -> None:
    boards = offers(*[(4096, 4.0)] * 4)
    plan = plan_for(boards)
    little = [boards[0]._replace(bytes_per_s=4e9 * 0.97), *boards[1:]]
    assert again(plan, little, Conditions(900.0, 0, resident(boards))).reason == "stay"


def test_a_lost_agent_is_replaced_and_its_weights_come_from_the_coordinator() -> None:
    boards = offers(*[(4096, 4.0)] * 4)
    plan = plan_for(boards)
    found = again(plan, boards[1:], Conditions(60.0, 1000))
    assert found.reason == "lost"
    assert found.before is None
    assert any(m.source is None for m in found.moves)
    # Nothing else moves but to even out: survivors keep most of what they have.
    kept = holdings_of(plan, TINYLLAMA, [o.name for o in boards[1:]])
    after = holdings_of(found.plan, TINYLLAMA, [o.name for o in boards[1:]])
    survived = kept.columns >= 0
    assert (kept.columns == after.columns)[survived].mean() > 0.8


def test_after_a_loss_tokens_wait_for_no_more_than_they_must() -> None:
    """Only what the lost agent held is fetched; a better plan is for afterwards."""
    boards = offers((4096, 9), (4096, 4), (4096, 4), (4096, 4))
    plan = plan_for(boards[1:])
    found = again(plan, boards[:3], Conditions(600.0, 1000))
    assert (found.reason, found.again) == ("lost", True)
    assert all(m.source is None for m in found.moves)
    after = again(found.plan, boards[:3], Conditions(600.0, 1000))
    assert after.reason == "faster"


@pytest.mark.parametrize("both_at_once", [False, True])
def test_an_over_full_agent_shrinks_or_leaves_if_two_pools_do_not_fit(both_at_once: bool) -> None:
    boards = offers(*[(4096, 4.0)] * 3)
    plan = plan_for(boards)
    (held,) = (
        m for m in assess(plan, TINYLLAMA, boards, REQUEST, GBIT).members if m.agent[-1] == "1"
    )
    full = held.total_bytes - held.kv_pool_bytes // 2
    here = [boards[0], boards[1]._replace(memory_bytes=full), boards[2]]
    found = again(plan, here, Conditions(900.0, 1000, resident(boards), both_at_once=both_at_once))
    assert found.reason == "memory"
    # Neither fewer groups nor fewer columns go without a second pool.
    leaves = "pi-1" not in {m.agent for m in found.plan.members}
    assert leaves == both_at_once


def test_a_move_that_no_agent_has_room_for_is_refused_by_name() -> None:
    boards = offers((4096, 4.0), (4096, 4.0))
    plan = plan_for(boards)
    of = {str(m.agent): m for m in assess(plan, TINYLLAMA, boards, REQUEST, GBIT).members}
    both = sum(m.total_bytes for m in of.values())
    # pi-0 can hold all, but not all and its present pool besides.
    here = [boards[0]._replace(memory_bytes=both), boards[1]]
    now = Conditions(900.0, 1000, resident(boards), barred=frozenset({AgentName("pi-1")}))
    assert again(plan, here, now).reason == "drain"
    with pytest.raises(ResourceError, match="cannot be moved off: agent 'pi-0' would need "):
        again(plan, here, replace(now, both_at_once=True))


def n_atoms(plan: Plan, name: str) -> int:
    (member,) = (m for m in plan.members if m.agent == name)
    ranges = [r for s in member.layers for r in (*s.head_groups, *s.columns)]
    return sum(r.count for r in (*ranges, *member.vocab))


def test_a_cordoned_agent_stays_but_takes_nothing_from_others() -> None:
    boards = offers(*[(4096, 4.0)] * 4)
    plan, cordoned = plan_for(boards), frozenset({AgentName("pi-0")})
    now = Conditions(900.0, 1000, resident(boards), cordoned=cordoned)
    assert again(plan, boards, now).reason == "stay"
    # It would take most, were it not cordoned.
    fast = [boards[0]._replace(bytes_per_s=9e9), boards[1]._replace(bytes_per_s=1e9), *boards[2:]]
    taken = again(plan, fast, replace(now, cordoned=frozenset()))
    assert n_atoms(taken.plan, "pi-0") > n_atoms(plan, "pi-0")
    found = again(plan, fast, now)
    assert found.reason == "faster"
    assert "pi-0" not in {move.target for move in found.moves}
    # Another one is drained: what that held goes to the rest.
    drained = again(plan, boards, replace(now, barred=frozenset({AgentName("pi-1")})))
    assert drained.reason == "drain"
    assert "pi-0" not in {move.target for move in drained.moves}


def test_a_drained_agent_is_freed_whatever_it_costs() -> None:
    boards = offers((4096, 9), (4096, 1), (4096, 1))
    plan = plan_for(boards)
    found = again(plan, boards, Conditions(1.0, 1000, barred=frozenset({AgentName("pi-0")})))
    assert found.reason == "drain"
    assert found.before is not None
    assert found.after.total_s > found.before.total_s


def test_an_agent_whose_memory_shrinks_gives_atoms_away() -> None:
    boards = offers(*[(600, 4.0)] * 3)
    plan = plan_for(boards)
    tight = [boards[0]._replace(memory_bytes=300 * MIB), *boards[1:]]
    found = again(plan, tight, Conditions(60.0, 1000))
    assert found.reason == "memory"
    assert {m.source for m in found.moves} >= {AgentName("pi-0")}


def test_a_board_that_comes_is_used_though_rates_change_often() -> None:
    boards = offers(*[(4096, 4.0)] * 3)
    plan = plan_for(boards[:2])
    now = Conditions(1.0, 1000, resident(boards))
    joined = replace(now, resident=None, joined=frozenset({boards[2].name}))
    found = again(plan, boards, joined)
    assert found.reason == "join"
    assert len(found.plan.members) == 3
    assert again(plan, boards, replace(now, resident=None)).reason == "stay"


def test_an_idle_board_on_a_slow_link_changes_nothing() -> None:
    boards = [o._replace(link=GBIT) for o in offers((2000, 2.0), (2000, 2.0), (2000, 2.0))]
    plan = plan_for(boards)
    assert len(plan.members) == 3
    slow = boards[0]._replace(name=AgentName("wifi"), link=Link(hop_s=2e-3, bytes_per_s=5e6))
    now = Conditions(900.0, 100, resident=resident([*boards, slow]), joined=frozenset({slow.name}))
    alone = replan(plan, TINYLLAMA, boards, REQUEST, GBIT, Conditions(900.0, 100))
    found = again(plan, [*boards, slow], now)
    assert found.reason == "stay"
    assert found.after == alone.after
    # Where it holds something, its link is what exchanges wait for.
    with_it = make_plan(MODEL, TINYLLAMA, [boards[0], slow], REQUEST, GBIT)
    assert [m.agent for m in with_it.plan.members] == ["pi-0"]
    four = make_plan(MODEL, TINYLLAMA, [*boards, slow], replace(REQUEST, place="spread"), GBIT)
    assert four.time.exchange_s > 5 * alone.after.exchange_s


def test_survivors_that_cannot_hold_the_model_say_what_is_missing() -> None:
    boards = offers((700, 4), (700, 4))
    with pytest.raises(ResourceError, match=r"the model does not fit: .* are missing"):
        replan(plan_for(boards), TINYLLAMA, boards[:1], REQUEST, GBIT, Conditions(60.0))
    everyone = frozenset(o.name for o in boards)
    with pytest.raises(ResourceError, match="no agent is left"):
        again(plan_for(boards), boards, Conditions(60.0, barred=everyone))


@pytest.mark.slow
def test_the_verb_measures_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["simulate", "replan", "--agents", "9", "--repeats", "1", "-o", "json"]
    assert cli.main(words) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [r["reason"] for r in rows[:4]] == ["stay", "faster", "faster", "lost"]
    assert cli.main(["simulate", "replan", "--agents", "1"]) == 2
    assert "error: --agents 1" in capsys.readouterr().err


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 999), n_layers=st.integers(1, 9), n=st.integers(1, 6))
def test_dealing_anew_keeps_totals_and_stays_near(seed: int, n_layers: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    each = int(rng.integers(1, 8))
    cuts = np.sort(rng.integers(0, n_layers * each + 1, n - 1))
    totals = np.diff(np.r_[0, cuts, n_layers * each]).tolist()
    wanted = _deal(totals, n_layers)
    present = wanted[rng.permutation(n_layers)]
    dealt = redealt(wanted, present)
    assert (dealt.sum(0) == wanted.sum(0)).all()
    assert (dealt.sum(1) == each).all()
    assert (np.ptp(dealt, axis=0) <= 1).all()
    assert np.abs(dealt - present).sum() <= max(np.abs(wanted - present).sum(), 2 * n * n_layers)
