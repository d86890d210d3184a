"""Wakes a thread that sleeps until a ZeroMQ socket has something for it.

A thread that looked ten times a second whether somebody wants it would cost more than all that an
idle board does besides.
"""

import contextlib
import os
import weakref

import zmq

__all__ = ["Bell"]


class Bell:
    """A pipe that one thread listens to together with a socket; anybody may ring."""

    def __init__(self) -> None:
        self._listen_fd, self._ring_fd = os.pipe()
        for fd in (self._listen_fd, self._ring_fd):
            os.set_blocking(fd, False)
            # Not closed by either thread: the other one may be about to use it.
            weakref.finalize(self, os.close, fd).atexit = False

    @property
    def fd(self) -> int:
        """Readable while it rings; for pollers."""
        return self._listen_fd

    def ring(self) -> None:
        """Wake the listener, now or as soon as it listens; from any thread."""
        # A full pipe wakes it just as well.
        with contextlib.suppress(BlockingIOError):
            os.write(self._ring_fd, b"\0")

    def quiet(self) -> None:
        """Stop ringing; for the listener, before it looks at what it was woken for."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._listen_fd, 4096)

    def wait(self, socket: zmq.Socket[bytes], timeout_s: float) -> bool:
        """Wait until the socket has a message, which is told, or somebody rings."""
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(self._listen_fd, zmq.POLLIN)
        ready = dict(poller.poll(int(1000 * timeout_s)))
        if self._listen_fd in ready:
            self.quiet()
        return socket in ready
