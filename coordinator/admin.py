"""The admin server: a unix socket on which `run`, `status` and others talk to the coordinator.

One thread accepts, one thread a connection asks the desk and passes its answers on.
Only processes of the same user, and of root, are listened to. Everything is bounded: the number of
connections, what a client may send, and how long it may take to send or to read.
"""

import contextlib
import functools
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from agent.ids import AgentName
from agent.threads import NamedThread
from coordinator.admin_messages import (
    MAX_QUESTION_BYTES,
    Cordon,
    Done,
    Drain,
    Failed,
    Generate,
    GetPlan,
    GetStatus,
    LivePlan,
    Notice,
    Question,
    Reply,
    Status,
    Stop,
    decode_question,
    encode_line,
)
from coordinator.admin_path import make_admin_directory, peer_of, running_pid
from coordinator.inbox import Request
from kernels.errors import HeadwiseError, ResourceError

__all__ = ["AdminServer", "Answers", "refuse_second"]

log = logging.getLogger(__name__)

MAX_CLIENTS = 32
ASK_S = 10.0
# A client that does not read for so long while its socket is full is given up.
SEND_S = 10.0
# How soon a client that has gone is noticed while nothing is to be told to it.
LOOK_S = 0.2
WISH_S = 600.0
TELL_S = 2.0
# A client that waits hears from us so often, and so knows that we live.
BEAT_S = 10.0
BEAT = Notice("")
CLOSE_S = 5.0


class Answers(Protocol):
    """What `desk.Desk` offers; every method may be called from any thread."""

    def submit(self, ask: Generate) -> Request:
        """Put a request in line."""

    def status(self) -> Status:
        """Return how the cluster is."""

    def live_plan(self) -> LivePlan:
        """Return the plan in force."""

    def drain(self, name: AgentName, on: bool) -> None:
        """Note that an agent shall be free of work, or may be used again."""

    def cordon(self, name: AgentName) -> None:
        """Note that an agent shall be given nothing new."""

    def is_cordoned(self, name: AgentName) -> bool:
        """Return whether that has been heeded."""

    def holds(self, name: AgentName) -> bool:
        """Return whether the agent has a part of the plan in force or being installed."""

    def stop(self) -> None:
        """Begin to end the coordinator."""


def refuse_second(path: Path) -> None:
    """Raise if a coordinator listens at this path already.

    Raises:
        ResourceError: one does; says which process it is.
    """
    pid = running_pid(path)
    if pid:
        raise ResourceError(
            f"a coordinator is already running on this port (pid {pid}); end it with `headwise "
            f"stop --port {path.stem}`, or give this one another --port"
        )


