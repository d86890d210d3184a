"""Who is here: one test a rule of the membership state machine."""

import msgspec
import pytest

from agent.ids import AgentName, Epoch, InstanceId
from agent.messages import Bye, Failed, Heartbeat, Hello, Loading, Ready, Versions
from agent.migration_messages import Begun, Have, MoveEnded, MoveFailed, MoveReport
from coordinator.membership import Agent, AgentState, Coming, Membership
from coordinator.membership_events import (
    Assigned,
    BecameReady,
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

OURS = Versions("0.1.0", 1, 1, 1)
PI = AgentName("pi-1")


def hello(name: str = "pi-1", instance: str = "a", **changes: object) -> Hello:
    plain = Hello(AgentName(name), InstanceId(instance), OURS, 4, 4, 1 << 30, 4e9)
    return msgspec.structs.replace(plain, **changes)


def beat(progress: int = 0) -> Heartbeat:
    return Heartbeat(progress, 1 << 30, 0)


def joined(state: AgentState = AgentState.IDLE) -> Membership:
    members = Membership(OURS)
    members.on_event(Received(b"L1", hello()), 0.0)
    if state != AgentState.JOINING:
        members.on_event(Received(b"L1", beat()), 0.0)
    if state in (AgentState.LOADING, AgentState.READY):
        members.on_event(Assigned(PI, Epoch(3)), 0.0)
    if state == AgentState.READY:
        members.on_event(Received(b"L1", Ready(Epoch(3), 1, 2, 0, 0.1)), 0.0)
    agent = members.get(PI)
    assert agent is not None
    assert agent.state == state
    return members


def state_of(members: Membership, name: str = "pi-1") -> AgentState:
    agent = members.get(AgentName(name))
    assert agent is not None
    return agent.state


def test_hello_is_welcomed_and_a_heartbeat_makes_it_idle() -> None:
    members = Membership(OURS)
    assert members.on_event(Received(b"L1", hello()), 0.0) == [Welcomed(b"L1", PI)]
    assert state_of(members) == AgentState.JOINING
    assert members.on_event(Received(b"L1", beat(5)), 0.5) == []
    assert state_of(members) == AgentState.IDLE
    agent = members.by_link(b"L1")
    assert agent is not None
    assert agent.heartbeat == beat(5)
    assert [a.name for a in members.alive()] == ["pi-1"]


def test_loading_then_ready() -> None:
    members = joined(AgentState.LOADING)
    assert members.on_event(Received(b"L1", Loading(Epoch(3), 5, 9)), 0.1) == []
    agent = members.get(PI)
    assert agent is not None
    assert agent.loading == Loading(Epoch(3), 5, 9)
    ready = Ready(Epoch(3), 9, 1, 0, 0.5)
    assert members.on_event(Received(b"L1", ready), 0.2) == [BecameReady(PI, ready)]
    assert (agent.state, agent.ready) == (AgentState.READY, ready)


def test_an_agent_may_be_assigned_before_its_first_heartbeat() -> None:
    members = joined(AgentState.JOINING)
    members.on_event(Assigned(PI, Epoch(1)), 0.1)
    assert state_of(members) == AgentState.LOADING
    members.on_event(Received(b"L1", beat()), 0.2)
    assert state_of(members) == AgentState.LOADING


def test_answers_of_another_epoch_are_ignored() -> None:
    members = joined(AgentState.LOADING)
    for message in Ready(Epoch(2), 1, 1, 0, 0.1), Failed(Epoch(2), "x"), Loading(Epoch(4), 1, 2):
        assert members.on_event(Received(b"L1", message), 0.1) == []
    assert state_of(members) == AgentState.LOADING


def test_failed_makes_it_idle_and_tells_why() -> None:
    members = joined(AgentState.LOADING)
    actions = members.on_event(Received(b"L1", Failed(Epoch(3), "disk full")), 0.1)
    assert actions == [LoadFailed(PI, Epoch(3), "disk full")]
    assert state_of(members) == AgentState.IDLE


def test_release_makes_it_idle_but_only_for_its_epoch() -> None:
    members = joined(AgentState.READY)
    members.on_event(Released(PI, Epoch(2)), 0.1)
    assert state_of(members) == AgentState.READY
    members.on_event(Released(PI, Epoch(3)), 0.1)
    assert state_of(members) == AgentState.IDLE


@pytest.mark.parametrize("stopped", [False, True])
def test_a_local_agent_may_starve_but_not_stop(stopped: bool) -> None:
    members = Membership(OURS, starved_silence_s=15.0)
    members.on_event(Received(b"L1", hello()), 0.0)
    late = Tick(frozenset({PI}), frozenset({PI} if stopped else ()))
    assert members.on_event(late, 3.4 if stopped else 14.9) == []
    (lost,) = members.on_event(late, 3.6 if stopped else 15.1)
    assert isinstance(lost, Lost)
    assert lost.reason.endswith("its process is stopped") == stopped


def test_lost_after_some_silence() -> None:
    members = joined(AgentState.READY)
    assert members.on_event(Tick(), 3.4) == []
    lost = members.on_event(Tick(), 3.6)
    assert lost == [Lost(PI, b"L1", Epoch(3), "no heartbeat for 3.6 s", silent=True)]
    assert state_of(members) == AgentState.LOST
    assert members.on_event(Tick(), 99.0) == []
    assert members.alive() == []


def test_who_owes_an_answer_is_given_up_sooner() -> None:
    members = joined(AgentState.READY)
    assert members.on_event(Tick(frozenset({PI})), 2.4) == []
    lost = members.on_event(Tick(frozenset({PI})), 2.6)
    assert lost == [Lost(PI, b"L1", Epoch(3), "no heartbeat for 2.6 s", silent=True)]


def test_any_message_counts_as_a_sign_of_life() -> None:
    members = joined(AgentState.LOADING)
    members.on_event(Received(b"L1", Loading(Epoch(3), 1, 2)), 3.0)
    assert members.on_event(Tick(), 6.0) == []


def test_bye_leaves_and_a_lost_link_loses() -> None:
    members = joined(AgentState.READY)
    assert members.on_event(Received(b"L1", Bye("SIGTERM")), 1.0) == [
        Lost(PI, b"L1", Epoch(3), "it left: SIGTERM")
    ]
    assert state_of(members) == AgentState.LEFT
    assert members.on_event(LinkLost(b"L1", "closed"), 1.1) == []
    members = joined(AgentState.READY)
    assert members.on_event(LinkLost(b"L1", "reset"), 1.0) == [Lost(PI, b"L1", Epoch(3), "reset")]
    assert state_of(members) == AgentState.LOST


def test_a_second_live_instance_is_refused_and_the_first_undisturbed() -> None:
    members = joined(AgentState.READY)
    (refused,) = members.on_event(Received(b"L2", hello(instance="b")), 1.0)
    assert isinstance(refused, Refuse)
    assert refused == Refuse(
        b"L2",
        "another live agent is named 'pi-1'; give this one another --name, or wait a few "
        "seconds if it replaces the first",
        retry=True,
    )
    assert state_of(members) == AgentState.READY
    assert members.by_link(b"L1") is members.get(PI)
    # Nothing the refused one sends touches the first.
    (again,) = members.on_event(Received(b"L2", beat(9)), 1.1)
    assert isinstance(again, Refuse)
    assert members.on_event(Received(b"L2", Bye()), 1.2) == []
    assert members.on_event(LinkLost(b"L2", "closed"), 1.3) == []
    assert state_of(members) == AgentState.READY


def test_another_instance_joins_once_the_first_is_gone() -> None:
    members = joined(AgentState.READY)
    members.on_event(Tick(), 4.0)
    assert members.on_event(Received(b"L2", hello(instance="b")), 4.1) == [Welcomed(b"L2", PI)]
    assert state_of(members) == AgentState.JOINING
    # The first wakes up: it is no longer registered and must not pass for the second.
    (refused,) = members.on_event(Received(b"L1", beat()), 4.2)
    assert isinstance(refused, Refuse)
    assert refused.retry


def test_the_same_process_dials_again() -> None:
    members = joined(AgentState.READY)
    actions = members.on_event(Received(b"L2", hello()), 1.0)
    assert actions == [
        Lost(PI, b"L1", Epoch(3), "its control link was renewed"),
        Welcomed(b"L2", PI),
    ]
    assert members.by_link(b"L1") is None
    assert members.on_event(LinkLost(b"L1", "closed"), 1.1) == []
    assert state_of(members) == AgentState.JOINING


def test_a_repeated_hello_of_an_idle_agent_is_welcomed_again() -> None:
    members = joined()
    assert members.on_event(Received(b"L1", hello()), 1.0) == [Welcomed(b"L1", PI)]
    assert len(members.alive()) == 1


def test_a_link_carries_one_agent() -> None:
    members = joined(AgentState.READY)
    actions = members.on_event(Received(b"L1", hello("pi-2", "z")), 1.0)
    assert actions == [
        Lost(PI, b"L1", Epoch(3), "its control link was renewed"),
        Welcomed(b"L1", AgentName("pi-2")),
    ]
    assert state_of(members) == AgentState.LOST


def test_other_versions_are_refused_with_both_in_the_text() -> None:
    for theirs in (
        Versions("0.2.0", 2, 1, 1),
        Versions("0.2.0", 1, 2, 1),
        Versions("0.2.0", 1, 1, 2),
    ):
        members = Membership(OURS)
        (refused,) = members.on_event(Received(b"L1", hello(versions=theirs)), 0.0)
        assert isinstance(refused, Refuse)
        assert not refused.retry
        assert refused.reason == (
            f"agent 'pi-1' has headwise 0.2.0 (protocol {theirs.protocol}, layout "
            f"{theirs.layout}, numerics {theirs.numerics}), the coordinator headwise 0.1.0 "
            f"(protocol 1, layout 1, numerics 1); install the same headwise release on both"
        )
        assert members.agents() == []
    members = Membership(OURS)
    newer = hello(versions=Versions("0.1.1", 1, 1, 1))
    assert members.on_event(Received(b"L1", newer), 0.0) == [Welcomed(b"L1", PI)]


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"name": "a/b"},
        {"name": "x" * 65},
        {"name": "-x"},
        {"name": "naïve"},
        {"name": "a\n"},
        {"instance_id": ""},
        {"n_threads": 0},
        {"n_cores": -1},
        {"memory_bytes": -1},
        {"bytes_per_s": float("nan")},
        {"bytes_per_s": float("inf")},
        {"bytes_per_s": -1.0},
    ],
)
def test_senseless_hellos_are_refused(changes: dict[str, object]) -> None:
    members = Membership(OURS)
    (refused,) = members.on_event(Received(b"L1", hello(**changes)), 0.0)
    assert isinstance(refused, Refuse)
    assert members.agents() == []


