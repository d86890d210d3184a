"""Which agents are here and what state they are in: a state machine, events in, actions out.

    HELLO -> JOINING --(heartbeat)--> IDLE --(Assigned)--> LOADING --(READY)--> READY
    any of them --(BYE)--> LEFT, --(link lost, heartbeats missed)--> LOST; both return by HELLO

A link is the routing id of an agent's control connection. One live agent holds a name: another
instance is refused until the first is gone, and never disturbs it. Pure: `control` owns the
socket and the clock, and carries the actions out.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from agent.ids import AgentName, Epoch
from agent.messages import (
    AgentMessage,
    Bye,
    Failed,
    Heartbeat,
    Hello,
    Loading,
    Ready,
    Versions,
)
from coordinator.admission import refusal
from coordinator.membership_events import (
    Action,
    Assigned,
    BecameReady,
    Event,
    LinkLost,
    LoadFailed,
    Lost,
    Received,
    Refuse,
    Released,
    Stuck,
    Tick,
    Welcomed,
)

__all__ = [
    "Action",
    "Agent",
    "AgentState",
    "Assigned",
    "BecameReady",
    "Event",
    "LinkLost",
    "LoadFailed",
    "Lost",
    "Membership",
    "Received",
    "Refuse",
    "Released",
    "Stuck",
    "Tick",
    "Welcomed",
]

MAX_AGENTS = 256


class AgentState(Enum):
    """Where an agent stands; JOINING = welcomed, not heard from since."""

    JOINING = "joining"
    IDLE = "idle"
    LOADING = "loading"
    READY = "ready"
    LOST = "lost"
    LEFT = "left"


GONE = (AgentState.LOST, AgentState.LEFT)


@dataclass
class Agent:
    """What is known of one agent; changed by `Membership` only.

    Attributes:
        epoch: the assignment it loads or serves; 0 = none.
        reason: why it is gone, or what failed last.
        progress_s: when its progress counter last changed, or an answer began to be owed.
    """

    link: bytes
    hello: Hello
    heard_s: float
    state: AgentState = AgentState.JOINING
    epoch: Epoch = field(default=Epoch(0))
    reason: str = ""
    heartbeat: Heartbeat | None = None
    loading: Loading | None = None
    ready: Ready | None = None
    progress_s: float | None = None
    reported_stuck: bool = False

    @property
    def name(self) -> AgentName:
        """The agent's name."""
        return self.hello.name

    @property
    def alive(self) -> bool:
        """Whether the agent is here, in whatever state."""
        return self.state not in GONE


