"""Agents without a model directory: they pull what they are granted, and nobody else's part."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from agent.bulk import BulkServer
from agent.messages import BulkReply, BulkRequest, decode_bulk_message, encode
from agent.pull import Wanted
from agent.puller import BulkSource, Sink, pull_objects
from coordinator.cluster import Cluster
from tests.system.processes import AGENT, Command, free_port, wait_until
from tools import cli

NAMES = ["pi-1", "pi-2"]


class Board:
    """A coordinator's address and two agents with empty caches."""

    def __init__(self, root: Path) -> None:
        self.root, self.port = root, free_port()
        self.endpoint = f"tcp://127.0.0.1:{self.port}"
        self.agents = {name: self._agent(name) for name in NAMES}

    def _agent(self, name: str) -> Command:
        cache: list[str | Path] = ["--cache-dir", self.root / name, "--cache-limit", "1G"]
        words = ["--coordinator", self.endpoint, "--name", name, "--threads", "1", *cache]
        return Command(*words, program=AGENT)

    def close(self) -> None:
        for agent in self.agents.values():
            agent.close()


@pytest.fixture
def boards(tmp_path: Path) -> Iterator[Board]:
    boards = Board(tmp_path)
    yield boards
    boards.close()


def granted(cluster: Cluster, port: int, token: bytes) -> set[str]:
    """Return the objects that the bulk channel sends to whoever shows that token."""
    bulk: BulkServer = cluster._channels.bulk
    found = set()
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, 10_000)
        socket.connect(f"tcp://127.0.0.1:{port}")
        for name in bulk.object_ids:
            socket.send(encode(BulkRequest(cluster.run_id, name, 0, 1, token)))
            reply = decode_bulk_message(socket.recv_multipart()[0])
            assert isinstance(reply, BulkReply)
            assert reply.error in ("", "no grant")
            if not reply.error:
                found.add(name)
    return found


def test_agents_pull_their_own_part_and_nothing_else(
    boards: Board, endless: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bulk_port = boards.port + 2
    with Cluster(endless, bind=boards.endpoint, min_agents=2, place="spread") as cluster:
        words = [token.id for token in cluster.generate(prompt_ids=[1], max_tokens=10)]
        assert len(words) == 10
        links = cluster.control.link_secrets(NAMES)
        parts = [granted(cluster, bulk_port, link.bulk_token) for link in links]
        everything = set(cluster._channels.bulk.object_ids)
        # The manifest and norms are common; heads, columns and words belong to one of the two.
        assert all(cluster.directory.model_id in part for part in parts)
        assert all(part < everything for part in parts)
        assert len(parts[0] & parts[1]) < 12
        assert granted(cluster, bulk_port, b"") == set()
        assert granted(cluster, bulk_port, bytes(16)) == set()
        # What an agent took is in its cache.
        assert cli.main(["cache", "--cache-dir", str(boards.root / "pi-1"), "ls"]) == 0
        assert "now" in capsys.readouterr().out
        # The grants of an agent end with its link, those of all with the plan.
        boards.agents["pi-2"].popen.kill()
        gone = links[1].bulk_token
        assert wait_until(lambda: granted(cluster, bulk_port, gone) == set())
        assert granted(cluster, bulk_port, links[0].bulk_token) == parts[0]
        cluster.drop_plan()
        assert granted(cluster, bulk_port, links[0].bulk_token) == set()


class Counting(Sink):
    def take(self, wanted: Wanted, data: bytearray) -> None:
        self.label = wanted.label


def test_a_pull_beside_a_text_is_narrow_and_harms_neither(boards: Board, endless: Path) -> None:
    with Cluster(endless, bind=boards.endpoint, min_agents=2, place="spread") as cluster:
        alone = [token.id for token in cluster.generate(prompt_ids=[1], max_tokens=60)]
        (link, _) = cluster.control.link_secrets(NAMES)
        atom = cluster.directory.manifest.atom("vocab", -1, 0)
        name = next(n for n in granted(cluster, boards.port + 2, link.bulk_token) if n == atom.hash)
        wanted = [Wanted(name, atom.n_bytes, "vocab 0")]
        endpoint = f"tcp://127.0.0.1:{boards.port + 2}"
        source = BulkSource(endpoint, cluster.run_id, link.bulk_token)
        sink = Counting()
        with zmq.Context() as context:
            told = context, source, wanted, sink, lambda n_bytes: None, threading.Event()
            thread = threading.Thread(target=pull_objects, args=told)
            text = cluster.generate(prompt_ids=[1], max_tokens=60)
            beside = [next(text).id]
            assert cluster.installer.is_busy
            thread.start()
            beside += [token.id for token in text]
            thread.join(30.0)
        assert sink.label == "vocab 0"
        assert beside == alone
        assert wait_until(lambda: not cluster.installer.is_busy)
