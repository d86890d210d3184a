"""The coordinator's end of the hot channel: one ROUTER, one frame to each member, one gather.

Owns the socket and its buffers; used by one thread only. Does not know layers or residuals
(`engine`) nor who should answer when (`gather` keeps the books).
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import zmq

from agent.curve import ServerCurve, peer_key
from agent.frames import (
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    FrameType,
    Header,
    Wire,
    pack_header,
    read_header,
)
from agent.ids import Epoch, Rank, RunId, Seq
from agent.sockets import HOT, bind_port, set_options
from coordinator.gate import Evictor
from coordinator.gather import Gather
from coordinator.phase_walk import MAX_SEQ, Stop, Walked
from coordinator.plain_text import MAX_REASON_CHARS, one_line
from kernels.errors import AgentLostError, LateAgentsError, RemoteError, WireError
from kernels.layout import round_up

__all__ = ["HotLink", "HotPeer", "Reply"]

log = logging.getLogger(__name__)

# Plain numbers: combining pyzmq's enums costs microseconds in every send.
ROUTE = int(zmq.SNDMORE) | int(zmq.NOBLOCK)
FRAME = int(zmq.NOBLOCK)
RCVMORE = int(zmq.RCVMORE)
# How often a gather that waits looks after the members it waits for.
CHECK_S = 0.1
# Most frames that one `drain` drops.
DRAIN_FRAMES = 1000


class Reply(NamedTuple):
    """One member's answer: its header, and the row of the inbox where its frame lies.

    The row is valid until the next exchange.
    """

    header: Header
    slot: int


class HotPeer(NamedTuple):
    """The route that a member was told on its control link, and the key that it proved there."""

    route: bytes
    key: str = ""


class HotLink:
    """The hot ROUTER of one run.

    Args:
        context: the ZeroMQ context.
        endpoint: where to bind; a tcp endpoint with port `*` takes a free one.
        run_id: the number of this run, part of every frame.
        lost_reason: returns why an agent of that rank is known to be gone, or "".
        curve: the coordinator's keys; None speaks in clear.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        run_id: RunId,
        lost_reason: Callable[[Rank], str],
        curve: ServerCurve | None = None,
    ) -> None:
        self._socket = context.socket(zmq.ROUTER)
        set_options(self._socket, HOT, curve)
        self._socket.setsockopt(zmq.RCVTIMEO, int(1000 * CHECK_S))
        self.port = bind_port(self._socket, endpoint)
        self._run_id = run_id
        self._lost_reason = lost_reason
        self._evictor = Evictor(context, self._socket)
        self._routes: dict[Rank, bytes] = {}
        # For other threads; replaced, never changed.
        self._member_routes: frozenset[bytes] = frozenset()
        self._peers: dict[Rank, HotPeer] = {}
        self._names: dict[Rank, str] = {}
        self.epoch = Epoch(0)
        self._gather = Gather()
        self.inbox = np.empty((0, 0), np.uint8)
        self._slots: list[memoryview] = []
        self._seq = 0
        self._watched_seqs: deque[Seq] = deque(maxlen=64)
        self.n_dropped = 0

    def close(self) -> None:
        """Close the socket at once; frames not yet sent are dropped."""
        self._socket.close(linger=0)

    def next_seq(self) -> Seq:
        """Return a number for the next frame, never used before in this epoch."""
        return self.next_seqs(1)

    def next_seqs(self, n: int) -> Seq:
        """Return the first of n consecutive numbers for the next n frames."""
        first = Seq((self._seq + 1) & MAX_SEQ)
        self._seq = (self._seq + n) & MAX_SEQ
        return first

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._socket.closed

    @property
    def address(self) -> int:
        """The socket's address, for compiled code."""
        return self._socket.underlying

    @property
    def routes(self) -> list[bytes]:
        """Route of each member, in rank order."""
        return [self._routes[rank] for rank in sorted(self._routes)]

    def evict(self, route: bytes) -> None:
        """End the link of an agent that is gone, if it is a member; safe from any thread.

        Frames of others are dropped whatever they are, and `drain` lets go of closed links.
        """
        if route in self._member_routes:
            self._evictor.evict(route)

    def drain(self) -> None:
        """Drop what came while nobody was asked anything, so that it does not fill the memory."""
        for _ in range(DRAIN_FRAMES):
            try:
                # Not copied: what nobody may send can be large.
                self._socket.recv(FRAME, copy=False)
            except zmq.Again:
                return
            while self._socket.getsockopt(RCVMORE):
                self._socket.recv(copy=False)
            self._drop("a frame between two requests")

    def expect(
        self, names: Sequence[str], peers: Sequence[HotPeer], epoch: Epoch, reply_bytes: int
    ) -> None:
        """Take the members of a new plan for ours, before they are told of it.

        Args:
            names: agent names in rank order.
            peers: the route of each, and whose key must be behind it.
            epoch: the plan's epoch; frames of others are dropped from now on.
            reply_bytes: size of the largest reply, for which buffers are allocated.
        """
        self._names = {Rank(r): name for r, name in enumerate(names)}
        self._peers = {Rank(r): peer for r, peer in enumerate(peers)}
        self._member_routes = frozenset(peer.route for peer in peers)
        self.epoch = epoch
        self._routes = {}
        size = min(max(reply_bytes, 4096), MAX_FRAME_BYTES)
        # One row a member and one to spare; rows are whole cache lines, so that any type fits.
        self.inbox = np.empty((len(names) + 1, round_up(size, 64)), np.uint8)
        self._slots = [row.data for row in self.inbox]

    def take_hellos(self) -> None:
        """Take what came while members load: their HELLO frames, and drop all else."""
        for _ in range(DRAIN_FRAMES):
            if not self._await_hello(FRAME):
                return

    def join(self, deadline_s: float) -> None:
        """Wait for the HELLO frame of every expected member.

        Args:
            deadline_s: monotonic time to give up.

        Raises:
            LateAgentsError: members did not dial the hot port in time; names them.
            AgentLostError: a member is gone.
        """
        while len(self._routes) < len(self._names):
            self._await_hello(0)
            missing = [n for r, n in self._names.items() if r not in self._routes]
            if missing and time.monotonic() > deadline_s:
                text = f"no hot link from agent {', '.join(missing)} in time"
                raise LateAgentsError(f"{text}; can it reach port {self.port}?", missing)
            self._raise_if_lost(self._names)

    def _await_hello(self, flags: int) -> bool:
        """Take one frame, if one comes; accept a HELLO of a member's route, key and rank."""
        try:
            route = self._socket.recv(flags, copy=False)
            n_bytes = self._socket.recv_into(self._slots[0])
        except zmq.Again:
            return False
        more = bool(self._socket.getsockopt(RCVMORE))
        got = self._check(route.bytes, n_bytes, self._slots[0], more)
        if got is not None and got[1].type is FrameType.HELLO:
            rank = got[1].rank
            if self._peers.get(rank) == HotPeer(route.bytes, peer_key(route)):
                self._routes[rank] = route.bytes
            else:
                self._drop("a HELLO under another agent's rank")
        return True

    def watch(self, seq: Seq) -> None:
        """Let the next exchange fail if a member answers frame `seq`, sent before, by ERROR."""
        self._watched_seqs.append(seq)

    def send(self, rank: Rank, frame: bytes | bytearray | memoryview) -> None:
        """Send one frame to one member without waiting.

        Raises:
            AgentLostError: the member's link is closed or its queue is full.
        """
        try:
            self._socket.send(self._routes[rank], ROUTE)
            self._socket.send(frame, FRAME)
        except zmq.ZMQError as e:
            raise self._closed(rank, e) from e

    def exchange(
        self,
        frame: bytes | bytearray | memoryview,
        ranks: Sequence[Rank],
        timeout_s: float,
    ) -> list[Reply]:
        """Send one frame to every member of `ranks` and return their replies in that order.

        The frame carries the number that `next_seq` returned last.

        Raises:
            AgentLostError: a member's link closed, or it did not answer within timeout_s.
            RemoteError: a member answered with an ERROR frame.
        """
        seq = Seq(self._seq)
        self._gather.begin(seq, ranks, time.monotonic() + timeout_s)
        for rank in ranks:
            self.send(rank, frame)
        return self._await(seq, ranks, {}, timeout_s)

    def resume(
        self, walked: Walked, slots: Sequence[int], ranks: Sequence[Rank], timeout_s: float
    ) -> list[Reply]:
        """Finish an exchange that compiled code began; like `exchange` from there on.

        Args:
            walked: where and why it stopped.
            slots: for each member the inbox row of its reply, negative where there is none.
            ranks: who was asked.
            timeout_s: how long to wait since the frame was sent.
        """
        if walked.why is Stop.UNSENT:
            raise self._closed(Rank(walked.rank), zmq.ZMQError(walked.error))
        gather, seq = self._gather, walked.seq
        gather.begin(seq, ranks, walked.started_s + timeout_s)
        replies: dict[Rank, Reply] = {}
        for rank in ranks:
            slot = slots[rank]
            if slot >= 0:
                header = read_header(self._slots[slot], walked.reply_bytes)
                gather.on_reply(rank, seq)
                replies[rank] = Reply(header, slot)
        if walked.why is Stop.ODD_FRAME:
            buffer = self._slots[len(replies)]
            got = self._check(walked.route, walked.frame_bytes, buffer, walked.more)
            if got is not None:
                self._sort_in(*got, seq, replies)
        return self._await(seq, ranks, replies, timeout_s)

    def _await(
        self, seq: Seq, ranks: Sequence[Rank], replies: dict[Rank, Reply], timeout_s: float
    ) -> list[Reply]:
        """Gather until `replies` has all of `ranks`; each new one fills the next inbox row."""
        look_s = time.monotonic() + CHECK_S
        while len(replies) < len(ranks):
            got = self._receive(self._slots[len(replies)])
            if got is not None and self._sort_in(*got, seq, replies):
                continue
            # By the clock, not by silence: whoever sends other frames cannot keep us from it.
            now_s = time.monotonic()
            if now_s >= look_s:
                look_s = now_s + CHECK_S
                self._look_after(self._gather.missing())
            if self._gather.expired(now_s):
                rank = self._gather.missing()[0]
                raise self._lost(rank, f"it did not answer within {timeout_s:.1f} s")
        return [replies[rank] for rank in ranks]

    def _sort_in(self, route: bytes, header: Header, seq: Seq, replies: dict[Rank, Reply]) -> bool:
        """Keep a frame, which is in the next inbox row, if it is a reply to `seq`; or drop it."""
        slot = len(replies)
        if self._routes.get(header.rank) != route:
            self._drop("a frame under another member's rank")
        elif header.type is FrameType.ERROR:
            self._on_error(header, self._slots[slot], seq)
        elif self._gather.on_reply(header.rank, header.seq) == "accepted":
            replies[header.rank] = Reply(header, slot)
            return True
        else:
            self._drop("a reply that nobody waits for")
        return False

    def _receive(self, buffer: memoryview) -> tuple[bytes, Header] | None:
        """Receive one frame of this run and epoch into `buffer`; None when none came in time."""
        try:
            route = self._socket.recv()
            # A ROUTER puts the sender's route before what it sent: at least one more part.
            n_bytes = self._socket.recv_into(buffer)
        except zmq.Again:
            return None
        return self._check(route, n_bytes, buffer, bool(self._socket.getsockopt(RCVMORE)))

    def _check(
        self, route: bytes, n_bytes: int, buffer: memoryview, more: bool
    ) -> tuple[bytes, Header] | None:
        """Return a received frame's sender and header; None, and count, if it is none of ours."""
        try:
            if more:
                while self._socket.getsockopt(RCVMORE):
                    self._socket.recv()
                raise WireError("a message of more than two parts")
            if n_bytes > len(buffer):
                raise WireError(f"a frame of {n_bytes} bytes")
            header = read_header(buffer, n_bytes)
            if header.run_id != self._run_id or header.epoch != self.epoch:
                raise WireError("a frame of another run or epoch")
        except WireError as e:
            self._drop(str(e))
            return None
        return route, header

    def _on_error(self, header: Header, buffer: memoryview, seq: Seq) -> None:
        """Raise what an ERROR frame says, if it is about this exchange or a watched frame."""
        if header.seq in self._watched_seqs:
            # The other members' errors about the same frame are no news, nor another text's.
            self._watched_seqs.remove(header.seq)
        elif header.seq != seq:
            self._drop("an error about a frame that nobody waits for")
            return
        data = bytes(buffer[HEADER_BYTES : HEADER_BYTES + header.payload_bytes])
        text = one_line(data.decode(errors="replace"), MAX_REASON_CHARS)
        name = self._names[header.rank]
        raise RemoteError(f"agent {name!r}: {text}")

    def _drop(self, what: str) -> None:
        self.n_dropped += 1
        if self.n_dropped & (self.n_dropped - 1) == 0:
            log.warning("hot: dropped %s (%d dropped so far)", what, self.n_dropped)

    def _look_after(self, ranks: Sequence[Rank]) -> None:
        """Raise if a member we wait for is gone: sending to a closed link fails at once."""
        self._raise_if_lost(ranks)
        ping = bytearray(HEADER_BYTES)
        pack_header(ping, Header(FrameType.PING, Wire.F32, self.epoch, self._run_id, Seq(0)))
        for rank in ranks:
            try:
                self._socket.send_multipart([self._routes[rank], ping], FRAME)
            except zmq.Again:
                pass  # a full queue is slow, not gone
            except zmq.ZMQError as e:
                raise self._closed(rank, e) from e

    def _raise_if_lost(self, ranks: Sequence[Rank] | dict[Rank, str]) -> None:
        for rank in ranks:
            reason = self._lost_reason(rank)
            if reason:
                raise self._lost(rank, reason)

    def _closed(self, rank: Rank, error: zmq.ZMQError) -> AgentLostError:
        why = self._lost_reason(rank) or f"its hot link is closed ({error.strerror})"
        return self._lost(rank, why)

    def _lost(self, rank: Rank, why: str) -> AgentLostError:
        name = self._names.get(rank, f"rank {rank}")
        return AgentLostError(
            f"agent {name!r} was lost: {why}; its heads cannot be served, start the request again"
        )
