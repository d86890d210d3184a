"""Tokens that compiled code carries through a stage: the bits of the kernels, the books of Python.

A hot loop of this process on a real socket, beside a member of the same atoms that Python drives.
"""

import queue
from typing import NamedTuple

import numpy as np
import pytest
import zmq

from agent.departure import Export
from agent.events import Joined, LoadKey, PoolJob, RowsRead
from agent.frames import (
    Flag,
    FrameType,
    Header,
    Phase,
    Wire,
    pack_header,
    payload_offset,
    read_header,
    write_rows,
)
from agent.hot import HotLoop
from agent.ids import Epoch, KvId, RunId, Seq
from agent.kv_ops import KvOp, KvOpCode, pack_kv_ops
from agent.kv_rows import export_rows
from agent.member import make_member
from agent.migration_messages import Group
from agent.sockets import HOT, set_options
from agent.vocab_payload import SamplerRow, pack_sampler_rows, read_top_rows
from agent.zmq_calls import find_calls
from kernels.barrier import ABORT
from kernels.mode import JIT_DISABLED
from kernels.paging import PAGE_TOKENS
from kernels.pool import Pool
from kernels.vocab import log_sum_exp
from tests.protocol.agent_harness import assignment, make_model

OPEN, FORK, TRUNCATE, RELEASE = KvOpCode
RUN, D, V = 5, 64, 300
DEADLINE_S = 30.0
GREEDY, WARM = SamplerRow(), SamplerRow(0.75)
PENALISED = SamplerRow(0.75, 1.3, False, np.array([3, 9], np.uint32))

needs_calls = pytest.mark.skipif(find_calls() is None, reason="libzmq cannot be called here")


class Answer(NamedTuple):
    """A reply, and what the kernels say in this process."""

    header: Header
    payload: bytes
    residual: np.ndarray
    logits: np.ndarray


class Text:
    """One loop's socket and what it tells, and the same contexts in this process."""

    def __init__(self, router, loop, pool, member, told):
        self._router, self.loop, self.pool = router, loop, pool
        self.member, self.told = member, told
        self._seq = 0

    def send(self, kind, payload, rows=(), **changes):
        self._seq += 1
        frame = bytearray(payload_offset(len(rows)) + len(payload))
        header = Header(kind, Wire.F16, Epoch(1), RunId(RUN), Seq(self._seq))
        changes |= {"n_rows": len(rows), "payload_bytes": len(payload)}
        pack_header(frame, header._replace(**changes))
        if rows:
            write_rows(frame, *zip(*rows, strict=True))
        frame[payload_offset(len(rows)) :] = payload
        self._router.send_multipart([b"me", frame])

    def kv(self, *ops):
        self.send(FrameType.KV, pack_kv_ops(ops))
        self.member.kv.apply(ops)

    def hello(self):
        """Return the header of the HELLO that came."""
        frame = self._router.recv_multipart()[1]
        header = read_header(frame, len(frame))
        assert header.type is FrameType.HELLO
        return header

    def reply(self):
        frame = self._router.recv_multipart()[1]
        header = read_header(frame, len(frame))
        assert header.seq == self._seq
        return header, frame[payload_offset(0) :]

    def token(self, kv_id, position, sampler=GREEDY, wire=Wire.F16):
        """Carry one token; None as sampler asks for the residual."""
        x = np.random.default_rng((kv_id, position)).standard_normal((1, D)).astype(np.float16)
        x = x.astype(np.float32)
        payload = x.astype(np.float16).tobytes() if wire is Wire.F16 else x.tobytes()
        changes = {"phase": Phase.STAGE, "wire": wire}
        if sampler is not None:
            payload += pack_sampler_rows([sampler])
            changes |= {"flags": Flag.VOCAB_AFTER, "n_vocab_rows": 1}
        self.send(FrameType.STEP, payload, [(kv_id, position)], **changes)
        slots, logits = np.zeros(1, np.int32), np.zeros((1, V), np.float32)
        self.member.kv.prepare(np.array([[kv_id, position]], np.uint32), slots)
        self.member.kernels.begin(slots, np.array([position], np.int32))
        self.member.kernels.run_all(x, logits)
        return Answer(*self.reply(), x[0], logits[0])

    def check(self, kv_id, position, sampler=GREEDY, wire=Wire.F16):
        """Carry one token and compare the reply with the kernels, bit by bit."""
        header, payload, residual, logits = self.token(kv_id, position, sampler, wire)
        assert (header.phase, header.wire, header.n_rows) == (Phase.STAGE, wire, 0)
        if sampler is None:
            assert header.type is FrameType.RESIDUAL
            dtype = np.float16 if wire is Wire.F16 else np.float32
            assert payload == residual.astype(dtype).tobytes()
            return
        assert header.type is FrameType.TOP
        (top,) = read_top_rows(payload, 1)
        ids = sampler.penalised_ids
        low = logits[ids]
        logits[ids] = np.where(low > 0, low / np.float32(1.3), low * np.float32(1.3))
        order = np.lexsort((np.arange(V), -logits))[: 256 if sampler.temperature else 1]
        assert np.array_equal(top.ids, order)
        assert np.array_equal(top.logits, logits[order])
        assert top.log_sum_exp == log_sum_exp(logits, sampler.temperature or 1.0)

    @property
    def n_compiled(self):
        return self.loop._phases.n_steps


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    with make_model(tmp_path_factory.mktemp("tokens") / "model") as directory:
        yield directory


