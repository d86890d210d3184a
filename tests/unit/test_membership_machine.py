"""Membership under any order of events: one live agent a name, and losses told exactly once."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agent.ids import AgentName, Epoch, InstanceId
from agent.messages import Bye, Failed, Heartbeat, Hello, Ready, Versions
from coordinator.membership import AgentState, Membership
from coordinator.membership_events import (
    Action,
    Assigned,
    BecameReady,
    Event,
    LinkLost,
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


class MembershipMachine(RuleBasedStateMachine):
    """Keeps a simple model beside it: who was welcomed on which link and not lost since."""

    def __init__(self) -> None:
        super().__init__()
        self.members = Membership(OURS)
        self.now_s = 0.0
        self.here: dict[AgentName, tuple[bytes, InstanceId]] = {}
        self.holding: dict[AgentName, Epoch] = {}

    def happen(self, event: Event) -> list[Action]:
        actions = self.members.on_event(event, self.now_s)
        for action in actions:
            if isinstance(action, Lost):
                assert self.here.pop(action.name)[0] == action.link
                assert self.holding.pop(action.name, Epoch(0)) == action.epoch
            elif isinstance(action, BecameReady):
                assert self.holding[action.name] == action.ready.epoch
        return actions

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

    @rule(link=links, epoch=epochs, fails=st.booleans())
    def answer(self, link: bytes, epoch: Epoch, fails: bool) -> None:
        message = Failed(epoch, "no") if fails else Ready(epoch, 1, 1, 0, 0.1)
        for action in self.happen(Received(link, message)):
            if not isinstance(action, BecameReady) and hasattr(action, "epoch"):
                self.holding.pop(action.name, None)

    @rule(name=names, epoch=epochs)
    def assign(self, name: AgentName, epoch: Epoch) -> None:
        assert self.happen(Assigned(name, epoch)) == []
        if name in self.here:
            self.holding[name] = epoch

    @rule(name=names, epoch=epochs)
    def release(self, name: AgentName, epoch: Epoch) -> None:
        assert self.happen(Released(name, epoch)) == []
        if self.holding.get(name) == epoch:
            del self.holding[name]

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
            assert agent.epoch == self.holding.get(name, 0)
            busy = agent.state in (AgentState.LOADING, AgentState.READY)
            assert busy == (name in self.holding)


MembershipMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None
)
TestMembershipMachine = MembershipMachine.TestCase
