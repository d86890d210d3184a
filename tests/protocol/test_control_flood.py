"""One listed key against the control channel: whoever floods it or does not read harms itself."""

import contextlib
import errno
import logging
import threading
import time
from collections.abc import Iterator

import pytest
import zmq

from agent.messages import Bye, Heartbeat, Refused, Welcome, encode
from agent.sockets import CONTROL
from coordinator import control as control_module
from coordinator.identity import LinkSecrets
from kernels.errors import AgentLostError
from tests.protocol.dialler import Dialler
from tests.protocol.test_gate import A, B, Rig, hello, until

BEAT = Heartbeat(1, 1 << 30, 0)
# A lock that is held for a second is noticed; a busy machine is not.
SLOW_S = 0.5


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(control_module, "FAREWELL_S", 0.01)
    # What waits for a slow reader; the kernel's buffers come on top of it.
    monkeypatch.setattr(control_module, "CONTROL", CONTROL._replace(high_water_mark=10))
    rig = Rig()
    yield rig
    rig.close()


class Asker:
    """Asks the register what the hot path and `status` ask, and keeps the longest time it took."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._stop = threading.Event()
        self.longest_s = 0.0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.002):
            began_s = time.perf_counter()
            self._rig.control.lost_reason(A)
            self._rig.control.agents()
            self.longest_s = max(self.longest_s, time.perf_counter() - began_s)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def test_a_link_that_is_not_registered_is_told_so_once_a_second(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    dialler = rig.dial(rig.pairs[A], b"a/1")
    began_s = time.monotonic()
    with caplog.at_level(logging.WARNING):
        for _ in range(300):
            dialler.say(BEAT)
        # What comes after them has been read after them.
        dialler.say(hello("a"))
        refused = [dialler.hears()]
        while not isinstance(refused[-1], Welcome):
            refused.append(dialler.hears())
    assert all(isinstance(message, Refused) for message in refused[:-1])
    assert 1 <= len(refused) - 1 <= 1 + (time.monotonic() - began_s)
    lines = [r.getMessage() for r in caplog.records if "refused an agent" in r.getMessage()]
    assert len(lines) == 9
    assert lines[-1].endswith("dial again and say HELLO (256 refused so far)")


def test_a_link_that_is_not_read_is_ended_and_holds_nobody_up(rig: Rig) -> None:
    other, _ = rig.join(B)
    asker = Asker(rig)
    try:
        for n_ended in (1, 2):
            with deaf_link(rig) as link:
                assert until(lambda n=n_ended: flood_until_ended(rig, link, other, n))
                # What of its messages was not read yet finds no link to be answered on.
                assert until(lambda: flood_until_ended(rig, link, other, 0) and rig.here() == [B])
    finally:
        asker.close()
    assert asker.longest_s < SLOW_S
    # The name is free for a link that reads.
    rig.join(A, "2")


@contextlib.contextmanager
def deaf_link(rig: Rig) -> Iterator[zmq.Socket[bytes]]:
    """A link of A's that reads nothing and buffers as little as possible."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.RCVBUF, 4096)
    socket.setsockopt(zmq.RCVHWM, 1)
    socket.setsockopt(zmq.SNDTIMEO, 100)
    rig.curve(rig.pairs[A]).apply(socket)
    socket.setsockopt(zmq.ROUTING_ID, b"a/1")
    socket.connect(f"tcp://127.0.0.1:{rig.control.port}")
    try:
        yield socket
    finally:
        socket.close(linger=0)
        context.term()


def flood_until_ended(rig: Rig, link: zmq.Socket[bytes], other: Dialler, n_ended: int) -> bool:
    """Say HELLO, each of which is answered; tell whether so many links were ended by now."""
    message = encode(hello("a"))
    for _ in range(200):
        other.say(BEAT)
        if rig.control._n_unread >= n_ended:
            return True
        with contextlib.suppress(zmq.Again):
            link.send(message)
    return False


def test_trouble_with_one_link_does_not_end_the_control_channel(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (a, _), (b, _) = rig.join(A), rig.join(B)
    ended: list[str] = []

    def fail(link: LinkSecrets) -> None:
        ended.append(link.name)
        raise zmq.ZMQError(errno.EMFILE)

    monkeypatch.setattr(rig.control._door, "_on_end", fail)
    a.say(Bye("done"))
    b.say(BEAT)
    assert until(lambda: rig.here() == [B])
    assert rig.control.lost_reason(A) == "it left: done"
    assert "Lost went wrong (1 such errors so far)" in caplog.text
    # Nor does a link that cannot be ended.
    monkeypatch.setattr(
        rig.control._door, "evict", lambda _: fail(rig.control.link_secrets([B])[0])
    )
    rig.gate.revoke(B)
    assert until(lambda: rig.here() == [])
    with pytest.raises(AgentLostError, match="agent 'b' is gone"):
        rig.control.link_secrets([B])
    assert ended[0] == A
    rig.join(A, "2")
