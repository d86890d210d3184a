"""Clients of the coordinator's channels, with whatever keys and routes a test gives them."""

import threading
import time
from collections.abc import Callable

import zmq

from agent.curve import ClientCurve
from agent.messages import AgentMessage, CoordinatorMessage, decode_coordinator_message, encode
from agent.sockets import CONTROL, SocketKind, set_options

__all__ = ["SILENCE_MS", "WAIT_MS", "Context", "Dialler", "until"]

WAIT_MS = 10_000
# How long we listen where nothing may come.
SILENCE_MS = 200

Context = zmq.Context[zmq.Socket[bytes]]


def until(found: Callable[[], bool]) -> bool:
    """Wait for what the control thread does within a few of its rounds."""
    deadline_s = time.monotonic() + WAIT_MS / 1000
    # Not a Poller without sockets, which returns at once: asking without a pause fills queues.
    never = threading.Event()
    while not found():
        if time.monotonic() > deadline_s:
            return False
        never.wait(0.02)
    return True


class Dialler:
    """A client of one channel, with whatever keys and routing id a test gives it."""

    def __init__(
        self, port: int, curve: ClientCurve | None, route: bytes = b"", kind: SocketKind = CONTROL
    ) -> None:
        self._context: Context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        set_options(self.socket, kind, curve)
        self.socket.setsockopt(zmq.SNDTIMEO, WAIT_MS)
        if route:
            self.socket.setsockopt(zmq.ROUTING_ID, route)
        self.socket.connect(f"tcp://127.0.0.1:{port}")

    def say(self, message: AgentMessage) -> None:
        self.socket.send(encode(message))

    def hears(self) -> CoordinatorMessage:
        assert self.socket.poll(WAIT_MS), "nothing came"
        return decode_coordinator_message(self.socket.recv())

    def hears_nothing(self) -> bool:
        return not self.socket.poll(SILENCE_MS)

    def connects(self) -> bool:
        return bool(self.socket.poll(SILENCE_MS, zmq.POLLOUT))

    def close(self) -> None:
        self.socket.close(linger=0)
        self._context.term()
