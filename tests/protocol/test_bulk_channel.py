"""The bulk channel over real sockets: whole models, cancelled pulls, broken links, junk."""

import threading
import time

import pytest
import zmq

from agent import bulk, puller
from agent import pull as pull_rules
from agent.bulk import MAX_WAITING_CHUNKS, BulkServer, Library
from agent.goodput import Goodput
from agent.messages import BulkReply, BulkRequest, Bye, decode_bulk_message, encode
from agent.probe import probe_link
from agent.pull import Wanted
from agent.puller import BulkSource, Cancelled, Sink, pull_objects
from agent.window import NARROW_BYTES
from kernels.errors import ModelError, RemoteError
from tests.protocol.agent_harness import make_model
from weights.manifest import content_hash

RUN, TOKEN = 77, b"a link"
PATH = "/etc/passwd"


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
    server = serve(directory, context)
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


def serve(directory, context, port="*", **options):
    server = BulkServer(context, f"tcp://127.0.0.1:{port}", RUN, directory, **options)
    server.grant(TOKEN, server.object_ids, 600.0)
    return server


class Taken(Sink):
    """Keeps objects in a dict."""

    def __init__(self, on_take=None):
        self.objects = {}
        self.on_take = on_take

    def take(self, wanted, data):
        self.objects[wanted.object_id] = bytes(data)
        if self.on_take:
            self.on_take(len(self.objects))


def pull(context, port, wanted, run_id=RUN, on_take=None, cancelled=None, token=TOKEN):
    sink, steps = Taken(on_take), []
    source = BulkSource(f"tcp://127.0.0.1:{port}", run_id, token)
    pull_objects(context, source, wanted, sink, steps.append, cancelled or threading.Event())
    assert steps == sorted(steps)
    assert steps[-1] == sum(w.n_bytes for w in wanted)
    return sink.objects


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
    first = serve(directory, old_context)
    second = []

    def restart(n_objects):
        if n_objects == 4:
            first.close()
            old_context.term()
            second.append(serve(directory, context, first.port))

    wanted = everything(directory)
    got = pull(context, first.port, wanted, on_take=restart)
    assert len(got) == len({w.object_id for w in wanted})
    assert all(content_hash(data) == name for name, data in got.items())
    second[0].close()


def test_other_runs_and_unknown_objects_are_refused(directory, context, server):
    server.grant(TOKEN, [*server.object_ids, PATH], 600.0)
    with pytest.raises(RemoteError, match="another run"):
        pull(context, server.port, everything(directory), run_id=RUN + 1)
    with pytest.raises(ModelError, match="cannot send a secret"):
        pull(context, server.port, [Wanted(PATH, 10, "a secret")])


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
        peer.send(encode(BulkRequest(RUN, name, 0, 8, TOKEN)))
        header, data = peer.recv_multipart()
        assert decode_bulk_message(header).object_id == name
        assert data == directory.manifest.encode()[:8]
    server.close()
    assert server.n_dropped == 5


def test_only_granted_objects_are_served(directory, context):
    server = BulkServer(context, "tcp://127.0.0.1:*", RUN, directory)
    manifest, *atoms = everything(directory)
    steps = [
        ("nothing yet", lambda: None, TOKEN, atoms[0], False),
        ("granted", lambda: server.grant(TOKEN, [atoms[0].object_id], 60.0), TOKEN, atoms[0], True),
        ("another object", lambda: None, TOKEN, atoms[1], False),
        ("the manifest", lambda: None, TOKEN, manifest, False),
        ("another link", lambda: None, b"another", atoms[0], False),
        ("no token", lambda: None, b"", atoms[0], False),
        ("another plan", lambda: server.grant(TOKEN, [atoms[1].object_id], 60.0), TOKEN, atoms[0],
         False),
        ("of that plan", lambda: None, TOKEN, atoms[1], True),
        ("ended", lambda: server.end_grant(TOKEN), TOKEN, atoms[1], False),
        ("too late", lambda: server.grant(TOKEN, [atoms[1].object_id], 0.0), TOKEN, atoms[1],
         False),
    ]  # fmt: skip
    n_refused = 0
    for why, happens, token, wanted, served in steps:
        happens()
        if served:
            assert pull(context, server.port, [wanted], token=token).keys() == {wanted.object_id}
        else:
            with pytest.raises(RemoteError, match="does not grant"):
                pull(context, server.port, [wanted], token=token)
            n_refused += 1
        assert server.n_refused == n_refused, why
    server.close()


def test_a_grant_that_ends_stops_a_pull_half_way(directory, context, server):
    wanted = everything(directory)
    with pytest.raises(RemoteError, match="does not grant"):
        pull(context, server.port, wanted, on_take=lambda n: n == 3 and server.end_grants())


def test_a_slow_reader_holds_up_one_window_and_nobody_else(directory, context, server):
    big = max(everything(directory), key=lambda w: w.n_bytes)
    n_requests, n_honest_bytes = 3000, 0
    with context.socket(zmq.DEALER) as slow:
        slow.setsockopt(zmq.LINGER, 0)
        slow.setsockopt(zmq.SNDHWM, 0)
        slow.setsockopt(zmq.RCVHWM, 1)
        slow.setsockopt(zmq.RCVBUF, 4096)
        slow.connect(f"tcp://127.0.0.1:{server.port}")
        for _ in range(n_requests):
            slow.send(encode(BulkRequest(RUN, big.object_id, 0, big.n_bytes, TOKEN)))
        deadline_s = time.monotonic() + 30.0
        while server.n_dropped == 0:
            assert time.monotonic() < deadline_s
            pull(context, server.port, [big])
            n_honest_bytes += big.n_bytes
    server.close()
    # What the kernel's own buffers take comes on top.
    kernel_bytes = 32 << 20
    most_bytes = MAX_WAITING_CHUNKS * big.n_bytes + kernel_bytes
    assert server.n_sent_bytes - n_honest_bytes < most_bytes < n_requests * big.n_bytes


