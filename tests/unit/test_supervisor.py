"""When the long-lived coordinator plans: tables of events."""

from collections.abc import Sequence

from agent.ids import AgentName, Epoch
from coordinator.supervisor import (
    Action,
    Advised,
    AgentsHere,
    Cordon,
    Drain,
    DropPlan,
    Install,
    Installed,
    InstallFailed,
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


def test_a_text_moves_to_use_a_new_agent_and_to_free_a_drained_one() -> None:
    supervisor = serving("a")
    supervisor.on_event(RequestBegan(), 20.0)
    newcomer = AgentsHere((Seen(A, Epoch(1)), Seen(B)))
    assert supervisor.on_event(newcomer, 20.5) == [Wait(21.5)]
    assert supervisor.on_event(Tick(), 21.5) == [Move((A, B)), Wait(None)]
    # One at a time.
    assert supervisor.on_event(Drain(A), 22.0) == [Wait(None)]
    assert supervisor.on_event(installed(2, "a", "b"), 24.0) == [Move((B,)), Wait(None)]
    assert supervisor.on_event(installed(3, "b"), 26.0) == [Wait(None)]
    assert supervisor.in_force


def test_a_move_that_fails_leaves_the_plan_and_is_tried_again_later() -> None:
    supervisor = serving("a", "b")
    supervisor.on_event(RequestBegan(), 20.0)
    supervisor.on_event(Drain(B), 20.0)
    assert supervisor.on_event(Tick(), 21.0) == [Move((A,)), Wait(None)]
    failed = InstallFailed("it does not fit", kept=True)
    assert supervisor.on_event(failed, 22.0) == [Wait(24.0)]
    assert supervisor.in_force
    assert supervisor.on_event(Tick(), 24.0) == [Move((A,)), Wait(None)]


def test_a_text_that_stopped_does_not_wait_for_things_to_settle() -> None:
    supervisor = serving("a", "b", "c", min_agents=3)
    supervisor.on_event(RequestBegan(), 20.0)
    supervisor.on_event(here("a", "c", epoch=1), 21.0)
    actions = supervisor.on_event(TextStopped("agent 'b' was lost"), 21.1)
    # Nor for as many agents as a plan is begun with.
    assert actions == [DropPlan("agent 'b' was lost"), Install((A, C)), Wait(None)]
    supervisor.on_event(installed(2, "a", "c"), 22.0)
    assert supervisor.on_event(RequestBegan(), 22.0) == [Wait(None)]
    assert supervisor.on_event(RequestEnded(), 30.0) == [Wait(None)]
    assert supervisor.in_force


def test_a_text_that_stopped_does_not_wait_for_what_a_move_has_met_with() -> None:
    supervisor = serving("a", "b", "c")
    supervisor.on_event(RequestBegan(), 20.0)
    assert supervisor.on_event(Drain(C), 20.1) == [Wait(21.1)]
    assert supervisor.on_event(Tick(), 21.1) == [Move((A, B)), Wait(None)]
    # B's loss is seen, and the move given up, before the text meets with it.
    supervisor.on_event(here("a", "c", epoch=1), 22.0)
    supervisor.on_event(InstallFailed("agent 'b' was lost", kept=True), 22.1)
    actions = supervisor.on_event(TextStopped("agent 'b' was lost"), 22.2)
    assert actions == [DropPlan("agent 'b' was lost"), Install((A,)), Wait(None)]


def test_who_is_late_is_set_aside_though_fewer_are_left_than_a_plan_is_begun_with() -> None:
    supervisor = serving("a", "b", "c", min_agents=3)
    supervisor.on_event(RequestBegan(), 20.0)
    supervisor.on_event(here("a", "c", epoch=1), 21.0)
    supervisor.on_event(TextStopped("agent 'b' was lost"), 21.1)
    late = InstallFailed("agent 'c' is late", frozenset({C}))
    assert installs(supervisor.on_event(late, 30.0)) == [Install((A,))]
    assert supervisor.set_aside == {C}


def test_a_new_agent_is_used_when_idle() -> None:
    supervisor = serving("a")
    newcomer = AgentsHere((Seen(A, Epoch(1)), Seen(B)))
    assert supervisor.on_event(newcomer, 20.5) == [Wait(21.5)]
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


def test_a_cordoned_agent_keeps_its_part_and_gets_none_of_the_next_plan() -> None:
    supervisor = serving("a", "b")
    assert supervisor.on_event(Cordon(B), 20.0) == [Wait(None)]
    assert supervisor.on_event(Tick(), 30.0) == [Wait(None)]
    assert supervisor.in_force
    assert (supervisor.usable, supervisor.cordoned) == ((A,), {B})
    # Another reason for a plan, and it is left out.
    everybody = AgentsHere((Seen(A, Epoch(1)), Seen(B, Epoch(1)), Seen(C)))
    supervisor.on_event(everybody, 31.0)
    assert supervisor.on_event(Tick(), 32.0) == [Install((A, C)), Wait(None)]
    supervisor.on_event(installed(2, "a", "c"), 33.0)
    assert supervisor.on_event(Undrain(B), 40.0) == [Wait(41.0)]
    assert supervisor.on_event(Tick(), 41.0) == [Install((A, B, C)), Wait(None)]


def test_uncordoning_a_member_changes_nothing() -> None:
    supervisor = serving("a", "b")
    supervisor.on_event(RequestBegan(), 19.0)
    supervisor.on_event(Cordon(B), 20.0)
    assert supervisor.on_event(Undrain(B), 30.0) == [Wait(None)]
    assert supervisor.on_event(Tick(), 40.0) == [Wait(None)]


def test_a_cordoned_agent_that_comes_is_not_used() -> None:
    supervisor = serving("a")
    supervisor.on_event(Cordon(B), 20.0)
    newcomer = AgentsHere((Seen(A, Epoch(1)), Seen(B)))
    assert supervisor.on_event(newcomer, 21.0) == [Wait(None)]
    assert supervisor.on_event(Tick(), 30.0) == [Wait(None)]


def test_a_cordoned_agent_that_is_drained_is_freed() -> None:
    supervisor = serving("a", "b")
    supervisor.on_event(Cordon(B), 20.0)
    assert supervisor.on_event(Drain(B), 30.0) == [Install((A,)), Wait(None)]


def test_a_plan_that_cannot_stay_is_replaced_and_a_text_with_it_once_it_stops() -> None:
    supervisor = serving("a", "b")
    why = "agent 'b' runs out of memory"
    assert supervisor.on_event(Unfit(why), 20.0) == [
        DropPlan(why), Install((A, B)), Wait(None),
    ]  # fmt: skip
    supervisor.on_event(installed(2, "a"), 21.0)
    supervisor.on_event(RequestBegan(), 22.0)
    supervisor.on_event(Advised(), 22.5)
    supervisor.on_event(InstallFailed("the move is given up", kept=True), 22.9)
    assert supervisor.on_event(Unfit(why), 23.0) == [Wait(None)]
    assert not supervisor.in_force
    assert supervisor.on_event(TextStopped("it is gone"), 23.1) == [
        DropPlan(why), Install((A, B)), Wait(None),
    ]  # fmt: skip
    # Not again for the same reason, and not for a plan that is not in force any more.
    assert supervisor.on_event(Unfit(why), 23.2) == [Wait(None)]
    supervisor.on_event(installed(3, "a"), 24.0)
    assert supervisor.in_force


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


def test_a_text_that_stopped_without_a_plan_does_not_cost_the_next_one() -> None:
    supervisor = serving("a", "b")
    supervisor.on_event(RequestBegan(), 20.0)
    # A move that broke down took the plan with it; then the text meets with that.
    supervisor.on_event(Drain(B), 20.1)
    supervisor.on_event(Tick(), 21.2)
    supervisor.on_event(InstallFailed("the move broke down", kept=False), 21.3)
    actions = supervisor.on_event(TextStopped("the plan is gone"), 21.4)
    assert Install((A,)) in actions
    assert supervisor.on_event(installed(2, "a"), 22.0) == [Wait(None)]
    assert supervisor.in_force
