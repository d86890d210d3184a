"""The members of one plan on the hot channel: one frame to each, one gather of their replies.

Used by one thread only. Does not know layers or residuals (`engine`) nor who should answer when
(`gather` keeps the books); the socket is `hot_socket`'s, which serves the links of all plans.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import zmq

from agent.frames import (
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    FrameType,
    Header,
    Wire,
    pack_header,
    read_header,
)
from agent.ids import AgentName, Epoch, Rank, Seq
from coordinator.gather import Gather
from coordinator.phase_walk import Walked
from coordinator.plain_text import MAX_REASON_CHARS, one_line
from coordinator.walk_phases import Stop
from kernels.errors import AgentLostError, LateAgentsError, RemoteError
from kernels.layout import round_up

if TYPE_CHECKING:
    from coordinator.hot_socket import HotSocket

__all__ = ["CHECK_S", "HotLink", "HotPeer", "Reply"]

# How often a gather that waits looks after the members it waits for.
CHECK_S = 0.1


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
    """The members of one plan; made by `HotSocket.expect`.

    Args:
        socket: the hot ROUTER.
        names: agent names in rank order.
        peers: the route of each, and whose key must be behind it.
        epoch: the plan's epoch; frames of others are none of this link's.
        reply_bytes: size of the largest reply, for which buffers are allocated.
        lost_reason: returns why an agent is known to be gone, or "".

    Attributes:
        inbox: (n_members + 1, capacity) uint8, one reply in each row and one row to spare.
        ended: whether `end` was called.
    """

    def __init__(
        self,
        socket: "HotSocket",
        names: Sequence[AgentName],
        peers: Sequence[HotPeer],
        epoch: Epoch,
        reply_bytes: int,
        lost_reason: Callable[[AgentName], str],
    ) -> None:
        self._socket = socket
        self._names = {Rank(r): name for r, name in enumerate(names)}
        self._peers = {Rank(r): peer for r, peer in enumerate(peers)}
        self._member_routes = frozenset(peer.route for peer in peers)
        self.epoch = epoch
        self._lost_reason = lost_reason
        self._routes: dict[Rank, bytes] = {}
        self._gather = Gather()
        size = min(max(reply_bytes, 4096), MAX_FRAME_BYTES)
        # Rows are whole cache lines, so that any type fits.
        self.inbox = np.empty((len(names) + 1, round_up(size, 64)), np.uint8)
        self._slots = [row.data for row in self.inbox]
        self._watched_seqs: deque[Seq] = deque(maxlen=64)
        self.ended = False

    def end(self) -> None:
        """Let go of the members: frames of this epoch are dropped from now on. Twice is once."""
        self.ended = True
        self._socket.forget(self)

    @property
    def names(self) -> list[AgentName]:
        """Name of each member, in rank order."""
        return list(self._names.values())

    @property
    def peers(self) -> list[HotPeer]:
        """Route and key of each member, in rank order, joined or not."""
        return list(self._peers.values())

    @property
    def routes(self) -> list[bytes]:
        """Route of each member that has joined, in rank order."""
        return [self._routes[rank] for rank in sorted(self._routes)]

    @property
    def joined(self) -> bool:
        """Whether the HELLO of every member is here."""
        return len(self._routes) == len(self._names)

    @property
    def closed(self) -> bool:
        """Whether the socket is closed."""
        return self._socket.closed

    @property
    def address(self) -> int:
        """The socket's address, for compiled code."""
        return self._socket.address

    def next_seq(self) -> Seq:
        """Return a number for the next frame; see `next_seqs`."""
        return self.next_seqs(1)

    def next_seqs(self, n: int) -> Seq:
        """Return the first of n consecutive numbers for the next n frames.

        Raises:
            AgentLostError: a member's link was ended, whether or not it has dialled again.
        """
        if not self._socket.evicted.isdisjoint(self._member_routes):
            self._raise_if_lost(list(self._peers))
        return self._socket.next_seqs(n)

    def accept(self, rank: Rank, route: bytes, key: str | None) -> bool:
        """Take a HELLO if its sender is the member of that rank; None = its key is not known."""
        peer = self._peers.get(rank)
        if peer is None or peer.route != route or key not in (None, peer.key):
            return False
        self._routes[rank] = route
        return True

    def take_hellos(self) -> None:
        """Take what came while members load: HELLO frames of any link, and drop all else."""
        self._socket.drain()

    def join(self, deadline_s: float) -> None:
        """Wait for the HELLO frame of every expected member.

        Args:
            deadline_s: monotonic time to give up.

        Raises:
            LateAgentsError: members did not dial the hot port in time; names them.
            AgentLostError: a member is gone.
        """
        while not self.joined:
            self._socket.take()
            missing = [n for r, n in self._names.items() if r not in self._routes]
            if missing and time.monotonic() > deadline_s:
                text = f"no hot link from agent {', '.join(missing)} in time"
                raise LateAgentsError(f"{text}; can it reach port {self._socket.port}?", missing)
            self._raise_if_lost(list(self._names))

    def watch(self, seq: Seq) -> None:
        """Let the next exchange fail if a member answers frame `seq`, sent before, by ERROR."""
        self._watched_seqs.append(seq)

    def send(self, rank: Rank, frame: bytes | bytearray | memoryview) -> None:
        """Send one frame to one member without waiting.

        Raises:
            AgentLostError: the member's link is closed or its queue is full.
        """
        try:
            self._socket.send(self._routes[rank], frame)
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
        seq = self._socket.last_seq
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
            got = self._socket.check(
                walked.route, walked.frame_bytes, buffer, walked.more, self.epoch
            )
            if got is not None:
                self._sort_in(*got, seq, replies)
        return self._await(seq, ranks, replies, timeout_s)

    def _await(
        self, seq: Seq, ranks: Sequence[Rank], replies: dict[Rank, Reply], timeout_s: float
    ) -> list[Reply]:
        """Gather until `replies` has all of `ranks`; each new one fills the next inbox row."""
        look_s = time.monotonic() + CHECK_S
        while len(replies) < len(ranks):
            got = self._socket.receive(self._slots[len(replies)], self.epoch)
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
        slot, expected = len(replies), self._routes.get(header.rank)
        if expected != route and expected in self._socket.evicted:
            # What it had sent before its link was ended, under a route of libzmq's making.
            self._socket.n_late += 1
        elif expected != route:
            self._socket.drop("a frame under another member's rank")
        elif header.type is FrameType.ERROR:
            self._on_error(header, self._slots[slot], seq)
        elif self._gather.on_reply(header.rank, header.seq) == "accepted":
            replies[header.rank] = Reply(header, slot)
            return True
        else:
            self._socket.drop("a reply that nobody waits for")
        return False

    def _on_error(self, header: Header, buffer: memoryview, seq: Seq) -> None:
        """Raise what an ERROR frame says, if it is about this exchange or a watched frame."""
        if header.seq in self._watched_seqs:
            # The other members' errors about the same frame are no news, nor another text's.
            self._watched_seqs.remove(header.seq)
        elif header.seq != seq:
            self._socket.drop("an error about a frame that nobody waits for")
            return
        data = bytes(buffer[HEADER_BYTES : HEADER_BYTES + header.payload_bytes])
        text = one_line(data.decode(errors="replace"), MAX_REASON_CHARS)
        name = self._names[header.rank]
        raise RemoteError(f"agent {name!r}: {text}")

    def _look_after(self, ranks: Sequence[Rank]) -> None:
        """Raise if a member we wait for is gone: sending to a closed link fails at once."""
        self._raise_if_lost(ranks)
        ping = bytearray(HEADER_BYTES)
        run_id = self._socket.run_id
        pack_header(ping, Header(FrameType.PING, Wire.F32, self.epoch, run_id, Seq(0)))
        for rank in ranks:
            try:
                self._socket.send(self._routes[rank], ping)
            except zmq.Again:
                pass  # a full queue is slow, not gone
            except zmq.ZMQError as e:
                raise self._closed(rank, e) from e

    def _raise_if_lost(self, ranks: Sequence[Rank]) -> None:
        for rank in ranks:
            reason = self._lost_reason(self._names[rank])
            if not reason and self._peers[rank].route in self._socket.evicted:
                reason = "its hot link is closed"
            if reason:
                raise self._lost(rank, reason)

    def _closed(self, rank: Rank, error: zmq.ZMQError) -> AgentLostError:
        why = self._lost_reason(self._names[rank]) or f"its hot link is closed ({error.strerror})"
        return self._lost(rank, why)

    def _lost(self, rank: Rank, why: str) -> AgentLostError:
        name = self._names[rank]
        return AgentLostError(f"agent {name!r} was lost: {why}", name)
