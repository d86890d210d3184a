"""The coordinator's hot path against members that do as they please, over real sockets.

Every case runs twice: with the phases of a step walked by compiled code, and all in Python.
"""

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from agent.frames import HEADER_BYTES, FrameType, Phase, Wire
from agent.ids import Epoch
from agent.zmq_calls import PLAIN_VARIABLE
from coordinator import engine as engine_module
from coordinator.hot_link import HotPeer
from kernels.errors import AgentLostError, FaultyAgentError, RemoteError
from tests.protocol.fake_members import (
    EPOCH,
    GEOMETRY,
    N_PHASES,
    NAMES,
    ROW_BYTES,
    Asked,
    D,
    Parts,
    Rig,
    expected,
    honest,
    reply,
)


@pytest.fixture(params=["compiled", "plain"], autouse=True)
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PLAIN_VARIABLE, "1" if request.param == "plain" else "0")


@pytest.fixture
def rig() -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def make(*args: object, **kwargs: object) -> Rig:
        rigs.append(Rig(*args, **kwargs))  # type: ignore[arg-type]
        return rigs[-1]

    yield make
    for made in rigs:
        made.close()


@pytest.mark.parametrize("wire", ["f16", "f32"])
@pytest.mark.parametrize("n_rows", [1, 7])
def test_partials_are_added_in_rank_order(rig: Callable[..., Rig], wire: str, n_rows: int) -> None:
    r = rig(honest, wire)
    for seed in range(3):
        assert np.array_equal(r.step(n_rows, seed), expected(n_rows, wire, seed))
    for member in r.members:
        assert [(a.header.layer, a.header.phase) for a in member.asked] == 3 * [
            (layer, phase)
            for layer in range(GEOMETRY.n_layers)
            for phase in (Phase.ATTENTION, Phase.MLP)
        ]
    seqs = [a.header.seq for a in r.members[0].asked]
    assert seqs == sorted(set(seqs)), "each dispatch has a number of its own, and they rise"
    assert r.engine.times.n_dispatches == 3 * N_PHASES
    assert r.engine.times.kernels_s >= 3 * N_PHASES * 4e-6
    assert r.engine.times.exchange_s > 0


FOREIGN: dict[str, Callable[[int, Asked], Parts]] = {
    "another run": lambda rank, a: [reply(rank, a, run_id=78)],
    "another epoch": lambda rank, a: [reply(rank, a, epoch=2)],
    "an old number": lambda rank, a: [reply(rank, a, seq=a.header.seq - 1)],
    "another rank": lambda rank, a: [reply(rank, a, rank=(rank + 1) % 3)],
    "a rank out of bounds": lambda rank, a: [reply(rank, a, rank=500)],
    "three parts": lambda rank, a: [reply(rank, a), b"", b"more"],
    "nothing": lambda rank, a: [b""],
    "junk": lambda rank, a: [b"H\x01" + b"\xff" * 200],
    "a good reply with a tail beyond the buffer": lambda rank, a: [
        reply(rank, a, bytes(ROW_BYTES + 64))
    ],
    "a frame larger than the buffer": lambda rank, a: [b"H\x01" + b"\x02" * 100_000],
    "a header alone": lambda rank, a: [reply(rank, a)[:HEADER_BYTES]],
}


@pytest.mark.parametrize("what", FOREIGN)
def test_foreign_frames_are_dropped_and_the_step_goes_on(
    rig: Callable[..., Rig], what: str
) -> None:
    def script(rank: int, asked: Asked) -> list[Parts]:
        odd = asked.header.layer == 1 and rank in (0, 2)
        return [FOREIGN[what](rank, asked)] * odd + honest(rank, asked)

    r = rig(script)
    assert np.array_equal(r.step(), expected(1, "f16"))
    assert np.array_equal(r.step(seed=1), expected(1, "f16", 1))
    assert r.socket.n_dropped == 2 * 2 * 2


def test_hellos_of_the_plan_to_come_are_taken_in_the_middle_of_a_step(
    rig: Callable[..., Rig],
) -> None:
    """Rank 2 of the plan in force is rank 0 of the one to come; rank 1 only says that it is."""

    def script(rank: int, asked: Asked) -> list[Parts]:
        hello = reply(rank, asked, b"", type=FrameType.HELLO, epoch=EPOCH + 1, rank=0, seq=0)
        is_time = asked.header.layer == 1 and asked.header.phase is Phase.MLP
        return [[hello]] * (is_time and rank > 0) + honest(rank, asked)

    r = rig(script)
    peers = [HotPeer(f"{NAMES[2]}/1".encode())]
    coming = r.socket.expect(NAMES[2:], peers, Epoch(EPOCH + 1), 4096, lambda _: "")
    assert np.array_equal(r.step(), expected(1, "f16"))
    assert coming.joined
    assert coming.routes == [peers[0].route]
    assert r.socket.n_dropped == 1
    assert np.array_equal(r.step(seed=1), expected(1, "f16", 1))
    assert r.socket.n_dropped == 3


def test_an_engine_of_a_link_that_ended_says_so(rig: Callable[..., Rig]) -> None:
    r = rig(honest)
    r.step()
    r.link.end()
    with pytest.raises(RemoteError, match="the plan was replaced meanwhile"):
        r.step()


def test_a_reply_that_comes_twice_counts_once(rig: Callable[..., Rig]) -> None:
    r = rig(lambda rank, asked: 2 * honest(rank, asked))
    for seed in range(3):
        assert np.array_equal(r.step(seed=seed), expected(1, "f16", seed))


