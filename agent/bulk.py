"""The bulk channel: weights on their way from the coordinator to a board.

`BulkServer` runs beside the coordinator and serves the manifest and the atoms of one model by
hash, never a path. `pull_objects` runs in an agent's bulk thread. The protocol is `pull`'s.
"""

import logging
import threading
import time
import zlib
from collections.abc import Callable, Iterable

import zmq

from agent.ids import RunId
from agent.messages import BulkError, BulkReply, BulkRequest, decode_bulk_message, encode
from agent.pull import Pull, Wanted
from agent.sockets import BULK, bind_port, set_options
from kernels.errors import RemoteError, WireError
from weights.directory import ModelDirectory

__all__ = ["BulkServer", "Cancelled", "Library", "pull_objects"]

log = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 1 << 20
WAKE_S = 0.1

Context = zmq.Context[zmq.Socket[bytes]]


class Cancelled(RemoteError):
    """A pull that nobody wants any more."""


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

    def answer(self, request: BulkRequest) -> tuple[BulkReply, memoryview]:
        """Return the reply to a request and the bytes that follow it."""
        if request.run_id != self._run_id:
            return _refuse(request, "wrong run")
        blob = self._find(request.object_id)
        if blob is None:
            return _refuse(request, "unknown object")
        start, end = request.offset, request.offset + request.length
        if not (0 <= start < end <= len(blob) and request.length <= MAX_REQUEST_BYTES):
            return _refuse(request, "bad range")
        data = blob[start:end]
        return BulkReply(request.object_id, start, request.length, zlib.crc32(data)), data

    def _find(self, object_id: str) -> memoryview | None:
        if object_id == self._model_id:
            return self._manifest
        place = self._atoms.get(object_id)
        return None if place is None else self._weights[place[0] : place[0] + place[1]]


def _refuse(request: BulkRequest, error: BulkError) -> tuple[BulkReply, memoryview]:
    return BulkReply(request.object_id, request.offset, 0, 0, error), memoryview(b"")


class BulkServer:
    """Serves one model to the agents of one run, in a thread of its own.

    Args:
        context: the ZeroMQ context.
        endpoint: where to bind; port `*` takes a free one.
        run_id: requests of other runs are refused.
        directory: the model; keep it open until `close`.

    Attributes:
        port: the bound port.
        n_sent_bytes: bytes of objects sent.
        n_dropped: messages that were no request, and replies that found no room or no peer.
    """

    def __init__(
        self, context: Context, endpoint: str, run_id: RunId, directory: ModelDirectory
    ) -> None:
        self._library = Library(run_id, directory)
        self._socket = context.socket(zmq.ROUTER)
        set_options(self._socket, BULK)
        self._socket.setsockopt(zmq.RCVTIMEO, int(1000 * WAKE_S))
        self.port = bind_port(self._socket, endpoint)
        self.n_sent_bytes = 0
        self.n_dropped = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="bulk-server", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and close the socket."""
        self._stopping = True
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping:
                try:
                    self._serve(self._socket.recv_multipart())
                except zmq.Again:
                    continue
        except zmq.ContextTerminated:
            log.debug("bulk server ended with its context")
        finally:
            self._socket.close(linger=0)

    def _serve(self, parts: list[bytes]) -> None:
        try:
            request = decode_bulk_message(parts[1]) if len(parts) == 2 else None
        except WireError:
            request = None
        if not isinstance(request, BulkRequest):
            self.n_dropped += 1
            return
        reply, data = self._library.answer(request)
        try:
            # Never wait for one slow reader: whoever lacks a chunk asks for it again.
            self._socket.send_multipart([parts[0], encode(reply), data], zmq.NOBLOCK)
            self.n_sent_bytes += len(data)
        except zmq.ZMQError:
            self.n_dropped += 1


def pull_objects(
    context: Context,
    endpoint: str,
    run_id: RunId,
    wanted: Iterable[Wanted],
    take: Callable[[Wanted, bytearray], None],
    progress: Callable[[int], None],
    cancelled: threading.Event,
) -> None:
    """Pull objects one after the other and hand each to `take` once its hash is verified.

    Args:
        context: the ZeroMQ context.
        endpoint: the coordinator's bulk port.
        run_id: the coordinator's run.
        wanted: what to pull.
        take: gets each object with its bytes.
        progress: gets the bytes pulled so far, after every chunk.
        cancelled: ends the pull with Cancelled.

    Raises:
        RemoteError: the channel is silent or keeps damaging bytes.
        ModelError: the coordinator lacks an object or holds a damaged one.
        Cancelled: somebody set `cancelled`.
    """
    pull = Pull(run_id, wanted, time.monotonic())
    socket = context.socket(zmq.DEALER)
    try:
        set_options(socket, BULK)
        socket.setsockopt(zmq.RCVTIMEO, int(1000 * WAKE_S))
        socket.connect(endpoint)
        while not pull.done:
            if cancelled.is_set():
                raise Cancelled("the pull was cancelled")
            _send_requests(socket, pull)
            if (complete := _receive(socket, pull)) is not None:
                take(*complete)
            progress(pull.done_bytes)
    finally:
        socket.close(linger=0)


def _send_requests(socket: zmq.Socket[bytes], pull: Pull) -> None:
    for request in pull.next_requests(time.monotonic()):
        try:
            socket.send(encode(request), zmq.NOBLOCK)
        except zmq.Again:
            pull.forget_sent()  # not connected yet, or again: the next round repeats them
            return


def _receive(socket: zmq.Socket[bytes], pull: Pull) -> tuple[Wanted, bytearray] | None:
    """Take one reply, if one comes in time; return the object that it completes, if any."""
    try:
        parts = socket.recv_multipart()
        reply = decode_bulk_message(parts[0])
    except zmq.Again:
        return None
    except WireError:
        reply = None
    if not isinstance(reply, BulkReply) or len(parts) != 2:
        pull.n_dropped += 1
        return None
    return pull.on_reply(reply, parts[1], time.monotonic())
