"""The hot loop's work for a migration: between two frames, one piece at a time, told of."""

import threading

import numpy as np
import pytest
import zmq

from agent.arrival import CopyLocal, Place, Room
from agent.departure import Export
from agent.events import (
    Joined,
    LoadKey,
    PoolFailed,
    PoolJob,
    RowsMissing,
    RowsPlaced,
    RowsRead,
)
from agent.frames import FrameType, Header, Phase, Wire, pack_header, payload_offset, write_rows
from agent.hot import HotLoop
from agent.hot_rows import GROW_TOKENS, HotRows
from agent.ids import RunId
from agent.kv_ops import KvOp, KvOpCode
from agent.kv_rows import export_rows
from agent.member import make_member
from agent.migration_messages import Group
from agent.sockets import HOT, set_options
from kernels.pool import Pool
from tests.protocol.agent_harness import assignment, make_model

RUN, TEXT, D = 5, 3, 64
BOTH = (Group(0, 0), Group(0, 1), Group(1, 0), Group(1, 1))
KEY = LoadKey(RunId(RUN), 2)
DEADLINE_S = 30.0


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    with make_model(tmp_path_factory.mktemp("hot") / "model") as directory:
        yield directory


@pytest.fixture
def members(directory):
    """Two epochs: in the first, groups 0 and 1 of both layers; in the second, only group 1."""
    pool = Pool(1)
    told = {1: (0, 2), 2: (1, 1)}
    sizes = {"context_tokens": 3 * GROW_TOKENS, "kv_tokens": 3 * GROW_TOKENS}
    made = {
        epoch: make_member(
            assignment(directory, RUN, epoch, groups=groups, **sizes),
            directory.manifest, directory.weights, pool,
        )
        for epoch, groups in told.items()
    }  # fmt: skip
    rng = np.random.default_rng(1)
    for member in made.values():
        member.kv.pages[:] = rng.integers(0, 1 << 10, member.kv.pages.shape, np.uint16)
    made[1].kv.apply([KvOp(KvOpCode.OPEN, TEXT, 100)])
    made[1].kv.extend(TEXT, 100)
    yield made
    pool.close()


def worker(members):
    changed, told = [], []
    rows = HotRows(members, lambda: changed.append(1), told.append)

    def do(*work, key=KEY):
        for each in work:
            rows.add(PoolJob(key, each))
        told.clear()
        while rows.waiting:
            rows.do_next()
        return list(told)

    return rows, do, changed, told


def test_rows_are_read_placed_and_copied(members):
    rows, do, changed, told = worker(members)
    ones = (Group(1, 1), Group(0, 1))
    (read,) = do(Export(9, 1, TEXT, ones, 10, 80))
    assert read == RowsRead(KEY, 9, export_rows(members[1].kv, TEXT, [3, 1], 10, 80))
    room = Room(TEXT, (KvOp(KvOpCode.OPEN, TEXT, 100),), 100)
    copy = CopyLocal(4, 1, TEXT, ones, 0, 10)
    # Copies on the board come last, in their own order: boards wait for the others.
    late = CopyLocal(6, 1, TEXT, ones, 0, 10)
    assert do(room, copy, late, Place(5, TEXT, ones, 10, 80, read.data)) == [
        RowsPlaced(KEY, 5), RowsPlaced(KEY, 4), RowsPlaced(KEY, 6)
    ]  # fmt: skip
    assert changed == [1]
    expected = export_rows(members[1].kv, TEXT, [1, 3], 0, 90)
    assert export_rows(members[2].kv, TEXT, [0, 1], 0, 90) == expected
    # One piece at a time, in order.
    rows.add(PoolJob(KEY, room))
    rows.add(PoolJob(KEY, copy))
    rows.do_next()
    assert rows.waiting
    # At its end the loop leaves the rest, and nobody is told.
    n_told = len(told)
    rows.close()
    assert not rows.waiting
    rows.add(PoolJob(KEY, copy))
    rows.do_next()
    assert len(told) == n_told


def test_far_growth_is_cut_into_pieces(members):
    rows, do, *_ = worker(members)
    n = 2 * GROW_TOKENS + 1
    rows.add(PoolJob(KEY, Room(TEXT, (KvOp(KvOpCode.OPEN, TEXT, n),), n)))
    rows.add(PoolJob(KEY, CopyLocal(1, 1, TEXT, (Group(0, 1),), 0, 1)))
    grown = []
    while rows.waiting:
        rows.do_next()
        grown.append(members[2].kv.n_tokens(TEXT))
    # What stands behind it waits for all of it.
    assert grown == [GROW_TOKENS, 2 * GROW_TOKENS, n, n]
    assert do(Room(TEXT, (KvOp(KvOpCode.RELEASE, TEXT),), 0)) == []
    assert members[2].kv.kv_ids == []


