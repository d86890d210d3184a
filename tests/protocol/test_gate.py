"""Who gets in: keys, names and routes on real sockets, with a real control channel behind them."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from agent.curve import ClientCurve, KeyPair, ServerCurve, new_key_pair, peer_key
from agent.frames import HEADER_BYTES, FrameType, Header, Wire, pack_header
from agent.ids import AgentName, Epoch, InstanceId, Rank, RunId, Seq
from agent.messages import (
    Bye,
    Heartbeat,
    Hello,
    Refused,
    Welcome,
)
from agent.sockets import CONTROL, HOT, SocketKind, set_options
from agent.versions import our_versions
from coordinator import control as control_module
from coordinator.control import Control
from coordinator.gate import Gate, open_gate
from coordinator.hot_link import HotLink, HotPeer
from coordinator.hot_socket import HotSocket
from coordinator.identity import LinkSecrets
from coordinator.keys import KeyStore
from kernels.errors import AgentLostError
from tests.protocol.dialler import SILENCE_MS, WAIT_MS, Context, Dialler, until

RUN = RunId(5)
A, B = AgentName("a"), AgentName("b")


def hello(name: str, instance: str = "1") -> Hello:
    return Hello(AgentName(name), InstanceId(instance), our_versions(), 4, 4, 1 << 30, 1e9)


class Rig:
    """A coordinator's gate, control and hot sockets, with agents `a` and `b` on the list."""

    def __init__(self, store: KeyStore | None = None) -> None:
        self.context: Context = zmq.Context()
        self.pairs = {A: new_key_pair(), B: new_key_pair()}
        self.gate = open_gate(self.context, store)
        for name, pair in self.pairs.items() if store is None else ():
            self.gate.add(name, pair.public)
        self.hot = HotSocket(self.context, "tcp://127.0.0.1:*", RUN, self.gate.curve)
        self.ended: list[LinkSecrets] = []
        self.control = Control(
            self.context, "tcp://127.0.0.1:*", RUN, self.hot.port, 1, self.gate, self._on_end
        )
        self.diallers: list[Dialler] = []

    def _on_end(self, ended: LinkSecrets) -> None:
        self.ended.append(ended)
        self.hot.evict(ended.hot_route)

    def curve(self, pair: KeyPair) -> ClientCurve:
        return ClientCurve(self.gate.curve.own.public, pair)

    def dial(self, pair: KeyPair, route: bytes = b"", kind: SocketKind = CONTROL) -> Dialler:
        dialler = Dialler(self.port_of(kind), self.curve(pair), route, kind)
        self.diallers.append(dialler)
        return dialler

    def port_of(self, kind: SocketKind) -> int:
        return self.hot.port if kind is HOT else self.control.port

    def join(self, name: AgentName, instance: str = "1") -> tuple[Dialler, Welcome]:
        dialler = self.dial(self.pairs[name], f"{name}/{instance}".encode())
        dialler.say(hello(name, instance))
        welcome = dialler.hears()
        assert isinstance(welcome, Welcome)
        return dialler, welcome

    def here(self) -> list[str]:
        return [agent.name for agent in self.control.agents() if agent.alive]

    def close(self) -> None:
        for dialler in self.diallers:
            dialler.close()
        self.control.close()
        self.hot.close()
        self.gate.close()
        self.context.term()


@pytest.fixture(autouse=True)
def _no_farewell(monkeypatch: pytest.MonkeyPatch) -> None:
    """These agents do not answer when the run ends: do not wait for it."""
    monkeypatch.setattr(control_module, "FAREWELL_S", 0.01)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


def test_listed_keys_get_in_and_every_link_gets_secrets_of_its_own(rig: Rig) -> None:
    (_, a), (_, b) = rig.join(A), rig.join(B)
    secrets = {a.hot_route, b.hot_route, a.bulk_token, b.bulk_token}
    assert len(secrets) == 4
    assert all(len(secret) >= 16 for secret in secrets)
    assert rig.here() == ["a", "b"]
    held = rig.control.link_secrets([B, A])
    assert [s.hot_route for s in held] == [b.hot_route, a.hot_route]
    assert held[1].key == rig.pairs[A].public
    assert rig.pairs[A].public not in repr(held)


