"""The bulk link of migrations: a target's requests, a source's offers and rows.

Agents only dial out, so rows that leave this board go over the same kind of link as rows that
come: to the coordinator's bulk port. Owned by the control thread, which sends and receives without
ever waiting. What finds no link is dropped: a link that comes up says so, and whoever waits asks
again.
"""

import logging
from collections.abc import Iterator

import zmq
from zmq.utils.monitor import recv_monitor_message

from agent.curve import ClientCurve
from agent.events import BulkReceived, BulkUp, Event
from agent.messages import BulkReply, BulkRequest, decode_bulk_message, encode
from agent.migration_messages import KvAsk, KvOffer, KvRows
from agent.sockets import BULK, set_options
from kernels.errors import WireError

__all__ = ["MoveLink"]

log = logging.getLogger(__name__)

# libzmq dials again by itself after a broken connection, but not after a refused handshake.
REDIAL_S = 2.0
# Replies of a source that may wait for its link: more than its Departure lets be open.
MAX_WAITING = 64
# Heartbeats are sent by the same thread: whoever floods it must not hold it up.
MAX_AT_ONCE = 32
_WATCHED = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED

Context = zmq.Context[zmq.Socket[bytes]]


class MoveLink:
    """A link to the coordinator's bulk port that is dialled anew when it breaks.

    Args:
        context: the ZeroMQ context.
        endpoint: of the bulk port.
        curve: this agent's keys; None speaks in clear.
        now_s: monotonic time.

    Attributes:
        n_unsent: messages that found no link.
        n_malformed: messages that were neither a request nor rows.
    """

    def __init__(
        self, context: Context, endpoint: str, curve: ClientCurve | None, now_s: float
    ) -> None:
        self._context = context
        self._endpoint = endpoint
        self._curve = curve
        self._socket: zmq.Socket[bytes]
        self._monitor: zmq.Socket[bytes]
        self.n_unsent = self.n_malformed = 0
        self._dial(now_s)

    @property
    def sockets(self) -> tuple[zmq.Socket[bytes], ...]:
        """What to poll for input before `receive`."""
        return self._socket, self._monitor

    def tend(self, now_s: float) -> None:
        """Dial anew if the link has been down for long."""
        if not self._is_up and now_s - self._dialled_s > REDIAL_S:
            self.close()
            self._dial(now_s)

    def send(
        self, message: KvOffer | KvAsk | KvRows | BulkRequest, data: bytes | bytearray
    ) -> None:
        """Send a message; `data` goes with KvRows only."""
        parts = [encode(message), data] if isinstance(message, KvRows) else [encode(message)]
        try:
            # Copied: otherwise pyzmq keeps a context and a thread of its own, for ever.
            self._socket.send_multipart(parts, zmq.NOBLOCK)
        except zmq.Again:
            self.n_unsent += 1

    def receive(self) -> Iterator[Event]:
        """Yield what has come, the first of it if it is much."""
        yield from self._look()
        for _ in range(MAX_AT_ONCE):
            if self._socket.closed:
                return
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            event = _read(parts)
            if isinstance(event, BulkReceived):
                yield event
            if event is not None:
                continue
            self.n_malformed += 1
            if self.n_malformed & (self.n_malformed - 1) == 0:
                log.warning("bulk: dropped a message (%d dropped so far)", self.n_malformed)

    def close(self) -> None:
        """Close the sockets."""
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)

    def _look(self) -> Iterator[Event]:
        while not self._socket.closed:
            try:
                told = recv_monitor_message(self._monitor, zmq.NOBLOCK)
            except zmq.Again:
                return
            self._is_up = told["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED
            if self._is_up:
                yield BulkUp()

    def _dial(self, now_s: float) -> None:
        self._dialled_s, self._is_up = now_s, False
        self._socket = self._context.socket(zmq.DEALER)
        set_options(self._socket, BULK, self._curve)
        self._socket.setsockopt(zmq.SNDHWM, MAX_WAITING)
        self._monitor = self._socket.get_monitor_socket(_WATCHED)
        self._socket.connect(self._endpoint)


def _read(parts: list[zmq.Frame]) -> BulkReceived | BulkReply | None:
    """Return what a message of the relay says; None if it is none.

    A BulkReply is of no use any more: it was asked for to have the link carry something.
    """
    try:
        message = decode_bulk_message(parts[0].bytes)
    except WireError:
        return None
    if isinstance(message, KvAsk) and len(parts) == 1:
        return BulkReceived(message)
    if isinstance(message, KvRows) and len(parts) == 2:
        return BulkReceived(message, parts[1].buffer)
    if isinstance(message, BulkReply):
        return message
    return None
