"""Rows on their way through the coordinator's bulk socket, with boards that dial it."""

import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from agent import bulk as bulk_module
from agent.bulk import BulkServer
from agent.ids import RunId
from agent.messages import BulkMessage, BulkReply, BulkRequest, decode_bulk_message, encode
from agent.migration_messages import MAX_ROWS_BYTES, Group, KvAsk, KvOffer, KvRows, Share
from agent.sockets import BULK, set_options
from agent.window import NARROW_BYTES
from coordinator.relay import Relay
from tests.protocol.agent_harness import make_model
from weights.directory import ModelDirectory

RUN, EPOCH = RunId(5), 9
TOKEN_BYTES = 64
GROUPS = tuple(Group(layer, 0) for layer in range(8))
SHARES = [Share(0, "a", "b", GROUPS)]
PEERS = [(b"ta", "a", ""), (b"tb", "b", "")]
WAIT_MS = 10_000


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelDirectory]:
    path: Path = tmp_path_factory.mktemp("relay") / "model"
    with make_model(path, "f32") as directory:
        yield directory


class End:
    """A board's bulk socket."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], port: int) -> None:
        self.socket = context.socket(zmq.DEALER)
        set_options(self.socket, BULK)
        self.socket.setsockopt(zmq.SNDTIMEO, WAIT_MS)
        self.socket.connect(f"tcp://127.0.0.1:{port}")

    def say(self, message: BulkMessage, *data: bytes) -> None:
        self.socket.send_multipart([encode(message), *data])

    def hears(self) -> tuple[BulkMessage, list[bytes]]:
        assert self.socket.poll(WAIT_MS), "nothing came"
        first, *data = self.socket.recv_multipart()
        return decode_bulk_message(first), data

    def hears_rows(self) -> tuple[KvRows, bytes]:
        rows, (data,) = self.hears()
        assert isinstance(rows, KvRows)
        return rows, data

    def hears_ask(self) -> KvAsk:
        ask, data = self.hears()
        assert isinstance(ask, KvAsk)
        assert not data
        return ask


class Rig:
    """A server with a relay, a source `a` and a target `b`."""

    def __init__(self, directory: ModelDirectory) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.busy = False
        self.relay = Relay(RUN)
        self.server = BulkServer(
            self.context, "tcp://127.0.0.1:*", RUN, directory, lambda: self.busy, relay=self.relay
        )
        self._ends: list[End] = []
        self.source, self.target = self.end(), self.end()

    def end(self) -> End:
        self._ends.append(End(self.context, self.server.port))
        return self._ends[-1]

    def begin(self) -> None:
        """Begin the migration, and see to it that the source's offer has been taken in."""
        self.server.begin_move(EPOCH, SHARES, TOKEN_BYTES, PEERS)
        self.offer(self.source)

    def offer(self, source: End) -> None:
        source.say(KvOffer(RUN, EPOCH, b"ta"))
        # What is answered on the same link was read after it.
        source.say(BulkRequest(RUN, "0" * 32, 0, 1))
        assert isinstance(source.hears()[0], BulkReply)

    def close(self) -> None:
        self.server.close()
        for end in self._ends:
            end.socket.close(linger=0)
        self.context.term()


@pytest.fixture
def rig(directory: ModelDirectory) -> Iterator[Rig]:
    rig = Rig(directory)
    yield rig
    rig.close()


def ask(number: int, n_groups: int = 2, n_tokens: int = 3, **changes: object) -> KvAsk:
    fields = {
        "run_id": RUN, "epoch": EPOCH, "number": number, "share": 0, "kv_id": 3, "first_group": 0,
        "n_groups": n_groups, "first": 0, "n_tokens": n_tokens, "token": b"tb",
    }  # fmt: skip
    return KvAsk(**(fields | changes))  # type: ignore[arg-type]


def answer(source: End) -> tuple[KvAsk, bytes]:
    """Answer one request with bytes of the size that was asked for."""
    asked = source.hears_ask()
    data = bytes([asked.first % 251]) * (asked.n_groups * asked.n_tokens * TOKEN_BYTES)
    source.say(KvRows(RUN, EPOCH, asked.number, zlib.crc32(data)), data)
    return asked, data


def dropped(rig: Rig, n: int) -> None:
    deadline_s = time.monotonic() + WAIT_MS / 1000
    while rig.server.n_dropped + rig.relay.n_dropped < n:
        assert time.monotonic() < deadline_s
        threading.Event().wait(0.005)


