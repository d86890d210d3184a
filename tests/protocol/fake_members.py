"""Members in threads that answer each STEP as a script says, and an engine before them."""

import math
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import zmq

from agent.frames import (
    HEADER_BYTES,
    FrameType,
    Header,
    Wire,
    pack_header,
    payload_offset,
    read_header,
)
from agent.ids import AgentName, Epoch, KvId, ModelId, Rank, RunId
from agent.share import AtomRange, LayerShare
from coordinator.engine import Engine, Rows
from coordinator.hot_link import HotPeer
from coordinator.hot_socket import HotSocket
from coordinator.limits import Bound
from coordinator.plan import Member, Plan, Stage
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
        lost: Callable[[AgentName], str] | None = None,
        bound: Bound = lambda *_: math.inf,
    ):
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = HotSocket(self.context, "tcp://127.0.0.1:*", RUN)
        self.members = [FakeMember(r, self.socket.port, script) for r in range(len(NAMES))]
        peers = [HotPeer(f"{name}/1".encode()) for name in NAMES]
        reply_bytes = HEADER_BYTES + 4 * 8 * D
        self.link = self.socket.expect(NAMES, peers, EPOCH, reply_bytes, lost or (lambda _: ""))
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
        self.socket.close()
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
