"""A real agent process against the same kernels called in this process: equal bit for bit."""

import numpy as np
import pytest

from agent.frames import FrameType, Phase, Wire
from agent.kv_ops import KvOp, KvOpCode
from agent.member import make_member
from agent.messages import Heartbeat, Ready, Release
from agent.vocab_payload import SamplerRow, pack_sampler_rows, read_top_rows
from agent.zmq_calls import PLAIN_VARIABLE
from kernels.pool import Pool
from kernels.vocab import log_sum_exp
from tests.protocol.agent_harness import assignment, make_model, running

OPEN, FORK, TRUNCATE, RELEASE = KvOpCode
GREEDY = pack_sampler_rows([SamplerRow()])


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    with make_model(tmp_path_factory.mktemp("steps") / "model") as directory:
        yield directory


@pytest.fixture(scope="module")
def compiled_here(directory):
    """Compile the kernels that tests run here: agents take a coordinator that is busy for dead."""
    pool = Pool(1)
    member = make_member(assignment(directory, 1), directory.manifest, directory.weights, pool)
    member.kv.apply([KvOp(OPEN, 1, 100)])
    begin(member, [(1, 0)])
    x = numbers(1, 0)
    member.kernels.run_layers(x.copy())
    member.kernels.logits(x, np.zeros((1, member.kernels.n_local_rows), np.float32))
    pool.close()


@pytest.fixture(scope="module", params=["compiled", "plain"])
def joined(directory, compiled_here, tmp_path_factory, request):
    """A coordinator whose one agent has pulled a whole model and is READY.

    Twice: with phases served by compiled code where they may be, and all of them by Python.
    """
    env = {PLAIN_VARIABLE: "1" if request.param == "plain" else "0"}
    with running(directory, tmp_path_factory.mktemp("agent"), env=env) as (coordinator, _):
        ready = coordinator.join()
        assert isinstance(ready, Ready)
        assert ready.pulled_bytes > 0
        yield coordinator


@pytest.fixture
def cluster(joined):
    """The same agent with context 1 open; all contexts are closed afterwards."""
    joined.kv(KvOp(OPEN, 1, 100))
    yield joined
    joined.kv(KvOp(RELEASE, 1))


@pytest.fixture
def local(directory):
    """The member's kernels in this process, with context 1 in slot 0."""
    pool = Pool(1)
    member = make_member(assignment(directory, 1), directory.manifest, directory.weights, pool)
    member.kv.apply([KvOp(OPEN, 1, 100)])
    yield member
    pool.close()


def begin(member, rows):
    slots = np.zeros(len(rows), np.int32)
    member.kv.prepare(np.array(rows, np.uint32), slots)
    member.kernels.begin(slots, np.array([r[1] for r in rows], np.int32))


def numbers(n_rows, seed=0):
    x = np.random.default_rng(seed).standard_normal((n_rows, 64))
    return x.astype(np.float16).astype(np.float32)


def as_array(payload, wire, n_rows):
    return np.frombuffer(payload, np.float16 if wire is Wire.F16 else np.float32).reshape(
        n_rows, -1
    )


def rounded(x, wire):
    return x.astype(np.float16) if wire is Wire.F16 else x


@pytest.mark.parametrize("wire", Wire)
@pytest.mark.parametrize("n_rows", [1, 5, 80])
def test_partials_are_those_of_the_kernels(cluster, local, wire, n_rows):
    rows = [(1, pos) for pos in range(n_rows)]
    begin(local, rows)
    for layer in (0, 1):
        for phase in (Phase.ATTENTION, Phase.MLP):
            x = numbers(n_rows, layer)
            expected = np.zeros_like(x)
            run = local.kernels.mlp if phase is Phase.MLP else local.kernels.attention
            run(layer, x, expected)
            header, payload = cluster.step(phase, layer, x, rows, wire=wire)
            assert (header.type, header.wire) == (FrameType.PARTIAL, wire)
            assert (header.layer, header.phase) == (layer, phase)
            assert np.array_equal(as_array(payload, wire, n_rows), rounded(expected, wire))


@pytest.mark.parametrize("wire", Wire)
def test_a_stage_is_the_sum_of_its_phases(cluster, local, wire):
    rows, x = [(1, 0), (1, 1), (1, 2)], numbers(3)
    begin(local, rows)
    residual = x.copy()
    local.kernels.run_layers(residual)
    header, payload = cluster.step(Phase.STAGE, 0, x, rows, wire=wire)
    assert header.type is FrameType.RESIDUAL
    assert np.array_equal(as_array(payload, wire, 3), rounded(residual, wire))
    header, payload = cluster.step(Phase.STAGE, 0, x, rows, wire=wire, vocab_after=True)
    assert (header.type, payload) == (FrameType.RESIDUAL, b"")