def test_rows_pass_from_source_to_target(rig: Rig) -> None:
    rig.begin()
    for number in (41, 42):
        rig.target.say(ask(number))
        asked, data = answer(rig.source)
        assert (asked.token, asked.n_groups, asked.n_tokens) == (b"", 2, 3)
        rows, got = rig.target.hears_rows()
        assert rows == KvRows(RUN, EPOCH, number, zlib.crc32(data))
        assert got == data
    assert rig.relay.n_relayed_bytes == 2 * 2 * 3 * TOKEN_BYTES
    assert rig.server.n_dropped == 0


def test_the_largest_request_passes_and_larger_rows_do_not(rig: Rig) -> None:
    rig.begin()
    n_tokens = MAX_ROWS_BYTES // TOKEN_BYTES // len(GROUPS)
    rig.target.say(ask(1, len(GROUPS), n_tokens))
    asked = rig.source.hears_ask()
    rig.source.say(KvRows(RUN, EPOCH, asked.number), bytes(MAX_ROWS_BYTES + 1))
    dropped(rig, 1)
    # The request is still open: the right answer is taken.
    rig.source.say(KvRows(RUN, EPOCH, asked.number), bytes(MAX_ROWS_BYTES))
    rows, data = rig.target.hears_rows()
    assert (rows.number, data) == (1, bytes(MAX_ROWS_BYTES))


def test_a_burst_of_requests_is_answered_to_the_last(rig: Rig) -> None:
    rig.begin()
    n_targets, n_open = 40, 4
    shares = [Share(n, "a", f"b{n}", GROUPS) for n in range(n_targets)]
    names = [(b"t%d" % n, f"b{n}", "") for n in range(n_targets)]
    rig.server.begin_move(EPOCH, shares, TOKEN_BYTES, [*PEERS, *names])
    targets = [rig.end() for _ in shares]
    # Without an offer they stand in line; then all go out at once, more than a link takes.
    for n, target in enumerate(targets):
        for number in range(n_open):
            target.say(ask(number, share=n, token=b"t%d" % n, first=n_open * n + number))
        target.say(BulkRequest(RUN, "0" * 32, 0, 1))
        assert isinstance(target.hears()[0], BulkReply)
    rig.source.say(KvOffer(RUN, EPOCH, b"ta"))
    for _ in range(n_targets * n_open):
        answer(rig.source)
    for n, target in enumerate(targets):
        got = {rows.number: data[0] for rows, data in (target.hears_rows() for _ in range(n_open))}
        assert got == {number: n_open * n + number for number in range(n_open)}
    assert rig.server.n_dropped == 0


def refuse_requests(rig: Rig, monkeypatch: pytest.MonkeyPatch, n_times: int) -> list[bytes]:
    """Have the server find no room for requests on their way to the source, n times."""
    send, refused = rig.server._send, []

    def full(parts: list[bytes | memoryview]) -> bool:
        is_ask = isinstance(decode_bulk_message(bytes(parts[1])), KvAsk)
        if is_ask and len(refused) < n_times:
            refused.append(bytes(parts[0]))
            return False
        return send(parts)

    monkeypatch.setattr(rig.server, "_send", full)
    return refused


