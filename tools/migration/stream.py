"""One text read token by token while its head groups are moved, and copied while it rests."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from coordinator.cluster import Cluster
from coordinator.generation import Generation
from coordinator.migration_events import Finished, Outcome
from coordinator.plan import Plan
from kernels.errors import RemoteError

__all__ = ["Copied", "Moved", "Stream"]

# A migration that has not ended by then is given up.
MOVE_S = 120.0
# A coordinator that has just written counts as busy.
REST_S = 1.0
# How often somebody who waits for an idle copy looks; news wakes it at once.
LOOK_S = 0.01


class Moved(NamedTuple):
    """One migration under a stream.

    Attributes:
        longest_gap_s: between two tokens, from the last one before it began to the first one
            after it had ended.
        before_s: median token time before it.
        during_s: median token time during it.
        seconds: from its begin to its end.
        n_tokens: that came meanwhile.
    """

    longest_gap_s: float
    before_s: float
    during_s: float
    seconds: float
    n_tokens: int


class Copied(NamedTuple):
    """One migration while no text was written: seconds until its targets had every row.

    Attributes:
        prepare_s: until weights, pools and links of the plan to come were ready.
        copy_s: from there until every row was where it shall be.
    """

    prepare_s: float
    copy_s: float


class Stream:
    """A text of one cluster, with the time of each token.

    Args:
        cluster: with a plan in force, and nothing being written.
        prompt: token ids.
        n_tokens: of the text.

    Attributes:
        ids: tokens so far.
        times_s: monotonic, of each.
    """

    def __init__(self, cluster: Cluster, prompt: list[int], n_tokens: int) -> None:
        self._cluster = cluster
        self._generation: Generation = cluster.generate(prompt_ids=prompt, max_tokens=n_tokens)
        self.ids: list[int] = []
        self.times_s: list[float] = []

    def read(self, n_tokens: int) -> None:
        """Read some more tokens, fewer at the end of the text."""
        for _ in zip(range(n_tokens), self._tokens(), strict=False):
            pass

    def move(self, plan: Plan) -> Moved:
        """Read on while everything moves to another plan, and one token more.

        Raises:
            RemoteError: it did not succeed, or the text was too short for it.
        """
        first = len(self.ids)
        before_s = self._median_s(max(0, first - 16), first)
        began_s = time.monotonic()
        self._cluster.begin_move(plan)
        ended = None
        for _ in self._tokens():
            ended = ended or self._cluster.poll_move()
            if ended is not None:
                break
        _check(ended)
        seconds, n_tokens = time.monotonic() - began_s, len(self.ids) - first
        self.read(1)
        last = len(self.ids)
        gaps = [self.times_s[i] - self.times_s[i - 1] for i in range(first, last)]
        return Moved(max(gaps), before_s, statistics.median(gaps), seconds, n_tokens)

    def copy(self, plan: Plan) -> Copied:
        """Move to another plan while the text rests.

        Raises:
            RemoteError: it did not succeed.
        """
        cluster = self._cluster
        time.sleep(REST_S)
        began_s = time.monotonic()
        cluster.begin_move(plan)
        move = cluster.moves.move
        assert move is not None
        ended = _wait(cluster, lambda: move.new_engine is not None)
        ready_s = time.monotonic()
        ended = ended or _wait(cluster, lambda: move.view().state != "preparing")
        copied_s = time.monotonic()
        _check(ended or _wait(cluster, lambda: False))
        return Copied(ready_s - began_s, copied_s - ready_s)

    def close(self) -> None:
        """End the text."""
        self._generation.close()

    def _tokens(self) -> Iterator[int]:
        for token in self._generation:
            if token.id is not None:
                self.ids.append(token.id)
                self.times_s.append(time.monotonic())
                yield token.id

    def _median_s(self, first: int, end: int) -> float:
        times = self.times_s[first:end]
        return statistics.median(b - a for a, b in itertools.pairwise(times))


def _wait(cluster: Cluster, found: Callable[[], bool]) -> Finished | None:
    """Let a migration go on until something is so, or it has ended."""
    deadline_s = time.monotonic() + MOVE_S
    while time.monotonic() < deadline_s:
        ended = cluster.poll_move()
        if ended is not None or found():
            return ended
        cluster.control.wait_reports(LOOK_S)
    raise RemoteError(f"the migration has not ended within {MOVE_S:.0f} s")


def _check(ended: Finished | None) -> None:
    if ended is None:
        raise RemoteError("the text ended before the migration; give it more --tokens")
    if ended.outcome is not Outcome.MOVED:
        raise RemoteError(f"the migration was {ended.outcome.value}: {ended.reason}")
