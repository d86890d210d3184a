"""Exact shares of equal units: the smallest possible time of the slowest member. Pure.

`balance` shares out one class of atoms. `share_two` shares out two that compete for memory, and
minimises the sum of both classes' slowest times (reference/papers.md 4.2 and 4.4.2).
"""

import heapq
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["balance", "share_two"]

Floats = npt.NDArray[np.float64]


def balance(
    n_units: int, unit_s: Sequence[float], caps: Sequence[int], order: Sequence[float] = ()
) -> list[int] | None:
    """Share n_units among members so that the slowest one's time is as small as possible.

    The next unit always goes to the member that would finish first: exact, since a member's
    times rise with its units. All units that finish before a time that is surely too short are
    given at once, so that only about one unit a member goes through the heap.

    Args:
        n_units: units to share out.
        unit_s: seconds a unit takes, per member.
        caps: most units a member can hold.
        order: at equal times the member with the smaller number goes first, then by position.

    Returns:
        Units of each member, or None if the caps are too small.
    """
    if sum(caps) < n_units:
        return None
    order = order or [0.0] * len(unit_s)
    units = _surely(n_units, unit_s, caps)
    heap = [((units[j] + 1) * s, order[j], j) for j, s in enumerate(unit_s) if units[j] < caps[j]]
    heapq.heapify(heap)
    for _ in range(n_units - sum(units)):
        _, key, j = heapq.heappop(heap)
        units[j] += 1
        if units[j] < caps[j]:
            heapq.heappush(heap, ((units[j] + 1) * unit_s[j], key, j))
    return units


def _surely(n_units: int, unit_s: Sequence[float], caps: Sequence[int]) -> list[int]:
    """Return units that each member gets in any best share, at most n_units together."""
    open_ = list(range(len(unit_s)))
    left, time_s = n_units, 0.0
    while open_:
        # The time in which these could do all of it if units were divisible.
        time_s = left / sum([1.0 / unit_s[j] for j in open_])
        bound_s = time_s * (1 - 1e-9)
        still = [j for j in open_ if caps[j] * unit_s[j] > bound_s]
        if len(still) == len(open_):
            break
        left = n_units - sum(caps) + sum([caps[j] for j in still])
        open_ = still
    units = list(caps)
    for j in open_:
        # The tolerance keeps rounding from giving a unit too many; the heap gives it if it is due.
        units[j] = min(caps[j], max(0, math.floor(time_s / unit_s[j] * (1 - 1e-9))))
    return units


def share_two(
    n_units: tuple[int, int],
    unit_s: tuple[Sequence[float], Sequence[float]],
    unit_bytes: tuple[int, int],
    room_bytes: Sequence[int],
) -> list[int] | None:
    """Return each member's units of the first class in a best share of two classes.

    Minimises max_j x_j a_j + max_j y_j b_j with sum x = n_units[0], sum y = n_units[1] and
    x_j unit_bytes[0] + y_j unit_bytes[1] <= room_bytes[j]; the best y for that x is `balance` in
    the memory left. The smallest limit on the second class falls as the limit on the first one
    rises: intervals of limits in which nothing better can lie are never looked into.

    Returns:
        x, or None if nothing fits.
    """
    sweep = _Sweep(n_units, unit_s, unit_bytes, room_bytes)
    if not sweep.feasible_alone:
        return None
    last, nothing = len(sweep.firsts) - 1, len(sweep.seconds) - 1
    least = sweep.second(last, 0, nothing)
    intervals = [(0, sweep.second(0, least, nothing), last, least)] if last else []
    while intervals:
        i, at_i, k, at_k = intervals.pop()
        hopeless = sweep.firsts[min(i + 1, last)] + sweep.seconds[at_k] >= sweep.best_s
        if k - i < 2 or at_i == at_k or hopeless:
            continue
        middle = (i + k) // 2
        at_middle = sweep.second(middle, at_k, at_i)
        intervals += [(middle, at_middle, k, at_k), (i, at_i, middle, at_middle)]
    return sweep.best


