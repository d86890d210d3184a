"""Baselines that go by lists: Greedy, Round-Robin, Static (reference/papers.md 1.6), corrected.

Each is a pure function (placement before, observation) -> placement, or None where nothing fits.
Blocks come in the order heads, proj, ffn, devices as they are listed.
"""

from collections.abc import Callable

import numpy as np

from coordinator.planner.blocks import Blocks, frozen_optimum
from tools.simulation.paper_model import Observation

__all__ = ["greedy", "round_robin", "static"]


def greedy(before: Blocks | None, seen: Observation) -> Blocks | None:
    """Put each block on the first listed device that fits: one device, while memory allows."""
    return _listed(seen, lambda _block: 0)


def round_robin(before: Blocks | None, seen: Observation) -> Blocks | None:
    """Put each block on the next device in turn, or on the next after it that fits."""
    return _listed(seen, lambda block: block)


def static(before: Blocks | None, seen: Observation) -> Blocks | None:
    """Keep for ever what was best in the first interval.

    The code freezes Greedy; corrected, it freezes the exact optimum, which is a harder rival.
    """
    return before or frozen_optimum(seen.costs)


def _listed(seen: Observation, first: Callable[[int], int]) -> Blocks | None:
    costs = seen.costs
    room = costs.room_bytes.copy()
    sizes = [costs.head_bytes] * costs.n_heads + [costs.proj_bytes, costs.ffn_bytes]
    places: list[int] = []
    for block, size in enumerate(sizes):
        turns = (first(block) + np.arange(costs.n_devices)) % costs.n_devices
        fitting = turns[room[turns] >= size]
        if not len(fitting):
            return None
        places.append(int(fitting[0]))
        room[fitting[0]] -= size
    heads = np.bincount(places[:-2], minlength=costs.n_devices)
    return Blocks(tuple(heads.tolist()), places[-2], places[-1])
