"""Ending single links of a ROUTER, for which libzmq has no call."""

import contextlib
import logging
import os
import secrets
import socket as sockets
from collections.abc import Iterator
from typing import Any, NamedTuple

import zmq

__all__ = ["Evictor"]

log = logging.getLogger(__name__)

# Far more than there are boards: links that end by themselves are not taken from the list.
MAX_CONNECTIONS = 1000

Context = zmq.Context[zmq.Socket[bytes]]


class _Connection(NamedTuple):
    """Where a link's bytes pass; a descriptor alone may be another's by now."""

    fd: int
    peer: Any


class Evictor:
    """Ends links of a ROUTER.

    The connection is shut down, if it is known (`met`). And a ROUTER with ROUTER_HANDOVER gives a
    routing id to whoever comes last under it: this connects from within the process under the
    victim's and leaves again. From then on what the victim sends on this link comes under no known
    route, and sending to it fails as to any closed link. It may dial again.

    Handing over alone would do, but for libzmq 4.3.5: it never closes the connection of a link
    that was handed over if its peer sends something more before it leaves. So do boards that come
    back after a cut or a frost, and those that dial again before they are missed.

    Args:
        context: the router's.
        router: bound here once more, at an address that only this process reaches.
    """

    def __init__(self, context: Context, router: zmq.Socket[bytes]) -> None:
        self._context = context
        self.n_failed = 0
        # Replaced and removed by more than one thread, an entry at a time.
        self._connections: dict[bytes, _Connection] = {}
        # Before it is bound once more.
        address = router.getsockopt_string(zmq.LAST_ENDPOINT)
        self._port = int(address.rpartition(":")[2]) if address.startswith("tcp:") else None
        # inproc needs no handshake; the name is random lest two coordinators of a process meet.
        self._endpoint = f"inproc://evict-{secrets.token_hex(8)}"
        router.bind(self._endpoint)

    def met(self, sender: zmq.Frame) -> None:
        """Remember the connection of a link, and shut down the former one if it dialled anew.

        Args:
            sender: the first frame of a message that came on it: its routing id.
        """
        route, found = sender.bytes, None
        # From within the process, or closed already: there is nothing to remember.
        with contextlib.suppress(zmq.ZMQError, OSError):
            fd = int(sender.get(zmq.SRCFD))
            with _duplicate(fd) as connection:
                if self._is_from(connection, str(sender.get("Peer-Address"))):
                    found = _Connection(fd, connection.getpeername())
        if found != self._connections.get(route):
            self.hang_up(route)
        self._connections.pop(route, None)
        if found is not None:
            self._connections[route] = found  # the last one now
        if len(self._connections) > MAX_CONNECTIONS:
            # Another thread may be changing them: then the next one that is met makes room.
            with contextlib.suppress(StopIteration, RuntimeError):
                self._connections.pop(next(iter(self._connections)), None)

    def _is_from(self, connection: sockets.socket, address: str) -> bool:
        """Tell whether this may be where a frame came from: its connection may have ended since.

        Then its number is perhaps another's, such as a client's of the admin socket.
        """
        own, peer = connection.getsockname(), connection.getpeername()
        if not (isinstance(own, tuple) and isinstance(peer, tuple)):
            return False
        return own[1] == self._port and str(peer[0]) == address

    def evict(self, route: bytes, last_words: bool = False) -> None:
        """End the link of a routing id; safe from any thread.

        Args:
            route: the routing id.
            last_words: whether the peer shall still get what was sent to it: then the connection
                is left to it to close.

        The router notices at its next receive or send, and only then gives back what this took of
        the process's sockets. With none left the link stays, and its owner has to drop what comes.
        """
        if not last_words:
            self.hang_up(route)
        try:
            usurper = self._context.socket(zmq.DEALER)
        except zmq.ZMQError as e:
            self.n_failed += 1
            if self.n_failed & (self.n_failed - 1) == 0:
                log.error("cannot end a link: %s (%d times so far)", e.strerror, self.n_failed)
            return
        try:
            usurper.setsockopt(zmq.ROUTING_ID, route)
            usurper.connect(self._endpoint)
        finally:
            usurper.close(linger=0)

    def hang_up(self, route: bytes) -> None:
        """Shut a link's connection down, if it is known: libzmq finds its end and closes it."""
        known = self._connections.pop(route, None)
        if known is None:
            return
        with contextlib.suppress(OSError), _duplicate(known.fd) as connection:
            if connection.getpeername() == known.peer:
                connection.shutdown(sockets.SHUT_RDWR)


@contextlib.contextmanager
def _duplicate(fd: int) -> Iterator[sockets.socket]:
    """Give another descriptor of a connection: as long as it is open it stands for no other."""
    copy = os.dup(fd)
    try:
        connection = sockets.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise
    with connection:
        yield connection
