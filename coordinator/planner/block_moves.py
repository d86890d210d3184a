"""Re-planning a layer's indivisible blocks: priced local search over moves. Pure.

Each candidate x' is charged for what it costs from here on,

    move(x, x') + now * D(x', now) + min(later * D(x', usual),
                                         later * D(y, usual) + move(x', y)),

where y is what the search finds best for the usual state alone: a detour that pays during a
deviation may go back to y afterwards. Candidates are staying, jumping to the optimum of the
present and of the usual state, and for several devices of proj every device of ffn, with heads
left where they are, moved one by one off the slowest device, or shared out anew.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from coordinator.planner.blocks import (
    BlockCosts,
    Blocks,
    delay_s,
    fits,
    frozen_optimum,
    head_moves_s,
    move_s,
)
from coordinator.planner.horizon import Outlook

__all__ = ["replan_blocks"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Devices of proj that are looked at besides the present one and those of the optima.
PROJ_CANDIDATES = 3


class _State(NamedTuple):
    """A state of the devices, and how many intervals it is expected to last."""

    costs: BlockCosts
    weight: float


def replan_blocks(before: Blocks | None, costs: BlockCosts, outlook: Outlook) -> Blocks | None:
    """Return the placement for this interval.

    Args:
        before: the placement in force, on the same devices; it may no longer fit. None = none yet.
        costs: the interval.
        outlook: how long it is expected to stay like that, and what is usual.

    Returns:
        None if nothing fits at all.
    """
    usual = replace(
        costs,
        head_s=costs.head_s * outlook.usual,
        proj_s=costs.proj_s * outlook.usual,
        ffn_s=costs.ffn_s * outlook.usual,
    )
    best_now = frozen_optimum(costs)
    if best_now is None:
        return None
    if before is None:
        # The first placement is free, and what is seen now is all that is known.
        return best_now
    best_usual = frozen_optimum(usual)
    jumps = [best_now] + ([best_usual] if best_usual else [])
    states = (_State(costs, outlook.now), _State(usual, outlook.later))
    home = _search(before, jumps, (_State(costs, 0.0), states[1]), None)
    return _search(before, [*jumps, home], states, home)


def _price(
    after: Blocks, before: Blocks, states: tuple[_State, _State], home: Blocks | None
) -> float:
    """Return the seconds that a candidate costs from here on."""
    (now, n_now), (usual, n_usual) = states
    total_s = move_s(before, after, now) + n_now * delay_s(after, now)
    stay_s = n_usual * delay_s(after, usual)
    if home is None:
        return total_s + stay_s
    return total_s + min(stay_s, n_usual * delay_s(home, usual) + move_s(after, home, now))


def _search(
    before: Blocks, jumps: list[Blocks], states: tuple[_State, _State], home: Blocks | None
) -> Blocks:
    """Return the candidate of the least price; jumps[0] fits and is taken if nothing else does."""
    best, best_s = jumps[0], _price(jumps[0], before, states, home)
    for jump in [before, *jumps[1:]]:
        price_s = _price(jump, before, states, home)
        if price_s < best_s and fits(jump, states[0].costs):
            best, best_s = jump, price_s
    for proj in _proj_devices(before, jumps, states):
        found, found_s = _best_at(proj, before, states, home, best_s)
        if found is not None and found_s < best_s:
            best, best_s = found, found_s
    return best


def _proj_devices(before: Blocks, jumps: list[Blocks], states: tuple[_State, _State]) -> list[int]:
    """Return devices worth trying for proj: present, optimal, and cheapest without its heads."""
    costs = states[0].costs
    per_ffn = sum(
        s.weight * (s.costs.proj_s[:, None] + s.costs.proj_link_s + s.costs.ffn_s[None, :])
        for s in states
    )
    alone = np.min(per_ffn + costs.ffn_bytes * costs.byte_s[before.ffn][None, :], axis=1)
    alone = alone + costs.proj_bytes * costs.byte_s[before.proj]
    cheapest = np.argsort(alone, kind="stable")[:PROJ_CANDIDATES]
    return list(dict.fromkeys([before.proj, *(b.proj for b in jumps), *map(int, cheapest)]))


def _best_at(
    proj: int,
    before: Blocks,
    states: tuple[_State, _State],
    home: Blocks | None,
    limit_s: float,
) -> tuple[Blocks | None, float]:
    """Return the best placement with this device of proj, if its price is below limit_s."""
    costs = states[0].costs
    chain = _chain(proj, before, states)
    heads = np.array([c for c, _ in chain])
    heads_s = np.array([s for _, s in chain])
    now, usual = (
        s.weight
        * (
            (heads * s.costs.unit_s(proj)).max(axis=1)[:, None]
            + (s.costs.proj_s[proj] + s.costs.proj_link_s[proj] + s.costs.ffn_s)[None, :]
        )
        for s in states
    )
    moves = (
        heads_s[:, None]
        + costs.proj_bytes * costs.byte_s[before.proj, proj]
        + costs.ffn_bytes * costs.byte_s[before.ffn][None, :]
    )
    if home is not None:
        back = (
            _ways_home(heads, home, costs)[:, None]
            + costs.proj_bytes * costs.byte_s[proj, home.proj]
            + costs.ffn_bytes * costs.byte_s[:, home.ffn][None, :]
        )
        usual = np.minimum(usual, states[1].weight * delay_s(home, states[1].costs) + back)
    price = moves + now + usual
    for at in np.argsort(price, axis=None, kind="stable"):
        k, ffn = divmod(int(at), costs.n_devices)
        if price[k, ffn] >= limit_s:
            break
        found = Blocks(tuple(heads[k].tolist()), proj, ffn)
        if fits(found, costs):
            return found, float(price[k, ffn])
    return None, np.inf


def _chain(
    proj: int, before: Blocks, states: tuple[_State, _State]
) -> list[tuple[tuple[int, ...], float]]:
    """Return heads of each device after 0, 1, 2... single moves, with the seconds of the moves.

    Each move takes a head off the device that is slowest over the horizon, to where finishing
    and moving together take least; it ends where nothing gets faster.
    """
    costs = states[0].costs
    unit_s = sum((s.weight * s.costs.unit_s(proj) for s in states), np.zeros(costs.n_devices))
    caps = costs.caps(proj, None)
    heads = np.minimum(np.array(before.heads), costs.n_heads)
    chain = [(tuple(heads.tolist()), 0.0)]
    moved_s = 0.0
    for _ in range(2 * costs.n_heads):
        busy_s = heads * unit_s
        # Too many for the memory is slower than anything.
        busy_s = np.where(heads > caps, np.inf, busy_s)
        source = int(busy_s.argmax())
        after_s = np.where(heads < caps, busy_s + unit_s, np.inf)
        after_s[source] = np.inf
        hopeful = after_s < busy_s[source]
        if not hopeful.any():
            break
        price = np.where(hopeful, after_s + costs.head_bytes * costs.byte_s[source], np.inf)
        target = int(price.argmin())
        heads[source] -= 1
        heads[target] += 1
        moved_s += costs.head_bytes * float(costs.byte_s[source, target])
        chain.append((tuple(heads.tolist()), moved_s))
    return chain


def _ways_home(heads: Ints, home: Blocks, costs: BlockCosts) -> Floats:
    """Return the seconds that it takes to move the heads of each row to their home."""
    byte_s = np.array([head_moves_s(row, home.heads, costs.byte_s) for row in heads.tolist()])
    ways: Floats = costs.head_bytes * byte_s
    return ways
