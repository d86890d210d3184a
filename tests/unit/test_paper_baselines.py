"""Baselines on cases that can be checked by hand, and their common bounds on random ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.planner.blocks import BlockCosts, Blocks, delay_s, fits, frozen_optimum
from tools.simulation.algorithm1 import algorithm1
from tools.simulation.listed import greedy, round_robin, static
from tools.simulation.paper_model import Layer, Observation, draw_world
from tools.simulation.paper_runs import BASELINES
from tools.simulation.sliced import equal_slices, galaxy
from tools.simulation.staged import edgeshard, layer_based, mdi_table


def observation(
    flop_per_s: list[float],
    room_bytes: list[float],
    n_heads: int = 4,
    sizes: tuple[float, float, float] = (1.0, 2.0, 8.0),
    byte_s: float = 0.0,
) -> Observation:
    """Heads of 0.1, proj of 0.2 and ffn of 0.8 FLOP, outputs of 1 byte; links all alike."""
    rate = np.array(flop_per_s)
    links = byte_s * (1 - np.eye(len(rate)))
    costs = BlockCosts(
        n_heads, 0.1 / rate, 0.2 / rate, 0.8 / rate, links, links, *sizes,
        np.array(room_bytes), links,
    )  # fmt: skip
    return Observation(costs, rate, 0.1, 0.2, 0.8, 10)


def test_greedy_takes_the_first_that_fits() -> None:
    seen = observation([1.0, 9.0, 9.0], [100.0, 100.0, 100.0])
    assert greedy(None, seen) == Blocks((4, 0, 0), 0, 0)
    # Three heads, then proj no more, then ffn nowhere but on the last.
    seen = observation([1.0, 9.0, 9.0], [3.0, 3.0, 10.0])
    assert greedy(None, seen) == Blocks((3, 1, 0), 1, 2)
    assert greedy(None, observation([1.0], [3.0])) is None


def test_round_robin_cycles() -> None:
    seen = observation([1.0, 2.0, 3.0], [100.0] * 3)
    assert round_robin(None, seen) == Blocks((2, 1, 1), 1, 2)


def test_static_keeps_its_first() -> None:
    first = static(None, observation([1.0, 2.0], [100.0] * 2))
    assert first is not None
    assert static(first, observation([9.0, 0.1], [100.0] * 2)) == first


def test_algorithm1_takes_the_fastest_device_for_everything() -> None:
    """Scores against whole capacities do not change as a device fills: all go to one."""
    seen = observation([1.0, 2.0, 3.0], [100.0] * 3)
    assert algorithm1(None, seen) == Blocks((0, 0, 4), 2, 2)
    # Against what is left, too, while the fastest stays so: 2.5 FLOP/s after ffn and proj.
    seen = observation([1.0, 2.0, 3.5], [100.0] * 3)
    assert algorithm1(None, seen, residual=True) == Blocks((0, 0, 4), 2, 2)
    # Here it does not: ffn leaves 1.3 of 2.1 FLOP/s, and device 1 has more for all others.
    seen = observation([1.0, 2.0, 2.1], [100.0] * 3)
    assert algorithm1(None, seen, residual=True) == Blocks((0, 4, 0), 1, 2)


def test_algorithm1_scores_memory_too() -> None:
    """A device is fast and its memory small: m/M is the larger ratio."""
    seen = observation([1.0, 9.0], [100.0, 8.5])
    # ffn: 8 of 8.5 bytes (0.94) against 0.8 FLOP of 1 (0.8); heads: 0.118 against 0.1.
    assert algorithm1(None, seen) == Blocks((4, 0), 0, 0)
    # Seen by compute alone device 1 would have won.
    assert algorithm1(None, observation([1.0, 9.0], [100.0, 100.0])) == Blocks((0, 4), 1, 1)


def test_algorithm1_moves_only_if_it_pays_within_the_interval() -> None:
    before = Blocks((4, 0), 0, 0)
    # Old 1.4 s, new 0.7 s; 14 bytes have to move.
    dear = observation([1.0, 2.0], [100.0] * 2, byte_s=0.7 / 14 * 1.01)
    cheap = observation([1.0, 2.0], [100.0] * 2, byte_s=0.7 / 14 * 0.99)
    assert algorithm1(before, dear) == before
    assert algorithm1(before, cheap) == Blocks((0, 4), 1, 1)


def test_algorithm1_relieves_an_overfull_device() -> None:
    """2 bytes too many on device 0: the largest block there, ffn, leaves; the rest stays."""
    seen = observation([1.0, 0.5], [12.0, 9.0])
    relieved = algorithm1(Blocks((4, 0), 0, 0), seen)
    assert relieved == Blocks((4, 0), 0, 1)
    assert algorithm1(Blocks((4, 0), 0, 0), observation([1.0, 0.5], [12.0, 1.0])) is None


def test_algorithm1_backtracks() -> None:
    """Proj on its best device, beside ffn, would leave the second head nowhere to go."""
    seen = observation([1.0, 0.5], [11.0, 5.0], n_heads=2, sizes=(3.0, 2.0, 8.0))
    assert algorithm1(None, seen) == Blocks((1, 1), 1, 0)
    # With room for both heads on device 1, proj stays where it scores best.
    seen = observation([1.0, 0.5], [11.0, 6.0], n_heads=2, sizes=(3.0, 2.0, 8.0))
    assert algorithm1(None, seen) == Blocks((0, 2), 0, 0)


def test_edgeshard_keeps_heads_together_and_leaves_devices_out() -> None:
    seen = observation([1.0, 3.0, 2.0], [100.0, 6.0, 100.0])
    # ffn (8) and everything (14) do not fit on the fastest; heads and proj (6) do.
    assert edgeshard(None, seen) == Blocks((0, 4, 0), 1, 2)
    assert edgeshard(Blocks((4, 0, 0), 0, 0), seen) == Blocks((4, 0, 0), 0, 0)


def test_layer_based_moves_the_layer_whole_if_it_pays_at_once() -> None:
    before = Blocks((4, 0), 0, 0)
    dear = observation([1.0, 2.0], [100.0] * 2, byte_s=0.06)
    cheap = observation([1.0, 2.0], [100.0] * 2, byte_s=0.04)
    assert layer_based(before, dear) == before
    assert layer_based(before, cheap) == Blocks((0, 4), 1, 1)


def test_galaxy_shares_by_compute_and_repairs_memory() -> None:
    seen = observation([1.0, 2.0, 5.0], [100.0] * 3, n_heads=8)
    assert galaxy(None, seen) == Blocks((1, 2, 5), 2, 2)
    # ffn and proj leave room for 2 heads on the fastest: the other 3 go by 1 to 2.
    seen = observation([1.0, 2.0, 5.0], [100.0, 100.0, 12.0], n_heads=8)
    assert galaxy(None, seen) == Blocks((2, 4, 2), 2, 2)


def test_equal_slices_ignore_speed() -> None:
    seen = observation([1.0, 2.0, 5.0], [100.0] * 3, n_heads=8)
    assert equal_slices(None, seen) == Blocks((3, 3, 2), 2, 2)


@pytest.mark.parametrize(
    ("n_devices", "expected"),
    [
        (1, Blocks((20,), 0, 0)),
        (2, Blocks((10, 10), 1, 1)),
        (3, Blocks((6, 8, 6), 2, 2)),
        (5, Blocks((2, 5, 5, 5, 3), 4, 4)),
        (6, Blocks((2, 5, 5, 5, 3, 0), 4, 4)),
    ],
)
def test_mdi_cuts_22_blocks_like_22_layers(n_devices: int, expected: Blocks) -> None:
    """20 heads, proj and ffn are 22 links: the table's own 22, 10+12, 6+8+8 and 2+5x4."""
    seen = observation([1.0] * n_devices, [100.0] * n_devices, n_heads=20)
    assert mdi_table(None, seen) == expected


def test_mdi_does_not_repair_memory() -> None:
    assert mdi_table(None, observation([1.0] * 2, [100.0, 5.0], n_heads=20)) is None


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    n_devices=st.integers(1, 7),
    scale=st.sampled_from([0.001, 0.005, 0.01, 1.0]),
    name=st.sampled_from(sorted(BASELINES)),
)
def test_what_fits_is_whole_and_never_better_than_the_optimum(
    seed: int, n_devices: int, scale: float, name: str
) -> None:
    world = draw_world(n_devices, seed, 1, Layer(6, 768, prompt_tokens=200), memory_scale=scale)
    seen = world.observe(0)
    found, best = BASELINES[name](None, seen), frozen_optimum(seen.costs)
    if best is None:
        assert found is None
    elif found is not None:
        assert sum(found.heads) == 6
        assert min(found.heads) >= 0
        assert fits(found, seen.costs)
        assert delay_s(found, seen.costs) >= delay_s(best, seen.costs) * (1 - 1e-12)
