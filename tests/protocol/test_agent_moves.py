"""Two real agent processes move head groups: every row, every step, the same bits as without."""

import numpy as np
import pytest

from agent.frames import FrameType, Phase
from agent.kv_ops import KvOp, KvOpCode
from agent.kv_rows import export_rows, token_bytes
from agent.member import make_member
from agent.messages import Heartbeat, encode
from agent.migration_messages import (
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
from kernels.pool import Pool
from tests.protocol.agent_harness import assignment, make_model
from tests.protocol.moving_harness import moving

OPEN, FORK, TRUNCATE, RELEASE = KvOpCode
A, B = 0, 1  # ranks
TEXT = 7
REMOTE = Share(0, "a", "b", (Group(0, 0), Group(1, 0)))
LOCAL = Share(1, "b", "b", (Group(0, 1), Group(1, 1)))
NONE, BOTH = (0, 0), (0, 2)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    with make_model(tmp_path_factory.mktemp("moves") / "model") as directory:
        yield directory


class Text:
    """One text as it would be on a board that holds everything and never moves."""

    def __init__(self, directory):
        self.pool = Pool(1)
        told = assignment(directory, 1, columns=NONE)
        self.member = make_member(told, directory.manifest, directory.weights, self.pool)
        self.kv = self.member.kv
        self.kv.apply([KvOp(OPEN, TEXT, 150)])

    def numbers(self, layer, first, n_rows, seed=0):
        x = np.random.default_rng([seed, layer]).standard_normal((192, 64))[first : first + n_rows]
        return x.astype(np.float16).astype(np.float32)

    def attend(self, layer, first, n_rows, seed=0):
        """Write rows of one layer and return their partial sums, (n_rows, 64) f16."""
        slots, out = np.zeros(n_rows, np.int32), np.zeros((n_rows, 64), np.float32)
        rows = [(TEXT, first + i) for i in range(n_rows)]
        self.kv.prepare(np.array(rows, np.uint32), slots)
        self.member.kernels.begin(slots, np.array([r[1] for r in rows], np.int32))
        self.member.kernels.attention(layer, self.numbers(layer, first, n_rows, seed), out)
        return out.astype(np.float16)

    def rows(self, groups, first, n_tokens):
        local = [self.member.group_index[g.layer, g.group] for g in groups]
        return bytes(export_rows(self.kv, TEXT, local, first, n_tokens))

    @property
    def token_bytes(self):
        return token_bytes(self.kv.shape)


@pytest.fixture
def text(directory):
    text = Text(directory)
    yield text
    text.pool.close()


@pytest.fixture
def cluster(directory, text, tmp_path):
    """Agents a and b with half the head groups each in epoch 1; b alone has them in epoch 2."""
    text.attend(0, 0, 1)  # agents take a coordinator that compiles for dead
    with moving(directory, tmp_path) as c:
        for rank, name in enumerate("ab"):
            c.take_on(name, assignment(directory, c.run_id, 1, rank, groups=(rank, 1)))
        c.directory = directory
        for rank in (A, B):
            c.send(c.header(FrameType.KV), payload=ops(KvOp(OPEN, TEXT, 150)), rank=rank)
        yield c


def ops(*operations):
    from agent.kv_ops import pack_kv_ops

    return pack_kv_ops(operations)


def write(c, text, first, n_rows, epoch=1, ranks=(A, B), seed=0):
    """Write rows of both layers on agents; the sum of their answers is compared."""
    for layer in (0, 1):
        x = text.numbers(layer, first, n_rows, seed)
        expected = text.attend(layer, first, n_rows, seed)
        rows = [(TEXT, first + i) for i in range(n_rows)]
        for rank in ranks:
            header, payload = c.step(Phase.ATTENTION, layer, x, rows, epoch=epoch, rank=rank)
            assert header.type is FrameType.PARTIAL, payload
        if len(ranks) == 1:
            got = np.frombuffer(payload, np.float16).reshape(n_rows, -1)
            assert np.array_equal(got, expected)


def begin(c, shares=(REMOTE, LOCAL), epoch=2, **sizes):
    """Make b the target; a and b are ready for the new epoch, in which only b has head groups."""
    c.take_on("a", assignment(c.directory, c.run_id, epoch, A, groups=NONE))
    c.take_on("b", assignment(c.directory, c.run_id, epoch, B, groups=BOTH, columns=NONE, **sizes))
    c.begin_relay(epoch, shares, 64)
    c.say("a", Depart(c.run_id, epoch, epoch - 1, shares))
    c.say("b", Arrive(c.run_id, epoch, epoch - 1, shares))
    assert c.of("a", Begun) == Begun(c.run_id, epoch, arrives=False)
    assert c.of("b", Begun) == Begun(c.run_id, epoch, arrives=True)


def want(c, version, n_tokens, **changes):
    told = Want(c.run_id, 2, TEXT, version, n_tokens, reserve_tokens=150)
    told = type(told)(**({f: getattr(told, f) for f in told.__struct_fields__} | changes))
    c.say("b", told)


def have(c, version, n_tokens):
    return c.of("b", Have, where=lambda h: (h.version, h.n_tokens) == (version, n_tokens))


def read_back(c, name, epoch, text, n_tokens):
    """Return the rows that an agent has, by asking it as a source of a migration to come."""
    groups = tuple(Group(layer, g) for layer in (0, 1) for g in (0, 1))
    share = Share(0, name, "nobody", groups)
    c.say(name, Depart(c.run_id, epoch + 1, epoch, (share,)))
    c.of(name, Begun)
    token = f"token of {name}".encode()
    c.bulk_routes.pop(token, None)
    c.serve(lambda: token in c.bulk_routes)
    ask = KvAsk(c.run_id, epoch + 1, 900, 0, TEXT, 0, len(groups), 0, n_tokens)
    c.rows.clear()
    c.moves.send_multipart([c.bulk_routes[token], encode(ask)])
    c.serve(lambda: c.rows)
    return *c.rows[0], text.rows(groups, 0, n_tokens)


def test_head_groups_move_while_a_text_grows(cluster, text):
    c = cluster
    write(c, text, 0, 70)
    begin(c)
    c.passing = False
    want(c, 1, 70)
    # Both epochs live; the old one answers while rows are on their way, and between placements.
    c.serve(lambda: len(c.held) == 1)
    write(c, text, 70, 1)
    want(c, 1, 71)
    c.serve(lambda: len(c.held) == 2)
    c.pass_on(1)
    write(c, text, 71, 1)
    c.passing = True
    c.pass_on(len(c.held))
    write(c, text, 72, 1)
    have(c, 1, 71)
    # The text is cut and goes on differently.
    c.send(c.header(FrameType.KV), payload=ops(KvOp(TRUNCATE, TEXT, 40)), rank=A)
    c.send(c.header(FrameType.KV), payload=ops(KvOp(TRUNCATE, TEXT, 40)), rank=B)
    text.kv.apply([KvOp(TRUNCATE, TEXT, 40)])
    write(c, text, 40, 60, seed=1)
    want(c, 2, 100, floor=40)
    have(c, 2, 100)
    # The text's boundary: a last row, which it waits for; then it goes on in the new epoch.
    write(c, text, 100, 1, seed=1)
    want(c, 2, 101, urgent=True)
    have(c, 2, 101)
    assert all(ask.urgent == (ask.first >= 100) for ask in c.asks)
    write(c, text, 101, 1, epoch=2, ranks=(B,), seed=1)
    write(c, text, 102, 30, epoch=2, ranks=(B,), seed=1)
    for name in "ab":
        c.say(name, MoveEnd(c.run_id, 2, frees=1))
        assert c.of(name, MoveEnded) == MoveEnded(c.run_id, 2)
    header, data, expected = read_back(c, "b", 2, text, 132)
    assert not header.error
    assert data == expected


@pytest.mark.slow
def test_rows_leave_as_they_lie_in_the_pool(cluster, text):
    c = cluster
    write(c, text, 0, 70)
    begin(c)
    want(c, 1, 70)
    have(c, 1, 70)
    asked = {(a.first_group, a.n_groups, a.first, a.n_tokens) for a in c.asks}
    assert sorted(asked) == [(0, 2, 0, 70)]
    # Asked for twice where an answer was slow.
    assert {bytes(data) for _, data in c.rows} == {text.rows(REMOTE.groups, 0, 70)}


def test_the_end_of_a_move_frees_the_epoch_that_lost(cluster, text):
    c = cluster
    write(c, text, 0, 70)
    begin(c)
    kv_bytes = c.of("b", Heartbeat).kv_bytes
    want(c, 1, 70)
    have(c, 1, 70)
    assert c.of("b", Heartbeat, where=lambda h: h.kv_bytes > kv_bytes).epoch == 2
    for name in "ab":
        c.say(name, MoveEnd(c.run_id, 2, frees=2))
        c.of(name, MoveEnded)
        c.say(name, MoveEnd(c.run_id, 2, frees=2))
        c.of(name, MoveEnded)
    assert c.of("b", Heartbeat, where=lambda h: h.kv_bytes == kv_bytes).epoch == 1
    # The old plan never noticed; a frame of the epoch that lost is one of nobody's.
    c.send(c.header(FrameType.STEP, epoch=2), [(TEXT, 70)], b"\0" * 128, rank=B)
    write(c, text, 70, 1)
    # What is asked for now is refused.
    c.say("b", Arrive(c.run_id, 2, 1, (REMOTE,)))
    want(c, 1, 70)
    c.say("b", Arrive(c.run_id, 3, 1, (REMOTE,)))
    assert c.of("b", Begun, MoveFailed) == MoveFailed(c.run_id, 3, "epoch 3 is not on this agent")
    c.say("a", Depart(c.run_id, 4, 9, (REMOTE,)))
    assert c.of("a", Begun, MoveFailed) == MoveFailed(c.run_id, 4, "epoch 9 is not on this agent")


@pytest.mark.slow
def test_the_memory_of_the_epoch_that_lost_is_given_back(cluster, text):
    c = cluster
    n = 1 << 19
    write(c, text, 0, 70)
    before_bytes = c.resident_bytes("b")
    begin(c, context_tokens=n, kv_tokens=n)
    pool_bytes = 4 * n * text.token_bytes
    assert pool_bytes > 100 << 20
    assert c.resident_bytes("b") > before_bytes + pool_bytes
    want(c, 1, 70)
    have(c, 1, 70)
    c.say("b", MoveEnd(c.run_id, 2, frees=2))
    c.of("b", MoveEnded)
    c.serve(lambda: c.resident_bytes("b") < before_bytes + pool_bytes // 4)
    write(c, text, 70, 1)


@pytest.mark.slow
def test_forks_and_released_texts(cluster, text):
    c = cluster
    write(c, text, 0, 70)
    begin(c)
    used_bytes = c.of("b", Heartbeat).kv_bytes
    want(c, 1, 70)
    have(c, 1, 70)
    # A fork shares the page that is full, in the copy too.
    child = Want(c.run_id, 2, 8, 1, 66, fork_of=TEXT, fork_version=1, fork_tokens=66)
    n_asks = len(c.asks)
    c.say("b", child)
    assert c.of("b", Have) == Have(c.run_id, 2, 8, 1, 66)
    assert len(c.asks) == n_asks
    page_bytes = text.kv.shape.page_bytes
    c.of("b", Heartbeat, where=lambda h: h.kv_bytes == used_bytes + 4 * 3 * page_bytes)
    for kv_id in (TEXT, 8):
        c.say("b", Want(c.run_id, 2, kv_id, 2, 0, gone=True))
        assert c.of("b", Have) == Have(c.run_id, 2, kv_id, 2, 0, gone=True)
    c.of("b", Heartbeat, where=lambda h: h.kv_bytes == used_bytes)


@pytest.mark.slow
def test_a_broken_bulk_link_is_dialled_anew(cluster, text):
    c = cluster
    write(c, text, 0, 70)
    begin(c)
    c.passing = False
    want(c, 1, 70)
    c.serve(lambda: c.held)
    # What was on its way is lost with the link; both agents find the new one by themselves.
    c.held.clear()
    routes = c.rebind_bulk()
    c.passing = True
    have(c, 1, 70)
    assert not routes & set(c.bulk_routes.values())
    write(c, text, 70, 1, epoch=1)


@pytest.mark.slow
def test_damaged_and_malformed_rows_do_no_harm(cluster, text):
    c = cluster
    write(c, text, 0, 70)
    begin(c)
    n_spoilt = []

    def spoil(data):
        n_spoilt.append(1)
        return data if len(n_spoilt) > 2 else data[:-1] + bytes([data[-1] ^ 1])

    c.spoil = spoil
    route = []

    def bulk_route_of_b():
        route[:] = [c.bulk_routes.get(b"token of b")]
        return route[0] is not None

    want(c, 1, 70)
    c.serve(bulk_route_of_b)
    rows = encode(KvRows(c.run_id, 2, 1, 5))
    for junk in ([b""], [b"junk"], [rows], [rows, b"1", b"2"], [rows, b"short"],
                 [encode(KvRows(c.run_id, 2, 999, 5)), b"x"], [encode(KvRows(1, 2, 1)), b""],
                 [encode(KvAsk(c.run_id, 2, 1, 0, TEXT, 0, 1, 0, 1)), b"x"]):  # fmt: skip
        c.moves.send_multipart([route[0], *junk])
    have(c, 1, 70)
    assert len(n_spoilt) > 2
    write(c, text, 70, 1)
    want(c, 1, 71, urgent=True)
    have(c, 1, 71)
    write(c, text, 71, 1, epoch=2, ranks=(B,))


@pytest.mark.slow
def test_a_source_gives_only_what_was_named(cluster, text):
    c = cluster
    write(c, text, 0, 70)
    begin(c)
    token = b"token of a"
    c.serve(lambda: token in c.bulk_routes)
    good = KvAsk(c.run_id, 2, 1, 0, TEXT, 0, 2, 0, 70)
    cases = {
        "": {}, "wrong run": {"run_id": 1}, "no grant": {"share": 1}, "not here": {"kv_id": 8},
        "bad range": {"first_group": 1},
    }  # fmt: skip
    for number, (error, changes) in enumerate(cases.items()):
        c.rows.clear()
        fields = {f: getattr(good, f) for f in good.__struct_fields__}
        ask = KvAsk(**(fields | {"number": number} | changes))
        c.moves.send_multipart([c.bulk_routes[token], encode(ask)])
        c.serve(lambda: c.rows)
        ((reply, data),) = c.rows
        assert (reply.number, reply.error) == (number, error)
        assert data == (b"" if error else text.rows(REMOTE.groups, 0, 70))
    c.rows.clear()
    ask = KvAsk(**({f: getattr(good, f) for f in good.__struct_fields__} | {"n_tokens": 71}))
    c.moves.send_multipart([c.bulk_routes[token], encode(ask)])
    c.serve(lambda: c.rows)
    assert c.rows[0][0].error == "not here"


def test_a_mirror_takes_the_place_of_a_board_that_is_gone(cluster, text):
    c = cluster
    write(c, text, 0, 70)
    mirrored = Share(0, "a", "b", REMOTE.groups)
    c.begin_relay(3, (mirrored,), 64)
    c.say("a", Depart(c.run_id, 3, 1, (mirrored,)))
    c.say("b", Arrive(c.run_id, 3, 1, (mirrored,), mirror=True))
    assert c.of("b", Begun) == Begun(c.run_id, 3, arrives=True)
    c.say("b", Want(c.run_id, 3, TEXT, 1, 70, reserve_tokens=150))
    have(c, 1, 70)
    write(c, text, 70, 5)
    c.say("b", Want(c.run_id, 3, TEXT, 1, 75))
    have(c, 1, 75)
    # No more of board a; b alone goes on, from its mirror and from what it had itself.
    c.agents["a"].popen.kill()
    c.take_on("b", assignment(c.directory, c.run_id, 4, B, groups=BOTH, columns=NONE))
    shares = (
        Share(0, "b", "b", REMOTE.groups, of_epoch=3),
        Share(1, "b", "b", LOCAL.groups),
    )
    c.begin_relay(4, shares, 64)
    c.say("b", Arrive(c.run_id, 4, 1, shares))
    assert c.of("b", Begun) == Begun(c.run_id, 4, arrives=True)
    c.say("b", Want(c.run_id, 4, TEXT, 1, 75, reserve_tokens=150))
    have(c, 1, 75)
    c.say("b", MoveEnd(c.run_id, 4, frees=1))
    assert c.of("b", MoveEnded) == MoveEnded(c.run_id, 4)
    c.say("b", MoveEnd(c.run_id, 3, frees=3))
    assert c.of("b", MoveEnded) == MoveEnded(c.run_id, 3)
    write(c, text, 75, 20, epoch=4, ranks=(B,))
    reply, data, expected = read_back(c, "b", 4, text, 95)
    assert not reply.error
    assert data == expected
