"""Placing one layer's indivisible blocks: h equal heads, proj and ffn. Pure, exact per interval.

These are the atom classes of Kafetzis et al. (arXiv 2505.02533): each head with its KV cache, the
output projection whole, the feed-forward network whole. Nothing here knows how long a block
takes: seconds and bytes come in as data, so the paper's formulas and measured boards both fit.
Heads of a layer are alike, so a placement is the number of heads of each device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from coordinator.planner.balance import balance

__all__ = [
    "BlockCosts",
    "Blocks",
    "delay_s",
    "fits",
    "frozen_optimum",
    "head_moves_s",
    "held_bytes",
    "move_s",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Blocks(NamedTuple):
    """A placement: heads of each device, device of proj, device of ffn."""

    heads: tuple[int, ...]
    proj: int
    ffn: int


@dataclass(frozen=True, eq=False)
class BlockCosts:
    """One interval as a planner sees it, n devices.

    Attributes:
        n_heads: heads to place.
        head_s, proj_s, ffn_s: [n] seconds that a device computes one head, proj, ffn.
        head_link_s, proj_link_s: [n, n] seconds that the output of one head, of proj, takes from
            the row's device to the column's; diagonal 0.
        head_bytes, proj_bytes, ffn_bytes: memory of a block, KV cache included.
        room_bytes: [n] memory of each device.
        byte_s: [n, n] seconds that moving one byte takes, row to column; diagonal 0.
    """

    n_heads: int
    head_s: Floats
    proj_s: Floats
    ffn_s: Floats
    head_link_s: Floats
    proj_link_s: Floats
    head_bytes: float
    proj_bytes: float
    ffn_bytes: float
    room_bytes: Floats
    byte_s: Floats

    @property
    def n_devices(self) -> int:
        """Number of devices."""
        return len(self.head_s)

    def unit_s(self, proj: int) -> Floats:
        """Return [n] seconds for one head on each device, sent to the device of proj."""
        unit: Floats = self.head_s + self.head_link_s[:, proj]
        return unit

    def caps(self, proj: int | None, ffn: int | None) -> Ints:
        """Return [n] how many heads fit beside proj and ffn; below 0 where those alone do not."""
        room = self.room_bytes.copy()
        if proj is not None:
            room[proj] -= self.proj_bytes
        if ffn is not None:
            room[ffn] -= self.ffn_bytes
        # A byte's rounding must not cost a head that fits exactly.
        caps: Ints = np.floor((room + 1e-6) / self.head_bytes).astype(np.int64)
        return np.minimum(caps, self.n_heads)


def delay_s(blocks: Blocks, costs: BlockCosts) -> float:
    """Return D_T: the slowest device's heads with their transfer, then proj, then ffn."""
    heads = np.array(blocks.heads)
    return (
        float((heads * costs.unit_s(blocks.proj)).max())
        + float(costs.proj_s[blocks.proj] + costs.proj_link_s[blocks.proj, blocks.ffn])
        + float(costs.ffn_s[blocks.ffn])
    )


def fits(blocks: Blocks, costs: BlockCosts) -> bool:
    """Return whether every device has the memory for its blocks."""
    return bool((np.array(blocks.heads) <= costs.caps(blocks.proj, blocks.ffn)).all())


def held_bytes(blocks: Blocks, costs: BlockCosts) -> Floats:
    """Return [n] the memory that each device needs for its blocks."""
    held = np.array(blocks.heads) * costs.head_bytes
    held[blocks.proj] += costs.proj_bytes
    held[blocks.ffn] += costs.ffn_bytes
    result: Floats = held
    return result


def frozen_optimum(costs: BlockCosts) -> Blocks | None:
    """Return a placement of least D_T for this interval alone, or None if nothing fits.

    Fixing (proj, ffn) leaves heads of equal work on devices of unequal speed, which `balance`
    shares out exactly (reference/papers.md 4.2). Memory that proj and ffn take can only make
    heads slower, so the best shares beside neither are a lower bound: pairs are tried by rising
    bound until no bound is below the best found.
    """
    free = costs.caps(None, None)
    bounds = [_share(costs, p, free) for p in range(costs.n_devices)]
    if bounds[0] is None:
        return None
    heads_s = [_slowest(heads, costs, p) for p, heads in enumerate(bounds)]
    after = np.array(heads_s) + costs.proj_s
    bound_s = after[:, None] + costs.proj_link_s + costs.ffn_s[None, :]
    best, best_s = None, np.inf
    for at in np.argsort(bound_s, axis=None, kind="stable"):
        p, f = divmod(int(at), costs.n_devices)
        if bound_s[p, f] >= best_s:
            break
        caps, heads = costs.caps(p, f), bounds[p]
        if heads is None or (np.array(heads) > caps).any():
            heads = _share(costs, p, caps)
        if heads is None:
            continue
        found = Blocks(tuple(heads), p, f)
        found_s = delay_s(found, costs)
        if found_s < best_s:
            best, best_s = found, found_s
    return best


def _share(costs: BlockCosts, proj: int, caps: Ints) -> list[int] | None:
    """Return the best heads of each device, or None where caps are below 0 or too small."""
    if caps.min() < 0:
        return None
    return balance(costs.n_heads, costs.unit_s(proj).tolist(), caps.tolist())


def _slowest(heads: Sequence[int] | None, costs: BlockCosts, proj: int) -> float:
    return np.inf if heads is None else float((np.array(heads) * costs.unit_s(proj)).max())


def move_s(before: Blocks, after: Blocks, costs: BlockCosts) -> float:
    """Return the sum of D_mig over all blocks that change device, the KV cache moved too.

    Which heads go where is chosen so that the sum is as small as possible.
    """
    return (
        costs.head_bytes * head_moves_s(before.heads, after.heads, costs.byte_s)
        + costs.proj_bytes * float(costs.byte_s[before.proj, after.proj])
        + costs.ffn_bytes * float(costs.byte_s[before.ffn, after.ffn])
    )


def head_moves_s(before: Sequence[int], after: Sequence[int], byte_s: Floats) -> float:
    """Return the least seconds for one byte of each head that moves, straight from old to new."""
    surplus = np.array(before) - np.array(after)
    sources = np.repeat(np.arange(len(surplus)), np.maximum(surplus, 0))
    targets = np.repeat(np.arange(len(surplus)), np.maximum(-surplus, 0))
    if not len(sources):
        return 0.0
    cost = byte_s[np.ix_(sources, targets)]
    if sources[0] == sources[-1] or targets[0] == targets[-1]:
        return float(np.diagonal(cost).sum())
    return _assign(cost)


def _assign(cost: Floats) -> float:
    """Return the least sum of a square assignment: shortest augmenting paths with potentials."""
    n = len(cost)
    row_price, column_price = np.zeros(n), np.zeros(n + 1)
    row_of = np.full(n + 1, -1)
    for row in range(n):
        row_of[n], column = row, n
        least, came_from = np.full(n, np.inf), np.full(n, n)
        used = np.zeros(n + 1, np.bool_)
        while row_of[column] >= 0:
            used[column] = True
            at = row_of[column]
            reduced = cost[at] - row_price[at] - column_price[:n]
            better = ~used[:n] & (reduced < least)
            least[better], came_from[better] = reduced[better], column
            following = int(np.where(used[:n], np.inf, least).argmin())
            step = least[following]
            row_price[row_of[used]] += step
            column_price[used] -= step
            least[~used[:n]] -= step
            column = following
        while column != n:
            row_of[column] = row_of[came_from[column]]
            column = int(came_from[column])
    return float(cost[row_of[:n], np.arange(n)].sum())
