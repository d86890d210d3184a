"""Agents with join files and a coordinator with a key store, as real processes."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.bulk import Library
from agent.curve import new_key_pair
from agent.ids import AgentName
from agent.join_file import encode_join_info, read_join_file
from agent.messages import BulkRequest
from agent.private_files import write_new
from coordinator.cluster import Cluster
from coordinator.keys import KeyStore
from coordinator.membership import AgentState
from kernels.errors import AgentLostError
from tests.system.processes import AGENT, Command, free_port, wait_until
from tools import cli

READY, LOST = AgentState.READY, AgentState.LOST


class Shelf:
    """A key store, a port, and agents with join files for it."""

    def __init__(self, root: Path, models_root: Path) -> None:
        self.root, self._models_root = root, models_root
        self.store = KeyStore(root / "keys")
        self.port = free_port()
        self._agents: list[Command] = []
        assert cli.main(["keys", "init", "--keys", str(self.store.directory)]) == 0

    def join_file(self, name: str, *options: str) -> Path:
        path = self.root / f"{name}{len(list(self.root.iterdir()))}.join"
        words = ["--address", f"tcp://localhost:{self.port}", "--keys", str(self.store.directory)]
        assert cli.main(["keys", "add", name, "-o", str(path), *words, *options]) == 0
        return path

    def agent(self, *words: str | Path) -> Command:
        return self._start(*words, "--model-dir", self._models_root)

    def puller(self, join: Path) -> Command:
        """Start an agent that has no weights yet."""
        return self._start("--join", join, "--cache-dir", join.with_suffix(".cache"))

    def _start(self, *words: str | Path) -> Command:
        agent = Command(*words, "--threads", "1", program=AGENT)
        self._agents.append(agent)
        return agent

    def cluster(self, model: Path, n_agents: int) -> Cluster:
        # Beyond loopback, which is possible with keys only.
        bind = f"tcp://0.0.0.0:{self.port}"
        keys = self.store.directory
        return Cluster(model, bind=bind, min_agents=n_agents, keys=keys, place="spread")

    def close(self) -> None:
        for agent in self._agents:
            agent.close()


@pytest.fixture
def shelf(tmp_path: Path, models_root: Path) -> Iterator[Shelf]:
    shelf = Shelf(tmp_path, models_root)
    yield shelf
    shelf.close()


def test_a_key_revoked_mid_stream_ends_its_links_and_the_text_goes_on(
    shelf: Shelf, endless: Path
) -> None:
    files = [shelf.join_file(name) for name in ("pi-1", "pi-2")]
    first, second = (shelf.agent("--join", file) for file in files)
    with shelf.cluster(endless, 2) as cluster:
        assert cluster.agent_names() == ["pi-1", "pi-2"]
        text = iter(cluster.generate(prompt_ids=[1], max_tokens=8000))
        for _ in range(20):
            next(text)
        shelf.store.revoke("pi-2")
        began_s = time.monotonic()
        while cluster.agent_names() != ["pi-1"]:
            next(text)
            assert time.monotonic() - began_s < 5.0
        lost = {agent.name: agent.reason for agent in cluster.control.agents()}
        assert "its key was revoked" in lost[AgentName("pi-2")]
        next(text)
        text.close()
        assert second.wait() == 1
        assert "refused this agent: its key was revoked or replaced" in second.stderr
        # The rest of the cluster goes on, and what was revoked stays out.
        again = shelf.agent("--join", files[1])
        again.until("stderr", "it does not know this agent's key")
        assert list(cluster.weights_bytes()) == ["pi-1"]
        assert len(list(cluster.generate(prompt_ids=[1], max_tokens=5))) == 5
    assert first.popen.poll() is None


class Revoking:
    """Notes whose requests for weights are served, and has one agent's key revoked midway.

    It stands in the bulk thread's way while it waits, so that no pull can end meanwhile.
    """

    def __init__(self, victim: bytes, revoke: Callable[[], bool]) -> None:
        self._victim, self._revoke = victim, revoke
        self.served: Counter[bytes] = Counter()
        self.served_after: Counter[bytes] = Counter()
        self.revoked = False

    def on_request(self, token: bytes) -> None:
        (self.served_after if self.revoked else self.served)[token] += 1
        if not self.revoked and self.served[self._victim] == 3:
            assert self._revoke()
            self.revoked = True


def test_a_key_revoked_while_its_agent_pulls_ends_that_pull_alone(
    shelf: Shelf, endless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [shelf.join_file(name) for name in ("pi-1", "pi-2")]
    _, second = (shelf.puller(file) for file in files)
    with shelf.cluster(endless, 0) as cluster:
        control = cluster.control
        control.wait_agents(2, 30.0)
        tokens = [
            s.bulk_token for s in control.link_secrets([AgentName("pi-1"), AgentName("pi-2")])
        ]

        def revoke() -> bool:
            shelf.store.revoke("pi-2")
            return wait_until(lambda: cluster.agent_names() == ["pi-1"], 5.0)

        revoking, answer = Revoking(tokens[1], revoke), Library.answer

        def noted(library: Library, request: BulkRequest, window_bytes: int) -> Any:
            revoking.on_request(request.token)
            return answer(library, request, window_bytes)

        monkeypatch.setattr(Library, "answer", noted)
        with pytest.raises(AgentLostError, match="'pi-2' was lost while loading: its key was rev"):
            cluster.install(cluster.make_plan())
        assert second.wait(5.0) == 1
        assert "refused this agent: its key was revoked or replaced" in second.stderr
        # The other one's part of that plan arrives whole.
        assert wait_until(lambda: [a.state for a in control.agents()] == [READY, LOST], 30.0)
        assert revoking.served_after.keys() <= {tokens[0]}
        assert revoking.served.keys() | revoking.served_after.keys() == set(tokens)
        cluster.install(cluster.make_plan())
        assert len(list(cluster.generate(prompt_ids=[1], max_tokens=5))) == 5


@pytest.mark.slow
def test_links_that_cannot_be_are_explained_within_10_s(shelf: Shelf, endless: Path) -> None:
    good = shelf.join_file("pi-1")
    info = read_join_file(good)
    strange = shelf.root / "strange.join"
    other = new_key_pair()
    info_of_other = type(info)(info.name, info.coordinator, other.public, info.public, info.secret)
    write_new(strange, encode_join_info(info_of_other))
    old = shelf.join_file("pi-2")
    new = shelf.join_file("pi-2", "--rotate")
    agents = {
        "it does not know this agent's key, or no longer": shelf.agent("--join", old),
        "most likely its key is not the one in the join file": shelf.agent("--join", strange),
        "it wants keys; start this agent with --join": shelf.agent(
            "--coordinator", f"tcp://127.0.0.1:{shelf.port}", "--name", "pi-3"
        ),
    }
    right = shelf.agent("--join", good), shelf.agent("--join", new)
    with shelf.cluster(endless, 2) as cluster:
        for text, agent in agents.items():
            agent.until("stderr", re.escape(text))
            # Said once, and tried again with a new socket for as long as it takes.
            assert agent.stderr.count("cannot join the coordinator") == 1
            assert agent.popen.poll() is None
        assert cluster.agent_names() == ["pi-1", "pi-2"]
        # What it lacked is given: it needs no new start.
        shelf.store.revoke("pi-2")
        assert right[1].wait() == 1
        shelf.store.add("pi-2", read_join_file(old).public)
        cluster.control.wait_agents(2, 15.0)
        assert cluster.agent_names() == ["pi-1", "pi-2"]


def test_a_join_file_for_a_coordinator_without_keys(shelf: Shelf, endless: Path) -> None:
    bind, keys = f"tcp://127.0.0.1:{shelf.port}", shelf.store.directory
    with Cluster(endless, bind=bind, insecure=True, keys=keys, min_agents=0) as cluster:
        agent = shelf.agent("--join", shelf.join_file("pi-1"))
        agent.until("stderr", "what listens there speaks without keys")
        assert cluster.agent_names() == []


def test_secrets_of_local_agents_are_nowhere_to_be_read(endless: Path) -> None:
    with Cluster(endless, local=2) as cluster:
        gate = cluster._channels.gate
        assert gate is not None
        known = [gate.curve.own.public, *gate._keys.values()]
        for pid in cluster.local_pids.values():
            for place in ("cmdline", "environ"):
                data = Path(f"/proc/{pid}/{place}").read_bytes()
                assert not [key for key in known if key.encode() in data]
                assert b'"secret"' not in data
        assert gate.names() == ["local-1", "local-2"]
        assert len(list(cluster.generate(prompt_ids=[1], max_tokens=5))) == 5
