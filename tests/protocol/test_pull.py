import random
import zlib
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.messages import BulkReply
from agent.pull import MAX_ATTEMPTS, RESEND_S, SILENCE_S, Pull, Wanted
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


def drain(pull, holder, now_s=0.0):
    """Carry requests and replies until nothing moves; return the completed objects."""
    done = []
    while requests := pull.next_requests(now_s):
        for request in requests:
            complete = pull.on_reply(*holder.answer(request), now_s)
            done += [complete] if complete else []
    return done


def test_objects_arrive_whole_and_in_bounded_windows():
    holder = Holder(b"a" * 250, b"b" * 99, b"c" * 100)
    pull = Pull(1, holder.wanted, 0.0, CHUNK, credits=2)
    requests = pull.next_requests(0.0)
    assert [(r.offset, r.length, r.run_id) for r in requests] == [(0, 100, 1), (100, 100, 1)]
    assert pull.next_requests(1.0) == []
    for request in requests:
        assert pull.on_reply(*holder.answer(request), 1.0) is None
    done = drain(pull, holder)
    assert [bytes(data) for _, data in done] == [b"a" * 250, b"b" * 99, b"c" * 100]
    assert pull.done
    assert pull.done_bytes == 449


def test_equal_objects_are_pulled_one_after_the_other():
    holder = Holder(b"same" * 60)
    pull = Pull(1, holder.wanted * 3, 0.0, CHUNK, credits=8)
    assert len(drain(pull, holder)) == 3
    assert pull.done


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_a_link_that_drops_doubles_reorders_and_corrupts(seed, n_credits):
    rng = random.Random(seed)
    holder = Holder(*(rng.randbytes(rng.randint(1, 500)) for _ in range(6)))
    pull = Pull(1, holder.wanted, 0.0, CHUNK, n_credits)
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
            complete = pull.on_reply(reply, data, now_s)
            done += [complete] if complete else []
        # A run of bad luck may fill the attempts of one chunk; only that may end a pull.
        if any(r.n_failed >= MAX_ATTEMPTS - 1 for r in pull._open.values()):
            return
    assert {w.object_id: bytes(d) for w, d in done} == holder.blobs


def test_an_unanswered_request_is_sent_again():
    holder = Holder(b"a" * 50)
    pull = Pull(1, holder.wanted, 0.0, CHUNK)
    first = pull.next_requests(0.0)
    assert pull.next_requests(RESEND_S - 0.1) == []
    assert pull.next_requests(RESEND_S) == first
    pull.forget_sent()
    assert pull.next_requests(RESEND_S + 0.1) == first


def test_silence_ends_a_pull():
    pull = Pull(1, Holder(b"a").wanted, 0.0, CHUNK)
    pull.next_requests(0.0)
    with pytest.raises(RemoteError, match="silent for 30 s with 1 requests open"):
        pull.next_requests(SILENCE_S + 0.1)


def test_a_chunk_that_stays_damaged_ends_a_pull():
    holder = Holder(b"a" * 50)
    pull = Pull(1, holder.wanted, 0.0, CHUNK)
    for _ in range(MAX_ATTEMPTS - 1):
        (request,) = pull.next_requests(0.0)
        assert pull.on_reply(holder.answer(request)[0], b"x" * 50, 0.0) is None
    with pytest.raises(RemoteError, match="a chunk of blob 0 arrived damaged 4 times"):
        pull.on_reply(holder.answer(request)[0], b"x" * 50, 0.0)


def test_an_object_with_another_hash_is_tried_twice_and_refused():
    wanted = Wanted(content_hash(b"truth"), 5, "column 3 of layer 2")
    holder = Holder()
    holder.blobs[wanted.object_id] = b"wrong"
    pull = Pull(1, [wanted], 0.0, CHUNK)
    with pytest.raises(ModelError, match=r"column 3 of layer 2 arrived with hash .* is damaged"):
        drain(pull, holder)
    assert pull.done_bytes == 5


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        ("unknown object", ModelError, r"cannot send blob 0 .*: unknown object"),
        ("bad range", ModelError, "bad range"),
        ("wrong run", RemoteError, "another run"),
    ],
)
def test_refusals_are_told(error, kind, text):
    holder = Holder(b"a")
    pull = Pull(1, holder.wanted, 0.0, CHUNK)
    (request,) = pull.next_requests(0.0)
    with pytest.raises(kind, match=text):
        pull.on_reply(BulkReply(request.object_id, 0, 0, 0, error), b"", 0.0)


def test_replies_nobody_asked_for_are_counted():
    pull = Pull(1, [], 0.0, CHUNK)
    assert pull.on_reply(BulkReply("x", 0, 1, 0), b"a", 0.0) is None
    assert pull.n_dropped == 1
    assert pull.done
