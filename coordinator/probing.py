"""Which link is probed when: rarely, one at a time over the whole cluster, only while idle. Pure.

Links that real traffic has measured of late are left alone. A probe is over in a twentieth of a
second, and a machine that stood still for a part of it makes its link look slow: another one has to
agree with it, later. Times are monotonic seconds that the caller passes as `now_s`.
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
# Probes of a link one after the other; what they found is told together (`goodput`).
N_PROBES = 2
# Nobody may have been served for so long, and a new agent gets so long to settle.
QUIET_S = 2.0
# A probe of which nothing is heard is over.
GIVE_UP_S = 10.0


class Seen(NamedTuple):
    """One agent that could be probed: when it joined, and when its goodput was last measured."""

    name: AgentName
    joined_s: float
    measured_s: float | None


class _Asked(NamedTuple):
    """When an agent was asked last, and how often without a rest."""

    at_s: float
    n_probes: int


class Probing:
    """Chooses the next link to probe."""

    def __init__(self) -> None:
        self._busy_s = float("-inf")
        self._asked: dict[AgentName, _Asked] = {}
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
        self._asked = {n: a for n, a in self._asked.items() if now_s - a.at_s < STALE_S}
        if is_busy:
            self._busy_s = now_s
        last_s = max((asked.at_s for asked in self._asked.values()), default=float("-inf"))
        if self._current or now_s - self._busy_s < QUIET_S or now_s - last_s < PERIOD_S:
            return None
        due = [a for a in here.values() if self._is_due(a, now_s)]
        if not due:
            return None
        # Who was never measured first, then round robin by age.
        chosen = min(due, key=lambda a: (a.measured_s or 0.0, a.name))
        asked = self._asked_since(chosen)
        self._asked[chosen.name] = _Asked(now_s, asked.n_probes + 1 if asked else 1)
        self._current = chosen.name
        return chosen.name

    def _end_current(self, here: dict[AgentName, Seen], now_s: float) -> None:
        if self._current is None:
            return
        asked_s, seen = self._asked[self._current].at_s, here.get(self._current)
        answered = seen is not None and (seen.measured_s or float("-inf")) > asked_s
        if answered or now_s - asked_s >= GIVE_UP_S:
            self._current = None

    def _is_due(self, agent: Seen, now_s: float) -> bool:
        measured_s = float("-inf") if agent.measured_s is None else agent.measured_s
        asked = self._asked_since(agent)
        if asked and asked.n_probes < N_PROBES and measured_s > asked.at_s:
            return True
        # An agent that was asked in vain is not asked again and again; its next link is.
        fresh_s = max(measured_s, asked.at_s if asked else float("-inf"))
        return now_s - fresh_s >= STALE_S and now_s - agent.joined_s >= QUIET_S

    def _asked_since(self, agent: Seen) -> _Asked | None:
        """Return what this agent, on this link, was asked of late."""
        asked = self._asked.get(agent.name)
        return asked if asked and asked.at_s >= agent.joined_s else None
