"""Who has answered one dispatched phase, and who has not. Pure bookkeeping.

Partial sums are added in rank order once all are in (`engine`), never in order of arrival: only
so does a sum not depend on the network. Holds no buffers, sockets or clock.
"""

from collections.abc import Sequence
from typing import Literal

from agent.ids import Epoch, Rank, Seq

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
        self._epoch: Epoch | None = None
        self._awaited: set[Rank] = set()
        self._began_s = 0.0
        self._deadline_s = 0.0

    def begin(
        self,
        seq: Seq,
        ranks: Sequence[Rank],
        now_s: float,
        deadline_s: float,
        epoch: Epoch | None = None,
    ) -> None:
        """Open the books of a new dispatch; whatever still came for the last one is stale.

        Args:
            seq: number of the dispatch.
            ranks: members that are asked, each once.
            now_s: monotonic time.
            deadline_s: monotonic time at which the dispatch expires.
            epoch: the only epoch to accept; None where the caller has already checked it.
        """
        self.ranks = tuple(ranks)
        self._awaited = set(ranks)
        assert len(self._awaited) == len(self.ranks), "a rank is asked twice"
        self._seq, self._epoch = seq, epoch
        self._began_s, self._deadline_s = now_s, deadline_s

    def on_reply(self, rank: Rank, seq: Seq, epoch: Epoch) -> Verdict:
        """Note an answer; only an accepted one may be used."""
        if seq != self._seq or (self._epoch is not None and epoch != self._epoch):
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

    @property
    def complete(self) -> bool:
        """Whether everyone who was asked has answered."""
        return not self._awaited

    def missing(self) -> list[Rank]:
        """Return who has not answered yet, in rank order."""
        return sorted(self._awaited)

    def expired(self, now_s: float) -> bool:
        """Return whether an answer is missing and the deadline has passed."""
        return bool(self._awaited) and now_s >= self._deadline_s

    def waited_s(self, now_s: float) -> float:
        """Return how long ago the dispatch began, in seconds."""
        return now_s - self._began_s
