"""A session whose agent mirrors others: a pool is reserved before anything comes into it."""

import msgspec
import pytest

from agent import events as ev
from agent.arrival import CopyLocal
from agent.departure import Export
from agent.ids import Epoch, RunId
from agent.migration_messages import (
    Arrive,
    Begun,
    Depart,
    Group,
    Have,
    KvAsk,
    MoveEnd,
    MoveEnded,
    MoveFailed,
    Share,
    Want,
)
from tests.protocol.test_session_moves import RUN, SHAPE, TEXT, messages_of, on, session_with

GROUPS = Group(0, 1), Group(1, 0), Group(1, 1)
TAKEN = Share(0, "b", "a", GROUPS)
GIVEN = Share(1, "a", "c", (Group(0, 0),))
MIRROR = Arrive(RUN, 5, 1, (TAKEN, GIVEN), mirror=True)
KEY = ev.LoadKey(RunId(RUN), Epoch(5))
POOL = SHAPE._replace(n_groups=3)
RESERVE = ev.Reserve(KEY, POOL, GROUPS)
END = MoveEnd(RUN, 5, frees=5)


def begun():
    """A session that mirrors another agent."""
    session = session_with(1)
    assert on(session, MIRROR) == [RESERVE]
    assert session.on_event(ev.Reserved(KEY, POOL), 1.1) == [ev.Adopt(KEY)]
    joined = session.on_event(ev.Joined(KEY), 1.2)
    assert joined == [ev.OpenMoves(), ev.Send(Begun(RUN, 5, arrives=True))]
    return session


def test_a_mirror_begins_once_its_pool_is_there():
    session = session_with(1)
    assert on(session, MIRROR) == [RESERVE]
    # Sent again meanwhile; what is wanted before comes too early, and comes again.
    assert on(session, MIRROR) == []
    assert on(session, Want(RUN, 5, TEXT, 1, 10)) == []
    session.on_event(ev.Reserved(KEY, POOL), 1.1)
    assert on(session, MIRROR) == []
    session.on_event(ev.Joined(KEY), 1.2)
    assert on(session, MIRROR) == [ev.Send(Begun(RUN, 5, arrives=True))]
    room, grow, ask = on(session, Want(RUN, 5, TEXT, 1, 10))
    # It is always there: a step does not look up for it.
    assert not room.hurried
    assert (room.key, grow.key) == (KEY, KEY)
    assert (ask.message.epoch, ask.message.share, ask.message.n_groups) == (5, 0, 3)


def test_what_cannot_be_reserved_is_told():
    session = session_with(1)
    on(session, MIRROR)
    failed = session.on_event(ev.LoadFailed(KEY, "no memory"), 1.1)
    assert failed == [ev.Send(MoveFailed(RUN, 5, "no memory"))]
    # Another one may be tried.
    later = msgspec.structs.replace(MIRROR, epoch=6)
    (reserve,) = on(session, later)
    assert reserve.key.epoch == 6


@pytest.mark.parametrize("epoch", [0, 2])
def test_a_mirror_of_a_plan_that_is_not_here_is_refused(epoch):
    session = session_with(1)
    (told,) = messages_of(on(session, msgspec.structs.replace(MIRROR, from_epoch=epoch)))
    assert told == MoveFailed(RUN, 5, f"epoch {epoch} is not on this agent")


def test_there_is_one_at_a_time():
    session = begun()
    (told,) = messages_of(on(session, msgspec.structs.replace(MIRROR, epoch=6)))
    assert isinstance(told, MoveFailed)
    assert "another mirror" in told.reason
    freed = on(session, END)
    assert freed[:2] == [ev.Drop(KEY), ev.Send(MoveEnded(RUN, 5))]
    assert on(session, msgspec.structs.replace(MIRROR, epoch=6))[0].key.epoch == 6


def test_one_that_ends_while_its_pool_is_reserved_leaves_nothing():
    session = session_with(1)
    on(session, MIRROR)
    assert on(session, END)[:2] == [ev.CancelLoad(KEY), ev.Drop(KEY)]
    # What was under way comes too late, and so does the order itself.
    assert session.on_event(ev.Reserved(KEY, POOL), 1.2) == [ev.Drop(KEY)]
    assert on(session, MIRROR) == []


def test_rows_of_a_mirror_go_into_the_next_plan():
    session = session_with(1, 7)
    on(session, MIRROR)
    session.on_event(ev.Reserved(KEY, POOL), 1.1)
    session.on_event(ev.Joined(KEY), 1.2)
    here = Share(0, "a", "a", (Group(0, 1),), of_epoch=5)
    there = Share(1, "a", "c", (Group(1, 0),), of_epoch=5)
    own = Share(2, "a", "a", (Group(0, 0),))
    shares = (here, there, own)
    on(session, Arrive(RUN, 7, 1, shares))
    on(session, Depart(RUN, 7, 1, shares))
    copies = [a.work for a in on(session, Want(RUN, 7, TEXT, 1, 10)) if isinstance(a, ev.PoolJob)]
    copies = [work for work in copies if isinstance(work, CopyLocal)]
    assert [(c.from_epoch, c.groups) for c in copies] == [(5, here.groups), (1, own.groups)]
    (job,) = session.on_event(ev.BulkReceived(KvAsk(RUN, 7, 44, 1, TEXT, 0, 1, 0, 10)), 1.3)
    assert job.work == Export(44, 5, TEXT, there.groups, 0, 10)
    # The mirror outlives the order that has taken its place, until it is freed by name.
    assert on(session, MoveEnd(RUN, 7, frees=1))[0] == ev.Drop(ev.LoadKey(RunId(RUN), Epoch(1)))
    assert on(session, END)[0] == ev.Drop(KEY)


def test_a_lost_link_forgets_a_mirror():
    session = begun()
    on(session, Want(RUN, 5, TEXT, 1, 10))
    actions = session.on_event(ev.LinkLost("gone"), 2.0)
    assert ev.CloseHot() in actions
    assert ev.CloseMoves() in actions
    assert session.shape_of(5) is None
    assert not any(isinstance(m, Have) for m in messages_of(actions))


def test_an_offer_goes_out_with_each_order_to_give():
    session = begun()
    first = on(session, Depart(RUN, 5, 1, (GIVEN,), mirror=True), 1.3)
    again = on(session, Depart(RUN, 7, 1, (GIVEN,)), 1.4)
    assert [len(messages_of(actions)) for actions in (first, again)] == [2, 2]
