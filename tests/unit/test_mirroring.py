"""Who mirrors whom, and where the rows of a plan are found after any loss."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.ids import AgentName, Epoch, ModelId
from coordinator.migration_parts import holders_of
from coordinator.mirroring import (
    Mirroring,
    Prospect,
    choose_mirrors,
    groups_of,
    mirror_parts,
    restore_parts,
)
from coordinator.plan import Plan
from coordinator.random_plan import random_plan
from kernels.layout import Geometry, WeightFormat

GEOMETRY = Geometry(64, 5, 8, 4, 8, 172, 512, WeightFormat.F32, 1e-5)
NAMES = [AgentName(f"pi-{i}") for i in range(5)]
A, B, C, D, E = NAMES
MIRROR = Epoch(9)

sizes = st.dictionaries(st.sampled_from(NAMES), st.integers(1, 100))


def drawn(seed: int, names: list[AgentName]) -> Plan:
    return random_plan(random.Random(seed), ModelId("m"), GEOMETRY, names, max_stages=3)


def mirrored(plan: Plan, room: dict[AgentName, int]) -> Mirroring:
    return choose_mirrors({name: len(groups) for name, groups in groups_of(plan).items()}, room)


@given(
    pools=sizes,
    more=st.dictionaries(st.sampled_from(NAMES), st.integers(-20, 200)),
    refused=st.sets(st.sampled_from(NAMES)),
)
def test_nobody_mirrors_itself_or_more_than_it_has_room_for(
    pools: dict[AgentName, int], more: dict[AgentName, int], refused: set[AgentName]
) -> None:
    room = dict.fromkeys(pools, 0) | more
    found = choose_mirrors(pools, room, refused)
    assert found.holder_of.keys() | set(found.without) == pools.keys()
    assert not found.holder_of.keys() & set(found.without)
    taken = dict.fromkeys(room, 0)
    for x, holder in found.holder_of.items():
        assert x != holder
        assert holder not in refused
        taken[holder] += pools[x]
    assert all(n <= max(room[name], 0) for name, n in taken.items())
    # Whoever is left out would have fitted nowhere.
    for x in found.without:
        others = [m for m in room if m != x and m not in refused]
        assert all(taken[m] + pools[x] > room[m] for m in others)


def test_among_equals_each_mirrors_one() -> None:
    found = choose_mirrors(dict.fromkeys(NAMES, 10), dict.fromkeys(NAMES, 100))
    assert found.holder_of == {A: B, B: C, C: D, D: E, E: A}
    assert str(found).startswith("pi-0 on pi-1, pi-1 on pi-2")


def test_who_has_room_mirrors_for_the_others_and_nobody_for_it() -> None:
    found = choose_mirrors({A: 10, B: 10, C: 20}, {A: 5, B: 5, C: 25})
    assert found == Mirroring({A: C, B: C}, (C,))
    assert choose_mirrors({A: 10}, {A: 100}) == Mirroring({}, (A,))


@settings(max_examples=80, deadline=None)
@given(
    a=st.integers(0, 1000), b=st.integers(0, 1000), n=st.integers(2, 5),
    lost=st.sets(st.sampled_from(NAMES)), room=st.sampled_from([0, 15, 1000]),
)  # fmt: skip
def test_after_a_loss_every_group_comes_from_somebody_who_has_it(
    a: int, b: int, n: int, lost: set[AgentName], room: int
) -> None:
    plan = drawn(a, NAMES[:n])
    members = {member.agent for member in plan.members}
    left = members - lost
    found = mirrored(plan, dict.fromkeys(members, room))
    new = drawn(b, [name for name in NAMES if name not in lost] or [E])
    parts = restore_parts(plan, left, found, MIRROR, new)
    # The rows that each agent has, by the epoch of the pool.
    has = {(name, Epoch(0)): set(groups) for name, groups in groups_of(plan).items()}
    for share in mirror_parts(plan, found.holder_of).shares:
        has.setdefault((AgentName(share.target), MIRROR), set()).update(share.groups)
    whole = all(
        x in left or found.holder_of.get(x) in left for x in groups_of(plan)
    )  # fmt: skip
    assert (parts is not None) == whole
    if parts is None:
        return
    assert parts.old == left
    assert parts.new == {member.agent for member in new.members}
    assert not parts.kept
    for share in parts.shares:
        assert share.source in left
        assert set(share.groups) <= has[AgentName(share.source), Epoch(share.of_epoch)]
    got = {g: share.target for share in parts.shares for g in share.groups}
    assert got == {group: at.agent for group, at in holders_of(new).items()}
    assert [share.number for share in parts.shares] == list(range(len(parts.shares)))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(2, 5))
def test_a_mirror_has_all_of_whom_it_mirrors(seed: int, n: int) -> None:
    plan = drawn(seed, NAMES[:n])
    groups, names = groups_of(plan), [member.agent for member in plan.members]
    found = mirrored(plan, dict.fromkeys(names, 1000))
    parts = mirror_parts(plan, found.holder_of)
    assert {s.source: (s.target, s.groups) for s in parts.shares} == {
        x: (found.holder_of[x], groups[x]) for x in found.holder_of
    }
    assert parts.targets == set(found.holder_of.values())
    assert not any(share.local for share in parts.shares)


def test_the_faster_way_is_taken() -> None:
    long = Prospect.of(1000, 990, 1 << 20, row_s=0.01, bytes_per_s=1e8)
    assert long.copying_pays
    assert (long.tail_s, long.prefill_s) == pytest.approx((0.1, 10.0))
    # A short text, a slow link, a mirror that has next to nothing.
    assert not Prospect.of(2, 2, 1000, row_s=0.01, bytes_per_s=1e8).copying_pays
    assert not Prospect.of(1000, 990, 1 << 24, row_s=0.01, bytes_per_s=1e6).copying_pays
    assert not Prospect.of(1000, 2, 1000, row_s=0.01, bytes_per_s=1e8).copying_pays
