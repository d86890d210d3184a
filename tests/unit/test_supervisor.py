"""When the long-lived coordinator plans: tables of events, then any order of them."""

from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.ids import AgentName, Epoch
from coordinator.supervisor import (
    Action,
    AgentsHere,
    Drain,
    DropPlan,
    Event,
    Install,
    Installed,
    InstallFailed,
    RequestBegan,
    RequestEnded,
    Seen,
    Supervisor,
    Tick,
    Undrain,
    Wait,
)

A, B, C = AgentName("a"), AgentName("b"), AgentName("c")


def here(*names: str, epoch: int = 0) -> AgentsHere:
    return AgentsHere(tuple(Seen(AgentName(name), Epoch(epoch)) for name in names))


def installs(actions: Sequence[Action]) -> list[Install]:
    return [action for action in actions if isinstance(action, Install)]


def serving(*names: str, min_agents: int = 1) -> Supervisor:
    """A supervisor with plan 1 in force on these agents since time 10."""
    supervisor = Supervisor(min_agents)
    supervisor.on_event(here(*names), 5.0)
    assert installs(supervisor.on_event(Tick(), 10.0)) == [Install(tuple(map(AgentName, names)))]
    assert supervisor.on_event(installed(1, *names), 10.0) == [Wait(None)]
    assert supervisor.in_force
    return supervisor


def installed(epoch: int, *names: str) -> Installed:
    return Installed(Epoch(epoch), frozenset(map(AgentName, names)))


def test_a_plan_is_made_once_enough_agents_have_settled() -> None:
    supervisor = Supervisor(2, settle_s=1.0)
    assert supervisor.on_event(Tick(), 0.0) == [Wait(None)]
    assert supervisor.on_event(here("a"), 1.0) == [Wait(None)]
    assert supervisor.n_missing == 1
    assert supervisor.on_event(here("a", "b"), 2.0) == [Wait(3.0)]
    assert supervisor.on_event(here("a", "b", "c"), 2.5) == [Wait(3.5)]
    assert supervisor.on_event(Tick(), 3.4) == [Wait(3.5)]
    assert supervisor.on_event(Tick(), 3.5) == [Install((A, B, C)), Wait(None)]
    # Asked once, not again while it is being done.
    assert supervisor.on_event(here("a", "b", "c"), 4.0) == [Wait(None)]
    assert supervisor.on_event(installed(1, "a", "b"), 5.0) == [Wait(None)]
    assert supervisor.in_force


def test_coming_and_going_for_ever_does_not_starve_the_others() -> None:
    supervisor = Supervisor(1, settle_s=1.0)
    made_s = None
    for i in range(1, 100):
        now_s = 0.5 * i
        flock = here("a", "b") if i % 2 else here("a")
        if installs(supervisor.on_event(flock, now_s)):
            made_s = now_s
            break
    assert made_s is not None
    assert 9.0 < made_s < 12.0


def test_a_lost_member_drops_the_plan_and_the_rest_serve() -> None:
    supervisor = serving("a", "b")
    actions = supervisor.on_event(here("a", epoch=1), 20.0)
    assert actions == [DropPlan("agent 'b' was lost"), Wait(21.0)]
    assert not supervisor.in_force
    assert supervisor.on_event(Tick(), 21.0) == [Install((A,)), Wait(None)]


def test_a_member_that_came_back_has_lost_its_part() -> None:
    supervisor = serving("a", "b")
    returned = AgentsHere((Seen(A, Epoch(1)), Seen(B)))
    assert supervisor.on_event(returned, 20.0) == [
        DropPlan("agent 'b' was lost"), Install((A, B)), Wait(None),
    ]  # fmt: skip


def test_nothing_changes_while_a_request_is_served() -> None:
    supervisor = serving("a", "b")
    assert supervisor.on_event(RequestBegan(), 20.0) == [Wait(None)]
    assert supervisor.on_event(here("a", epoch=1), 21.0) == [Wait(None)]
    assert supervisor.on_event(Tick(), 30.0) == [Wait(None)]
    ended = supervisor.on_event(RequestEnded("agent 'b' was lost: gone"), 31.0)
    assert ended == [DropPlan("agent 'b' was lost"), Install((A,)), Wait(None)]


def test_a_member_that_cannot_be_reached_ends_the_plan_though_it_is_here() -> None:
    supervisor = serving("a", "b")
    supervisor.on_event(RequestBegan(), 20.0)
    text = "agent 'b' was lost: its hot link is closed"
    actions = supervisor.on_event(RequestEnded(text), 21.0)
    assert actions == [DropPlan(text), Install((A, B)), Wait(None)]


def test_a_new_agent_is_used_when_idle() -> None:
    supervisor = serving("a")
    supervisor.on_event(RequestBegan(), 20.0)
    newcomer = AgentsHere((Seen(A, Epoch(1)), Seen(B)))
    assert supervisor.on_event(newcomer, 20.5) == [Wait(None)]
    assert supervisor.on_event(RequestEnded(), 21.0) == [Wait(21.5)]
    # Until then the former plan serves.
    assert supervisor.in_force
    assert supervisor.on_event(Tick(), 21.5) == [Install((A, B)), Wait(None)]
    # The plan leaves it out: no reason to ask again.
    assert supervisor.on_event(installed(1, "a"), 22.0) == [Wait(None)]
    assert supervisor.on_event(newcomer, 30.0) == [Wait(None)]
    # Nor if it goes; but if it comes back, it may be another board.
    assert supervisor.on_event(here("a", epoch=1), 31.0) == [Wait(None)]
    assert supervisor.in_force
    assert supervisor.on_event(newcomer, 40.0) == [Wait(41.0)]


