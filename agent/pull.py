"""Credit pull of objects over the bulk channel, as a state machine without sockets or clock.

The receiver asks for (object, offset, length) and keeps a bounded number of requests open, across
the borders of objects (`window`). Chunks carry a crc32, whole objects are checked against their
blake2b name, which is computed while they arrive. A request that stays unanswered is sent again,
and a receiver that still has chunks of a former attempt (`Resume`) asks for the rest only.
"""

import hashlib
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from agent.ids import RunId
from agent.messages import BulkReply, BulkRequest
from agent.window import CHUNK_BYTES, CREDITS, Window
from kernels.errors import ModelError, RemoteError

__all__ = ["Chunk", "Pull", "Resume", "Wanted"]

RESEND_S = 5.0
SILENCE_S = 30.0
MAX_ATTEMPTS = 4


class Wanted(NamedTuple):
    """An object to pull: its blake2b hash and size, and what to call it in errors."""

    object_id: str
    n_bytes: int
    label: str


class Chunk(NamedTuple):
    """Bytes of an object that arrived and passed their checksum."""

    wanted: Wanted
    offset: int
    data: bytes | memoryview


# Returns (offset, bytes) of each chunk of an object that a former attempt left here.
Resume = Callable[[Wanted], Iterable[tuple[int, bytes]]]


def _nothing(_: Wanted) -> Iterable[tuple[int, bytes]]:
    return ()


@dataclass
class _Incoming:
    """An object that is under way.

    `gaps` are ranges not yet asked for, `ends` where each arrived chunk ends, by its start, while
    the hash has not reached it.
    """

    wanted: Wanted
    n_attempts: int = 1
    data: bytearray = field(init=False)
    gaps: deque[tuple[int, int]] = field(init=False)
    missing: int = field(init=False)
    ends: dict[int, int] = field(default_factory=dict)
    n_hashed: int = 0

    def __post_init__(self) -> None:
        n_bytes = self.wanted.n_bytes
        self.data = bytearray(n_bytes)
        self.gaps = deque([(0, n_bytes)] if n_bytes else [])
        self.missing = n_bytes
        self._hash = hashlib.blake2b(digest_size=16)

    def put(self, offset: int, data: bytes | memoryview) -> None:
        """Take a chunk of a range that nobody put before."""
        end = offset + len(data)
        self.data[offset:end] = data
        self.missing -= len(data)
        self.ends[offset] = end
        # Hashing as chunks come keeps requests flowing: a whole atom at once would be a pause.
        while (end := self.ends.pop(self.n_hashed, 0)) > 0:
            with memoryview(self.data) as view:
                self._hash.update(view[self.n_hashed : end])
            self.n_hashed = end

    def fill(self, chunks: Iterable[tuple[int, bytes]]) -> None:
        """Take what a former attempt left, where it is sound, and find the gaps between."""
        at, gaps = 0, deque[tuple[int, int]]()
        for offset, data in sorted(chunks, key=lambda chunk: chunk[0]):
            if not data or offset < at or offset + len(data) > self.wanted.n_bytes:
                continue
            if offset > at:
                gaps.append((at, offset))
            self.put(offset, data)
            at = offset + len(data)
        if at < self.wanted.n_bytes:
            gaps.append((at, self.wanted.n_bytes))
        self.gaps = gaps

    def next_range(self, most_bytes: int) -> tuple[int, int]:
        """Cut the next range to ask for, (offset, length), off the gaps."""
        start, end = self.gaps.popleft()
        length = min(most_bytes, end - start)
        if start + length < end:
            self.gaps.appendleft((start + length, end))
        return start, length

    def found_hash(self) -> str:
        """Return the hash of all bytes."""
        return self._hash.hexdigest()


@dataclass
class _Request:
    """An open request, when it was sent last, and how often it failed its checksum."""

    incoming: _Incoming
    length: int
    sent_s: float
    n_failed: int = 0