def test_a_slow_member_is_waited_for(rig: Callable[..., Rig]) -> None:
    ready = threading.Event()

    def script(rank: int, asked: Asked) -> list[Parts]:
        if rank == 1 and asked.header.layer == 1:
            ready.wait(0.25)  # longer than the link waits before it looks after its members
        return honest(rank, asked)

    r = rig(script)
    assert np.array_equal(r.step(), expected(1, "f16"))
    assert r.engine.times.longest_dispatch_s > 0.2


def test_an_error_ends_the_step_with_the_members_name_and_words(rig: Callable[..., Rig]) -> None:
    def script(rank: int, asked: Asked) -> list[Parts]:
        if rank == 1 and asked.header.layer == 2:
            return [[reply(rank, asked, b"no page\x1b[2J is free", type=FrameType.ERROR)]]
        return honest(rank, asked)

    r = rig(script)
    with pytest.raises(RemoteError, match=r"agent 'b': no page\\x1b\[2J is free"):
        r.step()


def test_a_member_that_leaves_ends_the_step(rig: Callable[..., Rig]) -> None:
    def script(rank: int, asked: Asked) -> list[Parts]:
        return [[b"leave"]] if rank == 2 and asked.header.layer == 1 else honest(rank, asked)

    r = rig(script)
    with pytest.raises(AgentLostError, match="agent 'c' was lost: its hot link is closed"):
        r.step()
    with pytest.raises(AgentLostError, match="agent 'c' was lost: its hot link is closed"):
        r.step()


def test_a_member_known_to_be_lost_ends_the_step(rig: Callable[..., Rig]) -> None:
    silent = threading.Event()

    def script(rank: int, asked: Asked) -> list[Parts]:
        if rank == 0 and asked.header.layer == 1:
            silent.set()
            return []
        return honest(rank, asked)

    r = rig(
        script, lost=lambda name: "its cable was cut" if silent.is_set() and name == "a" else ""
    )
    with pytest.raises(AgentLostError, match="agent 'a' was lost: its cable was cut"):
        r.step()


def test_a_member_that_never_answers_ends_the_step_at_its_deadline(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "PHASE_TIMEOUT_S", 0.3)
    r = rig(lambda rank, asked: [] if rank == 1 else honest(rank, asked))
    with pytest.raises(AgentLostError, match=r"agent 'b' was lost: it did not answer within 0.3 s"):
        r.step()


@pytest.mark.parametrize("change", [{"n_rows": 1}, {"wire": Wire.F32}, {"type": FrameType.TOP}])
def test_a_reply_of_another_kind_ends_the_step(
    rig: Callable[..., Rig], change: dict[str, object]
) -> None:
    def script(rank: int, asked: Asked) -> list[Parts]:
        if rank == 1:
            row_table = b"\0" * 8 * ("n_rows" in change)
            return [[reply(rank, asked, **change) + row_table]]
        return honest(rank, asked)

    r = rig(script)
    with pytest.raises(RemoteError, match="agent 'b' answered"):
        r.step()


def test_a_sum_that_is_not_finite_is_asked_for_again_in_f32(rig: Callable[..., Rig]) -> None:
    def script(rank: int, asked: Asked) -> list[Parts]:
        if rank == 1 and asked.header.layer == 1 and asked.header.wire is Wire.F16:
            return [[reply(rank, asked, np.full(D, np.inf, np.float16).tobytes())]]
        return honest(rank, asked)

    r = rig(script)
    assert np.array_equal(r.step(), expected(1, "f32"))


def test_numbers_that_are_not_finite_in_f32_either_name_the_member(
    rig: Callable[..., Rig],
) -> None:
    def script(rank: int, asked: Asked) -> list[Parts]:
        if rank == 2 and asked.header.layer == 1:
            return [[reply(rank, asked, np.full_like(asked.x, np.nan).tobytes())]]
        return honest(rank, asked)

    r = rig(script)
    with pytest.raises(FaultyAgentError, match="agent 'c' sent inf or NaN in attention") as e:
        r.step()
    assert e.value.agent == "c"


@pytest.mark.parametrize(("value", "is_legal"), [(1e6, True), (-1e6, True), (3e6, False)])
def test_in_f32_a_member_may_send_what_its_weights_can_give(
    rig: Callable[..., Rig], value: float, is_legal: bool
) -> None:
    asked_about = []

    def bound(*where: object) -> float:
        asked_about.append(where)
        return 2e6

    def script(rank: int, asked: Asked) -> list[Parts]:
        if rank == 1 and (asked.header.layer, asked.header.phase) == (1, Phase.MLP):
            with np.errstate(over="ignore"):
                return [[reply(rank, asked, np.full_like(asked.x, value).tobytes())]]
        return honest(rank, asked)

    r = rig(script, bound=bound)
    for _ in range(2):
        if is_legal:
            assert np.abs(r.step()).max() > 5e5
        else:
            told = r"agent 'b' sent NaN or more than 2e\+06, the most that its weights can give"
            with pytest.raises(FaultyAgentError, match=told) as e:
                r.step()
            assert e.value.agent == "b"
    assert asked_about == [(1, Phase.MLP, 1)]


def test_a_step_looks_up_from_its_work_while_no_reply_is_awaited(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "BETWEEN_DISPATCHES", 4)
    r = rig(honest, "f32")
    looks: list[list[int]] = []
    r.engine.between = lambda: looks.append([len(member.asked) for member in r.members])
    assert np.array_equal(r.step(1, 5), expected(1, "f32", 5))
    # As many frames were answered by each: nobody owed one.
    assert all(len(set(seen)) == 1 for seen in looks)
    counts = {seen[0] for seen in looks}
    assert {0, 4, N_PHASES} <= counts
    n_looks = len(looks)
    r.engine.between = None
    r.step(1, 6)
    assert len(looks) == n_looks