def test_without_a_listed_key_nothing_is_served(rig: Rig) -> None:
    stranger = new_key_pair()
    wrong_server = ClientCurve(stranger.public, rig.pairs[A])
    for curve in (rig.curve(stranger), wrong_server, None):
        for port, kind in ((rig.control.port, CONTROL), (rig.hot.port, HOT)):
            dialler = Dialler(port, curve, b"a/1", kind)
            rig.diallers.append(dialler)
            assert not dialler.connects()
    assert rig.here() == []
    assert rig.gate.n_refused >= 2
    rig.join(A)


def test_a_name_belongs_to_a_key(rig: Rig) -> None:
    liar = rig.dial(rig.pairs[B], b"a/1")
    liar.say(hello("a"))
    refused = liar.hears()
    assert isinstance(refused, Refused)
    assert not refused.retry
    assert "its key is that of agent 'b', but it calls itself 'a'" in refused.reason
    assert rig.here() == []


def test_nobody_speaks_on_anothers_link(rig: Rig) -> None:
    _, welcome = rig.join(A)
    # The last to come under a routing id gets what is sent to it: it must be of no use.
    thief = rig.dial(rig.pairs[B], b"a/1")
    for message in (Bye("gone"), hello("b"), hello("a")):
        thief.say(message)
    assert until(lambda: rig.control.n_dropped == 3)
    assert thief.hears_nothing()
    assert rig.here() == ["a"]
    assert rig.control.link_secrets([A])[0].hot_route == welcome.hot_route


def test_a_second_instance_of_a_key_is_refused_and_the_first_undisturbed(rig: Rig) -> None:
    first, _ = rig.join(A)
    second = rig.dial(rig.pairs[A], b"a/2")
    second.say(hello("a", "2"))
    refused = second.hears()
    assert isinstance(refused, Refused)
    assert refused.retry
    assert "another live agent is named 'a'" in refused.reason
    first.say(Heartbeat(1, 1 << 30, 0))
    assert first.hears_nothing()
    assert rig.here() == ["a"]
    # It gets the name, and secrets of its own, once the first has left.
    first.say(Bye("done"))
    assert until(lambda: rig.here() == [])
    second.say(hello("a", "2"))
    assert isinstance(second.hears(), Welcome)


def frame(kind: FrameType, rank: int = 0) -> bytearray:
    out = bytearray(HEADER_BYTES)
    pack_header(out, Header(kind, Wire.F32, Epoch(1), RUN, Seq(0), rank=Rank(rank)))
    return out


def join_hot(rig: Rig, names: list[AgentName], within_s: float = 10.0) -> HotLink:
    peers = [HotPeer(s.hot_route, s.key) for s in rig.control.link_secrets(names)]
    link = rig.hot.expect(names, peers, Epoch(1), 4096, rig.control.lost_reason)
    link.join(time.monotonic() + within_s)
    return link


def test_a_hot_link_is_a_members_only_by_route_and_key(rig: Rig) -> None:
    (_, a), _ = rig.join(A), rig.join(B)
    for pair, route in (
        (rig.pairs[A], b"a/1"),  # the key alone
        (rig.pairs[B], a.hot_route),  # the route alone
    ):
        dialler = rig.dial(pair, route, kind=HOT)
        dialler.socket.send(frame(FrameType.HELLO))
        with pytest.raises(AgentLostError, match="no hot link from agent a"):
            join_hot(rig, [A], within_s=0.2)
    assert rig.hot.n_dropped == 2
    right = rig.dial(rig.pairs[A], a.hot_route, kind=HOT)
    right.socket.send(frame(FrameType.HELLO))
    assert join_hot(rig, [A]).routes == [a.hot_route]


def test_routes_are_in_rank_order(rig: Rig) -> None:
    welcomes = {name: rig.join(name)[1] for name in (A, B)}
    for rank, name in ((1, A), (0, B)):
        dialler = rig.dial(rig.pairs[name], welcomes[name].hot_route, kind=HOT)
        dialler.socket.send(frame(FrameType.HELLO, rank))
    assert join_hot(rig, [B, A]).routes == [welcomes[B].hot_route, welcomes[A].hot_route]


