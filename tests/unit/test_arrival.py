"""The target of a migration: what it asks for, how much at a time, what it takes for good."""

import zlib

import numpy as np
import pytest

from agent.arrival import (
    CREDITS,
    LOCAL_CREDITS,
    MAX_GONE,
    RESEND_S,
    Arrival,
    Ask,
    CopyLocal,
    Place,
    Room,
    Tell,
)
from agent.departure import MAX_EXPORTS, Departure, Export
from agent.kv import KvShape
from agent.kv_ops import KvOp, KvOpCode
from agent.kv_rows import rows_bytes
from agent.messages import decode_bulk_message, decode_coordinator_message, encode
from agent.migration_messages import (
    FIRST_BYTES,
    Arrive,
    Begun,
    Depart,
    Group,
    Have,
    KvAsk,
    KvRows,
    MoveEnd,
    MoveEnded,
    MoveFailed,
    Share,
    Want,
)
from agent.mover import FreeEpoch, Mover, Serve
from agent.window import CHUNK_BYTES
from kernels.errors import WireError

RUN, EPOCH, OLD = 5, 9, 8
SHAPE = KvShape(8, 64, np.uint16, 4096, 8192, 4)  # 256 bytes a position of a group
GROUPS = tuple(Group(layer, 1) for layer in range(6))
LOCAL = (Group(0, 0), Group(1, 0))
SHARES = (Share(0, "a", "b", GROUPS), Share(1, "b", "b", LOCAL), Share(2, "a", "c", LOCAL))


def arrival(*shares: Share, window_bytes: int = FIRST_BYTES) -> Arrival:
    order = Arrive(RUN, EPOCH, OLD, shares or SHARES, window_bytes)
    return Arrival(order, "b", SHAPE, 0.0, b"token")


def want(n_tokens: int, version: int = 0, **changes: object) -> Want:
    return Want(RUN, EPOCH, 3, version, n_tokens, reserve_tokens=2000, **changes)  # type: ignore[arg-type]


def answer(asked: KvAsk, fill: int = 1) -> tuple[KvRows, bytes]:
    data = bytes([fill]) * rows_bytes(SHAPE, asked.n_groups, asked.n_tokens)
    return KvRows(RUN, EPOCH, asked.number, zlib.crc32(data)), data


def finish(a: Arrival, actions: list[object]) -> tuple[list[KvAsk], list[Place | CopyLocal]]:
    """Answer all that is asked until nothing is; return requests and placings."""
    asks: list[KvAsk] = []
    placed: list[Place | CopyLocal] = []
    while actions:
        action = actions.pop(0)
        if isinstance(action, Ask):
            asks.append(action.message)
            actions += a.on_rows(*answer(action.message), 0.1)
        elif isinstance(action, Place | CopyLocal):
            placed.append(action)
            actions += a.on_placed(action.number, 0.1)
        elif isinstance(action, Tell):
            last = action.message
            assert isinstance(last, Have)
    return asks, placed


@pytest.mark.parametrize("n_tokens", [1, 63, 64, 65, 300, 1000])
@pytest.mark.parametrize("shares", [SHARES, SHARES[:1], (Share(0, "a", "b", GROUPS[:1]),)])
def test_every_row_is_asked_for_once_in_requests_that_fit(
    n_tokens: int, shares: tuple[Share, ...]
) -> None:
    a = arrival(*shares)
    _, placed = finish(a, [*a.on_want(want(n_tokens), 0.0)])
    seen: dict[tuple[Group, int], int] = {}
    for piece in placed:
        size = rows_bytes(SHAPE, len(piece.groups), piece.n_tokens)
        assert size <= CHUNK_BYTES
        for group in piece.groups:
            for pos in range(piece.first, piece.first + piece.n_tokens):
                seen[group, pos] = seen.get((group, pos), 0) + 1
    mine = [g for s in shares if s.target == "b" for g in s.groups]
    assert set(seen) == {(g, pos) for g in mine for pos in range(n_tokens)}
    assert set(seen.values()) == {1}


def test_the_catch_up_is_one_request_for_all_groups_behind_the_watermark() -> None:
    a = arrival(SHARES[0])
    finish(a, [*a.on_want(want(100), 0.0)])
    actions = a.on_want(want(103, urgent=True), 1.0)
    assert actions[0] == Room(3, (), 103)  # type: ignore[arg-type]
    ((asked),) = [x.message for x in actions if isinstance(x, Ask)]
    assert (asked.first, asked.n_tokens, asked.first_group, asked.n_groups) == (100, 3, 0, 6)
    assert asked.urgent
    (place,) = a.on_rows(*answer(asked), 1.1)
    assert isinstance(place, Place)
    assert a.on_placed(place.number, 1.1) == [Tell(Have(RUN, EPOCH, 3, 0, 103))]