def test_the_register_is_bounded() -> None:
    members = Membership(OURS)
    for i in range(256):
        (action,) = members.on_event(Received(b"%d" % i, hello(f"pi-{i}")), 0.0)
        assert isinstance(action, Welcomed)
    (refused,) = members.on_event(Received(b"x", hello("one-more")), 0.0)
    assert isinstance(refused, Refuse)
    assert refused.retry
    # Those that are gone are remembered, but not for ever.
    for i in range(2000):
        link, name = b"t%d" % i, f"t-{i}"
        members.on_event(LinkLost(b"255" if i == 0 else b"t%d" % (i - 1), "closed"), 1.0 + i)
        (action,) = members.on_event(Received(link, hello(name)), 1.0 + i)
        assert isinstance(action, Welcomed)
    assert len(members.agents()) <= 512
    assert len(members.alive()) == 256


def test_stuck_is_reported_once_while_an_answer_is_owed() -> None:
    members = joined(AgentState.READY)
    awaited = Tick(frozenset({PI}))

    def at(now_s: float, progress: int, tick: Tick = awaited) -> list[object]:
        members.on_event(Received(b"L1", beat(progress)), now_s)
        return list(members.on_event(tick, now_s))

    assert [at(t, 7) for t in range(1, 11)] == [[]] * 10
    assert at(12.0, 7) == [Stuck(PI, 11.0)]
    assert at(13.0, 7) == []
    # Progress, or nothing owed, ends it; then it may happen again.
    assert at(14.0, 8) == []
    assert at(23.0, 8) == []
    assert at(25.0, 8) == [Stuck(PI, 11.0)]
    assert at(26.0, 8, Tick()) == []
    assert at(90.0, 8, Tick()) == []
    assert state_of(members) == AgentState.READY