@pytest.fixture
def text(directory):
    """Context 1, open."""
    pools = Pool(1), Pool(1 if JIT_DISABLED else 2)
    ours, theirs = (
        make_member(assignment(directory, RUN), directory.manifest, directory.weights, pool)
        for pool in pools
    )
    told = queue.SimpleQueue()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        set_options(router, HOT)
        router.setsockopt(zmq.RCVTIMEO, int(1000 * DEADLINE_S))
        port = router.bind_to_random_port("tcp://127.0.0.1")
        loop = HotLoop(f"tcp://127.0.0.1:{port}", b"me", RunId(RUN), told.put)
        loop.start()
        loop.adopt(Epoch(1), theirs)
        assert router.recv_multipart()[0] == b"me"
        assert told.get(timeout=DEADLINE_S) == Joined(LoadKey(RunId(RUN), Epoch(1)))
        text = Text(router, loop, pools[1], ours, told)
        text.kv(KvOp(OPEN, KvId(1), 192))
        yield text
        loop.stop()
        assert loop.join(DEADLINE_S)
        theirs.kv.check()
    assert told.empty()
    for pool in pools:
        pool.close()


@needs_calls
@pytest.mark.parametrize("wire", Wire)
@pytest.mark.parametrize("sampler", [GREEDY, WARM, None])
def test_a_text_that_is_written_alone_comes_to_python_once_a_page(text, sampler, wire):
    n = 2 * PAGE_TOKENS + 7
    for position in range(n):
        text.check(1, position, sampler, wire)
    # Python has the first two tokens, from which it learns, and the first of each further page.
    assert text.n_compiled == n - 4
    assert text.loop.n_steps == n
    assert text.loop.samples.n_added == n


def test_the_books_know_of_every_token(text):
    for position in range(10):
        text.check(1, position)
    text.kv(KvOp(FORK, KvId(2), KvId(1), 10))
    for position in range(10, 14):
        text.check(1, position)
        text.check(2, position)
    text.kv(KvOp(TRUNCATE, KvId(1), 12))
    text.check(1, 12)


def test_pages_that_a_fork_reads_are_not_written(text):
    for position in range(PAGE_TOKENS + 9):
        text.check(1, position)
    text.kv(KvOp(FORK, KvId(2), KvId(1), PAGE_TOKENS + 9), KvOp(TRUNCATE, KvId(1), 20))
    for position in range(20, 30):
        text.check(1, position, WARM)
    for position in range(PAGE_TOKENS + 9, PAGE_TOKENS + 15):
        text.check(2, position)
    for position in range(30, PAGE_TOKENS + 3):
        text.check(1, position)
    text.check(2, PAGE_TOKENS + 15)


@needs_calls
def test_what_is_not_the_next_token_comes_to_python(text):
    for position in range(20):
        text.check(1, position)
    for position in (19, 12, 13, 14, 15, 20, 21, 22):
        text.check(1, position)
    n_compiled = text.n_compiled
    for sampler in (PENALISED, GREEDY, None, WARM, GREEDY):
        text.check(1, 22, sampler)
        text.check(1, 22, sampler, Wire.F32)
    assert text.n_compiled == n_compiled
    for position in range(23, 27):
        text.check(1, position)
    assert text.n_compiled > n_compiled


def test_full_logits_of_the_token_just_carried(text):
    for position in range(5):
        text.check(1, position, WARM)
    answer = text.token(1, 4, SamplerRow(full_logits=True))
    assert answer.header.type is FrameType.LOGITS
    assert answer.payload == answer.logits.tobytes()
    text.check(1, 5, WARM)


