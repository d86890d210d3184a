"""A connection's round trip, read from the kernel."""

import os
import socket

import pytest

from agent.probe import handshake_s
from agent.round_trip import round_trip_s


def test_a_connection_has_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as client:
            found = round_trip_s(client.fileno())
            assert found is not None
            assert 0.0 < found < 1.0
            # It is only looked at.
            client.sendall(b"x")
        with server.accept()[0] as accepted:
            assert accepted.recv(10) == b"x"


def test_what_is_no_connection_has_none() -> None:
    assert round_trip_s(-1) is None
    with open(os.devnull) as file:
        assert round_trip_s(file.fileno()) is None
        closed = file.fileno()
    assert round_trip_s(closed) is None
    for family, kind in ((socket.AF_UNIX, socket.SOCK_STREAM), (socket.AF_INET, socket.SOCK_DGRAM)):
        with socket.socket(family, kind) as other:
            assert round_trip_s(other.fileno()) is None


def test_a_kernel_that_measures_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as fresh:
        # Nothing was ever sent.
        assert round_trip_s(fresh.fileno()) is None
        monkeypatch.setattr(socket.socket, "getsockopt", lambda *_: b"\0" * 100)
        assert round_trip_s(fresh.fileno()) is None


def test_a_handshake_takes_a_round_trip() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = handshake_s(f"tcp://127.0.0.1:{port}")
        assert found is not None
        assert 0.0 < found < 1.0
    assert handshake_s(f"tcp://127.0.0.1:{port}") is None
    assert handshake_s("tcp://127.0.0.1:none") is None
    assert handshake_s("tcp://127.0.0.1:70000") is None