class Pull:
    """Pulls objects in order.

    Args:
        run_id: the holder's run.
        wanted: the objects; equal ones are pulled once for each mention.
        now_s: monotonic time.
        token: what the holder knows this link by.
        window: how much to ask for at a time.
        resume: finds what a former attempt left of an object.

    Attributes:
        done_bytes: bytes that are here and passed their checksum.
        resumed_bytes: those of them that a former attempt left.
        n_dropped: replies that nobody waited for, or that were damaged.
        heard_s: when the last good chunk came, or the first request after a rest went out.
    """

    def __init__(
        self,
        run_id: RunId,
        wanted: Iterable[Wanted],
        now_s: float,
        token: bytes = b"",
        window: Window | None = None,
        resume: Resume = _nothing,
    ) -> None:
        self._run_id = run_id
        self._token = token
        self._waiting = deque(wanted)
        self.window = window or Window(CHUNK_BYTES, CREDITS)
        self._resume = resume
        self._incoming: dict[str, _Incoming] = {}
        self._open: dict[tuple[str, int], _Request] = {}
        self._complete: list[tuple[Wanted, bytearray]] = []
        self.heard_s = now_s
        self.done_bytes = 0
        self.resumed_bytes = 0
        self.n_dropped = 0

    @property
    def done(self) -> bool:
        """Whether every object has arrived and was handed over."""
        return not (self._waiting or self._incoming or self._complete)

    @property
    def open_bytes(self) -> int:
        """Bytes that were asked for and have not come."""
        return sum(request.length for request in self._open.values())

    def wait_s(self, now_s: float) -> float:
        """Return how long nothing is to be done unless a reply comes."""
        return RESEND_S if self._open else max(self.window.not_before_s - now_s, 0.0)

    def next_requests(self, now_s: float) -> list[BulkRequest]:
        """Return the requests to send now: unanswered ones again, new ones up to the credits.

        Raises:
            RemoteError: nothing was heard for SILENCE_S although requests are open.
        """
        if self._open and now_s - self.heard_s > SILENCE_S:
            raise RemoteError(
                f"the bulk channel was silent for {SILENCE_S:.0f} s with "
                f"{len(self._open)} requests open; is the coordinator's bulk port reachable?"
            )
        requests = []
        for (object_id, offset), request in self._open.items():
            if now_s - request.sent_s >= RESEND_S:
                request.sent_s = now_s
                requests.append(self._request(object_id, offset, request.length))
        if now_s < self.window.not_before_s:
            return requests
        while len(self._open) < self.window.credits and (incoming := self._next_incoming()):
            offset, length = incoming.next_range(self.window.chunk_bytes)
            if not self._open:
                self.heard_s = now_s
            object_id = incoming.wanted.object_id
            self._open[object_id, offset] = _Request(incoming, length, now_s)
            requests.append(self._request(object_id, offset, length))
        return requests

    def forget_sent(self, requests: Iterable[BulkRequest] | None = None) -> None:
        """Make requests due again that found no link; None for all, when it was replaced."""
        names = self._open if requests is None else [(r.object_id, r.offset) for r in requests]
        for name in names:
            self._open[name].sent_s = float("-inf")

    def on_reply(self, reply: BulkReply, data: bytes | memoryview, now_s: float) -> Chunk | None:
        """Take one reply; return its chunk if it is a good one that was asked for.

        Raises:
            ModelError: the holder lacks the object, or its bytes do not match its hash.
            RemoteError: the holder belongs to another run, grants nothing, or chunks keep
                arriving damaged.
        """
        request = self._open.get((reply.object_id, reply.offset))
        if request is None:
            self.n_dropped += 1
            return None
        wanted = request.incoming.wanted
        if reply.error:
            raise _refusal(reply, wanted.label)
        if (
            reply.length != request.length
            or len(data) != reply.length
            or zlib.crc32(data) != reply.crc32
        ):
            self._again(request, wanted.label)
            return None
        self.heard_s = now_s
        self.window.on_reply(reply.window_bytes, request.sent_s, now_s)
        del self._open[reply.object_id, reply.offset]
        request.incoming.put(reply.offset, data)
        self.done_bytes += reply.length
        if request.incoming.missing == 0:
            self._finish(request.incoming)
        return Chunk(wanted, reply.offset, data)

    def take_complete(self) -> list[tuple[Wanted, bytearray]]:
        """Hand over the objects that are whole and verified."""
        complete, self._complete = self._complete, []
        return complete

    def _request(self, object_id: str, offset: int, length: int) -> BulkRequest:
        return BulkRequest(self._run_id, object_id, offset, length, self._token)

    def _again(self, request: _Request, label: str) -> None:
        self.n_dropped += 1
        request.n_failed += 1
        request.sent_s = float("-inf")
        if request.n_failed >= MAX_ATTEMPTS:
            raise RemoteError(
                f"a chunk of {label} arrived damaged {MAX_ATTEMPTS} times; check the network"
            )

    def _finish(self, incoming: _Incoming) -> None:
        wanted = incoming.wanted
        found = incoming.found_hash()
        if found == wanted.object_id:
            del self._incoming[wanted.object_id]
            self._complete.append((wanted, incoming.data))
            return
        if incoming.n_attempts >= 2:
            raise ModelError(
                f"{wanted.label} arrived with hash {found}, its manifest says "
                f"{wanted.object_id}; the coordinator's model is damaged: convert it again"
            )
        # Chunks of two versions may have been mixed; one clean attempt tells.
        self.done_bytes -= wanted.n_bytes
        self._incoming[wanted.object_id] = _Incoming(wanted, n_attempts=2)

    def _next_incoming(self) -> _Incoming | None:
        """Return an object with gaps to ask for, beginning the next one if need be."""
        while True:
            for incoming in self._incoming.values():
                if incoming.gaps:
                    return incoming
            # Equal objects travel one after the other: their requests have the same name.
            if not self._waiting or self._waiting[0].object_id in self._incoming:
                return None
            self._begin(self._waiting.popleft())

    def _begin(self, wanted: Wanted) -> None:
        incoming = self._incoming[wanted.object_id] = _Incoming(wanted)
        incoming.fill(self._resume(wanted))
        here_bytes = wanted.n_bytes - incoming.missing
        self.done_bytes += here_bytes
        self.resumed_bytes += here_bytes
        if incoming.missing == 0:
            self._finish(incoming)


def _refusal(reply: BulkReply, label: str) -> ModelError | RemoteError:
    if reply.error == "wrong run":
        return RemoteError(f"{label} was asked of another run of the coordinator")
    if reply.error == "no grant":
        return RemoteError(
            f"the coordinator does not grant {label} to this agent; the plan was replaced, or its "
            f"grant ended before all was loaded: plan again"
        )
    return ModelError(f"the coordinator cannot send {label} ({reply.object_id}): {reply.error}")
