import random

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agent import events as ev
from agent import migration_messages as move
from agent.kv_shape import KvShape
from agent.messages import (
    Assignment,
    Bye,
    Failed,
    Hello,
    Loading,
    ProbeLink,
    Ready,
    Refused,
    Release,
    Shutdown,
    Versions,
    Welcome,
)
from agent.runtime import Runtime
from agent.session import DIAL_S, MAX_RETRY_S, Link, Session

VERSIONS = Versions("0.1.0", 1, 1, 1)
HELLO = Hello("a", "i", VERSIONS, 4, 4, 1000, 1e9)
SHAPE = KvShape(2, 8, np.uint16, 192, 192, 3)
WELCOME = Welcome(7, 1, 2, 1.0, VERSIONS)


def assignment(epoch, run_id=7):
    return Assignment(run_id, epoch, 0, "m", 1, (), (), "f16", "f16", 1, 1, 1, 1)


def ready(epoch):
    return Ready(epoch, 1, 2, 3, 0.5)


def key(epoch, run_id=7):
    return ev.LoadKey(run_id, epoch)


def fresh():
    return Session(HELLO, "tcp://c:1", random.Random(1))


def joined():
    session = fresh()
    assert session.on_event(ev.Tick(), 0.0) == [ev.Dial()]
    assert session.on_event(ev.LinkUp(), 0.1) == [ev.Send(HELLO)]
    assert session.on_event(ev.Received(WELCOME), 0.2) == [ev.OpenHot(WELCOME)]
    return session


def loaded(session, epoch, now_s=1.0):
    told = assignment(epoch)
    assert ev.Load(told) in session.on_event(ev.Received(told), now_s)
    assert session.on_event(ev.Loaded(key(epoch), ready(epoch), SHAPE), now_s) == [
        ev.Adopt(key(epoch))
    ]
    assert session.on_event(ev.Joined(key(epoch)), now_s) == [ev.Send(ready(epoch))]


def test_the_way_to_ready():
    session = joined()
    told = assignment(1)
    assert session.on_event(ev.Received(told), 1.0) == [ev.Load(told)]
    assert session.on_event(ev.Progress(key(1), 5, 9), 1.1) == [ev.Send(Loading(1, 5, 9))]
    assert session.on_event(ev.Loaded(key(1), ready(1), SHAPE), 1.2) == [ev.Adopt(key(1))]
    assert session.on_event(ev.Joined(key(1)), 1.3) == [ev.Send(ready(1))]
    assert session.on_event(ev.Tick(), 1.25) == [ev.SendHeartbeat(1)]


def test_a_link_is_probed_when_nothing_is_loading():
    probe = ev.Received(ProbeLink(1 << 20))
    assert fresh().on_event(probe, 0.0) == []
    session = joined()
    assert session.on_event(probe, 1.0) == [ev.Probe(1 << 20)]
    session.on_event(ev.Received(assignment(1)), 1.0)
    assert session.on_event(probe, 1.0) == []
    session.on_event(ev.Loaded(key(1), ready(1), SHAPE), 1.0)
    assert session.on_event(probe, 1.0) == [ev.Probe(1 << 20)]


def test_heartbeats_keep_their_rhythm():
    session = joined()
    assert session.next_due_s() == pytest.approx(1.2)
    assert session.on_event(ev.Tick(), 1.0) == []
    assert session.on_event(ev.Tick(), 1.2) == [ev.SendHeartbeat(0)]
    assert session.next_due_s() == pytest.approx(2.2)


def test_a_changed_speed_is_told_at_once_and_the_rhythm_starts_from_there():
    assert fresh().on_event(ev.SpeedChanged(), 0.0) == []
    session = joined()
    assert session.on_event(ev.SpeedChanged(), 0.5) == [ev.SendHeartbeat(0)]
    assert session.on_event(ev.Tick(), 1.2) == []
    assert session.on_event(ev.Tick(), 1.5) == [ev.SendHeartbeat(0)]


@pytest.mark.parametrize("heartbeat_s", [0.0, -5.0, 1e9])
def test_an_absurd_heartbeat_period_is_bounded(heartbeat_s):
    session = fresh()
    session.on_event(ev.Tick(), 0.0)
    session.on_event(ev.Received(Welcome(7, 1, 2, heartbeat_s, VERSIONS)), 0.0)
    assert 0.05 <= session.next_due_s() <= 10.0


