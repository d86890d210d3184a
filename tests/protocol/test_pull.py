import random
import zlib
from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.messages import BulkReply
from agent.pull import MAX_ATTEMPTS, RESEND_S, SILENCE_S, Pull, Wanted
from agent.window import Window
from kernels.errors import ModelError, RemoteError
from weights.manifest import content_hash

CHUNK = 100


class Holder:
    """The other end of an in-memory link: answers requests from a dict of blobs."""

    def __init__(self, *blobs):
        self.blobs = {content_hash(b): b for b in blobs}
        self.wanted = [Wanted(content_hash(b), len(b), f"blob {i}") for i, b in enumerate(blobs)]

    def answer(self, request):
        data = self.blobs[request.object_id][request.offset : request.offset + request.length]
        reply = BulkReply(request.object_id, request.offset, request.length, zlib.crc32(data))
        return reply, data


def small_pull(wanted, credits=4, **options):
    return Pull(1, wanted, 0.0, window=Window(CHUNK, credits), **options)


def drain(pull, holder, now_s=0.0):
    """Carry requests and replies until nothing moves; return the completed objects."""
    done = []
    while requests := pull.next_requests(now_s):
        for request in requests:
            pull.on_reply(*holder.answer(request), now_s)
        done += pull.take_complete()
    return done


def test_objects_arrive_whole_and_in_bounded_windows():
    holder = Holder(b"a" * 250, b"b" * 99, b"c" * 100)
    pull = small_pull(holder.wanted, credits=2)
    requests = pull.next_requests(0.0)
    assert [(r.offset, r.length, r.run_id) for r in requests] == [(0, 100, 1), (100, 100, 1)]
    assert pull.next_requests(1.0) == []
    for request in requests:
        assert pull.on_reply(*holder.answer(request), 1.0).offset == request.offset
    assert pull.take_complete() == []
    done = drain(pull, holder)
    assert [bytes(data) for _, data in done] == [b"a" * 250, b"b" * 99, b"c" * 100]
    assert pull.done
    assert pull.done_bytes == 449


def test_equal_objects_are_pulled_one_after_the_other():
    holder = Holder(b"same" * 60)
    pull = small_pull(holder.wanted * 3, credits=8)
    assert len(drain(pull, holder)) == 3
    assert pull.done


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_a_link_that_drops_doubles_reorders_and_corrupts(seed, n_credits):
    rng = random.Random(seed)
    holder = Holder(*(rng.randbytes(rng.randint(1, 500)) for _ in range(6)))
    pull = small_pull(holder.wanted, n_credits)
    now_s, done, flying, n_lost = 0.0, [], [], Counter()

    def arrives(request):
        # Losing one request more often would be 30 s of silence, which rightly ends a pull.
        lost = rng.random() < 0.2 and n_lost[request] < 3
        n_lost[request] += lost
        return not lost

    while not pull.done:
        now_s += 1.0
        flying += [holder.answer(r) for r in pull.next_requests(now_s) if arrives(r)]
        rng.shuffle(flying)
        for _ in range(rng.randint(min(1, len(flying)), len(flying))):
            reply, data = flying.pop()
            if rng.random() < 0.1:
                flying.append((reply, data))
            if rng.random() < 0.05:
                data = rng.randbytes(len(data))
            pull.on_reply(reply, data, now_s)
        done += pull.take_complete()
        # A run of bad luck may fill the attempts of one chunk; only that may end a pull.
        if any(r.n_failed >= MAX_ATTEMPTS - 1 for r in pull._open.values()):
            return
    assert {w.object_id: bytes(d) for w, d in done} == holder.blobs


def test_an_unanswered_request_is_sent_again():
    holder = Holder(b"a" * 50)
    pull = small_pull(holder.wanted)
    first = pull.next_requests(0.0)
    assert pull.next_requests(RESEND_S - 0.1) == []
    assert pull.next_requests(RESEND_S) == first
    pull.forget_sent()
    assert pull.next_requests(RESEND_S + 0.1) == first


def test_silence_ends_a_pull():
    pull = small_pull(Holder(b"a").wanted)
    pull.next_requests(0.0)
    with pytest.raises(RemoteError, match="silent for 30 s with 1 requests open"):
        pull.next_requests(SILENCE_S + 0.1)


def test_a_chunk_that_stays_damaged_ends_a_pull():
    holder = Holder(b"a" * 50)
    pull = small_pull(holder.wanted)
    for _ in range(MAX_ATTEMPTS - 1):
        (request,) = pull.next_requests(0.0)
        assert pull.on_reply(holder.answer(request)[0], b"x" * 50, 0.0) is None
    with pytest.raises(RemoteError, match="a chunk of blob 0 arrived damaged 4 times"):
        pull.on_reply(holder.answer(request)[0], b"x" * 50, 0.0)


