"""The receiver's side of the bulk channel: objects are pulled into a sink.

Runs in an agent's bulk thread. What to ask for, and when, is `pull`'s; the holder's side is `bulk`.
"""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import NamedTuple

import zmq

from agent.curve import ClientCurve
from agent.goodput import Goodput
from agent.ids import RunId
from agent.messages import BulkReply, decode_bulk_message, encode
from agent.pull import RESEND_S, Chunk, Pull, Wanted
from agent.sockets import BULK, set_options
from kernels.errors import RemoteError, WireError

__all__ = ["BulkSource", "Cancelled", "Sink", "pull_objects"]

WAKE_S = 0.1

Context = zmq.Context[zmq.Socket[bytes]]


class Cancelled(RemoteError):
    """A pull that nobody wants any more."""


class BulkSource(NamedTuple):
    """Where an agent pulls from: a holder's bulk port, its run, and this link's token there.

    `curve` holds this agent's keys; None pulls in clear.
    """

    endpoint: str
    run_id: RunId
    token: bytes = b""
    curve: ClientCurve | None = None


class Sink(ABC):
    """Where pulled objects go. One that keeps chunks lets a pull go on after an interruption."""

    def resume(self, wanted: Wanted) -> Iterable[tuple[int, bytes]]:
        """Return the chunks of an object, (offset, bytes), that a former pull kept here."""
        return ()

    # Nothing to do without a place for chunks.
    def keep(self, chunk: Chunk) -> None:  # noqa: B027
        """Keep one chunk that passed its checksum."""

    @abstractmethod
    def take(self, wanted: Wanted, data: bytearray) -> None:
        """Take an object whose hash is verified."""


def pull_objects(
    context: Context,
    source: BulkSource,
    wanted: Iterable[Wanted],
    sink: Sink,
    progress: Callable[[int], None],
    cancelled: threading.Event,
    goodput: Goodput | None = None,
) -> None:
    """Pull objects, several chunks at a time, into a sink.

    Args:
        context: the ZeroMQ context.
        source: whom to ask.
        wanted: what to pull, in this order.
        sink: gets chunks, and objects once their hash is verified.
        progress: gets the bytes that are here so far, after every chunk.
        cancelled: ends the pull with Cancelled.
        goodput: is told of each chunk.

    Raises:
        RemoteError: the channel is silent or keeps damaging bytes, or nothing is granted.
        ModelError: the holder lacks an object or holds a damaged one.
        Cancelled: somebody set `cancelled`.
    """
    started_s = time.monotonic()
    pull = Pull(source.run_id, wanted, started_s, source.token, resume=sink.resume)
    link = _Link(context, source, started_s)
    try:
        while not pull.done:
            if cancelled.is_set():
                raise Cancelled("the pull was cancelled")
            link.renew(pull)
            link.send_requests(pull)
            if (chunk := link.receive(pull)) is not None:
                if goodput is not None:
                    goodput.on_chunk(len(chunk.data), pull.open_bytes, pull.heard_s)
                sink.keep(chunk)
            for whole, data in pull.take_complete():
                sink.take(whole, data)
            progress(pull.done_bytes)
    finally:
        link.close()
        if goodput is not None:
            goodput.rest()


class _Link:
    """The receiver's socket; a new one takes its place when nothing is heard for long.

    libzmq dials again by itself after a broken connection, but not after a refused handshake.
    """

    def __init__(self, context: Context, source: BulkSource, now_s: float) -> None:
        self._context = context
        self._source = source
        self._socket: zmq.Socket[bytes]
        self._dial(now_s)

    def renew(self, pull: Pull) -> None:
        """Dial anew if the link has been silent too long."""
        now_s = time.monotonic()
        if now_s - max(pull.heard_s, self._dialled_s) > RESEND_S and pull.wait_s(now_s) > 0:
            self.close()
            self._dial(now_s)
            pull.forget_sent()

    def send_requests(self, pull: Pull) -> None:
        """Send what is due; what finds no link stays due."""
        requests = pull.next_requests(time.monotonic())
        for i, request in enumerate(requests):
            try:
                self._socket.send(encode(request), zmq.NOBLOCK)
            except zmq.Again:
                pull.forget_sent(requests[i:])
                self._events = zmq.POLLIN | zmq.POLLOUT
                return
        self._events = zmq.POLLIN

    def receive(self, pull: Pull) -> Chunk | None:
        """Take one reply, if one comes in time, and return its chunk, if it is a good one."""
        wait_s = min(pull.wait_s(time.monotonic()), WAKE_S)
        if not self._socket.poll(int(1000 * wait_s) + 1, self._events) & zmq.POLLIN:
            return None
        try:
            parts = self._socket.recv_multipart(zmq.NOBLOCK)
            reply = decode_bulk_message(parts[0])
        except zmq.Again:
            return None
        except WireError:
            reply = None
        if not isinstance(reply, BulkReply) or len(parts) != 2:
            pull.n_dropped += 1
            return None
        return pull.on_reply(reply, parts[1], time.monotonic())

    def close(self) -> None:
        """Close the socket."""
        self._socket.close(linger=0)

    def _dial(self, now_s: float) -> None:
        self._dialled_s = now_s
        # What to wake up for: replies, and a link for requests that found none.
        self._events = zmq.POLLIN
        self._socket = self._context.socket(zmq.DEALER)
        set_options(self._socket, BULK, self._source.curve)
        self._socket.connect(self._source.endpoint)
