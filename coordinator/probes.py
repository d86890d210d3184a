"""Probes of the links between coordinator and agents: who is asked, and what it may pull for it."""

from collections.abc import Callable, Sequence

from agent.bulk import BulkServer
from agent.ids import AgentName
from coordinator.identity import LinkSecrets
from coordinator.membership import Agent
from coordinator.probing import Probing, Seen

__all__ = ["Probes"]


class Probes:
    """Decides by `probing`, from the register's agents.

    Args:
        bulk: serves the bytes.
        is_busy: whether a request runs; called from the control thread.
    """

    def __init__(self, bulk: BulkServer, is_busy: Callable[[], bool]) -> None:
        self._bulk = bulk
        self._is_busy = is_busy
        self._probing = Probing()

    def choose(self, agents: Sequence[Agent], now_s: float) -> AgentName | None:
        """Return who is to be told to measure its link now, if anybody.

        Args:
            agents: those that are here.
            now_s: monotonic time.
        """
        is_loading = any(agent.is_loading for agent in agents)
        seen = [Seen(a.name, a.joined_s, a.measured.goodput_s) for a in agents]
        return self._probing.next(seen, is_loading or self._is_busy(), now_s)

    def grant(self, given: LinkSecrets) -> None:
        """Let the agent of a link pull what it measures with."""
        self._bulk.grant_probe(given.bulk_token, given.key)