def test_assignments_to_agents_that_are_gone_change_nothing() -> None:
    members = joined()
    members.on_event(LinkLost(b"L1", "closed"), 1.0)
    members.on_event(Assigned(PI, Epoch(9)), 1.1)
    members.on_event(Assigned(AgentName("nobody"), Epoch(9)), 1.1)
    assert state_of(members) == AgentState.LOST
    assert members.get(AgentName("nobody")) is None


def with_coming(*messages: Loading | Ready | Failed) -> tuple[Membership, Agent]:
    """An agent that serves epoch 3 and was assigned epoch 4, and what it has said since."""
    members = joined(AgentState.READY)
    members.on_event(Assigned(PI, Epoch(4)), 0.1)
    for message in messages:
        members.on_event(Received(b"L1", message), 0.2)
    agent = members.get(PI)
    assert agent is not None
    return members, agent


SERVED = Ready(Epoch(3), 1, 2, 0, 0.1)
READY_4 = Ready(Epoch(4), 7, 8, 0, 0.5)


def test_an_assignment_to_come_leaves_the_one_that_is_served() -> None:
    members, agent = with_coming()
    assert (agent.state, agent.epoch, agent.ready) == (AgentState.READY, 3, SERVED)
    assert agent.coming == Coming(Epoch(4))
    loading = Loading(Epoch(4), 5, 9)
    assert members.on_event(Received(b"L1", loading), 0.3) == []
    assert agent.loading_of(Epoch(4)) == loading
    assert members.on_event(Received(b"L1", READY_4), 0.4) == [BecameReady(PI, READY_4)]
    assert agent.coming == Coming(Epoch(4), loading, READY_4)
    assert (agent.state, agent.epoch, agent.ready) == (AgentState.READY, 3, SERVED)
    assert members.on_event(Received(b"L1", READY_4), 0.5) == []