def test_a_request_that_finds_no_room_goes_out_when_there_is(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.begin()
    refused = refuse_requests(rig, monkeypatch, 3)
    rig.target.say(ask(1))
    answer(rig.source)
    assert rig.target.hears_rows()[0].number == 1
    assert len(refused) == 3
    assert rig.server.n_dropped == 0


def test_a_request_that_finds_no_room_for_long_is_dropped(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_module, "UNSENT_S", 0.0)
    rig.begin()
    refused = refuse_requests(rig, monkeypatch, 1)
    rig.target.say(ask(1))
    dropped(rig, 1)
    # The target asks again, under the same number.
    rig.target.say(ask(1))
    answer(rig.source)
    assert rig.target.hears_rows()[0].number == 1
    assert len(refused) == 1


@pytest.mark.parametrize("when", ["before", "ended", "left", "another"])
def test_nothing_passes_without_a_migration_or_a_link_of_its_own(rig: Rig, when: str) -> None:
    if when != "before":
        rig.begin()
    if when == "ended":
        rig.server.end_move()
    if when == "left":
        rig.server.end_grant(b"tb")
    if when == "another":
        rig.server.begin_move(EPOCH + 1, SHARES, TOKEN_BYTES, PEERS)
    rig.target.say(ask(1))
    rows, data = rig.target.hears_rows()
    assert (rows.number, rows.error, data) == (1, "no grant", b"")
    assert rig.relay.n_refused == 1


def test_rows_of_who_was_not_asked_are_dropped(rig: Rig) -> None:
    rig.begin()
    rig.target.say(ask(1))
    asked = rig.source.hears_ask()
    stranger = rig.end()
    stranger.say(KvRows(RUN, EPOCH, asked.number), bytes(2 * 3 * TOKEN_BYTES))
    rig.source.say(KvRows(RUN, EPOCH, asked.number + 7), bytes(2 * 3 * TOKEN_BYTES))
    dropped(rig, 2)
    rig.source.say(KvRows(RUN, EPOCH, asked.number, error="busy"), b"")
    rows, data = rig.target.hears_rows()
    assert (rows.error, data) == ("busy", b"")


@pytest.mark.parametrize(
    "parts",
    [
        [encode(ask(1)), b"more"],
        [encode(KvOffer(RUN, EPOCH, b"ta")), b"more"],
        [encode(KvRows(RUN, EPOCH, 1))],
        [encode(KvRows(RUN, EPOCH, 1)), b"", b"more"],
        [encode(BulkRequest(RUN, "0" * 32, 0, 1)), b"more"],
        [b""],
        [b"\xff" * 100, b"more"],
    ],
)
def test_messages_of_a_wrong_shape_are_dropped(rig: Rig, parts: list[bytes]) -> None:
    rig.begin()
    rig.target.socket.send_multipart(parts)
    dropped(rig, 1)
    rig.target.say(ask(2))
    answer(rig.source)
    assert rig.target.hears_rows()[0].number == 2


def test_a_source_that_dials_anew_is_asked_on_its_new_link(rig: Rig) -> None:
    rig.begin()
    rig.target.say(ask(1))
    rig.source.hears_ask()
    rig.source.socket.close(linger=0)
    rig.source = rig.end()
    rig.offer(rig.source)
    rig.target.say(ask(1))
    answer(rig.source)
    assert rig.target.hears_rows()[0].number == 1


def test_rows_come_with_a_narrow_window_while_a_text_is_written(rig: Rig) -> None:
    rig.begin()
    for busy, window_bytes in ((False, 0), (True, NARROW_BYTES), (False, 0)):
        rig.busy = busy
        rig.target.say(ask(1))
        answer(rig.source)
        rows, _ = rig.target.hears_rows()
        assert rows.window_bytes == window_bytes


def test_whoever_pulls_weights_meanwhile_shares_the_window(
    rig: Rig, directory: ModelDirectory
) -> None:
    rig.begin()
    rig.busy = True
    manifest = directory.model_id
    rig.server.grant(b"tc", [manifest], 60.0)
    rig.target.say(ask(1))
    rig.source.hears_ask()
    puller = rig.end()
    puller.say(BulkRequest(RUN, manifest, 0, 8, b"tc"))
    chunk, _ = puller.hears()
    assert isinstance(chunk, BulkReply)
    assert chunk.window_bytes == NARROW_BYTES // 2


def test_the_relay_is_told_the_time(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []
    both = threading.Event()

    def on_tick(now_s: float) -> list[object]:
        told.append(now_s)
        if len(told) == 2:
            both.set()
        return []

    monkeypatch.setattr(rig.relay, "on_tick", on_tick)
    # Other messages do not keep it from that.
    while not both.wait(0.01):
        rig.target.say(BulkRequest(RUN, "0" * 32, 0, 1))
        rig.target.hears()
    assert told[1] - told[0] >= bulk_module.WAKE_S


def test_a_server_without_a_relay_passes_nothing(directory: ModelDirectory) -> None:
    with zmq.Context() as context:
        server = BulkServer(context, "tcp://127.0.0.1:*", RUN, directory)
        end = End(context, server.port)
        for message in (KvOffer(RUN, EPOCH, b"ta"), ask(1)):
            end.say(message)
        end.say(KvRows(RUN, EPOCH, 1), b"x")
        end.say(BulkRequest(RUN, "0" * 32, 0, 1))
        assert isinstance(end.hears()[0], BulkReply)
        assert server.n_dropped == 3
        server.close()
        end.socket.close(linger=0)
