"""What is dropped and refused on each channel is counted where `headwise status` finds it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from agent.curve import ClientCurve, KeyPair, new_key_pair
from agent.messages import BulkRequest, encode
from agent.sockets import BULK, CONTROL, SocketKind, set_options
from coordinator.cluster import Cluster
from coordinator.keys import KeyStore
from tests.system.processes import free_port, wait_until

NONE = {
    "n_frames_dropped": 0, "n_messages_dropped": 0, "n_pulls_dropped": 0, "n_pulls_refused": 0,
    "n_keys_refused": 0,
}  # fmt: skip


class Stranger:
    """Somebody who dials a channel with a key and says one thing."""

    def __init__(self, port: int, kind: SocketKind, curve: ClientCurve, words: bytes) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = socket = self._context.socket(zmq.DEALER)
        set_options(socket, kind, curve)
        # Queued, whether the link comes up or not.
        socket.setsockopt(zmq.IMMEDIATE, 0)
        socket.connect(f"tcp://127.0.0.1:{port}")
        socket.send(words)

    def close(self) -> None:
        self._socket.close(linger=0)
        self._context.term()


@pytest.fixture
def pair() -> KeyPair:
    return new_key_pair()


@pytest.fixture
def cluster(tmp_path: Path, endless: Path, pair: KeyPair) -> Iterator[Cluster]:
    store = KeyStore(tmp_path / "keys")
    store.init()
    store.add("pi-1", pair.public)
    bind = f"tcp://127.0.0.1:{free_port()}"
    with Cluster(endless, bind=bind, min_agents=0, keys=store.directory) as cluster:
        yield cluster


def test_each_channel_has_its_counters(cluster: Cluster, pair: KeyPair, tmp_path: Path) -> None:
    server = KeyStore(tmp_path / "keys").pair().public
    port = cluster.control_port
    pull = encode(BulkRequest(cluster.run_id, cluster.directory.model_id, 0, 10))
    assert cluster.counters == NONE
    said: list[tuple[str, int, SocketKind, KeyPair, bytes]] = [
        ("n_messages_dropped", port, CONTROL, pair, b"junk"),
        ("n_pulls_dropped", port + 2, BULK, pair, b"junk"),
        ("n_pulls_refused", port + 2, BULK, pair, pull),
        ("n_keys_refused", port, CONTROL, new_key_pair(), b"junk"),
    ]
    counted = dict(NONE)
    for name, at, kind, own, words in said:
        stranger = Stranger(at, kind, ClientCurve(server, own), words)
        try:
            assert wait_until(lambda: cluster.counters[name] > 0), name  # noqa: B023
        finally:
            stranger.close()
        counted[name] = cluster.counters[name]
        assert cluster.counters == counted