def test_what_fails_to_come_is_forgotten_and_the_agent_serves_on() -> None:
    members, agent = with_coming()
    actions = members.on_event(Received(b"L1", Failed(Epoch(4), "disk full")), 0.3)
    assert actions == [LoadFailed(PI, Epoch(4), "disk full")]
    assert (agent.coming, agent.reason) == (None, "disk full")
    assert (agent.state, agent.epoch, agent.ready) == (AgentState.READY, 3, SERVED)


@pytest.mark.parametrize(
    ("said", "state"), [(READY_4, AgentState.READY), (Loading(Epoch(4), 5, 9), AgentState.LOADING)]
)
def test_releasing_what_is_served_puts_what_is_to_come_in_its_place(
    said: Ready | Loading, state: AgentState
) -> None:
    members, agent = with_coming(said)
    members.on_event(Released(PI, Epoch(3)), 0.3)
    assert (agent.state, agent.epoch, agent.coming) == (state, 4, None)
    assert (agent.ready or agent.loading) == said
    members.on_event(Released(PI, Epoch(4)), 0.4)
    assert (agent.state, agent.epoch) == (AgentState.IDLE, 0)


def test_releasing_what_is_to_come_clears_it_alone() -> None:
    members, agent = with_coming(READY_4)
    members.on_event(Released(PI, Epoch(4)), 0.3)
    assert (agent.state, agent.epoch, agent.coming) == (AgentState.READY, 3, None)


@pytest.mark.parametrize(
    "end", [LinkLost(b"L1", "cut"), Received(b"L1", Bye()), Received(b"L1", hello())]
)
def test_a_loss_takes_both_and_names_the_epoch_that_was_served(end: LinkLost | Received) -> None:
    members, agent = with_coming(READY_4)
    lost = members.on_event(end, 0.3)[0]
    assert isinstance(lost, Lost)
    assert lost.epoch == 3
    assert (agent.epoch, agent.coming) == (0, None)
    now = members.get(PI)
    assert now is not None
    assert not now.holds(Epoch(4))


def test_another_assignment_to_come_takes_the_place_of_the_former() -> None:
    members, agent = with_coming(READY_4)
    members.on_event(Assigned(PI, Epoch(5)), 0.3)
    assert agent.coming == Coming(Epoch(5))
    assert members.on_event(Received(b"L1", Failed(Epoch(4), "late")), 0.4) == []


@pytest.mark.parametrize(
    "report",
    [Begun(1, 4, True), Have(1, 4, 2, 0, 9), MoveFailed(1, 4, "no pages"), MoveEnded(1, 4)],
)
def test_reports_of_a_migration_are_handed_on_and_are_a_sign_of_life(report: MoveReport) -> None:
    members, agent = with_coming()
    assert members.on_event(Received(b"L1", report), 3.0) == [Reported(PI, report)]
    assert members.on_event(Tick(), 6.0) == []
    assert agent.coming == Coming(Epoch(4))
    (refused,) = members.on_event(Received(b"L9", report), 3.0)
    assert isinstance(refused, Refuse)
    assert refused.retry
