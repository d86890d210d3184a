"""The hindsight optimum of a run, against every sequence of placements of short ones."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.planner.blocks import Blocks, delay_s, fits, head_moves_s, move_s
from kernels.errors import UsageError
from tools.simulation.paper_hindsight import head_counts, head_transport, hindsight
from tools.simulation.paper_model import Layer, World, draw_world
from tools.simulation.paper_runs import BASELINES, headwise_policy, simulate


def cost_of(placements: tuple[Blocks, ...], world: World) -> float:
    """Seconds of a run with these placements, moves included."""
    costs = [world.observe(i).costs for i in range(len(placements))]
    moves = sum(
        move_s(a, b, c) for (a, b), c in zip(itertools.pairwise(placements), costs[1:], strict=True)
    )
    return moves + sum(delay_s(b, c) for b, c in zip(placements, costs, strict=True))


def every_sequence_s(world: World) -> float:
    """The least seconds over all sequences of three placements of two heads on two devices."""
    places = [
        Blocks((a, 2 - a), p, f) for a, p, f in itertools.product(range(3), range(2), range(2))
    ]
    costs = [world.observe(i).costs for i in range(3)]
    delays = [np.array([delay_s(b, c) if fits(b, c) else np.inf for b in places]) for c in costs]
    moves = [np.array([[move_s(a, b, c) for b in places] for a in places]) for c in costs]
    two = delays[0][:, None] + moves[1] + delays[1][None, :]
    return float((two[:, :, None] + (moves[2] + delays[2])[None, :, :]).min())


@pytest.mark.parametrize("memory_scale", [1.0, 0.008])
def test_hindsight_equals_every_sequence(memory_scale: float) -> None:
    """12^3 sequences each; strong loads and long texts make moves worth it."""
    layer = Layer(n_heads=2, width=512, prompt_tokens=1500)
    moved = binding = 0
    for seed in range(12):
        drawn = draw_world(2, seed, 3, layer, memory_scale=memory_scale)
        world = replace(drawn, load=3 * drawn.load)
        best_s, found = every_sequence_s(world), hindsight(world)
        if best_s == np.inf:
            assert found is None
            continue
        binding += best_s > every_sequence_s(replace(world, memory_bytes=np.full(2, 1e12)))
        assert found is not None
        assert found.total_s == pytest.approx(best_s, rel=1e-9)
        assert cost_of(found.placements, world) == pytest.approx(best_s, rel=1e-9)
        moved += len(set(found.placements)) > 1
    assert moved >= 2
    assert (binding >= 2) is (memory_scale < 1)


def test_transport_between_all_head_counts_equals_the_single_ones() -> None:
    counts = head_counts(5, 4)
    assert len(counts) == 56
    assert (counts.sum(axis=1) == 5).all()
    byte_s = draw_world(4, seed=3).observe(0).costs.byte_s
    transport = head_transport(counts, byte_s)
    for i, k in itertools.product(range(0, 56, 5), range(56)):
        assert transport[i, k] == pytest.approx(head_moves_s(counts[i], counts[k], byte_s))


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 999), prompt=st.integers(16, 600))
def test_nobody_beats_hindsight(seed: int, prompt: int) -> None:
    world = draw_world(3, seed, 8, Layer(n_heads=4, width=512, prompt_tokens=prompt))
    best = hindsight(world)
    assert best is not None
    for policy in [*BASELINES.values(), headwise_policy()]:
        run = simulate(world, policy)
        assert run.infeasible_at is not None or run.total_s >= best.total_s * (1 - 1e-9)


def test_too_many_states_are_refused() -> None:
    with pytest.raises(UsageError, match="placements"):
        hindsight(draw_world(5, seed=1, layer=Layer(n_heads=32)))


def test_memory_that_nothing_fits_has_no_hindsight() -> None:
    world = draw_world(2, seed=1, n_intervals=2, layer=Layer(2, 512), memory_scale=1e-5)
    assert np.isfinite(world.memory_bytes).all()
    assert hindsight(world) is None
