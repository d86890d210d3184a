"""How long the present rates will last, and what they are: from noisy measurements. Pure.

A board's rate is taken as constant between changes. A change is a measurement far off, or two in
a row off in the same direction by more than a quarter; until then the mean of all measurements
since the last change is the estimate, so that the noise of one shrinks away. Boards go back to
rates they had (load comes and goes): a rate near an earlier one goes on from that estimate.
"""

import math
from dataclasses import dataclass, field

from agent.ids import AgentName

__all__ = ["Horizon", "RateWatch"]

# A change worth planning for (reference/papers.md 4.4).
CHANGE = 0.25
# One measurement so far off is no noise of 7 %.
SURE_CHANGE = 0.40
# So many measurements count as much as all before them.
MEMORY = 32
# An earlier rate so near is taken for the same one, and counts as at most so many measurements.
SAME = 0.15
KNOWN = 8
N_LEVELS = 4
# A measurement tells of no more than that time before it.
WATCHED_S = 5.0
# From so many on an estimate is settled.
SETTLED = 6


@dataclass
class Horizon:
    """Estimates the mean time between changes of a board's rate, bounded.

    Time watched and changes seen both fade, so that old habits are forgotten; a quiet time counts
    although it has not ended. At the start a guess stands in for one change.

    Attributes:
        guess_s: what is taken before anything is known.
        least_s, most_s: bounds.
        fade_changes: about so many changes are remembered.
    """

    guess_s: float = 60.0
    least_s: float = 1.0
    most_s: float = 900.0
    fade_changes: float = 24.0
    _watched_s: float = field(default=0.0, init=False)
    _changes: float = field(default=0.0, init=False)

    def watch(self, elapsed_s: float) -> None:
        """Note that one board was watched for so long."""
        self._watched_s += max(0.0, elapsed_s)

    def change(self) -> None:
        """Note that a board's rate has changed."""
        keep = 1.0 - 1.0 / self.fade_changes
        self._watched_s *= keep
        self._changes = self._changes * keep + 1.0

    @property
    def mean_s(self) -> float:
        """Mean time for which a board's rate stays as it is."""
        mean_s = (self._watched_s + self.guess_s) / (self._changes + 1.0)
        return min(max(mean_s, self.least_s), self.most_s)


@dataclass
class _Board:
    rate: float
    n: float
    at_s: float
    # A measurement that is off, waiting for a second one.
    odd: float | None = None
    # Earlier rates and how many measurements they rest on, the latest first.
    levels: list[tuple[float, float]] = field(default_factory=list)

    def turn_to(self, rate: float, n: float) -> None:
        """Go on with another rate, near an earlier one if there is such."""
        same = [x for x in self.levels if abs(rate / x[0] - 1.0) < SAME]
        others = [x for x in self.levels if x not in same]
        self.levels = [(self.rate, self.n), *others][:N_LEVELS]
        known, n_known = max(same, key=lambda x: x[1], default=(rate, 0.0))
        n_known = min(n_known, float(KNOWN))
        self.rate = (rate * n + known * n_known) / (n + n_known)
        self.n, self.odd = n + n_known, None


class RateWatch:
    """Turns noisy rates of boards into estimates, changes and a horizon."""

    def __init__(self, horizon: Horizon | None = None) -> None:
        self.horizon = horizon or Horizon()
        self._boards: dict[AgentName, _Board] = {}

    def rate(self, agent: AgentName) -> float:
        """Return the estimate of a board, bytes per second; 0 if nothing was measured."""
        board = self._boards.get(agent)
        return board.rate if board else 0.0

    def settled(self, agent: AgentName) -> bool:
        """Return whether the estimate rests on enough measurements."""
        board = self._boards.get(agent)
        return board is not None and board.n >= SETTLED

    def forget(self, agent: AgentName) -> None:
        """Forget a board that has left."""
        self._boards.pop(agent, None)

    def measure(self, agent: AgentName, bytes_per_s: float, now_s: float) -> bool:
        """Take one measurement; return whether the board's rate has changed.

        Measurements that are no positive number are passed over.
        """
        if not (math.isfinite(bytes_per_s) and bytes_per_s > 0):
            return False
        board = self._boards.get(agent)
        if board is None:
            self._boards[agent] = _Board(bytes_per_s, 1.0, now_s)
            return True
        # Between texts nothing is measured: who rests shows no habits.
        self.horizon.watch(min(now_s - board.at_s, WATCHED_S))
        board.at_s = now_s
        if self._has_changed(board, bytes_per_s):
            self.horizon.change()
            seen = [bytes_per_s] if board.odd is None else [board.odd, bytes_per_s]
            board.turn_to(sum(seen) / len(seen), float(len(seen)))
            return True
        return False

    def _has_changed(self, board: _Board, bytes_per_s: float) -> bool:
        """Return whether this measurement shows a change; else take it in."""
        off = bytes_per_s / board.rate - 1.0
        if board.odd is not None:
            if abs(off) > CHANGE and off * (board.odd - board.rate) > 0:
                return True
            board.odd = None
        # The first measurements carry noise of their own.
        if abs(off) > SURE_CHANGE * (1.0 + 0.4 / board.n):
            return True
        if abs(off) > CHANGE:
            board.odd = bytes_per_s
            return False
        board.n = min(board.n + 1.0, float(MEMORY))
        board.rate += (bytes_per_s - board.rate) / board.n
        return False
