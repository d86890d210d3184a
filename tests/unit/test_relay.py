"""The relay: who may read from whom, and how much is under way."""

import pytest

from agent.migration_messages import Group, KvAsk, KvOffer, KvRows, Share
from coordinator.relay import Forward, Relay

RUN, EPOCH = 5, 9
GROUPS = tuple(Group(layer, 0) for layer in range(4))
TOKEN_BYTES = 10
PEERS = [(b"ta", "a", "key-a"), (b"tb", "b", "key-b"), (b"tc", "c", "key-c")]


def relay(max_bytes: int = 100) -> Relay:
    made = Relay(RUN, max_bytes)
    shares = [Share(0, "a", "b", GROUPS), Share(1, "b", "b", GROUPS), Share(2, "a", "c", GROUPS)]
    made.begin(EPOCH, shares, TOKEN_BYTES, PEERS)
    return made


def offer(relay: Relay, route: bytes = b"A", now_s: float = 0.0) -> list[Forward]:
    return relay.on_offer(route, KvOffer(RUN, EPOCH, b"ta"), "key-a", now_s)


def ask(number: int = 1, **changes: object) -> KvAsk:
    fields = {
        "run_id": RUN, "epoch": EPOCH, "number": number, "share": 0, "kv_id": 3, "first_group": 0,
        "n_groups": 2, "first": 0, "n_tokens": 2, "token": b"tb",
    }  # fmt: skip
    return KvAsk(**(fields | changes))  # type: ignore[arg-type]


def test_rows_go_from_source_to_target_under_their_own_numbers() -> None:
    r = relay()
    offer(r)
    ((route, asked, data),) = r.on_ask(b"B", ask(41), "key-b", 0.0)
    assert (route, data) == (b"A", None)
    assert isinstance(asked, KvAsk)
    assert (asked.token, asked.kv_id, asked.n_groups) == (b"", 3, 2)
    answer = KvRows(RUN, EPOCH, asked.number, crc32=7)
    ((route, reply, data),) = r.on_rows(b"A", answer, b"x" * 40, 4096, 0.1)
    assert (route, data) == (b"B", b"x" * 40)
    assert reply == KvRows(RUN, EPOCH, 41, 7, "", 4096)
    assert r.open_bytes == 0
    assert r.on_rows(b"A", answer, b"x" * 40, 0, 0.1) == []


@pytest.mark.parametrize(
    ("changes", "key", "error"),
    [
        ({"run_id": 6}, "key-b", "wrong run"),
        ({"epoch": 8}, "key-b", "no grant"),
        ({"share": 3}, "key-b", "no grant"),
        ({"share": 1}, "key-b", "no grant"),  # local: nothing travels
        ({"share": 2}, "key-b", "no grant"),  # another target's
        ({"token": b"tc"}, "key-c", "no grant"),
        ({"token": b"??"}, "key-b", "no grant"),
        ({}, "key-c", "no grant"),  # a token that somebody overheard
        ({"n_groups": 5}, "key-b", "bad range"),
        ({"first_group": 3}, "key-b", "bad range"),
        ({"n_groups": 0}, "key-b", "bad range"),
        ({"n_tokens": 1 << 20}, "key-b", "bad range"),
    ],
)
def test_only_what_a_share_covers_is_passed_on(
    changes: dict[str, object], key: str, error: str
) -> None:
    r = relay()
    offer(r)
    ((route, reply, _),) = r.on_ask(b"B", ask(**changes), key, 0.0)
    assert route == b"B"
    assert isinstance(reply, KvRows)
    assert reply.error == error
    assert r.n_refused == 1
    assert r.open_bytes == 0


def test_a_stranger_cannot_offer_or_answer() -> None:
    r = relay()
    assert r.on_offer(b"X", KvOffer(RUN, EPOCH, b"ta"), "key-b", 0.0) == []
    assert r.on_offer(b"X", KvOffer(RUN + 1, EPOCH, b"ta"), "key-a", 0.0) == []
    assert r.on_ask(b"B", ask(), "key-b", 0.0) == []
    ((route, asked, _),) = offer(r)
    assert route == b"A"
    assert r.on_rows(b"X", KvRows(RUN, EPOCH, asked.number), b"y" * 40, 0, 0.0) == []
    assert r.on_rows(b"A", KvRows(RUN, EPOCH, asked.number), b"y" * 39, 0, 0.0) == []
    assert r.n_dropped == 2


