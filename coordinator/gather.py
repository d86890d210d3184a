"""Who has answered one dispatched phase, and who has not. Pure bookkeeping.

Partial sums are added in rank order once all are in (`engine`), never in order of arrival: only
so does a sum not depend on the network. Holds no buffers, sockets or clock.
"""

from collections.abc import Sequence
from typing import Literal

from agent.ids import Rank, Seq

__all__ = ["Gather", "Verdict"]

Verdict = Literal["accepted", "duplicate", "stale"]


class Gather:
    """The books of one dispatch at a time.

    Attributes:
        ranks: who was asked, in the order in which answers are to be used.
        n_duplicate: answers that came again, summed over all dispatches.
        n_stale: answers nobody waits for, summed over all dispatches.
    """

    def __init__(self) -> None:
        self.ranks: tuple[Rank, ...] = ()
        self.n_duplicate = 0
        self.n_stale = 0
        self._seq: Seq | None = None
        self._awaited: set[Rank] = set()
        self._deadline_s = 0.0

    def begin(self, seq: Seq, ranks: Sequence[Rank], deadline_s: float) -> None:
        """Open the books of a new dispatch; whatever still came for the last one is stale.

        Args:
            seq: number of the dispatch.
            ranks: members that are asked, each once.
            deadline_s: monotonic time at which the dispatch expires.
        """
        self.ranks = tuple(ranks)
        self._awaited = set(ranks)
        assert len(self._awaited) == len(self.ranks), "a rank is asked twice"
        self._seq, self._deadline_s = seq, deadline_s

    def on_reply(self, rank: Rank, seq: Seq) -> Verdict:
        """Note an answer of the epoch in force; only an accepted one may be used."""
        if seq != self._seq:
            self.n_stale += 1
            return "stale"
        if rank in self._awaited:
            self._awaited.discard(rank)
            return "accepted"
        if rank in self.ranks:
            self.n_duplicate += 1
            return "duplicate"
        self.n_stale += 1
        return "stale"

    def missing(self) -> list[Rank]:
        """Return who has not answered yet, in rank order."""
        return sorted(self._awaited)

    def expired(self, now_s: float) -> bool:
        """Return whether an answer is missing and the deadline has passed."""
        return bool(self._awaited) and now_s >= self._deadline_s
