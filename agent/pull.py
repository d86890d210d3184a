"""Credit pull of objects over the bulk channel, as a state machine without sockets or clock.

The receiver asks for (object, offset, length) and keeps a bounded number of requests open, so
the window and with it the delay that bulk traffic adds to the hot link is the receiver's choice
(reference/transport.md section 6). Chunks carry a crc32, whole objects are checked against their
blake2b name. A request that stays unanswered is sent again: after a break a pull goes on at the
offset it had reached.
"""

import zlib
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from agent.ids import RunId
from agent.messages import BulkReply, BulkRequest
from kernels.errors import ModelError, RemoteError
from weights.manifest import content_hash

__all__ = ["CHUNK_BYTES", "CREDITS", "Pull", "Wanted"]

CHUNK_BYTES = 256 << 10
CREDITS = 4
RESEND_S = 5.0
SILENCE_S = 30.0
MAX_ATTEMPTS = 4


class Wanted(NamedTuple):
    """An object to pull: its blake2b hash and size, and what to call it in errors."""

    object_id: str
    n_bytes: int
    label: str


@dataclass
class _Incoming:
    """An object that is under way; `missing` counts bytes not here yet."""

    wanted: Wanted
    data: bytearray
    missing: int
    n_attempts: int = 1


@dataclass
class _Request:
    """An open request, when it was sent last, and how often it failed its checksum."""

    incoming: _Incoming
    length: int
    sent_s: float
    n_failed: int = field(default=0)


class Pull:
    """Pulls objects in order.

    Args:
        run_id: the coordinator's run.
        wanted: the objects; equal ones are pulled once for each mention.
        now_s: monotonic time.
        chunk_bytes: most bytes of one request.
        credits: most open requests; may be changed at any time.

    Attributes:
        done_bytes: bytes that arrived and passed their checksum.
        n_dropped: replies that nobody waited for, or that were damaged.
    """

    def __init__(
        self,
        run_id: RunId,
        wanted: Iterable[Wanted],
        now_s: float,
        chunk_bytes: int = CHUNK_BYTES,
        credits: int = CREDITS,
    ) -> None:
        self._run_id = run_id
        self._waiting = deque(wanted)
        self._chunk_bytes = chunk_bytes
        self.credits = credits
        self._chunks: deque[tuple[_Incoming, int]] = deque()
        self._open: dict[tuple[str, int], _Request] = {}
        self._heard_s = now_s
        self.done_bytes = 0
        self.n_dropped = 0

    @property
    def done(self) -> bool:
        """Whether every object has arrived."""
        return not (self._waiting or self._chunks or self._open)

    def next_requests(self, now_s: float) -> list[BulkRequest]:
        """Return the requests to send now: unanswered ones again, new ones up to the credits.

        Raises:
            RemoteError: nothing was heard for SILENCE_S although requests are open.
        """
        if self._open and now_s - self._heard_s > SILENCE_S:
            raise RemoteError(
                f"the bulk channel was silent for {SILENCE_S:.0f} s with "
                f"{len(self._open)} requests open; is the coordinator's bulk port reachable?"
            )
        requests = []
        for (object_id, offset), request in self._open.items():
            if now_s - request.sent_s >= RESEND_S:
                request.sent_s = now_s
                requests.append(BulkRequest(self._run_id, object_id, offset, request.length))
        while len(self._open) < self.credits and (chunk := self._next_chunk()) is not None:
            incoming, offset = chunk
            length = min(self._chunk_bytes, incoming.wanted.n_bytes - offset)
            if not self._open:
                self._heard_s = now_s
            object_id = incoming.wanted.object_id
            self._open[object_id, offset] = _Request(incoming, length, now_s)
            requests.append(BulkRequest(self._run_id, object_id, offset, length))
        return requests

    def forget_sent(self) -> None:
        """Make every open request due again; the link was replaced."""
        for request in self._open.values():
            request.sent_s = float("-inf")

    def on_reply(
        self, reply: BulkReply, data: bytes | memoryview, now_s: float
    ) -> tuple[Wanted, bytearray] | None:
        """Take one chunk; return the object that it completes, verified, if any.

        Raises:
            ModelError: the holder lacks the object, or its bytes do not match its hash.
            RemoteError: the holder belongs to another run, or chunks keep arriving damaged.
        """
        request = self._open.get((reply.object_id, reply.offset))
        if request is None:
            self.n_dropped += 1
            return None
        label = request.incoming.wanted.label
        if reply.error == "wrong run":
            raise RemoteError(f"{label} was asked of another run of the coordinator")
        if reply.error:
            raise ModelError(
                f"the coordinator cannot send {label} ({reply.object_id}): {reply.error}"
            )
        if (
            reply.length != request.length
            or len(data) != reply.length
            or zlib.crc32(data) != reply.crc32
        ):
            self._again(request, label)
            return None
        self._heard_s = now_s
        del self._open[reply.object_id, reply.offset]
        incoming = request.incoming
        incoming.data[reply.offset : reply.offset + reply.length] = data
        incoming.missing -= reply.length
        self.done_bytes += reply.length
        return self._complete(incoming) if incoming.missing == 0 else None

    def _again(self, request: _Request, label: str) -> None:
        self.n_dropped += 1
        request.n_failed += 1
        request.sent_s = float("-inf")
        if request.n_failed >= MAX_ATTEMPTS:
            raise RemoteError(
                f"a chunk of {label} arrived damaged {MAX_ATTEMPTS} times; check the network"
            )

    def _complete(self, incoming: _Incoming) -> tuple[Wanted, bytearray] | None:
        wanted = incoming.wanted
        found = content_hash(memoryview(incoming.data))
        if found == wanted.object_id:
            return wanted, incoming.data
        if incoming.n_attempts >= 2:
            raise ModelError(
                f"{wanted.label} arrived with hash {found}, its manifest says "
                f"{wanted.object_id}; the coordinator's model is damaged: convert it again"
            )
        # Chunks of two versions may have been mixed; one clean attempt tells.
        self.done_bytes -= wanted.n_bytes
        self._start(_Incoming(wanted, bytearray(wanted.n_bytes), wanted.n_bytes, 2))
        return None

    def _next_chunk(self) -> tuple[_Incoming, int] | None:
        while not self._chunks and self._waiting:
            wanted = self._waiting.popleft()
            self._start(_Incoming(wanted, bytearray(wanted.n_bytes), wanted.n_bytes))
        for _ in range(len(self._chunks)):
            incoming, offset = self._chunks.popleft()
            # Equal objects travel one after the other: their requests have the same name.
            if (incoming.wanted.object_id, offset) not in self._open:
                return incoming, offset
            self._chunks.append((incoming, offset))
        return None

    def _start(self, incoming: _Incoming) -> None:
        for offset in range(0, incoming.wanted.n_bytes, self._chunk_bytes):
            self._chunks.append((incoming, offset))
