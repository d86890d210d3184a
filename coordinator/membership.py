"""Which agents are here and what state they are in: a state machine, events in, actions out.

    HELLO -> JOINING --(heartbeat)--> IDLE --(Assigned)--> LOADING --(READY)--> READY
    any of them --(BYE)--> LEFT, --(link lost, heartbeats missed)--> LOST; both return by HELLO

READY in one epoch, an agent may be assigned another one beside it (`Agent.coming`): it stays READY
while it loads that, and goes over to it when the first is released.

A link is the routing id of an agent's control connection. One live agent holds a name: another
instance is refused until the first is gone, and never disturbs it. Pure: `control` owns the
socket and the clock, and carries the actions out.
"""

from collections.abc import Iterable
from dataclasses import replace

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
from agent.migration_messages import Begun, Have, MoveEnded, MoveFailed
from coordinator.admission import refusal
from coordinator.forecast import scarce_after
from coordinator.known_agent import Agent, AgentState, Coming
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
    Reported,
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
    "Coming",
    "Event",
    "LinkLost",
    "LoadFailed",
    "Lost",
    "Membership",
    "Received",
    "Refuse",
    "Released",
    "Reported",
    "Stuck",
    "Tick",
    "Welcomed",
]

MAX_AGENTS = 256


class Membership:
    """The register of agents.

    Args:
        versions: those of this process.
        heartbeat_s: how often agents send a heartbeat.
        silence_s: silence for so long is a loss.
        awaited_silence_s: the same for an agent that owes an answer: a text waits for it.
        starved_silence_s: silence below that is no loss unless the agent's process is stopped: it
            wants for a processor; 0: not known of anyone.
        stuck_s: how long an agent may owe an answer without progress before it is reported.
    """

    def __init__(
        self,
        versions: Versions,
        heartbeat_s: float = 1.0,
        silence_s: float = 3.5,
        awaited_silence_s: float = 1.4,
        starved_silence_s: float = 0.0,
        stuck_s: float = 10.0,
    ) -> None:
        self._versions = versions
        self._silence_s = max(silence_s, 2.5 * heartbeat_s)
        self._awaited_silence_s = max(awaited_silence_s, 2.5 * heartbeat_s)
        self._starved_silence_s = starved_silence_s
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
                self._assign(name, epoch)
            case Released(name, epoch):
                self._release(name, epoch)
            case Tick(awaited) as tick:
                return [*self._silent(tick, now_s), *self._stalled(awaited, now_s)]
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
        agent = Agent(link, hello, heard_s=now_s, joined_s=now_s)
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
                agent.measured = agent.measured.after(message, now_s)
                agent.scarce_bytes = scarce_after(agent)
            case Bye(reason):
                text = f"it left{': ' if reason else ''}{reason}"
                return [self._remove(agent, AgentState.LEFT, text)]
            case Loading() | Ready() | Failed() if message.epoch == agent.epoch:
                return self._on_assignment(agent, message)
            case Loading() | Ready() | Failed() if agent.coming is not None:
                return self._on_coming(agent, agent.coming, message)
            case Begun() | Have() | MoveFailed() | MoveEnded():
                return [Reported(agent.name, message)]
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
                self._go_on(agent)
                agent.reason = reason
                return [LoadFailed(agent.name, epoch, reason)]

    def _on_coming(
        self, agent: Agent, coming: Coming, message: Loading | Ready | Failed
    ) -> list[Action]:
        """Take in what an agent says of the assignment to come; the one it serves stays."""
        if message.epoch != coming.epoch or coming.ready is not None:
            return []
        match message:
            case Loading():
                agent.coming = replace(coming, loading=message)
                return []
            case Ready():
                agent.coming = replace(coming, ready=message)
                return [BecameReady(agent.name, message)]
            case Failed(epoch, reason):
                agent.coming, agent.reason = None, reason
                return [LoadFailed(agent.name, epoch, reason)]

    def _assign(self, name: AgentName, epoch: Epoch) -> None:
        agent = self._agents.get(name)
        if agent is None or not agent.alive:
            return
        if agent.state is AgentState.READY and agent.epoch != epoch:
            agent.coming = Coming(epoch)
            return
        if agent.coming is not None and agent.coming.epoch == epoch:
            agent.coming = None
        self._move(agent, AgentState.LOADING, Coming(epoch))

    def _release(self, name: AgentName, epoch: Epoch) -> None:
        agent = self._agents.get(name)
        if agent is None or not agent.alive:
            return
        if agent.coming is not None and agent.coming.epoch == epoch:
            agent.coming = None
        elif agent.epoch == epoch:
            self._go_on(agent)

    def _go_on(self, agent: Agent) -> None:
        """Let an agent go over to the assignment to come, or be idle: it has no other now."""
        held, agent.coming = agent.coming, None
        if held is None:
            self._move(agent, AgentState.IDLE, Coming(Epoch(0)))
        else:
            self._move(agent, AgentState.READY if held.ready else AgentState.LOADING, held)

    def _move(self, agent: Agent, state: AgentState, held: Coming) -> None:
        agent.state, agent.epoch = state, held.epoch
        agent.loading, agent.ready = held.loading, held.ready
        agent.progress_s, agent.reported_stuck = None, False

    def _remove(self, agent: Agent, state: AgentState, reason: str) -> Lost:
        lost = Lost(agent.name, agent.link, agent.epoch, reason)
        agent.state, agent.reason = state, reason
        agent.epoch, agent.coming = Epoch(0), None
        self._by_link.pop(agent.link, None)
        return lost

    def _forget_oldest(self) -> None:
        """Keep room for one more agent by forgetting the one that has been gone longest."""
        gone = [a for a in self._agents.values() if not a.alive]
        if gone and len(self._agents) >= 2 * MAX_AGENTS:
            del self._agents[min(gone, key=lambda a: a.heard_s).name]

    def _silent(self, tick: Tick, now_s: float) -> Iterable[Action]:
        for agent in self.alive():
            silent_s = now_s - agent.heard_s
            is_awaited, is_stopped = agent.name in tick.awaited, agent.name in tick.stopped
            most_s = self._awaited_silence_s if is_awaited else self._silence_s
            # Whoever stopped a process may let it go on in a moment.
            if silent_s > max(most_s, self._silence_s if is_stopped else self._starved_silence_s):
                why = ": its process is stopped" if is_stopped else ""
                text = f"no heartbeat for {silent_s:.1f} s{why}"
                yield self._remove(agent, AgentState.LOST, text)._replace(silent=True)

    def _stalled(self, awaited: frozenset[AgentName], now_s: float) -> Iterable[Action]:
        for agent in self.alive():
            if agent.name not in awaited:
                agent.progress_s = None
            elif agent.progress_s is None:
                agent.progress_s = now_s
            elif now_s - agent.progress_s > self._stuck_s and not agent.reported_stuck:
                agent.reported_stuck = True
                yield Stuck(agent.name, now_s - agent.progress_s)
