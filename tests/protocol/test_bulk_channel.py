"""The bulk channel over real sockets: whole models, cancelled pulls, broken links, junk."""

import threading

import pytest
import zmq

from agent import pull as pull_rules
from agent.bulk import BulkServer, Cancelled, pull_objects
from agent.messages import BulkReply, BulkRequest, Bye, decode_bulk_message, encode
from agent.pull import Wanted
from kernels.errors import ModelError, RemoteError
from tests.protocol.agent_harness import make_model
from weights.manifest import content_hash

RUN = 77


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    with make_model(tmp_path_factory.mktemp("bulk") / "model", "f32") as directory:
        yield directory


@pytest.fixture
def context():
    with zmq.Context() as context:
        yield context
        context.destroy(linger=0)


@pytest.fixture
def server(directory, context):
    server = BulkServer(context, "tcp://127.0.0.1:*", RUN, directory)
    yield server
    server.close()


def everything(directory):
    manifest = directory.manifest
    n_bytes = len(manifest.encode())
    atoms = [
        Wanted(name, s.stride_bytes, f"{s.kind} {i}")
        for s in manifest.sections
        for i, name in enumerate(s.hashes)
    ]
    return [Wanted(manifest.model_id, n_bytes, "the manifest"), *atoms]


def pull(context, port, wanted, run_id=RUN, on_take=None, cancelled=None):
    got, steps = {}, []

    def take(want, data):
        got[want.object_id] = bytes(data)
        if on_take:
            on_take(len(got))

    pull_objects(
        context, f"tcp://127.0.0.1:{port}", run_id, wanted, take, steps.append,
        cancelled or threading.Event(),
    )  # fmt: skip
    assert steps == sorted(steps)
    assert steps[-1] == sum(w.n_bytes for w in wanted)
    return got


def test_a_whole_model_arrives(directory, context, server):
    wanted = everything(directory)
    got = pull(context, server.port, wanted)
    assert got.keys() == {w.object_id for w in wanted}
    assert all(content_hash(data) == name for name, data in got.items())
    server.close()
    # A request that finds no room on the link makes all open ones go out again, now and then.
    n_bytes = sum(w.n_bytes for w in wanted)
    assert n_bytes <= server.n_sent_bytes < 2 * n_bytes
    assert server.n_dropped == 0


def test_a_cancelled_pull_ends(directory, context, server):
    cancelled = threading.Event()
    with pytest.raises(Cancelled):
        pull(context, server.port, everything(directory),
             on_take=lambda n: n == 3 and cancelled.set(), cancelled=cancelled)  # fmt: skip


def test_a_pull_outlives_its_server(directory, context, monkeypatch):
    monkeypatch.setattr(pull_rules, "RESEND_S", 0.2)
    # Ending a context is what frees a port for certain.
    old_context = zmq.Context()
    first = BulkServer(old_context, "tcp://127.0.0.1:*", RUN, directory)
    second = []

    def restart(n_objects):
        if n_objects == 4:
            first.close()
            old_context.term()
            second.append(BulkServer(context, f"tcp://127.0.0.1:{first.port}", RUN, directory))

    wanted = everything(directory)
    got = pull(context, first.port, wanted, on_take=restart)
    assert len(got) == len({w.object_id for w in wanted})
    assert all(content_hash(data) == name for name, data in got.items())
    second[0].close()


def test_other_runs_and_unknown_objects_are_refused(directory, context, server):
    with pytest.raises(RemoteError, match="another run"):
        pull(context, server.port, everything(directory), run_id=RUN + 1)
    with pytest.raises(ModelError, match="cannot send a secret"):
        pull(context, server.port, [Wanted("/etc/passwd", 10, "a secret")])


def test_silence_has_a_deadline(context, monkeypatch):
    monkeypatch.setattr(pull_rules, "SILENCE_S", 0.3)
    with context.socket(zmq.ROUTER) as deaf:
        port = deaf.bind_to_random_port("tcp://127.0.0.1")
        with pytest.raises(RemoteError, match="was silent"):
            pull(context, port, [Wanted("0" * 32, 10, "x")])


def test_junk_is_dropped_and_counted(directory, context, server):
    with context.socket(zmq.DEALER) as peer:
        peer.setsockopt(zmq.RCVTIMEO, 10_000)
        peer.connect(f"tcp://127.0.0.1:{server.port}")
        reply = BulkReply("x", 0, 1, 0)
        for parts in ([b""], [b"junk"], [b"a", b"b"], [encode(Bye())], [encode(reply)]):
            peer.send_multipart(parts)
        name = directory.manifest.model_id
        peer.send(encode(BulkRequest(RUN, name, 0, 8)))
        header, data = peer.recv_multipart()
        assert decode_bulk_message(header).object_id == name
        assert data == directory.manifest.encode()[:8]
    server.close()
    assert server.n_dropped == 5
