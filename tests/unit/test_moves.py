"""From one placement to another: what moves, how much of it, and how long that takes."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.ids import AgentName, ModelId
from agent.share import indices
from coordinator.plan import check_plan
from coordinator.planner.cost import Counts, Link, PlanRequest, atom_sizes, counts_of
from coordinator.planner.holdings import NOBODY, Holdings, Resident, holdings_of, plan_of, shifted
from coordinator.planner.moves import (
    DEFAULT_MOVE_COSTS,
    Network,
    Traffic,
    guess_traffic,
    list_moves,
    move_price,
    traffic,
)
from coordinator.random_plan import random_plan
from kernels.layout import Geometry, WeightFormat

GEOMETRY = Geometry(64, 5, 8, 4, 8, 172, 512, WeightFormat.F32, 1e-5)
NAMES = [AgentName(f"pi-{i}") for i in range(4)]
SIZES = atom_sizes(GEOMETRY, PlanRequest(256, 256))
LINK = Link(hop_s=1e-3, bytes_per_s=1e6)
TOKEN_BYTES = 32


def drawn(seed: int, max_stages: int = 3) -> Holdings:
    plan = random_plan(random.Random(seed), ModelId("m"), GEOMETRY, NAMES, max_stages=max_stages)
    return holdings_of(plan, GEOMETRY, NAMES)


def some(seed: int) -> Resident:
    rng = np.random.default_rng(seed)
    g = GEOMETRY
    shapes = (g.n_layers, g.n_kv_heads), (g.n_layers, g.n_column_atoms), (g.n_vocab_atoms,)
    return Resident(*(rng.random((len(NAMES), *shape)) < 0.5 for shape in shapes))


def same(a: Holdings, b: Holdings) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_plan_and_its_holdings_tell_the_same(seed: int) -> None:
    plan = random_plan(random.Random(seed), ModelId("m"), GEOMETRY, NAMES, max_stages=3)
    holdings = holdings_of(plan, GEOMETRY, NAMES)
    again = plan_of(holdings, NAMES, plan)
    check_plan(again, GEOMETRY)
    assert same(holdings_of(again, GEOMETRY, NAMES), holdings)
    counts = counts_of(again, GEOMETRY)
    users = [NAMES.index(m.agent) for m in again.members]
    assert np.array_equal(holdings.counts(len(NAMES)).groups[:, users], counts.groups)


@settings(max_examples=60, deadline=None)
@given(a=st.integers(0, 10_000), b=st.integers(0, 10_000))
def test_shifting_reaches_the_counts_with_the_fewest_moves(a: int, b: int) -> None:
    before, wanted, resident = drawn(a), drawn(b).counts(4), some(a + b)
    after = shifted(before, wanted, resident)
    reached, held = after.counts(4), before.counts(4)
    for got, want, had, old, new in zip(
        reached[:3], wanted[:3], held[:3], before, after, strict=True
    ):
        assert np.array_equal(got, want)
        assert (old != new).sum() == np.maximum(want - had, 0).sum()
        assert NOBODY not in new


def test_takers_get_what_they_have_resident() -> None:
    before = Holdings(np.zeros((1, 4), np.int64), np.zeros((1, 6), np.int64), np.zeros(4, np.int64))
    resident = Resident(
        np.zeros((3, 1, 4), np.bool_), np.zeros((3, 1, 6), np.bool_), np.zeros((3, 4), np.bool_)
    )
    resident.columns[1, 0, 0] = resident.columns[2, 0, 2] = True
    nothing = np.array([[4, 0, 0]])
    wanted = Counts(nothing, np.array([[4, 1, 1]]), np.array([4, 0, 0]), ((0, 1, 0, 3),))
    after = shifted(before, wanted, resident)
    assert after.columns.tolist() == [[1, 0, 2, 0, 0, 0]]


def cost_of(before: Holdings, after: Holdings, resident: Resident, n_tokens: int) -> Traffic:
    return traffic(before, after, resident, SIZES, TOKEN_BYTES, n_tokens)


@settings(max_examples=60, deadline=None)
@given(a=st.integers(0, 10_000), b=st.integers(0, 10_000), n_tokens=st.integers(0, 256))
def test_moves_add_up_to_the_difference(a: int, b: int, n_tokens: int) -> None:
    before, resident = drawn(a), some(b)
    after = shifted(before, drawn(b).counts(4), resident)
    moves = list_moves(before, after, NAMES, resident, SIZES, n_tokens * TOKEN_BYTES)
    replayed = Holdings(before.groups.copy(), before.columns.copy(), before.vocab.copy())
    for move in moves:
        target = NAMES.index(move.target)
        rows = {"group": replayed.groups, "column": replayed.columns}.get(move.kind)
        row = replayed.vocab if rows is None else rows[move.layer]
        atoms = indices(move.atoms)
        assert {NAMES[j] for j in row[atoms]} == {move.source}
        row[atoms] = target
        assert (move.kv_bytes == 0) == (move.kind != "group" or n_tokens == 0)
    assert same(replayed, after)
    total = cost_of(before, after, resident, n_tokens)
    assert sum(m.weights_bytes + m.kv_bytes for m in moves) == total.total_bytes
    assert total.out_of.sum() == total.total_bytes
    guess = guess_traffic(
        before.counts(4), after.counts(4), spare(resident, before), SIZES, TOKEN_BYTES, n_tokens
    )
    assert guess.n_atoms == total.n_atoms
    assert guess.total_bytes <= total.total_bytes * (1 + 1e-9)
    price = move_price(total, Network.uniform(LINK, 4), DEFAULT_MOVE_COSTS)
    nothing_moves = same(before, after)
    assert (total.n_atoms == 0) == nothing_moves
    assert (price.stall_s == 0) == nothing_moves
    assert (price.copy_s == 0) == (total.total_bytes == 0)


def spare(resident: Resident, holdings: Holdings) -> Counts:
    own = Resident.just(holdings, 4)
    groups, columns, vocab = (r & ~o for r, o in zip(resident, own, strict=True))
    n_layers = GEOMETRY.n_layers
    return Counts(groups.sum(2).T, columns.sum(2).T, vocab.sum(1), ((0, n_layers, 0, len(NAMES)),))


def test_resident_weights_cost_nothing_and_kv_does() -> None:
    before, wanted = drawn(1, 1), drawn(2, 1).counts(4)
    everything = Resident.everything(4, GEOMETRY)
    after = shifted(before, wanted, everything)
    moved_groups = int((before.groups != after.groups).sum())
    assert moved_groups
    assert cost_of(before, after, everything, 0).total_bytes == 0
    assert cost_of(before, after, everything, 10).total_bytes == 10 * TOKEN_BYTES * moved_groups
    own = Resident.just(before, 4)
    assert cost_of(before, after, own, 0).total_bytes > 1000 * moved_groups


def test_copies_share_links() -> None:
    into, out_of = np.array([0.0, 2e6, 1e6]), np.array([3e6, 0.0, 0.0])
    network = Network.uniform(LINK, 3)
    wanted = Traffic(into, out_of, 0.0, 0.0, 3)
    # The giver's link is the busiest: 3 MB at 0.8 of 1 MB/s.
    assert move_price(wanted, network, DEFAULT_MOVE_COSTS).copy_s == pytest.approx(3 / 0.8)
    slow = network._replace(agents_bytes_per_s=np.array([1e6, 1e6, 1e5]))
    assert move_price(wanted, slow, DEFAULT_MOVE_COSTS).copy_s == pytest.approx(10 / 0.8)
    relayed = network._replace(coordinator_bytes_per_s=5e5, relayed=True)
    assert move_price(wanted, relayed, DEFAULT_MOVE_COSTS).copy_s == pytest.approx(6 / 0.8)
    lost = Traffic(into, np.zeros(3), 3e6, 0.0, 3)
    thin = network._replace(coordinator_bytes_per_s=1e5)
    assert move_price(lost, thin, DEFAULT_MOVE_COSTS).copy_s == pytest.approx(30 / 0.8)
    assert move_price(wanted, network, DEFAULT_MOVE_COSTS).stall_s == pytest.approx(4e-3 + 5e-3)


def test_atoms_of_a_lost_agent_come_from_the_coordinator() -> None:
    plan = random_plan(random.Random(3), ModelId("m"), GEOMETRY, NAMES, max_stages=1)
    gone = plan.members[0].agent
    left = [n for n in NAMES if n != gone]
    before = holdings_of(plan, GEOMETRY, left)
    after = Holdings(*(np.where(part == NOBODY, 0, part) for part in before))
    resident = Resident.just(before, 3)
    moves = list_moves(before, after, left, resident, SIZES, 100)
    assert moves
    assert all(m.source is None and m.kv_bytes == 0 and m.weights_bytes for m in moves)
    total = cost_of(before, after, resident, 50)
    assert total.coordinator == total.total_bytes
    assert total.out_of.sum() == 0
