"""The holder's side of the bulk channel: weights on their way from the coordinator to a board.

`BulkServer` runs beside the coordinator and serves the manifest and the atoms of one model by
hash, never a path, to whom they are granted. The receiver's side is `puller`. Rows of keys and
values pass through the same socket, from agent to agent, as an injected relay says.
"""

import logging
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import zmq

from agent.bell import Bell
from agent.curve import ServerCurve, peer_key
from agent.grants import Grants
from agent.ids import RunId
from agent.messages import (
    PROBE_OBJECT,
    BulkError,
    BulkReply,
    BulkRequest,
    decode_bulk_message,
    encode,
)
from agent.migration_messages import MAX_ROWS_BYTES, KvAsk, KvOffer, KvRows, Share
from agent.relaying import Forward, Peer, Relaying
from agent.sockets import BULK, bind_port, set_options
from agent.threads import NamedThread
from agent.window import CHUNK_BYTES, MIN_CHUNK_BYTES, NARROW_BYTES
from kernels.errors import WireError
from weights.directory import ModelDirectory

__all__ = ["BulkServer", "Library"]

log = logging.getLogger(__name__)

MAX_REQUEST_BYTES = CHUNK_BYTES
# Most chunks that wait for one slow reader. Twice the credits of a reader that keeps the rules:
# libzmq learns of sent messages in steps of half this mark.
MAX_WAITING_CHUNKS = 24
WAKE_S = 0.1
# How long the thread sleeps while no rows are on their way, unless a message comes.
IDLE_S = 60.0
PROBE_S = 5.0
# A receiver that asked this recently counts as one that pulls now.
RECENT_S = 1.0
# Most requests for rows that wait for room on their source's link, and how long: then their
# targets ask again. A link takes many more than MAX_WAITING_CHUNKS, but not all at the same moment.
MAX_UNSENT = 256
UNSENT_S = 2.0

Context = zmq.Context[zmq.Socket[bytes]]


class Library:
    """What may be pulled: one model's manifest and atoms, by hash."""

    def __init__(self, run_id: RunId, directory: ModelDirectory) -> None:
        self._run_id = run_id
        self._weights = directory.weights.data
        self._manifest = memoryview(directory.manifest.encode())
        self._probe = memoryview(bytes(MAX_REQUEST_BYTES))
        self._model_id = directory.model_id
        self._atoms = {
            atom_hash: (section.offset_bytes + i * section.stride_bytes, section.stride_bytes)
            for section in directory.manifest.sections
            for i, atom_hash in enumerate(section.hashes)
        }

    @property
    def object_ids(self) -> list[str]:
        """Hashes of all that is here, the manifest first."""
        return [self._model_id, *self._atoms]

    def answer(self, request: BulkRequest, window_bytes: int = 0) -> tuple[BulkReply, memoryview]:
        """Return the reply to a request, with a hint to its receiver, and the bytes to follow."""
        if request.run_id != self._run_id:
            return refuse(request, "wrong run")
        blob = self._find(request.object_id)
        if blob is None:
            return refuse(request, "unknown object")
        start, end = request.offset, request.offset + request.length
        if not (0 <= start < end <= len(blob) and request.length <= MAX_REQUEST_BYTES):
            return refuse(request, "bad range")
        data, n_bytes = blob[start:end], request.length
        crc32 = zlib.crc32(data)
        return BulkReply(request.object_id, start, n_bytes, crc32, "", window_bytes), data

    def _find(self, object_id: str) -> memoryview | None:
        if object_id == self._model_id:
            return self._manifest
        if object_id == PROBE_OBJECT:
            return self._probe
        place = self._atoms.get(object_id)
        return None if place is None else self._weights[place[0] : place[0] + place[1]]


def refuse(request: BulkRequest, error: BulkError) -> tuple[BulkReply, memoryview]:
    """Return the reply to a request that is not granted or cannot be served."""
    return BulkReply(request.object_id, request.offset, 0, 0, error), memoryview(b"")