def test_room_is_reserved_before_anything_is_asked_for() -> None:
    a = arrival()
    first, second, *_ = a.on_want(want(100), 0.0)
    assert first == Room(3, (KvOp(KvOpCode.OPEN, 3, 2000),), 0)  # type: ignore[arg-type]
    assert second == Room(3, (), 100)  # type: ignore[arg-type]
    assert a.on_pool_error("no page is free") == [Tell(MoveFailed(RUN, EPOCH, "no page is free"))]
    assert a.on_want(want(100), 0.0) == [Tell(MoveFailed(RUN, EPOCH, "no page is free"))]
    assert a.on_tick(1.0) == []


def test_no_more_is_open_than_credit_allows_and_hints_narrow_it() -> None:
    a = arrival(SHARES[0])
    (first,) = [x.message for x in a.on_want(want(2000), 0.0) if isinstance(x, Ask)]
    # Nobody knows yet whether a text is being written.
    assert rows_bytes(SHAPE, first.n_groups, first.n_tokens) <= FIRST_BYTES
    placed, *asks = [*a.on_rows(*answer(first), 0.1)]
    assert isinstance(placed, Place)
    asks = [x.message for x in [*asks, *a.on_placed(placed.number, 0.1)] if isinstance(x, Ask)]
    assert len(asks) == CREDITS
    for asked in asks:
        reply, data = answer(asked)
        hinted = KvRows(RUN, EPOCH, reply.number, reply.crc32, "", 4096)
        (place,) = a.on_rows(hinted, data, 0.2)
        assert isinstance(place, Place)
        more = a.on_placed(place.number, 0.2)
        # Those that were asked for before the hint come in; one at a time follows.
        n_more = sum(isinstance(x, Ask) for x in more)
        assert n_more == (asked is asks[-1])
    (last,) = [x.message for x in more if isinstance(x, Ask)]
    # What was cut before is as large as it was; the next block is as small as a page allows.
    for _ in range(40):
        place, *_ = a.on_rows(KvRows(RUN, EPOCH, last.number, answer(last)[0].crc32, "", 4096),
                              answer(last)[1], 0.3)  # fmt: skip
        assert isinstance(place, Place)
        (last,) = [x.message for x in a.on_placed(place.number, 0.3) if isinstance(x, Ask)]
    assert rows_bytes(SHAPE, last.n_groups, last.n_tokens) <= 4096


def test_the_first_window_is_as_wide_as_the_order_says() -> None:
    def asked(window_bytes: int) -> list[int]:
        a = arrival(SHARES[0], window_bytes=window_bytes)
        asks = [x.message for x in a.on_want(want(2000), 0.0) if isinstance(x, Ask)]
        return [rows_bytes(SHAPE, x.n_groups, x.n_tokens) for x in asks]

    # 0: no text is being written.
    assert len(asked(0)) == CREDITS
    assert CHUNK_BYTES // 2 < asked(0)[0] <= CHUNK_BYTES
    assert len(asked(32 << 10)) == 1
    assert sum(asked(32 << 10)) <= 32 << 10


def test_what_is_on_the_board_waits_for_no_link_but_is_not_cut_far_ahead() -> None:
    a = arrival(*SHARES[:2])
    actions = a.on_want(want(2000), 0.0)
    assert sum(isinstance(x, Ask) for x in actions) == 1
    copies = [x for x in actions if isinstance(x, CopyLocal)]
    assert 1 <= len(copies) <= LOCAL_CREDITS
    for copy in copies:
        # Large pieces, though the link's are small.
        assert {*copy.groups} == {*LOCAL}
        assert not any(isinstance(x, Ask) for x in a.on_placed(copy.number, 0.1))
    alone = arrival(SHARES[1])
    _, placed = finish(alone, [*alone.on_want(want(2000), 0.0)])
    assert all(isinstance(x, CopyLocal) for x in placed)
    assert max(rows_bytes(SHAPE, len(x.groups), x.n_tokens) for x in placed) > FIRST_BYTES