def test_bytes_under_way_are_bounded_and_what_is_urgent_goes_first() -> None:
    r = relay(max_bytes=100)
    offer(r)
    for number in range(2):
        assert len(r.on_ask(b"B", ask(number), "key-b", 0.0)) == 1
    assert r.on_ask(b"B", ask(2), "key-b", 0.0) == []
    assert r.on_ask(b"B", ask(3, urgent=True), "key-b", 0.0) == []
    assert r.open_bytes == 80
    back, onward = r.on_rows(b"A", KvRows(RUN, EPOCH, 1), b"z" * 40, 0, 0.0)
    assert (back.route, onward.route) == (b"B", b"A")
    assert isinstance(onward.message, KvAsk)
    assert onward.message.urgent
    for number in range(4, 40):
        r.on_ask(b"B", ask(number), "key-b", 0.0)
    assert r.n_dropped == 23  # 16 of one target stand in line or are under way
    assert r.open_bytes == 80


def test_what_stays_unanswered_gives_its_room_back() -> None:
    r = relay(max_bytes=40)
    offer(r)
    r.on_ask(b"B", ask(1), "key-b", 0.0)
    offer(r, now_s=4.9)
    assert r.on_tick(4.9) == []
    assert r.open_bytes == 40
    r.on_tick(5.0)
    assert r.open_bytes == 0


def test_a_renewed_source_is_asked_on_its_new_link() -> None:
    r = relay()
    offer(r)
    r.on_ask(b"B", ask(1), "key-b", 0.0)
    assert offer(r, b"A2", 1.0) == []
    assert r.open_bytes == 0
    ((route, asked, _),) = r.on_ask(b"B", ask(1), "key-b", 1.1)
    assert route == b"A2"
    # Asked once more, it is passed on once more: the answer may be lost.
    assert r.on_ask(b"B", ask(1), "key-b", 1.2) == [Forward(b"A2", asked)]


def test_after_the_end_nothing_is_passed_on() -> None:
    r = relay()
    offer(r)
    ((_, asked, _),) = r.on_ask(b"B", ask(1), "key-b", 0.0)
    r.end()
    assert r.on_rows(b"A", KvRows(RUN, EPOCH, asked.number), b"x" * 40, 0, 0.0) == []
    assert r.on_ask(b"B", ask(2), "key-b", 0.0)[0].message.error == "no grant"  # type: ignore[union-attr]


def test_an_agent_whose_link_ended_neither_asks_nor_answers() -> None:
    r = relay(1000)
    offer(r)
    ((_, asked, _),) = r.on_ask(b"B", ask(1), "key-b", 0.0)
    r.forget(b"??")
    r.forget(b"ta")
    assert r.open_bytes == 0
    assert r.on_rows(b"A", KvRows(RUN, EPOCH, asked.number), b"x" * 40, 0, 0.1) == []
    assert offer(r) == []
    # Nobody answers for it, so requests stand in line.
    assert r.on_ask(b"B", ask(2), "key-b", 0.1) == []
    r.forget(b"tb")
    ((_, reply, _),) = r.on_ask(b"B", ask(3), "key-b", 0.2)
    assert isinstance(reply, KvRows)
    assert reply.error == "no grant"


def test_what_a_target_asked_for_goes_with_its_link() -> None:
    r = relay()
    offer(r)
    ((_, asked, _),) = r.on_ask(b"B", ask(1), "key-b", 0.0)
    r.on_ask(b"B", ask(2, n_groups=4), "key-b", 0.0)
    r.forget(b"tb")
    assert r.on_rows(b"A", KvRows(RUN, EPOCH, asked.number), b"x" * 40, 0, 0.1) == []
    assert r.on_tick(0.2) == []
