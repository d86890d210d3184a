"""A session whose agent takes part in migrations: what comes of orders, events and time."""

import random
import zlib

import numpy as np
import pytest

from agent import events as ev
from agent.arrival import CopyLocal, Room
from agent.departure import Export
from agent.ids import AgentName, Epoch, InstanceId, RunId
from agent.kv_shape import KvShape
from agent.messages import (
    PROBE_OBJECT,
    Assignment,
    BulkRequest,
    Hello,
    Ready,
    Release,
    Shutdown,
    Versions,
    Welcome,
)
from agent.migration_messages import (
    Arrive,
    Begun,
    Depart,
    Group,
    Have,
    KvAsk,
    KvOffer,
    KvRows,
    MoveEnd,
    MoveEnded,
    MoveFailed,
    Share,
    Want,
)
from agent.moves import OFFER_S
from agent.session import Session
from agent.window import MIN_CHUNK_BYTES

RUN, TEXT = 7, 3
VERSIONS = Versions("0.1.0", 1, 1, 1)
HELLO = Hello(AgentName("a"), InstanceId("i"), VERSIONS, 4, 4, 1000, 1e9)
SHAPE = KvShape(2, 8, np.uint16, 192, 192, 3)
KEY = ev.LoadKey(RunId(RUN), Epoch(2))
OUT = Share(0, "a", "b", (Group(0, 0),))
IN = Share(1, "b", "a", (Group(0, 1),))
HERE = Share(2, "a", "a", (Group(1, 1),))
ARRIVE = Arrive(RUN, 2, 1, (OUT, IN, HERE))
DEPART = Depart(RUN, 2, 1, (OUT, IN, HERE))
WANT = Want(RUN, 2, TEXT, 1, 10, reserve_tokens=100)
OFFER = ev.SendBulk(KvOffer(RUN, 2, b"tok"))
END = MoveEnd(RUN, 2, frees=1)


def session_with(*epochs, heartbeat_s=10.0):
    session = Session(HELLO, "tcp://c:1", random.Random(1))
    session.on_event(ev.Tick(), 0.0)
    welcome = Welcome(RUN, 1, 2, heartbeat_s, VERSIONS, b"tok")
    session.on_event(ev.Received(welcome), 0.0)
    for epoch in epochs:
        told = Assignment(RUN, epoch, 0, "m", 1, (), (), "f16", "f16", 1, 1, 1, 1)
        session.on_event(ev.Received(told), 0.0)
        ready = Ready(epoch, 1, 2, 3, 0.5)
        session.on_event(ev.Loaded(ev.LoadKey(RUN, epoch), ready, SHAPE), 0.0)
    return session


def on(session, message, now_s=1.0):
    return session.on_event(ev.Received(message), now_s)


def messages_of(actions):
    return [a.message for a in actions if isinstance(a, ev.Send | ev.SendBulk)]


def test_a_target_asks_places_and_reports():
    session = session_with(1, 2)
    begun = ev.Send(Begun(RUN, 2, arrives=True))
    # The link is open since the second assignment.
    assert on(session, ARRIVE) == [begun]
    assert on(session, ARRIVE) == [begun]
    room, grow, *asked = on(session, WANT)
    assert isinstance(room, ev.PoolJob)
    assert (room.key, room.work.kv_id, grow.work) == (KEY, TEXT, Room(TEXT, (), 10))
    (ask,) = [a.message for a in asked if isinstance(a, ev.SendBulk)]
    (copy,) = [a.work for a in asked if isinstance(a, ev.PoolJob)]
    assert (ask.share, ask.first, ask.n_tokens, ask.token) == (1, 0, 10, b"tok")
    assert copy == CopyLocal(copy.number, 1, TEXT, (Group(1, 1),), 0, 10)
    # The link was not there yet: when it is, the request goes out again.
    assert session.on_event(ev.BulkUp(), 1.1) == [ev.SendBulk(ask)]
    data = bytes(10 * 2 * 2 * 8)
    wrong = session.on_event(ev.BulkReceived(KvRows(RUN, 2, ask.number, 5), data), 1.2)
    assert wrong == [ev.SendBulk(ask)]
    good = KvRows(RUN, 2, ask.number, zlib.crc32(data))
    (place,) = session.on_event(ev.BulkReceived(good, data), 1.2)
    assert (place.key, place.work.number, place.work.data) == (KEY, ask.number, data)
    assert session.on_event(ev.RowsPlaced(KEY, ask.number), 1.3) == []
    done = session.on_event(ev.RowsPlaced(KEY, copy.number), 1.3)
    assert messages_of(done) == [Have(RUN, 2, TEXT, 1, 10)]