def test_draining_replans_without_the_agent_and_undraining_with_it() -> None:
    supervisor = serving("a", "b")
    assert supervisor.on_event(Drain(B), 20.0) == [Wait(21.0)]
    assert supervisor.in_force
    assert supervisor.on_event(Tick(), 21.0) == [Install((A,)), Wait(None)]
    supervisor.on_event(installed(2, "a"), 22.0)
    # Also when it comes back.
    assert supervisor.on_event(here("a", epoch=2), 23.0) == [Wait(None)]
    both = AgentsHere((Seen(A, Epoch(2)), Seen(B)))
    assert supervisor.on_event(both, 24.0) == [Wait(None)]
    assert supervisor.on_event(Undrain(B), 30.0) == [Wait(31.0)]
    assert supervisor.on_event(Tick(), 31.0) == [Install((A, B)), Wait(None)]


def test_draining_below_the_minimum_ends_the_plan() -> None:
    supervisor = serving("a", "b", min_agents=2)
    reason = "agent 'b' is drained and too few others are here"
    assert supervisor.on_event(Drain(B), 20.0) == [DropPlan(reason), Wait(None)]
    assert supervisor.n_missing == 1


def test_failures_are_retried_ever_more_seldom_until_somebody_comes() -> None:
    supervisor = Supervisor(1)
    supervisor.on_event(here("a"), 0.0)
    now_s, gaps = 5.0, []
    assert installs(supervisor.on_event(Tick(), now_s))
    for _ in range(8):
        wait = supervisor.on_event(InstallFailed("no room"), now_s)[-1]
        assert isinstance(wait, Wait)
        assert wait.until_s is not None
        gaps.append(wait.until_s - now_s)
        now_s = wait.until_s
        assert installs(supervisor.on_event(Tick(), now_s))
    assert gaps == [2, 4, 8, 16, 32, 60, 60, 60]
    supervisor.on_event(InstallFailed("no room"), now_s)
    assert supervisor.problem == "no room"
    assert supervisor.on_event(here("a", "b"), now_s + 1) == [Wait(now_s + 2)]


def test_no_better_plan_leaves_the_former_one_in_force() -> None:
    supervisor = serving("a")
    both = AgentsHere((Seen(A, Epoch(1)), Seen(B)))
    supervisor.on_event(both, 20.0)
    assert installs(supervisor.on_event(Tick(), 21.0))
    assert supervisor.on_event(InstallFailed("no", kept=True), 21.0) == [Wait(None)]
    assert supervisor.in_force
    assert supervisor.on_event(Tick(), 99.0) == [Wait(None)]


def test_a_board_that_fails_is_set_aside_if_the_others_suffice() -> None:
    supervisor = Supervisor(1)
    supervisor.on_event(here("a", "b"), 0.0)
    supervisor.on_event(Tick(), 5.0)
    supervisor.on_event(InstallFailed("b is broken", frozenset({B})), 6.0)
    assert supervisor.set_aside == {B}
    assert installs(supervisor.on_event(Tick(), 20.0)) == [Install((A,))]
    supervisor.on_event(installed(2, "a"), 21.0)
    # Another process of that name has another chance.
    supervisor.on_event(here("a", epoch=2), 30.0)
    supervisor.on_event(AgentsHere((Seen(A, Epoch(2)), Seen(B))), 31.0)
    assert installs(supervisor.on_event(Tick(), 40.0)) == [Install((A, B))]


def test_the_only_board_is_not_set_aside() -> None:
    supervisor = Supervisor(1)
    supervisor.on_event(here("a"), 0.0)
    supervisor.on_event(Tick(), 5.0)
    supervisor.on_event(InstallFailed("a is broken", frozenset({A})), 6.0)
    assert installs(supervisor.on_event(Tick(), 8.0)) == [Install((A,))]


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
        self.asked: Install | None = None

    def happen(self, event: Event) -> None:
        actions = self.supervisor.on_event(event, self.now_s)
        assert isinstance(actions[-1], Wait)
        assert len(actions) <= 3
        if self.busy or self.asked:
            assert len(actions) == 1
        for action in actions[:-1]:
            match action:
                case Install(agents):
                    self.asked = action
                    assert len(agents) >= self.min_agents
                    assert set(agents) <= set(self.held) - self.supervisor.drained
                case DropPlan():
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

    @precondition(lambda self: self.asked)
    @rule(fails=st.booleans(), culprits=st.frozensets(names))
    def finish(self, fails: bool, culprits: frozenset[AgentName]) -> None:
        assert self.asked is not None
        members = frozenset(self.asked.names)
        self.asked = None
        if fails or not members <= self.held.keys():
            self.happen(InstallFailed("no", culprits & members))
        else:
            self.epoch += 1
            self.held |= dict.fromkeys(members, Epoch(self.epoch))
            self.happen(Installed(Epoch(self.epoch), members))

    @precondition(lambda self: not self.asked and not self.busy and self.supervisor.in_force)
    @rule()
    def begin(self) -> None:
        self.busy = True
        self.happen(RequestBegan())

    @precondition(lambda self: self.busy)
    @rule(lost=st.sampled_from(["", "it did not answer"]))
    def end(self, lost: str) -> None:
        self.busy = False
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