def test_a_lost_link_drops_everything_and_dials_again():
    session = joined()
    loaded(session, 1)
    session.on_event(ev.Received(assignment(2)), 2.0)
    actions = session.on_event(ev.LinkLost("gone"), 3.0)
    assert actions[0] == ev.Warn("lost the coordinator at tcp://c:1: gone")
    assert actions[1:] == [ev.CancelLoad(key(2)), ev.CloseMoves(), ev.CloseHot(), ev.HangUp()]
    assert session.on_event(ev.Loaded(key(2), ready(2), SHAPE), 3.0) == [ev.Drop(key(2))]
    assert session.on_event(ev.Tick(), session.next_due_s()) == [ev.Dial()]


def test_retries_back_off_with_jitter():
    session, now_s, waits = fresh(), 0.0, []
    for _ in range(12):
        assert session.on_event(ev.Tick(), now_s) == [ev.Dial()]
        actions = session.on_event(ev.Tick(), now_s + DIAL_S)
        assert "no answer from the coordinator at tcp://c:1 within 5 s" in actions[0].text
        waits.append(session.next_due_s() - now_s - DIAL_S)
        now_s = session.next_due_s()
    assert 0.1 <= waits[0] <= 0.2
    assert all(MAX_RETRY_S / 2 <= w <= MAX_RETRY_S for w in waits[6:])
    assert len(set(waits)) == len(waits)


def test_a_rejection_is_said_once_and_tried_again_with_a_new_socket():
    session, now_s, said = fresh(), 0.0, []
    for reason in ["no keys", "no keys", "no keys", "other key", "no keys"]:
        assert session.on_event(ev.Tick(), now_s) == [ev.Dial()]
        actions = session.on_event(ev.Rejected(reason), now_s)
        assert actions[-1] == ev.HangUp()
        said.append(len(actions) == 2)
        now_s = session.next_due_s()
    assert said == [True, False, False, True, True]
    assert "cannot join the coordinator at tcp://c:1: no keys." in session._complaint
    # After a link that worked it is news again; while there is one it cannot come.
    session.on_event(ev.Tick(), now_s)
    session.on_event(ev.LinkUp(), now_s)
    session.on_event(ev.Received(WELCOME), now_s)
    assert session.on_event(ev.Rejected("no keys"), now_s) == []
    session.on_event(ev.LinkLost("x"), now_s)
    session.on_event(ev.Tick(), session.next_due_s())
    assert isinstance(session.on_event(ev.Rejected("no keys"), now_s + 9)[0], ev.Warn)


def test_a_new_assignment_takes_the_place_of_one_that_is_loading():
    session = joined()
    session.on_event(ev.Received(assignment(1)), 1.0)
    told = assignment(2)
    assert session.on_event(ev.Received(told), 1.0) == [ev.CancelLoad(key(1)), ev.Load(told)]
    assert session.on_event(ev.Loaded(key(1), ready(1), SHAPE), 1.0) == [ev.Drop(key(1))]


@pytest.mark.parametrize("told", [assignment(1), assignment(0), assignment(3, run_id=8)])
def test_old_epochs_and_other_runs_are_refused(told):
    session = joined()
    loaded(session, 1)
    (action,) = session.on_event(ev.Received(told), 2.0)
    assert isinstance(action.message, Failed)
    assert "not newer" in action.message.reason


def test_two_epochs_at_most():
    session = joined()
    loaded(session, 1)
    loaded(session, 2)
    (action,) = session.on_event(ev.Received(assignment(3)), 2.0)
    assert action == ev.Send(Failed(3, "2 epochs are held already; release one first"))
    # Nothing is going to move any more, as far as this board knows.
    assert session.on_event(ev.Received(Release(1)), 2.0) == [ev.Drop(key(1)), ev.CloseMoves()]
    loaded(session, 4)


def test_release_of_a_loading_epoch_cancels_it():
    session = joined()
    session.on_event(ev.Received(assignment(1)), 1.0)
    assert session.on_event(ev.Received(Release(1)), 1.0) == [ev.CancelLoad(key(1))]


def test_failures_are_told():
    session = joined()
    session.on_event(ev.Received(assignment(1)), 1.0)
    actions = session.on_event(ev.LoadFailed(key(1), "no memory"), 1.0)
    assert actions == [ev.Drop(key(1)), ev.Send(Failed(1, "no memory"))]
    assert session.on_event(ev.LoadFailed(key(1), "again"), 1.0) == []


