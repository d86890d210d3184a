"""The coordinator's hot path against members that do as they please, over real sockets.

Every case runs twice: with the phases of a step walked by compiled code, and all in Python.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pytest
import zmq

from agent.frames import (
    HEADER_BYTES,
    FrameType,
    Header,
    Phase,
    Wire,
    pack_header,
    payload_offset,
    read_header,
)
from agent.ids import AgentName, Epoch, KvId, ModelId, Rank, RunId
from agent.native import PLAIN_VARIABLE
from agent.share import AtomRange, LayerShare
from coordinator import engine as engine_module
from coordinator.engine import Engine, Rows
from coordinator.hot_link import HotLink, HotPeer
from coordinator.limits import Bound
from coordinator.plan import Member, Plan, Stage
from kernels.errors import AgentLostError, FaultyAgentError, RemoteError
from kernels.layout import Geometry, WeightFormat

D = 64
GEOMETRY = Geometry(D, 3, 4, 4, 16, 128, 512, WeightFormat.F32, 1e-5)
RUN, EPOCH = RunId(77), Epoch(3)
N_PHASES = 2 * GEOMETRY.n_layers
NAMES = [AgentName("a"), AgentName("b"), AgentName("c")]
WAIT_MS = 20_000
ROW_BYTES = 4096  # HotLink's smallest inbox row

Parts = list[bytes]


class Asked(NamedTuple):
    """A STEP as a member got it."""

    header: Header
    frame: bytes

    @property
    def x(self) -> np.ndarray:
        """The residual that was sent."""
        dtype = np.float16 if self.header.wire is Wire.F16 else np.float32
        return np.frombuffer(self.frame, dtype, offset=payload_offset(self.header.n_rows))


def partial_of(rank: int, asked: Asked) -> np.ndarray:
    """What member `rank` adds: a share of x that depends on everything it was asked."""
    factor = 1 + rank + 4 * asked.header.layer + 2 * asked.header.phase
    return (asked.x.astype(np.float32) * np.float32(factor / 64)).astype(asked.x.dtype)


def reply(member: int, asked: Asked, data: bytes | None = None, **changes: object) -> bytes:
    """Return the frame that answers, with some header fields changed."""
    data = partial_of(member, asked).tobytes() if data is None else data
    header = asked.header._replace(
        type=FrameType.PARTIAL, rank=Rank(member), n_rows=0, busy_us=5, payload_bytes=len(data)
    )
    frame = bytearray(HEADER_BYTES + len(data))
    pack_header(frame, header._replace(**changes))  # type: ignore[arg-type]
    frame[HEADER_BYTES:] = data
    return bytes(frame)


# Given a rank and what it was asked: the messages to send.
Script = Callable[[int, Asked], list[Parts]]


def honest(rank: int, asked: Asked) -> list[Parts]:
    return [[reply(rank, asked)]]


class FakeMember:
    """A member in a thread of its own that answers each STEP as its script says."""

    def __init__(self, rank: int, port: int, script: Script) -> None:
        self.asked: list[Asked] = []
        self._rank, self._script = rank, script
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(port,))
        self._thread.start()

    def _run(self, port: int) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.ROUTING_ID, f"{NAMES[self._rank]}/1".encode())
        socket.setsockopt(zmq.RCVTIMEO, 20)
        socket.setsockopt(zmq.SNDTIMEO, WAIT_MS)
        socket.connect(f"tcp://127.0.0.1:{port}")
        hello = bytearray(HEADER_BYTES)
        pack_header(
            hello,
            Header(FrameType.HELLO, Wire.F32, EPOCH, RUN, 0, rank=Rank(self._rank)),  # type: ignore[arg-type]
        )
        socket.send(hello)
        while not self._stop.is_set():
            try:
                frame = socket.recv()
            except zmq.Again:
                continue
            header = read_header(frame, len(frame))
            if header.type is FrameType.STEP:
                self.asked.append(Asked(header, frame))
                for parts in self._script(self._rank, self.asked[-1]):
                    if parts == [b"leave"]:
                        self._stop.set()
                    else:
                        socket.send_multipart(parts)
        socket.close(linger=0)
        context.term()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()


def plan(wire: str) -> Plan:
    shares = [
        tuple(
            LayerShare(layer, (AtomRange(g, n),), (AtomRange(g, n),))
            for layer in range(GEOMETRY.n_layers)
        )
        for g, n in ((0, 1), (1, 1), (2, 2))
    ]
    vocab: list[tuple[AtomRange, ...]] = [(AtomRange(0, GEOMETRY.n_vocab_atoms),), (), ()]
    members = tuple(Member(n, s, v) for n, s, v in zip(NAMES, shares, vocab, strict=True))
    return Plan(ModelId("0" * 32), (Stage(0, GEOMETRY.n_layers, members),), wire=wire)  # type: ignore[arg-type]


class Rig:
    """An engine and its three members."""

    def __init__(
        self,
        script: Script,
        wire: str = "f16",
        lost: Callable[[Rank], str] | None = None,
        bound: Bound = lambda *_: math.inf,
    ):
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.link = HotLink(self.context, "tcp://127.0.0.1:*", RUN, lost or (lambda _: ""))
        self.members = [FakeMember(r, self.link.port, script) for r in range(len(NAMES))]
        peers = [HotPeer(f"{name}/1".encode()) for name in NAMES]
        self.link.expect(NAMES, peers, EPOCH, HEADER_BYTES + 4 * 8 * D)
        self.link.join(time.monotonic() + 20)
        self.engine = Engine(self.link, plan(wire), GEOMETRY, RUN, EPOCH, 8, bound)

    def step(self, n_rows: int = 1, seed: int = 0) -> np.ndarray:
        """Run one step without vocabulary and return the residual that it ends with."""
        x = np.random.default_rng(seed).standard_normal((n_rows, D)).astype(np.float32)
        self.engine.step(x, Rows([KvId(1)] * n_rows, list(range(n_rows))))
        return self.engine._workspace(n_rows).x.copy()

    def close(self) -> None:
        for member in self.members:
            member.close()
        self.link.close()
        self.context.term()


def expected(n_rows: int, wire: str, seed: int = 0) -> np.ndarray:
    """What the step must give, in NumPy."""
    dtype = np.float16 if wire == "f16" else np.float32
    x = np.random.default_rng(seed).standard_normal((n_rows, D)).astype(np.float32)
    for layer in range(GEOMETRY.n_layers):
        for phase in (0, 1):
            sent = x.astype(dtype)
            for rank in range(len(NAMES)):
                factor = np.float32((1 + rank + 4 * layer + 2 * phase) / 64)
                x = x + (sent.astype(np.float32) * factor).astype(dtype).astype(np.float32)
    return x


@pytest.fixture(params=["compiled", "plain"], autouse=True)
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PLAIN_VARIABLE, "1" if request.param == "plain" else "0")


@pytest.fixture
def rig() -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def make(*args: object, **kwargs: object) -> Rig:
        rigs.append(Rig(*args, **kwargs))  # type: ignore[arg-type]
        return rigs[-1]

    yield make
    for made in rigs:
        made.close()


@pytest.mark.parametrize("wire", ["f16", "f32"])
@pytest.mark.parametrize("n_rows", [1, 7])
def test_partials_are_added_in_rank_order(rig: Callable[..., Rig], wire: str, n_rows: int) -> None:
    r = rig(honest, wire)
    for seed in range(3):
        assert np.array_equal(r.step(n_rows, seed), expected(n_rows, wire, seed))
    for member in r.members:
        assert [(a.header.layer, a.header.phase) for a in member.asked] == 3 * [
            (layer, phase)
            for layer in range(GEOMETRY.n_layers)
            for phase in (Phase.ATTENTION, Phase.MLP)
        ]
    seqs = [a.header.seq for a in r.members[0].asked]
    assert seqs == sorted(set(seqs)), "each dispatch has a number of its own, and they rise"
    assert r.engine.times.n_dispatches == 3 * N_PHASES
    assert r.engine.times.kernels_s >= 3 * N_PHASES * 4e-6
    assert r.engine.times.exchange_s > 0


FOREIGN: dict[str, Callable[[int, Asked], Parts]] = {
    "another run": lambda rank, a: [reply(rank, a, run_id=78)],
    "another epoch": lambda rank, a: [reply(rank, a, epoch=2)],
    "an old number": lambda rank, a: [reply(rank, a, seq=a.header.seq - 1)],
    "another rank": lambda rank, a: [reply(rank, a, rank=(rank + 1) % 3)],
    "a rank out of bounds": lambda rank, a: [reply(rank, a, rank=500)],
    "three parts": lambda rank, a: [reply(rank, a), b"", b"more"],
    "nothing": lambda rank, a: [b""],
    "junk": lambda rank, a: [b"H\x01" + b"\xff" * 200],
    "a good reply with a tail beyond the buffer": lambda rank, a: [
        reply(rank, a, bytes(ROW_BYTES + 64))
    ],
    "a frame larger than the buffer": lambda rank, a: [b"H\x01" + b"\x02" * 100_000],
    "a header alone": lambda rank, a: [reply(rank, a)[:HEADER_BYTES]],
}


@pytest.mark.parametrize("what", FOREIGN)
def test_foreign_frames_are_dropped_and_the_step_goes_on(
    rig: Callable[..., Rig], what: str
) -> None:
    def script(rank: int, asked: Asked) -> list[Parts]:
        odd = asked.header.layer == 1 and rank in (0, 2)
        return [FOREIGN[what](rank, asked)] * odd + honest(rank, asked)

    r = rig(script)
    assert np.array_equal(r.step(), expected(1, "f16"))
    assert np.array_equal(r.step(seed=1), expected(1, "f16", 1))
    assert r.link.n_dropped == 2 * 2 * 2


def test_a_reply_that_comes_twice_counts_once(rig: Callable[..., Rig]) -> None:
    r = rig(lambda rank, asked: 2 * honest(rank, asked))
    for seed in range(3):
        assert np.array_equal(r.step(seed=seed), expected(1, "f16", seed))


def test_a_slow_member_is_waited_for(rig: Callable[..., Rig]) -> None:
    ready = threading.Event()

    def script(rank: int, asked: Asked) -> list[Parts]:
        if rank == 1 and asked.header.layer == 1:
            ready.wait(0.25)  # longer than the link waits before it looks after its members
        return honest(rank, asked)

    r = rig(script)
    assert np.array_equal(r.step(), expected(1, "f16"))
    assert r.engine.times.longest_dispatch_s > 0.2


def test_an_error_ends_the_step_with_the_members_name_and_words(rig: Callable[..., Rig]) -> None:
    def script(rank: int, asked: Asked) -> list[Parts]:
        if rank == 1 and asked.header.layer == 2:
            return [[reply(rank, asked, b"no page\x1b[2J is free", type=FrameType.ERROR)]]
        return honest(rank, asked)

    r = rig(script)
    with pytest.raises(RemoteError, match=r"agent 'b': no page\\x1b\[2J is free"):
        r.step()


def test_a_member_that_leaves_ends_the_step(rig: Callable[..., Rig]) -> None:
    def script(rank: int, asked: Asked) -> list[Parts]:
        return [[b"leave"]] if rank == 2 and asked.header.layer == 1 else honest(rank, asked)

    r = rig(script)
    with pytest.raises(AgentLostError, match="agent 'c' was lost: its hot link is closed"):
        r.step()
    with pytest.raises(AgentLostError, match="agent 'c' was lost: its hot link is closed"):
        r.step()


def test_a_member_known_to_be_lost_ends_the_step(rig: Callable[..., Rig]) -> None:
    silent = threading.Event()

    def script(rank: int, asked: Asked) -> list[Parts]:
        if rank == 0 and asked.header.layer == 1:
            silent.set()
            return []
        return honest(rank, asked)

    r = rig(script, lost=lambda rank: "its cable was cut" if silent.is_set() and rank == 0 else "")
    with pytest.raises(AgentLostError, match="agent 'a' was lost: its cable was cut"):
        r.step()


def test_a_member_that_never_answers_ends_the_step_at_its_deadline(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "PHASE_TIMEOUT_S", 0.3)
    r = rig(lambda rank, asked: [] if rank == 1 else honest(rank, asked))
    with pytest.raises(AgentLostError, match=r"agent 'b' was lost: it did not answer within 0.3 s"):
        r.step()


@pytest.mark.parametrize("change", [{"n_rows": 1}, {"wire": Wire.F32}, {"type": FrameType.TOP}])
def test_a_reply_of_another_kind_ends_the_step(
    rig: Callable[..., Rig], change: dict[str, object]
) -> None:
    def script(rank: int, asked: Asked) -> list[Parts]:
        if rank == 1:
            row_table = b"\0" * 8 * ("n_rows" in change)
            return [[reply(rank, asked, **change) + row_table]]
        return honest(rank, asked)

    r = rig(script)
    with pytest.raises(RemoteError, match="agent 'b' answered"):
        r.step()


def test_a_sum_that_is_not_finite_is_asked_for_again_in_f32(rig: Callable[..., Rig]) -> None:
    def script(rank: int, asked: Asked) -> list[Parts]:
        if rank == 1 and asked.header.layer == 1 and asked.header.wire is Wire.F16:
            return [[reply(rank, asked, np.full(D, np.inf, np.float16).tobytes())]]
        return honest(rank, asked)

    r = rig(script)
    assert np.array_equal(r.step(), expected(1, "f32"))


def test_numbers_that_are_not_finite_in_f32_either_name_the_member(
    rig: Callable[..., Rig],
) -> None:
    def script(rank: int, asked: Asked) -> list[Parts]:
        if rank == 2 and asked.header.layer == 1:
            return [[reply(rank, asked, np.full_like(asked.x, np.nan).tobytes())]]
        return honest(rank, asked)

    r = rig(script)
    with pytest.raises(FaultyAgentError, match="agent 'c' sent inf or NaN in attention") as e:
        r.step()
    assert e.value.agent == "c"


@pytest.mark.parametrize(("value", "is_legal"), [(1e6, True), (-1e6, True), (3e6, False)])
def test_in_f32_a_member_may_send_what_its_weights_can_give(
    rig: Callable[..., Rig], value: float, is_legal: bool
) -> None:
    asked_about = []

    def bound(*where: object) -> float:
        asked_about.append(where)
        return 2e6

    def script(rank: int, asked: Asked) -> list[Parts]:
        if rank == 1 and (asked.header.layer, asked.header.phase) == (1, Phase.MLP):
            with np.errstate(over="ignore"):
                return [[reply(rank, asked, np.full_like(asked.x, value).tobytes())]]
        return honest(rank, asked)

    r = rig(script, bound=bound)
    for _ in range(2):
        if is_legal:
            assert np.abs(r.step()).max() > 5e5
        else:
            told = r"agent 'b' sent NaN or more than 2e\+06, the most that its weights can give"
            with pytest.raises(FaultyAgentError, match=told) as e:
                r.step()
            assert e.value.agent == "b"
    assert asked_about == [(1, Phase.MLP, 1)]