def test_damaged_rows_are_asked_for_again_and_never_placed() -> None:
    a = arrival(SHARES[0])
    asked = next(x.message for x in a.on_want(want(10), 0.0) if isinstance(x, Ask))
    reply, data = answer(asked)
    for _ in range(3):
        (again,) = a.on_rows(reply, b"\0" + data[1:], 0.1)
        assert again == Ask(asked)
    (last,) = a.on_rows(reply, data[:-1], 0.1)
    assert isinstance(last, Tell)
    assert isinstance(last.message, MoveFailed)
    assert "damaged 4 times" in last.message.reason


def test_unanswered_requests_are_sent_again_and_silence_ends_it() -> None:
    a = arrival(SHARES[0])
    asked = next(x for x in a.on_want(want(10), 0.0) if isinstance(x, Ask))
    assert asked not in a.on_tick(1.9)
    assert asked in a.on_tick(2.0)
    assert a.on_bulk_renewed(2.1) == [asked]
    refusal = KvRows(RUN, EPOCH, asked.message.number, error="no grant")
    assert a.on_rows(refusal, b"", 2.2) == []
    assert asked in a.on_tick(2.5)
    (failed,) = a.on_tick(31.0)
    assert isinstance(failed, Tell)
    assert "no rows came from agent 'a' for 30 s, the last answer was 'no grant'" in a.failed


def test_a_cut_forgets_what_is_on_its_way() -> None:
    a = arrival(SHARES[0])
    finish(a, [*a.on_want(want(100), 0.0)])
    asked = next(x.message for x in a.on_want(want(140), 1.0) if isinstance(x, Ask))
    actions = a.on_want(want(90, version=1, floor=80), 1.0)
    assert actions[0] == Room(3, (KvOp(KvOpCode.TRUNCATE, 3, 80),), 80)  # type: ignore[arg-type]
    again = next(x.message for x in actions if isinstance(x, Ask))
    assert (again.first, again.n_tokens) == (80, 10)
    assert a.on_rows(*answer(asked), 1.1) == []
    assert a.n_dropped == 1
    # An order of the version before changes nothing.
    assert a.on_want(want(140), 1.2) == [Tell(Have(RUN, EPOCH, 3, 1, 80))]


def test_a_released_text_never_comes_back() -> None:
    a = arrival(SHARES[0])
    finish(a, [*a.on_want(want(100), 0.0)])
    gone = Tell(Have(RUN, EPOCH, 3, 2, 0, gone=True))
    assert a.on_want(want(0, version=2, gone=True), 1.0) == [
        Room(3, (KvOp(KvOpCode.RELEASE, 3),), 0),  # type: ignore[arg-type]
        gone,
    ]
    assert a.on_want(want(100), 1.0) == [gone]
    assert a.on_want(want(100, version=3), 1.0) == [gone]


def test_of_the_many_texts_of_a_mirror_only_those_are_kept_that_are_open() -> None:
    a = arrival(SHARES[0])

    def wanted(kv_id: int, n_tokens: int, gone: bool = False) -> list[object]:
        version = 1 if gone else 0
        order = Want(RUN, EPOCH, kv_id, version, n_tokens, reserve_tokens=200, gone=gone)
        return [*a.on_want(order, 0.0)]

    n_texts = 5 * MAX_GONE
    for kv_id in range(n_texts):
        finish(a, wanted(kv_id, 10))
        last = wanted(kv_id, 0, gone=True)[-1]
        assert last == Tell(Have(RUN, EPOCH, kv_id, 1, 0, gone=True))
    assert not a._texts
    assert len(a._gone) == MAX_GONE
    # An order that is late is answered, and opens nothing.
    late = n_texts - MAX_GONE
    assert wanted(late, 10) == [Tell(Have(RUN, EPOCH, late, 1, 0, gone=True))]
    assert wanted(n_texts, 0, gone=True) == [Tell(Have(RUN, EPOCH, n_texts, 1, 0, gone=True))]
    # Nobody has to look before what is open is due.
    assert a.next_due_s(0.1) == 0.1 + RESEND_S


@pytest.mark.parametrize(("fork_version", "shared"), [(0, 70), (1, 0)])
def test_a_fork_shares_rows_of_the_version_it_was_made_of(fork_version: int, shared: int) -> None:
    a = arrival(SHARES[0])
    finish(a, [*a.on_want(want(100), 0.0)])
    child = Want(
        RUN, EPOCH, 4, 0, 90, reserve_tokens=2000, fork_of=3, fork_version=fork_version,
        fork_tokens=70,
    )  # fmt: skip
    actions = a.on_want(child, 1.0)
    fork = [KvOp(KvOpCode.FORK, 4, 3, 70)] if shared else []  # type: ignore[arg-type]
    opened = KvOp(KvOpCode.OPEN, 4, 2000)  # type: ignore[arg-type]
    assert actions[0] == Room(4, (*fork, opened), shared)  # type: ignore[arg-type]
    first = min(x.message.first for x in actions if isinstance(x, Ask))
    assert first == shared