STALE = key(1, run_id=6)
STALE_EVENTS = [
    (ev.Progress(STALE, 1, 2), []), (ev.Loaded(STALE, ready(1), SHAPE), [ev.Drop(STALE)]),
    (ev.Joined(STALE), []), (ev.LoadFailed(STALE, "late"), []),
]  # fmt: skip


@pytest.mark.parametrize(("event", "actions"), STALE_EVENTS)
@pytest.mark.parametrize("stage", ["idle", "loading", "adopted", "ready"])
def test_late_work_of_a_former_run_is_not_taken_for_the_present_one(event, actions, stage):
    session = joined()
    steps = [
        (ev.Received(assignment(1)), ev.Load(assignment(1))),
        (ev.Loaded(key(1), ready(1), SHAPE), ev.Adopt(key(1))),
        (ev.Joined(key(1)), ev.Send(ready(1))),
    ]
    n_before = ["idle", "loading", "adopted", "ready"].index(stage)
    for told, done in steps[:n_before]:
        assert session.on_event(told, 1.0) == [done]
    assert session.on_event(event, 1.0) == actions
    for told, done in steps[n_before:]:
        assert session.on_event(told, 1.0) == [done]


def test_the_first_epochs_of_two_runs_are_told_apart():
    session = joined()
    session.on_event(ev.Received(assignment(1)), 1.0)
    assert ev.CancelLoad(key(1)) in session.on_event(ev.LinkLost("gone"), 1.1)
    session.on_event(ev.Tick(), 2.0)
    session.on_event(ev.Received(Welcome(8, 1, 2, 1.0, VERSIONS)), 2.0)
    session.on_event(ev.Received(assignment(1, run_id=8)), 2.0)
    assert session.on_event(ev.LoadFailed(key(1), "late"), 2.1) == []
    assert session.on_event(ev.Loaded(key(1), ready(1), SHAPE), 2.1) == [ev.Drop(key(1))]
    right = key(1, run_id=8)
    assert session.on_event(ev.Loaded(right, ready(1), SHAPE), 2.2) == [ev.Adopt(right)]
    assert session.on_event(ev.Joined(key(1)), 2.3) == []
    assert session.on_event(ev.Joined(right), 2.3) == [ev.Send(ready(1))]


def test_versions_must_agree():
    session = fresh()
    session.on_event(ev.Tick(), 0.0)
    other = Welcome(7, 1, 2, 1.0, Versions("0.2.0", 1, 1, 2))
    assert session.on_event(ev.Received(other), 0.0) == [
        ev.Exit(
            1,
            "this agent (0.1.0) has numerics version 1, the coordinator (0.2.0) 2; install the "
            "same headwise release on both sides",
        )
    ]


def test_refusal_ends_the_process_or_waits_long():
    session = fresh()
    session.on_event(ev.Tick(), 0.0)
    (action,) = session.on_event(ev.Received(Refused("name taken")), 1.0)
    assert action == ev.Exit(1, "the coordinator at tcp://c:1 refused this agent: name taken")
    session.on_event(ev.Received(Refused("busy", retry=True)), 1.0)
    assert session.link is Link.WAITING
    assert session.next_due_s() - 1.0 >= MAX_RETRY_S / 2


def test_shutdown_leaves_or_waits_for_the_next_run():
    session = joined()
    actions = session.on_event(ev.Received(Shutdown("done")), 1.0)
    assert actions[0] == ev.Send(Bye("done"))
    assert actions[2:] == [ev.CloseHot(), ev.HangUp()]
    session = joined()
    actions = session.on_event(ev.Received(Shutdown("done", leave=True)), 1.0)
    assert actions == [ev.Send(Bye("done")), ev.Exit(0, "done")]


def test_stop_says_bye_where_somebody_listens():
    assert fresh().on_event(ev.Stop("SIGTERM"), 0.0) == [ev.Exit(0, "SIGTERM")]
    assert joined().on_event(ev.Stop("SIGTERM"), 1.0) == [
        ev.Send(Bye("SIGTERM")), ev.Exit(0, "SIGTERM")
    ]  # fmt: skip


LINK_EVENTS = [
    ev.LinkUp(), ev.LinkLost("x"), ev.Rejected("x"), ev.Received(WELCOME),
    ev.Received(Shutdown("x")), ev.Received(Refused("x", True)),
]  # fmt: skip


