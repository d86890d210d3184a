"""Events from other threads and from signals, in a queue that a poller can wait for."""

import contextlib
import os
from collections import deque

from agent.events import Event

__all__ = ["Mailbox"]


class Mailbox:
    """A queue with a file descriptor that is readable while events may be waiting.

    `post` may be called from any thread; the rest belongs to the reader.
    """

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self._write_fd, False)

    @property
    def fd(self) -> int:
        """Readable when there may be events."""
        return self._read_fd

    @property
    def wake_fd(self) -> int:
        """Writable from signal handlers (`signal.set_wakeup_fd`)."""
        return self._write_fd

    def post(self, event: Event) -> None:
        """Add an event and wake the reader."""
        self._events.append(event)
        # A full pipe wakes the reader just as well.
        with contextlib.suppress(BlockingIOError):
            os.write(self._write_fd, b"\0")

    def take_nowait(self) -> list[Event]:
        """Return all waiting events in order."""
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._read_fd, 4096)) == 4096:
                pass
        events: list[Event] = []
        while self._events:
            events.append(self._events.popleft())
        return events

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._read_fd)
        os.close(self._write_fd)