class BulkServer:
    """Serves one model to the agents of one run, in a thread of its own.

    Args:
        context: the ZeroMQ context.
        endpoint: where to bind; port `*` takes a free one.
        run_id: requests of other runs are refused.
        directory: the model; keep it open until `close`.
        curve: the coordinator's keys; None serves in clear.
        is_busy: tells whether a request runs on the cluster, so that pulls hold back.
        relay: passes rows of keys and values on, called under a lock; None: nobody does.

    Attributes:
        port: the bound port.
        n_sent_bytes: bytes of objects sent.
        n_dropped: messages that were no request, and replies that found no room or no peer.
        n_refused: requests for what was not granted.
    """

    def __init__(
        self,
        context: Context,
        endpoint: str,
        run_id: RunId,
        directory: ModelDirectory,
        is_busy: Callable[[], bool] = lambda: False,
        curve: ServerCurve | None = None,
        relay: Relaying | None = None,
    ) -> None:
        self._library = Library(run_id, directory)
        self._is_busy = is_busy
        self._grants = Grants()
        self._probes = Grants()
        self._asked_s: dict[bytes, float] = {}
        self._rows_bytes: Callable[[], int] = lambda: NARROW_BYTES
        self._relay = relay
        self._unsent: deque[tuple[Forward, float]] = deque()
        self._tick_s = 0.0
        # Grants come and go in other threads than the one that asks.
        self._lock = threading.Lock()
        self._socket = context.socket(zmq.ROUTER)
        set_options(self._socket, BULK, curve)
        self._socket.setsockopt(zmq.SNDHWM, MAX_WAITING_CHUNKS)
        self._socket.setsockopt(zmq.RCVTIMEO, int(1000 * WAKE_S))
        self.port = bind_port(self._socket, endpoint)
        self.n_sent_bytes = 0
        self.n_dropped = 0
        self.n_refused = 0
        self._stopping = self._is_moving = False
        self._bell = Bell()
        self._thread = NamedThread(self._run, "bulk-server")
        self._thread.start()

    @property
    def object_ids(self) -> list[str]:
        """Hashes of all that could be granted."""
        return self._library.object_ids

    def grant(self, token: bytes, objects: Iterable[str], for_s: float, key: str = "") -> None:
        """Let the link with this token pull objects for some time, in place of former ones.

        `key` is what its agent has proved; "" on links without keys.
        """
        names = frozenset(objects)
        with self._lock:
            self._grants.grant(token, names, time.monotonic() + for_s, key)

    def grant_probe(self, token: bytes, key: str = "") -> None:
        """Let the link with this token measure itself during the next seconds."""
        with self._lock:
            self._probes.grant(token, [PROBE_OBJECT], time.monotonic() + PROBE_S, key)

    def end_grant(self, token: bytes) -> None:
        """End what a link was granted, from its next request on; the rows it asked for as well."""
        with self._lock:
            self._grants.end(token)
            self._probes.end(token)
            if self._relay is not None:
                self._relay.forget(token)

    def end_grants(self) -> None:
        """End every grant."""
        with self._lock:
            self._grants.end_all()

    def begin_move(
        self,
        epoch: int,
        shares: Iterable[Share],
        token_bytes: int,
        peers: Iterable[Peer],
        window_bytes: Callable[[], int] = lambda: NARROW_BYTES,
    ) -> None:
        """Let the rows of a migration's shares pass, in place of a former one's.

        Args:
            epoch: names the migration.
            shares: what goes from whom to whom.
            token_bytes: keys and values of one position of one head group.
            peers: token, name and key of every agent.
            window_bytes: how many bytes may be on their way while a request runs.
        """
        if self._relay is not None:
            with self._lock:
                self._rows_bytes = window_bytes
                self._relay.begin(epoch, shares, token_bytes, peers)
                self._is_moving = True
            self._bell.ring()

    def end_move(self) -> None:
        """Let no rows pass any more."""
        if self._relay is not None:
            with self._lock:
                self._relay.end()
                self._is_moving = False

    def close(self) -> None:
        """End the thread and close the socket."""
        self._stopping = True
        self._bell.ring()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping:
                try:
                    self._serve(self._socket.recv_multipart(copy=False))
                except zmq.Again:
                    if not (self._is_moving or self._unsent):
                        self._bell.wait(self._socket, IDLE_S)
                except zmq.ContextTerminated:
                    raise
                except Exception:
                    # One message must not keep all others from their weights and rows.
                    self.n_dropped += 1
                    if self.n_dropped & (self.n_dropped - 1) == 0:
                        log.exception("bulk server: a message went wrong")
                if self._relay is not None:
                    self._keep_moving(self._relay)
        except zmq.ContextTerminated:
            log.debug("bulk server ended with its context")
        finally:
            self._socket.close(linger=0)

    def _serve(self, parts: list[zmq.Frame]) -> None:
        try:
            message = decode_bulk_message(parts[1].bytes)
        except WireError:
            self.n_dropped += 1
            return
        # libzmq asks for a link's key when it begins; the key may have been revoked since.
        key, now_s = peer_key(parts[1]), time.monotonic()
        match message:
            case BulkRequest() if len(parts) == 2:
                self._answer(parts[0].bytes, message, key, now_s)
            case KvOffer() | KvAsk() if len(parts) == 2 and self._relay is not None:
                self._pass(self._relay, parts[0].bytes, message, key, now_s)
            case KvRows() if len(parts) == 3 and self._relay is not None:
                self._hand_on(self._relay, parts[0].bytes, message, parts[2], now_s)
            case _:
                self.n_dropped += 1

    def _answer(self, route: bytes, request: BulkRequest, key: str, now_s: float) -> None:
        with self._lock:
            grants = self._probes if request.object_id == PROBE_OBJECT else self._grants
            granted = grants.allows(request.token, request.object_id, now_s, key)
        if granted:
            self._note_asker(request.token, now_s)
            reply, data = self._library.answer(request, self._window_bytes(now_s))
        else:
            self.n_refused += 1
            reply, data = refuse(request, "no grant")
        if self._send([route, encode(reply), data]):
            self.n_sent_bytes += len(data)
        else:
            self.n_dropped += 1

    def _pass(
        self, relay: Relaying, route: bytes, message: KvOffer | KvAsk, key: str, now_s: float
    ) -> None:
        """Take in that a source is there, or what a target asks for."""
        with self._lock:
            if isinstance(message, KvOffer):
                forwards = relay.on_offer(route, message, key, now_s)
            else:
                forwards = relay.on_ask(route, message, key, now_s)
        refused = any(isinstance(f.message, KvRows) and f.message.error for f in forwards)
        if isinstance(message, KvAsk) and not refused:
            self._note_asker(message.token, now_s)
        self._send_all(forwards, now_s)

    def _hand_on(
        self, relay: Relaying, route: bytes, rows: KvRows, frame: zmq.Frame, now_s: float
    ) -> None:
        """Take in a source's rows, which stay where they were received until they are sent."""
        data = frame.buffer
        if data.nbytes > MAX_ROWS_BYTES:
            self.n_dropped += 1
            return
        window_bytes = self._window_bytes(now_s, self._rows_bytes())
        with self._lock:
            forwards = relay.on_rows(route, rows, data, window_bytes, now_s)
        for forward in forwards:
            # As libzmq's own message it is not copied.
            whole = frame if forward.data is data else forward.data
            self._send_forward(forward, whole, now_s, now_s + UNSENT_S)

    def _keep_moving(self, relay: Relaying) -> None:
        """Send requests that had found no room, and tell the relay the time now and then."""
        now_s = time.monotonic()
        for _ in range(len(self._unsent)):
            forward, until_s = self._unsent.popleft()
            self._send_forward(forward, forward.data, now_s, until_s)
        if now_s >= self._tick_s:
            self._tick_s = now_s + WAKE_S
            with self._lock:
                forwards = relay.on_tick(now_s)
            self._send_all(forwards, now_s)

    def _send_all(self, forwards: Sequence[Forward], now_s: float) -> None:
        for forward in forwards:
            self._send_forward(forward, forward.data, now_s, now_s + UNSENT_S)

    def _send_forward(
        self,
        forward: Forward,
        data: bytes | memoryview | zmq.Frame | None,
        now_s: float,
        until_s: float,
    ) -> None:
        """Send a message; a request may wait for room, as many of them go out at once."""
        parts = [] if data is None else [data]
        if self._send([forward.route, encode(forward.message), *parts]):
            return
        may_wait = isinstance(forward.message, KvAsk) and now_s < until_s
        if may_wait and len(self._unsent) < MAX_UNSENT:
            self._unsent.append((forward, until_s))
        else:
            self.n_dropped += 1

    def _note_asker(self, token: bytes, now_s: float) -> None:
        """Note that a link which may ask does so."""
        self._asked_s[token] = now_s

    def _window_bytes(self, now_s: float, all_bytes: int = NARROW_BYTES) -> int:
        """Return what to ask of a receiver: while a request runs all together get one window."""
        if not self._is_busy():
            self._asked_s.clear()
            return 0
        if min(self._asked_s.values(), default=now_s) < now_s - RECENT_S:
            self._asked_s = {t: s for t, s in self._asked_s.items() if s >= now_s - RECENT_S}
        return max(all_bytes // max(len(self._asked_s), 1), MIN_CHUNK_BYTES)

    def _send(self, parts: Sequence[bytes | memoryview | zmq.Frame]) -> bool:
        """Send, but never wait for one slow reader: it asks again for the chunks it lacks."""
        for _ in range(2):
            try:
                self._socket.send_multipart(parts, zmq.NOBLOCK)
            except zmq.Again:
                # Makes libzmq look at what has left since; it does so by itself only now and then.
                self._socket.getsockopt(zmq.EVENTS)
            except zmq.ZMQError:
                return False
            else:
                return True
        return False