class SessionMachine(RuleBasedStateMachine):
    """Any order of events: what is held stays within bounds and is always given back."""

    def __init__(self):
        super().__init__()
        self.session = fresh()
        self.now_s = 0.0
        self.hot_open = self.moves_open = False
        self.held = set()

    def happen(self, event):
        self.now_s += 0.01
        for action in self.session.on_event(event, self.now_s):
            match action:
                case ev.OpenHot():
                    assert not self.hot_open
                    self.hot_open = True
                case ev.CloseHot():
                    assert not self.moves_open
                    self.hot_open = False
                    self.held.clear()
                case ev.Adopt(load):
                    assert self.hot_open
                    assert load.run_id == 7
                    self.held.add(load)
                case ev.Drop(load):
                    self.held.discard(load)
                case ev.OpenMoves():
                    assert not self.moves_open
                    self.moves_open = True
                case ev.CloseMoves():
                    assert self.moves_open
                    self.moves_open = False
                case ev.PoolJob(load):
                    assert self.moves_open
                    assert load.run_id == 7

    @rule(wait_s=st.floats(0, 20))
    def tick(self, wait_s):
        self.now_s += wait_s
        self.happen(ev.Tick())
        # What was due is done: nobody is woken again and again for the same.
        assert self.session.next_due_s() > self.now_s

    @rule(event=st.sampled_from(LINK_EVENTS))
    def link(self, event):
        self.happen(event)

    @rule(epoch=st.integers(1, 6), run_id=st.sampled_from([7, 7, 6]), kind=st.integers(0, 5))
    def epoch_event(self, epoch, run_id, kind):
        load = key(epoch, run_id)
        event = [
            ev.Received(assignment(epoch, run_id)), ev.Loaded(load, ready(epoch), SHAPE),
            ev.Joined(load), ev.LoadFailed(load, "x"), ev.Progress(load, 1, 2),
            ev.Received(Release(epoch)),
        ][kind]  # fmt: skip
        self.happen(event)

    @rule(epoch=st.integers(2, 6), run_id=st.sampled_from([7, 7, 7, 6]), kind=st.integers(0, 5),
          version=st.integers(1, 3), n_tokens=st.integers(0, 192))  # fmt: skip
    def order(self, epoch, run_id, kind, version, n_tokens):
        shares = (
            move.Share(0, "b", "a", (move.Group(0, 0), move.Group(1, 0))),
            move.Share(1, "a", "a", (move.Group(0, 1),)),
            move.Share(2, "a", "b", (move.Group(0, 1),)),
        )
        want = move.Want(run_id, epoch, 3, version, n_tokens, floor=n_tokens // 2)
        self.happen(ev.Received([
            move.Arrive(run_id, epoch, epoch - 1, shares),
            move.Depart(run_id, epoch, epoch - 1, shares), want, want,
            move.Want(run_id, epoch, 3, version, 0, gone=True),
            move.MoveEnd(run_id, epoch, epoch - version % 2),
        ][kind]))  # fmt: skip

    @rule(epoch=st.integers(2, 6), run_id=st.sampled_from([7, 7, 7, 6]), kind=st.integers(0, 6),
          number=st.integers(1, 8), hint=st.sampled_from([0, 4096]))  # fmt: skip
    def move_event(self, epoch, run_id, kind, number, hint):
        load = key(epoch, run_id)
        self.happen([
            ev.BulkUp(), ev.RowsPlaced(load, number), ev.RowsMissing(load, number, "x"),
            ev.RowsRead(load, number, bytearray(5)), ev.PoolFailed(load, "x"),
            ev.BulkReceived(move.KvAsk(run_id, epoch, number, 2, 3, 0, 1, 0, 5)),
            ev.BulkReceived(move.KvRows(run_id, epoch, number, 0, "", hint), b""),
        ][kind])  # fmt: skip

    @invariant()
    def bounds(self):
        assert len(self.held) <= 2
        assert self.hot_open == (self.session.link is Link.JOINED)
        assert self.session.next_due_s() <= self.now_s + 10.0


SessionMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSessionMachine = SessionMachine.TestCase


def test_a_runtime_that_ends_says_nothing_more():
    """A heartbeat after BYE is one of an agent that the coordinator does not know any more."""
    asked = []

    class Ending:
        def on_event(self, event, now_s):
            asked.append(event)
            return [ev.Exit(0, "done")]

    runtime = Runtime.__new__(Runtime)
    runtime._session, runtime._ended = Ending(), None
    for _ in range(2):
        runtime._handle(ev.Tick())
    assert len(asked) == 1
    assert runtime._ended == ev.Exit(0, "done")
