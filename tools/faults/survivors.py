"""Whether some of the boards could hold the model: the production planner is asked."""

from collections.abc import Collection
from pathlib import Path

from agent.ids import AgentName, ModelId
from coordinator.installer import N_CONTEXTS
from coordinator.membership import AgentState
from coordinator.planner.cost import Link, Offer, PlanRequest
from coordinator.planner.place import make_plan
from coordinator.status import AgentStatus
from kernels.errors import ResourceError
from weights.directory import ModelDirectory

__all__ = ["Survivors"]

# Times do not matter here, only bytes.
LINK = Link(1e-4, 1e8)
GONE = frozenset({AgentState.LOST.value, AgentState.LEFT.value})


class Survivors:
    """Asks whether a plan could be made.

    Args:
        model: model directory.
        context_tokens: as the coordinator was told, in exact mode.
    """

    def __init__(self, model: Path, context_tokens: int) -> None:
        with ModelDirectory.open(model) as directory:
            self._model_id = ModelId(directory.model_id)
            self._geometry = directory.geometry
        self._request = PlanRequest(
            context_tokens, context_tokens, "f32", "f32", "spread", N_CONTEXTS
        )
        # By the memory that boards offer, in bytes: the planner takes its time.
        self._known: dict[tuple[int, ...], bool] = {}

    def suffice(self, agents: Collection[AgentStatus], names: Collection[str]) -> bool:
        """Return whether the model and its contexts fit on those of the agents that are usable.

        Args:
            agents: as the coordinator tells them; those that it has lost do not count.
            names: of the boards that nothing keeps from working.
        """
        usable = [a for a in agents if a.name in names and a.state not in GONE]
        sizes = tuple(sorted(a.memory_offered_bytes for a in usable))
        if sizes not in self._known:
            offers = [Offer(AgentName(f"{i}"), size, 1e9) for i, size in enumerate(sizes)]
            try:
                make_plan(self._model_id, self._geometry, offers, self._request, LINK)
                self._known[sizes] = True
            except ResourceError:
                self._known[sizes] = False
        return self._known[sizes]