def revoke_by_gate(rig: Rig) -> None:
    rig.gate.revoke(A)


def rotate_by_gate(rig: Rig) -> None:
    rig.gate.add(A, new_key_pair().public)


@pytest.mark.parametrize("revoke", [revoke_by_gate, rotate_by_gate])
def test_revoking_ends_all_links_at_once(rig: Rig, revoke: Callable[[Rig], None]) -> None:
    (a, welcome), (b, _) = rig.join(A), rig.join(B)
    hot = rig.dial(rig.pairs[A], welcome.hot_route, kind=HOT)
    hot.socket.send(frame(FrameType.HELLO))
    link = join_hot(rig, [A])
    link.send(Rank(0), frame(FrameType.STEP))
    assert hot.socket.poll(WAIT_MS)
    hot.socket.recv()

    revoke(rig)
    refused = a.hears()
    assert isinstance(refused, Refused)
    assert "its key was revoked" in refused.reason
    assert until(lambda: rig.here() == ["b"])
    assert [e.name for e in rig.ended] == [A]
    assert rig.control.lost_reason(A) == "its key was revoked or replaced"

    # Nothing passes in either direction, and with that key no new connection comes about.
    with pytest.raises(AgentLostError, match="its key was revoked"):
        assert until(lambda: link.send(Rank(0), frame(FrameType.STEP)) is not None)
    for dialler in (hot, a):
        dialler.socket.setsockopt(zmq.SNDTIMEO, SILENCE_MS)
    with contextlib.suppress(zmq.Again):
        hot.socket.send(frame(FrameType.HELLO))
    with contextlib.suppress(zmq.Again):
        a.say(hello("a"))
        a.say(Heartbeat(1, 1 << 30, 0))
    assert a.hears_nothing()
    assert not hot.socket.poll(SILENCE_MS)
    assert rig.here() == ["b"]
    assert not rig.dial(rig.pairs[A], b"a/2").connects()
    b.say(Heartbeat(1, 1 << 30, 0))
    assert rig.here() == ["b"]
    with pytest.raises(AgentLostError, match="agent 'a' is gone"):
        rig.control.link_secrets([A])


def test_a_running_coordinator_follows_its_key_store(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = KeyStore(tmp_path / "keys")
    store.init()
    rig = Rig(store)
    try:
        assert not rig.dial(rig.pairs[A], b"a/0").connects()
        store.add("a", rig.pairs[A].public)
        assert until(lambda: rig.gate.names() == [A])
        rig.join(A)
        other = KeyStore(store.directory)
        other.add("b", rig.pairs[B].public)
        # Damage to one entry hides neither what was added nor what was revoked.
        (store.directory / "agents" / "c.pub").write_text("{")
        other.revoke("a")
        assert until(lambda: rig.gate.names() == [B])
        assert until(lambda: rig.here() == [])
        # A store that others may write is not believed, until it is put in order.
        store.directory.chmod(0o755)
        (store.directory / "agents" / "b.pub").unlink()
        rig.join(B)
        assert until(lambda: "the former list of agents stands" in caplog.text)
        assert rig.here() == ["b"]
        store.directory.chmod(0o700)
        assert until(lambda: rig.here() == [])
    finally:
        rig.close()


def test_keys_are_seen_on_encrypted_links_only() -> None:
    context: Context = zmq.Context()
    pair = new_key_pair()
    gate = Gate(context, new_key_pair(), {A: pair.public})
    seen = []
    for server, client in (
        (gate.curve, ClientCurve(gate.curve.own.public, pair)),
        (None, None),
    ):
        assert server is None or isinstance(server, ServerCurve)
        router = context.socket(zmq.ROUTER)
        set_options(router, CONTROL, server)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        dialler = Dialler(port, client)
        dialler.socket.send(b"x")
        assert router.poll(WAIT_MS)
        seen.append([peer_key(f) for f in router.recv_multipart(copy=False)])
        dialler.close()
        router.close(linger=0)
    assert seen == [[pair.public] * 2, [""] * 2]
    gate.close()
    context.term()