def test_a_hole_in_a_text_is_an_error_and_the_text_goes_on(text):
    for position in range(6):
        text.check(1, position)
    for position in (7, 2**31, 2**32 - 1):
        x = np.zeros(D, np.float16).tobytes() + pack_sampler_rows([GREEDY])
        changes = {"phase": Phase.STAGE, "flags": Flag.VOCAB_AFTER, "n_vocab_rows": 1}
        text.send(FrameType.STEP, x, [(1, position)], **changes)
        header, payload = text.reply()
        assert header.type is FrameType.ERROR
        assert f"has 6 of at most 192 tokens; position {position}" in payload.decode()
    for position in range(6, 9):
        text.check(1, position)


def test_the_end_of_the_context_is_an_error(text):
    for position in range(192):
        text.check(1, position, None)
    text.send(FrameType.STEP, np.zeros(D, np.float16).tobytes(), [(1, 192)], phase=Phase.STAGE)
    header, payload = text.reply()
    assert header.type is FrameType.ERROR
    assert "has 192 of at most 192 tokens" in payload.decode()


def test_a_context_that_closes_is_missed_by_the_next_token(text):
    for position in range(4):
        text.check(1, position)
    text.kv(KvOp(RELEASE, KvId(1)))
    text.send(FrameType.STEP, np.zeros(D, np.float16).tobytes(), [(1, 4)], phase=Phase.STAGE)
    header, payload = text.reply()
    assert (header.type, payload) == (FrameType.ERROR, b"context 1 is not open on this agent")
    text.kv(KvOp(OPEN, KvId(1), 20))
    for position in range(4):
        text.check(1, position)


@needs_calls
def test_a_ping_in_a_text_is_no_news(text):
    """Who waits for a slow token pings now and then."""
    for position in range(10):
        text.send(FrameType.PING, b"")
        text.check(1, position)
    assert text.n_compiled == 8


@needs_calls
def test_a_worker_that_fails_is_told_and_the_text_goes_on(text):
    for position in range(4):
        text.check(1, position)
    n_compiled = text.n_compiled
    text.pool.sync[ABORT] = 1
    text.pool._failure = RuntimeError("worker 1")
    header, payload, *_ = text.token(1, 4)
    assert (header.type, payload) == (FrameType.ERROR, b"internal error: RuntimeError('worker 1')")
    assert text.n_compiled == n_compiled
    for position in range(4, 8):
        text.check(1, position)
    assert text.n_compiled > n_compiled


@needs_calls
def test_logits_that_are_no_numbers_come_to_python(text):
    for position in range(4):
        text.check(1, position, WARM)
    n_compiled = text.n_compiled
    x = np.full(D, np.nan, np.float16).tobytes() + pack_sampler_rows([WARM])
    changes = {"phase": Phase.STAGE, "flags": Flag.VOCAB_AFTER, "n_vocab_rows": 1}
    text.send(FrameType.STEP, x, [(1, 4)], **changes)
    header, payload = text.reply()
    assert header.type is FrameType.TOP
    (top,) = read_top_rows(payload, 1)
    assert len(top.ids) == 0
    # Nothing is learnt from that.
    text.send(FrameType.STEP, x, [(1, 5)], **changes)
    header, payload = text.reply()
    assert header.type is FrameType.TOP
    assert len(read_top_rows(payload, 1)[0].ids) == 0
    assert text.n_compiled == n_compiled
    text.kv(KvOp(TRUNCATE, KvId(1), 4))
    for position in range(4, 8):
        text.check(1, position, WARM)
    assert text.n_compiled == n_compiled + 2


def test_rows_are_read_in_the_middle_of_a_text(text):
    key = LoadKey(RunId(RUN), Epoch(1))
    for position in range(12):
        text.check(1, position)
    text.loop.move(PoolJob(key, Export(7, 1, 1, (Group(1, 0),), 0, 12)))
    # In whichever order the loop sees it: rows are read between two tokens.
    text.check(1, 12)
    read = text.told.get(timeout=DEADLINE_S)
    place = text.member.group_index[1, 0]
    assert read == RowsRead(key, 7, export_rows(text.member.kv, 1, [place], 0, 12))
    text.loop.end_moves()
    text.check(1, 13)


def test_another_epoch_comes_and_goes_in_the_middle_of_a_text(text, directory):
    pool = Pool(1)
    told = assignment(directory, RUN, 2)
    other = make_member(told, directory.manifest, directory.weights, pool)
    for position in range(5):
        text.check(1, position)
    text.loop.adopt(Epoch(2), other)
    assert text.told.get(timeout=DEADLINE_S) == Joined(LoadKey(RunId(RUN), Epoch(2)))
    assert text.hello().epoch == 2
    for position in range(5, 10):
        text.check(1, position)
    text.loop.drop(Epoch(2))
    for position in range(10, 15):
        text.check(1, position)
    pool.close()
