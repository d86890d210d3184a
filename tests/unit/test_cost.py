"""The cost model against sums written out by hand."""

import random

import numpy as np
import pytest

from agent.ids import AgentName, ModelId
from agent.kv import KvPool, KvShape
from agent.share import AtomRange, LayerShare
from coordinator.plan import Member, Plan, Stage, member_weights_bytes
from coordinator.planner.cost import (
    Costs,
    Link,
    Offer,
    PlanRequest,
    atom_sizes,
    counts_of,
    rates,
    token_time,
)
from coordinator.random_plan import random_plan
from kernels.layout import Geometry, WeightFormat
from kernels.paging import PAGE_DTYPES

G = Geometry(64, 2, 4, 2, 16, 96, 300, WeightFormat.Q8, 1e-5, qkv_bias=True)
MODEL = ModelId("m")
LINK = Link(hop_s=1e-3, bytes_per_s=1e6)
COSTS = Costs(call_s=1e-5, peer_s=1e-4, sample_s=1e-2)
REQUEST = PlanRequest(context_tokens=200, kv_tokens=200, n_contexts=1, typical_tokens=100)


def member(name: str, groups: int, columns: int, vocab: int, n_layers: int = 2) -> Member:
    def first(count: int) -> tuple[AtomRange, ...]:
        return (AtomRange(0, count),) if count else ()

    layers = tuple(LayerShare(i, first(groups), first(columns)) for i in range(n_layers))
    return Member(AgentName(name), layers, first(vocab))


def test_sizes() -> None:
    sizes = atom_sizes(G, REQUEST)
    assert sizes.group == G.head_group_bytes
    # 200 tokens take 4 pages of 64: K and V of 16 numbers of 2 bytes.
    assert sizes.group_pool == 4 * 64 * 2 * 16 * 2
    assert sizes.group_read == G.head_group_bytes + 100 * 2 * 16 * 2
    assert sizes.payload == 64 * 2
    small = atom_sizes(G, PlanRequest(200, 200, kv="int8", n_contexts=1, typical_tokens=100))
    # A byte a number, and a scale of 4 bytes for each key and each value.
    assert small.group_pool == 4 * 64 * 2 * (16 + 4)
    assert small.group_read == G.head_group_bytes + 100 * 2 * (16 + 4)
    exact = atom_sizes(G, PlanRequest(200, 200, wire="f32", kv="f32", n_contexts=1))
    assert exact.group_pool == 2 * sizes.group_pool
    assert exact.payload == 2 * sizes.payload


def test_the_pool_is_the_one_the_agent_allocates() -> None:
    for context, kv, contexts in ((64, 64, 1), (200, 1000, 8), (2048, 2048, 4)):
        for name, dtype in PAGE_DTYPES.items():
            request = PlanRequest(context, kv, kv=name, n_contexts=contexts)  # type: ignore[arg-type]
            shape = KvShape(3, G.head_dim, dtype, context, kv, contexts)
            pool_bytes = KvPool(shape).pages.nbytes
            assert 3 * atom_sizes(G, request).group_pool == shape.pool_bytes == pool_bytes


def test_one_member_takes_one_call_and_one_round_trip() -> None:
    plan = Plan(MODEL, (Stage(0, 2, (member("a", 2, 3, 3),)),))
    sizes = atom_sizes(G, REQUEST)
    found = token_time(counts_of(plan, G), sizes, np.array([1e9]), LINK, COSTS)
    n_bytes = 2 * (2 * sizes.group_read + 3 * sizes.column) + 3 * sizes.vocab
    assert found.kernels_s == pytest.approx(1e-5 + n_bytes / 1e9)
    assert found.exchange_s == pytest.approx(1e-2 + 2e-3 + 2 * 128 / 1e6 + 1e-4)
    assert found.total_s == found.kernels_s + found.exchange_s


def test_two_members_meet_after_every_phase() -> None:
    plan = Plan(MODEL, (Stage(0, 2, (member("a", 2, 2, 1), member("b", 0, 1, 2))),))
    sizes = atom_sizes(G, REQUEST)
    found = token_time(counts_of(plan, G), sizes, np.array([2e9, 1e9]), LINK, COSTS)
    mlp_s = max(2 * sizes.column / 2e9, sizes.column / 1e9)
    vocab_s = max(sizes.vocab / 2e9, 2 * sizes.vocab / 1e9)
    kernels_s = 2 * (2 * sizes.group_read / 2e9 + mlp_s) + vocab_s + 5e-5
    assert found.kernels_s == pytest.approx(kernels_s)
    alone, both = 2e-3 + 2 * 128e-6 + 1e-4, 2e-3 + 3 * 128e-6 + 2e-4
    assert found.exchange_s == pytest.approx(1e-2 + 2 * (alone + both) + both)


def test_stages_of_one_run_their_layers_in_one_call() -> None:
    a, b = member("a", 2, 3, 0, 1), member("b", 2, 3, 3, 1)
    b = Member(b.agent, (LayerShare(1, b.layers[0].head_groups, b.layers[0].columns),), b.vocab)
    sizes = atom_sizes(G, REQUEST)

    def time_of(first: Member, second: Member) -> tuple[float, float]:
        plan = Plan(MODEL, (Stage(0, 1, (first,)), Stage(1, 1, (second,))))
        found = token_time(counts_of(plan, G), sizes, np.array([1e9, 1e9]), LINK, COSTS)
        return found.kernels_s, found.exchange_s

    trip = 2e-3 + 2 * 128e-6 + 1e-4
    n_bytes = 2 * (2 * sizes.group_read + 3 * sizes.column) + 3 * sizes.vocab
    # The last stage goes on with the vocabulary by itself, if it holds all of it.
    assert time_of(a, b) == pytest.approx((2e-5 + n_bytes / 1e9, 1e-2 + 2 * trip))
    early = Member(a.agent, a.layers, b.vocab), Member(b.agent, b.layers)
    assert time_of(*early) == pytest.approx((3e-5 + n_bytes / 1e9, 1e-2 + 3 * trip))


def test_memory_agrees_with_the_plan() -> None:
    names = [AgentName(f"a{i}") for i in range(4)]
    sizes = atom_sizes(G, REQUEST)
    for seed in range(20):
        plan = random_plan(random.Random(seed), MODEL, G, names)
        wanted = [member_weights_bytes(m, s, G) for s in plan.stages for m in s.members]
        counts = counts_of(plan, G)
        assert counts.weights_bytes(sizes).tolist() == wanted
        assert counts.pool_bytes(sizes).sum() == 4 * sizes.group_pool


def test_rates_of_unmeasured_agents() -> None:
    a, b, c = (Offer(AgentName(n), 1, r) for n, r in (("a", 3e9), ("b", 0.0), ("c", 2e9)))
    assert rates([a, b, c]).tolist() == [3e9, 2e9, 2e9]
    assert rates([b]).tolist() == [1e9]