def test_the_vocabulary_answers_with_its_best(cluster, local):
    x = numbers(2, 5)
    penalised = np.array([7, 299, 12], np.uint32)
    samplers = [SamplerRow(), SamplerRow(0.5, 1.7, False, penalised)]
    begin(local, [(1, 0), (1, 1)])
    logits = np.zeros((2, 300), np.float32)
    local.kernels.logits(x, logits)
    low = logits[1, penalised]
    logits[1, penalised] = np.where(low > 0, low / np.float32(1.7), low * np.float32(1.7))
    block = pack_sampler_rows(samplers)
    header, payload = cluster.step(Phase.VOCAB, 1, x, [(1, 0), (1, 1)], n_vocab_rows=2, block=block)
    assert header.type is FrameType.TOP
    # A greedy row needs only the best.
    wanted = zip(logits, read_top_rows(payload, 2), (1.0, 0.5), (1, 256), strict=True)
    for row, top, t, n in wanted:
        order = np.lexsort((np.arange(300), -row))[:n]
        assert np.array_equal(top.ids, order)
        assert np.array_equal(top.logits, row[order])
        assert top.log_sum_exp == log_sum_exp(row, t)


def test_full_logits_of_the_last_rows_of_a_stage(cluster, local):
    rows, x = [(1, pos) for pos in range(6)], numbers(6, 9)
    begin(local, rows)
    residual = x.copy()
    local.kernels.run_layers(residual)
    begin(local, rows[4:])
    expected = np.zeros((2, 300), np.float32)
    local.kernels.logits(residual[4:].copy(), expected)
    block = pack_sampler_rows([SamplerRow(full_logits=True)] * 2)
    header, payload = cluster.step(
        Phase.STAGE, 0, x, rows, n_vocab_rows=2, block=block, vocab_after=True
    )
    assert header.type is FrameType.LOGITS
    assert np.array_equal(as_array(payload, Wire.F32, 2), expected)
    # The same of all rows, which layers and vocabulary take in one call.
    header, payload = cluster.step(
        Phase.STAGE, 0, x, rows, n_vocab_rows=6, block=3 * block, vocab_after=True
    )
    assert np.array_equal(as_array(payload, Wire.F32, 6)[4:], expected)
    greedy = pack_sampler_rows([SamplerRow()] * 6)
    header, payload = cluster.step(
        Phase.STAGE, 0, x, rows, n_vocab_rows=6, block=greedy, vocab_after=True
    )
    assert header.type is FrameType.TOP
    best = np.concatenate([top.ids for top in read_top_rows(payload, 6)])
    assert np.array_equal(best[4:], expected.argmax(axis=1))
    # The same rows go on as if nothing had happened.
    header, payload = cluster.step(Phase.STAGE, 0, x, rows, wire=Wire.F32)
    assert np.array_equal(as_array(payload, Wire.F32, 6), residual)


@pytest.mark.parametrize("wire", Wire)
def test_tokens_of_a_text_one_after_the_other(cluster, local, wire):
    logits = np.zeros((1, 300), np.float32)
    for pos in range(70):
        x = numbers(1, pos)
        begin(local, [(1, pos)])
        header, payload = cluster.step(
            Phase.STAGE, 0, x, [(1, pos)], n_vocab_rows=1, block=GREEDY, vocab_after=True, wire=wire
        )
        local.kernels.run_all(x, logits)
        assert header.type is FrameType.TOP
        (top,) = read_top_rows(payload, 1)
        assert top.ids.tolist() == [logits[0].argmax()]
        assert top.logits.tolist() == [logits[0].max()]
        assert top.log_sum_exp == log_sum_exp(logits[0], 1.0)


def test_a_repeated_step_gives_the_same_answer(cluster):
    rows, x = [(1, pos) for pos in range(4)], numbers(4)
    first = cluster.step(Phase.ATTENTION, 1, x, rows)[1]
    assert cluster.step(Phase.ATTENTION, 1, x, rows)[1] == first
    # Rows in pieces, or a later token and back: context lives in positions, not in the agent.
    pieces = [cluster.step(Phase.ATTENTION, 1, x[i : i + 1], rows[i : i + 1])[1] for i in range(4)]
    assert b"".join(pieces) == first


def test_contexts_in_one_frame_do_not_meet(cluster):
    cluster.kv(KvOp(OPEN, 2, 10), KvOp(OPEN, 3, 10))
    x = numbers(3)
    alone = [cluster.step(Phase.ATTENTION, 0, x[i : i + 1], [(i + 1, 0)])[1] for i in range(3)]
    together = cluster.step(Phase.ATTENTION, 0, x, [(1, 0), (2, 0), (3, 0)])[1]
    assert together == b"".join(alone)
    cluster.kv(KvOp(RELEASE, 2), KvOp(RELEASE, 3))


