"""How fast a board's kernels are: told in each heartbeat, and at once when it has changed. Pure.

A placement that follows the boards is as late as what it hears of them. Looked at ten times a
second, calls that take a quarter more or less than those before are worth a heartbeat out of turn,
unless they took so little time that it may be a neighbour on the same machine: then twice in a row.
"""

from collections import deque

import numpy as np
import numpy.typing as npt

from agent.read_rate import ASSUMED_CALL_S, ReadRate, read_rate
from agent.samples import Samples

__all__ = ["LOOK_S", "Speedometer", "is_news"]

I64Array = npt.NDArray[np.int64]

# How often it is looked at while there are calls.
LOOK_S = 0.1
# Half of so many calls are no accident; a slow board makes few.
NEWS_CALLS = 8
KEPT_LOOKS = 32
# Calls were slow for a tenth of a second and then no more (docs/decisions.md).
BURST_S = 0.15
# Speeds within this factor of each other are the same but for noise.
NEWS = 1.25


def is_news(slowness: float) -> bool:
    """Tell whether a change should be told at once; slowness is the old speed over the new one."""
    return not 1.0 / NEWS <= slowness <= NEWS


class Speedometer:
    """The speed of one hot loop.

    Args:
        samples: bytes and nanoseconds of its calls; nobody else takes them.
    """

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self._kept: deque[I64Array] = deque(maxlen=KEPT_LOOKS)
        self._told: ReadRate | None = None
        # Calls of the last look, if they took longer or less long than told.
        self._odd: I64Array | None = None
        self._changed: ReadRate | None = None
        self._n_seen = 0
        self.is_running = False

    def look(self) -> bool:
        """Take the calls since the last look; return whether what they show should be told now."""
        n_added = self.samples.n_added
        self.is_running, self._n_seen = n_added != self._n_seen, n_added
        return self._take()

    def _take(self) -> bool:
        calls = self.samples.take(NEWS_CALLS)
        if not len(calls):
            return False
        slowness = self._slowness(calls)
        odd, self._odd = self._odd, None
        agrees = odd is not None and (self._slowness(odd) > 1.0) == (slowness > 1.0)
        if not is_news(slowness) or not (agrees or 1e-9 * calls[:, 1].sum() >= BURST_S):
            if odd is not None:
                self._kept.append(odd)
            if is_news(slowness):
                self._odd = calls
            else:
                self._kept.append(calls)
            return False
        if odd is not None and agrees:
            slowness = self._slowness(np.concatenate([odd, calls]))
        assert self._told is not None
        # Those before were another speed's; so few do not tell the cost of a call.
        self._kept.clear()
        self._changed = ReadRate(self._told.bytes_per_s / slowness, None)
        return True

    def read(self) -> ReadRate | None:
        """Return the speed since it was told last; None if there were too few calls, which stay."""
        self._take()
        found, self._changed = self._changed, None
        if found is None and self._kept:
            found = read_rate(np.concatenate(self._kept))
        if found is not None:
            self._kept.clear()
            call_s = self._told.call_s if self._told else None
            self._told = found._replace(call_s=call_s if found.call_s is None else found.call_s)
        return found

    def _slowness(self, calls: I64Array) -> float:
        """Return how many times as long as at the speed told last calls took.

        By the median and altogether, whichever says less: one call that was interrupted is no
        news, nor is a board faster between the stops that a quota of its processor makes.
        """
        if self._told is None:
            return 1.0
        sound = calls[(calls > 0).all(axis=1)]
        if len(sound) < NEWS_CALLS:
            return 1.0
        call_s = ASSUMED_CALL_S if self._told.call_s is None else self._told.call_s
        expected_s = call_s + sound[:, 0] / self._told.bytes_per_s
        took_s = 1e-9 * sound[:, 1]
        typical = float(np.median(took_s / expected_s))
        altogether = float(took_s.sum() / expected_s.sum())
        return min(max(1.0, min(typical, altogether)), max(typical, altogether))
