"""How long what is seen now will last: slow averages, and the persistence of deviations. Pure.

Every device has a usual slowness (seconds for a unit of work) and deviations from it. If
deviations keep the share rho from one interval to the next, then of the next K intervals

    now = 1 + rho + rho^2 + ... + rho^(K-1)

go as it goes now, and K - now as usual. Prices of moves rest on these two numbers: a flicker
(rho near 0) justifies only moves that pay within the interval, a slowdown that stays those that
pay while it may be expected to stay.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Forecast", "Outlook"]

Floats = npt.NDArray[np.float64]


class Outlook(NamedTuple):
    """What the intervals to come are expected to be like.

    Attributes:
        now: how many of them, this one included, go as it goes now.
        later: how many go as usual.
        usual: [n] usual slowness of each device, over its present one.
    """

    now: float
    later: float
    usual: Floats


class Forecast:
    """Learns from one observation per interval; knows nothing of the future.

    The average weighs the last `memory_intervals` most. Until deviations have been seen, they are
    taken to be flicker; until `trust_intervals` have been seen, the averages are not believed in
    full: the intervals that go as usual count for less. Whoever looks best of many after a few
    looks is flattered by chance, the more so the more devices there are.
    """

    def __init__(self, memory_intervals: float = 400.0, trust_intervals: float = 20.0) -> None:
        self._memory, self._trust = memory_intervals, trust_intervals
        self._seen = 0
        self._mean: Floats = np.zeros(0)
        self._deviation: Floats = np.zeros(0)
        # Sums of products of successive deviations, and of squares; the square starts above 0.
        self._product, self._square = 0.0, 1e-4

    def observe(self, unit_s: Floats) -> None:
        """Take in [n] seconds for a unit of work; another n (a join, a loss) starts anew."""
        if len(unit_s) != len(self._mean):
            self._mean, self._deviation, self._seen = unit_s.copy(), np.zeros_like(unit_s), 1
            return
        self._seen += 1
        # Both deviations against the mean of the past: a mean that contains the newest value
        # would make what follows look contrary to it.
        deviation = unit_s / self._mean - 1
        self._product += float((deviation * self._deviation).sum())
        self._square += float((self._deviation**2).sum())
        self._mean = self._mean + (unit_s - self._mean) / min(self._seen, self._memory)
        self._deviation = unit_s / self._mean - 1

    @property
    def persistence(self) -> float:
        """Share of a deviation that is still there an interval later, 0 to 0.999."""
        return min(max(self._product / self._square, 0.0), 0.999)

    def outlook(self, unit_s: Floats, intervals: int) -> Outlook:
        """Divide the next `intervals`, 1 or more, into those like now and the usual ones."""
        rho = self.persistence
        now = (1 - rho**intervals) / (1 - rho)
        trust = self._seen / (self._seen + self._trust)
        return Outlook(now, (intervals - now) * trust, self._mean / unit_s)