def test_a_fork_goes_its_own_way(cluster):
    x = numbers(71)
    cluster.step(Phase.ATTENTION, 0, x[:70], [(1, pos) for pos in range(70)])
    cluster.kv(KvOp(FORK, 2, 1, 69))
    one = cluster.step(Phase.ATTENTION, 0, x[70:], [(1, 70)])[1]
    cluster.step(Phase.ATTENTION, 0, -x[:2], [(2, 69), (2, 70)])
    assert cluster.step(Phase.ATTENTION, 0, x[70:], [(1, 70)])[1] == one
    same_again = cluster.step(Phase.ATTENTION, 0, x[69:], [(2, 69), (2, 70)])[1]
    assert same_again[len(one) :] == one
    cluster.kv(KvOp(TRUNCATE, 1, 10), KvOp(RELEASE, 2))
    header, _ = cluster.step(Phase.ATTENTION, 0, x[:1], [(1, 11)])
    assert header.type is FrameType.ERROR


ERRORS = {
    "unknown context": (dict(phase=0, layer=0, rows=[(9, 0)]), "context 9 is not open"),
    "hole": (dict(phase=0, layer=0, rows=[(1, 5)]), "position 5 to 5 does not fit"),
    "beyond context": (dict(phase=3, layer=0, rows=[(1, 2**31)]), "at most 192 tokens"),
    "layer": (dict(phase=1, layer=2, rows=[(1, 0)]), "layer 2 is not in this member's stage"),
    "too many rows": (
        dict(phase=0, layer=0, rows=[(1, i) for i in range(81)]), "the plan allows 1 to 80"),
    "no rows": (dict(phase=0, layer=0, rows=[]), "STEP of 0 rows"),
    "payload too long": (dict(phase=0, layer=0, rows=[(1, 0)], block=b"1234"), "132 bytes"),
    "no sampler": (
        dict(phase=2, layer=0, rows=[(1, 0)], n_vocab_rows=1), "sampler block of 0 bytes ends"),
    "fewer vocab rows": (
        dict(phase=2, layer=0, rows=[(1, 0), (1, 1)], n_vocab_rows=1, block=GREEDY),
        "VOCAB step with 1 vocab rows of 2"),
    "vocab rows of a stage": (
        dict(phase=3, layer=0, rows=[(1, 0)], n_vocab_rows=1, block=GREEDY), "without VOCAB_AFTER"),
    "mixed": (
        dict(phase=2, layer=0, rows=[(1, 0), (1, 1)], n_vocab_rows=2,
             block=pack_sampler_rows([SamplerRow(), SamplerRow(full_logits=True)])), "send two"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_steps_that_cannot_be_run_are_answered_with_an_error(cluster, case):
    fields, text = ERRORS[case]
    rows = fields["rows"]
    header, payload = cluster.step(x=numbers(len(rows)), **fields)
    assert header.type is FrameType.ERROR
    assert text in payload.decode()
    header, _ = cluster.step(Phase.ATTENTION, 0, numbers(1), [(1, 0)])
    assert header.type is FrameType.PARTIAL


def test_failing_kv_operations_are_told_with_their_seq(cluster):
    for op, text in [
        (KvOp(RELEASE, 77), "context 77 is not open"),
        (KvOp(OPEN, 5, 1000), "asks for 1000 tokens; the plan allows 192"),
        (KvOp(FORK, 6, 1, 50), "context 1 has 0 tokens; 50 cannot be shared"),
    ]:
        seq = cluster.kv(op)
        header, payload = cluster.receive()
        assert (header.type, header.seq) == (FrameType.ERROR, seq)
        assert text in payload.decode()


def test_foreign_and_malformed_frames_are_dropped_in_silence(cluster):
    step = cluster.header(FrameType.STEP)
    cluster.send(step._replace(run_id=1), [(1, 0)], b"\0" * 128)
    cluster.send(step._replace(epoch=2), [(1, 0)], b"\0" * 128)
    cluster.send(cluster.header(FrameType.PING))
    cluster.send(cluster.header(FrameType.HELLO))
    for junk in (b"", b"\0" * 40, b"H\x01" + b"\xff" * 100, b"x" * 5000):
        cluster.hot.send_multipart([cluster.routes[0], junk])
    cluster.hot.send_multipart([cluster.routes[0], b"one", b"two"])
    # The next reply answers the next step: nothing else came back.
    header, _ = cluster.step(Phase.ATTENTION, 0, numbers(1), [(1, 0)])
    assert header.type is FrameType.PARTIAL


def steady(cluster):
    """Bring the agent to serve frames like the last one without Python, if it does that at all."""
    for layer in (0, 1):
        header, _ = cluster.step(Phase.ATTENTION, layer, numbers(1), [(1, 0)])
        assert header.type is FrameType.PARTIAL


def test_the_same_frame_with_a_foreign_run_or_epoch_is_dropped_in_the_middle_of_a_step(cluster):
    for change in ({"run_id": 1}, {"epoch": 2}, {"epoch": 0}):
        steady(cluster)
        step = cluster.header(FrameType.STEP, layer=1)
        cluster.send(step._replace(**change), [(1, 0)], b"\0" * 128)
        header, _ = cluster.step(Phase.MLP, 1, numbers(1), [(1, 0)])
        assert header.type is FrameType.PARTIAL


def test_two_epochs_are_told_apart_and_a_released_one_is_not_served(joined, directory):
    """The second epoch's HELLO is written where the reply to the first epoch's last phase lies."""
    epoch = joined.next_epoch = getattr(joined, "next_epoch", 1) + 1
    joined.kv(KvOp(OPEN, 1, 100))
    steady(joined)
    assert isinstance(joined.assign(assignment(directory, joined.run_id, epoch), (Ready,)), Ready)
    header, payload = joined.step(Phase.MLP, 1, numbers(1), [(1, 0)])
    assert (header.type, header.epoch, len(payload)) == (FrameType.PARTIAL, 1, 128)
    joined.kv(KvOp(OPEN, 1, 100), epoch=epoch)
    for layer in (0, 1):
        header, _ = joined.step(Phase.MLP, layer, numbers(1), [(1, 0)], epoch=epoch)
        assert (header.type, header.epoch) == (FrameType.PARTIAL, epoch)
    joined.tell(Release(epoch))
    # Heartbeats name the newest epoch; one more is later than the hot loop's next look round.
    while joined.until(Heartbeat).epoch == epoch:
        pass
    joined.until(Heartbeat)
    joined.send(joined.header(FrameType.STEP, phase=Phase.MLP, epoch=epoch), [(1, 0)], b"\0" * 128)
    header, _ = joined.step(Phase.MLP, 1, numbers(1), [(1, 0)])
    assert (header.type, header.epoch) == (FrameType.PARTIAL, 1)
    joined.kv(KvOp(RELEASE, 1))


@pytest.mark.parametrize("layer", [2, 255, 65535])
def test_a_layer_that_is_not_there_is_an_error_in_the_middle_of_a_step(cluster, layer):
    steady(cluster)
    header, payload = cluster.step(Phase.MLP, layer, numbers(1), [(1, 0)])
    assert header.type is FrameType.ERROR
    assert f"layer {layer} is not in this member's stage" in payload.decode()
    steady(cluster)


def test_a_context_that_closes_in_the_middle_of_a_step_is_missed_by_the_next_phase(cluster):
    cluster.kv(KvOp(OPEN, 9, 10))
    for layer in (0, 1):
        header, _ = cluster.step(Phase.ATTENTION, layer, numbers(1), [(9, 0)])
        assert header.type is FrameType.PARTIAL
    cluster.kv(KvOp(RELEASE, 9))
    header, payload = cluster.step(Phase.ATTENTION, 1, numbers(1), [(9, 0)])
    assert header.type is FrameType.ERROR
    assert "context 9 is not open" in payload.decode()


def test_rows_wire_and_vocabulary_may_change_between_phases(cluster, local):
    for wire, rows in [(Wire.F16, [(1, 0)]), (Wire.F32, [(1, 0)]), (Wire.F16, [(1, 1)]),
                       (Wire.F16, [(1, 1), (1, 2)]), (Wire.F16, [(1, 2), (1, 1)])]:  # fmt: skip
        x, out = numbers(len(rows), seed=rows[0][1]), np.zeros((len(rows), 64), np.float32)
        begin(local, rows)
        for layer in (0, 1):
            for phase in (Phase.ATTENTION, Phase.MLP):
                header, payload = cluster.step(phase, layer, x, rows, wire=wire)
                run = local.kernels.attention if phase is Phase.ATTENTION else local.kernels.mlp
                run(layer, x, out)
                assert (header.layer, header.phase, header.wire) == (layer, phase, wire)
                assert np.array_equal(as_array(payload, wire, len(rows)), rounded(out, wire))
        header, _ = cluster.step(
            Phase.VOCAB, 1, x[:1], rows[:1], n_vocab_rows=1, block=GREEDY, wire=wire
        )
        assert header.type is FrameType.TOP


def test_heartbeats_show_progress(cluster):
    before = cluster.until(Heartbeat)
    cluster.step(Phase.ATTENTION, 0, numbers(1), [(1, 0)])
    while (after := cluster.until(Heartbeat)).progress <= before.progress:
        pass
    assert after.epoch == 1
    assert after.kv_free_pages >= 1
    assert after.resident_bytes > 0
    assert after.memory_available_bytes > 0
