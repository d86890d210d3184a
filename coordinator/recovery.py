"""What a cluster without a supervisor does when a board is lost: it goes on with the others."""

import logging
from typing import TYPE_CHECKING

from agent.ids import AgentName
from kernels.errors import (
    AgentLostError,
    FaultyAgentError,
    HeadwiseError,
    LateAgentsError,
    RemoteError,
)

if TYPE_CHECKING:
    from coordinator.cluster import Cluster

__all__ = ["Recovery"]

log = logging.getLogger(__name__)


class Recovery:
    """Finds a plan without the agents that were lost or are faulty.

    Args:
        cluster: whose plans are replaced.
    """

    def __init__(self, cluster: "Cluster") -> None:
        self._cluster = cluster
        self._faulty: set[AgentName] = set()

    def go_on_without(self, why: RemoteError) -> None:
        """Put a plan of whoever is left into force.

        Args:
            why: what made the plan in force useless.

        Raises:
            RemoteError: nobody is left, or the others cannot hold the model.
        """
        cluster = self._cluster
        cluster.moves.abandon(str(why))
        # Whoever comes back meanwhile is used by the next plan: this ends, whoever comes and goes.
        out = self._note(why)
        while True:
            names = [n for n in cluster.agent_names() if n not in self._faulty | out]
            if not names:
                raise why
            log.warning("%s; going on with %s", why, ", ".join(names))
            try:
                cluster.install(cluster.make_plan(names), end_texts=False)
            except RemoteError as e:
                culprits = self._note(e) | cluster.control.failed(cluster.epoch)
                if not culprits - out:
                    raise RemoteError(f"{why}; without it: {e}") from e
                out |= culprits
                why = e
            except HeadwiseError as e:
                left = set(names) - set(cluster.agent_names())
                if not left:
                    raise RemoteError(f"{why}; without it: {e}") from e
                out |= left  # while the plan was made
            else:
                return

    def _note(self, why: RemoteError) -> set[AgentName]:
        """Return whom an error blames, and let go of who is lost."""
        if isinstance(why, FaultyAgentError):
            self._faulty.add(AgentName(why.agent))
            return {AgentName(why.agent)}
        if isinstance(why, LateAgentsError):
            return set(map(AgentName, why.agents))
        if isinstance(why, AgentLostError) and why.agent:
            # It may be here still, and only its hot link is not.
            self._cluster.control.lose(AgentName(why.agent), str(why))
            return {AgentName(why.agent)}
        return set()
