"""Counts of atoms that a re-plan may go to from the present ones: the candidates. Pure.

Mixtures of the present and the best fill by class, chains of single units from the slowest member
to the one that would finish it first, and the least that gets atoms off agents that are gone,
barred or over-full. None is priced here.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from coordinator.planner.cost import AtomSizes, Counts

__all__ = [
    "Setting",
    "chains",
    "mixtures",
    "over_full_between_bytes",
    "over_full_bytes",
    "patched",
    "redealt",
    "same_counts",
    "spread",
]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
YIELDED = (1, 4, 16, 64, 256)
MOST_STEPS = 1024
NAMES = {
    (True, True, True): "everything",
    (True, False, False): "attention only",
    (False, True, False): "MLP only",
    (False, False, True): "vocabulary only",
    (True, True, False): "attention and MLP",
    (True, False, True): "attention and vocabulary",
    (False, True, True): "MLP and vocabulary",
}


class Setting(NamedTuple):
    """What counts are judged by: rates (n,) and memory (n,) bytes of agents.

    `allowed` (n,) may be given atoms, `may_keep` (n,) may keep those that they hold.
    """

    sizes: AtomSizes
    bytes_per_s: Floats
    memory_bytes: Ints
    allowed: Bools
    may_keep: Bools


def over_full_bytes(counts: Counts, setting: Setting) -> Ints:
    """Return how many bytes too many each agent would hold, KV of all admitted tokens included.

    Negative: memory left. An agent that holds nothing needs nothing.
    """
    sizes = setting.sizes
    holds = counts.groups.any(0) | counts.columns.any(0) | (counts.vocab > 0)
    needed = counts.weights_bytes(sizes) + counts.pool_bytes(sizes)
    over: Ints = np.where(holds, needed, 0) - setting.memory_bytes
    return over


def over_full_between_bytes(before: Counts, after: Counts, setting: Setting) -> Ints:
    """Return how many bytes too many each agent would hold while `after` takes over from `before`.

    An agent whose atoms change holds those of both and a KV pool for each; one that gets none only
    lets go of its own. Negative: memory left.
    """
    sizes = setting.sizes
    pairs = list(zip(before[:3], after[:3], strict=True))
    groups, columns, vocab = (np.maximum(a, b) for a, b in pairs)
    both = Counts(groups, columns, vocab, after.stages)
    pools = before.pool_bytes(sizes) + after.pool_bytes(sizes)
    holds = after.groups.any(0) | after.columns.any(0) | (after.vocab > 0)
    changes = np.logical_or.reduce([np.atleast_2d(a != b).any(0) for a, b in pairs])
    needed = np.where(holds & changes, both.weights_bytes(sizes) + pools, 0)
    over: Ints = needed - setting.memory_bytes
    return over


def same_counts(a: Counts, b: Counts) -> bool:
    """Return whether all agents hold as many atoms of each kind in both."""
    return all(np.array_equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))


def spread(counts: Counts, ranks: list[int], n_agents: int) -> Counts:
    """Return counts of some agents, at these ranks of n_agents, as counts of all."""
    n_layers = len(counts.groups)
    groups = np.zeros((n_layers, n_agents), np.int64)
    columns, vocab = np.zeros_like(groups), np.zeros(n_agents, np.int64)
    groups[:, ranks], columns[:, ranks], vocab[ranks] = counts.groups, counts.columns, counts.vocab
    return Counts(groups, columns, vocab, ((0, n_layers, 0, n_agents),))


def mixtures(present: Counts, best: Counts) -> Iterator[tuple[str, Counts]]:
    """Yield the best fill, and it for some classes of atoms only, with names."""
    for chosen, name in NAMES.items():
        g, c, v = (best if use else present for use in chosen)
        yield name, Counts(g.groups, c.columns, v.vocab, present.stages)


def redealt(wanted: Ints, present: Ints) -> Ints:
    """Deal each agent's total of a class to the layers anew, as near the present as can be.

    (L, n) both; totals by agent and by layer stay, counts differ by at most 1 over the layers.
    """
    if (wanted == wanted[0]).all():
        return wanted
    n_layers = len(wanted)
    each, rest = np.divmod(wanted.sum(0), n_layers)
    result = np.broadcast_to(each, wanted.shape).copy()
    # Always the layers with most open places: so it comes out even for the last agent.
    open_places = wanted.sum(1) - int(each.sum())
    for j in np.argsort(-rest, kind="stable"):
        if rest[j]:
            liked = present[:, j] > each[j]
            layers = np.lexsort((~liked, -open_places))[: rest[j]]
            result[layers, j] += 1
            open_places[layers] -= 1
    return result


def chains(present: Counts, setting: Setting) -> Iterator[tuple[str, Counts]]:
    """Yield counts after 1, 4, 16, ... units have gone from the slowest to the quickest agent.

    A unit is one atom of every layer (vocabulary: one atom); a chain ends where the next unit
    would help no more. Groups and columns each, then columns after all groups.
    """
    sizes, rates = setting.sizes, setting.bytes_per_s
    last = present
    for name, unit_bytes in (("groups", sizes.group_read), ("columns", sizes.column)):
        for steps, counts in _chain(present, name, unit_bytes / rates, setting):
            last = counts if name == "groups" else last
            yield f"{steps} x {name}", counts
    if last is not present:
        for steps, counts in _chain(last, "columns", sizes.column / rates, setting):
            yield f"groups, {steps} x columns", counts


def _chain(
    start: Counts, name: str, unit_s: Floats, setting: Setting
) -> Iterator[tuple[int, Counts]]:
    rows = start.groups if name == "groups" else start.columns
    sizes, n_layers = setting.sizes, len(rows)
    n_bytes = n_layers * (sizes.column if name == "columns" else sizes.group + sizes.group_pool)
    norms = n_layers * sizes.layer_norms
    idle = ~(start.groups.any(0) | start.columns.any(0) | (start.vocab > 0))
    # Lists: for so few agents, looked at so many times, they are quicker than NumPy.
    room = (-over_full_bytes(start, setting) - np.where(idle, norms, 0)).tolist()
    allowed, unit = setting.allowed.tolist(), unit_s.tolist()
    totals, least = rows.sum(0).tolist(), rows.min(0).tolist()
    # When each agent is done now, and with a unit more; units that it has got or given away.
    now_s = [0.0] * len(unit)
    more_s, got = list(now_s), [0] * len(unit)

    def count(j: int, units: int) -> None:
        got[j] += units
        totals[j] += units * n_layers
        room[j] -= units * n_bytes
        now_s[j] = totals[j] * unit[j]
        fits = allowed[j] and room[j] >= n_bytes
        more_s[j] = (totals[j] + n_layers) * unit[j] if fits else math.inf

    for j in range(len(unit)):
        count(j, 0)
    steps, yielded = 0, 0
    while steps < MOST_STEPS:
        slowest_s, soonest_s = max(now_s), min(more_s)
        giver = now_s.index(slowest_s)
        if soonest_s >= slowest_s or least[giver] + got[giver] < 1:
            break
        taker = more_s.index(soonest_s)
        count(giver, -1)
        count(taker, 1)
        steps += 1
        if steps in YIELDED:
            yield steps, _with(start, name, rows + np.array(got))
            yielded = steps
    if steps > yielded:
        yield steps, _with(start, name, rows + np.array(got))


def _with(counts: Counts, name: str, rows: Ints) -> Counts:
    if name == "groups":
        return counts._replace(groups=rows)
    return counts._replace(columns=rows)


def patched(present: Counts, totals: tuple[int, int, int], setting: Setting) -> Counts | None:
    """Return the least change that puts every atom where it may be and has room, or None.

    Agents keep what they hold as far as they may and can; totals are the atoms of a layer's
    groups, of its columns, and of the vocabulary.
    """
    groups, columns = present.groups * setting.may_keep, present.columns * setting.may_keep
    kept = Counts(groups, columns, present.vocab * setting.may_keep, present.stages)
    kept = _shed(kept, setting)
    sizes, n_layers = setting.sizes, len(groups)
    room = -over_full_bytes(kept, setting)
    idle = ~(kept.groups.any(0) | kept.columns.any(0) | (kept.vocab > 0))
    room -= np.where(idle, n_layers * sizes.layer_norms, 0)
    room -= np.where(kept.vocab > 0, 0, sizes.final_norm)
    left = np.where(setting.allowed, room, -1).tolist()
    rates = setting.bytes_per_s
    group_bytes = sizes.group + sizes.group_pool
    filled = (
        _top_up(kept.groups, totals[0], sizes.group_read / rates, group_bytes, left)
        and _top_up(kept.columns, totals[1], sizes.column / rates, sizes.column, left)
        and _top_up(kept.vocab[None], totals[2], sizes.vocab / rates, sizes.vocab, left)
    )
    return kept if filled else None


def _top_up(rows: Ints, total: int, unit_s: Floats, n_bytes: int, room: list[int]) -> bool:
    """Give missing atoms to whoever would finish them first, in place; False if no room."""
    unit = unit_s.tolist()

    def with_one_s(j: int) -> float:
        return float((held[j] + 1) * unit[j]) if room[j] >= n_bytes else math.inf

    for row in rows:
        held = row.tolist()
        after_s = [with_one_s(j) for j in range(len(held))]
        for _ in range(total - sum(held)):
            soonest_s = min(after_s)
            if soonest_s == math.inf:
                return False
            taker = after_s.index(soonest_s)
            held[taker] += 1
            room[taker] -= n_bytes
            after_s[taker] = with_one_s(taker)
        row[:] = held
    return True


def _shed(kept: Counts, setting: Setting) -> Counts:
    """Take atoms off over-full agents: columns first, which have no KV; then groups, vocabulary."""
    sizes = setting.sizes
    kept = Counts(kept.groups.copy(), kept.columns.copy(), kept.vocab.copy(), kept.stages)
    for j in np.flatnonzero(over_full_bytes(kept, setting) > 0):
        for rows, n_bytes in (
            (kept.columns, sizes.column),
            (kept.groups, sizes.group + sizes.group_pool),
            (kept.vocab[None], sizes.vocab),
        ):
            over = int(over_full_bytes(kept, setting)[j])
            if over <= 0:
                break
            # Evenly off the layers: layers stay alike but for a remainder.
            each, rest = divmod(-(-over // n_bytes), len(rows))
            fewer = each + (np.arange(len(rows)) < rest)
            rows[:, j] = np.maximum(rows[:, j] - fewer, 0)
    return kept