def test_an_object_with_another_hash_is_tried_twice_and_refused():
    wanted = Wanted(content_hash(b"truth"), 5, "column 3 of layer 2")
    holder = Holder()
    holder.blobs[wanted.object_id] = b"wrong"
    pull = small_pull([wanted])
    with pytest.raises(ModelError, match=r"column 3 of layer 2 arrived with hash .* is damaged"):
        drain(pull, holder)
    assert pull.done_bytes == 5


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        ("unknown object", ModelError, r"cannot send blob 0 .*: unknown object"),
        ("bad range", ModelError, "bad range"),
        ("wrong run", RemoteError, "another run"),
        ("no grant", RemoteError, "does not grant blob 0 to this agent"),
    ],
)
def test_refusals_are_told(error, kind, text):
    holder = Holder(b"a")
    pull = small_pull(holder.wanted)
    (request,) = pull.next_requests(0.0)
    with pytest.raises(kind, match=text):
        pull.on_reply(BulkReply(request.object_id, 0, 0, 0, error), b"", 0.0)


def test_replies_nobody_asked_for_are_counted():
    pull = small_pull([])
    assert pull.on_reply(BulkReply("x", 0, 1, 0), b"a", 0.0) is None
    assert pull.n_dropped == 1
    assert pull.done


def test_credits_flow_across_the_borders_of_objects():
    holder = Holder(*(bytes([i]) * 30 for i in range(9)))
    pull = small_pull(holder.wanted, credits=4)
    open_requests = pull.next_requests(0.0)
    assert len(open_requests) == 4
    for n_left in range(8, 3, -1):
        pull.on_reply(*holder.answer(open_requests.pop(0)), 0.0)
        open_requests += pull.next_requests(0.0)
        assert len(open_requests) == min(4, n_left)


def test_a_hint_narrows_the_window_within_one_window_and_paces_it():
    holder = Holder(b"a" * 90_000)
    pull = Pull(1, holder.wanted, 0.0, window=Window(10_000, 3))
    requests = pull.next_requests(0.0)
    assert [r.length for r in requests] == [10_000] * 3
    for request in requests:
        reply, data = holder.answer(request)
        pull.on_reply(msgspec.structs.replace(reply, window_bytes=5000), data, 1.0)
        assert pull.next_requests(1.0) == []
    now_s = 1.0 + pull.wait_s(1.0)
    assert now_s > 1.0
    (narrow,) = pull.next_requests(now_s)
    assert narrow.length == 5000
    pull.on_reply(*holder.answer(narrow), now_s + 0.1)
    assert [r.length for r in pull.next_requests(now_s + 0.1)] == [10_000] * 3


def test_requests_carry_the_token_of_the_link():
    pull = Pull(1, Holder(b"a").wanted, 0.0, token=b"secret")
    assert [r.token for r in pull.next_requests(0.0)] == [b"secret"]


def test_requests_that_found_no_link_are_due_again_and_others_are_not():
    pull = small_pull(Holder(b"a" * 400).wanted)
    requests = pull.next_requests(0.0)
    pull.forget_sent(requests[2:])
    assert pull.next_requests(0.1) == requests[2:]


@settings(max_examples=80, deadline=None)
@given(st.binary(min_size=1, max_size=500), st.data())
def test_what_a_former_pull_left_is_not_asked_for_again(blob, data):
    holder = Holder(blob)
    spans = data.draw(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 120)), max_size=6))
    kept = [(start, blob[start : start + n]) for start, n in spans]
    pull = small_pull(holder.wanted, resume=lambda wanted: kept)
    asked = set()
    while requests := pull.next_requests(0.0):
        for request in requests:
            span = set(range(request.offset, request.offset + request.length))
            assert not asked & span
            asked |= span
            pull.on_reply(*holder.answer(request), 0.0)
    assert [bytes(d) for _, d in pull.take_complete()] == [blob]
    assert pull.done
    assert pull.done_bytes == len(blob)
    assert pull.resumed_bytes == len(blob) - len(asked)
    if spans:
        longest = max(len(d) for _, d in kept)
        assert pull.resumed_bytes >= min(longest, 1)


def test_a_damaged_left_over_costs_one_clean_attempt():
    holder = Holder(b"a" * 250)
    pull = small_pull(holder.wanted, resume=lambda wanted: [(100, b"x" * 100)])
    assert [bytes(d) for _, d in drain(pull, holder)] == [b"a" * 250]
    assert pull.done_bytes == 250
