"""Runs of the paper's setting: interval after interval, every algorithm on the same instance."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from coordinator.planner.block_moves import replan_blocks
from coordinator.planner.blocks import Blocks, delay_s, fits, frozen_optimum, held_bytes, move_s
from coordinator.planner.horizon import Forecast
from tools.simulation.algorithm1 import algorithm1
from tools.simulation.listed import greedy, round_robin, static
from tools.simulation.paper_model import Observation, World
from tools.simulation.sliced import equal_slices, galaxy
from tools.simulation.staged import edgeshard, layer_based, mdi_table

__all__ = ["BASELINES", "OURS", "Policy", "Run", "headwise_policy", "jump", "simulate"]

# (placement before, observation) -> placement, or None where the algorithm finds none.
Policy = Callable[[Blocks | None, Observation], Blocks | None]

OURS = "headwise"


def jump(before: Blocks | None, seen: Observation) -> Blocks | None:
    """Take the exact optimum of each interval, whatever it costs to move there."""
    return frozen_optimum(seen.costs)


BASELINES: dict[str, Policy] = {
    "algorithm1": algorithm1,
    "algorithm1-residual": partial(algorithm1, residual=True),
    "greedy": greedy,
    "round-robin": round_robin,
    "static": static,
    "layer-based": layer_based,
    "edgeshard": edgeshard,
    "galaxy": galaxy,
    "mdi-table": mdi_table,
    "equal-slices": equal_slices,
    "exact-and-jump": jump,
}


def headwise_policy() -> Policy:
    """Return the production planner for one run; it learns as the run goes on."""
    forecast = Forecast()

    def decide(before: Blocks | None, seen: Observation) -> Blocks | None:
        unit_s = 1.0 / seen.flop_per_s
        forecast.observe(unit_s)
        return replan_blocks(before, seen.costs, forecast.outlook(unit_s, seen.intervals_left))

    return decide


@dataclass(frozen=True)
class Run:
    """What one algorithm did in one instance.

    Attributes:
        delay_s: sum of D_T.
        move_s: sum of D_mig.
        moved: intervals in which something moved.
        token_s: seconds of each interval, moves included.
        held_bytes: the most that each device held.
        infeasible_at: the interval from which on the algorithm had no placement that fits, or
            None; sums then end before it.
    """

    delay_s: float
    move_s: float
    moved: tuple[int, ...]
    token_s: tuple[float, ...]
    held_bytes: tuple[float, ...]
    infeasible_at: int | None = None

    @property
    def total_s(self) -> float:
        """Seconds of all intervals, moves included."""
        return self.delay_s + self.move_s

    @property
    def n_moves(self) -> int:
        """Number of intervals in which something moved."""
        return len(self.moved)


def simulate(world: World, policy: Policy) -> Run:
    """Run an algorithm through an instance; the first placement is free."""
    before: Blocks | None = None
    total_delay_s = total_move_s = 0.0
    moved: list[int] = []
    token_s: list[float] = []
    held = np.zeros(len(world.flop_per_s))
    infeasible_at = None
    for interval in range(world.n_intervals):
        seen = world.observe(interval)
        blocks = policy(before, seen)
        if blocks is None or not fits(blocks, seen.costs):
            infeasible_at = interval
            break
        moving_s = 0.0
        if before is not None and blocks != before:
            moving_s = move_s(before, blocks, seen.costs)
            moved.append(interval)
        took_s = delay_s(blocks, seen.costs)
        total_delay_s += took_s
        total_move_s += moving_s
        token_s.append(took_s + moving_s)
        held = np.maximum(held, held_bytes(blocks, seen.costs))
        before = blocks
    return Run(
        total_delay_s, total_move_s, tuple(moved), tuple(token_s), tuple(held.tolist()),
        infeasible_at,
    )  # fmt: skip
