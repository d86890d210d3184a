"""The best that anybody could have done in a run, the future known and moves paid. Small cases.

Dynamic programming backwards over (interval, placement). A move's price is a sum over heads,
proj and ffn, so the minimum over all placements to go to is taken in three steps, one a class,
instead of over all pairs. States: C(h + n - 1, n - 1) n^2; at most MAX_STATES.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from coordinator.planner.blocks import BlockCosts, Blocks
from kernels.errors import UsageError
from tools.simulation.paper_model import World

__all__ = ["MAX_STATES", "head_counts", "head_transport", "hindsight"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MAX_STATES = 30_000


class Hindsight(NamedTuple):
    """The optimum of a run: its seconds, moves included, and a placement for each interval."""

    total_s: float
    placements: tuple[Blocks, ...]


def hindsight(world: World) -> Hindsight | None:
    """Return the least sum of D_T and D_mig over all sequences of placements that fit.

    The first placement is free, as for everybody.

    Returns:
        None if some interval has no placement that fits.

    Raises:
        UsageError: more than MAX_STATES placements.
    """
    n, h = len(world.flop_per_s), world.layer.n_heads
    n_states = math.comb(h + n - 1, n - 1) * n * n
    if n_states > MAX_STATES:
        raise UsageError(
            f"{n} devices and {h} heads have {n_states} placements; the hindsight optimum takes "
            f"at most {MAX_STATES}: use fewer devices or heads"
        )
    counts = head_counts(h, n)
    byte_s = world.observe(0).costs.byte_s
    transport = head_transport(counts, byte_s)
    # value[x, p, f]: least seconds from this interval on, the placement in force being (x, p, f).
    value = np.zeros((len(counts), n, n))
    choices: list[tuple[Ints, Ints, Ints]] = []
    for interval in reversed(range(world.n_intervals)):
        costs = world.observe(interval).costs
        value = value + _delays(counts, costs)
        if interval:
            value, choice = _cheapest_way(value, transport, costs)
            choices.append(choice)
    total_s = float(value.min())
    if not math.isfinite(total_s):
        return None
    at = np.unravel_index(int(value.argmin()), value.shape)
    x, p, f = (int(i) for i in at)
    placements = [Blocks(tuple(counts[x].tolist()), p, f)]
    for to_x, to_p, to_f in reversed(choices):
        x = int(to_x[x, p, f])
        p = int(to_p[x, p, f])
        f = int(to_f[x, p, f])
        placements.append(Blocks(tuple(counts[x].tolist()), p, f))
    return Hindsight(total_s, tuple(placements))


def head_counts(n_heads: int, n_devices: int) -> Ints:
    """Return [states, n_devices] all ways to share n_heads out, in lexicographic order."""
    bars = itertools.combinations(range(n_heads + n_devices - 1), n_devices - 1)
    ends = np.array(list(bars), np.int64).reshape(-1, n_devices - 1)
    padded = np.pad(ends, ((0, 0), (1, 1)), constant_values=((0, 0), (-1, n_heads + n_devices - 1)))
    counts: Ints = np.diff(padded, axis=1) - 1
    return counts


def head_transport(counts: Ints, byte_s: Floats) -> Floats:
    """Return [states, states] least seconds for a byte of each head that moves, straight.

    Some unit of the first device that has too many goes somewhere that has too few: the least
    over those places, plus what is then left to move, in order of rising distance.
    """
    n_states, n = counts.shape
    base = int(counts.sum(axis=1).max()) + 1
    powers = base ** np.arange(n)[::-1]
    keys = counts @ powers
    difference = counts[:, None, :] - counts[None, :, :]
    distance = np.maximum(difference, 0).sum(axis=2)
    result = np.full((n_states, n_states), np.inf)
    result[distance == 0] = 0.0
    for d in range(1, base):
        rows, columns = np.nonzero(distance == d)
        part = difference[rows, columns]
        source = (part > 0).argmax(axis=1)
        for target in range(n):
            use = part[:, target] < 0
            r, c, s = rows[use], columns[use], source[use]
            nearer = np.searchsorted(keys, keys[r] - powers[s] + powers[target])
            way = byte_s[s, target] + result[nearer, c]
            result[r, c] = np.minimum(result[r, c], way)
    return result


def _delays(counts: Ints, costs: BlockCosts) -> Floats:
    """Return [x, p, f] D_T, infinite where memory does not suffice."""
    n = costs.n_devices
    unit = costs.head_s[:, None] + costs.head_link_s
    heads_s = (counts[:, :, None] * unit[None, :, :]).max(axis=1)
    rest_s = costs.proj_s[:, None] + costs.proj_link_s + costs.ffn_s[None, :]
    delays: Floats = heads_s[:, :, None] + rest_s[None, :, :]
    for p, f in itertools.product(range(n), range(n)):
        delays[(counts > costs.caps(p, f)).any(axis=1), p, f] = np.inf
    return delays


def _cheapest_way(
    value: Floats, transport: Floats, costs: BlockCosts
) -> tuple[Floats, tuple[Ints, Ints, Ints]]:
    """Return the least of move and value over all placements to go to, and where that is.

    The choices are nested: with (x, p, f) before, x' = to_x[x, p, f], then p' = to_p[x', p, f],
    then f' = to_f[x', p', f].
    """
    n = costs.n_devices
    by_f = value[:, :, None, :] + costs.ffn_bytes * costs.byte_s[None, None, :, :]
    to_f = by_f.argmin(axis=3)
    value = by_f.min(axis=3)
    by_p = value[:, None, :, :] + costs.proj_bytes * costs.byte_s[None, :, :, None]
    to_p = by_p.argmin(axis=2)
    value = by_p.min(axis=2)
    to_x = np.empty(value.shape, np.int64)
    best = np.empty_like(value)
    moves = costs.head_bytes * transport
    for p, f in itertools.product(range(n), range(n)):
        by_x = moves + value[None, :, p, f]
        to_x[:, p, f] = by_x.argmin(axis=1)
        best[:, p, f] = by_x.min(axis=1)
    return best, (to_x, to_p, to_f)
