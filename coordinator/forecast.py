"""What memory an agent will have left once all admitted contexts are as long as they may get. Pure.

KV pools are reserved and written when a plan is installed, for every token that can be admitted, so
contexts that grow take nothing more; what changes is the rest of the board. An agent's heartbeat
says what weights and KV may take altogether by what is free just then. Whoever holds more has begun
to eat into the reserve that it left free when it started: half of it is allowed for what the agent
itself and the system need besides, then the plan must change. From then on the agent is offered
less than it could hold, until it has clearly more: whatever took its memory may go on doing so, and
what was just moved off it shall not come back at once.
"""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from agent.ids import AgentName
from coordinator.known_agent import Agent, AgentState

__all__ = ["Forecast", "forecast_of", "offered_bytes", "scarce_after", "short_agents"]

# Part of the reserve that may be used up before anything is done about it.
USABLE_SHARE = 0.5
# What an agent that was short keeps free besides: its reserve once more, at least this part of what
# it could hold.
SPARE_SHARE = 0.1
# Part of it below which nothing is copied any more.
LAST_SHARE = 0.25


class Forecast(NamedTuple):
    """The memory of one agent.

    Attributes:
        budget_bytes: what weights and KV may take altogether.
        reserve_bytes: what shall stay free besides.
        held_bytes: weights and whole KV pool of the plan that it serves; those of all plans that
            are there, while one is moved to.
    """

    agent: AgentName
    budget_bytes: int
    reserve_bytes: int
    held_bytes: int

    @property
    def left_bytes(self) -> int:
        """What will be free, the reserve included; negative: more is needed than there is."""
        return self.budget_bytes + self.reserve_bytes - self.held_bytes

    @property
    def is_short(self) -> bool:
        """Whether it must be given less."""
        return self.held_bytes > 0 and self.left_bytes < (1 - USABLE_SHARE) * self.reserve_bytes

    @property
    def is_critical(self) -> bool:
        """Whether there is no time to copy anything: what it holds must be freed at once."""
        least_bytes = LAST_SHARE * self.reserve_bytes
        return least_bytes > 0 and self.is_short and self.left_bytes < least_bytes

    @property
    def spare_bytes(self) -> int:
        """What it keeps free besides once it was short."""
        return max(self.reserve_bytes, int(SPARE_SHARE * self.budget_bytes))

    def __str__(self) -> str:
        """Say what is the matter, for people."""
        return (
            f"agent {self.agent!r} runs out of memory: it holds {self.held_bytes} bytes of weights "
            f"and KV and will have {self.left_bytes} bytes left, of a reserve of "
            f"{self.reserve_bytes}"
        )


def forecast_of(agent: Agent) -> Forecast | None:
    """Return the forecast of an agent, None if it is gone or has not said how much is free."""
    beat, ready = agent.heartbeat, agent.ready
    if not agent.alive or beat is None or beat.budget_bytes is None:
        return None
    serves = ready is not None and agent.state is AgentState.READY
    held_bytes = ready.weights_bytes + ready.kv_pool_bytes if ready is not None and serves else 0
    if agent.coming is not None:
        # By what is there, as a pool may serve both plans.
        held_bytes = max(held_bytes, beat.unmapped_bytes)
    return Forecast(agent.name, beat.budget_bytes, beat.reserve_bytes, held_bytes)


def scarce_after(agent: Agent) -> int | None:
    """Return the budget at which an agent was short, after its last heartbeat; None = it is well.

    It is, once it could hold as much more as it keeps free twice.
    """
    forecast, scarce_bytes = forecast_of(agent), agent.scarce_bytes
    if forecast is None:
        return scarce_bytes
    if forecast.is_short:
        return forecast.budget_bytes
    if scarce_bytes is None or forecast.budget_bytes >= scarce_bytes + 2 * forecast.spare_bytes:
        return None
    return scarce_bytes


def offered_bytes(agent: Agent, to_the_last: bool = False) -> int:
    """Return what a plan may give an agent to hold: at most what it offered when it came.

    Args:
        agent: as the register knows it.
        to_the_last: nothing is kept free for what took the memory of an agent that was short.

    What it holds already it may keep, as long as it is not short: a plan shall not change for
    every page that something else on the board takes.
    """
    forecast = forecast_of(agent)
    if forecast is None:
        return agent.hello.memory_bytes
    kept_bytes = 0 if forecast.is_short else forecast.held_bytes
    is_scarce = agent.scarce_bytes is not None and not to_the_last
    budget_bytes = forecast.budget_bytes - (forecast.spare_bytes if is_scarce else 0)
    return max(0, min(agent.hello.memory_bytes, max(budget_bytes, kept_bytes)))


def short_agents(agents: Iterable[Agent], members: Collection[AgentName]) -> list[Forecast]:
    """Return the forecasts of those members of a plan that must be given less."""
    found = [forecast_of(agent) for agent in agents if agent.name in members]
    return [f for f in found if f is not None and f.is_short]
