"""A member that holds the same head groups in two epochs: one KV pool serves both."""

import gc
import queue

import numpy as np
import pytest
import zmq

from agent import leases
from agent.events import Loaded, LoadFailed, LoadKey
from agent.frames import FrameType, Phase
from agent.kv_ops import KvOp, KvOpCode
from agent.loader import Loader, LoaderOptions
from agent.member import kv_shape, wanted_atoms
from agent.messages import Failed, Heartbeat, Ready, Release
from kernels.pool import Pool
from tests.protocol.agent_harness import assignment, make_model, running
from tests.protocol.test_agent_steps import numbers

OPEN, FORK, TRUNCATE, RELEASE = KvOpCode
RUN = 77
SECOND = {"groups": (1, 1)}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    with make_model(tmp_path_factory.mktemp("kept") / "model") as directory:
        yield directory


class Board:
    """A loader whose members are held as the hot loop holds them."""

    def __init__(self, directory, context, memory_bytes):
        self.directory = directory
        self.events = queue.SimpleQueue()
        options = LoaderOptions((directory.directory,), None, memory_bytes, 1)
        self.pool = Pool(1)
        self.loader = Loader(context, options, self.pool, self.events.put)
        self.members = {}

    def load(self, epoch, **changes):
        told = assignment(self.directory, RUN, epoch, **changes)
        self.loader.load(told, "tcp://127.0.0.1:1")
        while not isinstance(event := self.events.get(timeout=60.0), Loaded | LoadFailed):
            pass
        member = self.loader.take(LoadKey(RUN, epoch))
        if member is not None:
            self.members[epoch] = member
        return event

    def drop(self, epoch):
        del self.members[epoch]
        gc.collect()


@pytest.fixture
def board(directory, monkeypatch):
    """A board with room for one pool and a half beside the weights."""
    monkeypatch.setattr(leases, "RELEASE_S", 0.0)
    told = assignment(directory, RUN)
    weights_bytes = sum(a.n_bytes for a in wanted_atoms(told, directory.manifest))
    pool_bytes = kv_shape(told, directory.geometry).pool_bytes
    with zmq.Context() as context:
        board = Board(directory, context, weights_bytes + pool_bytes * 3 // 2)
        yield board
        board.loader.close(10.0)
        board.pool.close()


def test_pools_of_both_epochs_count_until_the_old_one_is_gone(board):
    assert isinstance(board.load(1), Loaded)
    failed = board.load(2)
    assert isinstance(failed, LoadFailed)
    pool_bytes = board.members[1].kv.shape.pool_bytes
    offered = board.loader._options.memory_bytes
    assert f"and {pool_bytes} of KV" in failed.reason
    assert f"together with a plan that is still in force, but this agent offers {offered}" in (
        failed.reason
    )
    board.drop(1)
    assert isinstance(board.load(3), Loaded)


def test_a_pool_that_is_taken_over_counts_once_and_as_long_as_it_lives(board):
    assert isinstance(board.load(1), Loaded)
    assert isinstance(board.load(2, kv_of_epoch=1, rank=3, columns=(0, 1)), Loaded)
    assert board.members[2].kv is board.members[1].kv
    assert board.members[2].assignment.rank == 3
    board.drop(1)
    assert isinstance(board.load(3), LoadFailed)
    assert isinstance(board.load(4, kv_of_epoch=2), Loaded)
    board.drop(2)
    board.drop(4)
    assert isinstance(board.load(5), Loaded)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"kv_of_epoch": 9}, "epoch 2 is to take over the KV pool of 9, which is not on this"),
        ({"groups": (0, 1)}, "holds other head groups or contexts"),
        ({"groups": (1, 1), "kv_tokens": 64}, "holds other head groups or contexts"),
        ({"groups": (1, 1), "kv": "f32"}, "holds other head groups or contexts"),
    ],
)
def test_another_pool_cannot_be_taken_over(board, changes, why):
    assert isinstance(board.load(1, **SECOND), Loaded)
    failed = board.load(2, **({"kv_of_epoch": 1} | changes))
    assert isinstance(failed, LoadFailed)
    assert why in failed.reason


@pytest.mark.slow
def test_texts_go_on_in_the_new_epoch_with_what_is_there(directory, tmp_path):
    options = "--model-dir", str(directory.directory)
    with running(directory, tmp_path, *options) as (c, _):
        assert isinstance(c.join(assignment(directory, c.run_id, 1, **SECOND)), Ready)
        c.kv(KvOp(OPEN, 1, 100), KvOp(OPEN, 2, 100))
        x = numbers(70)
        for kv_id in (1, 2):
            rows = [(kv_id, pos) for pos in range(69)]
            c.step(Phase.ATTENTION, 0, x[:69], rows)
        stayed = c.step(Phase.ATTENTION, 0, x[69:], [(2, 69)])[1]
        told = assignment(directory, c.run_id, 2, 1, kv_of_epoch=1, **SECOND)
        assert isinstance(c.assign(told, (Ready, Failed)), Ready)
        # Each text in its epoch, in turn; an operation in one epoch is seen in the other.
        at = {"epoch": 2, "rank": 1}

        def attend(pos, first, kv_id, where):
            return c.step(Phase.ATTENTION, 0, x[first : pos + 1],
                          [(kv_id, p) for p in range(first, pos + 1)], **where)  # fmt: skip

        old = {"epoch": 1, "rank": 0}
        for where in (at, old, at):
            assert attend(69, 69, 1, where)[1] == stayed
        c.kv(KvOp(TRUNCATE, 1, 10), epoch=2)
        header, payload = attend(69, 69, 1, old)
        assert (header.type, b"has 10 of at most" in payload) == (FrameType.ERROR, True)
        again = attend(69, 10, 1, old)[1]
        assert again.endswith(stayed)
        used = c.until(Heartbeat).kv_bytes
        shape = kv_shape(told, directory.geometry)
        assert used == 2 * 2 * shape.n_groups * shape.page_bytes
        c.tell(Release(1))
        # A second heartbeat is later than the hot loop's next look round.
        c.until(Heartbeat)
        c.until(Heartbeat)
        c.send(c.header(FrameType.STEP), [(1, 69)], b"\0" * 128, rank=1)
        assert attend(69, 69, 1, at)[1] == stayed
        assert np.any(np.frombuffer(stayed, np.float16))
