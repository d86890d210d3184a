"""A pull that is broken off again and again, in every way, loses one window each time at most."""

import multiprocessing
import os
import random
import threading

import numpy as np
import pytest
import zmq

from agent.bulk import MAX_WAITING_CHUNKS, BulkServer
from agent.cache import CacheEntry
from tests.protocol.agent_harness import DEADLINE_S, ROOT, make_model
from tests.protocol.pull_client import CHUNK_BYTES, DISK_FULL, pull_model, source_of
from tests.protocol.store_harness import all_atoms

RUN, TOKEN = 5, b"a link"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with make_model(tmp_path_factory.mktemp("interrupted") / "model", "f32") as directory:
        yield directory


@pytest.fixture(scope="module")
def processes():
    """Processes forked from one that has imported everything, but has no threads."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.protocol.pull_client"])
    with pytest.MonkeyPatch.context() as patch:
        # The process to fork from does not get this one's sys.path.
        patch.setenv("PYTHONPATH", str(ROOT))
        first = processes.Process(target=len, args=("",))
        first.start()
        first.join(DEADLINE_S)
        first.close()
    return processes


class Holder:
    """A server that can be killed and started again, and that calls for a break when told to."""

    def __init__(self, model):
        self.model = model
        self.port = "*"
        self.n_sent_bytes = 0
        self.n_until_break = 0
        self.broken, self.go = threading.Event(), threading.Event()
        self.start()

    def start(self):
        # Ending a context is what frees a port for certain.
        self.context = zmq.Context()
        endpoint = f"tcp://127.0.0.1:{self.port}"
        self.server = BulkServer(self.context, endpoint, RUN, self.model, self.on_request)
        self.server.grant(TOKEN, self.server.object_ids, 600.0)
        self.port = self.server.port

    def kill(self):
        self.go.set()
        self.server.close()
        self.context.term()
        self.n_sent_bytes += self.server.n_sent_bytes

    def break_after(self, n_requests):
        self.broken.clear()
        self.go.clear()
        self.n_until_break = n_requests

    def on_request(self):
        self.n_until_break -= 1
        if self.n_until_break == 0:
            self.broken.set()
            # However slow the test's thread is, the pull shall not be done before it is broken.
            self.go.wait(DEADLINE_S)
        return False


class Client:
    """The present client process; starts the next one when it is gone."""

    def __init__(self, processes, holder, root):
        self.processes, self.holder, self.root = processes, holder, root
        self.process = None

    def start(self, file_limit_bytes=0):
        manifest = self.holder.model.manifest
        source = source_of(self.holder.port, RUN, TOKEN)
        told = source, self.root, manifest.model_id, len(manifest.encode()), file_limit_bytes
        self.process = self.processes.Process(target=pull_model, args=told, daemon=True)
        self.process.start()

    def end(self, kill=False):
        if kill:
            self.process.kill()
        self.process.join(DEADLINE_S)
        code = self.process.exitcode
        self.process.close()
        return code


def interrupt(kind, client, holder, rng):
    """Let some requests be served and then break the pull off in one way."""
    if kind == "disk":
        client.end(kill=True)
        here_bytes = holder.n_sent_bytes + holder.server.n_sent_bytes
        client.start(file_limit_bytes=here_bytes + rng.randint(1, 16 * CHUNK_BYTES))
        assert client.end() == DISK_FULL
        client.start()
        return
    holder.break_after(rng.randint(1, 8))
    assert holder.broken.wait(DEADLINE_S), f"the client ended: {client.process.exitcode}"
    if kind == "server":
        holder.kill()
        holder.start()
    else:
        client.end(kill=True)
        holder.go.set()
        client.start()


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))]
)
def test_a_pull_goes_on_after_each_of_many_interruptions(model, processes, tmp_path, seed):
    rng = random.Random(seed)
    holder = Holder(model)
    client = Client(processes, holder, tmp_path)
    client.start()
    kinds = ["server"] * 8 + ["client"] * 10 + ["disk"] * 2
    rng.shuffle(kinds)
    try:
        for kind in kinds:
            interrupt(kind, client, holder, rng)
        assert client.end() == 0
    finally:
        holder.kill()
    atoms = all_atoms(model.manifest)
    entry = CacheEntry(tmp_path, model.model_id)
    assert entry.read_manifest().model_id == model.model_id
    assert entry.present(atoms) == {a.offset_bytes for a in atoms}
    found = np.fromfile(entry.directory / "weights.bin", np.uint8)
    for atom in atoms:
        place = slice(atom.offset_bytes, atom.offset_bytes + atom.n_bytes)
        assert np.array_equal(found[place], model.atom_bytes(atom))
    assert os.listdir(tmp_path / "models") == [model.model_id]
    assert sorted(os.listdir(entry.directory)) == [
        "chunks", "journal", "lock", "manifest.json", "users", "weights.bin",
    ]  # fmt: skip
    once_bytes = sum({a.hash: a.n_bytes for a in atoms}.values())
    # The manifest is an object that a new process asks for as a whole.
    once_bytes += len(model.manifest.encode())
    window_bytes = MAX_WAITING_CHUNKS * CHUNK_BYTES
    assert once_bytes <= holder.n_sent_bytes <= once_bytes + len(kinds) * window_bytes
