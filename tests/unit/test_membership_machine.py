"""Membership under any order of events: one live agent a name, losses told exactly once, and an
assignment to come that never disturbs the one that is served."""

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agent.ids import AgentName, Epoch, InstanceId
from agent.messages import Bye, Failed, Heartbeat, Hello, Loading, Ready, Versions
from coordinator.membership import AgentState, Membership
from coordinator.membership_events import (
    Action,
    Assigned,
    BecameReady,
    Event,
    LinkLost,
    LoadFailed,
    Lost,
    Received,
    Released,
    Tick,
    Welcomed,
)

OURS = Versions("0.1.0", 1, 1, 1)
names = st.sampled_from([AgentName("a"), AgentName("b"), AgentName("c")])
links = st.sampled_from([b"1", b"2", b"3", b"4"])
instances = st.sampled_from([InstanceId("x"), InstanceId("y")])
epochs = st.integers(1, 3).map(Epoch)
answers = st.sampled_from(["loading", "ready", "failed"])


@dataclass
class Part:
    """An assignment in the model."""

    epoch: Epoch
    ready: bool = False


class MembershipMachine(RuleBasedStateMachine):
    """Keeps a simple model beside it: who was welcomed on which link and not lost since."""

    def __init__(self) -> None:
        super().__init__()
        self.members = Membership(OURS)
        self.now_s = 0.0
        self.here: dict[AgentName, tuple[bytes, InstanceId]] = {}
        # What an agent serves or loads, then what is to come; at most two.
        self.parts: dict[AgentName, list[Part]] = {}

    def happen(self, event: Event) -> list[Action]:
        actions = self.members.on_event(event, self.now_s)
        for action in actions:
            if isinstance(action, Lost):
                assert self.here.pop(action.name)[0] == action.link
                parts = self.parts.pop(action.name, [])
                assert action.epoch == (parts[0].epoch if parts else 0)
        return actions

    def part(self, name: AgentName, epoch: Epoch) -> Part | None:
        return next((p for p in self.parts.get(name, []) if p.epoch == epoch), None)

    def forget(self, name: AgentName, epoch: Epoch) -> None:
        self.parts[name] = [p for p in self.parts.get(name, []) if p.epoch != epoch]

    @rule(name=names, link=links, instance=instances)
    def hello(self, name: AgentName, link: bytes, instance: InstanceId) -> None:
        before = self.here.get(name)
        message = Hello(name, instance, OURS, 4, 4, 1 << 30, 1e9)
        actions = self.happen(Received(link, message))
        if before is not None and before[1] != instance:
            assert not any(isinstance(a, Welcomed) for a in actions)
            assert self.here[name] == before
        else:
            assert actions[-1] == Welcomed(link, name)
            # Whoever held nothing on this link or under this name is replaced silently.
            self.here = {n: at for n, at in self.here.items() if n != name and at[0] != link}
            self.here[name] = (link, instance)

    @rule(link=links, message=st.sampled_from([Heartbeat(1, 2, 3), Bye()]))
    def say(self, link: bytes, message: Heartbeat | Bye) -> None:
        self.happen(Received(link, message))

    @rule(link=links, epoch=epochs, what=answers)
    def answer(self, link: bytes, epoch: Epoch, what: str) -> None:
        ready = Ready(epoch, 1, 1, 0, 0.1)
        messages = {"loading": Loading(epoch, 1, 2), "ready": ready, "failed": Failed(epoch, "no")}
        name = next((n for n, at in self.here.items() if at[0] == link), None)
        part = self.part(name, epoch) if name else None
        actions = self.happen(Received(link, messages[what]))
        if name is None:
            return
        if part is None or part.ready or what == "loading":
            assert actions == []
        elif what == "ready":
            assert actions == [BecameReady(name, ready)]
            part.ready = True
        else:
            assert actions == [LoadFailed(name, epoch, "no")]
            self.forget(name, epoch)

    @rule(name=names, epoch=epochs)
    def assign(self, name: AgentName, epoch: Epoch) -> None:
        assert self.happen(Assigned(name, epoch)) == []
        if name not in self.here:
            return
        served = self.parts.get(name, [])[:1]
        if served and served[0].ready and served[0].epoch != epoch:
            self.parts[name] = [*served, Part(epoch)]
        else:
            coming = [p for p in self.parts.get(name, [])[1:] if p.epoch != epoch]
            self.parts[name] = [Part(epoch), *coming]

    @rule(name=names, epoch=epochs)
    def release(self, name: AgentName, epoch: Epoch) -> None:
        assert self.happen(Released(name, epoch)) == []
        self.forget(name, epoch)

    @rule(link=links)
    def lose(self, link: bytes) -> None:
        self.happen(LinkLost(link, "closed"))

    @rule(passed_s=st.floats(0, 5))
    def tick(self, passed_s: float) -> None:
        self.now_s += passed_s
        self.happen(Tick(frozenset(self.here)))

    @invariant()
    def agrees_with_the_model(self) -> None:
        alive = {a.name: a for a in self.members.alive()}
        assert {n: a.link for n, a in alive.items()} == {n: at[0] for n, at in self.here.items()}
        for name, agent in alive.items():
            assert self.members.by_link(agent.link) is agent
            parts = self.parts.get(name, [])
            states = (AgentState.LOADING, AgentState.READY)
            assert [agent.epoch] == [p.epoch for p in parts[:1]] or not (parts or agent.epoch)
            assert (agent.state in states) == bool(parts)
            assert (agent.state is AgentState.READY) == any(p.ready for p in parts[:1])
            assert (agent.coming is None) == (len(parts) < 2)
            for epoch in (Epoch(1), Epoch(2), Epoch(3)):
                part = self.part(name, epoch)
                assert agent.holds(epoch) == (part is not None)
                assert agent.is_ready(epoch) == (part is not None and part.ready)
            assert agent.is_loading == any(not p.ready for p in parts)
        for agent in self.members.agents():
            assert agent.alive or (agent.epoch, agent.coming) == (0, None)


MembershipMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None
)
TestMembershipMachine = MembershipMachine.TestCase
