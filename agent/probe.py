"""A receiver measures its link: round trip by a few handshakes, goodput by a small pull.

A few small packets, and bytes only when it is told to: real pulls measure goodput too (`puller`),
this is for links over which nothing large has gone. A handshake is answered by the other side's
kernel; its time, as this process sees it, is the link's and one wake-up. The median of a few is no
extreme, as the kernel's own minimum is.
"""

import socket
import statistics
import time
from collections import deque

import zmq

from agent.goodput import Goodput
from agent.messages import PROBE_OBJECT, BulkReply, BulkRequest, decode_bulk_message, encode
from agent.puller import BulkSource
from agent.sockets import BULK, set_options
from kernels.errors import WireError

__all__ = ["handshake_s", "probe_link"]

CHUNK_BYTES = 64 << 10
# On fast links, where little on the way would measure the pauses of both ends.
FAST_CHUNK_BYTES = 256 << 10
FAST_BYTES_PER_S = 37.5e6
CREDITS = 4
ENOUGH_WINDOWS, ENOUGH_S = 3, 0.2
# A link on which it takes longer is measured by what came until then.
PROBE_S = 1.0
WAIT_MS = 500
N_HANDSHAKES = 9


class _Puller:
    """Requests and chunks of one probe."""

    def __init__(self, link: zmq.Socket[bytes], source: BulkSource, n_bytes: int) -> None:
        self._link = link
        self._source = source
        self._left_bytes = n_bytes
        self._open: deque[int] = deque()
        self._came_s: list[float] = []
        self._chunk_bytes = CHUNK_BYTES

    def ask(self) -> bool:
        """Ask for as much as may be open; False if nothing is."""
        while self._left_bytes > 0 and len(self._open) < CREDITS:
            n_bytes, source = self._chunk_bytes, self._source
            request = BulkRequest(source.run_id, PROBE_OBJECT, 0, n_bytes, source.token)
            self._link.send(encode(request))
            self._open.append(n_bytes)
            self._left_bytes -= n_bytes
        return bool(self._open)

    def take(self, goodput: Goodput) -> bool:
        """Take the next chunk; False if it says to stop."""
        parts = self._link.recv_multipart()
        reply = decode_bulk_message(parts[0])
        if not isinstance(reply, BulkReply) or reply.error or reply.window_bytes:
            return False
        self._open.popleft()
        now_s = time.monotonic()
        goodput.on_chunk(len(parts[-1]), sum(self._open), now_s)
        self._came_s.append(now_s)
        if len(self._came_s) == CREDITS:
            took_s = now_s - self._came_s[0]
            is_fast = took_s < (CREDITS - 1) * CHUNK_BYTES / FAST_BYTES_PER_S
            self._chunk_bytes = FAST_CHUNK_BYTES if is_fast else CHUNK_BYTES
        return True


def probe_link(
    context: zmq.Context[zmq.Socket[bytes]], source: BulkSource, n_bytes: int, goodput: Goodput
) -> None:
    """Pull at most n_bytes; ends early when enough is known, or when a request needs the link.

    Args:
        context: the ZeroMQ context.
        source: whom to ask.
        n_bytes: the most that is asked for.
        goodput: is told of each chunk.
    """
    link = context.socket(zmq.DEALER)
    began_s, n_before = time.monotonic(), goodput.n_windows
    try:
        set_options(link, BULK, source.curve)
        # Until the link stands nothing can be sent: IMMEDIATE.
        link.setsockopt(zmq.SNDTIMEO, WAIT_MS)
        link.setsockopt(zmq.RCVTIMEO, WAIT_MS)
        link.connect(source.endpoint)
        goodput.rest()
        puller = _Puller(link, source, n_bytes)
        while puller.ask() and puller.take(goodput):
            took_s, n_windows = time.monotonic() - began_s, goodput.n_windows - n_before
            if took_s > PROBE_S or (took_s > ENOUGH_S and n_windows >= ENOUGH_WINDOWS):
                return
    except (zmq.ZMQError, WireError):
        return  # nothing is lost: a later probe may do better
    finally:
        goodput.rest()
        link.close(linger=0)


def handshake_s(endpoint: str) -> float | None:
    """Return the median round trip of a few TCP handshakes with an endpoint; None if they fail.

    Args:
        endpoint: tcp://HOST:PORT, HOST an address.
    """
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = []
    try:
        for _ in range(N_HANDSHAKES):
            with socket.socket(family) as link:
                link.settimeout(WAIT_MS / 1000)
                began_s = time.perf_counter()
                link.connect((host, int(port)))
                found.append(time.perf_counter() - began_s)
    except (OSError, ValueError, OverflowError):
        return None
    return statistics.median(found)