class Membership:
    """The register of agents.

    Args:
        versions: those of this process.
        heartbeat_s: how often agents send a heartbeat.
        missed_heartbeats: silence for so many of them (and a half, for jitter) is a loss.
        stuck_s: how long an agent may owe an answer without progress before it is reported.
    """

    def __init__(
        self,
        versions: Versions,
        heartbeat_s: float = 1.0,
        missed_heartbeats: int = 3,
        stuck_s: float = 10.0,
    ) -> None:
        self._versions = versions
        self._silence_s = (missed_heartbeats + 0.5) * heartbeat_s
        self._stuck_s = stuck_s
        self._agents: dict[AgentName, Agent] = {}
        self._by_link: dict[bytes, Agent] = {}

    def agents(self) -> list[Agent]:
        """Return all agents known, those that are gone included, by name."""
        return [self._agents[name] for name in sorted(self._agents)]

    def alive(self) -> list[Agent]:
        """Return the agents that are here and can be given atoms, by name."""
        return [agent for agent in self.agents() if agent.alive]

    def get(self, name: AgentName) -> Agent | None:
        """Return what is known of an agent, gone or not."""
        return self._agents.get(name)

    def by_link(self, link: bytes) -> Agent | None:
        """Return the agent that is here on this link."""
        return self._by_link.get(link)

    def on_event(self, event: Event, now_s: float) -> list[Action]:
        """Take in what happened at monotonic time now_s; return what to do, in order."""
        match event:
            case Received(link, Hello() as hello):
                return self._on_hello(link, hello, now_s)
            case Received(link, message):
                return self._on_message(link, message, now_s)
            case LinkLost(link, reason):
                agent = self._by_link.get(link)
                return [self._remove(agent, AgentState.LOST, reason)] if agent else []
            case Assigned(name, epoch):
                self._move(name, AgentState.LOADING, epoch)
            case Released(name, epoch):
                agent = self._agents.get(name)
                if agent is not None and agent.epoch == epoch:
                    self._move(name, AgentState.IDLE, Epoch(0))
            case Tick(awaited):
                return [*self._silent(now_s), *self._stalled(awaited, now_s)]
        return []

    def _on_hello(self, link: bytes, hello: Hello, now_s: float) -> list[Action]:
        before = self._agents.get(hello.name)
        holder = before if before is not None and before.alive else None
        reason = refusal(hello, self._versions)
        if reason:
            return [Refuse(link, reason, retry=False)]
        if holder is not None and holder.hello.instance_id != hello.instance_id:
            text = (
                f"another live agent is named {hello.name!r}; give this one another --name, or "
                f"wait a few seconds if it replaces the first"
            )
            return [Refuse(link, text, retry=True)]
        if holder is None and len(self.alive()) >= MAX_AGENTS:
            text = f"the cluster has {MAX_AGENTS} agents already; stop one first"
            return [Refuse(link, text, retry=True)]
        # The same process dialled again: what it held over the former link is gone.
        replaced = {id(a): a for a in (holder, self._by_link.get(link)) if a is not None}
        why = "its control link was renewed"
        losses = [self._remove(agent, AgentState.LOST, why) for agent in replaced.values()]
        agent = Agent(link, hello, heard_s=now_s)
        self._forget_oldest()
        self._agents[hello.name] = self._by_link[link] = agent
        return [*(loss for loss in losses if loss.epoch), Welcomed(link, hello.name)]

    def _on_message(self, link: bytes, message: AgentMessage, now_s: float) -> list[Action]:
        agent = self._by_link.get(link)
        if agent is None:
            if isinstance(message, Bye):
                return []
            text = "this link is not registered (any more); dial again and say HELLO"
            return [Refuse(link, text, retry=True)]
        agent.heard_s = now_s
        if agent.state == AgentState.JOINING:
            agent.state = AgentState.IDLE
        match message:
            case Heartbeat():
                if agent.heartbeat is None or agent.heartbeat.progress != message.progress:
                    agent.progress_s, agent.reported_stuck = None, False
                agent.heartbeat = message
            case Bye(reason):
                text = f"it left{': ' if reason else ''}{reason}"
                return [self._remove(agent, AgentState.LEFT, text)]
            case Loading() | Ready() | Failed() if message.epoch == agent.epoch:
                return self._on_assignment(agent, message)
        return []

    def _on_assignment(self, agent: Agent, message: Loading | Ready | Failed) -> list[Action]:
        if agent.state != AgentState.LOADING:
            return []
        match message:
            case Loading():
                agent.loading = message
                return []
            case Ready():
                agent.state, agent.ready = AgentState.READY, message
                return [BecameReady(agent.name, message)]
            case Failed(epoch, reason):
                self._move(agent.name, AgentState.IDLE, Epoch(0))
                agent.reason = reason
                return [LoadFailed(agent.name, epoch, reason)]

    def _move(self, name: AgentName, state: AgentState, epoch: Epoch) -> None:
        agent = self._agents.get(name)
        if agent is not None and agent.alive:
            agent.state, agent.epoch = state, epoch
            agent.loading = agent.ready = agent.progress_s = None
            agent.reported_stuck = False

    def _remove(self, agent: Agent, state: AgentState, reason: str) -> Lost:
        agent.state, agent.reason = state, reason
        self._by_link.pop(agent.link, None)
        return Lost(agent.name, agent.link, agent.epoch, reason)

    def _forget_oldest(self) -> None:
        """Keep room for one more agent by forgetting the one that has been gone longest."""
        gone = [a for a in self._agents.values() if not a.alive]
        if gone and len(self._agents) >= 2 * MAX_AGENTS:
            del self._agents[min(gone, key=lambda a: a.heard_s).name]

    def _silent(self, now_s: float) -> Iterable[Action]:
        for agent in self.alive():
            silent_s = now_s - agent.heard_s
            if silent_s > self._silence_s:
                text = f"no heartbeat for {silent_s:.1f} s"
                yield self._remove(agent, AgentState.LOST, text)

    def _stalled(self, awaited: frozenset[AgentName], now_s: float) -> Iterable[Action]:
        for agent in self.alive():
            if agent.name not in awaited:
                agent.progress_s = None
            elif agent.progress_s is None:
                agent.progress_s = now_s
            elif now_s - agent.progress_s > self._stuck_s and not agent.reported_stuck:
                agent.reported_stuck = True
                yield Stuck(agent.name, now_s - agent.progress_s)
