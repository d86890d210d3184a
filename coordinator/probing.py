"""Which link is probed when: rarely, one at a time over the whole cluster, only while idle. Pure.

Links that real traffic has measured of late are left alone. Times are monotonic seconds that the
caller passes as `now_s`.
"""

from collections.abc import Iterable
from typing import NamedTuple

from agent.ids import AgentName

__all__ = ["PROBE_BYTES", "Probing", "Seen"]

PROBE_BYTES = 7 << 20
# From one probe to the next, whatever their links.
PERIOD_S = 10.0
# What was measured so long ago is measured again.
STALE_S = 900.0
# Nobody may have been served for so long, and a new agent gets so long to settle.
QUIET_S = 2.0
# A probe of which nothing is heard is over.
GIVE_UP_S = 10.0


class Seen(NamedTuple):
    """One agent that could be probed: when it joined, and when its goodput was last measured."""

    name: AgentName
    joined_s: float
    measured_s: float | None


class Probing:
    """Chooses the next link to probe."""

    def __init__(self) -> None:
        self._busy_s = float("-inf")
        self._asked_s: dict[AgentName, float] = {}
        self._current: AgentName | None = None

    @property
    def current(self) -> AgentName | None:
        """The agent whose probe is under way."""
        return self._current

    def next(self, agents: Iterable[Seen], is_busy: bool, now_s: float) -> AgentName | None:
        """Return the agent to be told to probe now, if any; it counts as told.

        Args:
            agents: those that are here and have nothing else to do.
            is_busy: whether a request runs or anybody loads weights.
            now_s: monotonic time.
        """
        here = {agent.name: agent for agent in agents}
        self._end_current(here, now_s)
        self._asked_s = {name: at for name, at in self._asked_s.items() if now_s - at < STALE_S}
        if is_busy:
            self._busy_s = now_s
        last_s = max(self._asked_s.values(), default=float("-inf"))
        if self._current or now_s - self._busy_s < QUIET_S or now_s - last_s < PERIOD_S:
            return None
        due = [a for a in here.values() if self._is_due(a, now_s)]
        if not due:
            return None
        # Who was never measured first, then round robin by age.
        chosen = min(due, key=lambda a: (a.measured_s or 0.0, a.name)).name
        self._asked_s[chosen], self._current = now_s, chosen
        return chosen

    def _end_current(self, here: dict[AgentName, Seen], now_s: float) -> None:
        if self._current is None:
            return
        asked_s, seen = self._asked_s[self._current], here.get(self._current)
        answered = seen is not None and (seen.measured_s or float("-inf")) > asked_s
        if answered or now_s - asked_s >= GIVE_UP_S:
            self._current = None

    def _is_due(self, agent: Seen, now_s: float) -> bool:
        measured_s = float("-inf") if agent.measured_s is None else agent.measured_s
        # An agent that was asked in vain is not asked again and again; its next link is.
        asked_s = self._asked_s.get(agent.name, float("-inf"))
        fresh_s = max(measured_s, asked_s if asked_s >= agent.joined_s else float("-inf"))
        return now_s - fresh_s >= STALE_S and now_s - agent.joined_s >= QUIET_S
