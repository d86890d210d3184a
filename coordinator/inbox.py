"""Between the threads that talk to clients and the one that serves: bounded on both sides.

Clients' threads `submit` requests and `post` wishes for the supervisor; the serving thread takes
them one at a time and answers into each request's own queue. Nobody ever waits for a client: one
that does not read is given up.
"""

import contextlib
import queue
import threading
from collections import deque

from coordinator.admin_messages import Failed, Finished, Generate, Reply
from coordinator.supervisor import Cordon, Drain, Undrain
from kernels.errors import ResourceError

__all__ = ["Inbox", "Request", "Wish"]

MAX_WAITING = 8
MAX_WISHES = 64
# More than a client's terminal may be behind when somebody pauses it for a moment.
MAX_REPLIES = 4096
TOO_SLOW = "this client reads too slowly; start the request again and read what it answers"

Wish = Drain | Cordon | Undrain


class Request:
    """One text that somebody waits for.

    Args:
        number: names it in logs.
        ask: what is wanted.

    Attributes:
        given_up: why nobody waits any more, "" = somebody does; set once, by either thread.
        since_s: when it began to wait for agents; None = it has not had to.
    """

    def __init__(self, number: int, ask: Generate) -> None:
        self.number = number
        self.ask = ask
        self.given_up = ""
        self.since_s: float | None = None
        self._replies: queue.Queue[Reply] = queue.Queue(MAX_REPLIES)
        self._last_notice: Reply | None = None

    def say(self, reply: Reply) -> None:
        """Answer, without waiting; a client whose queue is full is given up."""
        try:
            self._replies.put_nowait(reply)
        except queue.Full:
            self.give_up(TOO_SLOW)

    def notice(self, reply: Reply) -> None:
        """Answer, unless it would only repeat what was noticed last."""
        if reply != self._last_notice:
            self._last_notice = reply
            self.say(reply)

    def give_up(self, reason: str) -> None:
        """Let the serving thread end this request before its next token."""
        self.given_up = self.given_up or reason

    def next_reply(self, timeout_s: float) -> Reply | None:
        """Return the next answer for the client, or None if none came in time."""
        try:
            return self._replies.get(timeout=timeout_s)
        except queue.Empty:
            return Failed(self.given_up) if self.given_up else None

    @staticmethod
    def is_last(reply: Reply) -> bool:
        """Whether nothing follows this answer."""
        return isinstance(reply, Failed | Finished)


class Inbox:
    """Requests in order of arrival, and wishes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[Request] = deque()
        self._wishes: deque[Wish] = deque()
        self._n_requests = 0
        # A signal handler may put, too, whatever the thread is doing that it interrupts.
        self._nudges: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._closed = ""

    def submit(self, ask: Generate) -> Request:
        """Put a request in line.

        Raises:
            ResourceError: too many wait already, or the coordinator is ending.
        """
        with self._lock:
            self._check_open()
            self._forget_given_up()
            if len(self._waiting) >= MAX_WAITING:
                raise ResourceError(
                    f"{len(self._waiting)} requests are waiting already; try again later"
                )
            self._n_requests += 1
            request = Request(self._n_requests, ask)
            self._waiting.append(request)
            self.nudge()
            return request

    def post(self, wish: Wish) -> None:
        """Hand a wish to the serving thread.

        Raises:
            ResourceError: too many wait already, or the coordinator is ending.
        """
        with self._lock:
            self._check_open()
            if len(self._wishes) >= MAX_WISHES:
                raise ResourceError(f"{MAX_WISHES} wishes wait already; try again later")
            self._wishes.append(wish)
            self.nudge()

    def waiting(self) -> list[Request]:
        """Return the requests in line, first the next."""
        with self._lock:
            self._forget_given_up()
            return list(self._waiting)

    def take(self) -> Request | None:
        """Return the next request, if there is one."""
        with self._lock:
            self._forget_given_up()
            return self._waiting.popleft() if self._waiting else None

    def withdraw(self, request: Request) -> None:
        """Take a request out of the line."""
        with self._lock:
            if request in self._waiting:
                self._waiting.remove(request)

    def wishes(self) -> list[Wish]:
        """Return the wishes posted so far, once each."""
        with self._lock:
            wishes = list(self._wishes)
            self._wishes.clear()
            return wishes

    def nudge(self) -> None:
        """Let the serving thread look round; from any thread, and from signal handlers."""
        self._nudges.put(None)

    def wait(self, timeout_s: float, for_requests: bool) -> None:
        """Wait until there is a wish, (if asked for) a request, or anything new."""
        with self._lock:
            is_something = bool(self._wishes or (for_requests and self._waiting))
        with contextlib.suppress(queue.Empty):
            self._nudges.get(timeout=0.0 if is_something else timeout_s)
            while True:
                self._nudges.get_nowait()

    def close(self, reason: str) -> None:
        """Fail all that wait and all that come from now on."""
        with self._lock:
            self._closed = reason
            for request in self._waiting:
                request.say(Failed(reason))
            self._waiting.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise ResourceError(self._closed)

    def _forget_given_up(self) -> None:
        self._waiting = deque(r for r in self._waiting if not r.given_up)
