import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agent.kv import KvPool, KvShape, pool_pages
from agent.kv_ops import KvOp, KvOpCode
from kernels.errors import ResourceError, WireError
from kernels.paging import PAGE_TOKENS

P = 64
SHAPE = KvShape(
    n_groups=2, head_dim=2, dtype=np.uint16, context_tokens=3 * P, kv_tokens=5 * P, n_contexts=4
)
KV_IDS = st.integers(1, 4)
TOKENS = st.sampled_from([0, 1, 63, 64, 65, 100, 128, 191, 192, 193])


def op(code, kv_id, a=0, b=0):
    return [KvOp(code, kv_id, a, b)]


def step(pool, *rows):
    table = np.array(rows, np.uint32)
    slots = np.full(len(rows), -1, np.int32)
    pool.prepare(table, slots)
    return slots


def write(pool, kv_id, first, n_tokens, value):
    """Do what the attention kernel does: put `value` where each position's V lies."""
    slots = step(pool, *[(kv_id, pos) for pos in range(first, first + n_tokens)])
    for pos in range(first, first + n_tokens):
        for page in pool.page_table[slots[0], :, pos // P]:
            pool.pages[page, P * 2 + (pos % P) * 2] = value


def read(pool, kv_id, n_tokens):
    slot = pool._slot_of[kv_id]
    return [
        {
            int(pool.pages[page, P * 2 + (pos % P) * 2])
            for page in pool.page_table[slot, :, pos // P]
        }
        for pos in range(n_tokens)
    ]


class KvPoolMachine(RuleBasedStateMachine):
    """The pool against a model: a dict from kv_id to the list of values written."""

    def __init__(self):
        super().__init__()
        self.pool = KvPool(SHAPE._replace(n_groups=1, kv_tokens=P))
        self.model = {}
        self.stamp = 0

    def attempt(self, action):
        try:
            action()
        except (WireError, ResourceError):
            return False
        return True

    @rule(kv_id=KV_IDS, n_tokens=TOKENS)
    def open(self, kv_id, n_tokens):
        if self.attempt(lambda: self.pool.apply(op(KvOpCode.OPEN, kv_id, n_tokens))):
            self.model.setdefault(kv_id, [])
        else:
            assert kv_id not in self.model or n_tokens > 0

    @rule(kv_id=KV_IDS, source=KV_IDS, n_tokens=TOKENS)
    def fork(self, kv_id, source, n_tokens):
        if self.attempt(lambda: self.pool.apply(op(KvOpCode.FORK, kv_id, source, n_tokens))):
            assert kv_id not in self.model
            assert n_tokens <= len(self.model[source])
            self.model[kv_id] = self.model[source][:n_tokens]

    @rule(kv_id=KV_IDS, n_tokens=TOKENS)
    def truncate(self, kv_id, n_tokens):
        done = self.attempt(lambda: self.pool.apply(op(KvOpCode.TRUNCATE, kv_id, n_tokens)))
        assert done == (kv_id in self.model)
        if done:
            del self.model[kv_id][n_tokens:]

    @rule(kv_id=KV_IDS)
    def release(self, kv_id):
        done = self.attempt(lambda: self.pool.apply(op(KvOpCode.RELEASE, kv_id)))
        assert done == (kv_id in self.model)
        self.model.pop(kv_id, None)

    @rule(kv_id=KV_IDS, back=st.integers(0, 3), n_tokens=TOKENS.filter(bool))
    def write(self, kv_id, back, n_tokens):
        first = max(0, len(self.model.get(kv_id, [])) - back)
        self.stamp += 1
        if self.attempt(lambda: write(self.pool, kv_id, first, n_tokens, self.stamp)):
            values = self.model[kv_id]
            values[first : first + n_tokens] = [self.stamp] * n_tokens

    @invariant()
    def books_are_in_order(self):
        self.pool.check()

    @invariant()
    def contexts_see_their_own_tokens(self):
        for kv_id, values in self.model.items():
            assert self.pool.n_tokens(kv_id) == len(values)
            assert read(self.pool, kv_id, len(values)) == [{v} for v in values]


KvPoolMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestKvPoolMachine = KvPoolMachine.TestCase


def test_reserved_pages_are_there_when_their_tokens_come():
    pool = KvPool(SHAPE)
    pool.apply(op(KvOpCode.OPEN, 1, 3 * P))
    pool.apply(op(KvOpCode.OPEN, 2, 0))
    for context_tokens in range(P, 4 * P, P):
        step(pool, *[(2, pos) for pos in range(context_tokens - P, context_tokens)])
    pool.apply(op(KvOpCode.OPEN, 3, 2 * P))
    with pytest.raises(ResourceError, match="needs 3 KV pages for 150 tokens but 0 of 8 are free"):
        pool.apply(op(KvOpCode.OPEN, 4, 150))
    for kv_id, n_tokens in ((1, 3 * P), (3, 2 * P)):
        step(pool, *[(kv_id, pos) for pos in range(n_tokens)])
    with pytest.raises(ResourceError, match="context 3 needs one more KV page"):
        step(pool, (3, 2 * P))
    pool.check()


def test_open_beyond_the_pool_says_what_is_missing():
    pool = KvPool(SHAPE._replace(n_contexts=3, kv_tokens=3 * P, context_tokens=3 * P))
    pool.apply(op(KvOpCode.OPEN, 1, 3 * P))
    with pytest.raises(
        ResourceError, match=r"context 2 needs 3 KV pages for 150 tokens but 2 of 5 are free"
    ):
        pool.apply(op(KvOpCode.OPEN, 2, 150))
    with pytest.raises(ResourceError, match="asks for 193 tokens; the plan allows 192"):
        pool.apply(op(KvOpCode.OPEN, 2, 3 * P + 1))


def test_slots_run_out_with_a_clear_error():
    pool = KvPool(SHAPE)
    for kv_id in range(4):
        pool.apply(op(KvOpCode.OPEN, kv_id, 1))
    with pytest.raises(ResourceError, match="all 4 contexts are in use"):
        pool.apply(op(KvOpCode.OPEN, 9, 1))
    pool.apply(op(KvOpCode.RELEASE, 2))
    pool.apply(op(KvOpCode.OPEN, 9, 1))


def test_rows_of_several_contexts_in_any_order():
    pool = KvPool(SHAPE)
    for kv_id in (7, 3):
        pool.apply(op(KvOpCode.OPEN, kv_id, 10))
    slots = step(pool, (7, 1), (3, 0), (7, 0), (3, 1), (7, 2))
    assert slots[0] == slots[2] == slots[4]
    assert slots[1] == slots[3] != slots[0]
    assert (pool.n_tokens(7), pool.n_tokens(3)) == (3, 2)


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([(2, 0)], "context 2 is not open"),
        ([(1, 5)], r"context 1 has 4 of at most 192 tokens; position 5 to 5 does not fit"),
        ([(1, 2**32 - 1)], "position 4294967295"),
        ([(1, 3), (1, 5)], "from position 3 to 5; the rows of one step must be consecutive"),
        ([(1, 4), (1, 4)], "from position 4 to 4"),
        ([(1, 4), (2, 0)], "context 2 is not open"),
    ],
)
def test_bad_rows_are_refused(rows, text):
    pool = KvPool(SHAPE)
    pool.apply(op(KvOpCode.OPEN, 1, 10))
    write(pool, 1, 0, 4, 9)
    with pytest.raises(WireError, match=text):
        step(pool, *rows)
    pool.check()


