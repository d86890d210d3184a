"""The exact optimum of a frozen interval: against brute force, and against a MILP (HiGHS)."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.planner.blocks import (
    BlockCosts,
    Blocks,
    delay_s,
    fits,
    frozen_optimum,
    head_moves_s,
    move_s,
)
from tools.simulation.paper_milp import milp_delay_s
from tools.simulation.paper_model import Layer, draw_world


def random_costs(seed: int, n_devices: int, n_heads: int, tight: bool) -> BlockCosts:
    """Times within a factor of ten; tight: memory for 1.0 to 1.6 times what has to be held."""
    random = np.random.default_rng(seed)
    links = random.uniform(0.1, 1.0, (n_devices, n_devices)) * (1 - np.eye(n_devices))
    sizes = random.integers(1, 9, 3)
    need = n_heads * sizes[0] + sizes[1] + sizes[2]
    parts = random.dirichlet(np.full(n_devices, 2.0))
    room = parts * need * random.uniform(1.0, 1.6) if tight else np.full(n_devices, 2.0 * need)
    speed = random.uniform(1, 10, n_devices)
    return BlockCosts(
        n_heads,
        1 / speed,
        random.uniform(1, 5) / speed,
        random.uniform(1, 30) / speed,
        links * random.uniform(0, 2),
        links * random.uniform(0, 9),
        float(sizes[0]),
        float(sizes[1]),
        float(sizes[2]),
        np.floor(room),
        links,
    )


def every_placement(n_heads: int, n_devices: int) -> list[Blocks]:
    """All placements of the blocks, memory not considered."""
    shares = [
        c for c in itertools.product(range(n_heads + 1), repeat=n_devices) if sum(c) == n_heads
    ]
    return [Blocks(c, p, f) for c in shares for p in range(n_devices) for f in range(n_devices)]


@pytest.mark.parametrize("tight", [False, True])
def test_oracle_equals_brute_force(tight: bool) -> None:
    binding = feasible = 0
    for seed in range(30):
        n_devices, n_heads = 2 + seed % 3, 2 + seed % 5
        costs = random_costs(seed, n_devices, n_heads, tight)
        allowed = [b for b in every_placement(n_heads, n_devices) if fits(b, costs)]
        found = frozen_optimum(costs)
        if not allowed:
            assert found is None
            continue
        assert found in allowed
        feasible += 1
        best_s = min(delay_s(b, costs) for b in allowed)
        assert delay_s(found, costs) == pytest.approx(best_s, rel=1e-12)
        everything = every_placement(n_heads, n_devices)
        binding += best_s > 1.000001 * min(delay_s(b, costs) for b in everything)
    assert feasible >= 15
    assert (binding >= 10) is tight


@pytest.mark.slow
@pytest.mark.parametrize("tight", [False, True])
def test_oracle_equals_the_milp(tight: bool) -> None:
    pytest.importorskip("scipy.optimize", reason="scipy (group simulate) is not installed")
    feasible = 0
    for seed in range(100, 112):
        costs = random_costs(seed, 2 + seed % 4, 4 + seed % 9, tight)
        found, milp_s = frozen_optimum(costs), milp_delay_s(costs)
        assert (found is None) is (milp_s is None)
        if found is not None:
            feasible += 1
            assert delay_s(found, costs) == pytest.approx(milp_s, rel=1e-6)
    assert feasible >= 6


def test_oracle_equals_the_milp_in_the_papers_setting() -> None:
    pytest.importorskip("scipy.optimize", reason="scipy (group simulate) is not installed")
    for seed, memory_scale in ((1, 1.0), (2, 0.03), (3, 0.02)):
        costs = draw_world(4, seed, layer=Layer(n_heads=16), memory_scale=memory_scale)
        found, milp_s = frozen_optimum(costs.observe(0).costs), milp_delay_s(costs.observe(0).costs)
        assert (found is None) is (milp_s is None)
        if found is not None:
            assert delay_s(found, costs.observe(0).costs) == pytest.approx(milp_s, rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999),
    n_devices=st.integers(1, 8),
    n_heads=st.integers(1, 40),
    tight=st.booleans(),
)
def test_oracle_places_every_block_once_and_keeps_to_memory(
    seed: int, n_devices: int, n_heads: int, tight: bool
) -> None:
    costs = random_costs(seed, n_devices, n_heads, tight)
    found = frozen_optimum(costs)
    if found is None:
        assert tight
        return
    assert sum(found.heads) == n_heads
    assert min(found.heads) >= 0
    assert fits(found, costs)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n_devices=st.integers(2, 6), seed=st.integers(0, 999))
def test_moves_cost_as_little_as_possible(data: st.DataObject, n_devices: int, seed: int) -> None:
    devices = st.lists(st.integers(0, n_devices - 1), min_size=5, max_size=5)
    old, new = data.draw(devices), data.draw(devices)
    byte_s = random_costs(seed, n_devices, 5, tight=False).byte_s
    # A head that can stay stays, as D_mig of a relay may be less than that of the direct way.
    counts = [tuple(x.count(j) for j in range(n_devices)) for x in (old, new)]
    leaving = [j for j in range(n_devices) for _ in range(counts[0][j] - counts[1][j])]
    coming = [j for j in range(n_devices) for _ in range(counts[1][j] - counts[0][j])]
    best = min(
        sum(byte_s[a, b] for a, b in zip(leaving, order, strict=True))
        for order in itertools.permutations(coming)
    )
    assert head_moves_s(counts[0], counts[1], byte_s) == pytest.approx(best)


def test_moving_everything_costs_all_bytes() -> None:
    world = draw_world(2, seed=5, layer=Layer(n_heads=4, width=512))
    costs = world.observe(0).costs
    moved_bytes = 4 * costs.head_bytes + costs.proj_bytes + costs.ffn_bytes
    expected_s = moved_bytes * 8 / world.bits_per_s[0, 1]
    assert move_s(Blocks((4, 0), 0, 0), Blocks((0, 4), 1, 1), costs) == pytest.approx(expected_s)
    assert move_s(Blocks((4, 0), 0, 0), Blocks((4, 0), 0, 0), costs) == 0.0
