"""Boards that are fast only while they have little to do. Pure.

When heat throttles it, or a quota that its agent cannot see, a board that is given less becomes as
fast as ever at once. Whoever believed that would give back all that was just taken, find it slow
again, and so on for ever. So a rate that rises as soon as work was taken off the board is not
believed for a while, twice as long each time; one that rises later is a board that has recovered.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agent.ids import AgentName

__all__ = ["Relief"]

# For so long after a plan came into force what rates do is that plan's doing.
SOON_S = 2.0
# A rise of less is noise.
RISE = 1.25
# Short, for it may have been somebody else on the same machine who is gone again already.
FIRST_WAIT_S = 5.0
LAST_WAIT_S = 600.0
# Heat may take its time, and so may giving work back: who is fast for so long has recovered.
RECOVERED_S = 60.0


@dataclass
class _Board:
    """What was seen of one board.

    Attributes:
        rate: bytes per second when work was taken off it.
        soon_s: until when a rise is that plan's doing.
        until_s: until when `rate` is taken for its rate, -inf = it is not.
        wait_s: how long it will be the next time.
    """

    rate: float
    soon_s: float
    until_s: float = float("-inf")
    wait_s: float = FIRST_WAIT_S

    def distrust(self, now_s: float) -> None:
        """Reckon with the slow rate for a while, which will be longer the next time."""
        self.until_s = now_s + self.wait_s
        self.wait_s = min(2 * self.wait_s, LAST_WAIT_S)


class Relief:
    """Rates of boards as they were before work was taken off them."""

    def __init__(self) -> None:
        self._boards: dict[AgentName, _Board] = {}
        # The highest rate that each board has shown.
        self._best: dict[AgentName, float] = {}

    def moved(
        self,
        lighter: Iterable[AgentName],
        rates: Mapping[AgentName, float],
        now_s: float,
    ) -> None:
        """Note that a plan is in force that takes work off boards; of account are those gone slow.

        Args:
            lighter: those boards.
            rates: by which it was planned, bytes per second.
            now_s: monotonic time.
        """
        for name in lighter:
            rate = rates.get(name, 0.0)
            if rate <= 0.0 or RISE * rate > self._best.get(name, 0.0):
                continue  # it is as fast as ever
            former = self._boards.get(name)
            self._boards[name] = board = _Board(rate, now_s + SOON_S)
            if former is not None:
                board.until_s, board.wait_s = former.until_s, former.wait_s

    def measured(self, name: AgentName, bytes_per_s: float, now_s: float) -> None:
        """Take in a rate that a board reports."""
        self._best[name] = max(bytes_per_s, self._best.get(name, 0.0))
        board = self._boards.get(name)
        if board is None or bytes_per_s < RISE * board.rate:
            return
        if now_s <= board.soon_s and now_s >= board.until_s:
            board.distrust(now_s)
        elif now_s > max(board.soon_s, board.until_s) + max(board.wait_s, RECOVERED_S):
            # It has been fast with all that it was given since.
            del self._boards[name]

    def rate(self, name: AgentName, bytes_per_s: float, now_s: float) -> float:
        """Return what to reckon with instead of the rate that is measured."""
        board = self._boards.get(name)
        if board is None or now_s >= board.until_s:
            return bytes_per_s
        return min(bytes_per_s, board.rate)

    def disappointed(self, now_s: float) -> bool:
        """Note that tokens take much longer than planned; return whether that may explain it.

        Boards that are believed again may be slow again and not show it, where most calls of what
        they were given end before they are stopped: the rates that they report are medians.
        """
        found = False
        for board in self._boards.values():
            if float("-inf") < board.until_s <= now_s:
                board.distrust(now_s)
                found = True
        return found

    def ends(self, now_s: float, since_s: float) -> bool:
        """Tell whether a board's rate is believed again, which it was not at `since_s`."""
        return any(since_s < board.until_s <= now_s for board in self._boards.values())

    def forget(self, name: AgentName) -> None:
        """Forget a board that has left."""
        self._boards.pop(name, None)
        self._best.pop(name, None)