def test_what_cannot_be_done_is_told(members):
    _, do, *_ = worker(members)
    far = LoadKey(RunId(RUN), 3)
    assert do(Export(1, 1, TEXT, BOTH, 0, 101)) == [RowsRead(KEY, 1, None)]
    assert do(Export(2, 7, TEXT, BOTH, 0, 1)) == [RowsRead(KEY, 2, None)]
    assert do(Export(3, 2, TEXT, BOTH, 0, 1)) == [RowsRead(KEY, 3, None)]
    assert do(Room(TEXT, (), 1)) == [PoolFailed(KEY, f"context {TEXT} is not open on this agent")]
    assert do(Room(TEXT, (), 1), key=far) == [PoolFailed(far, "epoch 3 is not on this agent")]
    (missing,) = do(CopyLocal(4, 1, TEXT, (Group(0, 1),), 0, 101))
    assert isinstance(missing, RowsMissing)
    assert "100 tokens here" in missing.reason
    (failed,) = do(Place(5, TEXT, (Group(0, 0),), 0, 1, bytes(64)))
    assert failed == PoolFailed(KEY, "head group 0 of layer 0 is not this agent's in epoch 2")
    do(Room(TEXT, (KvOp(KvOpCode.OPEN, TEXT, 1),), 1))
    (failed,) = do(Place(6, TEXT, (Group(0, 1),), 0, 1, bytes(63)))
    assert isinstance(failed, PoolFailed)
    assert "63 bytes came" in failed.reason


def test_the_loop_hears_of_work_when_it_is_idle_and_in_steps_while_a_migration_is_on(members):
    rows, *_ = worker(members)
    job = PoolJob(KEY, Room(TEXT, (), 1))
    with zmq.Context() as context, context.socket(zmq.PAIR) as here, context.socket(
        zmq.PAIR
    ) as there:  # fmt: skip
        here.bind("inproc://frames")
        there.connect("inproc://frames")
        assert rows.may_receive(here)  # which is how it waits
        rows.idle = True
        rows.ring()
        assert not rows.may_receive(here)  # woken
        rows.add(job)
        assert not rows.may_receive(here)
        there.send(b"frame")
        assert rows.may_receive(here)
        here.recv()
        rows.do_next()
        rows.ring()
        assert not rows.may_receive(here)  # woken
        there.send(b"frame")
        assert rows.may_receive(here)
        assert here.getsockopt(zmq.RCVTIMEO) == 2
        here.recv()
        rows.idle = False
        assert rows.may_receive(here)  # in the middle of a step
        rows.expect_none()
        assert rows.may_receive(here)
        assert here.getsockopt(zmq.RCVTIMEO) == 100


def test_a_frame_is_answered_between_two_pieces_of_work(directory, members):
    told = []
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        set_options(router, HOT)
        router.setsockopt(zmq.RCVTIMEO, int(1000 * DEADLINE_S))
        port = router.bind_to_random_port("tcp://127.0.0.1")
        n_steps = []
        # The router is the hot thread's until all is placed, then this one's again.
        placed, read = threading.Event(), threading.Event()

        def post(event):
            """In the hot thread: a STEP comes while a piece of work is being done."""
            told.append(event)
            n_steps.append(loop.n_steps)
            if isinstance(event, RowsPlaced) and event.number < 3:
                router.send_multipart([b"me", step()])
                assert loop._holders[0].poll(1000 * DEADLINE_S)
            elif isinstance(event, RowsPlaced) and event.number == 5:
                placed.set()
            elif isinstance(event, RowsRead):
                read.set()

        loop = HotLoop(f"tcp://127.0.0.1:{port}", b"me", RunId(RUN), post)
        loop.start()
        for epoch, member in members.items():
            loop.adopt(epoch, member)
            assert router.recv_multipart()[0] == b"me"
        room = Room(TEXT, (KvOp(KvOpCode.OPEN, TEXT, 100),), 100)
        loop.move(PoolJob(KEY, room))
        for number in range(1, 6):
            loop.move(PoolJob(KEY, CopyLocal(number, 1, TEXT, (Group(0, 1),), 0, 60)))
        assert placed.wait(DEADLINE_S)
        replies = [router.recv_multipart()[1] for _ in range(2)]
        assert all(reply[2] == FrameType.PARTIAL for reply in replies)
        loop.move(PoolJob(KEY, Export(9, 2, TEXT, (Group(0, 1),), 0, 60)))
        assert read.wait(DEADLINE_S)
        loop.end_moves()
        loop.stop()
        assert loop.join(DEADLINE_S)
    assert [type(e) for e in told] == [Joined] * 2 + [RowsPlaced] * 5 + [RowsRead]
    assert n_steps == [0, 0, 0, 1, 2, 2, 2, 2]


def step():
    """Return an attention STEP of the first epoch for the next token of the text."""
    frame = bytearray(payload_offset(1) + 2 * D)
    pack_header(
        frame, Header(FrameType.STEP, Wire.F16, 1, RUN, 1, 0, Phase.ATTENTION, n_rows=1,
                      payload_bytes=2 * D),
    )  # fmt: skip
    write_rows(frame, [TEXT], [100])
    return bytes(frame)