class AdminServer:
    """Listens at a path until closed; the socket file of a dead coordinator is replaced.

    Args:
        path: where to listen.
        desk: who answers.

    Raises:
        ResourceError: the path cannot be used, or a coordinator listens there.
    """

    def __init__(self, path: Path, desk: Answers) -> None:
        self._path = path
        self._desk = desk
        self._slots = threading.Semaphore(MAX_CLIENTS)
        self._clients: dict[threading.Thread, socket.socket] = {}
        self._lock = threading.Lock()
        make_admin_directory(path)
        refuse_second(path)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.unlink(missing_ok=True)
            self._listener.bind(os.fspath(path))
            path.chmod(0o600)
            self._listener.listen(MAX_CLIENTS)
            self._inode = os.lstat(path).st_ino
        except OSError as e:
            self._listener.close()
            raise ResourceError(f"cannot listen at {path}: {e.strerror}") from e
        self._closing = threading.Event()
        self._thread = NamedThread(self._accept, "admin")
        self._thread.start()

    def close(self) -> None:
        """Stop listening, remove the socket file, and let the connections end."""
        self._closing.set()
        # The file goes first: whoever looks for a coordinator shall not find this one any more.
        with contextlib.suppress(OSError):
            # Not if another coordinator has put its own there meanwhile.
            if os.lstat(self._path).st_ino == self._inode:
                self._path.unlink()
        with contextlib.suppress(OSError):
            # Wakes the thread out of accept().
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(CLOSE_S)
        self._listener.close()
        deadline_s = time.monotonic() + CLOSE_S
        with self._lock:
            clients = list(self._clients.items())
        for thread, client in clients:
            thread.join(max(0.0, deadline_s - time.monotonic()))
            if thread.is_alive():
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)
                thread.join(1.0)

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError as e:
                if not self._closing.is_set():
                    # Too few file descriptors, as a rule; others may be closed soon.
                    log.warning("cannot accept a client: %s", e)
                    self._closing.wait(LOOK_S)
                continue
            if not self._slots.acquire(blocking=False):
                client.settimeout(LOOK_S)
                _send(client, Failed(f"{MAX_CLIENTS} clients are connected; try again later"))
                client.close()
                continue
            thread = NamedThread(functools.partial(self._serve, client), "admin-client")
            with self._lock:
                self._clients[thread] = client
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        try:
            client.settimeout(SEND_S)
            pid, uid = peer_of(client)
            if uid not in (os.getuid(), 0):
                log.warning("refused a client of another user: uid=%d pid=%d", uid, pid)
                return
            question = _read_question(client)
            if question is not None:
                self._answer(client, question)
        except HeadwiseError as e:
            _send(client, Failed(str(e)))
        except OSError as e:
            log.info("a client has gone: %s", e)
        except Exception:
            log.exception("answering a client failed")
            _send(client, Failed("internal error; the coordinator's log says more"))
        finally:
            client.close()
            with self._lock:
                del self._clients[threading.current_thread()]
            self._slots.release()

    def _answer(self, client: socket.socket, question: Question) -> None:
        match question:
            case Generate():
                self._pass_on(client, self._desk.submit(question))
            case GetStatus():
                _send(client, self._desk.status())
            case GetPlan():
                _send(client, self._desk.live_plan())
            case Drain(name, on):
                self._desk.drain(name, on)
                moves = f"what agent {name!r} holds is being moved to others"
                if not on:
                    _send(client, Done(f"agent {name!r} may be used"))
                elif self._await(client, lambda: not self._desk.holds(name), moves):
                    _send(client, Done(f"agent {name!r} has no work any more"))
            case Cordon(name):
                self._desk.cordon(name)
                waits = f"agent {name!r} is cordoned when the present plan has been loaded"
                if self._await(client, lambda: self._desk.is_cordoned(name), waits):
                    text = f"agent {name!r} keeps what it has and is given nothing new"
                    _send(client, Done(text))
            case Stop():
                log.info("a client asked the coordinator to stop")
                self._desk.stop()
                _send(client, Done("the coordinator is stopping"))
                # Closed once the file is gone, so that the client may start another one.
                while not self._closing.is_set() and not _gone(client, LOOK_S):
                    pass

    def _pass_on(self, client: socket.socket, request: Request) -> None:
        """Send a request's answers as they come; give it up when the client has gone."""
        sent_s = time.monotonic()
        try:
            while True:
                reply = request.next_reply(LOOK_S)
                if reply is None and time.monotonic() - sent_s > BEAT_S:
                    reply = BEAT
                if reply is not None:
                    client.sendall(encode_line(reply))
                    sent_s = time.monotonic()
                    if Request.is_last(reply):
                        return
                if _gone(client):
                    return
        finally:
            request.give_up("its client has gone")

    def _await(self, client: socket.socket, is_done: Callable[[], bool], why_late: str) -> bool:
        """Wait until a wish has been heeded; False if it has not, and the client knows."""
        began_s = sent_s = time.monotonic()
        told = False
        while not is_done():
            now_s = time.monotonic()
            if not told and now_s - began_s > TELL_S:
                told = True
                _send(client, Notice(why_late))
            if now_s - began_s > WISH_S or self._closing.is_set():
                _send(client, Failed(f"gave up waiting: {why_late}"))
                return False
            if now_s - sent_s > BEAT_S:
                sent_s = now_s
                _send(client, BEAT)
            if _gone(client, LOOK_S):
                return False
        return True


def _read_question(client: socket.socket) -> Question | None:
    """Return what a client asks; None if it only looked whether somebody listens.

    Raises:
        WireError: it cannot be read.
        ResourceError: it did not come in time.
    """
    deadline_s = time.monotonic() + ASK_S
    line = bytearray()
    while not line.endswith(b"\n"):
        if len(line) > MAX_QUESTION_BYTES:
            break
        client.settimeout(max(0.01, deadline_s - time.monotonic()))
        try:
            data = client.recv(65536)
        except TimeoutError as e:
            raise ResourceError(f"no whole question came within {ASK_S:g} s") from e
        if not data:
            return None
        line += data
    client.settimeout(SEND_S)
    return decode_question(bytes(line))


def _send(client: socket.socket, reply: Reply) -> None:
    """Send one answer; a client that has gone does not mind."""
    with contextlib.suppress(OSError):
        client.sendall(encode_line(reply))


def _gone(client: socket.socket, within_s: float = 0.0) -> bool:
    """Return whether the client has closed its end; waits for that up to within_s."""
    poller = select.poll()
    # Hang-ups and errors only: whatever else it may send is not read.
    poller.register(client, select.POLLRDHUP)
    return bool(poller.poll(1000 * within_s))
