"""A key that is revoked while its agent pulls: nothing more is served to it, others pull on."""

import threading
from collections.abc import Iterator

import pytest
import zmq

from agent.bulk import BulkServer
from agent.ids import AgentName
from agent.messages import BulkReply, BulkRequest, Welcome, decode_bulk_message, encode
from agent.pull import Wanted
from agent.puller import BulkSource, Sink, pull_objects
from agent.sockets import BULK, SocketKind
from agent.window import CREDITS
from coordinator import control as control_module
from coordinator.identity import LinkSecrets
from kernels.errors import RemoteError
from tests.protocol.agent_harness import DEADLINE_S, make_model
from tests.protocol.test_gate import RUN, WAIT_MS, A, B, Rig, until
from weights.directory import ModelDirectory
from weights.manifest import content_hash

N_BEFORE = 3


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelDirectory]:
    with make_model(tmp_path_factory.mktemp("revoked") / "model", "f32") as directory:
        yield directory


class PullRig(Rig):
    """A rig with weights on its bulk channel, all granted to whoever has joined."""

    def __init__(self, directory: ModelDirectory) -> None:
        super().__init__()
        self.bulk = BulkServer(
            self.context, "tcp://127.0.0.1:*", RUN, directory, curve=self.gate.curve
        )
        self.wanted = [
            Wanted(name, section.stride_bytes, f"{section.kind} {i}")
            for section in directory.manifest.sections
            for i, name in enumerate(section.hashes)
        ]

    def _on_end(self, ended: LinkSecrets) -> None:
        super()._on_end(ended)
        self.bulk.end_grant(ended.bulk_token)

    def port_of(self, kind: SocketKind) -> int:
        return self.bulk.port if kind is BULK else super().port_of(kind)

    def joined(self, name: AgentName) -> Welcome:
        _, welcome = self.join(name)
        objects = [w.object_id for w in self.wanted]
        self.bulk.grant(welcome.bulk_token, objects, 600.0, self.pairs[name].public)
        return welcome

    def close(self) -> None:
        self.bulk.close()
        super().close()


@pytest.fixture
def rig(directory: ModelDirectory, monkeypatch: pytest.MonkeyPatch) -> Iterator[PullRig]:
    # These agents do not answer when the run ends: do not wait for it.
    monkeypatch.setattr(control_module, "FAREWELL_S", 0.01)
    rig = PullRig(directory)
    yield rig
    rig.close()


class Puller(Sink):
    """Pulls everything in a thread of its own, and rests after its first objects.

    Attributes:
        rests: set while it waits for `go`.
    """

    def __init__(self, rig: PullRig, name: AgentName, token: bytes) -> None:
        self.objects: dict[str, bytes] = {}
        self.error: RemoteError | None = None
        self.rests, self.go = threading.Event(), threading.Event()
        endpoint = f"tcp://127.0.0.1:{rig.bulk.port}"
        self._source = BulkSource(endpoint, RUN, token, rig.curve(rig.pairs[name]))
        self._wanted = rig.wanted
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def take(self, wanted: Wanted, data: bytearray) -> None:
        self.objects[wanted.object_id] = bytes(data)
        if len(self.objects) == N_BEFORE:
            self.rests.set()
            assert self.go.wait(DEADLINE_S)

    def finish(self) -> None:
        """Let it go on, and wait for its end."""
        self.go.set()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with zmq.Context() as context:
            try:
                pull_objects(
                    context, self._source, self._wanted, self, lambda _: None, threading.Event()
                )
            except RemoteError as e:
                self.error = e


def test_a_key_revoked_while_it_pulls_gets_nothing_more_and_others_pull_on(rig: PullRig) -> None:
    tokens = {name: rig.joined(name).bulk_token for name in (A, B)}
    pullers = {name: Puller(rig, name, token) for name, token in tokens.items()}
    everything = {w.object_id for w in rig.wanted}
    # What is asked for before the key goes may be on its way.
    assert len(everything) > N_BEFORE + CREDITS
    for puller in pullers.values():
        assert puller.rests.wait(DEADLINE_S)
    rig.gate.revoke(A)
    assert until(lambda: [ended.name for ended in rig.ended] == [A])
    for puller in pullers.values():
        puller.finish()
    assert "does not grant" in str(pullers[A].error)
    assert len(pullers[A].objects) <= N_BEFORE + CREDITS
    assert pullers[B].error is None
    assert pullers[B].objects.keys() == everything
    assert all(content_hash(data) == name for name, data in pullers[B].objects.items())


def ask(rig: PullRig, socket: zmq.Socket[bytes], token: bytes) -> bytes:
    """Ask for the first bytes of an object; return what came, empty if that was a refusal."""
    socket.send(encode(BulkRequest(RUN, rig.wanted[0].object_id, 0, 8, token)))
    assert socket.poll(WAIT_MS)
    header, data = socket.recv_multipart()
    reply = decode_bulk_message(header)
    assert isinstance(reply, BulkReply)
    return data


def test_links_of_a_revoked_key_are_of_no_more_use(rig: PullRig) -> None:
    tokens = {name: rig.joined(name).bulk_token for name in (A, B)}
    links = {name: rig.dial(rig.pairs[name], kind=BULK) for name in (A, B)}
    for name, link in links.items():
        assert link.socket.poll(WAIT_MS, zmq.POLLOUT)
        assert len(ask(rig, link.socket, tokens[name])) == 8
    rig.gate.revoke(A)
    assert until(lambda: [ended.name for ended in rig.ended] == [A])
    n_bytes = rig.bulk.n_sent_bytes
    # Neither by its own token nor by one that another agent told it.
    for token in tokens.values():
        assert ask(rig, links[A].socket, token) == b""
    assert rig.bulk.n_sent_bytes == n_bytes
    assert not rig.dial(rig.pairs[A], kind=BULK).connects()
    assert len(ask(rig, links[B].socket, tokens[B])) == 8