def test_a_source_gives_only_what_its_share_names() -> None:
    d = Departure(Depart(RUN, EPOCH, OLD, SHARES), "a", SHAPE)
    good = KvAsk(RUN, EPOCH, 1, 0, 3, 2, 3, 5, 7)
    assert d.on_ask(good) == Export(1, OLD, 3, GROUPS[2:5], 5, 7)  # type: ignore[arg-type]
    for changes, error in (
        ({"run_id": 6}, "wrong run"),
        ({"epoch": 8}, "no grant"),
        ({"share": 1}, "no grant"),
        ({"n_groups": 5}, "bad range"),
        ({"first_group": 7}, "bad range"),
        ({"n_tokens": 0}, "bad range"),
        ({"n_tokens": 400}, "bad range"),
        ({"first": 4090}, "bad range"),
    ):
        fields = {f: getattr(good, f) for f in good.__struct_fields__} | changes
        assert d.on_ask(KvAsk(**fields)) == KvRows(  # type: ignore[arg-type]
            fields["run_id"],
            fields["epoch"],
            1,
            error=error,  # type: ignore[arg-type]
        )
    assert d.on_read(1, 77) == KvRows(RUN, EPOCH, 1, 77)
    assert d.on_read(1, 77) is None
    for number in range(MAX_EXPORTS):
        assert isinstance(d.on_ask(KvAsk(RUN, EPOCH, number, 0, 3, 0, 1, 0, 1)), Export)
    busy = d.on_ask(KvAsk(RUN, EPOCH, 99, 0, 3, 0, 1, 0, 1))
    assert isinstance(busy, KvRows)
    assert busy.error == "busy"
    assert d.on_read(0, None) == KvRows(RUN, EPOCH, 0, error="not here")


def test_nothing_of_another_run_or_of_what_is_over_is_taken_up() -> None:
    m = Mover(RUN, "b", {EPOCH: SHAPE, OLD: SHAPE}.get)
    arrive = Arrive(RUN, EPOCH, OLD, SHARES)
    assert m.on_order(Arrive(RUN + 1, EPOCH, OLD, SHARES), 0.0) == []
    assert m.on_order(want(5), 0.0) == []
    for _ in range(2):
        assert m.on_order(arrive, 0.0) == [Tell(Begun(RUN, EPOCH, arrives=True))]
    assert m.on_order(Arrive(RUN, EPOCH - 1, OLD, SHARES), 0.0) == []
    end = MoveEnd(RUN, EPOCH, OLD)
    for _ in range(2):
        assert m.on_order(end, 0.0) == [FreeEpoch(OLD), Tell(MoveEnded(RUN, EPOCH))]
    assert m.on_order(arrive, 0.0) == []
    assert m.on_order(want(5), 0.0) == []
    assert m.arrival is None
    assert m.n_stale == 5
    (unserved,) = m.on_ask(KvAsk(RUN, EPOCH, 1, 0, 3, 0, 1, 0, 1))
    assert unserved == Serve(KvRows(RUN, EPOCH, 1, error="no grant"))
    (missing,) = m.on_order(Depart(RUN, 20, 12, SHARES), 0.0)
    assert missing == Tell(MoveFailed(RUN, 20, "epoch 12 is not on this agent"))


def test_messages_are_bounded() -> None:
    for message in (want(5), Arrive(RUN, EPOCH, OLD, SHARES), MoveEnd(2**64 - 1, EPOCH, OLD)):
        assert decode_coordinator_message(encode(message)) == message
    for bad in (
        want(-1),
        want(2**32),
        Arrive(RUN, EPOCH, OLD, (Share(0, "a", "b", ()),)),
        Arrive(RUN, EPOCH, OLD, (Share(0, "a" * 256, "b", GROUPS),)),
        Arrive(RUN, EPOCH, OLD, (Share(0, "a", "b", (Group(1 << 16, 0),)),)),
        MoveEnd(-1, EPOCH, OLD),
    ):
        with pytest.raises(WireError, match="cannot be read"):
            decode_coordinator_message(encode(bad))
    with pytest.raises(WireError, match="is longer than"):
        decode_bulk_message(bytes((1 << 20) + 1))
    with pytest.raises(WireError, match="cannot be read"):
        decode_bulk_message(encode(want(5)))
