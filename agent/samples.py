"""Pairs of numbers that the hot path leaves behind and another thread looks at now and then.

A ring: writing costs three stores, in compiled code too (`native.note`), and nobody waits. A reader
that is overtaken may find one pair of which half is newer; what it does with many is robust.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["Samples"]

I64Array = npt.NDArray[np.int64]

# Some seconds of phases: a 22-layer token has 44.
CAPACITY = 1024


class Samples:
    """The newest pairs.

    Args:
        capacity: how many are kept.

    Attributes:
        ring: (1 + 2 capacity,) int64, the number of pairs ever added, then the pairs.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.ring = np.zeros(1 + 2 * capacity, np.int64)
        self._capacity = capacity
        self._words = self.ring.data
        self._n_taken = 0

    @property
    def n_added(self) -> int:
        """Pairs ever added."""
        return int(self.ring[0])

    def add(self, first: int, second: int) -> None:
        """Add a pair; for the thread that owns the hot path."""
        at = 1 + 2 * (self._words[0] % self._capacity)
        self._words[at], self._words[at + 1] = first, second
        self._words[0] += 1

    def take(self, at_least: int = 0) -> I64Array:
        """Return the pairs added since they were taken last, (n, 2) int64; at most the newest ones.

        Fewer than `at_least` stay for the next time: then none are returned.
        """
        pairs = self.ring[1:].reshape(-1, 2)
        n_added = self._words[0]
        n_new = min(n_added - self._n_taken, self._capacity)
        if n_added - self._n_taken < at_least:
            return pairs[:0].copy()
        self._n_taken = n_added
        first, end = (n_added - n_new) % self._capacity, n_added % self._capacity
        if n_new and first >= end:
            return np.concatenate((pairs[first:], pairs[:end]))
        return pairs[first:end].copy()
