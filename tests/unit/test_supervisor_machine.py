"""When the long-lived coordinator plans: any order of events."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.ids import AgentName, Epoch
from coordinator.supervisor import (
    AgentsHere,
    Cordon,
    Drain,
    DropPlan,
    Event,
    Install,
    Installed,
    InstallFailed,
    Interrupted,
    Move,
    RequestBegan,
    RequestEnded,
    Seen,
    Supervisor,
    TextStopped,
    Tick,
    Undrain,
    Unfit,
    Wait,
)

A, B, C = AgentName("a"), AgentName("b"), AgentName("c")

names = st.sampled_from([A, B, C])


class SupervisorMachine(RuleBasedStateMachine):
    """Any order of events: plans only when allowed, and always in the end when possible."""

    def __init__(self) -> None:
        super().__init__()
        self.min_agents = 2
        self.supervisor = Supervisor(self.min_agents)
        self.now_s = 0.0
        self.held: dict[AgentName, Epoch] = {}
        self.epoch = 0
        self.busy = False
        self.stopped = False
        self.asked: Install | Move | None = None

    def happen(self, event: Event) -> None:
        actions = self.supervisor.on_event(event, self.now_s)
        assert isinstance(actions[-1], Wait)
        assert len(actions) <= 3
        if self.asked:
            assert len(actions) == 1
        for action in actions[:-1]:
            match action:
                case Install(agents) | Move(agents):
                    self.asked = action
                    assert isinstance(action, Move) == self.busy
                    least = 1 if self.busy or self.stopped else self.min_agents
                    assert len(agents) >= least
                    barred = self.supervisor.drained | self.supervisor.cordoned
                    assert set(agents) <= set(self.held) - barred
                case DropPlan():
                    assert not self.busy
                    self.held = dict.fromkeys(self.held, Epoch(0))

    def look(self) -> None:
        self.happen(AgentsHere(tuple(Seen(n, e) for n, e in sorted(self.held.items()))))

    @rule(name=names)
    def come(self, name: AgentName) -> None:
        self.held[name] = Epoch(0)
        self.look()

    @rule(name=names)
    def go(self, name: AgentName) -> None:
        self.held.pop(name, None)
        self.look()

    @rule(name=names, on=st.booleans())
    def drain(self, name: AgentName, on: bool) -> None:
        self.happen(Drain(name) if on else Undrain(name))

    @rule(name=names)
    def cordon(self, name: AgentName) -> None:
        kept = self.supervisor.in_force
        self.happen(Cordon(name))
        # By itself no reason to give a plan up.
        assert self.supervisor.in_force == kept

    @precondition(lambda self: not self.asked)
    @rule()
    def is_unfit(self) -> None:
        self.happen(Unfit("it runs out of memory"))
        assert not self.supervisor.in_force

    @precondition(lambda self: self.asked)
    @rule(fails=st.booleans(), culprits=st.frozensets(names))
    def finish(self, fails: bool, culprits: frozenset[AgentName]) -> None:
        assert self.asked is not None
        members, move = frozenset(self.asked.names), isinstance(self.asked, Move)
        self.asked = None
        if fails or not members <= self.held.keys():
            self.happen(InstallFailed("no", culprits & members, kept=move))
        else:
            self.epoch += 1
            self.held |= dict.fromkeys(members, Epoch(self.epoch))
            self.happen(Installed(Epoch(self.epoch), members))

    @precondition(lambda self: isinstance(self.asked, Install) and self.stopped)
    @rule()
    def interrupt(self) -> None:
        problem, self.asked = self.supervisor.problem, None
        assert self.supervisor.on_event(Interrupted(), self.now_s) == [Wait(None)]
        assert not self.supervisor.in_force
        assert self.supervisor.problem == problem
        self.end("")

    @precondition(lambda self: not self.asked and not self.busy and self.supervisor.in_force)
    @rule()
    def begin(self) -> None:
        self.busy, self.stopped = True, False
        self.happen(RequestBegan())

    @precondition(lambda self: self.busy and not self.asked)
    @rule()
    def stop(self) -> None:
        self.busy, self.stopped = False, True
        self.happen(TextStopped("it did not answer"))

    @precondition(lambda self: self.busy or self.stopped)
    @rule(lost=st.sampled_from(["", "it did not answer"]))
    def end(self, lost: str) -> None:
        self.busy = self.stopped = False
        self.happen(RequestEnded(lost))

    @rule(passed_s=st.floats(0, 5))
    def tick(self, passed_s: float) -> None:
        self.now_s += passed_s
        self.happen(Tick())

    @invariant()
    def force_needs_members_that_are_ready(self) -> None:
        if self.supervisor.in_force:
            assert self.epoch in self.held.values()

    @invariant()
    def enough_agents_are_served_in_the_end(self) -> None:
        if self.busy or self.asked:
            return
        if len(self.supervisor.usable) >= self.min_agents and not self.supervisor.in_force:
            self.now_s += 100.0
            self.look()
            assert self.asked or self.supervisor.in_force


SupervisorMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None
)
TestSupervisorMachine = SupervisorMachine.TestCase