def test_a_source_offers_its_link_and_reads_rows_on_request():
    session = session_with(1)
    assert on(session, DEPART) == [ev.OpenMoves(), ev.Send(Begun(RUN, 2, arrives=False)), OFFER]
    assert session.next_due_s() == pytest.approx(1.0 + OFFER_S)
    assert session.on_event(ev.Tick(), 1.5) == []
    assert session.on_event(ev.Tick(), 2.0) == [OFFER]
    # A new link says at once whose it is.
    assert session.on_event(ev.BulkUp(), 2.1) == [OFFER]
    ask = KvAsk(RUN, 2, 44, 0, TEXT, 0, 1, 0, 10)
    assert session.on_event(ev.BulkReceived(ask), 2.2) == [
        ev.PoolJob(KEY, Export(44, 1, TEXT, (Group(0, 0),), 0, 10))
    ]
    rows = bytearray(b"rows")
    reply = ev.SendBulk(KvRows(RUN, 2, 44, zlib.crc32(rows)), rows)
    assert session.on_event(ev.RowsRead(KEY, 44, rows), 2.3) == [reply]
    session.on_event(ev.BulkReceived(ask), 2.4)
    refusal = ev.SendBulk(KvRows(RUN, 2, 44, error="not here"))
    assert session.on_event(ev.RowsRead(KEY, 44, None), 2.5) == [refusal]


def test_the_end_frees_the_epoch_that_lost_and_the_link():
    session = session_with(1, 2)
    on(session, ARRIVE)
    on(session, DEPART)
    dropped = ev.Drop(ev.LoadKey(RUN, 1))
    assert on(session, END) == [dropped, ev.Send(MoveEnded(RUN, 2)), ev.CloseMoves()]
    assert session.shape_of(1) is None
    assert session.shape_of(2) == SHAPE
    assert on(session, END) == [dropped, ev.Send(MoveEnded(RUN, 2))]
    assert on(session, ARRIVE) == []
    assert session.next_due_s() == pytest.approx(10.0)
    # There is room for a third epoch now, and for the next migration.
    told = Assignment(RUN, 3, 0, "m", 1, (), (), "f16", "f16", 1, 1, 1, 1)
    assert on(session, told) == [ev.Load(told), ev.OpenMoves()]


def test_the_link_is_dialled_with_the_assignment_and_closed_if_nothing_comes_of_it():
    session = session_with()
    first, second, kept = (
        Assignment(RUN, epoch, 0, "m", 1, (), (), "f16", "f16", 1, 1, 1, 1, kv_of_epoch)
        for epoch, kv_of_epoch in [(1, 0), (2, 0), (3, 1)]
    )
    assert on(session, first) == [ev.Load(first)]
    loaded = ev.Loaded(ev.LoadKey(RUN, 1), Ready(1, 1, 2, 3, 0.5), SHAPE)
    session.on_event(loaded, 1.0)
    assert on(session, second) == [ev.Load(second), ev.OpenMoves()]
    # The link carries something before rows can be asked for: it starts slowly.
    warmth = session.on_event(ev.BulkUp(), 1.1)
    assert warmth == 4 * [ev.SendBulk(BulkRequest(RUN, PROBE_OBJECT, 0, 128 << 10, b"tok"))]
    assert on(session, Release(2)) == [ev.CancelLoad(KEY), ev.CloseMoves()]
    # A pool that serves both plans neither gives nor takes.
    assert on(session, kept) == [ev.Load(kept)]


def test_the_end_gives_up_an_epoch_that_is_loading():
    session = session_with(1)
    told = Assignment(RUN, 2, 0, "m", 1, (), (), "f16", "f16", 1, 1, 1, 1)
    assert on(session, told) == [ev.Load(told), ev.OpenMoves()]
    assert on(session, MoveEnd(RUN, 2, frees=2)) == [
        ev.CancelLoad(KEY), ev.Send(MoveEnded(RUN, 2)), ev.CloseMoves()
    ]  # fmt: skip


def test_orders_about_epochs_that_are_not_here_fail():
    session = session_with(1)
    gone = MoveFailed(RUN, 2, "epoch 2 is not on this agent")
    assert on(session, ARRIVE) == [ev.Send(gone)]
    assert on(session, WANT) == []
    gone = MoveFailed(RUN, 9, "epoch 8 is not on this agent")
    assert on(session, Depart(RUN, 9, 8, (OUT,))) == [ev.Send(gone)]
    assert on(session, Arrive(RUN + 1, 2, 1, (IN,))) == []


def test_a_pool_that_fails_fails_the_migration():
    session = session_with(1, 2)
    on(session, ARRIVE)
    on(session, WANT)
    failed = ev.Send(MoveFailed(RUN, 2, "no page is free"))
    assert session.on_event(ev.PoolFailed(KEY, "no page is free"), 1.1) == [failed]
    # Nobody is kept busy by it.
    assert session.on_event(ev.Tick(), 5.0) == []
    assert session.next_due_s() > 5.5


