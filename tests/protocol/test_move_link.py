"""The bulk link of migrations, against a socket that plays the relay."""

import contextlib
import os
import time

import pytest
import zmq

from agent import move_link
from agent.curve import ClientCurve, new_key_pair
from agent.events import BulkReceived, BulkUp
from agent.messages import PROBE_OBJECT, BulkReply, decode_bulk_message, encode
from agent.migration_messages import KvAsk, KvOffer, KvRows
from agent.move_link import MAX_AT_ONCE, MoveLink
from agent.sockets import BULK, set_options

DEADLINE_S = 30.0
OFFER, ASK, ROWS = KvOffer(1, 2, b"t"), KvAsk(1, 2, 3, 0, 5, 0, 1, 0, 9), KvRows(1, 2, 3, 77)


@pytest.fixture
def context():
    with zmq.Context() as context:
        yield context
        context.destroy(linger=0)


@pytest.fixture
def relay(context):
    """Make sockets that play the relay, on a free port or a given one; returns its endpoint too."""
    with contextlib.ExitStack() as sockets:

        def make(keys=None, endpoint="tcp://127.0.0.1:*"):
            socket = sockets.enter_context(context.socket(zmq.ROUTER))
            set_options(socket, BULK)
            socket.setsockopt(zmq.RCVTIMEO, int(1000 * DEADLINE_S))
            if keys is not None:
                socket.setsockopt(zmq.CURVE_SERVER, 1)
                socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
            bound = False
            while not bound:
                # A port is free once the I/O thread has closed the socket that had it.
                with contextlib.suppress(zmq.ZMQError):
                    socket.bind(endpoint)
                    bound = True
            return socket, socket.getsockopt_string(zmq.LAST_ENDPOINT)

        yield make


@pytest.fixture
def dial(context):
    """Make links that are closed at the end."""
    with contextlib.ExitStack() as links:

        def make(endpoint, curve=None, now_s=None):
            now_s = time.monotonic() if now_s is None else now_s
            link = MoveLink(context, endpoint, curve, now_s)
            links.callback(link.close)
            return link

        yield make


def events(link, until):
    """Return what the link yields until something of it is so."""
    found, deadline_s = [], time.monotonic() + DEADLINE_S
    while not until(found):
        assert time.monotonic() < deadline_s, found
        poller = zmq.Poller()
        for socket in link.sockets:
            poller.register(socket, zmq.POLLIN)
        poller.poll(50)
        found += link.receive()
        link.tend(time.monotonic())
    return found


def up(found):
    return BulkUp() in found


@pytest.mark.parametrize("with_keys", [False, True])
def test_messages_go_both_ways(relay, dial, with_keys):
    keys = new_key_pair() if with_keys else None
    curve = ClientCurve(keys.public, new_key_pair()) if keys else None
    socket, endpoint = relay(keys)
    link = dial(endpoint, curve)
    assert events(link, up) == [BulkUp()]
    data = bytearray(bytes(range(256)) * 1024)
    for message in (OFFER, ASK, ROWS):
        link.send(message, data if message is ROWS else b"")
    got = [socket.recv_multipart() for _ in range(3)]
    assert [decode_bulk_message(parts[1]) for parts in got] == [OFFER, ASK, ROWS]
    assert [parts[2:] for parts in got] == [[], [], [bytes(data)]]
    route = got[0][0]
    rows = encode(ROWS)
    for junk in ([b""], [b"x", b"y"], [rows], [rows, b"", b""], [encode(ASK), b""],
                 [encode(OFFER)], [b"\xff" * 1000, b""]):  # fmt: skip
        socket.send_multipart([route, *junk])
    # What it was warmed up with is looked at by nobody.
    socket.send_multipart([route, encode(BulkReply(PROBE_OBJECT, 0, 3, 0)), b"000"])
    socket.send_multipart([route, encode(ASK)])
    socket.send_multipart([route, rows, bytes(data)])
    found = events(link, lambda found: len(found) == 2)
    assert found[0] == BulkReceived(ASK)
    assert (found[1].message, bytes(found[1].data)) == (ROWS, bytes(data))
    assert link.n_malformed == 7


def test_whoever_floods_it_does_not_keep_its_thread(relay, dial):
    socket, endpoint = relay()
    link = dial(endpoint)
    events(link, up)
    link.send(OFFER, b"")
    route, _ = socket.recv_multipart()
    n = 3 * MAX_AT_ONCE
    socket.setsockopt(zmq.SNDTIMEO, int(1000 * DEADLINE_S))
    n_taken = n_sent = 0
    while n_taken < n:
        if n_sent < n:
            try:
                socket.send_multipart([route, encode(ASK)], zmq.NOBLOCK)
                n_sent += 1
                continue
            except zmq.Again:
                pass
        took = len(list(link.receive()))
        assert took <= MAX_AT_ONCE
        n_taken += took


def test_what_finds_no_link_is_dropped_and_a_link_that_comes_says_so(relay, dial, monkeypatch):
    monkeypatch.setattr(move_link, "REDIAL_S", 0.1)
    keys, other = new_key_pair(), new_key_pair()
    socket, endpoint = relay(other)
    # The key of another coordinator: refused, and tried again with a new socket.
    link = dial(endpoint, ClientCurve(keys.public, new_key_pair()), 0.0)
    first = link.sockets[0]
    link.send(ASK, b"")
    assert link.n_unsent == 1
    assert events(link, lambda _: first.closed) == []
    socket.close(linger=0)
    socket, _ = relay(keys, endpoint)
    assert up(events(link, up))
    link.send(ASK, b"")
    assert decode_bulk_message(socket.recv_multipart()[1]) == ASK


def test_rows_are_sent_without_another_thread(relay, dial):
    socket, endpoint = relay()
    link = dial(endpoint)
    events(link, up)
    before = len(os.listdir("/proc/self/task"))
    link.send(ROWS, bytearray(256 << 10))
    assert len(socket.recv_multipart()[-1]) == 256 << 10
    assert len(os.listdir("/proc/self/task")) == before