def test_pulls_hold_back_while_a_request_runs(directory, context, monkeypatch):
    monkeypatch.setattr(bulk, "RECENT_S", 60.0)
    busy = threading.Event()
    server = serve(directory, context, is_busy=busy.is_set)
    big = max(everything(directory), key=lambda w: w.n_bytes)
    with context.socket(zmq.DEALER) as peer:
        peer.setsockopt(zmq.RCVTIMEO, 10_000)
        peer.connect(f"tcp://127.0.0.1:{server.port}")
        for hint_bytes in (0, NARROW_BYTES, 0):
            (busy.set if hint_bytes else busy.clear)()
            peer.send(encode(BulkRequest(RUN, big.object_id, 0, 8, TOKEN)))
            header, _ = peer.recv_multipart()
            assert decode_bulk_message(header).window_bytes == hint_bytes
        busy.set()
        for token, n_pulls in [(b"first", 1), (b"second", 2), (b"first", 2), (b"third", 3)]:
            server.grant(token, [big.object_id], 60.0)
            peer.send(encode(BulkRequest(RUN, big.object_id, 0, 8, token)))
            header, _ = peer.recv_multipart()
            assert decode_bulk_message(header).window_bytes == NARROW_BYTES // n_pulls
    assert pull(context, server.port, [big]).keys() == {big.object_id}
    server.close()


def test_a_link_that_stays_silent_is_dialled_anew(directory, context, monkeypatch):
    monkeypatch.setattr(pull_rules, "RESEND_S", 0.2)
    monkeypatch.setattr(puller, "RESEND_S", 0.2)
    (wanted, *_) = everything(directory)
    library = Library(RUN, directory)
    peers = set()

    def answer_the_second_peer(socket):
        while len(peers) < 2:
            route, data = socket.recv_multipart()
            peers.add(route)
        reply, blob = library.answer(decode_bulk_message(data))
        socket.send_multipart([route, encode(reply), blob])

    with context.socket(zmq.ROUTER) as deaf:
        deaf.setsockopt(zmq.RCVTIMEO, 10_000)
        port = deaf.bind_to_random_port("tcp://127.0.0.1")
        thread = threading.Thread(target=answer_the_second_peer, args=[deaf])
        thread.start()
        assert pull(context, port, [wanted]).keys() == {wanted.object_id}
        thread.join()


def probe(context, port, token=TOKEN, n_bytes=8 << 20):
    goodput = Goodput()
    probe_link(context, BulkSource(f"tcp://127.0.0.1:{port}", RUN, token), n_bytes, goodput)
    return goodput


def test_a_link_is_measured_by_whoever_was_told_to(context, server):
    refused = server.n_refused
    assert probe(context, server.port).n_windows == 0
    assert server.n_refused > refused
    server.grant_probe(TOKEN)
    measured = probe(context, server.port)
    assert measured.n_windows > 0
    assert measured.bytes_per_s > 1e6
    # Another link's grant, or one that has ended, is of no use.
    assert probe(context, server.port, b"another").n_windows == 0
    server.end_grant(TOKEN)
    assert probe(context, server.port).n_windows == 0


def test_a_probe_gives_way_to_a_request(context, directory):
    server = BulkServer(context, "tcp://127.0.0.1:*", RUN, directory, is_busy=lambda: True)
    try:
        server.grant_probe(TOKEN)
        assert probe(context, server.port).n_windows == 0
        server.close()
        assert server.n_sent_bytes <= 4 * (64 << 10)
    finally:
        server.close()


def test_pulls_that_keep_little_on_the_way_measure_nothing(context, server, directory):
    goodput, wanted = Goodput(), everything(directory)
    source = BulkSource(f"tcp://127.0.0.1:{server.port}", RUN, TOKEN)
    pull_objects(context, source, wanted, Taken(), lambda _: None, threading.Event(), goodput)
    assert max(w.n_bytes for w in wanted) <= 32 << 10
    assert goodput.bytes_per_s is None


def test_what_goes_wrong_with_one_message_ends_no_other(directory, context, server, monkeypatch):
    real = bulk.decode_bulk_message
    odd = [RuntimeError("as nobody foresaw")]
    monkeypatch.setattr(
        bulk, "decode_bulk_message", lambda data: fail(odd.pop()) if odd else real(data)
    )
    with context.socket(zmq.DEALER) as peer:
        peer.setsockopt(zmq.RCVTIMEO, 10_000)
        peer.connect(f"tcp://127.0.0.1:{server.port}")
        name = directory.manifest.model_id
        for _ in range(2):
            peer.send(encode(BulkRequest(RUN, name, 0, 8, TOKEN)))
        assert peer.recv_multipart()[1] == directory.manifest.encode()[:8]
    server.close()
    assert server.n_dropped == 1


def fail(error):
    raise error
