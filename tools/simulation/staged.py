"""Baselines that place layers: dynamic layer-based, EdgeShard, MDI-LLM's table, corrected.

A single layer is below the grain of all three. To give them something to decide, the layer is
taken as a chain: all heads, then proj, then ffn (MDI-LLM: each head a link of the chain, too).
What they cannot do by design, such as splitting heads by speed, they do not do here either.
Each is a pure function (placement before, observation) -> placement, or None where nothing fits.
"""

import numpy as np

from coordinator.planner.blocks import Blocks, delay_s, fits, move_s
from tools.simulation.paper_model import Observation

__all__ = ["edgeshard", "layer_based", "mdi_table"]

# MDI-LLM, 22 layers (reference/papers.md 2): the starter's and each secondary's share.
STARTER_SHARE = {1: 1.0, 2: 10 / 22, 3: 6 / 22, 4: 4 / 22, 5: 2 / 22}


def edgeshard(before: Blocks | None, seen: Observation) -> Blocks | None:
    """Keep the chain of least latency over (stage, device), found once, from the first interval.

    EdgeShard's dynamic programme over an offline profile; over three stages it is a minimum
    over all device triples. Devices may be left out.
    """
    return before or _best_chain(seen)


def layer_based(before: Blocks | None, seen: Observation) -> Blocks | None:
    """Move the layer whole to the device that is fastest now, if that pays within the interval.

    Where no device holds the layer whole, the chain of EdgeShard takes its place.
    """
    n, h = seen.costs.n_devices, seen.costs.n_heads
    whole = [_chain(n, h, j, j, j) for j in range(n)]
    fitting = [b for b in whole if fits(b, seen.costs)]
    if fitting:
        best: Blocks | None = min(fitting, key=lambda b: delay_s(b, seen.costs))
    else:
        best = _best_chain(seen)
    if before is None or best is None or not fits(before, seen.costs):
        return best
    gain_s = delay_s(before, seen.costs) - delay_s(best, seen.costs)
    return best if gain_s > move_s(before, best, seen.costs) else before


def mdi_table(before: Blocks | None, seen: Observation) -> Blocks | None:
    """Cut the chain of blocks by MDI-LLM's table: a smaller starter, equal secondaries; fixed.

    The table ends at 5 nodes, so further devices stay unused. Speeds and memory do not matter to
    it: None where its cut does not fit. In this setting's delay heads of different nodes run at
    the same time, which a ring cannot do: the baseline is flattered.
    """
    if before is not None:
        return before
    costs = seen.costs
    n_nodes = min(costs.n_devices, 5)
    n_blocks = costs.n_heads + 2
    starter = round(STARTER_SHARE[n_nodes] * n_blocks)
    cuts = np.linspace(starter, n_blocks, max(n_nodes, 2)).round().astype(int)
    places = np.searchsorted(cuts, np.arange(n_blocks), side="right").clip(max=n_nodes - 1)
    heads = np.bincount(places[:-2], minlength=costs.n_devices)
    found = Blocks(tuple(heads.tolist()), int(places[-2]), int(places[-1]))
    return found if fits(found, costs) else None


def _chain(n_devices: int, n_heads: int, heads_at: int, proj: int, ffn: int) -> Blocks:
    return Blocks(tuple(n_heads * (j == heads_at) for j in range(n_devices)), proj, ffn)


def _best_chain(seen: Observation) -> Blocks | None:
    """Return the fastest fitting chain of three stages."""
    costs = seen.costs
    heads_s = costs.n_heads * (costs.head_s[:, None] + costs.head_link_s)
    rest_s = costs.proj_s[:, None] + costs.proj_link_s + costs.ffn_s[None, :]
    total_s = heads_s[:, :, None] + rest_s[None, :, :]
    for at in np.argsort(total_s, axis=None, kind="stable"):
        j, p, f = (int(i) for i in np.unravel_index(at, total_s.shape))
        found = _chain(costs.n_devices, costs.n_heads, j, p, f)
        if fits(found, costs):
            return found
    return None
