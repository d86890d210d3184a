"""Cables through a proxy: what is cut is kept back and delivered later, connections stay open."""

import socket
from collections.abc import Iterator

import pytest

from tools.faults.proxy import ProxyCables

SHORT_S = 0.3


@pytest.fixture
def cables() -> Iterator[ProxyCables]:
    cables = ProxyCables()
    yield cables
    cables.close()


def dialled(cables: ProxyCables, board: str, channel: int) -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection that goes through a board's cable."""
    with socket.create_server(("127.0.0.1", cables.port + channel)) as server:
        server.settimeout(10.0)
        near = socket.create_connection(("127.0.0.1", port_of(cables, board) + channel), 10.0)
        far, _ = server.accept()
    far.settimeout(10.0)
    return near, far


def port_of(cables: ProxyCables, board: str) -> int:
    words = [str(word) for word in cables.words(board)]
    assert words[2:] == ["--name", board]
    return int(words[1].rpartition(":")[2])


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_bytes_pass_both_ways_on_each_channel(cables: ProxyCables, channel: int) -> None:
    near, far = dialled(cables, "a", channel)
    with near, far:
        near.sendall(b"there")
        assert far.recv(16) == b"there"
        far.sendall(b"back")
        assert near.recv(16) == b"back"
        near.close()
        assert far.recv(16) == b""


def test_a_cut_cable_keeps_everything_back_until_it_is_mended(cables: ProxyCables) -> None:
    near, far = dialled(cables, "a", 0)
    other_near, other_far = dialled(cables, "b", 0)
    with near, far, other_near, other_far:
        cables.cut("a")
        near.sendall(b"late")
        far.sendall(b"later")
        for end in (near, far):
            end.settimeout(SHORT_S)
            with pytest.raises(TimeoutError):
                end.recv(16)
            end.settimeout(10.0)
        other_near.sendall(b"on time")
        assert other_far.recv(16) == b"on time"
        cables.mend("a")
        assert far.recv(16) == b"late"
        assert near.recv(16) == b"later"


def test_a_cut_cable_hides_that_the_other_end_has_gone(cables: ProxyCables) -> None:
    near, far = dialled(cables, "a", 1)
    with near:
        cables.cut("a")
        far.close()
        near.settimeout(SHORT_S)
        with pytest.raises(TimeoutError):
            near.recv(16)
        near.settimeout(10.0)
        cables.mend("a")
        assert near.recv(16) == b""


def test_dialling_through_a_cut_cable_leads_nowhere_until_it_is_mended(
    cables: ProxyCables,
) -> None:
    port = port_of(cables, "a")
    cables.cut("a")
    with (
        socket.create_server(("127.0.0.1", cables.port)) as server,
        socket.create_connection(("127.0.0.1", port), 10.0),
    ):
        server.settimeout(SHORT_S)
        with pytest.raises(TimeoutError):
            server.accept()
        server.settimeout(10.0)
        cables.mend("a")
        server.accept()[0].close()


def test_a_forgotten_board_has_no_ports_any_more(cables: ProxyCables) -> None:
    near, far = dialled(cables, "a", 0)
    port = port_of(cables, "a")
    with near, far:
        cables.forget("a")
        assert near.recv(16) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 10.0)


def test_nobody_listening_closes_the_connection(cables: ProxyCables) -> None:
    with socket.create_connection(("127.0.0.1", port_of(cables, "a")), 10.0) as near:
        assert near.recv(16) == b""