class _Sweep:
    """The limits worth trying on each class, and the best share met so far."""

    def __init__(
        self,
        n_units: tuple[int, int],
        unit_s: tuple[Sequence[float], Sequence[float]],
        unit_bytes: tuple[int, int],
        room_bytes: Sequence[int],
    ) -> None:
        self._n_units, self._unit_bytes = n_units, unit_bytes
        self._unit_s = tuple(np.array(s, np.float64) for s in unit_s)
        self._room = np.maximum(np.array(room_bytes, np.int64), 0)
        self._caps = [
            np.minimum(self._room // m, n) for m, n in zip(unit_bytes, n_units, strict=True)
        ]
        alone = [
            balance(n, s.tolist(), caps.tolist())
            for n, s, caps in zip(n_units, self._unit_s, self._caps, strict=True)
        ]
        self.feasible_alone = None not in alone
        limits = [
            _limits(s, caps, float(np.max(s * (units or 0))))
            for s, caps, units in zip(self._unit_s, self._caps, alone, strict=True)
        ]
        self.firsts = limits[0]
        # The last one stands for "nothing fits".
        self.seconds = np.append(limits[1], np.inf)
        self.best_s = math.inf
        self.best: list[int] | None = None

    def second(self, first: int, low: int, high: int) -> int:
        """Return the smallest second limit, in [low, high], that fits the first; note the best."""
        limit = self.firsts[first]
        x_caps = np.minimum(self._caps[0], _count(limit, self._unit_s[0]))
        found = None
        while low < high:
            middle = (low + high) // 2
            y_caps = np.minimum(self._caps[1], _count(self.seconds[middle], self._unit_s[1]))
            x = _reach(self._n_units, x_caps, y_caps, self._unit_bytes, self._room)
            if x is None:
                low = middle + 1
            else:
                found, high = x, middle
        # Not found: the smaller first limit that `high` came from is better.
        if found is not None and limit + self.seconds[high] < self.best_s:
            self.best_s, self.best = float(limit + self.seconds[high]), found
        return high


def _limits(unit_s: Floats, caps: npt.NDArray[np.int64], least_s: float) -> Floats:
    """Return the distinct times at which a member finishes a unit, from least_s on, rising."""
    times = [np.arange(1, cap + 1) * s for s, cap in zip(unit_s, caps, strict=True)]
    limits = np.unique(np.concatenate([np.array([least_s]), *times]))
    rising: Floats = limits[limits >= least_s]
    return rising


def _count(limit: float, unit_s: Floats) -> npt.NDArray[np.int64]:
    """Return how many units fit below a limit that is itself a whole number of some unit."""
    return np.floor(limit / unit_s * (1 + 1e-12)).astype(np.int64)


def _reach(
    n_units: tuple[int, int],
    x_caps: npt.NDArray[np.int64],
    y_caps: npt.NDArray[np.int64],
    unit_bytes: tuple[int, int],
    room: npt.NDArray[np.int64],
) -> list[int] | None:
    """Return x that leaves room for n_units[1] units of the second class, or None.

    Member by member: most[s] is the most units of the second class that the members so far can
    hold together with s units of the first.
    """
    n_x = n_units[0]
    none = np.int64(-(1 << 40))
    most = np.full(n_x + 1, none)
    most[0] = 0
    taken = np.arange(n_x + 1)
    # before[s, x]: how many the members before hold when this one takes x of s.
    before = taken[:, None] - taken[None, :]
    choices = []
    for x_cap, y_cap, bytes_j in zip(x_caps, y_caps, room, strict=True):
        y = np.minimum(y_cap, (bytes_j - taken * unit_bytes[0]) // unit_bytes[1])
        y = np.where((taken <= x_cap) & (y >= 0), y, none)
        total = np.where(before >= 0, most[np.maximum(before, 0)], none) + y[None, :]
        choice = total.argmax(1)
        choices.append(choice)
        most = np.maximum(total[taken, choice], none)
    if most[n_x] < n_units[1]:
        return None
    shares, left = [], n_x
    for choice in reversed(choices):
        shares.append(int(choice[left]))
        left -= shares[-1]
    return shares[::-1]
