"""Single links of a ROUTER end, on real sockets."""

import contextlib
import functools
import socket as sockets
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import psutil
import pytest
import zmq

from agent.curve import ClientCurve, new_key_pair
from agent.ids import AgentName
from agent.sockets import HOT, set_options
from coordinator.evictor import Evictor
from coordinator.gate import Gate
from tests.protocol.dialler import WAIT_MS, Context, Dialler, until

A = AgentName("a")


def is_closed(router: zmq.Socket[bytes], route: bytes, seen: list[int]) -> bool:
    """Whether sending fails as to a closed link; notes in `seen` what sending gave instead."""
    try:
        router.send_multipart([route, b"x"], zmq.NOBLOCK)
    except zmq.ZMQError as e:
        if e.errno == zmq.EHOSTUNREACH:
            return True
        seen.append(e.errno or -1)
    else:
        seen.append(0)
    return False


def test_evicting_is_harmless_for_links_that_are_not_there() -> None:
    context: Context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    set_options(router, HOT)
    evictor = Evictor(context, router)
    for route in (b"never here", b"x" * 255, b"\0auto"):
        evictor.evict(route)
        # For a moment the route may lead to the usurper, which is as good as nowhere.
        seen: list[int] = []
        assert until(functools.partial(is_closed, router, route, seen)), Counter(seen)
    router.close(linger=0)
    evictor.evict(b"too late")
    context.term()


def n_connections(port: int) -> int:
    """Count this process's accepted connections at a port."""
    here = psutil.Process().net_connections("tcp")
    return sum(c.laddr.port == port and c.status != psutil.CONN_LISTEN for c in here)


@pytest.mark.parametrize("encrypted", [False, True])
def test_an_evicted_link_that_goes_on_sending_gives_its_connection_back(encrypted: bool) -> None:
    """libzmq would keep it open for ever, and so run out of files where boards come and go."""
    context: Context = zmq.Context()
    pair = new_key_pair()
    gate = Gate(context, new_key_pair(), {A: pair.public})
    router = context.socket(zmq.ROUTER)
    set_options(router, HOT, gate.curve if encrypted else None)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    evictor = Evictor(context, router)
    curve = ClientCurve(gate.curve.own.public, pair) if encrypted else None

    for _ in range(3):
        dialler = Dialler(port, curve)
        dialler.socket.send(b"HELLO")
        assert router.poll(WAIT_MS)
        sender = router.recv_multipart(copy=False)[0]
        evictor.met(sender)
        # A frozen board sends what it had begun when it comes back, and leaves.
        evictor.evict(sender.bytes)
        assert until(functools.partial(is_closed, router, sender.bytes, []))
        for _ in range(3):
            with contextlib.suppress(zmq.Again):
                dialler.socket.send(b"late", zmq.NOBLOCK)
        dialler.close()
        assert until(lambda: n_connections(port) == 0)
    router.close(linger=0)
    gate.close()
    context.term()


def test_a_link_that_was_dialled_anew_gives_its_former_connection_back() -> None:
    context: Context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    set_options(router, HOT)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    evictor = Evictor(context, router)

    def dialled() -> Dialler:
        dialler = Dialler(port, None, b"board")
        dialler.socket.send(b"HELLO")
        assert router.poll(WAIT_MS)
        evictor.met(router.recv_multipart(copy=False)[0])
        return dialler

    former = dialled()
    present = dialled()
    # Not the one that speaks now: the former one would dial again, were it not gone.
    former.close()
    assert until(lambda: n_connections(port) == 1)
    evictor.hang_up(b"board")
    evictor.hang_up(b"board")
    evictor.hang_up(b"never here")
    present.close()
    assert until(lambda: n_connections(port) == 0)
    router.close(linger=0)
    context.term()


def test_a_connection_that_is_another_ones_is_left_alone() -> None:
    """Its number may belong to somebody else by the time that a frame of it is read."""
    context: Context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    set_options(router, HOT)
    router.bind("tcp://127.0.0.1:*")
    evictor = Evictor(context, router)
    with socketpair() as (ours, theirs), dialled_elsewhere() as (client, accepted):
        for other in (ours, accepted):
            stale = SimpleNamespace(
                bytes=b"board",
                get={zmq.SRCFD: other.fileno(), "Peer-Address": "127.0.0.1"}.__getitem__,
            )
            evictor.met(cast("zmq.Frame", stale))
            evictor.hang_up(b"board")
        for mine, peer in ((ours, theirs), (accepted, client)):
            mine.sendall(b"still here")
            assert peer.recv(32) == b"still here"
    router.close(linger=0)
    context.term()


@contextlib.contextmanager
def socketpair() -> Iterator[tuple[sockets.socket, sockets.socket]]:
    ours, theirs = sockets.socketpair()
    with ours, theirs:
        yield ours, theirs


@contextlib.contextmanager
def dialled_elsewhere() -> Iterator[tuple[sockets.socket, sockets.socket]]:
    with sockets.create_server(("127.0.0.1", 0)) as server:
        client = sockets.create_connection(server.getsockname())
        accepted, _ = server.accept()
        with client, accepted:
            yield client, accepted