def test_rows_that_are_gone_for_a_moment_are_copied_later():
    session = session_with(1, 2)
    on(session, Arrive(RUN, 2, 1, (HERE,)))
    (copy,) = [a.work for a in on(session, WANT) if isinstance(a.work, CopyLocal)]
    assert session.on_event(ev.RowsMissing(KEY, copy.number, "context 3 has 4 tokens"), 1.1) == []
    assert 1.1 < session.next_due_s() < 1.5
    assert ev.PoolJob(KEY, copy) in session.on_event(ev.Tick(), session.next_due_s())
    # Cut there, as the next word of it says: the former piece is nobody's.
    session.on_event(ev.RowsMissing(KEY, copy.number, "context 3 has 4 tokens"), 1.5)
    cut = on(session, Want(RUN, 2, TEXT, 2, 4, floor=4), 1.6)
    (again,) = [a.work for a in cut if isinstance(a, ev.PoolJob) and isinstance(a.work, CopyLocal)]
    assert (again.first, again.n_tokens) == (0, 4)
    assert session.on_event(ev.RowsPlaced(KEY, copy.number), 1.7) == []
    done = session.on_event(ev.RowsPlaced(KEY, again.number), 1.8)
    assert messages_of(done) == [Have(RUN, 2, TEXT, 2, 4)]


def test_a_narrow_window_does_not_rest():
    """Under a hint fewer rows are asked for, but as soon as others are placed."""
    session = session_with(1, 2)
    groups = tuple(Group(layer, 0) for layer in range(400))
    on(session, Arrive(RUN, 2, 1, (Share(0, "b", "a", groups),)))
    actions = on(session, Want(RUN, 2, TEXT, 1, 192))
    asks = [m for m in messages_of(actions) if isinstance(m, KvAsk)]
    # The first block is cut as long as nobody has hinted.
    for _ in range(20):
        (ask,) = asks
        data = bytes(ask.n_groups * ask.n_tokens * 32)
        rows = KvRows(RUN, 2, ask.number, zlib.crc32(data), window_bytes=4096)
        actions = session.on_event(ev.BulkReceived(rows, data), 1.01)
        actions += session.on_event(ev.RowsPlaced(KEY, ask.number), 1.01)
        asks = [m for m in messages_of(actions) if isinstance(m, KvAsk)]
    assert asks[0].n_groups * asks[0].n_tokens * 32 <= MIN_CHUNK_BYTES


STALE = ev.LoadKey(RunId(RUN - 1), Epoch(2))


@pytest.mark.parametrize("key", [STALE, ev.LoadKey(RunId(RUN), Epoch(3))])
def test_late_events_of_other_migrations_change_nothing(key):
    session = session_with(1, 2)
    on(session, ARRIVE)
    on(session, DEPART)
    actions = on(session, WANT)
    (copy,) = [a.work for a in actions if isinstance(a, ev.PoolJob) and type(a.work) is CopyLocal]
    session.on_event(ev.BulkReceived(KvAsk(RUN, 2, 44, 0, TEXT, 0, 1, 0, 10)), 1.0)
    for late in (
        ev.RowsPlaced(key, copy.number), ev.RowsMissing(key, copy.number, "x"),
        ev.PoolFailed(key, "x"), ev.RowsRead(key, 44, bytearray(8)),
    ):  # fmt: skip
        assert session.on_event(late, 1.1) == []
    assert session.on_event(ev.RowsRead(KEY, 44, None), 1.2) != []


@pytest.mark.parametrize("lost", [ev.LinkLost("gone"), ev.Received(Shutdown("over"))])
def test_a_lost_link_forgets_all_moves(lost):
    session = session_with(1, 2)
    on(session, ARRIVE)
    on(session, DEPART)
    actions = session.on_event(lost, 2.0)
    assert actions[-3:] == [ev.CloseMoves(), ev.CloseHot(), ev.HangUp()]
    for late in (ev.BulkUp(), ev.RowsPlaced(KEY, 1), ev.PoolFailed(KEY, "x")):
        assert session.on_event(late, 2.1) == []
    assert on(session, ARRIVE, 2.1) == []
    # The next run begins with nothing.
    session.on_event(ev.Tick(), session.next_due_s())
    on(session, Welcome(RUN, 1, 2, 10.0, VERSIONS, b"tok"), 9.0)
    gone = MoveFailed(RUN, 2, "epoch 2 is not on this agent")
    assert on(session, ARRIVE, 9.1) == [ev.Send(gone)]


def test_release_lets_go_of_an_epoch_in_the_middle_of_a_move():
    session = session_with(1, 2)
    on(session, ARRIVE)
    assert on(session, Release(2)) == [ev.Drop(KEY)]
    actions = on(session, WANT)
    assert any(isinstance(a, ev.PoolJob) for a in actions)
    reason = "epoch 2 is not on this agent"
    failed = session.on_event(ev.PoolFailed(KEY, reason), 1.1)
    assert failed == [ev.Send(MoveFailed(RUN, 2, reason))]
