"""The ROUTER of the hot channel: one socket for the members of every plan that is alive.

Plans are told apart by their epoch (`hot_link.HotLink`, one each); while rows change over from one
plan to the next there are two. Used by one thread only, except `evict`.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence

import zmq

from agent.curve import ServerCurve, peer_key
from agent.frames import HEADER_BYTES, FrameType, Header, read_header
from agent.ids import AgentName, Epoch, RunId, Seq
from agent.sockets import HOT, bind_port, set_options
from coordinator.evictor import Evictor
from coordinator.hot_link import CHECK_S, HotLink, HotPeer
from coordinator.phase_walk import MAX_SEQ
from kernels.errors import WireError

__all__ = ["HotSocket"]

log = logging.getLogger(__name__)

# Plain numbers: combining pyzmq's enums costs microseconds in every send.
ROUTE = int(zmq.SNDMORE) | int(zmq.NOBLOCK)
FRAME = int(zmq.NOBLOCK)
RCVMORE = int(zmq.RCVMORE)
# Most frames that one `drain` takes.
DRAIN_FRAMES = 1000


class HotSocket:
    """The hot ROUTER of one run.

    Args:
        context: the ZeroMQ context.
        endpoint: where to bind; a tcp endpoint with port `*` takes a free one.
        run_id: the number of this run, part of every frame.
        curve: the coordinator's keys; None speaks in clear.

    Attributes:
        port: the bound port.
        last_seq: the number that was given out last.
        evicted: routes of members whose links were ended; on a link that one of them dials anew it
            is no member any more.
        n_dropped: frames that nobody waited for or that could not be read.
        n_late: replies of plans that have ended, or of members whose links were.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        run_id: RunId,
        curve: ServerCurve | None = None,
    ) -> None:
        self._socket = context.socket(zmq.ROUTER)
        set_options(self._socket, HOT, curve)
        self._socket.setsockopt(zmq.RCVTIMEO, int(1000 * CHECK_S))
        self.port = bind_port(self._socket, endpoint)
        self.run_id = run_id
        self._evictor = Evictor(context, self._socket)
        self._links: dict[Epoch, HotLink] = {}
        # Whether a link lacks members: only then anybody asks for the key behind a frame.
        self._expecting = False
        # For other threads; replaced, never changed.
        self._member_routes: frozenset[bytes] = frozenset()
        self.evicted: frozenset[bytes] = frozenset()
        self.last_seq = Seq(0)
        self.n_dropped = self.n_late = 0
        self._ended: deque[Epoch] = deque(maxlen=8)

    def close(self) -> None:
        """Close the socket at once; frames not yet sent are dropped."""
        self._socket.close(linger=0)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._socket.closed

    @property
    def address(self) -> int:
        """The socket's address, for compiled code."""
        return self._socket.underlying

    def next_seq(self) -> Seq:
        """Return a number for the next frame, never used before, whatever the epoch."""
        return self.next_seqs(1)

    def next_seqs(self, n: int) -> Seq:
        """Return the first of n consecutive numbers for the next n frames."""
        first = Seq((self.last_seq + 1) & MAX_SEQ)
        self.last_seq = Seq((self.last_seq + n) & MAX_SEQ)
        return first

    def evict(self, route: bytes) -> None:
        """End the link of an agent that is gone, if it is a member; safe from any thread.

        Frames of others are dropped whatever they are, and `drain` lets go of closed links.
        """
        if route in self._member_routes:
            self.evicted = (self.evicted & self._member_routes) | {route}
            self._evictor.evict(route)

    def expect(
        self,
        names: Sequence[AgentName],
        peers: Sequence[HotPeer],
        epoch: Epoch,
        reply_bytes: int,
        lost_reason: Callable[[AgentName], str],
    ) -> HotLink:
        """Take the members of a new plan for ours, before they are told of it.

        Links of other epochs stay; a former one of the same epoch ends.

        Args:
            names: agent names in rank order.
            peers: the route of each, and whose key must be behind it.
            epoch: the plan's epoch.
            reply_bytes: size of the largest reply, for which buffers are allocated.
            lost_reason: returns why an agent is known to be gone, or "".
        """
        former = self._links.get(epoch)
        if former is not None:
            former.end()
        link = HotLink(self, names, peers, epoch, reply_bytes, lost_reason)
        self._links[epoch] = link
        self._on_change()
        return link

    def forget(self, link: HotLink) -> None:
        """Let go of a link's members; called by `HotLink.end`."""
        self._ended.append(link.epoch)
        if self._links.get(link.epoch) is link:
            del self._links[link.epoch]
            self._on_change()

    def _on_change(self) -> None:
        links = self._links.values()
        self._expecting = not all(link.joined for link in links)
        self._member_routes = frozenset(peer.route for link in links for peer in link.peers)

    def drain(self) -> None:
        """Take what came while nobody was asked anything, so that it does not fill the memory.

        HELLO frames of links that lack members are accepted, all else is dropped.
        """
        for _ in range(DRAIN_FRAMES):
            if not self.take(FRAME):
                return

    def take(self, flags: int = 0) -> bool:
        """Take one frame as `drain` does, and return whether one came in time."""
        try:
            route = self._socket.recv(flags, copy=False)
            # Not copied: what nobody may send can be large.
            frame = self._socket.recv(copy=False)
        except zmq.Again:
            return False
        more = self._skip_parts()
        try:
            if more:
                raise WireError("a message of more than two parts")
            header = read_header(frame.buffer[:HEADER_BYTES], len(frame))
            if self._is_late(header):
                return True
            if not self._expecting:
                raise WireError("a frame between two requests")
            if header.run_id != self.run_id or header.type is not FrameType.HELLO:
                raise WireError("a frame of another run, or no HELLO, while members load")
            if not self._accept(header, route.bytes, route):
                raise WireError("a HELLO of another epoch, or under another agent's rank")
        except WireError as e:
            self.drop(str(e))
        return True

    def _accept(self, header: Header, route: bytes, sender: zmq.Frame | None) -> bool:
        """Hand a HELLO to the link of its epoch; return whether its sender is expected there."""
        link = self._links.get(header.epoch)
        key = None if sender is None else peer_key(sender)
        if link is None or not link.accept(header.rank, route, key):
            return False
        if sender is not None:
            self._evictor.met(sender)
        self._on_change()
        return True

    def send(self, route: bytes, frame: bytes | bytearray | memoryview) -> None:
        """Send a frame without waiting; raises zmq.ZMQError where the link is closed or full."""
        self._socket.send(route, ROUTE)
        self._socket.send(frame, FRAME)

    def receive(self, buffer: memoryview, epoch: Epoch) -> tuple[bytes, Header] | None:
        """Receive one frame of an epoch into `buffer`; None when none came in time."""
        sender = None
        try:
            if self._expecting:
                sender = self._socket.recv(copy=False)
                route = sender.bytes
            else:
                route = self._socket.recv()
            # A ROUTER puts the sender's route before what it sent: at least one more part.
            n_bytes = self._socket.recv_into(buffer)
        except zmq.Again:
            return None
        more = bool(self._socket.getsockopt(RCVMORE))
        return self.check(route, n_bytes, buffer, more, epoch, sender)

    def check(
        self,
        route: bytes,
        n_bytes: int,
        buffer: memoryview,
        more: bool,
        epoch: Epoch,
        sender: zmq.Frame | None = None,
    ) -> tuple[bytes, Header] | None:
        """Return a received frame's sender and header; None, and count, if it is of no use.

        A HELLO that the link of another epoch expects goes there. `sender` is the frame with its
        route, which tells what key it has proved. Compiled code has none: then the route speaks for
        itself, as it does in every later frame; it is 128 random bits that this agent alone was
        told, in secret.
        """
        try:
            if more:
                self._skip_parts()
                raise WireError("a message of more than two parts")
            if n_bytes > len(buffer):
                raise WireError(f"a frame of {n_bytes} bytes")
            header = read_header(buffer, n_bytes)
            if header.run_id != self.run_id or header.epoch != epoch:
                if self._is_late(header):
                    return None
                if (
                    self._expecting
                    and header.run_id == self.run_id
                    and header.type is FrameType.HELLO
                    and self._accept(header, route, sender)
                ):
                    return None
                raise WireError("a frame of another run or epoch")
        except WireError as e:
            self.drop(str(e))
            return None
        return route, header

    def _is_late(self, header: Header) -> bool:
        """Whether it answers a plan that has ended; what goes on is not worth a line in the log."""
        gone = header.epoch in self._ended and header.epoch not in self._links
        late = gone and header.run_id == self.run_id
        self.n_late += late
        return late

    def _skip_parts(self) -> bool:
        """Receive and drop the further parts of a message; return whether there were any."""
        found = False
        while self._socket.getsockopt(RCVMORE):
            self._socket.recv(copy=False)
            found = True
        return found

    def drop(self, what: str) -> None:
        """Count a frame that is of no use, and log it now and then."""
        self.n_dropped += 1
        if self.n_dropped & (self.n_dropped - 1) == 0:
            log.warning("hot: dropped %s (%d dropped so far)", what, self.n_dropped)
