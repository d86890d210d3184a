"""The holder's side of the bulk channel: weights on their way from the coordinator to a board.

`BulkServer` runs beside the coordinator and serves the manifest and the atoms of one model by
hash, never a path, to whom they are granted. The receiver's side is `puller`.
"""

import logging
import threading
import time
import zlib
from collections.abc import Callable, Iterable

import zmq

from agent.curve import ServerCurve, peer_key
from agent.grants import Grants
from agent.ids import RunId
from agent.messages import BulkError, BulkReply, BulkRequest, decode_bulk_message, encode
from agent.sockets import BULK, bind_port, set_options
from agent.window import CHUNK_BYTES, MIN_CHUNK_BYTES, NARROW_BYTES
from kernels.errors import WireError
from weights.directory import ModelDirectory

__all__ = ["BulkServer", "Library"]

log = logging.getLogger(__name__)

MAX_REQUEST_BYTES = CHUNK_BYTES
# Most chunks that wait for one slow reader. Twice the credits of a reader that keeps the rules:
# libzmq learns of sent messages in steps of half this mark.
MAX_WAITING_CHUNKS = 8
WAKE_S = 0.1
# A receiver that asked this recently counts as one that pulls now.
RECENT_S = 1.0

Context = zmq.Context[zmq.Socket[bytes]]


class Library:
    """What may be pulled: one model's manifest and atoms, by hash."""

    def __init__(self, run_id: RunId, directory: ModelDirectory) -> None:
        self._run_id = run_id
        self._weights = directory.weights.data
        self._manifest = memoryview(directory.manifest.encode())
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
    ) -> None:
        self._library = Library(run_id, directory)
        self._is_busy = is_busy
        self._grants = Grants()
        self._asked_s: dict[bytes, float] = {}
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
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="bulk-server", daemon=True)
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

    def end_grant(self, token: bytes) -> None:
        """End what a link was granted, from its next request on."""
        with self._lock:
            self._grants.end(token)

    def end_grants(self) -> None:
        """End every grant."""
        with self._lock:
            self._grants.end_all()

    def close(self) -> None:
        """End the thread and close the socket."""
        self._stopping = True
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping:
                try:
                    self._serve(self._socket.recv_multipart(copy=False))
                except zmq.Again:
                    continue
        except zmq.ContextTerminated:
            log.debug("bulk server ended with its context")
        finally:
            self._socket.close(linger=0)

    def _serve(self, parts: list[zmq.Frame]) -> None:
        try:
            request = decode_bulk_message(parts[1].bytes) if len(parts) == 2 else None
        except WireError:
            request = None
        if not isinstance(request, BulkRequest):
            self.n_dropped += 1
            return
        now_s = time.monotonic()
        # libzmq asks for a link's key when it begins; the key may have been revoked since.
        key = peer_key(parts[1])
        with self._lock:
            granted = self._grants.allows(request.token, request.object_id, now_s, key)
        if granted:
            reply, data = self._library.answer(request, self._window_bytes(request.token, now_s))
        else:
            self.n_refused += 1
            reply, data = refuse(request, "no grant")
        if self._send([parts[0].bytes, encode(reply), data]):
            self.n_sent_bytes += len(data)
        else:
            self.n_dropped += 1

    def _window_bytes(self, token: bytes, now_s: float) -> int:
        """Return what to ask of a receiver: while a request runs all together get one window."""
        if not self._is_busy():
            self._asked_s.clear()
            return 0
        self._asked_s[token] = now_s
        if min(self._asked_s.values()) < now_s - RECENT_S:
            self._asked_s = {t: s for t, s in self._asked_s.items() if s >= now_s - RECENT_S}
        return max(NARROW_BYTES // len(self._asked_s), MIN_CHUNK_BYTES)

    def _send(self, parts: list[bytes | memoryview]) -> bool:
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