def test_a_member_without_groups_keeps_the_same_books_and_takes_holes():
    pool = KvPool(SHAPE._replace(n_groups=0))
    assert pool.pages.shape[0] == 1
    assert pool.page_table.shape == (4, 0, 3)
    assert pool.page_table.flags.carray
    pool.apply(op(KvOpCode.OPEN, 1, 10))
    step(pool, (1, 100))
    pool.check()


@pytest.mark.parametrize("n_contexts", [1, 2, 5])
def test_pool_holds_its_tokens_however_contexts_share_them(n_contexts):
    shape = SHAPE._replace(n_contexts=n_contexts, kv_tokens=4 * P, context_tokens=4 * P)
    shares = [1] * (n_contexts - 1) + [4 * P - n_contexts + 1]
    pool = KvPool(shape)
    for kv_id, n_tokens in enumerate(shares):
        pool.apply(op(KvOpCode.OPEN, kv_id, n_tokens))
    for kv_id, n_tokens in enumerate(shares):
        step(pool, *[(kv_id, pos) for pos in range(n_tokens)])
    assert pool_pages(shape) <= 4 + n_contexts - 1
    pool.check()


@pytest.mark.parametrize("end", [KvOpCode.TRUNCATE, KvOpCode.RELEASE])
def test_pages_that_a_fork_keeps_are_no_longer_reserved(end):
    pool = KvPool(SHAPE._replace(kv_tokens=P))
    pool.apply(op(KvOpCode.OPEN, 1, 3 * P))
    write(pool, 1, 0, 3 * P, 5)
    pool.apply(op(KvOpCode.FORK, 2, 1, 3 * P))
    pool.apply(op(end, 1, 10))
    pool.check()
    pool.apply(op(KvOpCode.RELEASE, 2))
    pool.check()
    pool.apply(op(KvOpCode.OPEN, 1, 3 * P))
    write(pool, 1, 0 if end is KvOpCode.RELEASE else 10, P, 6)
    pool.check()


def test_a_fork_copies_bytes_with_their_scales():
    pool = KvPool(SHAPE._replace(dtype=np.int8))
    pool.apply(op(KvOpCode.OPEN, 1, 3 * P))
    slots = step(pool, *[(1, pos) for pos in range(P + 3)])
    last = pool.page_table[slots[0], :, 1]
    pool.pages[last] = np.random.default_rng(1).integers(-127, 127, pool.pages[last].shape)
    pool.apply(op(KvOpCode.FORK, 2, 1, P + 3))
    (slot,) = step(pool, (2, P + 3))
    copied = pool.page_table[slot, :, 1]
    assert not set(copied) & set(last)
    assert pool.pages.dtype == np.int8
    assert pool.pages.shape[1] == 2 * P * 2 + 2 * P * 4  # K, V, and a scale of each position
    assert np.array_equal(pool.pages[copied], pool.pages[last])


def test_a_context_grows_by_itself_as_far_as_its_own_pages_go():
    pool = KvPool(KvShape(2, 16, np.dtype(np.uint16), 4 * PAGE_TOKENS, 12 * PAGE_TOKENS, 3))
    pool.apply([KvOp(KvOpCode.OPEN, 1, 4 * PAGE_TOKENS)])
    assert pool.own_tokens(1, 0) == 0
    step(pool, (1, 0))
    assert pool.own_tokens(1, 1) == PAGE_TOKENS
    pool.extend(1, 2 * PAGE_TOKENS + 1)
    assert pool.own_tokens(1, 1) == 3 * PAGE_TOKENS
    pool.apply([KvOp(KvOpCode.FORK, 2, 1, PAGE_TOKENS)])
    assert pool.own_tokens(1, 1) == 0
    assert pool.own_tokens(1, PAGE_TOKENS) == 3 * PAGE_TOKENS
    assert pool.own_tokens(2, PAGE_TOKENS) == PAGE_TOKENS
    pool.note_written(1, PAGE_TOKENS + 5)
    assert pool.n_tokens(1) == PAGE_TOKENS + 5
    pool.check()
