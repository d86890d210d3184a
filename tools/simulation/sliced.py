"""Baselines that slice layers: Galaxy and equal-slice tensor parallelism, corrected.

Both split heads and MLP columns. Here proj and ffn are indivisible, so only heads are shared out;
proj and ffn, which they would have sliced, go whole to the fastest device with room, a favour.
Each is a pure function (placement before, observation) -> placement, or None where nothing fits.
"""

import numpy as np
import numpy.typing as npt

from coordinator.planner.blocks import Blocks
from tools.simulation.paper_model import Observation

__all__ = ["equal_slices", "galaxy"]


def galaxy(before: Blocks | None, seen: Observation) -> Blocks | None:
    """Share heads out by the compute profiled in the first interval, repaired for memory; fixed.

    What exceeds a device's memory goes to the others, again by their compute.
    """
    return before or _sliced(seen, seen.flop_per_s)


def equal_slices(before: Blocks | None, seen: Observation) -> Blocks | None:
    """Give every device the same number of heads (the first ones one more); fixed.

    Memory is repaired as for Galaxy, so that it fails only where nothing fits.
    """
    return before or _sliced(seen, np.ones(seen.costs.n_devices))


def _sliced(seen: Observation, weight: npt.NDArray[np.float64]) -> Blocks | None:
    costs = seen.costs
    room = costs.room_bytes.copy()
    whole = []
    for size in (costs.ffn_bytes, costs.proj_bytes):
        fastest = [int(j) for j in np.argsort(-seen.flop_per_s, kind="stable") if room[j] >= size]
        if not fastest:
            return None
        whole.append(fastest[0])
        room[fastest[0]] -= size
    ffn, proj = whole
    caps = costs.caps(proj, ffn)
    heads = np.zeros(costs.n_devices, np.int64)
    left = costs.n_heads
    while left:
        free = np.where(heads < caps, weight, 0.0)
        if not free.any():
            return None
        heads = np.minimum(heads + _portions(left, free), caps)
        left = costs.n_heads - int(heads.sum())
    return Blocks(tuple(heads.tolist()), proj, ffn)


def _portions(n_units: int, weight: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return whole portions by weight, largest remainders first."""
    exact = n_units * weight / weight.sum()
    portions: npt.NDArray[np.int64] = np.floor(exact).astype(np.int64)
    behind = np.argsort(portions - exact, kind="stable")[: n_units - int(portions.sum())]
    portions[behind] += 1
    return portions
